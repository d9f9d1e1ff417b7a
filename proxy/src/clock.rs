//! The one place that reads the monotonic clock for core.

use std::sync::OnceLock;
use std::time::Instant;

/// Now, in core's terms: nanoseconds since the first call in this process.
pub fn now() -> weft_core::time::Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let elapsed = ORIGIN.get_or_init(Instant::now).elapsed();
    weft_core::time::Instant::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}
