//! The bounded table of series: one set of counters per key and thread, which expires unused.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::stats::Stats;
use super::{Direction, HttpKey, Wire};

/// How long a series that no one holds and that does not change is kept. Long enough for several
/// scrapes to see its last value.
pub(super) const EXPIRY: Duration = Duration::from_secs(600);

/// How often a full table looks for something to expire.
const FULL_SWEEP: Duration = Duration::from_secs(1);

/// The label's value of what did not fit.
pub(super) const OTHER: &str = "other";

/// Requests by direction and wire.
pub(super) type Totals = [[u64; Wire::ALL.len()]; Direction::ALL.len()];

#[derive(Debug)]
pub(super) struct Table<S> {
    max: usize,
    entries: HashMap<HttpKey, Entry<S>>,
    swept: Option<Instant>,
    retired: Totals,
}

#[derive(Debug)]
struct Entry<S> {
    shards: Vec<(ThreadId, Arc<S>)>,
    /// [`Stats::activity`] when it was last looked at, and since when it has been that.
    activity: u64,
    since: Instant,
}

impl<S: Stats> Table<S> {
    /// A table of at most `max` series, besides `other`.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            entries: HashMap::new(),
            swept: None,
            retired: Totals::default(),
        }
    }

    /// The calling thread's counters for `key`, or for `other` where the table is full.
    pub(super) fn handle(&mut self, key: HttpKey, now: Instant) -> Arc<S> {
        let known = self.entries.contains_key(&key);
        if !known && self.is_full() {
            let due = |at| now.saturating_duration_since(at) >= FULL_SWEEP;
            if self.swept.is_none_or(due) {
                self.sweep(now);
            }
        }
        let key = if known || !self.is_full() {
            key
        } else {
            HttpKey {
                direction: key.direction,
                service: OTHER.into(),
                peer: OTHER.into(),
            }
        };
        let entry = self.entries.entry(key).or_insert_with(|| Entry {
            shards: Vec::with_capacity(1),
            activity: 0,
            since: now,
        });
        entry.since = now;
        let thread = std::thread::current().id();
        if let Some((_, stats)) = entry.shards.iter().find(|(id, _)| *id == thread) {
            return Arc::clone(stats);
        }
        let stats = Arc::new(S::default());
        entry.shards.push((thread, Arc::clone(&stats)));
        stats
    }

    /// Forgets what nobody holds and what has not changed for [`EXPIRY`].
    pub(super) fn sweep(&mut self, now: Instant) {
        self.swept = Some(now);
        let retired = &mut self.retired;
        self.entries.retain(|key, entry| {
            let activity = entry.activity();
            if activity != entry.activity {
                entry.activity = activity;
                entry.since = now;
            }
            let held = entry.shards.iter().any(|(_, s)| Arc::strong_count(s) > 1);
            if held || now.saturating_duration_since(entry.since) < EXPIRY {
                return true;
            }
            for wire in Wire::ALL {
                let requests: u64 = entry.shards.iter().map(|(_, s)| s.requests(wire)).sum();
                retired[key.direction as usize][wire as usize] += requests;
            }
            false
        });
    }

    /// Requests of expired series.
    pub(super) fn retired(&self) -> &Totals {
        &self.retired
    }

    /// Every series with its counters, one set per thread.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&HttpKey, Vec<Arc<S>>)> {
        self.entries.iter().map(|(key, entry)| {
            let shards = entry.shards.iter().map(|(_, s)| Arc::clone(s));
            (key, shards.collect())
        })
    }

    /// Whether what is new is counted under `other`, of which there is one per direction.
    fn is_full(&self) -> bool {
        self.entries.len() >= self.max
    }
}

impl<S: Stats> Entry<S> {
    fn activity(&self) -> u64 {
        self.shards.iter().map(|(_, s)| s.activity()).sum()
    }
}
