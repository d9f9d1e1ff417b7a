//! How long to wait before the next attempt.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait before jitter. The control plane's grace for a registration is longer than
/// twice this.
const MAX: Duration = Duration::from_secs(3);
/// Jitter: from this share of the wait upwards, as much again above it.
const JITTER_FROM: f64 = 0.75;

/// Waits that double up to a cap, each with jitter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    wait: Duration,
}

impl Backoff {
    /// What stood for this long counts as having worked.
    const WORKED_AFTER: Duration = MAX;

    /// The first wait comes next.
    pub const fn new() -> Self {
        Self { wait: FIRST }
    }

    /// The next wait; `random` is at least 0 and less than 1.
    pub fn next(&mut self, random: f64) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(MAX);
        wait.mul_f64(JITTER_FROM + random * 2.0 * (1.0 - JITTER_FROM))
    }

    /// What was tried stood for this long: the first wait comes next, if that was long enough. What
    /// begins and ends at once has not worked.
    pub fn stood(&mut self, lasted: Duration) {
        if lasted >= Self::WORKED_AFTER {
            *self = Self::new();
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_begins_anew() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..7).map(|_| backoff.next(0.5).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3000, 3000]);
        let (least, most) = (backoff.next(0.0), backoff.next(0.999_999));
        assert_eq!(least, MAX.mul_f64(0.75));
        assert!(most > MAX && most < MAX.mul_f64(1.25));
        backoff.stood(Backoff::WORKED_AFTER - Duration::from_millis(1));
        assert_ne!(backoff, Backoff::new());
        backoff.stood(Backoff::WORKED_AFTER);
        assert_eq!(backoff, Backoff::new());
    }
}
