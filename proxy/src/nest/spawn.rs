//! Starting the program, and what the sidecar holds of it.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, getegid, geteuid, pidfd_open, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use tokio::sync::oneshot;

use super::namespace::{Nest, STACK};
use super::protocol::{self, Plan, Report};
use super::{NEST_ARG, NestConfig, NestError, Privilege, User, privileges, sys};

/// The longest that the preparation of the program may take before it counts as failed.
const START_TIMEOUT: Duration = Duration::from_secs(10);

impl Nest {
    /// Starts the program inside, and returns when it has been executed.
    ///
    /// # Errors
    ///
    /// [`NestError::Exec`] when the program cannot be executed; [`NestError::Hide`],
    /// [`NestError::User`] or [`NestError::Prepare`] when its surroundings cannot be made.
    pub fn spawn(&mut self, config: &NestConfig) -> Result<Child, NestError> {
        Child::spawn(config, self.privilege, Some(Arc::clone(&self.namespace)))
    }
}

/// A running program with its namespaces. Dropping it kills the program and everything that it
/// started.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
    control: UnixStream,
    exit: oneshot::Receiver<io::Result<ExitStatus>>,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts the program in mount and PID namespaces of its own and in the host's network, and
    /// returns when it has been executed. Of `config`, what is about networks and names is not
    /// looked at.
    ///
    /// # Errors
    ///
    /// As [`Nest::spawn`].
    pub fn spawn_in_host_network(
        config: &NestConfig,
        privilege: Privilege,
    ) -> Result<Self, NestError> {
        Self::spawn(config, privilege, None)
    }

    fn spawn(
        config: &NestConfig,
        privilege: Privilege,
        namespace: Option<Arc<OwnedFd>>,
    ) -> Result<Self, NestError> {
        let own = |user: &User| user.uid == geteuid().as_raw() && user.gid == getegid().as_raw();
        let alone = privilege == Privilege::UserNamespace;
        // In a user namespace of one user, that user is the program's anyway.
        let user = config.user.clone().filter(|user| !(alone && own(user)));
        if let Some(user) = &user
            && alone
        {
            return Err(NestError::User { uid: user.uid });
        }
        let (sender, receiver) = mpsc::channel();
        let (exited, exit) = oneshot::channel();
        let exe = config.exe.clone();
        let plan = Plan {
            command: config.command.clone(),
            env: config.env.clone(),
            user,
            hide: config.hide.iter().cloned().map(Into::into).collect(),
            search_domains: match namespace {
                Some(_) => config.search_domains.clone(),
                None => Vec::new(),
            },
            own_network: namespace.is_some(),
            only_own_processes: privilege == Privilege::Root,
        };
        // A thread of its own, for three reasons: it enters namespaces, the program dies with the
        // thread that started it, and it waits for the end.
        let thread = thread::Builder::new()
            .name("weft-program".to_owned())
            .stack_size(STACK)
            .spawn(move || match start(namespace.as_deref(), exe, &plan) {
                Ok((started, mut init)) => {
                    let control = started.control.try_clone();
                    if sender.send(Ok(started)).is_ok() {
                        let _ = exited.send(attend(control, &mut init));
                    } else {
                        stop(&mut init);
                    }
                }
                Err(error) => drop(sender.send(Err(error))),
            });
        thread.map_err(prepare("start a thread"))?;
        let gone = |_| prepare("keep the thread")(io::ErrorKind::BrokenPipe);
        let started = receiver.recv().map_err(gone)??;
        Ok(Self {
            pid: started.pid,
            pidfd: started.pidfd,
            control: started.control,
            exit,
            status: None,
        })
    }

    /// The process id, in the host's eyes, of the nest's first process, parent of the program:
    /// when it dies everything in the nest does.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the program has ended, and all that it left behind with it (SIGTERM, then
    /// SIGKILL a second later). May be cancelled and called again.
    ///
    /// # Errors
    ///
    /// When the thread that waits has failed; the program is dead then.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let gone = |_| Err(io::ErrorKind::BrokenPipe.into());
        let status = (&mut self.exit).await.unwrap_or_else(gone)?;
        self.status = Some(status);
        Ok(status)
    }

    /// Delivers a signal to the program, unless its whole process group got the same within the
    /// last second.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for what is no signal number, `BrokenPipe` when the program has ended.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match u8::try_from(signal) {
            Ok(byte @ 1..=64) => (&self.control).write_all(&[byte]),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Kills the program and everything that it started, at once. [`Child::wait`] then says so.
    pub fn kill(&self) {
        // The only failure is that it is dead.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The exit code that a shell would show: the program's own, or 128 plus the signal's number.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

struct Started {
    pid: u32,
    pidfd: OwnedFd,
    control: UnixStream,
}

/// Starts the nest's first process from the calling thread, which stays in the namespaces that it
/// enters, and has it start the program.
fn start(
    namespace: Option<&OwnedFd>,
    exe: PathBuf,
    plan: &Plan,
) -> Result<(Started, std::process::Child), NestError> {
    if let Some(namespace) = namespace {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(prepare("enter the network namespace"))?;
    }
    // Holds for the children of this thread: the first of them is pid 1.
    sys::unshare(UnshareFlags::NEWPID).map_err(prepare("make a PID namespace"))?;
    privileges::hand_down().map_err(prepare("hand down privileges"))?;
    let (mut control, theirs) = UnixStream::pair().map_err(prepare("make a control socket"))?;
    control
        .set_read_timeout(Some(START_TIMEOUT))
        .map_err(prepare("make a control socket"))?;
    let mut command = Command::new(exe);
    command.arg(NEST_ARG).arg(theirs.as_raw_fd().to_string());
    sys::inherit(&mut command, theirs.as_fd());
    let mut init = command
        .spawn()
        .map_err(prepare("start its first process"))?;
    drop(theirs);
    match instruct(&mut control, plan).and_then(|()| open_pidfd(&init)) {
        Ok(pidfd) => {
            let pid = init.id();
            Ok((
                Started {
                    pid,
                    pidfd,
                    control,
                },
                init,
            ))
        }
        Err(error) => {
            stop(&mut init);
            Err(error)
        }
    }
}

/// Says what to run, and waits until it runs.
fn instruct(control: &mut UnixStream, plan: &Plan) -> Result<(), NestError> {
    expect(control, &Report::Ready, plan)?;
    protocol::send(control, plan).map_err(prepare("say what to run"))?;
    expect(control, &Report::Started, plan)?;
    control
        .set_read_timeout(None)
        .map_err(prepare("wait for its end"))
}

fn expect(control: &mut UnixStream, expected: &Report, plan: &Plan) -> Result<(), NestError> {
    let report = protocol::receive(control).map_err(prepare("hear of its first process"))?;
    match report {
        report if report == *expected => Ok(()),
        Report::NotHidden { path, errno } => Err(NestError::Hide {
            path: path.into(),
            source: io::Error::from_raw_os_error(errno),
        }),
        Report::NotPrepared { step, errno } => Err(NestError::Prepare {
            step,
            source: io::Error::from_raw_os_error(errno),
        }),
        Report::NotExecuted { errno } => Err(NestError::Exec {
            program: plan.command.first().cloned().unwrap_or_default(),
            source: io::Error::from_raw_os_error(errno),
        }),
        Report::Ready | Report::Started | Report::Exited { .. } => {
            Err(prepare("understand its first process")(io::Error::from(
                io::ErrorKind::InvalidData,
            )))
        }
    }
}

/// Not yet waited for, so the number is still its own.
fn open_pidfd(init: &std::process::Child) -> Result<OwnedFd, NestError> {
    pidfd_open(Pid::from_child(init), PidfdFlags::empty())
        .map_err(prepare("hold on to its first process"))
}

/// Waits for the end of everything; the program's status, or that of the nest's first process if
/// it was killed before it could report.
fn attend(
    control: io::Result<UnixStream>,
    init: &mut std::process::Child,
) -> io::Result<ExitStatus> {
    let report = control.and_then(|mut control| protocol::receive(&mut control));
    let of_init = init.wait()?;
    match report {
        Ok(Report::Exited { status }) => Ok(ExitStatus::from_raw(status)),
        Ok(_) | Err(_) => Ok(of_init),
    }
}

fn stop(init: &mut std::process::Child) {
    // Fails only when it is dead.
    let _ = init.kill();
    let _ = init.wait();
}

fn prepare<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> NestError {
    move |error| NestError::Prepare {
        step: step.to_owned(),
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        let check = |raw: i32, expected: u8| {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), expected, "{raw}");
        };
        check(0, 0);
        check(3 << 8, 3);
        check(255 << 8, 255);
        check(libc::SIGKILL, 137);
        check(libc::SIGTERM, 143);
        check(libc::SIGSEGV | 0x80, 139);
    }
}
