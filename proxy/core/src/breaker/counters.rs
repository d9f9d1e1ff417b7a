//! What the calls in the window came to, in rings of fixed size with running sums.

use std::time::Duration;

use super::config::{MAX_WINDOW_BUCKETS, MAX_WINDOW_CALLS, Window};
use crate::time::Instant;

/// Sums over calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) calls: u32,
    pub(super) failed: u32,
    pub(super) slow: u32,
}

impl Counts {
    fn one(failed: bool, slow: bool) -> Self {
        Self {
            calls: 1,
            failed: u32::from(failed),
            slow: u32::from(slow),
        }
    }

    fn add(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.failed = self.failed.saturating_add(other.failed);
        self.slow = self.slow.saturating_add(other.slow);
    }

    fn subtract(&mut self, other: Self) {
        self.calls = self.calls.saturating_sub(other.calls);
        self.failed = self.failed.saturating_sub(other.failed);
        self.slow = self.slow.saturating_sub(other.slow);
    }
}

/// A ring with the sums over it. Memory is taken when it is made, never later.
#[derive(Debug, Clone)]
pub(super) struct Counters {
    sum: Counts,
    ring: Ring,
}

#[derive(Debug, Clone)]
enum Ring {
    Calls {
        /// FAILED and SLOW of each call.
        flags: Box<[u8]>,
        next: usize,
    },
    Buckets {
        buckets: Box<[Counts]>,
        /// How long a bucket is, nanoseconds.
        width: u64,
        /// Number of the newest bucket, counted from the clock's origin.
        newest: u64,
    },
}

const FAILED: u8 = 1;
const SLOW: u8 = 2;

impl Counters {
    pub(super) fn new(window: Window) -> Self {
        let ring = match window {
            Window::Count(calls) => Ring::Calls {
                flags: vec![0; calls.clamp(1, MAX_WINDOW_CALLS) as usize].into(),
                next: 0,
            },
            Window::Time { length, buckets } => {
                let buckets = buckets.clamp(1, MAX_WINDOW_BUCKETS);
                Ring::Buckets {
                    buckets: vec![Counts::default(); buckets as usize].into(),
                    width: nanos(length / buckets).max(1),
                    newest: 0,
                }
            }
        };
        Self {
            sum: Counts::default(),
            ring,
        }
    }

    /// Counts a call and gives the sums over the window.
    pub(super) fn count(&mut self, now: Instant, failed: bool, slow: bool) -> Counts {
        match &mut self.ring {
            Ring::Calls { flags, next } => {
                if self.sum.calls as usize == flags.len() {
                    let oldest = flags[*next];
                    let leaving = Counts::one(oldest & FAILED != 0, oldest & SLOW != 0);
                    self.sum.subtract(leaving);
                }
                flags[*next] = (u8::from(failed) * FAILED) | (u8::from(slow) * SLOW);
                *next = (*next + 1) % flags.len();
            }
            Ring::Buckets {
                buckets,
                width,
                newest,
            } => {
                let length = buckets.len() as u64;
                let current = now.as_nanos() / *width;
                // A clock that goes back counts into the newest bucket.
                let passed = current.saturating_sub(*newest).min(length);
                *newest = current.max(*newest);
                for back in 0..passed {
                    // Bucket numbers below zero were never counted in.
                    let number = newest.saturating_sub(back);
                    let leaving = std::mem::take(&mut buckets[(number % length) as usize]);
                    self.sum.subtract(leaving);
                }
                buckets[(*newest % length) as usize].add(Counts::one(failed, slow));
            }
        }
        self.sum.add(Counts::one(failed, slow));
        self.sum
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.sum = Counts::default();
        match &mut self.ring {
            Ring::Calls { next, .. } => *next = 0,
            Ring::Buckets { buckets, .. } => buckets.fill(Counts::default()),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(calls: impl Iterator<Item = (bool, bool)>) -> Counts {
        calls.fold(Counts::default(), |mut sum, (failed, slow)| {
            sum.add(Counts::one(failed, slow));
            sum
        })
    }

    proptest! {
        #[test]
        fn the_last_calls(
            size in 1u32..20,
            calls in proptest::collection::vec(any::<(bool, bool)>(), 1..100),
        ) {
            let mut counters = Counters::new(Window::Count(size));
            for (index, (failed, slow)) in calls.iter().enumerate() {
                let counted = counters.count(Instant::default(), *failed, *slow);
                let from = (index + 1).saturating_sub(size as usize);
                prop_assert_eq!(counted, sum(calls[from..=index].iter().copied()));
            }
        }

        #[test]
        fn the_last_buckets(
            buckets in 1u32..12,
            start in 0u64..1000,
            calls in proptest::collection::vec((0u64..40, any::<(bool, bool)>()), 1..100),
        ) {
            let width = 10;
            let length = Duration::from_nanos(width * u64::from(buckets));
            let mut counters = Counters::new(Window::Time { length, buckets });
            let mut seen: Vec<(u64, (bool, bool))> = Vec::new();
            let mut now = start;
            for (wait, (failed, slow)) in calls {
                now += wait;
                seen.push((now / width, (failed, slow)));
                let counted = counters.count(Instant::from_nanos(now), failed, slow);
                let oldest = (now / width + 1).saturating_sub(u64::from(buckets));
                let inside = seen.iter().filter(|(number, _)| *number >= oldest);
                prop_assert_eq!(counted, sum(inside.map(|(_, call)| *call)));
            }
            counters.clear();
            prop_assert_eq!(counters.count(Instant::from_nanos(now), false, false).calls, 1);
        }
    }
}
