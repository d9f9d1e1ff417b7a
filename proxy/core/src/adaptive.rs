//! How many requests at a time a server takes well, found from how long its answers take.
//!
//! The rule is that of Netflix's Gradient2 (concurrency-limits): what answers take now is held
//! against what they normally take. As long as that is about the same, the limit grows; once
//! answers take longer than normal by more than the tolerance, they wait in a queue, and the limit
//! falls in proportion, to no less than half at once. Nothing is ever held back to measure with.
//! Two rules are ours:
//!
//! - What is normal is not learned while the limit holds requests back. An overload that lasts would
//!   become what is normal, and the limit would grow for as long as it lasts.
//! - So that a server which has become slower is not taken for one that is overloaded for ever: a
//!   queue becomes shorter with the limit. Where the limit fell by a third and answers take as long
//!   as before, there is no queue, and what they take now is normal.
//!
//! Lazy: nothing happens between calls, `now` decides. Answers are counted in windows, and only
//! those of calls that began in the same window: what began before saw another limit. Memory is
//! constant.

mod config;

use std::time::Duration;

pub use config::{AdaptiveConfig, ConfigError, MAX_CRITICAL_SHARE, MAX_QUEUE};

use crate::time::Instant;

/// A window has answers of at least this time,
const WINDOW: Duration = Duration::from_millis(100);
/// and this many of them;
const WINDOW_SAMPLES: u32 = 10;
/// after this time, any number will do.
const WINDOW_MAX: Duration = Duration::from_secs(1);
/// Share of the difference by which what is normal falls, each window: Gradient2 has steps of 5 %
/// for this, and only where it is less than half.
const FALL: f64 = 0.1;
/// One answer counts as at most so many times longer or shorter than normal.
const OUTLIER: f64 = 32.0;
/// The least that the limit falls to at once.
const STEEPEST: f64 = 0.5;
/// By how much the limit has to have fallen until it is asked whether that was of use,
const FALLEN: f64 = 2.0 / 3.0;
/// and by how much the time of answers has to have fallen for that.
const OF_USE: f64 = 0.85;
/// Calls are counted by when they began, in spans of this length,
const SPAN: Duration = Duration::from_secs(10);
/// the last four of them: a call that has no answer after 30 to 40 s is taken for a stream.
const SPANS: usize = 4;

/// Which requests are refused first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// Those that leave a share of the limit free.
    #[default]
    Default,
    /// Those that the share is kept for.
    Critical,
}

impl Priority {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Default, Self::Critical];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Critical => "critical",
        }
    }
}

/// The right to make one call; to be given back when its answer begins, or it will not.
#[derive(Debug)]
#[must_use = "a permit has to be given back"]
pub struct Permit {
    /// In which span the call is counted.
    span: u64,
    window: u64,
    began: Instant,
}

impl Permit {
    /// All of the request was there only now, or it begins anew: what its answer takes counts from
    /// here.
    pub fn restart(&mut self, now: Instant) {
        self.began = self.began.max(now);
    }
}

/// How long an answer took to begin. It counts if it turns out to be a whole answer, not a stream.
#[derive(Debug)]
pub struct Sample {
    window: u64,
    latency: Duration,
}

impl Sample {
    /// How long it took.
    pub const fn latency(&self) -> Duration {
        self.latency
    }
}

/// No call may be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{in_flight} requests are under way, the limit is {limit}")]
pub struct Rejected {
    /// Calls under way.
    pub in_flight: u32,
    /// How many may be.
    pub limit: u32,
}

/// Everything about a limiter that people want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// How many calls may be under way.
    pub limit: u32,
    /// How many are.
    pub in_flight: u32,
    /// What an answer normally takes; `None` before the first.
    pub normal: Option<Duration>,
    /// What answers took lately.
    pub recent: Option<Duration>,
    /// Refused so far, by [`Priority`].
    pub refused: [u64; 2],
}

/// The state machine. `&mut self` everywhere: whoever shares it brings the lock.
#[derive(Debug, Clone)]
pub struct Limiter {
    config: AdaptiveConfig,
    /// `config.min <= limit <= config.max`.
    limit: f64,
    under_way: UnderWay,
    window: Window,
    /// Logarithm of the nanoseconds that an answer normally takes.
    normal: Option<f64>,
    /// The same of the last windows.
    recent: Option<f64>,
    descent: Option<Descent>,
    refused: [u64; 2],
}

/// Calls under way by when they began.
#[derive(Debug, Clone, Default)]
struct UnderWay {
    /// The span of now.
    span: u64,
    begun: [u32; SPANS],
}

