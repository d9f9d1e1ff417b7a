//! What would become of a request, step by step, with the resource that makes it so. It asks the
//! same functions that sidecars ask.

mod adaptive;
mod external;
mod health;
mod limits;
mod words;

use std::fmt::Write as _;
use std::sync::Arc;

use http::uri::Scheme;
use http::{HeaderMap, Method, Uri};
use weft_api::types::Step;
use weft_core::breaker::BreakerConfig;
use weft_core::headers::is_grpc;
use weft_core::model::{AppProtocol, ObservedBreaker, Service};
use weft_core::name::{ServiceName, WorkloadName};
use weft_core::policy::{BreakerMode, Fallback, TrafficPolicy};
use weft_core::reason::Reason;
use weft_core::route::{
    About, Backend, Decision, Filter, HttpMatch, Outcome, PathMatch, PathRewrite, RequestHead,
    RouteTable, Rule, ValueMatch, in_force,
};
use weft_core::terms::{self, Origin, Terms};
use weft_proto::resource::{Kind, Resource};

use crate::compile::Compiled;
use crate::model::hedge_in_words;
use crate::world::World;

use limits::Arriving;

/// A request that somebody wonders about.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who makes it.
    pub from: WorkloadName,
    /// Its method.
    pub method: Method,
    /// Its URL.
    pub url: Uri,
    /// Its fields.
    pub headers: HeaderMap,
}

/// Where the answers come from.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// What sidecars are told.
    pub compiled: &'a Compiled,
    /// What that follows from.
    pub world: &'a World,
    /// Breakers that the caller's sidecars have told of.
    pub breakers: &'a [ObservedBreaker],
    /// Whether the caller has a sidecar that could tell.
    pub connected: bool,
}

/// Explains a request. `random` decides between backends, as it does in a sidecar.
pub fn explain(known: Known<'_>, question: &Question, random: impl FnMut() -> u64) -> Vec<Step> {
    let mut steps = Steps::of(known, question);
    let Some((service, port, protocol)) = find_service(known, question, &mut steps) else {
        return steps.all;
    };
    let tls = question.url.scheme() == Some(&Scheme::HTTPS);
    let own = namespace_routes(known, question, &service.name);
    let whose = match &own {
        Some(_) => "consumer",
        None => "producer",
    };
    let routes = in_force(port, own.as_deref(), &service.routes);
    if routes.is_empty() {
        steps.add("route", "-", "none: requests go to the service itself");
        explain_itself(known, question, &service, port, &mut steps);
        return steps.all;
    }
    let table = RouteTable::new(routes);
    if table.is_about_connections() {
        explain_connection(known, &table, question, whose, &mut steps);
        return steps.all;
    }
    if tls || !protocol.may_be_http() {
        let result =
            "none: connections pass as they are, and routes of requests do not look into them";
        steps.add("route", "-", result);
        explain_target(known, &service, port, None, &mut steps);
        return steps.all;
    }
    if question.method == Method::CONNECT {
        let result = "none is asked: CONNECT names no path or host that routes look at, and goes to \
                      the service itself";
        steps.add("route", "-", result);
        explain_itself(known, question, &service, port, &mut steps);
        return steps.all;
    }
    let head = RequestHead::new(&question.method, &question.url, &question.headers);
    let Some(decision) = table.decide(&head, random) else {
        steps.add("route", "-", no_rule(&table));
        return steps.all;
    };
    explain_decision(&decision, whose, (question, port), &mut steps);
    if let Outcome::Forward(backend) = decision.outcome {
        explain_backends(known, decision.found.rule, &mut steps);
        let arriving = Arriving::of(question, Some(&decision));
        arriving.at_backends(known, decision.found.rule, &mut steps);
        if let Some(name) = &backend.service {
            let target = (name, backend.port);
            adaptive::explain_priority(known, &question.from, &arriving, target, &mut steps);
        }
    }
    steps.all
}

/// A request that no route is asked about.
fn explain_itself(
    known: Known<'_>,
    question: &Question,
    service: &Service,
    port: u16,
    steps: &mut Steps,
) {
    explain_target(known, service, port, None, steps);
    let arriving = Arriving::of(question, None);
    arriving.at(known, &service.name, port, steps);
    let target = (&service.name, port);
    adaptive::explain_priority(known, &question.from, &arriving, target, steps);
}

fn no_rule(table: &RouteTable) -> String {
    let names = table.routes().iter().map(|route| {
        let name = &route.name;
        format!("{}/{}", name.namespace, name.name)
    });
    let routes: Vec<String> = names.collect();
    let answer = answered(Reason::RouteNotFound, &routes.join(", "));
    format!("no rule takes it: {answer}")
}

