//! What becomes of a request at the port that it is sent to.

use std::sync::Arc;

use http::Method;
use weft_core::breaker::BreakerConfig;
use weft_core::model::{ObservedBreaker, Service};
use weft_core::policy::{BreakerMode, Fallback, TrafficPolicy};
use weft_core::reason::Reason;
use weft_core::route::{Backend, Rule};
use weft_core::terms::{self, Origin, Terms};

use super::routes::filter_text;
use super::{Known, Steps, adaptive, answered, external, health, words};
use crate::model::hedge_in_words;

/// Every backend that gets anything, with its share.
pub(super) fn explain_backends(known: Known<'_>, rule: &Rule, steps: &mut Steps) {
    let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    for backend in rule.backends.iter().filter(|backend| backend.weight > 0) {
        let share = f64::from(backend.weight) / total as f64 * 100.0;
        explain_backend(known, backend, share, rule, steps);
    }
}

fn explain_backend(
    known: Known<'_>,
    backend: &Backend,
    share: f64,
    rule: &Rule,
    steps: &mut Steps,
) {
    let by = "backendRefs";
    let Some(name) = &backend.service else {
        let result = answered(Reason::BackendNotFound, "see the route's status");
        steps.add("backend", by, format!("{share:.0} %: {result}"));
        return;
    };
    let result = format!("{share:.0} % go to {name}:{}", backend.port);
    steps.add("backend", by, result);
    for filter in &*backend.filters {
        steps.add("filter", by, filter_text(filter));
    }
    if let Some(service) = known.compiled.service(&name.to_string()) {
        explain_target(known, &service, backend.port, Some(rule), steps);
    }
}

/// The policy, endpoints, retries and timeouts of the port that a request is sent to.
pub(super) fn explain_target(
    known: Known<'_>,
    service: &Service,
    port: u16,
    rule: Option<&Rule>,
    steps: &mut Steps,
) {
    let in_force = known.world.policies_for(&service.name, port);
    let by = match in_force.first() {
        Some(entry) => {
            let name = &entry.name;
            format!("TrafficPolicy {}/{}", name.namespace, name.name)
        }
        None => "defaults".to_owned(),
    };
    let policy = service.policies.get(&port).map(Arc::clone);
    let policy = policy.unwrap_or_default();
    let why = match in_force.as_slice() {
        [] => "no TrafficPolicy is for it".to_owned(),
        [entry, others @ ..] => {
            let what = match entry.spec.target_ref.port {
                Some(port) => format!("for port {port}"),
                None => "for the whole service".to_owned(),
            };
            let others: Vec<&str> = others.iter().map(|other| &*other.name.name).collect();
            match others.as_slice() {
                [] => what,
                others => format!("{what}; it comes before {}", others.join(", ")),
            }
        }
    };
    steps.add("policy", &by, why);
    steps.add("balancing", &by, words::balancing(&policy));
    steps.add("breaker", &by, breaker_text(&policy));
    adaptive::explain_limits(&policy, &by, steps);
    explain_endpoints(known, service, port, policy.fallback.is_some(), steps);
    health::explain(known, (service, port), &policy, &by, steps);
    if let Some(text) = words::limits(&policy) {
        steps.add("limit", &by, text);
    }
    let question = terms::Kind {
        method: &steps.method,
        grpc: steps.grpc.as_deref(),
        upgrade: steps.method == Method::CONNECT,
    };
    // A sidecar's configuration may set other defaults: it is not known here.
    let terms = Terms::of(&policy, rule, question, &terms::Defaults::default());
    let own = |origin| match origin {
        Origin::Route => "the route",
        Origin::Policy | Origin::Sidecar | Origin::BuiltIn => &*by,
    };
    let retry = words::retries(terms.retry.value, &policy, &steps.method);
    let (retry_by, timeout_by) = (own(terms.retry.origin), {
        let by_route = [terms.request, terms.attempt].map(|limit| limit.origin);
        own(match by_route.contains(&Origin::Route) {
            true => Origin::Route,
            false => Origin::Policy,
        })
    });
    let timeouts = words::timeouts(&terms);
    let hedge = hedge_in_words(policy.hedge.as_ref());
    steps.add("retry", retry_by, retry);
    steps.add("hedge", &by, hedge);
    steps.add("timeout", timeout_by, timeouts);
}

