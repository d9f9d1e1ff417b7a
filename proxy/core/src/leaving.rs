//! How the time that a sidecar has for leaving is shared.

use std::time::Duration;

use crate::time::Instant;

/// Part of the time that is kept for the program's own connections, whatever connections to it take.
const KEPT_SHARE: u32 = 4;

/// The time for leaving, from its beginning.
///
/// Connections to the application are waited for first. A quarter of the time is kept for its own
/// connections to others, and all that the first part leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeavingTime {
    began: Instant,
    drain: Duration,
}

impl LeavingTime {
    /// Leaving begins now and may take `drain`.
    pub const fn new(began: Instant, drain: Duration) -> Self {
        Self { began, drain }
    }

    /// Until when connections to the application are waited for.
    pub fn inbound_until(&self) -> Instant {
        self.began + (self.drain - self.drain / KEPT_SHARE)
    }

    /// Until when the application's own connections are waited for.
    pub fn outbound_until(&self) -> Instant {
        self.began + self.drain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_part_takes_all() {
        let second = Duration::from_secs(1);
        let began = Instant::from_nanos(0) + second * 100;
        // (drain, for inbound), in milliseconds
        for (drain, inbound) in [(30_000, 22_500), (4_000, 3_000), (1, 0), (0, 0), (10, 7)] {
            let time = LeavingTime::new(began, Duration::from_millis(drain));
            let spent = time.inbound_until().saturating_since(began);
            assert_eq!(spent.as_millis(), inbound, "{drain}");
            let whole = time.outbound_until().saturating_since(began);
            assert_eq!(u64::try_from(whole.as_millis()), Ok(drain));
            let kept = time.outbound_until().saturating_since(time.inbound_until());
            assert!(kept >= Duration::from_millis(drain) / 4, "{drain}");
        }
    }
}
