//! What keeps requests away from endpoints, and from zones.

use weft_core::balance::{Capacity, zone_share};
use weft_core::policy::BreakerMode;
use weft_core::time::Instant;

use crate::mesh::{Endpoint, PortView};

/// What keeps requests away from an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heed {
    /// Its breaker, whatever opened it.
    All,
    /// Only what health checks say.
    Checks,
    /// Nothing.
    Nothing,
}

impl Heed {
    pub(super) fn excludes(self, endpoint: &Endpoint, now: Instant) -> bool {
        match self {
            Self::All => !endpoint.live.is_available(now),
            Self::Checks => endpoint.live.is_unhealthy(),
            Self::Nothing => false,
        }
    }
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Anywhere,
    /// To this zone.
    In(&'a str),
    /// To any zone but this one.
    OutOf(&'a str),
}

impl Place<'_> {
    pub(super) fn excludes(self, zone: &str) -> bool {
        match self {
            Self::Anywhere => false,
            Self::In(own) => own != zone,
            Self::OutOf(own) => own == zone,
        }
    }
}

/// Whether this request stays in the caller's zone or makes room there for others.
pub(super) fn place_of<'a>(port: &PortView, zone: &'a str, heed: Heed, now: Instant) -> Place<'a> {
    if !port.policy.prefer_zone || zone.is_empty() {
        return Place::Anywhere;
    }
    let (mut own, mut others) = (Capacity::default(), Capacity::default());
    for endpoint in &port.endpoints {
        let side = if endpoint.model.zone == zone {
            &mut own
        } else {
            &mut others
        };
        side.add(endpoint.model.weight, !heed.excludes(endpoint, now));
    }
    if fastrand::f64() < zone_share(own, others) {
        Place::In(zone)
    } else {
        Place::OutOf(zone)
    }
}

/// What is heeded now: nothing, where so many endpoints are out that the policy wants it so.
pub(super) fn heed_of(port: &PortView, now: Instant) -> Heed {
    let policy = &port.policy;
    let heed = match policy.breaker_mode {
        BreakerMode::Observe if policy.health_check.is_none() => return Heed::Nothing,
        BreakerMode::Observe => Heed::Checks,
        BreakerMode::Enforce | BreakerMode::ForceOpen => Heed::All,
    };
    // Of all but the last, which is the default, needs no counting: where nothing is left, one is
    // tried all the same.
    if !policy.counts_ejected() {
        return heed;
    }
    let endpoints = port.endpoints.iter();
    let out = endpoints.filter(|endpoint| heed.excludes(endpoint, now));
    if policy.disregards(port.endpoints.len(), out.count()) {
        Heed::Nothing
    } else {
        heed
    }
}

#[cfg(test)]
mod tests;
