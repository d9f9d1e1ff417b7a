//! An endpoint with its live state, which outlives every change of configuration.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use weft_core::balance::{InFlight, PeakEwma};
use weft_core::breaker::{
    Breaker, CallClass, CallOutcome, Change, Permit, Rejected, Standing, Transition, View,
};
use weft_core::health::{CheckFailure, Health, Verdict};
use weft_core::model;
use weft_core::name::ServiceName;
use weft_core::policy::TrafficPolicy;
use weft_core::retry::Failure;
use weft_core::time::Instant;

use super::port::follow;
use super::recent::Recent;
use crate::http::Upload;
use crate::telemetry::metrics::HttpStats;
use crate::tls::Material;

/// How fast the latency estimate forgets.
const EWMA_DECAY: Duration = Duration::from_secs(10);
/// What a new endpoint is believed to need before anything was measured.
const EWMA_DEFAULT_LATENCY: Duration = Duration::from_millis(30);

/// What identifies live state from one snapshot to the next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The service that it serves.
    pub service: ServiceName,
    /// The service's port.
    pub port: u16,
    /// The instance.
    pub instance: Arc<str>,
    /// Where it is dialled.
    pub address: SocketAddr,
}

/// One endpoint of one port of a service.
#[derive(Debug)]
pub struct Endpoint {
    /// What identifies its live state.
    pub key: EndpointKey,
    /// What the control plane said of it.
    pub model: Arc<model::Endpoint>,
    /// What we have seen of it.
    pub live: Arc<Live>,
}

/// What this sidecar has seen of an endpoint.
#[derive(Debug)]
pub struct Live {
    /// Its counters.
    pub stats: Arc<HttpStats>,
    machines: Mutex<Machines>,
    born: Instant,
    tls: Mutex<TlsCache>,
}

#[derive(Debug)]
struct Machines {
    ewma: PeakEwma,
    /// Where the policy has one, or has endpoints checked.
    breaker: Option<Breaker>,
    /// Where the policy has endpoints checked. What it finds is in the breaker.
    health: Option<Health>,
    recent: Recent,
}

#[derive(Debug, Default)]
struct TlsCache {
    generation: u64,
    configs: Vec<(&'static [u8], Arc<ClientConfig>)>,
}

/// A call that has begun and has to be finished. Dropped, it was given up by its caller: then the
/// time that the endpoint was waited for is the least that it takes.
#[derive(Debug)]
pub struct Call {
    live: Arc<Live>,
    permit: Option<Permit>,
    /// `None` once it has ended.
    request: Option<InFlight>,
    /// The rule that the request came by; 0 for none.
    route: u64,
    upload: Option<Upload>,
    failure: Option<Failure>,
}

impl Live {
    /// A fresh endpoint: closed breaker, no latency measured, not checked yet.
    pub fn new(stats: Arc<HttpStats>, policy: &TrafficPolicy) -> Self {
        let live = Self {
            stats,
            machines: Mutex::new(Machines {
                ewma: PeakEwma::new(EWMA_DECAY, EWMA_DEFAULT_LATENCY),
                breaker: None,
                health: None,
                recent: Recent::default(),
            }),
            born: crate::clock::now(),
            tls: Mutex::default(),
        };
        live.follow(policy);
        live
    }

    /// Takes a policy's parameters for the breaker and for checks; their state and what they counted
    /// stay. What is switched off forgets both.
    pub fn follow(&self, policy: &TrafficPolicy) {
        let mut machines = self.machines();
        let Machines {
            breaker, health, ..
        } = &mut *machines;
        follow(breaker, policy.endpoint_breaker().as_deref());
        match (&policy.health_check, &mut *health) {
            (None, None) => {}
            // Nobody would say any more that it is well again.
            (None, Some(_)) => {
                *health = None;
                if let Some(breaker) = breaker {
                    breaker.on_check(Verdict::Healthy, crate::clock::now());
                }
            }
            (Some(config), Some(health)) if config == health.config() => {}
            (Some(config), Some(health)) => {
                let (now, random) = (crate::clock::now(), fastrand::u64(..));
                health.set_config(Arc::clone(config), now, random);
            }
            (Some(config), None) => {
                let (now, random) = (crate::clock::now(), fastrand::u64(..));
                let fresh = Health::new(Arc::clone(config), now, random);
                if let (Some(verdict), Some(breaker)) = (fresh.initially(), breaker) {
                    breaker.on_check(verdict, now);
                }
                *health = Some(fresh);
            }
        }
    }

    /// When the next check of it is due; `None` where it is not checked.
    pub fn check_due(&self) -> Option<Instant> {
        self.machines().health.as_ref().map(Health::due)
    }

    /// A check has ended; says when that changed the breaker's state.
    pub fn on_check(&self, result: Result<(), CheckFailure>, now: Instant) -> Option<Transition> {
        let mut machines = self.machines();
        let Machines {
            breaker, health, ..
        } = &mut *machines;
        let verdict = health.as_mut()?.on_result(result, now, fastrand::u64(..))?;
        breaker.as_mut()?.on_check(verdict, now)
    }