/// Who serves a port, with the breakers that the caller's sidecar has told of.
fn explain_endpoints(
    known: Known<'_>,
    service: &Service,
    port: u16,
    fallback: bool,
    steps: &mut Steps,
) {
    let observed = known.breakers.iter();
    let observed = observed.filter(|b| b.service == service.name && b.port == port);
    for breaker in observed
        .clone()
        .filter(|breaker| breaker.endpoint.is_none())
    {
        let whose = match &breaker.route {
            None => "the whole port".to_owned(),
            Some(rule) => format!("the rule {rule}"),
        };
        let result = format!("of {whose}: {}", words::state(breaker));
        steps.add("breaker", "the caller's sidecar", result);
    }
    if let Some(external) = &service.external {
        let observed: Vec<&ObservedBreaker> = observed.collect();
        return external::explain_endpoints(service, external, port, &observed, steps);
    }
    let mut endpoints = 0;
    for endpoint in &service.endpoints {
        let Some(address) = endpoint.address_for(port) else {
            continue;
        };
        endpoints += 1;
        let of_address = |breaker: &&ObservedBreaker| {
            let found = breaker.endpoint.as_ref();
            found.is_some_and(|(_, found)| *found == address)
        };
        let state = match observed.clone().find(of_address) {
            Some(breaker) => words::state(breaker),
            None => "closed".to_owned(),
        };
        let result = format!("{} at {address}: breaker {state}", endpoint.workload);
        steps.add(
            "endpoint",
            format!("Workload {}", endpoint.workload),
            result,
        );
    }
    if endpoints == 0 {
        let result = match fallback {
            true => "none: the fallback answers".to_owned(),
            false => format!("none: {}", answered(Reason::NoEndpoints, "")),
        };
        steps.add("endpoint", "-", result);
    }
}

fn breaker_text(policy: &TrafficPolicy) -> String {
    let mode = match policy.breaker_mode {
        BreakerMode::Enforce => "",
        BreakerMode::Observe => "observed only; ",
        BreakerMode::ForceOpen => "forced open: nothing goes through; ",
    };
    let opens = |config: &BreakerConfig| {
        let in_a_row = config.consecutive_failures;
        let in_a_row = in_a_row.map(|n| format!("{n} failures in a row or "));
        let slow = config.slow_call.map(|limit| {
            let rate = config.slow_rate * 100.0;
            format!(", or {rate:.0} % of them slower than {limit:?}")
        });
        format!(
            "opens after {}{:.0} % of at least {} calls{}, for {:?} at first",
            in_a_row.unwrap_or_default(),
            config.failure_rate * 100.0,
            config.minimum_calls,
            slow.unwrap_or_default(),
            config.open,
        )
    };
    let endpoints = policy
        .breaker
        .as_ref()
        .map_or_else(|| "none".to_owned(), opens);
    let more = [
        ("for the whole port", &policy.service_breaker),
        ("for each rule of a route", &policy.route_breaker),
    ];
    let more = more.into_iter().filter_map(|(whose, config)| {
        let opens = opens(config.as_ref()?);
        Some(format!("; {whose}: {opens}"))
    });
    let more: String = more.collect();
    let fallback = match &policy.fallback {
        None => String::new(),
        Some(Fallback::Response { status, .. }) => format!("; fallback: {status}"),
        Some(Fallback::Backend { service, port }) => format!("; fallback: {service}:{port}"),
    };
    format!("{mode}per endpoint: {endpoints}{more}{fallback}")
}
