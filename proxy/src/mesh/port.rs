//! One port of a service: what the control plane said of it, and live state that outlives every
//! change of that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use weft_core::balance::hash::Table;
use weft_core::breaker::{
    Breaker, BreakerConfig, CallClass, CallOutcome, Permit, Rejected, Transition, View,
};
use weft_core::limit::{Limit, UNLIMITED};
use weft_core::model::{AppProtocol, ServicePort};
use weft_core::name::ServiceName;
use weft_core::policy::TrafficPolicy;
use weft_core::retry::RetryBudget;
use weft_core::route::{Route, RouteTable};
use weft_core::time::Instant;

use super::concurrency::Concurrency;
use super::endpoint::Endpoint;
use super::gate::{Admitted, Full, Gate};
use crate::config::ProxyConfig;

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
    /// Who serves it.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How it is treated.
    pub policy: Arc<TrafficPolicy>,
    /// Where requests go; `None`: to the endpoints, all of them.
    pub routes: Option<Arc<RouteTable>>,
    /// What requests with a key are picked by, made when the first comes.
    table: OnceLock<Option<Table>>,
    state: Arc<State>,
}

/// What has been seen of a port.
#[derive(Debug)]
struct State {
    /// Counts picks, for round robin.
    turn: AtomicU64,
    requests: Arc<Gate>,
    retries: Limit,
    connections: Limit,
    budget: Mutex<RetryBudget>,
    /// Where the policy has one for the whole port.
    breaker: Mutex<Option<Breaker>>,
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
            budget: Mutex::default(),
            breaker: Mutex::default(),
            adaptive: ArcSwapOption::empty(),
        }
    }
}

/// Something that is counted within a limit of a port, until it is dropped.
#[derive(Debug)]
pub struct Counted {
    state: Arc<State>,
    limit: fn(&State) -> &Limit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.limit)(&self.state).release();
    }
}

/// A request that the port's own breaker waits to hear of. Dropped, it says nothing.
#[derive(Debug)]
pub struct PortCall {
    state: Arc<State>,
    permit: Option<Permit>,
    began: Instant,
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
            endpoints,
            policy,
            table: OnceLock::new(),
            state,
        }
    }

    /// The retry budget of all callers of this port through this sidecar.
    pub fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        let budget = self.state.budget.lock();
        budget.unwrap_or_else(PoisonError::into_inner)
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
        self.count(|state| &state.retries)
    }

    /// A place among the opaque and upgraded connections; `None` when the limit is reached.
    pub fn admit_connection(&self) -> Option<Counted> {
        self.count(|state| &state.connections)
    }

    fn count(&self, limit: fn(&State) -> &Limit) -> Option<Counted> {
        limit(&self.state).try_acquire().then(|| Counted {
            state: Arc::clone(&self.state),
            limit,
        })
    }

    /// How long connecting to one of its endpoints may take.
    pub fn connect_timeout(&self, config: &ProxyConfig) -> Duration {
        let own = self.policy.connect_timeout;
        own.unwrap_or(config.timeouts.connect)
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
            permit,
            began: now,
        }))
    }

    /// The port's own breaker, for people; `None` where it has none.
    pub fn breaker(&self, now: Instant) -> Option<View> {
        let breaker = self.state.breaker();
        breaker.as_ref().map(|breaker| breaker.view(now))
    }

    /// What is left of it when the service is gone.
    pub fn without_endpoints(&self) -> Self {
        Self {
            service: self.service.clone(),
            port: self.port,
            hostname: Arc::clone(&self.hostname),
            protocol: self.protocol,
            endpoints: Vec::new(),
            policy: Arc::clone(&self.policy),
            routes: self.routes.clone(),
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
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.set(policy.budget.ratio, policy.budget.minimum_per_second);
        follow(&mut self.breaker(), policy.service_breaker.as_ref());
        let before = self.adaptive.load_full();
        let adaptive = policy.adaptive.as_ref();
        let adaptive = adaptive.map(|config| Concurrency::follow(before.as_ref(), config));
        self.adaptive.store(adaptive);
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
    /// Ends the request with what came of it; says when that changed the breaker's state.
    pub fn finish(mut self, class: CallClass, now: Instant) -> Option<Transition> {
        let latency = now.saturating_since(self.began);
        let permit = self.permit.take()?;
        // Switched off meanwhile: there is nothing to tell.
        let mut breaker = self.state.breaker();
        let outcome = CallOutcome { class, latency };
        let random = fastrand::u64(..);
        breaker.as_mut()?.on_result(permit, outcome, now, random)
    }
}

impl Drop for PortCall {
    fn drop(&mut self) {
        if let (Some(permit), Some(breaker)) = (self.permit.take(), &mut *self.state.breaker()) {
            breaker.on_cancel(permit);
        }
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
