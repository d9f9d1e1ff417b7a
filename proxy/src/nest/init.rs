//! The first process of the program's PID namespace.
//!
//! It prepares the program's view, drops privileges, starts the program, delivers signals, reaps
//! orphans and reports the exit status. When it ends, the kernel kills whatever is left in the
//! namespace; and it ends when its parent does, so nothing outlives the sidecar.
//!
//! **Signals exactly once.** The program stays in the process group and session that `weft run`
//! was started in, so that it may read the terminal, do job control (`bash`) and get Ctrl-C itself
//! (`psql` cancels a query with it). What the terminal, or `kill -- -GROUP`, sends to the whole
//! group therefore reaches the program without help, and `weft run` too, which relays all it gets.
//! Init is the judge: it is in the group as well, so a signal that arrived at itself from outside
//! was sent to all, and the relayed twin that follows within [`TWIN`] is dropped.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    DumpableBehavior, Signal, WaitOptions, set_dumpable_behavior, set_parent_process_death_signal,
    wait,
};

use super::protocol::{self, Plan, Report};
use super::view::{self, ViewError};
use super::{privileges, sys};

/// How long after a signal to the whole group its relayed twin may arrive.
const TWIN: Duration = Duration::from_secs(1);

/// How long what the program left behind may take to obey SIGTERM.
const GRACE: Duration = Duration::from_secs(1);

/// The highest signal number, plus one.
const SIGNALS: usize = 65;

/// The program behind [`super::NEST_ARG`]; `arguments` are those after it. Only a sidecar starts it.
pub fn nest_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let number = arguments
        .into_iter()
        .next()
        .and_then(|argument| argument.to_str()?.parse::<RawFd>().ok());
    let Some(control) = number.and_then(|number| sys::adopt(number).ok()) else {
        return ExitCode::from(2);
    };
    let mut control = UnixStream::from(control);
    match run(&mut control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            // A sidecar that is gone has nobody to tell.
            let _ = protocol::send(&mut control, &report);
            ExitCode::FAILURE
        }
    }
}

fn run(control: &mut UnixStream) -> Result<(), Report> {
    die_with_parent().map_err(failed("die with the parent"))?;
    if std::process::id() != 1 {
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        return Err(failed("be the first process of a PID namespace")(error));
    }
    let signals = sys::block_signals().map_err(failed("block signals"))?;
    protocol::send(control, &Report::Ready).map_err(failed("report to the sidecar"))?;
    let plan: Plan = protocol::receive(control).map_err(failed("read the plan"))?;

    let search = view::make(&plan).map_err(|error| match error {
        ViewError::Step(step, error) => failed(step)(error),
        ViewError::Hide(path, error) => Report::NotHidden {
            path,
            errno: errno(&error),
        },
    })?;
    privileges::drop_to(plan.user.as_ref()).map_err(failed("drop privileges"))?;
    // A change of user withdraws the death signal.
    die_with_parent().map_err(failed("die with the parent"))?;
    // Same user as the program, which must find nothing here.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| failed("hide from the program")(errno.into()))?;

    let program = start(&plan, search)?;
    protocol::send(control, &Report::Started).map_err(failed("report to the sidecar"))?;
    let mut init = Init {
        program,
        group_signals: [None; SIGNALS],
    };
    let status = init
        .serve(control, &signals)
        .map_err(failed("wait for the program"))?;
    if let Some(status) = status {
        stop_the_rest(&signals);
        let _ = protocol::send(control, &Report::Exited { status });
    }
    Ok(())
}

/// Starts the program, as this process's user and in its groups, with no signal blocked.
fn start(plan: &Plan, search_in_place: bool) -> Result<i32, Report> {
    let mut command = match plan.command.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        None => {
            return Err(Report::NotExecuted {
                errno: libc::ENOENT,
            });
        }
    };
    if !search_in_place && !plan.search_domains.is_empty() {
        // The resolver's other source of search domains, see resolv.conf(5).
        command.env("LOCALDOMAIN", plan.search_domains.join(" "));
    }
    command.envs(plan.env.iter().map(|(name, value)| (name, value)));
    sys::unblock_signals_in(&mut command);
    match command.spawn() {
        Ok(child) => Ok(child.id().cast_signed()),
        Err(error) => {
            let mut errno = errno(&error);
            if errno == libc::EACCES && !is_in_path(&command) {
                errno = libc::ENOENT;
            }
            Err(Report::NotExecuted { errno })
        }
    }
}

/// Whether the program, if it is to be looked up, is anywhere to be seen. exec says "permission
/// denied" when any directory in the PATH may not be searched, and it is nowhere else.
fn is_in_path(command: &Command) -> bool {
    let name = command.get_program();
    if name.as_bytes().contains(&b'/') {
        return true;
    }
    let of_program = command.get_envs().find(|(name, _)| *name == "PATH");
    let path = match of_program {
        Some((_, path)) => path.map(ToOwned::to_owned),
        None => std::env::var_os("PATH"),
    };
    std::env::split_paths(&path.unwrap_or_default()).any(|directory| directory.join(name).exists())
}