/// A connection to the URL's host, which is also what its ClientHello would name.
fn explain_connection(
    known: Known<'_>,
    table: &RouteTable,
    question: &Question,
    whose: &str,
    steps: &mut Steps,
) {
    let host = question.url.host();
    let Some(connection) = table.connection(host, 0) else {
        let refused = format!(
            "no route takes connections that name {}: reset with {}",
            host.unwrap_or_default(),
            Reason::RouteNotFound
        );
        return steps.add("route", "-", refused);
    };
    let route = connection.route;
    let by = format!("route {}/{}", route.name.namespace, route.name.name);
    let taken = match &route.about {
        About::Requests | About::Connections => "connections as they are".to_owned(),
        About::Hosts(hosts) => format!("TLS connections that name {}", hosts.join(", ")),
    };
    steps.add("route", by, format!("a {whose}'s: {taken}"));
    for rule in &route.rules {
        explain_backends(known, rule, steps);
    }
}

/// Every backend that gets anything, with its share.
fn explain_backends(known: Known<'_>, rule: &Rule, steps: &mut Steps) {
    let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    for backend in rule.backends.iter().filter(|backend| backend.weight > 0) {
        let share = f64::from(backend.weight) / total as f64 * 100.0;
        explain_backend(known, backend, share, rule, steps);
    }
}

struct Steps {
    all: Vec<Step>,
    /// The request's method.
    method: Method,
    /// The path of a gRPC call.
    grpc: Option<String>,
}

impl Steps {
    fn of(known: Known<'_>, question: &Question) -> Self {
        let mut steps = Self {
            all: Vec::new(),
            method: question.method.clone(),
            grpc: is_grpc(&question.headers).then(|| question.url.path().to_owned()),
        };
        if !known.connected {
            let result = "no sidecar of it is connected: its breakers are not known";
            steps.add("caller", format!("Workload {}", question.from), result);
        }
        steps
    }

    fn add(&mut self, step: &str, by: impl Into<String>, result: impl Into<String>) {
        self.all.push(Step {
            step: step.to_owned(),
            by: by.into(),
            result: result.into(),
        });
    }
}

fn answered(reason: Reason, detail: &str) -> String {
    let mut text = format!("answered with {} and {reason}", reason.http_status());
    if !detail.is_empty() {
        let _infallible = write!(text, " ({detail})");
    }
    text
}

fn find_service(
    known: Known<'_>,
    question: &Question,
    steps: &mut Steps,
) -> Option<(Service, u16, AppProtocol)> {
    let host = question.url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tls = question.url.scheme() == Some(&Scheme::HTTPS);
    let port = question.url.port_u16();
    let port = port.unwrap_or(if tls { 443 } else { 80 });
    let Some(service) = known.compiled.service(host) else {
        let result = if host.ends_with(".mesh") {
            answered(Reason::ServiceNotFound, "no service goes by this name")
        } else {
            "no service goes by this name or address: it leaves the mesh, or is refused, as \
             unknownDestinations of MeshConfig says"
                .to_owned()
        };
        steps.add("service", "-", format!("{host}: {result}"));
        return None;
    };
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    let by = external::document_of(&service);
    let Some(declared) = service.port(port) else {
        let ports: Vec<String> = service.ports.iter().map(|p| p.port.to_string()).collect();
        let detail = format!("it has {}", ports.join(", "));
        let result = answered(Reason::PortNotDeclared, &detail);
        steps.add("service", by, format!("port {port}: {result}"));
        return None;
    };
    let result = format!(
        "{host} is {} at {}, port {port}, {}",
        service.name,
        addresses.join(" and "),
        declared.protocol.as_str()
    );
    steps.add("service", &by, result);
    let protocol = declared.protocol;
    if tls && protocol.is_http() {
        let result = answered(Reason::BadRequest, "TLS at a port of plain HTTP");
        steps.add("protocol", by, result);
        return None;
    }
    Some((service, port, protocol))
}

/// The routes that the caller's own namespace has for a service.
fn namespace_routes(
    known: Known<'_>,
    question: &Question,
    service: &ServiceName,
) -> Option<Vec<Arc<weft_core::route::Route>>> {
    let namespace = question.from.namespace();
    match &known.compiled.find(Kind::Namespace, namespace)?.resource {
        Resource::Namespace(namespace) => namespace.routes.get(service).cloned(),
        Resource::EndpointSlice(_)
        | Resource::Service(_)
        | Resource::Workload(_)
        | Resource::TrustBundle(_)
        | Resource::MeshConfig(_)
        | Resource::ServerPolicy(_) => None,
    }
}

