//! What an endpoint is believed to cost: its latency, the requests under way there, and what it has
//! lately refused because of a quota.

use std::time::Duration;

use crate::time::Instant;

/// What a failure counts as, at least: an endpoint that fails in no time would look like the best
/// one. It is forgotten like any latency, with the time constant of the average.
pub const FAILURE_PENALTY: Duration = Duration::from_secs(1);
/// How long a quota that an endpoint refused by (429, RESOURCE_EXHAUSTED) raises its score.
pub const QUOTA_BIAS_TIME: Duration = Duration::from_secs(10);
/// What such a refusal adds to the factor of the score at first. It shrinks to nothing over
/// [`QUOTA_BIAS_TIME`]; it never grows with the number of refusals, so that one caller's quota makes
/// an endpoint dearer for the others and does not put it out.
const QUOTA_BIAS: f64 = 3.0;
/// Routes of an endpoint whose refusals are remembered at the same time.
const QUOTA_ROUTES: usize = 4;

/// Peak-sensitive exponentially weighted moving average of an endpoint's latency, together with
/// the requests under way there. A latency above the average is taken at once, one below it only
/// slowly (the cost function of Finagle's and Linkerd's balancers).
///
/// What has not been answered counts too: the time that requests under way have waited, on average,
/// is a lower bound of the latency, and so is the time after which a caller gave up.
#[derive(Debug, Clone)]
pub struct PeakEwma {
    decay: Duration,
    nanos: f64,
    /// When it was measured last; `None`: never.
    updated: Option<Instant>,
    in_flight: u32,
    /// Requests under way that have no answer yet.
    waiting: u32,
    /// The sum of the times when those began, nanoseconds.
    began: u128,
    quotas: [Option<Quota>; QUOTA_ROUTES],
    /// No quota counts after this.
    quotas_until: Instant,
}

/// A refusal by a quota.
#[derive(Debug, Clone, Copy)]
struct Quota {
    route: u64,
    until: Instant,
}

/// A request under way at an endpoint. It has to be given back to [`PeakEwma`].
#[derive(Debug)]
#[must_use = "a request under way has to end"]
pub struct InFlight {
    began: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It waits in a queue of our own: that is not the endpoint's time.
    Queued,
    /// It waits for the endpoint.
    Waiting,
    Answered(Instant),
}

impl InFlight {
    /// Since when the endpoint is waited for; `None` where it is not.
    pub fn waits_since(&self) -> Option<Instant> {
        (self.state == State::Waiting).then_some(self.began)
    }

    /// How long the endpoint has taken for an answer, or has been waited for until now.
    pub fn waited(&self, now: Instant) -> Duration {
        match self.state {
            State::Queued => Duration::ZERO,
            State::Waiting => now.saturating_since(self.began),
            State::Answered(answered) => answered.saturating_since(self.began),
        }
    }
}

impl PeakEwma {
    /// An endpoint that was never measured is believed to need `initial`; the average forgets with
    /// time constant `decay`.
    pub fn new(decay: Duration, initial: Duration) -> Self {
        Self {
            decay,
            nanos: initial.as_nanos() as f64,
            updated: None,
            in_flight: 0,
            waiting: 0,
            began: 0,
            quotas: [None; QUOTA_ROUTES],
            quotas_until: Instant::default(),
        }
    }

    /// A request begins.
    pub fn on_start(&mut self, now: Instant) -> InFlight {
        self.in_flight = self.in_flight.saturating_add(1);
        let mut request = InFlight {
            began: now,
            state: State::Queued,
        };
        self.on_sent(&mut request, now);
        request
    }

    /// The request waits in a queue of our own until [`Self::on_sent`].
    pub fn on_queued(&mut self, request: &mut InFlight) {
        if request.state == State::Waiting {
            self.stop_waiting(request, State::Queued);
        }
    }

    /// The request has left the queue: the endpoint's time begins.
    pub fn on_sent(&mut self, request: &mut InFlight, now: Instant) {
        if request.state == State::Queued {
            request.began = now;
            request.state = State::Waiting;
            self.waiting = self.waiting.saturating_add(1);
            self.began += u128::from(now.as_nanos());
        }
    }

    /// The answer begins: what it takes from here on is not latency.
    pub fn on_answer(&mut self, request: &mut InFlight, now: Instant) {
        if request.state == State::Waiting {
            self.stop_waiting(request, State::Answered(now));
        }
    }

