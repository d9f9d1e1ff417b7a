//! One port of a service: what the control plane said of it, and live state that outlives every
//! change of that.

mod counted;
mod tiers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use weft_core::balance::hash::Table;
use weft_core::breaker::{
    Breaker, BreakerConfig, CallClass, CallOutcome, Permit, Rejected, Transition, View,
};
use weft_core::hedge::Latencies;
use weft_core::limit::{Limit, UNLIMITED};
use weft_core::model::{AppProtocol, ServicePort};
use weft_core::name::ServiceName;
use weft_core::policy::{BreakerMode, TrafficPolicy};
use weft_core::retry::RetryBudget;
use weft_core::route::{Found, Route, RouteTable, RuleKey};
use weft_core::time::Instant;

use counted::count;
pub use counted::{ConnectionLimit, Counted};
pub use tiers::Tiers;

use super::concurrency::Concurrency;
use super::endpoint::Endpoint;
use super::gate::{Admitted, Full, Gate};
use super::outside::Outside;
use crate::config::ProxyConfig;
use crate::http::Upload;

/// Rules that have a breaker of their own at a port.
const RULES_MAX: usize = 1000;

/// One port of a service with everybody who serves it.
#[derive(Debug)]
pub struct PortView {
    /// The service.
    pub service: ServiceName,
    /// The port.
    pub port: u16,
    /// SNI towards its endpoints.
    pub hostname: Arc<str>,
    /// What is spoken there.
    pub protocol: AppProtocol,
    /// Who serves it, as far as its callers here may go.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How near they are.
    pub tiers: Tiers,
    /// How it is treated.
    pub policy: Arc<TrafficPolicy>,
    /// Where requests go; `None`: to the endpoints, all of them.
    pub routes: Option<Arc<RouteTable>>,
    weights: Weights,
    /// How it is reached, where it is outside the mesh.
    pub outside: Option<Arc<Outside>>,
    /// Why none of the names of its endpoints has an address, where that is known.
    pub unresolved: Option<Arc<str>>,
    /// What requests with a key are picked by, made when the first comes.
    table: OnceLock<Option<Table>>,
    state: Arc<State>,
}

/// What is known of the endpoints' weights without looking at all of them.
#[derive(Debug, Clone, Copy, Default)]
struct Weights {
    /// The largest.
    heaviest: u32,
    /// Whether all are the same.
    same: bool,
    /// When the newest endpoint was first seen.
    newest: Instant,
}

impl Weights {
    fn of(endpoints: &[Arc<Endpoint>]) -> Self {
        let weights = endpoints.iter().map(|endpoint| endpoint.model.weight);
        let heaviest = weights.clone().max().unwrap_or_default();
        let born = endpoints.iter().map(|endpoint| endpoint.live.born());
        Self {
            heaviest,
            same: { weights }.all(|weight| weight == heaviest),
            newest: born.max().unwrap_or_default(),
        }
    }
}

/// What has been seen of a port.
#[derive(Debug)]
struct State {
    /// Counts picks, for round robin.
    turn: AtomicU64,
    requests: Arc<Gate>,
    retries: Limit,
    connections: Limit,
    /// Tells one of those that wait for a connection that another may be made.
    connections_changed: Notify,
    budget: Mutex<RetryBudget>,
    /// Where the policy hedges by them.
    latencies: Mutex<Option<Latencies>>,
    /// Where the policy has one for the whole port.
    breaker: Mutex<Option<Breaker>>,
    /// Where the policy has one for each rule: of the rules that requests came by.
    by_rule: Mutex<HashMap<RuleKey, Breaker>>,
    /// Where the policy has one that follows how long answers take.
    adaptive: ArcSwapOption<Concurrency>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            turn: AtomicU64::default(),
            requests: Arc::default(),
            retries: Limit::new(UNLIMITED),
            connections: Limit::new(UNLIMITED),
            connections_changed: Notify::new(),
            budget: Mutex::default(),
            latencies: Mutex::default(),
            breaker: Mutex::default(),
            by_rule: Mutex::default(),
            adaptive: ArcSwapOption::empty(),
        }
    }
}

