//! A token bucket in whole numbers: nothing is rounded, so nothing drifts.

use std::time::Duration;

use super::{RateLimit, WHOLE};
use crate::time::Instant;

/// How fast a bucket fills and how much it holds: a limit, or a share of one. Units are so small
/// that a nanosecond brings a whole number of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Units that a nanosecond brings.
    gain: u128,
    /// Units of a token.
    cost: u128,
    /// Units that fit.
    capacity: u128,
}

impl Pace {
    /// `share` parts of [`WHOLE`] of a limit. What fits is a request at least, unless the share is
    /// none.
    pub fn of(limit: &RateLimit, share: u32) -> Self {
        let share = u128::from(share.min(WHOLE));
        let cost = limit.per.as_nanos() * u128::from(WHOLE);
        let capacity = u128::from(limit.burst) * limit.per.as_nanos() * share;
        Self {
            gain: u128::from(limit.requests) * share,
            cost,
            capacity: match share {
                0 => 0,
                _ => capacity.max(cost),
            },
        }
    }

    /// How long so many units take; for ever where nothing comes.
    fn time_for(&self, units: u128) -> Duration {
        if self.gain == 0 {
            return Duration::MAX;
        }
        let nanos = units.div_ceil(self.gain);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Tokens that come in a time, whole ones.
    pub(super) fn tokens_in(&self, time: Duration) -> u64 {
        u64::try_from(self.gain * time.as_nanos() / self.cost).unwrap_or(u64::MAX)
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may go on.
    pub allowed: bool,
    /// Whole tokens that are left.
    pub left: u64,
    /// Until the next token comes.
    pub wait: Duration,
}

/// A bucket, as it was at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    level: u128,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn full(pace: &Pace, now: Instant) -> Self {
        Self {
            level: pace.capacity,
            at: now,
        }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, pace: &Pace, now: Instant) -> Verdict {
        self.settle(pace, now);
        let allowed = self.level >= pace.cost;
        if allowed {
            self.level -= pace.cost;
        }
        let missing = match allowed {
            true => (pace.cost - self.level % pace.cost).min(pace.capacity - self.level),
            false => pace.cost - self.level,
        };
        Verdict {
            allowed,
            left: u64::try_from(self.level / pace.cost).unwrap_or(u64::MAX),
            wait: pace.time_for(missing),
        }
    }

    /// Gives a token back that was taken for nothing.
    pub fn give_back(&mut self, pace: &Pace) {
        self.level = (self.level + pace.cost).min(pace.capacity);
    }

    /// When it will be full, if nothing is taken.
    pub fn full_at(&self, pace: &Pace) -> Instant {
        self.at + pace.time_for(pace.capacity - self.level.min(pace.capacity))
    }

    /// Goes on at another pace. What it holds beyond that is lost, and nothing is given for it.
    pub fn change(&mut self, from: &Pace, to: &Pace, now: Instant) {
        self.settle(from, now);
        if from.cost != to.cost {
            // Other units: whole tokens only.
            self.level = (self.level / from.cost).saturating_mul(to.cost);
        }
        self.level = self.level.min(to.capacity);
    }

    fn settle(&mut self, pace: &Pace, now: Instant) {
        // Workers read their clocks before they wait for each other.
        let elapsed = now.saturating_since(self.at).as_nanos();
        let level = self.level.saturating_add(pace.gain.saturating_mul(elapsed));
        self.level = level.min(pace.capacity);
        self.at = self.at.max(now);
    }
}
