//! The system calls of the nest that no library wraps safely.

#![expect(
    unsafe_code,
    reason = "namespaces, fork, signal sets and inherited descriptors are system calls without a safe wrapper"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

use super::privileges::UserIds;

/// Moves the calling thread into new namespaces.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the only hazard of unshare is a private table of descriptors (CLONE_FILES), which
    // no caller in this module asks for.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Has the program killed when the thread that starts it ends.
pub(super) fn die_with_parent(command: &mut Command) {
    let ask = || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// Has `command` start as another user.
pub(super) fn become_user(command: &mut Command, ids: UserIds) {
    // SAFETY: between fork and exec the closure makes three system calls and allocates nothing.
    unsafe { command.pre_exec(move || ids.assume()) };
}

/// Runs `child` in a forked copy of this process, which then exits with the returned code, and
/// returns the raw wait status. The process must have one thread.
pub(super) fn fork_and_wait(child: impl FnOnce() -> u8) -> io::Result<i32> {
    // SAFETY: the caller has checked that the process has one thread, so no lock (the allocator's
    // included) can be held by a thread that does not exist in the child.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // A panic must not unwind into the parent's code.
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(u8::MAX);
        // SAFETY: _exit ends the child without running the parent's exit handlers or flushing its
        // buffers a second time.
        unsafe { libc::_exit(i32::from(code)) };
    }
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the kernel to write one int.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes ownership of a descriptor that this process was started with, and makes it close at the
/// next exec.
pub(super) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: borrowed for this call only; fcntl answers EBADF where nothing is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open (fcntl succeeded) and, since the process has just been started with it,
    // nothing else in the process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes `command` inherit `fd` under its present number, without other children seeing it.
pub(super) fn inherit(command: &mut Command, fd: BorrowedFd<'_>) {
    let number = fd.as_raw_fd();
    let clear = move || {
        // SAFETY: the child has a copy of the parent's table, where the caller keeps `fd` open
        // until spawn returns.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = fcntl_getfd(fd)?;
        fcntl_setfd(fd, flags - FdFlags::CLOEXEC)?;
        Ok(())
    };
    // SAFETY: the closure makes two fcntl calls, which are async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(clear) };
}

/// Makes `command` start with no signal blocked, whatever this process blocks.
pub(super) fn unblock_signals_in(command: &mut Command) {
    let unblock = || set_mask(&signal_set(false));
    // SAFETY: sigemptyset and sigprocmask are async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(unblock) };
}

/// Blocks every signal in the calling thread and returns a descriptor on which they arrive.
pub(super) fn block_signals() -> io::Result<OwnedFd> {
    let all = signal_set(true);
    set_mask(&all)?;
    // SAFETY: `all` is an initialised signal set.
    let fd = unsafe { libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd has just returned it, so it is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A signal that arrived: its number, and the sender's process id as this PID namespace sees it
/// (0 for the kernel and for processes outside).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) signal: i32,
    pub(super) sender: u32,
}

/// The next signal on a descriptor of [`block_signals`], if one waits.
pub(super) fn next_signal(fd: &OwnedFd) -> io::Result<Option<Arrived>> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` has room for `size` bytes; a signalfd writes whole records or nothing.
    let read = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if read == size.cast_signed() {
        // SAFETY: the whole record was written.
        let info = unsafe { info.assume_init() };
        return Ok(Some(Arrived {
            signal: info.ssi_signo.cast_signed(),
            sender: info.ssi_pid,
        }));
    }
    let error = io::Error::last_os_error();
    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
        return Ok(None);
    }
    Err(error)
}

/// Sends `signal` to the process `pid`, or, when it is -1, to every other process that this one
/// may signal (from pid 1 of a PID namespace: to the rest of the namespace).
pub(super) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

fn signal_set(full: bool) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: both calls initialise the set that they are given and cannot fail on a valid pointer.
    unsafe {
        if full {
            libc::sigfillset(set.as_mut_ptr());
        } else {
            libc::sigemptyset(set.as_mut_ptr());
        }
        set.assume_init()
    }
}

fn set_mask(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialised, and the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}
