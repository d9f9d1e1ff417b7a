//! When memory that was freed is given back to the system.

use std::time::Duration;

/// What can be given back at any time, in bytes: looking for it keeps the allocator busy for a moment, and
/// less is not worth that while requests are served.
const BUSY_FROM: u64 = 12 << 20;
/// What can be given back, in bytes, once a burst is over.
const CALM_FROM: u64 = 1 << 20;
/// A process is quiet that has used less than this share of a processor, as a divisor.
const QUIET_SHARE: u32 = 20;
/// So many connections were open at once, at least, for their closing to be the end of a burst.
const CROWD: usize = 64;

/// What a process holds and does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Resident memory of its own, in bytes.
    pub(super) resident: u64,
    /// Memory that was allocated and not freed, in bytes.
    pub(super) used: u64,
    /// Processor time since it began.
    pub(super) processor: Duration,
    /// Connections that are open.
    pub(super) open: usize,
}

impl Usage {
    /// What is neither in use nor away: free, or of threads and of the program itself.
    fn unused(&self) -> u64 {
        self.resident.saturating_sub(self.used)
    }
}

/// Decides when freed memory is given back: at once where it is much, and a little after a burst.
#[derive(Debug, Default)]
pub struct Trimming {
    /// What was not in use the last time, right after all of it that could be had been given back.
    floor: u64,
    /// The most connections that were open since then.
    most_open: usize,
    processor: Duration,
}

impl Trimming {
    /// Whether to give back now; `elapsed` is the time since the last look.
    pub(super) fn is_due(&mut self, usage: Usage, elapsed: Duration) -> bool {
        self.most_open = self.most_open.max(usage.open);
        // What could not be given back was used since, and can be once it is free again.
        self.floor = self.floor.min(usage.unused());
        let processor = usage.processor.saturating_sub(self.processor);
        self.processor = usage.processor;
        let is_quiet = processor < elapsed / QUIET_SHARE;
        let is_over = self.most_open >= CROWD && usage.open <= self.most_open / 2;
        let from = match is_quiet || is_over {
            true => CALM_FROM,
            false => BUSY_FROM,
        };
        usage.unused().saturating_sub(self.floor) >= from
    }

    /// All was given back that could be.
    pub(super) fn on_trimmed(&mut self, usage: Usage) {
        self.floor = usage.unused();
        self.most_open = usage.open;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(15);

    /// What a process holds, in MiB, with so many connections, after so much processor time in all.
    fn usage(resident: u64, used: u64, seconds: u64, open: usize) -> Usage {
        Usage {
            resident: resident << 20,
            used: used << 20,
            processor: Duration::from_secs(seconds),
            open,
        }
    }

    #[test]
    fn what_is_given_back_depends_on_what_goes_on() {
        for (usage, due) in [
            // Quiet.
            (usage(9, 4, 1, 10), true),
            (usage(5, 4, 1, 10), false),
            (usage(3, 4, 1, 10), false),
            // Busy.
            (usage(9, 4, 10, 300), false),
            (usage(40, 4, 10, 300), true),
        ] {
            let mut trimming = Trimming {
                floor: 1 << 20,
                most_open: 0,
                processor: Duration::from_millis(500),
            };
            assert_eq!(trimming.is_due(usage, EVERY), due, "{usage:?}");
        }
    }

    #[test]
    fn a_crowd_that_leaves_is_seen_once() {
        let mut trimming = Trimming::default();
        assert!(!trimming.is_due(usage(8, 7, 5, 200), EVERY));
        assert!(!trimming.is_due(usage(10, 5, 10, 120), EVERY));
        assert!(trimming.is_due(usage(10, 3, 15, 90), EVERY));
        trimming.on_trimmed(usage(5, 3, 15, 90));
        assert!(!trimming.is_due(usage(7, 3, 20, 50), EVERY));
        // More came, and is over.
        assert!(!trimming.is_due(usage(7, 4, 25, 300), EVERY));
        assert!(trimming.is_due(usage(7, 3, 30, 0), EVERY));
    }

    #[test]
    fn what_cannot_be_given_back_is_not_tried_again() {
        let mut trimming = Trimming::default();
        let idle = |seconds| usage(20, 5, seconds, 0);
        assert!(trimming.is_due(idle(0), EVERY));
        trimming.on_trimmed(idle(0));
        for _ in 0..10 {
            assert!(!trimming.is_due(idle(0), EVERY));
        }
        // What fills the holes and is freed then can be.
        assert!(!trimming.is_due(usage(20, 19, 0, 0), EVERY));
        assert!(trimming.is_due(idle(0), EVERY));
        trimming.on_trimmed(idle(0));
        // What is freed between what is used can be.
        assert!(trimming.is_due(usage(20, 3, 0, 0), EVERY));
    }
}