/// A request that a breaker of the port waits to hear of. Dropped, it was given up by its caller.
#[derive(Debug)]
pub struct PortCall {
    state: Arc<State>,
    /// The rule whose breaker it is; `None` for the one of the whole port.
    rule: Option<RuleKey>,
    permit: Option<Permit>,
    /// When an endpoint was first asked; `None` while it waits for our own limits.
    asked: Option<Instant>,
    upload: Option<Upload>,
    answered: Option<Instant>,
}

impl PortView {
    /// A port as it stands now; what was seen of it before stays.
    pub(super) fn new(
        (service, hostname): (ServiceName, Arc<str>),
        port: &ServicePort,
        endpoints: Vec<Arc<Endpoint>>,
        policy: Arc<TrafficPolicy>,
        routes: Vec<Arc<Route>>,
        previous: Option<&Arc<Self>>,
    ) -> Self {
        let state = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.state));
        state.follow(&policy);
        Self {
            routes: table(routes, previous.and_then(|port| port.routes.as_ref())),
            service,
            port: port.port,
            hostname,
            protocol: port.protocol,
            weights: Weights::of(&endpoints),
            endpoints,
            tiers: Tiers::default(),
            policy,
            outside: None,
            unresolved: None,
            table: OnceLock::new(),
            state,
        }
    }

    /// The retry budget of all callers of this port through this sidecar.
    pub fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        let budget = self.state.budget.lock();
        budget.unwrap_or_else(PoisonError::into_inner)
    }

    /// The latencies of recent requests; `None` where nobody asks for them.
    pub fn latencies(&self) -> MutexGuard<'_, Option<Latencies>> {
        self.state.latencies()
    }

    /// Why it has no endpoint, for people.
    pub fn nobody(&self) -> String {
        let port = format!("{}:{}", self.service, self.port);
        match &self.tiers.left_out {
            Some((node, many)) if self.endpoints.is_empty() => {
                let here = match node.as_str() {
                    "" => "the caller is on no node of the cluster".to_owned(),
                    node => format!("none of its {many} endpoints is on the caller's node {node}"),
                };
                format!("{port}: internalTrafficPolicy is Local, and {here}")
            }
            Some(_) | None => port,
        }
    }

    /// Whether breakers keep requests away from the whole port.
    pub fn is_open(&self, now: Instant) -> bool {
        match self.policy.breaker_mode {
            BreakerMode::ForceOpen => true,
            BreakerMode::Observe => false,
            BreakerMode::Enforce => {
                let breaker = self.state.breaker();
                let breaker = breaker.as_ref();
                breaker.is_some_and(|breaker| !breaker.is_available(now))
            }
        }
    }

    /// A place among the requests of this sidecar to this port, at once or after those who came
    /// before.
    ///
    /// # Errors
    ///
    /// When the limit is reached and nobody may wait (any more).
    pub async fn admit(&self) -> Result<Admitted, Full> {
        // A limit counts what comes after it was set: without one, workers share nothing here.
        if self.policy.max_requests.is_none() {
            return Ok(Admitted::FREELY);
        }
        self.state.requests.enter().await
    }

    /// The limit that follows how long answers take; `None` where the policy has none.
    pub fn concurrency(&self) -> Option<Arc<Concurrency>> {
        // Most ports have none: that is known without looking further.
        self.policy.adaptive.as_ref()?;
        self.state.adaptive.load_full()
    }

    /// A place among the retries under way; `None` when the limit is reached.
    pub fn admit_retry(&self) -> Option<Counted> {
        count(&self.state, |state| &state.retries)
    }

    /// The limit on connections to it.
    pub fn connections(&self) -> ConnectionLimit {
        ConnectionLimit::of(&self.state)
    }

    /// How long connecting to one of its endpoints may take.
    pub fn connect_timeout(&self, config: &ProxyConfig) -> Duration {
        let own = self.policy.connect_timeout;
        own.unwrap_or(config.timeouts.connect)
    }

    /// What no endpoint's weight is above now; `None` where all have the same.
    pub fn heaviest(&self, now: Instant) -> Option<u32> {
        let Weights {
            heaviest,
            same,
            newest,
        } = self.weights;
        let slow_start = self.policy.slow_start;
        let grown = slow_start.is_none_or(|time| now.saturating_since(newest) >= time);
        (!same || !grown).then_some(heaviest)
    }

    /// Whether a connection still has this port, as it is now or as it was before: then it is in
    /// use, although nothing may have been asked for a long time.
    pub(super) fn is_held(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.state) > 1
    }

    /// The number of the next pick.
    pub fn next_turn(&self) -> u64 {
        self.state.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// What requests with a key are picked by, where the policy wants that.
    pub fn table(&self) -> Option<&Table> {
        let table = self.table.get_or_init(|| {
            let endpoints = self.endpoints.iter();
            let named = endpoints.map(|endpoint| (&*endpoint.key.instance, endpoint.model.weight));
            Table::new(self.policy.balancing, &named.collect::<Vec<_>>())
        });
        table.as_ref()
    }

    /// Begins a request that the port's own breaker hears of; `None` where it has none.
    ///
    /// # Errors
    ///
    /// When the breaker is open.
    pub fn begin(&self, now: Instant) -> Result<Option<PortCall>, Rejected> {
        // Most ports have none: that is known without a lock.
        if self.policy.service_breaker.is_none() {
            return Ok(None);
        }
        let mut breaker = self.state.breaker();
        let permit = breaker.as_mut().map(|breaker| breaker.try_acquire(now));
        let permit = permit.transpose()?;
        drop(breaker);
        Ok(Some(PortCall {
            state: Arc::clone(&self.state),
            rule: None,
            permit,
            asked: None,
            upload: None,
            answered: None,
        }))
    }

    /// Begins a request that came by a rule, whose own breaker hears of it; `None` where rules have
    /// none.
    ///
    /// # Errors
    ///
    /// When the breaker is open.
    pub fn begin_by(&self, found: &Found<'_>, now: Instant) -> Result<Option<PortCall>, Rejected> {
        let Some(config) = &self.policy.route_breaker else {
            return Ok(None);
        };
        let key = found.key();
        let mut by_rule = self.state.by_rule();
        if by_rule.len() >= RULES_MAX && !by_rule.contains_key(&key) {
            // Rules that are gone: what has never opened has nothing to remember.
            by_rule.retain(|_rule, breaker| breaker.view(now).since.is_some());
            if by_rule.len() >= RULES_MAX {
                return Ok(None);
            }
        }
        let breaker = by_rule.entry(key.clone());
        let breaker = breaker.or_insert_with(|| Breaker::new(config.clone()));
        let permit = breaker.try_acquire(now)?;
        drop(by_rule);
        Ok(Some(PortCall {
            state: Arc::clone(&self.state),
            rule: Some(key),
            permit: Some(permit),
            asked: None,
            upload: None,
            answered: None,
        }))
    }

    /// The port's own breaker, for people; `None` where it has none.
    pub fn breaker(&self, now: Instant) -> Option<View> {
        let breaker = self.state.breaker();
        breaker.as_ref().map(|breaker| breaker.view(now))
    }

    /// The breakers of rules, for people.
    pub fn breakers_by_rule(&self, now: Instant) -> Vec<(RuleKey, View)> {
        let by_rule = self.state.by_rule();
        let views = by_rule.iter();
        views
            .map(|(rule, breaker)| (rule.clone(), breaker.view(now)))
            .collect()
    }

    /// What is left of it when the service is gone.
    pub fn without_endpoints(&self) -> Self {
        Self {
            service: self.service.clone(),
            port: self.port,
            hostname: Arc::clone(&self.hostname),
            protocol: self.protocol,
            endpoints: Vec::new(),
            tiers: Tiers::default(),
            weights: Weights::default(),
            policy: Arc::clone(&self.policy),
            routes: self.routes.clone(),
            outside: self.outside.clone(),
            unresolved: None,
            table: OnceLock::new(),
            state: Arc::clone(&self.state),
        }
    }
}

