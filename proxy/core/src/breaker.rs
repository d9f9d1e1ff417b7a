//! The circuit breaker: closed, open, half-open, per endpoint or per service and route.
//!
//! It is the one state of an endpoint: what calls come to and what health checks find
//! ([`Breaker::on_check`]) open the same breaker.
//!
//! Lazy: nothing happens between calls, `now` decides. Every permit carries the generation in which
//! it was given, so that results of calls begun in an earlier state don't count, and a probe's
//! permit carries its slot, so that only the probe itself gives that back. Memory is taken by
//! [`Breaker::new`], [`Breaker::set_config`] and the first changes of state, not by other calls.

mod call;
mod cause;
mod config;
mod counters;
mod ejection;
mod history;
mod view;

use std::time::Duration;

pub use call::{CallClass, CallOutcome, Permit, Rejected};
pub use cause::Cause;
pub use config::{
    BreakerConfig, ConfigError, MAX_HALF_OPEN_PERMITS, MAX_WINDOW_BUCKETS, MAX_WINDOW_CALLS, Window,
};
use counters::{Counters, Counts};
pub use ejection::{Standing, is_panic, most_ejected};
use history::History;
pub use history::{CHANGES_MAX, Change};
pub use view::{StateView, Transition, View};

use crate::health::Verdict;
use crate::time::Instant;

#[derive(Debug, Clone, Copy)]
enum State {
    Closed {
        /// When it closed again after having been open.
        recovered: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        successes: u32,
    },
    /// Health checks say that it is unwell; only they bring it back.
    Unhealthy,
}

/// A probe under way.
#[derive(Debug, Clone, Copy)]
struct Probe {
    number: u64,
    since: Instant,
}

/// The state machine. `&mut self` everywhere: whoever shares it brings the lock.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    generation: u64,
    /// Times it opened without having recovered in between.
    openings: u32,
    counters: Counters,
    /// Failures since the last success.
    in_a_row: u32,
    /// While half-open, oldest first; never more than its capacity.
    probes: Vec<Probe>,
    probes_given: u64,
    /// When it came into its state.
    entered: Option<Instant>,
    /// When it opened after it was last closed.
    out_since: Option<Instant>,
    cause: Option<Cause>,
    opened: u64,
    history: History,
}

impl Breaker {
    /// Closed, nothing counted. Parameters that [`BreakerConfig::validate`] refuses are brought
    /// into range where anything would break otherwise.
    pub fn new(config: BreakerConfig) -> Self {
        Self {
            state: State::Closed { recovered: None },
            generation: 0,
            openings: 0,
            counters: Counters::new(config.window),
            in_a_row: 0,
            probes: Vec::with_capacity(permits(&config)),
            probes_given: 0,
            entered: None,
            out_since: None,
            cause: None,
            opened: 0,
            history: History::default(),
            config,
        }
    }

    /// Exchanges the parameters; the state stays. Counts stay too, unless the window is another
    /// one: then they begin anew. Where calls open it no more, what they opened is closed.
    pub fn set_config(&mut self, config: BreakerConfig) {
        if config.window != self.config.window {
            self.counters = Counters::new(config.window);
        }
        let more = permits(&config).saturating_sub(self.probes.len());
        self.probes.reserve(more);
        self.config = config;
        if !self.config.by_calls
            && matches!(self.state, State::Open { .. } | State::HalfOpen { .. })
        {
            self.generation += 1;
            self.probes.clear();
            self.out_since = None;
            self.state = State::Closed { recovered: None };
        }
    }

