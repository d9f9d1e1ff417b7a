//! The endpoint of a request, and the call that begins there. Core chooses; here is what it asks.

use std::sync::Arc;

use ::http::HeaderMap;
use ::http::request::Parts;
use weft_core::balance::hash::HashOn;
use weft_core::balance::{Candidates, slow_start_share};
use weft_core::breaker::Standing;
use weft_core::choice::{Endpoints, Terms, choose};
use weft_core::policy::TrafficPolicy;
use weft_core::reason::Reason;
use weft_core::route::Rule;
use weft_core::time::Instant;

use crate::mesh::{Call, Endpoint, EndpointKey, PortView};
use crate::worker::Worker;

/// Choices of a request whose endpoint refused after all: another thread took the last probe.
const CHOICES_MAX: u32 = 4;

/// What a request is balanced by, beside the endpoints' own state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// The hash of its key, where it has one.
    pub(crate) key: Option<u64>,
    /// Where the caller is; empty when unknown.
    pub(crate) zone: &'a str,
    /// The rule that it came by ([`rule_id`]); 0 for none.
    pub(crate) route: u64,
}

impl<'a> Wish<'a> {
    /// What a request is balanced by; one without a key may go anywhere.
    pub(crate) fn of(worker: &'a Worker, policy: &TrafficPolicy, parts: &Parts) -> Self {
        let mesh = &worker.shared.mesh;
        let hash_on = policy.hash_on.as_ref();
        let key = |on: &HashOn| on.key(&parts.headers, parts.uri.query(), mesh.source());
        Self {
            key: hash_on.and_then(key),
            zone: mesh.zone(),
            route: 0,
        }
    }

    /// What a connection of opaque bytes is balanced by.
    pub(crate) fn of_connection(worker: &'a Worker, port: &PortView) -> Self {
        let mesh = &worker.shared.mesh;
        let hash_on = port.policy.hash_on.as_ref();
        Self {
            key: hash_on.and_then(|on| on.key(&HeaderMap::new(), None, mesh.source())),
            zone: mesh.zone(),
            route: 0,
        }
    }
}

/// What identifies a rule as long as its route is unchanged: longer than a quota is remembered
/// nothing needs it.
pub(super) fn rule_id(rule: &Rule) -> u64 {
    std::ptr::from_ref(rule).addr() as u64
}

/// Endpoints that a request keeps away from, as long as another one is well.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Avoid<'a> {
    /// Those that it was sent to already.
    pub(crate) tried: &'a [EndpointKey],
    /// Those that the limit on connections leaves no way to.
    pub(crate) unreachable: &'a [EndpointKey],
}

/// Chooses an endpoint as the port's policy says, and begins a call on it.
///
/// # Errors
///
/// When the port has no endpoint.
pub(crate) fn pick(
    port: &PortView,
    avoid: Avoid<'_>,
    wish: Wish<'_>,
) -> Result<(Arc<Endpoint>, Call), Reason> {
    if port.endpoints.is_empty() {
        return Err(Reason::NoEndpoints);
    }
    begin(port, avoid, wish, (port.next_turn(), true)).ok_or(Reason::NoEndpoints)
}

/// Chooses an endpoint for an attempt beside another one, and begins a call on it; `None` where none
/// is well.
pub(crate) fn pick_beside(
    port: &PortView,
    avoid: Avoid<'_>,
    wish: Wish<'_>,
) -> Option<(Arc<Endpoint>, Call)> {
    // Not the next one's turn: requests that are slow would always meet the same endpoint.
    begin(port, avoid, wish, (fastrand::u64(..), false))
}

fn begin(
    port: &PortView,
    avoid: Avoid<'_>,
    wish: Wish<'_>,
    (turn, last_resort): (u64, bool),
) -> Option<(Arc<Endpoint>, Call)> {
    let now = crate::clock::now();
    let view = View {
        port,
        avoid,
        route: wish.route,
        now,
    };
    for left in (0..CHOICES_MAX).rev() {
        let terms = Terms {
            policy: &port.policy,
            key: wish.key.zip(port.table()),
            zone: wish.zone,
            random: fastrand::u64(..),
            turn,
            last_resort,
        };
        let choice = choose(&view, &terms)?;
        let endpoint = &port.endpoints[choice.index];
        let call = match endpoint.live.begin(wish.route, now) {
            Ok(call) => call,
            Err(_open) if choice.past_breaker || (left == 0 && last_resort) => {
                endpoint.live.begin_forced(wish.route, now)
            }
            Err(_open) => continue,
        };
        return Some((Arc::clone(endpoint), call));
    }
    None
}

/// A port's endpoints for one request.
struct View<'a> {
    port: &'a PortView,
    avoid: Avoid<'a>,
    route: u64,
    now: Instant,
}

impl Candidates for View<'_> {
    fn count(&self) -> usize {
        self.port.endpoints.len()
    }

    fn score(&self, index: usize) -> f64 {
        self.port.endpoints[index].live.score(self.now)
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.port.endpoints[index].live.in_flight()
    }

    fn bias(&self, index: usize) -> f64 {
        self.port.endpoints[index].live.bias(self.route, self.now)
    }

    fn weight(&self, index: usize) -> u32 {
        // Finer, so that one of weight 1 starts slowly too.
        const FINER: f64 = 10.0;
        let endpoint = &self.port.endpoints[index];
        let weight = endpoint.model.weight;
        let Some(time) = self.port.policy.slow_start else {
            return weight;
        };
        let share = slow_start_share(endpoint.live.age(self.now), time);
        let weight = f64::from(weight) * FINER * share;
        weight.round().max(1.0) as u32
    }

    fn heaviest(&self) -> Option<u32> {
        self.port.heaviest(self.now)
    }
}

impl Endpoints for View<'_> {
    fn standing(&self, index: usize) -> Standing {
        self.port.endpoints[index].live.standing(self.now)
    }

    fn is_tried(&self, index: usize) -> bool {
        self.avoid.tried.contains(&self.port.endpoints[index].key)
    }

    fn is_reachable(&self, index: usize) -> bool {
        let unreachable = self.avoid.unreachable;
        !unreachable.contains(&self.port.endpoints[index].key)
    }

    fn zone(&self, index: usize) -> &str {
        &self.port.endpoints[index].model.zone
    }

    fn tier(&self, index: usize) -> u8 {
        self.port.tiers.of(index)
    }

    fn farthest(&self) -> u8 {
        self.port.tiers.farthest()
    }
}

#[cfg(test)]
mod tests;
