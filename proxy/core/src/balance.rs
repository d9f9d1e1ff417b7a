//! Which endpoint a request goes to.

use std::time::Duration;

use crate::time::Instant;

/// What a failure counts as, at least: fast failures must not attract traffic.
const FAILURE_PENALTY: Duration = Duration::from_secs(1);

/// Peak-sensitive exponentially weighted moving average of an endpoint's latency, together with
/// the requests under way there. A latency above the average is taken at once, one below it only
/// slowly (the cost function of Finagle's and Linkerd's balancers).
#[derive(Debug, Clone)]
pub struct PeakEwma {
    decay: Duration,
    nanos: f64,
    updated: Instant,
    in_flight: u32,
}

impl PeakEwma {
    /// An endpoint that was never measured is believed to need `initial`; the average forgets with
    /// time constant `decay`.
    pub fn new(decay: Duration, initial: Duration) -> Self {
        Self {
            decay,
            nanos: initial.as_nanos() as f64,
            updated: Instant::default(),
            in_flight: 0,
        }
    }

    /// A request begins.
    pub fn on_start(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request ended after `latency`. A failure counts as at least one second.
    pub fn on_finish(&mut self, latency: Duration, failed: bool, now: Instant) {
        self.on_cancel();
        let latency = if failed {
            latency.max(FAILURE_PENALTY)
        } else {
            latency
        };
        let nanos = latency.as_nanos() as f64;
        if nanos > self.nanos {
            self.nanos = nanos;
        } else {
            let weight = self.weight(now);
            self.nanos = self.nanos * weight + nanos * (1.0 - weight);
        }
        self.updated = now;
    }

    /// A request was given up by its caller: that says nothing about the endpoint.
    pub fn on_cancel(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The average latency as believed now.
    pub fn latency(&self, now: Instant) -> Duration {
        Duration::from_nanos((self.nanos * self.weight(now)) as u64)
    }

    /// The cost of sending one more request: lower is better. An endpoint that gets no requests
    /// becomes cheaper with time, so that it is tried again.
    pub fn score(&self, now: Instant) -> f64 {
        (self.nanos * self.weight(now) + 1.0) * (f64::from(self.in_flight) + 1.0)
    }

    fn weight(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_since(self.updated).as_nanos() as f64;
        (-elapsed / self.decay.as_nanos().max(1) as f64).exp()
    }
}

/// Times a random endpoint that is excluded is drawn again before all are looked at.
const DRAWS: u32 = 4;

/// Power of two choices: the cheaper of two different random endpoints among `len` that are not
/// excluded; the only one, where there is one; `None` where there is none.
pub fn pick_p2c(
    len: usize,
    random: u64,
    excluded: impl Fn(usize) -> bool,
    score: impl Fn(usize) -> f64,
) -> Option<usize> {
    let mut bits = SplitMix(random);
    let first = draw(len, &mut bits, &excluded)?;
    let other = |index: usize| index == first || excluded(index);
    let Some(second) = draw(len, &mut bits, &other) else {
        return Some(first);
    };
    if score(second) < score(first) {
        Some(second)
    } else {
        Some(first)
    }
}

/// A uniformly random index below `len` that is not excluded.
fn draw(len: usize, bits: &mut SplitMix, excluded: &impl Fn(usize) -> bool) -> Option<usize> {
    if len == 0 {
        return None;
    }
    for _draw in 0..DRAWS {
        let index = bits.below(len);
        if !excluded(index) {
            return Some(index);
        }
    }
    let left = (0..len).filter(|index| !excluded(*index)).count();
    if left == 0 {
        return None;
    }
    let nth = bits.below(left);
    (0..len).filter(|index| !excluded(*index)).nth(nth)
}

/// Many random numbers from one (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        // Multiply and shift; the bias is below 2^-32 for any number of endpoints.
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn ewma() -> PeakEwma {
        PeakEwma::new(Duration::from_secs(10), Duration::from_millis(30))
    }

    #[test]
    fn peaks_are_taken_at_once_and_forgotten_slowly() {
        let mut load = ewma();
        load.on_start();
        load.on_finish(Duration::from_millis(500), false, at(1000));
        assert_eq!(load.latency(at(1000)), Duration::from_millis(500));
        load.on_start();
        load.on_finish(Duration::from_millis(1), false, at(1010));
        assert!(load.latency(at(1010)) > Duration::from_millis(490));
        assert!(load.latency(at(60_000)) < Duration::from_millis(5));
    }

    #[test]
    fn fast_failures_do_not_attract() {
        let (mut failing, mut slow) = (ewma(), ewma());
        failing.on_start();
        failing.on_finish(Duration::from_micros(10), true, at(1000));
        slow.on_start();
        slow.on_finish(Duration::from_millis(200), false, at(1000));
        assert!(failing.score(at(1000)) > slow.score(at(1000)));
    }

    #[test]
    fn requests_under_way_count_and_cancelled_ones_do_not() {
        let mut load = ewma();
        let idle = load.score(at(0));
        load.on_start();
        load.on_start();
        assert!(load.score(at(0)) > idle * 2.9);
        load.on_cancel();
        load.on_cancel();
        load.on_cancel();
        assert_eq!(load.in_flight(), 0);
        assert!((load.score(at(0)) - idle).abs() < 1e-6);
    }

    #[test]
    fn p2c_is_uniform_without_differences_and_prefers_the_cheaper() {
        const ROUNDS: u64 = 40_000;
        let count = |excluded: &dyn Fn(usize) -> bool, score: &dyn Fn(usize) -> f64| {
            let mut counts = [0u64; 5];
            for round in 0..ROUNDS {
                let random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                counts[pick_p2c(5, random, excluded, score).unwrap()] += 1;
            }
            counts
        };
        for share in count(&|_| false, &|_| 1.0) {
            assert!((7_400..8_600).contains(&share), "{share}");
        }
        let counts = count(&|_| false, &|index| if index == 3 { 9.0 } else { 1.0 });
        assert_eq!(counts[3], 0, "the dearest of two is never taken");
        let counts = count(&|index| index < 3, &|_| 1.0);
        assert_eq!(counts[..3], [0, 0, 0]);
        assert!((18_500..21_500).contains(&counts[4]), "{counts:?}");
    }

    #[test]
    fn p2c_at_the_edges() {
        assert_eq!(pick_p2c(0, 1, |_| false, |_| 1.0), None);
        assert_eq!(pick_p2c(1, 1, |_| false, |_| 1.0), Some(0));
        assert_eq!(pick_p2c(3, 1, |_| true, |_| 1.0), None);
        for random in 0..100 {
            assert_eq!(
                pick_p2c(100, random, |index| index != 77, |_| 1.0),
                Some(77)
            );
        }
    }
}
