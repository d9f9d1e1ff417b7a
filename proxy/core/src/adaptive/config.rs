//! Parameters of the limiter.

use std::time::Duration;

use crate::limit::MAX_REQUESTS;

/// Most requests that may be allowed to wait in a queue.
pub const MAX_QUEUE: u32 = 1000;
/// Most of the limit that may be kept for critical requests.
pub const MAX_CRITICAL_SHARE: f64 = 0.5;

/// Parameters of a limiter. [`AdaptiveConfig::validate`] says what is allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaptiveConfig {
    /// The limit before anything was measured, `min` to `max`.
    pub initial: u32,
    /// The limit never falls below, 1 and more.
    pub min: u32,
    /// The limit never grows above, up to [`MAX_REQUESTS`].
    pub max: u32,
    /// Share of the way to the new limit that each window goes, above 0 to 1.
    pub smoothing: f64,
    /// How many times longer than normal an answer may take, 1 to 10.
    pub tolerance: f64,
    /// Requests that may wait in a queue, 1 to [`MAX_QUEUE`]; at least the square root of the limit
    /// always may.
    pub queue: u32,
    /// Over which time it is learned that answers normally take longer, 1 s to a day.
    pub long_window: Duration,
    /// Share of the limit that is kept for critical requests, 0 to [`MAX_CRITICAL_SHARE`].
    pub critical_share: f64,
}

impl Default for AdaptiveConfig {
    /// Gradient2's, but for the bounds: its least limit of 20 is more than many a small application
    /// takes at a time, and its largest of 200 less than many a large one. Its long average is over
    /// 600 windows of a second.
    fn default() -> Self {
        Self {
            initial: 20,
            min: 4,
            max: 1000,
            smoothing: 0.2,
            tolerance: 1.5,
            queue: 2,
            long_window: Duration::from_secs(600),
            critical_share: 0.0,
        }
    }
}

/// A parameter is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("adaptive concurrency: {field} is {found}; allowed is {allowed}")]
pub struct ConfigError {
    /// The field, as users write it.
    pub field: &'static str,
    /// What was found, as text.
    pub found: String,
    /// What is allowed.
    pub allowed: &'static str,
}

impl AdaptiveConfig {
    /// Checks every parameter; everything that is wrong.
    pub fn validate(&self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let mut require = |fits: bool, field, found: String, allowed| {
            if !fits {
                errors.push(ConfigError {
                    field,
                    found,
                    allowed,
                });
            }
        };
        let (initial, min, max) = (self.initial, self.min, self.max);
        let fits = (1..=MAX_REQUESTS).contains(&max);
        require(fits, "max", max.to_string(), "1 to 1000000");
        let fits = (1..=max).contains(&min);
        require(fits, "min", min.to_string(), "1 to max");
        let fits = (min..=max).contains(&initial);
        require(fits, "initial", initial.to_string(), "min to max");
        let smoothing = self.smoothing;
        let fits = smoothing > 0.0 && smoothing <= 1.0;
        require(fits, "smoothing", smoothing.to_string(), "above 0 to 1");
        let tolerance = self.tolerance;
        let fits = (1.0..=10.0).contains(&tolerance);
        require(fits, "tolerance", tolerance.to_string(), "1 to 10");
        let fits = (1..=MAX_QUEUE).contains(&self.queue);
        require(fits, "queue", self.queue.to_string(), "1 to 1000");
        let long = self.long_window;
        let fits = (Duration::from_secs(1)..=DAY).contains(&long);
        require(fits, "longWindow", format!("{long:?}"), "1s to a day");
        let share = self.critical_share;
        let fits = (0.0..=MAX_CRITICAL_SHARE).contains(&share);
        require(fits, "criticalShare", share.to_string(), "0 to 0.5");
        errors
    }
}

const DAY: Duration = Duration::from_secs(86_400);