struct Init {
    /// The program's process id in this namespace.
    program: i32,
    /// When each signal last arrived at the whole process group.
    group_signals: [Option<Instant>; SIGNALS],
}

impl Init {
    /// Until the program ends: its wait status; `None` when the sidecar is gone.
    fn serve(&mut self, control: &mut UnixStream, signals: &OwnedFd) -> io::Result<Option<i32>> {
        loop {
            wait_readable(&[control.as_fd(), signals.as_fd()], None)?;
            // Before the relayed twins that it decides about.
            while let Some(arrived) = sys::next_signal(signals)? {
                self.on_signal(arrived, Instant::now());
            }
            if let Some(status) = self.reap() {
                return Ok(Some(status));
            }
            match relayed(control)? {
                Relayed::Nothing => {}
                Relayed::Gone => return Ok(None),
                Relayed::Signal(signal) => {
                    if self.is_news(signal, Instant::now()) {
                        // It may have ended a moment ago, which the next round sees.
                        let _ = sys::kill(self.program, signal);
                    }
                }
            }
        }
    }

    fn on_signal(&mut self, arrived: sys::Arrived, now: Instant) {
        let slot = usize::try_from(arrived.signal)
            .ok()
            .and_then(|signal| self.group_signals.get_mut(signal));
        // From inside, anybody may signal this process; it means nothing.
        if let Some(slot) = slot
            && arrived.sender == 0
        {
            *slot = Some(now);
        }
    }

    /// Whether the program has not yet got this signal with its group.
    fn is_news(&self, signal: i32, now: Instant) -> bool {
        usize::try_from(signal)
            .ok()
            .and_then(|signal| self.group_signals.get(signal).copied().flatten())
            .is_none_or(|at| now.saturating_duration_since(at) > TWIN)
    }

    /// Collects everyone who ended; the program's wait status if it is among them.
    fn reap(&self) -> Option<i32> {
        let mut of_program = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid.as_raw_pid() == self.program {
                of_program = Some(status.as_raw());
            }
        }
        of_program
    }
}

enum Relayed {
    Nothing,
    Signal(i32),
    Gone,
}

fn relayed(control: &mut UnixStream) -> io::Result<Relayed> {
    if !wait_readable(&[control.as_fd()], Some(Duration::ZERO))? {
        return Ok(Relayed::Nothing);
    }
    let mut byte = [0];
    match control.read(&mut byte) {
        Ok(1) => Ok(Relayed::Signal(i32::from(byte[0]))),
        Ok(_) => Ok(Relayed::Gone),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Relayed::Nothing),
        Err(_) => Ok(Relayed::Gone),
    }
}

/// Asks what the program left behind to end, and waits at most [`GRACE`] for it.
fn stop_the_rest(signals: &OwnedFd) {
    if sys::kill(-1, libc::SIGTERM).is_err() {
        return;
    }
    let _ = sys::kill(-1, libc::SIGCONT);
    let deadline = Instant::now() + GRACE;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => continue,
            Ok(None) => {}
            // Nobody is left.
            Err(_) => return,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || wait_readable(&[signals.as_fd()], Some(left)).is_err() {
            return;
        }
        while let Ok(Some(_)) = sys::next_signal(signals) {}
    }
}

/// Waits until one of `fds` is readable or closed; false when the time is up.
fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    let timeout = timeout.map(|timeout| Timespec::try_from(timeout).unwrap_or_default());
    match poll(&mut polled, timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn die_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> Report {
    move |error| Report::NotPrepared {
        step: step.to_owned(),
        errno: errno(&error),
    }
}

/// The error's number; EIO for the few that the library makes itself.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relayed_signal_is_dropped_when_the_group_got_it() {
        let start = Instant::now();
        let check = |arrived: Option<(i32, u32)>, signal, after_ms, expected| {
            let mut init = Init {
                program: 2,
                group_signals: [None; SIGNALS],
            };
            if let Some((signal, sender)) = arrived {
                init.on_signal(sys::Arrived { signal, sender }, start);
            }
            let now = start + Duration::from_millis(after_ms);
            assert_eq!(
                init.is_news(signal, now),
                expected,
                "{arrived:?} {signal} {after_ms}"
            );
        };
        check(None, libc::SIGINT, 0, true);
        check(Some((libc::SIGINT, 0)), libc::SIGINT, 0, false);
        check(Some((libc::SIGINT, 0)), libc::SIGINT, 1_000, false);
        check(Some((libc::SIGINT, 0)), libc::SIGINT, 1_001, true);
        check(Some((libc::SIGINT, 0)), libc::SIGTERM, 0, true);
        check(Some((libc::SIGINT, 5)), libc::SIGINT, 0, true);
        check(Some((4711, 0)), 4711, 0, true);
        check(Some((-1, 0)), -1, 0, true);
    }
}
