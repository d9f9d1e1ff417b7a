//! What the proxies cost: processor time of all their threads.

use std::fmt;

use crate::load::Outcome;

/// One contender's round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Processor time of both halves per request, in microseconds.
    pub(crate) cpu: f64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// Median latency, in microseconds.
    pub(crate) p50: f64,
    /// 99th percentile, in microseconds.
    pub(crate) p99: f64,
}

impl Round {
    /// From the processor time of the round, in microseconds, and what the load saw.
    pub(crate) fn new(cpu: u64, outcome: &Outcome) -> Self {
        let cpu = cpu as f64 / outcome.requests.max(1) as f64;
        Self {
            cpu,
            rate: outcome.rate,
            p50: outcome.p50,
            p99: outcome.p99,
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            rate,
            p50,
            p99,
        } = self;
        write!(
            f,
            "{cpu:.1} µs CPU per request, {rate:.0}/s, p50 {p50:.0} µs, p99 {p99:.0} µs"
        )
    }
}

/// The processor time that processes have used so far, user and system, in microseconds. A thread
/// that ended takes its time along; proxies keep theirs.
pub(crate) fn cpu_micros(pids: &[u32]) -> u64 {
    let of_thread = |entry: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    let of_process = |pid: &u32| -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        threads.filter_map(Result::ok).filter_map(of_thread).sum()
    };
    pids.iter().map(of_process).sum::<u64>() / 1000
}
