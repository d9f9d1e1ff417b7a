//! How many requests at a time a server takes well, found from how long its answers take.
//!
//! The rule is that of Netflix's Gradient2 (concurrency-limits): what answers take now is held
//! against what they normally take. As long as that is about the same, the limit grows; once
//! answers take longer than normal by more than the tolerance, they wait in a queue, and the limit
//! falls in proportion, to no less than half at once. Nothing is ever held back to measure with.
//! Four rules are ours:
//!
//! - Answers vary by themselves, often by more than the tolerance. Compared are means of logarithms
//!   over windows with enough answers to tell such a difference, and a difference counts only beyond
//!   what the variance of single answers makes of a window's mean.
//! - What is normal is the mean of such windows. Differences that are mere noise move it up as fast
//!   as down, else it would drift to the luckiest windows. Answers that clearly take less are learned
//!   soon, those that clearly take more slowly.
//! - What is normal is not learned while the limit holds requests back. An overload that lasts would
//!   become what is normal, and the limit would grow for as long as it lasts. Only at its minimum,
//!   where the limit cannot fall, it is learned slowly all the same.
//! - So that a server which has become slower is not taken for one that is overloaded for ever: a
//!   queue becomes shorter with the limit. Where the limit fell by a third and answers take as long
//!   as before, there is no queue, and what they take now is normal.
//!
//! Lazy: nothing happens between calls, `now` decides. Answers are counted in windows, and only
//! those of calls that began in the same window: what began before saw another limit. Memory is
//! constant.

mod config;
mod samples;
mod under_way;

use std::time::Duration;

pub use config::{AdaptiveConfig, ConfigError, MAX_CRITICAL_SHARE, MAX_QUEUE};
use samples::Samples;
use under_way::UnderWay;

use crate::time::Instant;

/// Shortest window.
const WINDOW: Duration = Duration::from_millis(100);
/// Fewest answers of a window that is shorter than [`WINDOW_MAX`].
const WINDOW_SAMPLES: u32 = 10;
/// Answers that are always enough for a window, however much they vary.
const WINDOW_SAMPLES_MAX: u32 = 200;
/// Longest window, whatever the number of its answers.
const WINDOW_MAX: Duration = Duration::from_secs(1);
/// Standard errors by which the mean of a window has to differ before it is more than noise: less
/// than one window in seven hundred does so by chance.
const NOISE: f64 = 3.0;
/// Share of the way that the variance of answers goes towards that of a window.
const SPREAD_SHARE: f64 = 0.1;
/// Windows that what is normal is a mean of, after answers were found to take clearly less: it then
/// goes a tenth of the way with each. Gradient2 has steps of 5 % for this.
const RELEARN: f64 = 10.0;
/// One answer counts as at most so many times longer or shorter than normal.
const OUTLIER: f64 = 32.0;
/// The least that the limit falls to at once.
const STEEPEST: f64 = 0.5;
/// Share that the limit has to have fallen to until it is asked whether that was of use.
const FALLEN: f64 = 2.0 / 3.0;
/// Share above which the limit has not fallen yet.
const UNFALLEN: f64 = 0.9;
/// Share that the time of answers has to have fallen to for that: halfway, in logarithms, between
/// all of [`FALLEN`] and nothing.
const OF_USE: f64 = 0.816;
/// Windows after which that is decided, however much answers vary.
const DESCENT_WINDOWS: u32 = 20;
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
    /// Windows that `normal` is the mean of, as far as it remembers.
    learned: f64,
    /// Variance of the logarithms of single answers; `None` before the first window.
    spread: Option<f64>,
    /// The same as `normal` of the last windows.
    recent: Option<f64>,
    descent: Option<Descent>,
    refused: [u64; 2],
}

/// What was seen since the last time the limit was set.
#[derive(Debug, Clone, Default)]
struct Window {
    number: u64,
    /// When its first call began.
    began: Option<Instant>,
    /// Of logarithms: one answer of half a minute among ten of 50 ms does not double the mean.
    latencies: Samples,
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
    /// What answers took there,
    before: Samples,
    /// and what they take since the limit has fallen far enough.
    after: Samples,
    windows: u32,
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
            learned: 0.0,
            spread: None,
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
        let latency = latency.max(normal - far).min(normal + far);
        self.window.latencies.add(latency);
        let elapsed = now.saturating_since(began);
        let done = elapsed >= WINDOW && self.window.latencies.count >= self.enough();
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

