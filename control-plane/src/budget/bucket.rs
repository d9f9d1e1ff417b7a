//! A token bucket that can be charged any amount, and into debt.

use std::time::{Duration, Instant};

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units per second; at least 1.
    pub per_second: u64,
    /// Units that fit.
    pub burst: u64,
}

impl Rate {
    /// A rate.
    pub const fn new(per_second: u64, burst: u64) -> Self {
        let per_second = if per_second == 0 { 1 } else { per_second };
        Self { per_second, burst }
    }

    fn time_for(self, units: u64) -> Duration {
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))
    }
}

/// The level of a bucket, kept as the moment at which it will be full (the theoretical arrival time
/// of the generic cell rate algorithm, ITU-T I.371).
///
/// `full_at - now <= time_for(burst)` unless it is in debt.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes units if all of them are there; else nothing, and after how long they will be.
    pub fn take(&mut self, rate: Rate, units: u64, now: Instant) -> Result<(), Duration> {
        let after = self.full_at.max(now) + rate.time_for(units);
        let late = after
            .saturating_duration_since(now)
            .saturating_sub(rate.time_for(rate.burst));
        if late.is_zero() {
            self.full_at = after;
            Ok(())
        } else {
            Err(late)
        }
    }

    /// Takes units whether they are there or not; how long it takes until the debt is paid.
    pub fn charge(&mut self, rate: Rate, units: u64, now: Instant) -> Duration {
        self.full_at = self.full_at.max(now) + rate.time_for(units);
        self.debt(rate, now)
    }

    /// How long it takes until the debt is paid.
    pub fn debt(&self, rate: Rate, now: Instant) -> Duration {
        self.full_at
            .saturating_duration_since(now)
            .saturating_sub(rate.time_for(rate.burst))
    }

    /// Whether it is full: then forgetting it changes nothing.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}