impl State {
    /// Takes a policy's parameters; what was counted stays.
    fn follow(&self, policy: &TrafficPolicy) {
        self.requests.set(policy.max_requests, policy.max_pending);
        self.retries
            .set_max(policy.max_retries.unwrap_or(UNLIMITED));
        let connections = policy.max_connections.unwrap_or(UNLIMITED);
        self.connections.set_max(connections);
        self.connections_changed.notify_one();
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.set(policy.budget.ratio, policy.budget.minimum_per_second);
        follow(&mut self.breaker(), policy.service_breaker.as_ref());
        let learns = policy.hedge.as_ref().is_some_and(|hedge| hedge.learns());
        let mut latencies = self.latencies();
        if !learns {
            *latencies = None;
        } else if latencies.is_none() {
            *latencies = Some(Latencies::new(crate::clock::now()));
        }
        let before = self.adaptive.load_full();
        let adaptive = policy.adaptive.as_ref();
        let adaptive = adaptive.map(|config| Concurrency::follow(before.as_ref(), config));
        self.adaptive.store(adaptive);
        let mut by_rule = self.by_rule();
        match &policy.route_breaker {
            Some(config) => by_rule
                .values_mut()
                .filter(|breaker| breaker.config() != config)
                .for_each(|breaker| breaker.set_config(config.clone())),
            None => by_rule.clear(),
        }
    }

