//! Which endpoints are out, and how many may be.

use crate::time::Instant;

/// Whether an endpoint takes calls now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its breaker lets a call through.
    Available,
    /// Calls have opened its breaker, which lets none through at the moment.
    Open {
        /// When it opened after it was last closed.
        since: Instant,
    },
    /// Health checks have opened its breaker, or none has passed yet.
    Unhealthy {
        /// When it opened after it was last closed.
        since: Instant,
    },
}

/// Most of `total` endpoints that may be out at the same time: never more than `max_ejected_share` of
/// them (0 to 1), and never the last one. Ejecting only helps while others can take the traffic.
pub fn most_ejected(total: usize, max_ejected_share: f64) -> usize {
    // 29 of 100 is within a share of 0.29, although 100 × 0.29 is 28.999….
    let most = total as f64 * max_ejected_share + 1e-9;
    (most as usize).min(total.saturating_sub(1))
}

/// Whether so small a share of `total` endpoints is left when `out` are out that balancing does
/// better to disregard it: those that are left would not stand the traffic of all. `threshold` is
/// that share, 0 to 1; 0 is never.
pub fn is_panic(total: usize, out: usize, threshold: f64) -> bool {
    let left = total.saturating_sub(out);
    left as f64 + 1e-9 < total as f64 * threshold
}
