//! Health checks, and what happens where too many endpoints are out.

use std::net::SocketAddr;

use weft_core::breaker::{Standing, StateView};
use weft_core::choice::Guard;
use weft_core::health::{Check, HealthCheck};
use weft_core::model::{ObservedBreaker, Service};
use weft_core::policy::{BreakerMode, TrafficPolicy};
use weft_core::time::Instant;

use super::{Known, Steps};

/// How the endpoints of a port are checked, and whether it is heeded that some are out.
pub(super) fn explain(
    known: Known<'_>,
    (service, port): (&Service, u16),
    policy: &TrafficPolicy,
    by: &str,
    steps: &mut Steps,
) {
    if let Some(check) = &policy.health_check {
        steps.add("health", by, text(check));
    }
    let endpoints = service.endpoints.iter();
    let addresses = endpoints.filter_map(|endpoint| endpoint.address_for(port));
    let addresses: Vec<SocketAddr> = addresses.collect();
    let standings = addresses.iter().map(|address| {
        let breaker = known.breakers.iter().find(|breaker| {
            let endpoint = breaker.endpoint.as_ref();
            breaker.service == service.name
                && breaker.port == port
                && breaker.state == StateView::Open
                && endpoint.is_some_and(|(_, found)| found == address)
        });
        standing(breaker)
    });
    let standings: Vec<Standing> = standings.collect();
    let total = standings.len();
    let out = standings.iter().filter(|s| **s != Standing::Available);
    let out = out.count();
    if out == 0 || policy.breaker_mode == BreakerMode::Observe {
        return;
    }
    match Guard::of(policy, total, |index| standings[index]) {
        Guard::Disregarded => {
            let result = format!(
                "{out} of {total} are out, more than loadBalancer.panicThreshold {} and \
                 circuitBreaker.maxEjectedShare {} bear: any is picked",
                policy.panic_threshold, policy.max_ejected_share
            );
            steps.add("endpoint", by, result);
        }
        Guard::All | Guard::Checks if out == total => {
            let result = format!("all {total} are out: any is picked");
            steps.add("endpoint", by, result);
        }
        Guard::All | Guard::Checks => {}
        guard @ Guard::First { .. } => {
            let back = (0..total).filter(|index| {
                let standing = standings[*index];
                standing != Standing::Available && !guard.excludes(*index, standing)
            });
            let back: Vec<String> = back.map(|index| addresses[index].to_string()).collect();
            let result = format!(
                "{out} of {total} are out, more than circuitBreaker.maxEjectedShare {} bears: \
                 those that went out last are picked all the same, {}",
                policy.max_ejected_share,
                back.join(", ")
            );
            steps.add("endpoint", by, result);
        }
    }
}

/// Times of observed breakers count from here backwards.
const OBSERVED: Instant = Instant::from_nanos(u64::MAX / 2);

fn standing(open: Option<&ObservedBreaker>) -> Standing {
    open.map_or(Standing::Available, |breaker| Standing::Open {
        since: OBSERVED - breaker.since,
    })
}

fn text(config: &HealthCheck) -> String {
    let what = match &config.check {
        Check::Http(http) => {
            let ranges = http.statuses.iter();
            let ranges = ranges.map(|(from, to)| match from == to {
                true => from.to_string(),
                false => format!("{from}-{to}"),
            });
            let ranges: Vec<String> = ranges.collect();
            format!("GET {} expects {}", http.path, ranges.join(", "))
        }
        Check::Grpc { service } if service.is_empty() => "gRPC health of the server".to_owned(),
        Check::Grpc { service } => format!("gRPC health of {service}"),
        Check::Tcp => "a connection".to_owned(),
    };
    format!(
        "{what}, every {:?}, in {:?}; out after {} failures, back after {} successes; {} at first",
        config.interval,
        config.timeout,
        config.unhealthy_threshold,
        config.healthy_threshold,
        config.initial.as_str(),
    )
}
