//! When a declared port that accepts no connections is worth a line in the log.

use std::time::Duration;

use crate::reason::Reason;
use crate::time::Instant;

/// How long a port has to fail for the same reason before it is told: programs need a moment to start.
pub const TOLD_AFTER: Duration = Duration::from_secs(3);

/// A declared port on which the application does not accept connections.
///
/// A reason is told once it has held for [`TOLD_AFTER`], and again only after another was told.
#[derive(Debug, Default)]
pub struct Unready {
    /// Why the last attempts failed, and since when for this reason.
    failing: Option<(Reason, Instant)>,
    told: Option<Reason>,
}

impl Unready {
    /// Notes that an attempt failed for `reason`. Whether that is to be told now.
    pub fn on_failed(&mut self, reason: Reason, now: Instant) -> bool {
        let since = match self.failing {
            Some((before, since)) if before == reason => since,
            Some(_) | None => now,
        };
        self.failing = Some((reason, since));
        let due = now.saturating_since(since) >= TOLD_AFTER;
        if !due || self.told == Some(reason) {
            return false;
        }
        self.told = Some(reason);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_holds_is_told_once() {
        use Reason::{ApplicationLoopbackOnly as Loopback, ApplicationUnreachable as Unreachable};
        let began = Instant::from_nanos(7);
        let mut port = Unready::default();
        let attempts = [
            (0, Unreachable, false),
            (2_999, Unreachable, false),
            (3_000, Unreachable, true),
            (3_500, Unreachable, false),
            // The program listens for a moment on loopback only.
            (4_000, Loopback, false),
            (4_500, Unreachable, false),
            (9_000, Unreachable, false),
            (10_000, Loopback, false),
            (13_000, Loopback, true),
            (60_000, Loopback, false),
            (61_000, Unreachable, false),
            (64_000, Unreachable, true),
        ];
        for (millis, reason, told) in attempts {
            let now = began + Duration::from_millis(millis);
            assert_eq!(port.on_failed(reason, now), told, "{reason} at {millis} ms");
        }
    }
}
