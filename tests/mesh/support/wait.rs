//! Waiting for a condition, never for luck.

use std::time::{Duration, Instant};

/// Polls `condition` until it gives a value; panics with `what` when `deadline` passes first.
pub(crate) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < end,
            "waited {deadline:?} in vain for: {what}"
        );
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Whether the long forms of the tests are asked for (`WEFT_TEST_LONG=1`).
pub(crate) fn long() -> bool {
    std::env::var("WEFT_TEST_LONG").is_ok_and(|value| value == "1")
}

/// A duration or a count in its short form, or in its long one when asked for.
pub(crate) fn scaled<T>(short: T, full: T) -> T {
    if long() { full } else { short }
}
