//! The circuit breaker: closed, open, half-open, per endpoint.
//!
//! Lazy: nothing happens between calls, `now` decides. Every permit carries the generation in which
//! it was given, so that results of calls begun in an earlier state don't count.

use std::time::Duration;

use crate::time::Instant;

/// Buckets of the time window.
const BUCKETS: usize = 10;

/// When to open, for how long, and how to try again.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerConfig {
    /// What counts: calls of this long ago and younger.
    pub window: Duration,
    /// Fewer calls than this in the window decide nothing.
    pub minimum_calls: u32,
    /// Opens when this share of the calls in the window failed, above 0 to 1.
    pub failure_rate: f64,
    /// A call that takes longer is slow; `None`: no call is.
    pub slow_call: Option<Duration>,
    /// Opens when this share of the calls in the window were slow, above 0 to 1.
    pub slow_rate: f64,
    /// Opens after this many failures in a row, whatever the window says; `None`: never.
    pub consecutive_failures: Option<u32>,
    /// How long it stays open the first time.
    pub open: Duration,
    /// How much longer each time it opens again without having recovered.
    pub open_growth: f64,
    /// The longest it stays open.
    pub open_max: Duration,
    /// Share of the open time that is random, 0 to 1: many callers don't come back together.
    pub jitter: f64,
    /// Probes at the same time while half-open.
    pub probes: u32,
    /// Probes that have to succeed before it closes.
    pub probe_successes: u32,
    /// A probe not heard of for this long is given up.
    pub probe_max_wait: Duration,
    /// After closing again, traffic grows over this time.
    pub ramp: Duration,
}

impl Default for BreakerConfig {
    /// Safe for traffic of any volume: half of at least 20 calls in 10 s, or 5 failures in a row.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(10),
            minimum_calls: 20,
            failure_rate: 0.5,
            slow_call: None,
            slow_rate: 1.0,
            consecutive_failures: Some(5),
            open: Duration::from_secs(1),
            open_growth: 2.0,
            open_max: Duration::from_secs(60),
            jitter: 0.2,
            probes: 1,
            probe_successes: 1,
            probe_max_wait: Duration::from_secs(10),
            ramp: Duration::from_secs(5),
        }
    }
}

/// What a call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallClass {
    /// As it should.
    Success,
    /// The endpoint's failure.
    Failure,
    /// Says nothing about the endpoint: cancelled, or refused before it was sent.
    Neutral,
}

/// A finished call.
#[derive(Debug, Clone, Copy)]
pub struct CallOutcome {
    /// What it came to.
    pub class: CallClass,
    /// How long it took.
    pub latency: Duration,
}

/// The right to make one call; to be given back with its result, or cancelled.
#[derive(Debug)]
#[must_use = "a permit has to be given back"]
pub struct Permit {
    generation: u64,
}

/// No call may be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open; try again in {retry_after:?}")]
pub struct Rejected {
    /// When the next probe may be made.
    pub retry_after: Duration,
}

/// The state, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateView {
    /// Calls go through.
    Closed,
    /// No call goes through before the time is over.
    Open,
    /// Probes go through.
    HalfOpen,
}

impl StateView {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// The state has changed to this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// What it is now.
    pub to: StateView,
}

#[derive(Debug, Clone)]
enum State {
    Closed {
        window: Window,
        consecutive: u32,
        /// When it closed again after having been open.
        recovered: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        /// When each probe under way was let through; one slot each.
        probes: Vec<Instant>,
        successes: u32,
    },
}

/// The state machine. `&mut self` everywhere: whoever shares it brings the lock.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    generation: u64,
    /// Times it opened without having recovered in between.
    openings: u32,
}

