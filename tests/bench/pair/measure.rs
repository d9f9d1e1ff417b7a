//! What the proxies cost: processor time of all their threads.

use std::fmt;

use crate::load::{Latency, Outcome};

/// One contender's round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Processor time of both halves per unit of the row, in microseconds.
    pub(crate) cpu: f64,
    /// Its part in user mode.
    pub(crate) user: f64,
    /// Its part in the kernel.
    pub(crate) system: f64,
    /// Units per second.
    pub(crate) rate: f64,
    /// How long they took.
    pub(crate) latency: Option<Latency>,
    /// The same, less what the application took alone in this round.
    pub(crate) added: Option<Latency>,
}

impl Round {
    /// From what the proxies used in the round and what the load saw, and saw of the application alone.
    pub(crate) fn new(cost: Cost, outcome: &Outcome, direct: Option<Latency>) -> Self {
        // Less than one unit is none, and none costs nothing that could be said.
        let units = outcome.units.max(f64::MIN_POSITIVE);
        let cpu = cost.nanos as f64 / 1e3 / units;
        let user = cpu * cost.user_share();
        Self {
            cpu,
            user,
            system: cpu - user,
            rate: outcome.rate,
            latency: outcome.latency,
            added: outcome
                .latency
                .zip(direct)
                .map(|(through, direct)| through.beyond(direct)),
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            user,
            system,
            rate,
            ..
        } = self;
        write!(
            f,
            "{cpu:.1} µs CPU ({user:.1} user, {system:.1} system), {rate:.0}/s"
        )?;
        if let Some(Latency { p50, p99, p999 }) = self.latency {
            write!(f, ", p50 {p50:.0} µs, p99 {p99:.0} µs, p99.9 {p999:.0} µs")?;
        }
        Ok(())
    }
}

/// Processor time that processes have used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// All of it, from `schedstat`, in nanoseconds.
    nanos: u64,
    /// In user mode, from `stat`, in the kernel's ticks of 10 ms.
    user: u64,
    /// In the kernel, likewise.
    system: u64,
}

impl Cost {
    /// What has been used so far. A thread that ended takes its time along; proxies keep theirs.
    pub(crate) fn of(pids: &[u32]) -> Self {
        let mut sum = Self::default();
        for pid in pids {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
            let threads = threads.into_iter().flatten().filter_map(Result::ok);
            sum.nanos += threads.filter_map(of_thread).sum::<u64>();
            let (user, system) = ticks(*pid).unwrap_or_default();
            sum.user += user;
            sum.system += system;
        }
        sum
    }

    /// What has been used since an earlier look.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(earlier.nanos),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }

    /// The share of user mode; half where nothing is known.
    fn user_share(self) -> f64 {
        let all = self.user + self.system;
        if all == 0 {
            return 0.5;
        }
        self.user as f64 / all as f64
    }
}

fn of_thread(entry: std::fs::DirEntry) -> Option<u64> {
    let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// `utime` and `stime` of `/proc/PID/stat`; the name before them may have spaces.
fn ticks(pid: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = text.rsplit_once(')')?;
    let mut words = after.split_whitespace().skip(11);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
