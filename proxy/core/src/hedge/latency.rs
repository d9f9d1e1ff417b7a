//! What a share of the recent requests needed at most: a small histogram that forgets.

use std::time::Duration;

use crate::time::Instant;

/// Fewer requests tell nothing about a percentile.
pub const MINIMUM_SAMPLES: u32 = 50;
/// What was seen this long ago counts half.
pub const HALF_LIFE: Duration = Duration::from_secs(30);

/// Every doubling of the latency has so many buckets, as a power of two: a percentile is at most a
/// sixteenth above the latency that it stands for.
const STEP_BITS: u32 = 4;
/// The first bucket begins at 2^14 ns, 16 µs; what is faster is counted there.
const FIRST_BITS: u32 = 14;
/// The last bucket ends at 2^37 ns, 137 s; what is slower is counted there.
const LAST_BITS: u32 = 37;
const BUCKETS: usize = ((LAST_BITS - FIRST_BITS) << STEP_BITS) as usize;
/// A percentile that was counted this recently is still good.
const FRESH: Duration = Duration::from_millis(100);

/// The latencies of recent requests, in a fixed 1.5 KiB.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Box<[u32; BUCKETS]>,
    total: u32,
    halved: Instant,
    counted: Option<Counted>,
}

/// A percentile, and when it was counted.
#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    percentile: f64,
    latency: Duration,
}

impl Latencies {
    /// Nothing seen yet.
    pub fn new(now: Instant) -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
            halved: now,
            counted: None,
        }
    }

    /// A request took this long.
    pub fn on_latency(&mut self, latency: Duration, now: Instant) {
        self.forget(now);
        let count = &mut self.counts[bucket(latency)];
        *count = count.saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// What `percentile` (above 0 to 100) of the recent requests needed at most; `None` while there
    /// are fewer than [`MINIMUM_SAMPLES`].
    pub fn percentile(&mut self, percentile: f64, now: Instant) -> Option<Duration> {
        self.forget(now);
        if self.total < MINIMUM_SAMPLES {
            return None;
        }
        let fresh = |counted: &Counted| {
            counted.percentile == percentile && now.saturating_since(counted.at) < FRESH
        };
        if let Some(counted) = self.counted.filter(fresh) {
            return Some(counted.latency);
        }
        let rank = (f64::from(self.total) * percentile / 100.0).ceil() as u32;
        let mut below = 0u32;
        let reaches = |count: &u32| {
            below = below.saturating_add(*count);
            below >= rank
        };
        let index = self.counts.iter().position(reaches);
        let latency = upper_bound(index.unwrap_or(BUCKETS - 1));
        self.counted = Some(Counted {
            at: now,
            percentile,
            latency,
        });
        Some(latency)
    }

    /// Halves every count once for each half life that has passed.
    fn forget(&mut self, now: Instant) {
        let passed = now.saturating_since(self.halved);
        if passed < HALF_LIFE {
            return;
        }
        let halvings = passed.as_nanos() / HALF_LIFE.as_nanos();
        let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
        self.halved = self.halved + HALF_LIFE.saturating_mul(halvings);
        self.total = 0;
        for count in self.counts.iter_mut() {
            *count = count.checked_shr(halvings).unwrap_or(0);
            self.total = self.total.saturating_add(*count);
        }
        self.counted = None;
    }
}

fn bucket(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
    let nanos = nanos.clamp(1 << FIRST_BITS, (1 << LAST_BITS) - 1);
    let doublings = nanos.ilog2();
    let step = (nanos >> (doublings - STEP_BITS)) - (1 << STEP_BITS);
    ((doublings - FIRST_BITS) << STEP_BITS) as usize + step as usize
}

fn upper_bound(index: usize) -> Duration {
    let doublings = FIRST_BITS + (index >> STEP_BITS) as u32;
    let step = (index & ((1 << STEP_BITS) - 1)) as u64;
    let nanos = ((1 << STEP_BITS) + step + 1) << (doublings - STEP_BITS);
    Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn few_requests_tell_nothing() {
        let mut latencies = Latencies::new(at(0));
        for _ in 1..MINIMUM_SAMPLES {
            latencies.on_latency(ms(10), at(1));
        }
        assert_eq!(latencies.percentile(95.0, at(1)), None);
        latencies.on_latency(ms(10), at(1));
        let found = latencies.percentile(95.0, at(1)).unwrap();
        assert!((ms(10)..=Duration::from_micros(10_625)).contains(&found));
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut latencies = Latencies::new(at(0));
        for _ in 0..1000 {
            latencies.on_latency(ms(500), at(1));
        }
        assert!(latencies.percentile(95.0, at(1)).unwrap() >= ms(500));
        // After five half lives 31 of them are left, and after an hour none.
        assert_eq!(latencies.percentile(95.0, at(150_000)), None);
        for _ in 0..1000 {
            latencies.on_latency(ms(5), at(150_001));
        }
        assert!(latencies.percentile(95.0, at(150_001)).unwrap() < ms(6));
        assert!(latencies.percentile(99.0, at(150_001)).unwrap() >= ms(500));
        assert_eq!(latencies.percentile(95.0, at(3_600_000)), None);
        assert_eq!(latencies.total, 0);
    }

    #[test]
    fn a_percentile_is_counted_again_after_a_while() {
        let mut latencies = Latencies::new(at(0));
        for _ in 0..100 {
            latencies.on_latency(ms(1), at(1));
        }
        let before = latencies.percentile(50.0, at(1)).unwrap();
        for _ in 0..1000 {
            latencies.on_latency(ms(100), at(2));
        }
        assert_eq!(latencies.percentile(50.0, at(2)), Some(before));
        assert!(latencies.percentile(60.0, at(2)).unwrap() >= ms(100));
        assert!(latencies.percentile(50.0, at(102)).unwrap() >= ms(100));
    }

    #[test]
    fn every_bucket_is_where_its_bound_says() {
        for index in 0..BUCKETS {
            let bound = upper_bound(index);
            assert_eq!(bucket(bound - Duration::from_nanos(1)), index);
            assert_eq!(bucket(bound), (index + 1).min(BUCKETS - 1));
        }
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    proptest! {
        /// Beside the exact percentile: never below it, and at most a sixteenth above.
        #[test]
        fn percentiles_are_close(
            mut micros in proptest::collection::vec(20u64..100_000_000, 50..400),
            percentile in 50.0..99.9f64,
        ) {
            let mut latencies = Latencies::new(at(0));
            for latency in &micros {
                latencies.on_latency(Duration::from_micros(*latency), at(1));
            }
            micros.sort_unstable();
            let rank = (micros.len() as f64 * percentile / 100.0).ceil() as usize;
            let exact = Duration::from_micros(micros[rank - 1]);
            let found = latencies.percentile(percentile, at(1)).unwrap();
            prop_assert!(found >= exact, "{found:?} {exact:?}");
            prop_assert!(found <= exact.mul_f64(1.0626), "{found:?} {exact:?}");
        }
    }
}