fn explain_decision(
    decision: &Decision<'_>,
    whose: &str,
    (question, port): (&Question, u16),
    steps: &mut Steps,
) {
    let found = &decision.found;
    let name = &found.route.name;
    let by = format!("route {}/{}", name.namespace, name.name);
    let rule = match &found.rule.name {
        Some(name) => format!("rule {} ({name})", found.index),
        None => format!("rule {}", found.index),
    };
    let matched = found.matched.map_or_else(
        || "it takes everything".to_owned(),
        |matched| format!("it takes {}", match_text(matched)),
    );
    steps.add("route", &by, format!("a {whose}'s; {rule}: {matched}"));
    for filter in &found.rule.filters {
        steps.add("filter", &by, filter_text(filter));
    }
    if let Some(delay) = decision.delay {
        steps.add("fault", &by, format!("this one waits {delay:?} first"));
    }
    match &decision.outcome {
        Outcome::Forward(_) => {
            if let Some(sent) = words::sent(decision, question) {
                steps.add("request", &by, sent);
            }
        }
        Outcome::NoBackend => {
            let result = answered(Reason::BackendNotFound, "the rule has no backend");
            steps.add("backend", &by, result);
        }
        Outcome::Redirect(redirect) => {
            let result = words::redirected(redirect, question, port, found.prefix());
            steps.add("answer", &by, result);
        }
        Outcome::Preflight(_) => steps.add("answer", &by, "answered as a CORS preflight"),
        Outcome::Abort(abort) => {
            let result = format!("this one is answered with {} on purpose", abort.status);
            steps.add("fault", &by, result);
        }
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
fn explain_target(
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

fn match_text(matched: &HttpMatch) -> String {
    let mut text = match &matched.path {
        PathMatch::Exact(path) => format!("the path {path}"),
        PathMatch::Prefix(prefix) => format!("paths below {prefix}/"),
        PathMatch::Method(method) => format!("the gRPC method {method} of any service"),
        PathMatch::Pattern(pattern) => format!("paths like {}", pattern.as_str()),
    };
    if let Some(method) = &matched.method {
        let _infallible = write!(text, ", {method}");
    }
    for (name, value) in &matched.headers {
        let _infallible = write!(text, ", {name}: {}", value_text(value));
    }
    for (name, value) in &matched.queries {
        let _infallible = write!(text, ", ?{name}={}", value_text(value));
    }
    text
}

fn value_text(value: &ValueMatch) -> &str {
    match value {
        ValueMatch::Exact(text) => text,
        ValueMatch::Pattern(pattern) => pattern.as_str(),
    }
}

fn filter_text(filter: &Filter) -> String {
    let path = |path: &Option<PathRewrite>| match path {
        None => "the same path".to_owned(),
        Some(PathRewrite::Full(path)) => format!("path {path}"),
        Some(PathRewrite::Prefix(path)) => format!("prefix {path}"),
    };
    match filter {
        Filter::RequestHeaders(modifier) => format!("request fields: {}", names(modifier)),
        Filter::ResponseHeaders(modifier) => format!("response fields: {}", names(modifier)),
        Filter::Redirect(redirect) => words::redirect(redirect),
        Filter::Rewrite(rewrite) => {
            let host = rewrite.hostname.as_deref().unwrap_or("the same host");
            format!("rewrites to {host}, {}", path(&rewrite.path))
        }
        Filter::Mirror(mirror) => format!(
            "copies {} of {} to {}:{}",
            mirror.numerator, mirror.denominator, mirror.backend, mirror.port
        ),
        Filter::Cors(cors) => format!("CORS for {}", cors.allow_origins.join(", ")),
        Filter::Fault(fault) => {
            let delay = fault.delay.map(|d| format!("delay {:?}", d.time));
            let abort = fault.abort.map(|a| format!("abort with {}", a.status));
            let parts: Vec<String> = delay.into_iter().chain(abort).collect();
            format!("a fault on purpose: {}", parts.join(", "))
        }
    }
}

fn names(modifier: &weft_core::route::HeaderModifier) -> String {
    let set = modifier.set.iter().map(|(name, _)| format!("sets {name}"));
    let add = modifier.add.iter().map(|(name, _)| format!("adds {name}"));
    let remove = modifier.remove.iter().map(|name| format!("removes {name}"));
    set.chain(add).chain(remove).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