    /// A check has ended that says nothing of the endpoint.
    pub fn on_check_silence(&self, now: Instant) {
        if let Some(health) = &mut self.machines().health {
            health.on_silence(now, fastrand::u64(..));
        }
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.machines().ewma.in_flight()
    }

    /// Whether it takes requests, without asking for a permit.
    pub fn standing(&self, now: Instant) -> Standing {
        let machines = self.machines();
        let breaker = machines.breaker.as_ref();
        breaker.map_or(Standing::Available, |breaker| breaker.standing(now))
    }

    /// The balancing score: lower is better.
    pub fn score(&self, now: Instant) -> f64 {
        let machines = self.machines();
        let breaker = machines.breaker.as_ref();
        let share = breaker.map_or(1.0, |breaker| breaker.ramp_share(now));
        machines.ewma.score(now) / share.max(0.01)
    }

    /// What a cost is multiplied by for a request that comes by this rule.
    pub fn bias(&self, route: u64, now: Instant) -> f64 {
        self.machines().ewma.quota_bias(route, now)
    }

    /// The breaker, for people; `None` where the policy has none.
    pub fn breaker(&self, now: Instant) -> Option<View> {
        let machines = self.machines();
        machines.breaker.as_ref().map(|breaker| breaker.view(now))
    }

    /// The last changes of the breaker's state, oldest first; empty where the policy has none.
    pub fn breaker_changes(&self) -> Vec<Change> {
        let machines = self.machines();
        let breaker = machines.breaker.iter();
        breaker.flat_map(Breaker::changes).copied().collect()
    }

    /// The last failures, the newest first, for people; empty where there was none.
    pub fn recent_failures(&self) -> String {
        self.machines().recent.text()
    }

    /// When it was first seen.
    pub fn born(&self) -> Instant {
        self.born
    }

    /// How long it has been known.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_since(self.born)
    }

    /// Begins a call, if the breaker allows one, of a request that came by a rule (0 for none).
    ///
    /// # Errors
    ///
    /// When the breaker lets none through.
    pub fn begin(self: &Arc<Self>, route: u64, now: Instant) -> Result<Call, Rejected> {
        let mut machines = self.machines();
        let breaker = machines.breaker.as_mut();
        let permit = breaker.map(|breaker| breaker.try_acquire(now));
        let permit = permit.transpose()?;
        let request = machines.ewma.on_start(now);
        drop(machines);
        Ok(self.call(permit, request, route))
    }

    /// Begins a call past an open breaker: it is only observed, or too few would be left.
    pub fn begin_forced(self: &Arc<Self>, route: u64, now: Instant) -> Call {
        let request = self.machines().ewma.on_start(now);
        self.call(None, request, route)
    }

    fn call(self: &Arc<Self>, permit: Option<Permit>, request: InFlight, route: u64) -> Call {
        Call {
            live: Arc::clone(self),
            permit,
            request: Some(request),
            route,
            upload: None,
            failure: None,
        }
    }

