//! What sidecars tell of their breakers, wire to domain and back.

use std::time::Duration;

use weft_core::breaker::StateView;
use weft_core::interception::InterceptionReport;
use weft_core::model::ObservedBreaker;

use crate::convert::{Rejection, name, parse, port};
use crate::registry;

/// Longest cause, characters.
const CAUSE_MAX: usize = 200;
/// Longest time since a change of state, and until the next probe: a year. Longer ones are cut.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Longest name of a rule, NAMESPACE/ROUTE/RULE, bytes: a DNS label and two subdomains.
const RULE_MAX: usize = 63 + 1 + 253 + 1 + 253;

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
            route: (!wire.route.is_empty()).then(|| wire.route.chars().take(RULE_MAX).collect()),
            state,
            since: time(wire.since),
            cause: wire.cause.chars().take(CAUSE_MAX).collect(),
            next_probe: wire.next_probe.map(time),
        })
    }
}

impl From<Option<InterceptionReport>> for registry::InterceptionState {
    fn from(standing: Option<InterceptionReport>) -> Self {
        match standing {
            None => Self::Unspecified,
            Some(InterceptionReport::InForce) => Self::InForce,
            Some(InterceptionReport::Lapsed) => Self::Lapsed,
        }
    }
}

/// What a sidecar tells of interception; nothing of what a newer one might tell.
pub fn interception(observed: &registry::Observed) -> Option<InterceptionReport> {
    match observed.interception() {
        registry::InterceptionState::Unspecified => None,
        registry::InterceptionState::InForce => Some(InterceptionReport::InForce),
        registry::InterceptionState::Lapsed => Some(InterceptionReport::Lapsed),
    }
}

/// A time from the wire, bounded by [`TIME_MAX`].
fn time(millis: u64) -> Duration {
    Duration::from_millis(millis).min(TIME_MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interception_comes_back_as_it_was_and_what_is_unknown_is_nothing() {
        let wire = |state: i32| registry::Observed {
            interception: state,
            ..registry::Observed::default()
        };
        for standing in [
            None,
            Some(InterceptionReport::InForce),
            Some(InterceptionReport::Lapsed),
        ] {
            let state = registry::InterceptionState::from(standing);
            assert_eq!(interception(&wire(state.into())), standing);
        }
        assert_eq!(interception(&wire(77)), None);
    }

    #[test]
    fn times_are_bounded() {
        let wire = registry::ObservedBreaker {
            service: "shop/web".to_owned(),
            port: 80,
            state: "open".to_owned(),
            since: u64::MAX,
            next_probe: Some(u64::MAX),
            ..registry::ObservedBreaker::default()
        };
        let read = ObservedBreaker::try_from(wire).unwrap();
        assert_eq!((read.since, read.next_probe), (TIME_MAX, Some(TIME_MAX)));
    }

    #[test]
    fn the_longest_name_of_a_rule_is_kept_whole() {
        let (label, subdomain) = ("n".repeat(63), "a.b".repeat(84) + "a");
        let longest = format!("{label}/{subdomain}/{subdomain}");
        assert_eq!(longest.len(), RULE_MAX);
        let wire = |route: &str| registry::ObservedBreaker {
            service: "shop/web".to_owned(),
            port: 80,
            state: "open".to_owned(),
            route: route.to_owned(),
            ..registry::ObservedBreaker::default()
        };
        let read = |route: &str| ObservedBreaker::try_from(wire(route)).unwrap().route;
        assert_eq!(read(&longest).as_ref(), Some(&longest));
        assert_eq!(read(&format!("{longest}x")).as_ref(), Some(&longest));
        assert_eq!(read(""), None);
    }
}
