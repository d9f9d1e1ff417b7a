//! A program beside its sidecar without any namespace: an ordinary child. Nothing outlives the
//! sidecar all the same: what the program leaves behind becomes this process's child and is killed
//! at the end, and the program itself dies when this process does.
//!
//! The program reads every file that its user may read, the sidecar's keys included where it has
//! the sidecar's user. Only the sidecar's memory is closed to it, if that is sealed.

use std::ffi::OsString;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, getegid, geteuid, getpid, kill_process, set_child_subreaper, waitpid,
};
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval};

use super::privileges::{self, UserIds};
use super::{NestError, User, sys};

/// How often what the program left behind is reaped.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// What is killed may have children of its own, which then are ours.
const GENERATIONS_MAX: usize = 100;

/// A running program. Dropping it kills the program and everything that it started, unless that
/// has left for another parent.
#[derive(Debug)]
pub struct Bare(tokio::process::Child);

impl Bare {
    /// Starts a program as `user`, or as this process's own. To be called from the thread that
    /// lives as long as the process: the program dies with it.
    ///
    /// # Errors
    ///
    /// [`NestError::User`] when this process may not run it as that user, and
    /// [`NestError::Exec`].
    pub fn spawn(command: &[OsString], user: Option<&User>) -> Result<Self, NestError> {
        let failed = |step: &str| {
            let step = step.to_owned();
            |source: io::Error| NestError::Prepare { step, source }
        };
        let Some((program, arguments)) = command.split_first() else {
            return Err(failed("find a program")(io::ErrorKind::InvalidInput.into()));
        };
        set_child_subreaper(Some(getpid()))
            .map_err(|errno| failed("adopt what is left behind")(errno.into()))?;
        let mut command = Command::new(program);
        command.args(arguments).kill_on_drop(true);
        let own = |user: &User| user.uid == geteuid().as_raw() && user.gid == getegid().as_raw();
        if let Some(user) = user.filter(|user| !own(user)) {
            if !privileges::may_become_another().map_err(failed("read the capabilities"))? {
                return Err(NestError::User { uid: user.uid });
            }
            sys::become_user(command.as_std_mut(), UserIds::of(user));
        }
        // A change of user withdraws the death signal, so this comes after it.
        sys::die_with_parent(command.as_std_mut());
        let child = command.spawn().map_err(|source| NestError::Exec {
            program: program.clone(),
            source,
        })?;
        Ok(Self(child))
    }

    /// Waits until the program has ended. May be cancelled and called again.
    ///
    /// # Errors
    ///
    /// What waiting came to.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let own = self.pid();
        let mut reaping = interval(REAP_EVERY);
        reaping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = self.0.wait() => return ended,
                _ = reaping.tick() => {
                    for orphan in children().into_iter().filter(|pid| Some(*pid) != own) {
                        // Still running, for the most part.
                        let _ = waitpid(Some(orphan), WaitOptions::NOHANG);
                    }
                }
            }
        }
    }

    /// Delivers a signal to the program, unless it has ended.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for what is no signal that can be passed on.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        match self.pid() {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Ok(()),
        }
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.0.id()?).ok()?)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // The runtime has to know that this one is gone: it would signal a pid that is another's.
        let _ended_is_fine = self.0.start_kill();
        while matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for _generation in 0..GENERATIONS_MAX {
            let left = children();
            if left.is_empty() {
                return;
            }
            for pid in left {
                // It may have ended in this very moment.
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }
}

/// The children of this process, whichever thread made them.
fn children() -> Vec<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let pids = |list: String| {
        let numbers = list.split_ascii_whitespace();
        let pids = numbers.filter_map(|number| Pid::from_raw(number.parse().ok()?));
        pids.collect::<Vec<_>>()
    };
    lists.flat_map(pids).collect()
}