    /// So many answers that noise does not look like more than the tolerance.
    fn enough(&self) -> u32 {
        let spread = self.spread.unwrap_or_default();
        let tolerance = self.config.tolerance.ln().max(f64::EPSILON);
        let enough = spread * (NOISE / tolerance).powi(2);
        (enough.ceil() as u32).clamp(WINDOW_SAMPLES, WINDOW_SAMPLES_MAX)
    }

    /// Sets the limit by what the window saw.
    fn close(&mut self, elapsed: Duration) {
        let next = Window {
            number: self.window.number.wrapping_add(1),
            peak: self.in_flight(),
            ..Window::default()
        };
        let window = std::mem::replace(&mut self.window, next);
        let latency = window.latencies.mean();
        let recent = self.recent.unwrap_or(latency).midpoint(latency);
        self.recent = Some(recent);
        let noise = self.noise(window.latencies);
        let normal = self.learn(latency, noise, elapsed, window.full);
        // Far fewer than may be: neither do they need more, nor is it they who take long.
        if f64::from(window.peak) < self.limit / 2.0 {
            self.descent = None;
            return;
        }
        let gradient = if latency - normal > noise {
            let gradient = self.config.tolerance * (normal - latency).exp();
            gradient.clamp(STEEPEST, 1.0)
        } else {
            1.0
        };
        let before = self.limit;
        let queue = f64::from(self.config.queue).max(self.limit.sqrt());
        let target = self.limit * gradient + queue;
        let smoothing = self.config.smoothing;
        let limit = self.limit.mul_add(1.0 - smoothing, target * smoothing);
        self.limit = within(limit, &self.config);
        if !window.full {
            self.descent = None;
        } else if gradient < 1.0 {
            self.descend(before, window.latencies, normal);
        }
    }

    /// By how much the mean of a window differs from what is normal by chance.
    fn noise(&mut self, window: Samples) -> f64 {
        if let Some(variance) = window.variance() {
            let spread = self.spread.unwrap_or(variance);
            self.spread = Some(spread + (variance - spread) * SPREAD_SHARE);
        }
        NOISE
            * window
                .variance_of_mean(self.spread.unwrap_or_default())
                .sqrt()
    }

    /// Learns what is normal: soon when it is clearly less, slowly when it is clearly more, as a mean
    /// while there is nothing but noise, and not at all from answers that may have waited in a queue.
    fn learn(&mut self, latency: f64, noise: f64, elapsed: Duration, full: bool) -> f64 {
        let normal = self.normal.unwrap_or(latency);
        // An hour without requests is not an hour of learning.
        let elapsed = elapsed.min(WINDOW_MAX).as_secs_f64();
        let slowly = (elapsed / self.config.long_window.as_secs_f64()).min(1.0);
        let share = if latency < normal - noise {
            self.learned = self.learned.min(RELEARN);
            1.0 / self.learned.max(1.0)
        } else if full {
            let stuck = self.limit <= within(0.0, &self.config);
            if stuck { slowly } else { 0.0 }
        } else if latency > normal + noise {
            slowly
        } else {
            (1.0 / (self.learned + 1.0)).max(slowly)
        };
        self.learned = (self.learned + 1.0).min(1.0 / slowly);
        let normal = normal + (latency - normal) * share;
        self.normal = Some(normal);
        normal
    }

    /// Looks whether answers came sooner with fewer calls, once the limit has fallen far enough:
    /// from `before` in this window.
    fn descend(&mut self, before: f64, window: Samples, normal: f64) {
        let begin = |limit, before| Descent {
            limit,
            before,
            after: Samples::default(),
            windows: 0,
        };
        let descent = self
            .descent
            .get_or_insert_with(|| begin(before, Samples::default()));
        if before >= descent.limit {
            *descent = begin(before, window);
        } else if before >= descent.limit * UNFALLEN {
            descent.before.merge(window);
        } else if before <= descent.limit * FALLEN {
            descent.after.merge(window);
            descent.windows += 1;
            let spread = self.spread.unwrap_or_default();
            let variance =
                descent.before.variance_of_mean(spread) + descent.after.variance_of_mean(spread);
            let clear = 2.0 * variance.sqrt() <= -OF_USE.ln();
            if clear || descent.windows >= DESCENT_WINDOWS {
                let after = descent.after.mean();
                // Where they take longer still, the server has changed meanwhile: that tells nothing.
                let change = after - descent.before.mean();
                let useless = change.abs() < -OF_USE.ln() && after > normal;
                let from_here = begin(self.limit, descent.after);
                self.descent = (!useless).then_some(from_here);
                if useless {
                    self.normal = Some(after);
                    self.learned = self.learned.min(RELEARN);
                }
            }
        }
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
