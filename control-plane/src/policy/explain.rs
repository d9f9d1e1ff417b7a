//! What would become of a request, step by step, with the resource that makes it so. It asks the
//! same functions that sidecars ask.

mod adaptive;
mod external;
mod health;
mod limits;
mod routes;
mod target;
mod words;

use std::fmt::Write as _;
use std::sync::Arc;

use http::uri::Scheme;
use http::{HeaderMap, Method, Uri};
use weft_api::types::Step;
use weft_core::headers::is_grpc;
use weft_core::model::{AppProtocol, ObservedBreaker, Service};
use weft_core::name::{ServiceName, WorkloadName};
use weft_core::reason::Reason;
use weft_core::route::{About, Decision, Outcome, RequestHead, RouteTable, in_force};
use weft_proto::resource::{Kind, Resource};

use crate::compile::Compiled;
use crate::world::World;

use limits::Arriving;
use routes::{filter_text, match_text};
use target::{explain_backends, explain_target};

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
    let from = question.from.namespace();
    let Some(service) = known.compiled.service_for(from, host) else {
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

#[cfg(test)]
mod tests;
