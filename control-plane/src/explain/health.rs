//! Health checks, and what happens where too many endpoints are out.

use weft_core::breaker::StateView;
use weft_core::health::{Check, HealthCheck};
use weft_core::model::Service;
use weft_core::policy::TrafficPolicy;

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
    let is_out = |address: &std::net::SocketAddr| {
        known.breakers.iter().any(|breaker| {
            let endpoint = breaker.endpoint.as_ref();
            breaker.service == service.name
                && breaker.port == port
                && breaker.state == StateView::Open
                && endpoint.is_some_and(|(_, found)| found == address)
        })
    };
    let out = addresses.clone().filter(is_out).count();
    let total = addresses.count();
    if policy.disregards(total, out) {
        let result = format!(
            "{out} of {total} are out, more than loadBalancer.panicThreshold {} and \
             circuitBreaker.maxEjectedShare {} bear: any is picked",
            policy.panic_threshold, policy.max_ejected_share
        );
        steps.add("endpoint", by, result);
    }
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