    /// The TLS configuration for this endpoint with its session tickets; made anew when the
    /// material changed, which drops the tickets.
    pub fn tls_config(&self, material: &Material, alpn: &'static [u8]) -> Arc<ClientConfig> {
        let mut cache = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.generation != material.generation {
            cache.generation = material.generation;
            cache.configs.clear();
        }
        if let Some((_name, config)) = cache.configs.iter().find(|(name, _)| *name == alpn) {
            return Arc::clone(config);
        }
        let config = material.client_for(alpn);
        cache.configs.push((alpn, Arc::clone(&config)));
        config
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        // A panic in core would be a bug; the counters it left are still better than none.
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// The response has begun, or the connection stands. That is how long the endpoint took: how
    /// long a download, a stream or a connection goes on then says nothing about it.
    pub fn on_response(&mut self, now: Instant) {
        if let Some(end) = self.upload.take().and_then(|upload| upload.ended()) {
            self.leave_out_upload(Some(end));
        }
        if let Some(request) = &mut self.request {
            self.live.machines().ewma.on_answer(request, now);
        }
    }

    /// The request waits in a queue of our own until [`Self::on_sent`]: that is not the endpoint's
    /// time.
    pub fn on_queued(&mut self) {
        if let Some(request) = &mut self.request {
            self.live.machines().ewma.on_queued(request);
        }
    }

    /// The request has left the queue.
    pub fn on_sent(&mut self, now: Instant) {
        if let Some(request) = &mut self.request {
            self.live.machines().ewma.on_sent(request, now);
        }
    }

    /// Tells of the request's body: while its caller sends it, the endpoint is not waited for.
    pub fn on_upload(&mut self, upload: Option<&Upload>) {
        self.upload = upload.cloned();
    }

    /// Leaves out the time before all of the body was there, or all of it while there is more.
    fn leave_out_upload(&mut self, end: Option<Instant>) {
        if let Some(request) = &mut self.request
            && end.is_none_or(|end| request.waits_since() < Some(end))
        {
            let mut machines = self.live.machines();
            machines.ewma.on_queued(request);
            if let Some(end) = end {
                machines.ewma.on_sent(request, end);
            }
        }
    }

    /// Keeps requests away for as long as the answer said.
    pub fn hold_open(&self, wait: Duration, now: Instant) {
        let mut machines = self.live.machines();
        if let (Some(breaker), Some(permit)) = (&mut machines.breaker, &self.permit) {
            let _transition = breaker.hold_open(permit, wait, now);
        }
    }

    /// What a failure of the call was. One that nobody names has not come as far as a request.
    pub fn on_failure(&mut self, failure: Failure) {
        self.failure = Some(failure);
    }

    /// Ends the call with what came of it; says when that changed the breaker's state.
    pub fn finish(mut self, class: CallClass, now: Instant) -> Option<Transition> {
        self.end(class, now)
    }

    fn end(&mut self, class: CallClass, now: Instant) -> Option<Transition> {
        let request = self.request.take()?;
        let latency = request.waited(now);
        let mut machines = self.live.machines();
        let failed = matches!(class, CallClass::Failure);
        if self.failure.is_some_and(Failure::is_quota) && !failed {
            machines.ewma.on_quota(request, self.route, now);
        } else if class == CallClass::Neutral {
            machines.ewma.on_cancel(request, now);
        } else {
            machines.ewma.on_finish(request, failed, now);
        }
        if failed {
            let failure = self.failure.unwrap_or(Failure::ConnectFailed);
            machines.recent.note(failure);
        }
        // Switched off meanwhile: there is nothing to tell.
        let permit = self.permit.take().zip(machines.breaker.as_mut());
        permit.and_then(|(permit, breaker)| {
            let outcome = CallOutcome { class, latency };
            breaker.on_result(permit, outcome, now, fastrand::u64(..))
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.request.is_some() {
            if let Some(upload) = self.upload.take() {
                self.leave_out_upload(upload.ended());
            }
            self.end(CallClass::Neutral, crate::clock::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Direction, HttpKey, Metrics};
    use weft_core::health::{Check, HealthCheck, InitialState};

    fn live(policy: &TrafficPolicy) -> Live {
        let key = HttpKey {
            direction: Direction::Outbound,
            service: "shop/web".into(),
            peer: "".into(),
        };
        Live::new(Metrics::new(10).http(key), policy)
    }

    /// A policy with checks, and with a breaker that calls open or without.
    fn checked(breaker: bool, change: impl Fn(&mut HealthCheck)) -> TrafficPolicy {
        let mut check = HealthCheck::new(Check::Tcp);
        change(&mut check);
        let mut policy = TrafficPolicy {
            health_check: Some(Arc::new(check)),
            ..TrafficPolicy::default()
        };
        if !breaker {
            policy.breaker = None;
        }
        policy
    }

    fn is_unhealthy(live: &Live) -> bool {
        matches!(
            live.standing(crate::clock::now()),
            Standing::Unhealthy { .. }
        )
    }

    fn is_available(live: &Live) -> bool {
        live.standing(crate::clock::now()) == Standing::Available
    }

    fn fail(live: &Live) {
        for _ in 0..3 {
            live.on_check(Err(CheckFailure::Timeout), crate::clock::now());
        }
    }

    #[test]
    fn what_checks_found_outlives_every_policy_with_checks() {
        for (before, after) in [(true, false), (false, true), (false, false), (true, true)] {
            let live = live(&checked(before, |_| {}));
            assert!(is_available(&live) && live.check_due().is_some());
            fail(&live);
            assert!(is_unhealthy(&live) && !is_available(&live));
            live.follow(&checked(after, |check| check.interval *= 2));
            assert!(is_unhealthy(&live), "{before} {after}");
            live.on_check(Ok(()), crate::clock::now());
            assert!(is_available(&live));
        }
    }

    #[test]
    fn without_checks_nothing_of_them_is_left() {
        for breaker in [true, false] {
            let live = live(&checked(breaker, |_| {}));
            fail(&live);
            let mut policy = checked(breaker, |_| {});
            policy.health_check = None;
            live.follow(&policy);
            assert!(!is_unhealthy(&live) && is_available(&live));
            assert_eq!(live.check_due(), None);
            assert_eq!(live.breaker(crate::clock::now()).is_some(), breaker);
            // A check that was under way ends in nothing.
            fail(&live);
            assert!(!is_unhealthy(&live));
        }
    }

    #[test]
    fn one_may_have_to_pass_a_check_first() {
        let first = |check: &mut HealthCheck| check.initial = InitialState::Unhealthy;
        let live = live(&checked(false, first));
        assert!(is_unhealthy(&live));
        live.on_check(Ok(()), crate::clock::now());
        assert!(is_available(&live));
    }
}