    /// The request has ended. Without [`Self::on_answer`] its latency is the time until now. A
    /// failure counts as at least [`FAILURE_PENALTY`].
    pub fn on_finish(&mut self, request: InFlight, failed: bool, now: Instant) {
        let latency = request.waited(now);
        let asked = request.state != State::Queued;
        self.end(request);
        if !asked && !failed {
            return;
        }
        let latency = if failed {
            latency.max(FAILURE_PENALTY)
        } else {
            latency
        };
        let nanos = latency.as_nanos() as f64;
        if self.updated.is_none() || nanos > self.nanos {
            self.nanos = nanos;
        } else {
            let weight = self.weight(now);
            self.nanos = self.nanos * weight + nanos * (1.0 - weight);
        }
        // Threads read the clock before they take the lock: time must not go back.
        self.updated = self.updated.max(Some(now));
    }

    /// The request was given up by its caller, or says nothing else about the endpoint: that it has
    /// waited for so long raises the average, and never lowers it.
    pub fn on_cancel(&mut self, request: InFlight, now: Instant) {
        let asked = request.state != State::Queued;
        let waited = request.waited(now).as_nanos() as f64;
        self.end(request);
        let believed = self.nanos * self.weight(now);
        // One that was never measured is not tried by everybody until it answers.
        if asked && (self.updated.is_none() || waited > believed) {
            self.nanos = waited.max(believed);
            self.updated = self.updated.max(Some(now));
        }
    }

    /// The request was refused by a quota on requests that come by `route`: how fast that was says
    /// nothing, and the score for that route is higher for up to [`QUOTA_BIAS_TIME`].
    pub fn on_quota(&mut self, request: InFlight, route: u64, now: Instant) {
        self.end(request);
        let until = now + QUOTA_BIAS_TIME;
        // The route's own place, a free one, or that which is over first.
        let place = self.quotas.iter_mut().min_by_key(|quota| match quota {
            Some(quota) if quota.route == route => (0, Instant::default()),
            None => (1, Instant::default()),
            Some(quota) => (2, quota.until),
        });
        if let Some(place) = place {
            *place = Some(Quota { route, until });
        }
        self.quotas_until = self.quotas_until.max(until);
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The latency as believed now: the average, or how long unanswered requests have waited, if
    /// that is longer.
    pub fn latency(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.believed(now) as u64)
    }

    /// The cost of sending one more request: lower is better. An endpoint that gets no requests
    /// becomes cheaper with time, so that it is tried again. One that was never measured is tried
    /// soon, but by one request at a time: while that is under way it costs the initial latency,
    /// or everybody would run to a new endpoint until its first answer.
    pub fn score(&self, now: Instant) -> f64 {
        let latency = if self.updated.is_none() && self.in_flight == 0 {
            0.0
        } else {
            self.believed(now)
        };
        (latency + 1.0) * (f64::from(self.in_flight) + 1.0)
    }

    /// What a cost is multiplied by for a request that comes by `route`: 1, or more after a quota
    /// has refused one.
    pub fn quota_bias(&self, route: u64, now: Instant) -> f64 {
        if now >= self.quotas_until {
            return 1.0;
        }
        let mut quotas = self.quotas.iter().flatten();
        let Some(quota) = quotas.find(|quota| quota.route == route) else {
            return 1.0;
        };
        let left = quota.until.saturating_since(now).min(QUOTA_BIAS_TIME);
        1.0 + QUOTA_BIAS * left.as_secs_f64() / QUOTA_BIAS_TIME.as_secs_f64()
    }

    fn believed(&self, now: Instant) -> f64 {
        (self.nanos * self.weight(now)).max(self.age(now))
    }

    /// How long requests without an answer have waited, on average, nanoseconds.
    fn age(&self, now: Instant) -> f64 {
        if self.waiting == 0 {
            return 0.0;
        }
        let waiting = u128::from(self.waiting);
        let sum = (u128::from(now.as_nanos()) * waiting).saturating_sub(self.began);
        sum as f64 / f64::from(self.waiting)
    }

    fn stop_waiting(&mut self, request: &mut InFlight, next: State) {
        self.waiting = self.waiting.saturating_sub(1);
        let began = u128::from(request.began.as_nanos());
        self.began = self.began.saturating_sub(began);
        request.state = next;
    }

    fn end(&mut self, mut request: InFlight) {
        self.on_queued(&mut request);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn weight(&self, now: Instant) -> f64 {
        let Some(updated) = self.updated else {
            return 1.0;
        };
        let elapsed = now.saturating_since(updated).as_nanos() as f64;
        (-elapsed / self.decay.as_nanos().max(1) as f64).exp()
    }
}