    fn latencies(&self) -> MutexGuard<'_, Option<Latencies>> {
        let latencies = self.latencies.lock();
        latencies.unwrap_or_else(PoisonError::into_inner)
    }

    fn by_rule(&self) -> MutexGuard<'_, HashMap<RuleKey, Breaker>> {
        self.by_rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a breaker, where it is still there.
    fn with_breaker<T>(
        &self,
        rule: Option<&RuleKey>,
        act: impl FnOnce(&mut Breaker) -> T,
    ) -> Option<T> {
        match rule {
            None => self.breaker().as_mut().map(act),
            Some(rule) => self.by_rule().get_mut(rule).map(act),
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Option<Breaker>> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Exchanges a breaker's parameters; its state and what it counted stay. One that is switched off
/// forgets both.
pub(super) fn follow(breaker: &mut Option<Breaker>, config: Option<&BreakerConfig>) {
    match (config, breaker) {
        (Some(config), Some(breaker)) if config == breaker.config() => {}
        (Some(config), Some(breaker)) => breaker.set_config(config.clone()),
        (Some(config), none @ None) => *none = Some(Breaker::new(config.clone())),
        (None, breaker) => *breaker = None,
    }
}

impl PortCall {
    /// An endpoint is asked from now on: until then the request has waited for our own limits. While
    /// its caller sends the body, the endpoint is not waited for.
    pub fn on_asked(&mut self, upload: Option<&Upload>, now: Instant) {
        self.asked.get_or_insert(now);
        self.upload = upload.cloned();
    }

    /// The response has begun: see [`super::Call::on_response`].
    pub fn on_response(&mut self, now: Instant) {
        self.answered = Some(now);
    }

    /// Ends the request with what came of it; says when that changed the breaker's state.
    pub fn finish(mut self, class: CallClass, now: Instant) -> Option<Transition> {
        self.end(class, now)
    }

    fn end(&mut self, class: CallClass, now: Instant) -> Option<Transition> {
        let permit = self.permit.take()?;
        let until = self.answered.unwrap_or(now);
        let latency = self.asked.map(|asked| until.saturating_since(asked));
        let latency = latency.unwrap_or_default();
        let outcome = CallOutcome { class, latency };
        let random = fastrand::u64(..);
        // Switched off meanwhile: there is nothing to tell.
        let told = self.state.with_breaker(self.rule.as_ref(), |breaker| {
            breaker.on_result(permit, outcome, now, random)
        });
        told.flatten()
    }
}

impl Drop for PortCall {
    fn drop(&mut self) {
        if self.answered.is_none()
            && let Some(upload) = &self.upload
        {
            let ended = upload.ended();
            self.asked = ended.and_then(|end| self.asked.max(Some(end)));
        }
        // Given up by the caller: how long the endpoints were waited for counts all the same.
        self.end(CallClass::Neutral, crate::clock::now());
    }
}

/// The table of these routes: the one before, where they are the same.
fn table(routes: Vec<Arc<Route>>, before: Option<&Arc<RouteTable>>) -> Option<Arc<RouteTable>> {
    if routes.is_empty() {
        return None;
    }
    let same = before.filter(|table| {
        let (old, new) = (table.routes().iter(), routes.iter());
        table.routes().len() == routes.len() && old.zip(new).all(|(old, new)| Arc::ptr_eq(old, new))
    });
    Some(same.map_or_else(|| Arc::new(RouteTable::new(routes)), Arc::clone))
}
