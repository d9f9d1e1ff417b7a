//! When to open, for how long, and how to try again.

use std::time::Duration;

/// Largest [`Window::Count`], calls: one byte each is kept for every endpoint.
pub const MAX_WINDOW_CALLS: u32 = 10_000;
/// Most buckets of a [`Window::Time`]: 12 bytes each are kept for every endpoint.
pub const MAX_WINDOW_BUCKETS: u32 = 600;
/// Most probes at the same time.
pub const MAX_HALF_OPEN_PERMITS: u32 = 1000;

/// Which calls are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The last so many calls, 1 to [`MAX_WINDOW_CALLS`].
    Count(u32),
    /// Those of the last `length`. They leave bucket by bucket, so that what counts is up to
    /// `length / buckets` younger than `length`.
    Time {
        /// How far back.
        length: Duration,
        /// Parts of it, 1 to [`MAX_WINDOW_BUCKETS`].
        buckets: u32,
    },
}

/// The parameters of a breaker. [`BreakerConfig::validate`] says what is allowed.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerConfig {
    /// Whether calls open it; `false`: health checks alone do.
    pub by_calls: bool,
    /// Which calls count.
    pub window: Window,
    /// Opens when this share of the calls in the window failed, above 0 to 1.
    pub failure_rate: f64,
    /// A call that takes longer is slow; `None`: no call is. Must be below the timeout of a call,
    /// or no call that succeeds can ever be slow.
    pub slow_call: Option<Duration>,
    /// Opens when this share of the calls in the window were slow, above 0 to 1.
    pub slow_rate: f64,
    /// Opens after this many failures in a row, whatever the window says; `None`: never.
    pub consecutive_failures: Option<u32>,
    /// Fewer calls than this in the window decide nothing; at most the size of a count window.
    pub minimum_calls: u32,
    /// How long it stays open the first time.
    pub open: Duration,
    /// The longest it stays open.
    pub open_max: Duration,
    /// How many times longer each time it opens again without having recovered, 1 and more.
    pub open_growth: f64,
    /// Share of the open time that is random, 0 to 1: many callers don't come back together. It
    /// shortens, so that `open_max` holds.
    pub jitter: f64,
    /// Probes at the same time while half-open.
    pub half_open_permits: u32,
    /// Probes that have to succeed before it closes.
    pub half_open_successes: u32,
    /// A probe not heard of for this long is given up: its slot is free, its result is ignored.
    pub half_open_max_wait: Duration,
    /// After closing again, traffic grows over this time; opening within it counts as not having
    /// recovered.
    pub ramp: Duration,
}

impl Default for BreakerConfig {
    /// Safe for traffic of any volume: half of at least 20 calls in 10 s, or 5 failures in a row.
    fn default() -> Self {
        Self {
            by_calls: true,
            window: Window::Time {
                length: Duration::from_secs(10),
                buckets: 10,
            },
            failure_rate: 0.5,
            slow_call: None,
            slow_rate: 1.0,
            consecutive_failures: Some(5),
            minimum_calls: 20,
            open: Duration::from_secs(1),
            open_max: Duration::from_secs(60),
            open_growth: 2.0,
            jitter: 0.2,
            half_open_permits: 1,
            half_open_successes: 1,
            half_open_max_wait: Duration::from_secs(10),
            ramp: Duration::from_secs(5),
        }
    }
}

/// A parameter is out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("circuit breaker: {field} is {found}; allowed is {allowed}")]
pub struct ConfigError {
    /// The field of [`BreakerConfig`].
    pub field: &'static str,
    /// What was found, as text.
    pub found: String,
    /// What is allowed.
    pub allowed: &'static str,
}

impl BreakerConfig {
    /// Checks every parameter, in the order of the fields.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self.window {
            Window::Count(calls) => {
                let fits = (1..=MAX_WINDOW_CALLS).contains(&calls);
                require(fits, "window", calls, "1 to 10000 calls")?;
            }
            Window::Time { length, buckets } => {
                let fits = (1..=MAX_WINDOW_BUCKETS).contains(&buckets);
                require(fits, "window.buckets", buckets, "1 to 600")?;
                let width = length / buckets;
                let fits = width >= MILLISECOND && length <= DAY;
                let allowed = "1 ms for each bucket, up to a day";
                require_time(fits, "window.length", length, allowed)?;
            }
        }
        let share = |share: f64| share > 0.0 && share <= 1.0;
        let (failures, slow) = (self.failure_rate, self.slow_rate);
        require(share(failures), "failure_rate", failures, SHARE)?;
        if let Some(limit) = self.slow_call {
            require_time(limit > Duration::ZERO, "slow_call", limit, "above 0")?;
        }
        require(share(slow), "slow_rate", slow, SHARE)?;
        if let Some(limit) = self.consecutive_failures {
            require(limit > 0, "consecutive_failures", limit, "1 and more")?;
        }
        let (calls, fits) = (self.minimum_calls, self.minimum_calls > 0);
        require(fits, "minimum_calls", calls, "1 and more")?;
        let fits = self.open >= MILLISECOND && self.open <= self.open_max;
        require_time(fits, "open", self.open, "1 ms to open_max")?;
        let fits = self.open_max <= DAY;
        require_time(fits, "open_max", self.open_max, "up to a day")?;
        let growth = self.open_growth;
        let fits = (1.0..=100.0).contains(&growth);
        require(fits, "open_growth", growth, "1 to 100")?;
        let fits = (0.0..=1.0).contains(&self.jitter);
        require(fits, "jitter", self.jitter, "0 to 1")?;
        let permits = self.half_open_permits;
        let fits = (1..=MAX_HALF_OPEN_PERMITS).contains(&permits);
        require(fits, "half_open_permits", permits, "1 to 1000")?;
        let (successes, fits) = (self.half_open_successes, self.half_open_successes > 0);
        require(fits, "half_open_successes", successes, "1 and more")?;
        let wait = self.half_open_max_wait;
        let fits = (MILLISECOND..=DAY).contains(&wait);
        require_time(fits, "half_open_max_wait", wait, "1 ms to a day")?;
        require_time(self.ramp <= DAY, "ramp", self.ramp, "up to a day")
    }
}

const SHARE: &str = "above 0 to 1";
const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);

fn require(
    fits: bool,
    field: &'static str,
    found: impl ToString,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    if fits {
        return Ok(());
    }
    Err(ConfigError {
        field,
        found: found.to_string(),
        allowed,
    })
}

fn require_time(
    fits: bool,
    field: &'static str,
    found: Duration,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    require(fits, field, format!("{found:?}"), allowed)
}
