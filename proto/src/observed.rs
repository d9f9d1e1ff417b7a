//! What sidecars tell of their breakers, wire to domain and back.

use std::time::Duration;

use weft_core::breaker::StateView;
use weft_core::model::ObservedBreaker;

use crate::convert::{Rejection, name, parse, port};
use crate::registry;

/// Longest cause and longest name of a rule, characters.
const TEXT_MAX: usize = 200;

impl From<&ObservedBreaker> for registry::ObservedBreaker {
    fn from(breaker: &ObservedBreaker) -> Self {
        let (workload, address) = match &breaker.endpoint {
            Some((workload, address)) => (workload.to_string(), address.to_string()),
            None => (String::new(), String::new()),
        };
        Self {
            service: breaker.service.to_string(),
            port: breaker.port.into(),
            workload,
            address,
            state: breaker.state.as_str().to_owned(),
            since: millis(breaker.since),
            cause: breaker.cause.clone(),
            next_probe: breaker.next_probe.map(millis),
            route: breaker.route.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<registry::ObservedBreaker> for ObservedBreaker {
    type Error = Rejection;

    fn try_from(wire: registry::ObservedBreaker) -> Result<Self, Rejection> {
        let endpoint = match wire.workload.as_str() {
            "" => None,
            workload => {
                let allowed = "an address ADDRESS:PORT";
                Some((
                    name("breakers.workload", workload.parse())?,
                    parse("breakers.address", &wire.address, allowed)?,
                ))
            }
        };
        let state = StateView::parse(&wire.state).ok_or_else(|| Rejection::Value {
            field: "breakers.state",
            found: wire.state.clone(),
            allowed: "closed, open or half-open",
        })?;
        Ok(Self {
            service: name("breakers.service", wire.service.parse())?,
            port: port("breakers.port", wire.port)?,
            endpoint,
            route: (!wire.route.is_empty()).then(|| wire.route.chars().take(TEXT_MAX).collect()),
            state,
            since: Duration::from_millis(wire.since),
            cause: wire.cause.chars().take(TEXT_MAX).collect(),
            next_probe: wire.next_probe.map(Duration::from_millis),
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