impl Breaker {
    /// Closed, nothing counted.
    pub fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            state: State::closed(None),
            generation: 0,
            openings: 0,
        }
    }

    /// Exchanges the parameters; state and counts stay.
    pub fn set_config(&mut self, config: BreakerConfig) {
        self.config = config;
    }

    /// Asks for a call. Open turns to half-open here when its time is over.
    pub fn try_acquire(&mut self, now: Instant) -> Result<Permit, Rejected> {
        if let State::Open { until } = self.state {
            if now < until {
                return Err(Rejected {
                    retry_after: until.saturating_since(now),
                });
            }
            self.enter(State::HalfOpen {
                probes: Vec::new(),
                successes: 0,
            });
        }
        if let State::HalfOpen { probes, .. } = &mut self.state {
            let max_wait = self.config.probe_max_wait;
            probes.retain(|since| now.saturating_since(*since) < max_wait);
            if probes.len() >= self.config.probes.max(1) as usize {
                let oldest = probes.first().map_or(now, |since| *since + max_wait);
                return Err(Rejected {
                    retry_after: oldest.saturating_since(now),
                });
            }
            probes.push(now);
        }
        Ok(Permit {
            generation: self.generation,
        })
    }

    /// Whether [`Breaker::try_acquire`] would give a permit.
    pub fn is_available(&self, now: Instant) -> bool {
        match &self.state {
            State::Closed { .. } => true,
            State::Open { until } => now >= *until,
            State::HalfOpen { probes, .. } => {
                let waited_for =
                    |since: &&Instant| now.saturating_since(**since) < self.config.probe_max_wait;
                probes.iter().filter(waited_for).count() < self.config.probes.max(1) as usize
            }
        }
    }

    /// A call has ended. `random` is for the jitter of the open time.
    pub fn on_result(
        &mut self,
        permit: Permit,
        outcome: CallOutcome,
        now: Instant,
        random: u64,
    ) -> Option<Transition> {
        if permit.generation != self.generation {
            return None;
        }
        let slow = self
            .config
            .slow_call
            .is_some_and(|limit| outcome.latency > limit);
        match (&mut self.state, outcome.class) {
            (_, CallClass::Neutral) => {
                self.on_cancel(permit);
                None
            }
            (
                State::Closed {
                    window,
                    consecutive,
                    ..
                },
                class,
            ) => {
                let failed = class == CallClass::Failure;
                *consecutive = if failed { *consecutive + 1 } else { 0 };
                let in_a_row = *consecutive;
                let counts = window.count(now, self.config.window, failed, slow);
                self.should_open(in_a_row, counts)
                    .then(|| self.open(now, random))
            }
            (State::HalfOpen { .. }, CallClass::Failure) => Some(self.open(now, random)),
            (State::HalfOpen { .. }, CallClass::Success) if slow && self.config.slow_rate < 1.0 => {
                Some(self.open(now, random))
            }
            (State::HalfOpen { probes, successes }, CallClass::Success) => {
                probes.pop();
                *successes += 1;
                let enough = *successes >= self.config.probe_successes;
                enough.then(|| {
                    self.openings = 0;
                    self.enter(State::closed(Some(now)))
                })
            }
            // No permit is given while open, and entering it changed the generation.
            (State::Open { .. }, _) => None,
        }
    }

    /// A call was given up: its slot is free again, nothing is counted.
    pub fn on_cancel(&mut self, permit: Permit) {
        if permit.generation == self.generation
            && let State::HalfOpen { probes, .. } = &mut self.state
        {
            probes.pop();
        }
    }

    /// The state as it shows now.
    pub fn state(&self, now: Instant) -> StateView {
        match &self.state {
            State::Closed { .. } => StateView::Closed,
            State::Open { until } if now < *until => StateView::Open,
            State::Open { .. } | State::HalfOpen { .. } => StateView::HalfOpen,
        }
    }

    /// The share of its ordinary traffic that it should get, 0 to 1: less than 1 for a while
    /// after it has recovered.
    pub fn ramp_share(&self, now: Instant) -> f64 {
        let State::Closed {
            recovered: Some(recovered),
            ..
        } = &self.state
        else {
            return 1.0;
        };
        let ramp = self.config.ramp.as_secs_f64();
        if ramp <= 0.0 {
            return 1.0;
        }
        (now.saturating_since(*recovered).as_secs_f64() / ramp).min(1.0)
    }

    fn should_open(&self, in_a_row: u32, counts: Counts) -> bool {
        if self
            .config
            .consecutive_failures
            .is_some_and(|limit| in_a_row >= limit)
        {
            return true;
        }
        if counts.calls < self.config.minimum_calls.max(1) {
            return false;
        }
        let share = |part: u32| f64::from(part) / f64::from(counts.calls);
        let too_slow =
            self.config.slow_call.is_some() && share(counts.slow) >= self.config.slow_rate;
        share(counts.failed) >= self.config.failure_rate || too_slow
    }

    fn open(&mut self, now: Instant, random: u64) -> Transition {
        let growth = self
            .config
            .open_growth
            .max(1.0)
            .powi(self.openings.min(30) as i32);
        self.openings += 1;
        let base =
            (self.config.open.as_secs_f64() * growth).min(self.config.open_max.as_secs_f64());
        let fraction = random as f64 / u64::MAX as f64;
        let time = base * (1.0 - self.config.jitter.clamp(0.0, 1.0) * fraction);
        let until = now + Duration::from_secs_f64(time);
        self.enter(State::Open { until })
    }

    fn enter(&mut self, state: State) -> Transition {
        self.generation += 1;
        let to = match &state {
            State::Closed { .. } => StateView::Closed,
            State::Open { .. } => StateView::Open,
            State::HalfOpen { .. } => StateView::HalfOpen,
        };
        self.state = state;
        Transition { to }
    }
}

impl State {
    fn closed(recovered: Option<Instant>) -> Self {
        Self::Closed {
            window: Window::default(),
            consecutive: 0,
            recovered,
        }
    }
}

/// Whether one more endpoint may be ejected: never the last healthy one, and never more than this
/// share of all.
pub fn may_eject(total: usize, ejected: usize, max_share: f64) -> bool {
    let after = ejected + 1;
    after < total && after as f64 <= total as f64 * max_share
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    calls: u32,
    failed: u32,
    slow: u32,
}

/// A ring of buckets over the time window.
#[derive(Debug, Clone, Default)]
struct Window {
    buckets: [Counts; BUCKETS],
    /// Number of the newest bucket, counted from the clock's origin.
    newest: u64,
}

impl Window {
    fn count(&mut self, now: Instant, length: Duration, failed: bool, slow: bool) -> Counts {
        let width = (length.as_nanos() as u64 / BUCKETS as u64).max(1);
        let current = now.as_nanos() / width;
        let passed = current.saturating_sub(self.newest).min(BUCKETS as u64);
        for step in 1..=passed {
            self.buckets[((self.newest + step) % BUCKETS as u64) as usize] = Counts::default();
        }
        if passed == BUCKETS as u64 {
            self.buckets = [Counts::default(); BUCKETS];
        }
        self.newest = self.newest.max(current);
        let bucket = &mut self.buckets[(self.newest % BUCKETS as u64) as usize];
        bucket.calls += 1;
        bucket.failed += u32::from(failed);
        bucket.slow += u32::from(slow);
        self.buckets
            .iter()
            .fold(Counts::default(), |sum, one| Counts {
                calls: sum.calls + one.calls,
                failed: sum.failed + one.failed,
                slow: sum.slow + one.slow,
            })
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