/// What was seen since the last time the limit was set.
#[derive(Debug, Clone, Default)]
struct Window {
    number: u64,
    /// When its first call began.
    began: Option<Instant>,
    samples: u32,
    /// Of logarithms: one answer of half a minute among ten of 50 ms does not double the mean.
    sum: f64,
    /// Most calls at the same time.
    peak: u32,
    /// Whether any was refused.
    full: bool,
}

/// The limit falls because answers take long.
#[derive(Debug, Clone, Copy)]
struct Descent {
    /// From where.
    limit: f64,
    /// Logarithm of the longest that a window's answers took since.
    latency: f64,
}

impl Limiter {
    /// Nothing under way, nothing measured. Parameters that [`AdaptiveConfig::validate`] refuses
    /// are brought into range where anything would break otherwise.
    pub fn new(config: AdaptiveConfig) -> Self {
        Self {
            limit: within(f64::from(config.initial), &config),
            under_way: UnderWay::default(),
            window: Window::default(),
            normal: None,
            recent: None,
            descent: None,
            refused: [0; 2],
            config,
        }
    }

    /// Exchanges the parameters; what was learned stays, and so does the limit as far as it is
    /// within the new bounds.
    pub fn set_config(&mut self, config: AdaptiveConfig) {
        self.limit = within(self.limit, &config);
        self.config = config;
    }

    /// The parameters.
    pub const fn config(&self) -> &AdaptiveConfig {
        &self.config
    }

    /// How many calls may be under way.
    pub const fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// How many are.
    pub fn in_flight(&self) -> u32 {
        self.under_way.count()
    }

    /// The state, for people.
    pub fn view(&self) -> View {
        let time = |nanos: Option<f64>| nanos.map(|nanos| Duration::from_nanos(nanos.exp() as u64));
        View {
            limit: self.limit(),
            in_flight: self.in_flight(),
            normal: time(self.normal),
            recent: time(self.recent),
            refused: self.refused,
        }
    }

    /// Asks for a call.
    ///
    /// # Errors
    ///
    /// When so many are under way as may be: for [`Priority::Default`] the limit less the share
    /// that is kept.
    pub fn try_acquire(&mut self, now: Instant, priority: Priority) -> Result<Permit, Rejected> {
        self.under_way.follow(now);
        let (in_flight, limit) = (self.under_way.count(), self.limit());
        let allowed = match priority {
            Priority::Critical => limit,
            Priority::Default => limit - self.kept(limit),
        };
        if in_flight >= allowed {
            self.window.full = true;
            let refused = &mut self.refused[priority as usize];
            *refused = refused.saturating_add(1);
            return Err(Rejected { in_flight, limit });
        }
        self.window.began.get_or_insert(now);
        self.window.peak = self.window.peak.max(in_flight + 1);
        Ok(Permit {
            span: self.under_way.begin(),
            window: self.window.number,
            began: now,
        })
    }

    /// The answer begins: the call counts no longer. What it took may be told by
    /// [`Limiter::on_sample`] once it is clear that it was a whole and good answer.
    #[must_use = "a sample that is not told was not taken"]
    pub fn on_answer(&mut self, permit: Permit, now: Instant) -> Sample {
        let sample = Sample {
            window: permit.window,
            latency: now.saturating_since(permit.began),
        };
        self.release(permit);
        sample
    }

    /// What a good answer took.
    pub fn on_sample(&mut self, sample: Sample, now: Instant) {
        let began = self
            .window
            .began
            .filter(|_| sample.window == self.window.number);
        // What began under another limit says nothing about this one.
        let Some(began) = began else { return };
        let latency = logarithm(sample.latency);
        let normal = self.normal.unwrap_or(latency);
        let far = OUTLIER.ln();
        self.window.sum += latency.max(normal - far).min(normal + far);
        self.window.samples += 1;
        let elapsed = now.saturating_since(began);
        let done = elapsed >= WINDOW && self.window.samples >= WINDOW_SAMPLES;
        if done || elapsed >= WINDOW_MAX {
            self.close(elapsed);
        }
    }

    /// Nobody waits for the answer any more. That says nothing, unless it has already taken longer
    /// than an answer may: then callers give up before there is anything to measure.
    pub fn on_cancel(&mut self, permit: Permit, now: Instant) {
        let sample = self.on_answer(permit, now);
        let late = |normal: f64| normal + self.config.tolerance.ln();
        let waited = logarithm(sample.latency);
        if self.normal.is_some_and(|normal| waited > late(normal)) {
            self.on_sample(sample, now);
        }
    }