    /// The last changes of its state, oldest first; at most [`CHANGES_MAX`].
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.history.iter()
    }

    /// The parameters.
    pub fn config(&self) -> &BreakerConfig {
        &self.config
    }

    /// Asks for a call. Open turns to half-open here when its time is over.
    pub fn try_acquire(&mut self, now: Instant) -> Result<Permit, Rejected> {
        let probe = match self.state {
            State::Closed { .. } => None,
            State::Open { until } if now < until => {
                return Err(Rejected {
                    retry_after: until.saturating_since(now),
                });
            }
            // When it comes back is for checks to say.
            State::Unhealthy => {
                return Err(Rejected {
                    retry_after: self.config.open,
                });
            }
            State::Open { .. } => {
                self.enter(State::HalfOpen { successes: 0 }, now);
                Some(self.probe(now)?)
            }
            State::HalfOpen { .. } => Some(self.probe(now)?),
        };
        Ok(Permit {
            generation: self.generation,
            probe,
        })
    }

    /// Whether [`Breaker::try_acquire`] would give a permit.
    pub fn is_available(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } => now >= until,
            State::Unhealthy => false,
            State::HalfOpen { .. } => {
                let waited_for = |probe: &&Probe| self.is_waited_for(probe, now);
                self.probes.iter().filter(waited_for).count() < permits(&self.config)
            }
        }
    }

    /// Whether calls go through, and if not, since when and why.
    pub fn standing(&self, now: Instant) -> Standing {
        let since = self.out_since.unwrap_or(now);
        if self.is_unhealthy() {
            Standing::Unhealthy { since }
        } else if self.is_available(now) {
            Standing::Available
        } else {
            Standing::Open { since }
        }
    }

    /// A call has ended. `random` is for the jitter of the open time.
    ///
    /// A neutral call counts where it was slow: that its caller gave up then says how long it takes
    /// at least. While half-open one failure opens again, and so does a slow call where slow calls
    /// are watched for at all.
    pub fn on_result(
        &mut self,
        permit: Permit,
        outcome: CallOutcome,
        now: Instant,
        random: u64,
    ) -> Option<Transition> {
        let probing = permit.is_probe();
        if !self.take_back(permit) {
            return None;
        }
        let limit = self.config.slow_call;
        let slow = limit.is_some_and(|limit| outcome.latency > limit);
        let failed = match outcome.class {
            CallClass::Success => false,
            CallClass::Failure => true,
            CallClass::Neutral if slow => false,
            CallClass::Neutral => return None,
        };
        if !self.config.by_calls {
            return None;
        }
        if probing {
            return self.on_probe(failed || slow, now, random);
        }
        match outcome.class {
            CallClass::Failure => self.in_a_row = self.in_a_row.saturating_add(1),
            CallClass::Success => self.in_a_row = 0,
            CallClass::Neutral => {}
        }
        let counts = self.counters.count(now, failed, slow);
        let cause = self.should_open(counts)?;
        Some(self.open(cause, now, random))
    }

    /// Health checks have changed their mind. An unhealthy endpoint is out whatever calls come to,
    /// until checks say that it is well: then it comes back with the ramp, whatever the open time
    /// says. What calls opened is not undone by checks: that the check is answered says nothing
    /// about what failed.
    pub fn on_check(&mut self, verdict: Verdict, now: Instant) -> Option<Transition> {
        let cause = match verdict {
            Verdict::Healthy => {
                let recovered = Some(now);
                let out = self.is_unhealthy();
                return out.then(|| self.enter(State::Closed { recovered }, now));
            }
            Verdict::Unhealthy { in_a_row, last } => Cause::Checks { in_a_row, last },
            Verdict::Unchecked => Cause::Unchecked,
        };
        self.cause = Some(cause);
        (!self.is_unhealthy()).then(|| self.enter(State::Unhealthy, now))
    }

    /// Whether health checks keep it open.
    pub fn is_unhealthy(&self) -> bool {
        matches!(self.state, State::Unhealthy)
    }

    /// Opens for as long as the answer to a call said, at most for the longest open time. Nothing
    /// changes where the answer said "at once", or where the call began in an earlier generation:
    /// what the breaker has decided since is newer than what the call saw.
    pub fn hold_open(
        &mut self,
        permit: &Permit,
        wait: Duration,
        now: Instant,
    ) -> Option<Transition> {
        let current = permit.generation == self.generation;
        if !current || wait.is_zero() || !self.config.by_calls || self.is_unhealthy() {
            return None;
        }
        let until = now + wait.min(self.config.open_max);
        self.cause = Some(Cause::RetryAfter);
        Some(self.enter(State::Open { until }, now))
    }

    /// Everything about it, for people.
    pub fn view(&self, now: Instant) -> View {
        let next_probe = match self.state {
            State::Open { until } => Some(until.saturating_since(now)),
            State::Closed { .. } | State::HalfOpen { .. } | State::Unhealthy => None,
        };
        View {
            state: self.state(now),
            since: self.entered.map(|entered| now.saturating_since(entered)),
            cause: self.cause,
            next_probe,
            opened: self.opened,
        }
    }

    /// A call was given up after its endpoint was waited for so long: its slot is free again. It
    /// counts only if it was slow already, as in [`Breaker::on_result`].
    pub fn on_cancel(
        &mut self,
        permit: Permit,
        waited: Duration,
        now: Instant,
        random: u64,
    ) -> Option<Transition> {
        let outcome = CallOutcome {
            class: CallClass::Neutral,
            latency: waited,
        };
        self.on_result(permit, outcome, now, random)
    }

    /// The state as it shows now.
    pub fn state(&self, now: Instant) -> StateView {
        match self.state {
            State::Open { until } if now >= until => StateView::HalfOpen,
            State::Closed { .. }
            | State::Open { .. }
            | State::HalfOpen { .. }
            | State::Unhealthy => self.state.view(),
        }
    }

    /// The share of its ordinary traffic that it should get, 0 to 1: less than 1 for a while
    /// after it has recovered.
    pub fn ramp_share(&self, now: Instant) -> f64 {
        let State::Closed {
            recovered: Some(recovered),
        } = self.state
        else {
            return 1.0;
        };
        let since = now.saturating_since(recovered);
        if since >= self.config.ramp {
            return 1.0;
        }
        since.as_secs_f64() / self.config.ramp.as_secs_f64()
    }

    /// Gives a slot to a probe, those of hung ones included.
    fn probe(&mut self, now: Instant) -> Result<u64, Rejected> {
        let max_wait = self.config.half_open_max_wait;
        self.probes
            .retain(|probe| now.saturating_since(probe.since) < max_wait);
        if self.probes.len() >= permits(&self.config) {
            let given_up = self
                .probes
                .first()
                .map_or(now, |first| first.since + max_wait);
            return Err(Rejected {
                retry_after: given_up.saturating_since(now),
            });
        }
        self.probes_given += 1;
        self.probes.push(Probe {
            number: self.probes_given,
            since: now,
        });
        Ok(self.probes_given)
    }

    fn is_waited_for(&self, probe: &Probe, now: Instant) -> bool {
        now.saturating_since(probe.since) < self.config.half_open_max_wait
    }

    /// Whether the result of this permit's call counts; frees its slot.
    fn take_back(&mut self, permit: Permit) -> bool {
        if permit.generation != self.generation {
            return false;
        }
        let Some(number) = permit.probe else {
            return true;
        };
        // A probe that was given up has no slot any more.
        let slot = self.probes.iter().position(|probe| probe.number == number);
        slot.map(|index| self.probes.remove(index)).is_some()
    }

    fn on_probe(&mut self, failed: bool, now: Instant, random: u64) -> Option<Transition> {
        let State::HalfOpen { successes } = &mut self.state else {
            return None;
        };
        if failed {
            return Some(self.open(Cause::Probe, now, random));
        }
        *successes = successes.saturating_add(1);
        let enough = *successes >= self.config.half_open_successes;
        enough.then(|| {
            let recovered = Some(now);
            self.enter(State::Closed { recovered }, now)
        })
    }

    fn should_open(&self, counts: Counts) -> Option<Cause> {
        let limit = self.config.consecutive_failures;
        if limit.is_some_and(|limit| self.in_a_row >= limit.max(1)) {
            return Some(Cause::InARow(self.in_a_row));
        }
        let minimum = match self.config.window {
            // A window smaller than the minimum would never decide.
            Window::Count(size) => self.config.minimum_calls.min(size),
            Window::Time { .. } => self.config.minimum_calls,
        };
        let Counts {
            calls,
            failed,
            slow,
        } = counts;
        if calls < minimum.max(1) {
            return None;
        }
        let share = |part: u32| f64::from(part) / f64::from(calls);
        if share(failed) >= self.config.failure_rate {
            return Some(Cause::FailureRate { failed, calls });
        }
        let watches_slow = self.config.slow_call.is_some();
        let too_slow = watches_slow && share(slow) >= self.config.slow_rate;
        too_slow.then_some(Cause::SlowRate { slow, calls })
    }

    fn open(&mut self, cause: Cause, now: Instant, random: u64) -> Transition {
        self.cause = Some(cause);
        if matches!(self.state, State::Closed { .. }) && self.ramp_share(now) >= 1.0 {
            self.openings = 0;
        }
        let exponent = self.openings.min(64) as i32;
        let growth = self.config.open_growth.max(1.0).powi(exponent);
        self.openings = self.openings.saturating_add(1);
        let longest = self.config.open_max;
        let base = (self.config.open.as_secs_f64() * growth).min(longest.as_secs_f64());
        let fraction = random as f64 / u64::MAX as f64;
        let seconds = base * (1.0 - self.config.jitter.clamp(0.0, 1.0) * fraction);
        let time = Duration::try_from_secs_f64(seconds).unwrap_or(longest);
        self.enter(State::Open { until: now + time }, now)
    }

    /// Begins a new generation with nothing counted.
    fn enter(&mut self, state: State, now: Instant) -> Transition {
        let from = self.state.view();
        self.entered = Some(now);
        let opens = matches!(state, State::Open { .. } | State::Unhealthy);
        self.opened += u64::from(opens);
        if opens {
            self.out_since.get_or_insert(now);
        } else if matches!(state, State::Closed { .. }) {
            self.out_since = None;
        }
        self.generation += 1;
        self.state = state;
        self.probes.clear();
        self.counters.clear();
        self.in_a_row = 0;
        let transition = Transition {
            from,
            to: state.view(),
        };
        self.history.push(now, transition, self.cause);
        transition
    }
}

impl State {
    const fn view(self) -> StateView {
        match self {
            Self::Closed { .. } => StateView::Closed,
            Self::Open { .. } | Self::Unhealthy => StateView::Open,
            Self::HalfOpen { .. } => StateView::HalfOpen,
        }
    }
}

fn permits(config: &BreakerConfig) -> usize {
    config.half_open_permits.clamp(1, MAX_HALF_OPEN_PERMITS) as usize
}

#[cfg(test)]
mod tests;