    /// The call says nothing: it failed, became a stream, or was never made.
    pub fn release(&mut self, permit: Permit) {
        self.under_way.end(permit.span);
    }

    /// Of this limit, what only critical calls may take: never all of it.
    fn kept(&self, limit: u32) -> u32 {
        let share = f64::from(limit) * self.config.critical_share;
        (share.ceil() as u32).min(limit.saturating_sub(1))
    }

    /// Sets the limit by what the window saw.
    fn close(&mut self, elapsed: Duration) {
        let latency = self.window.sum / f64::from(self.window.samples);
        let next = Window {
            number: self.window.number.wrapping_add(1),
            peak: self.in_flight(),
            ..Window::default()
        };
        let Window { peak, full, .. } = std::mem::replace(&mut self.window, next);
        let recent = self.recent.unwrap_or(latency).midpoint(latency);
        self.recent = Some(recent);
        let normal = self.learn(latency, elapsed, full);
        // Far fewer than may be: neither do they need more, nor is it they who take long.
        if f64::from(peak) < self.limit / 2.0 {
            self.descent = None;
            return;
        }
        let gradient = self.config.tolerance * (normal - latency).exp();
        let gradient = gradient.clamp(STEEPEST, 1.0);
        let queue = f64::from(self.config.queue).max(self.limit.sqrt());
        let target = self.limit * gradient + queue;
        let smoothing = self.config.smoothing;
        let limit = self.limit.mul_add(1.0 - smoothing, target * smoothing);
        self.limit = within(limit, &self.config);
        if gradient < 1.0 && full {
            self.descend(latency, recent, normal);
        } else {
            self.descent = None;
        }
    }

    /// Learns what is normal: at once when it is less, slowly when it is more, and not at all from
    /// answers that may have waited in a queue.
    fn learn(&mut self, latency: f64, elapsed: Duration, full: bool) -> f64 {
        let normal = self.normal.unwrap_or(latency);
        let share = if latency < normal {
            FALL
        } else if full {
            0.0
        } else {
            // An hour without requests is not an hour of learning.
            let elapsed = elapsed.min(WINDOW_MAX).as_secs_f64();
            (elapsed / self.config.long_window.as_secs_f64()).min(1.0)
        };
        let normal = normal + (latency - normal) * share;
        self.normal = Some(normal);
        normal
    }

    /// Looks whether answers came sooner with fewer calls, once the limit has fallen far enough.
    fn descend(&mut self, latency: f64, recent: f64, normal: f64) {
        let begin = Descent {
            limit: self.limit,
            latency,
        };
        let descent = self.descent.get_or_insert(begin);
        descent.latency = descent.latency.max(latency);
        if self.limit > descent.limit {
            *descent = begin;
        } else if self.limit <= descent.limit * FALLEN {
            let useless = recent > descent.latency + OF_USE.ln() && recent > normal;
            self.descent = (!useless).then_some(Descent {
                limit: self.limit,
                latency: recent,
            });
            if useless {
                self.normal = Some(recent);
            }
        }
    }
}

impl UnderWay {
    /// Forgets what began too long ago.
    fn follow(&mut self, now: Instant) {
        let span = now.as_nanos() / SPAN.as_nanos() as u64;
        let passed = span.saturating_sub(self.span).min(SPANS as u64);
        for ahead in 1..=passed {
            // Spans that are four apart have the same place.
            *self.slot(self.span.wrapping_add(ahead)) = 0;
        }
        self.span = self.span.max(span);
    }

    fn begin(&mut self) -> u64 {
        let span = self.span;
        let begun = self.slot(span);
        *begun = begun.saturating_add(1);
        span
    }

    fn end(&mut self, span: u64) {
        if span + SPANS as u64 > self.span {
            let begun = self.slot(span);
            *begun = begun.saturating_sub(1);
        }
    }

    fn count(&self) -> u32 {
        self.begun
            .iter()
            .fold(0, |sum, one| sum.saturating_add(*one))
    }

    const fn slot(&mut self, span: u64) -> &mut u32 {
        &mut self.begun[(span % SPANS as u64) as usize]
    }
}

/// Of the nanoseconds. A clock that does not move between two readings makes no answer infinitely
/// fast.
fn logarithm(latency: Duration) -> f64 {
    (latency.as_nanos().max(1) as f64).ln()
}

fn within(limit: f64, config: &AdaptiveConfig) -> f64 {
    // Not `clamp`, which panics on bounds that contradict each other.
    let limit = limit.min(f64::from(config.max));
    limit.max(f64::from(config.min)).max(1.0)
}

#[cfg(test)]
mod tests;
