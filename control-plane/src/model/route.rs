//! Routes of the Gateway API, attached to Services (GAMMA): from its types to core's. What needs to
//! know what exists is left to compilation.

mod filter;
mod matching;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gateway_api::experimental::grpcroutes::{GrpcRouteRules, GrpcRouteSpec};
use gateway_api::experimental::httproutes::{
    HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesBackendRefs, HttpRouteRulesFilters,
    HttpRouteRulesRetry, HttpRouteRulesTimeouts, HttpRouteSpec,
};
use gateway_api::experimental::tcproutes::TcpRouteSpec;
use gateway_api::experimental::tlsroutes::TlsRouteSpec;
use serde::Serialize;
use serde::de::DeserializeOwned;
use weft_core::name::{ServiceName, check_label};
use weft_core::retry::RetryPolicy;
use weft_core::route::{About, Backend, Rule};

use matching::{read_grpc_matches, read_http_matches};

pub(super) use matching::{note, read_headers, read_matches};

use super::{Check, ObjectName};
use crate::model::reader;

/// The group of the Gateway API's kinds.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Most of everything (Gateway API's own limits).
const PARENTS_MAX: usize = 32;
const RULES_MAX: usize = 16;
const MATCHES_MAX: usize = 64;
const BACKENDS_MAX: usize = 16;
const FIELDS_MAX: usize = 16;
/// Hostnames of a TLSRoute.
const HOSTS_MAX: usize = 16;
/// The longest hostname (RFC 1035 section 2.3.4).
const HOST_MAX_BYTES: usize = 253;
/// The largest weight.
const WEIGHT_MAX: i32 = 1_000_000;

/// A route as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteSpec {
    /// An HTTPRoute.
    Http(Box<HttpRouteSpec>),
    /// A GRPCRoute.
    Grpc(Box<GrpcRouteSpec>),
    /// A TLSRoute.
    Tls(Box<TlsRouteSpec>),
    /// A TCPRoute.
    Tcp(Box<TcpRouteSpec>),
}

/// Kinds of routes, the most specific last: of several kinds at one port only that one counts
/// (GEP-1426).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Connections as they are.
    Tcp,
    /// Connections by the host that their ClientHello names.
    Tls,
    /// By path, method, fields and query.
    Http,
    /// By service, method and fields of a gRPC call.
    Grpc,
}

impl RouteKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Http, Self::Grpc];

    /// The kind of a name, if it is one of these.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCPRoute",
            Self::Tls => "TLSRoute",
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }
}

impl RouteSpec {
    /// Its kind.
    pub const fn kind(&self) -> RouteKind {
        match self {
            Self::Tcp(_) => RouteKind::Tcp,
            Self::Tls(_) => RouteKind::Tls,
            Self::Http(_) => RouteKind::Http,
            Self::Grpc(_) => RouteKind::Grpc,
        }
    }

    /// As it is stored and shown.
    pub(super) fn to_value(&self) -> Result<serde_json::Value, serde_json::Error> {
        match self {
            Self::Tcp(spec) => serde_json::to_value(spec),
            Self::Tls(spec) => serde_json::to_value(spec),
            Self::Http(spec) => serde_json::to_value(spec),
            Self::Grpc(spec) => serde_json::to_value(spec),
        }
    }

    /// What it comes to. It was checked when it was read: nothing of it is left out.
    pub fn draft(&self, name: &ObjectName) -> RouteDraft {
        let mut check = Check::new("the store", 1);
        self.read(&mut check, name)
    }

    /// Reads it, and adds what is wrong with it to `check`.
    pub(super) fn read(&self, check: &mut Check<'_>, name: &ObjectName) -> RouteDraft {
        let namespace = &name.namespace;
        let (parents, rules) = match self {
            Self::Tcp(spec) => {
                let gateways = spec.use_default_gateways.is_some();
                refuse(check, "spec.useDefaultGateways", gateways, NO_GATEWAYS);
                one_rule(check, spec.rules.len());
                // The same shape, less what looks into requests.
                (again(&spec.parent_refs), Some(again(&spec.rules)))
            }
            Self::Tls(spec) => {
                let gateways = spec.use_default_gateways.is_some();
                refuse(check, "spec.useDefaultGateways", gateways, NO_GATEWAYS);
                one_rule(check, spec.rules.len());
                (again(&spec.parent_refs), Some(again(&spec.rules)))
            }
            Self::Http(spec) => {
                refuse(check, "spec.hostnames", spec.hostnames.is_some(), HOSTNAMES);
                let gateways = spec.use_default_gateways.is_some();
                refuse(check, "spec.useDefaultGateways", gateways, NO_GATEWAYS);
                (spec.parent_refs.clone(), spec.rules.clone())
            }
            Self::Grpc(spec) => {
                refuse(check, "spec.hostnames", spec.hostnames.is_some(), HOSTNAMES);
                let gateways = spec.use_default_gateways.is_some();
                refuse(check, "spec.useDefaultGateways", gateways, NO_GATEWAYS);
                let rules = spec.rules.clone();
                let rules = rules.map(|rules| rules.iter().map(without_matches).collect());
                (again(&spec.parent_refs), rules)
            }
        };
        let parents = read_parents(check, namespace, &parents.unwrap_or_default());
        let mut rules = rules.unwrap_or_else(|| vec![HttpRouteRules::default()]);
        limit(check, "spec.rules", rules.len(), RULES_MAX);
        rules.truncate(RULES_MAX);
        let drafts = rules.iter().enumerate().map(|(index, rule)| {
            let at = format!("spec.rules[{index}]");
            let mut draft = read_rule(check, namespace, &at, rule);
            if let Self::Grpc(spec) = self {
                let rules = spec.rules.as_deref().unwrap_or_default();
                let matches = rules.get(index).and_then(|rule| rule.matches.as_deref());
                draft.rule.matches = read_grpc_matches(check, &at, matches.unwrap_or_default());
            }
            draft
        });
        let rules: Vec<RuleDraft> = drafts.collect();
        check_names(check, &rules);
        let about = match self {
            Self::Http(_) | Self::Grpc(_) => About::Requests,
            Self::Tls(spec) => About::Hosts(read_hosts(check, &spec.hostnames)),
            Self::Tcp(_) => About::Connections,
        };
        RouteDraft {
            about,
            parents,
            rules,
            externals: std::mem::take(&mut check.externals),
        }
    }
}

const HOSTNAMES: &str =
    "nothing: a route of a Service takes requests to it under every name that it has";
const NO_GATEWAYS: &str = "nothing: there are no gateways here";

/// A route that has been read: what it refers to may or may not exist.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteDraft {
    /// What it is about.
    pub about: About,
    /// What it is attached to.
    pub parents: Vec<Parent>,
    /// Its rules.
    pub rules: Vec<RuleDraft>,
    /// What of all that it refers to as ExternalServices.
    pub externals: BTreeSet<ServiceName>,
}

/// A rule that has been read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleDraft {
    /// The rule, with every service that it names.
    pub rule: Rule,
    /// FaultInjections of the route's namespace that it names.
    pub faults: Vec<String>,
}

/// What a route is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The service.
    pub service: ServiceName,
    /// One of its ports; `None` is all of them.
    pub port: Option<u16>,
}

/// A type of the generated ones as another of the same shape: they are made anew for every place
/// where they occur.
fn again<T: Serialize, U: DeserializeOwned + Default>(value: &T) -> U {
    let value = serde_json::to_value(value).unwrap_or_default();
    reader::read(&value).value.unwrap_or_default()
}

/// A rule of a GRPCRoute as one of an HTTPRoute, whose matches are read apart.
fn without_matches(rule: &GrpcRouteRules) -> HttpRouteRules {
    let rest = GrpcRouteRules {
        matches: None,
        ..rule.clone()
    };
    again(&rest)
}

fn refuse(check: &mut Check<'_>, path: &str, there: bool, allowed: &str) {
    if there {
        check.add(path, "a value", allowed);
    }
}

fn limit(check: &mut Check<'_>, path: &str, found: usize, most: usize) {
    if found > most {
        check.add(path, format!("{found} of them"), format!("{most} at most"));
    }
}

/// What is about connections has one rule.
fn one_rule(check: &mut Check<'_>, found: usize) {
    if found != 1 {
        let found = format!("{found} of them");
        check.add("spec.rules", found, "one: nothing tells connections apart");
    }
}

/// Names of rules: each once (Gateway API, `SectionName`).
fn check_names(check: &mut Check<'_>, rules: &[RuleDraft]) {
    let mut seen = BTreeSet::new();
    for (index, draft) in rules.iter().enumerate() {
        let Some(name) = &draft.rule.name else {
            continue;
        };
        let path = format!("spec.rules[{index}].name");
        if check_label(name).is_err() {
            check.add(path, format!("{name:?}"), super::LABEL);
        } else if !seen.insert(name) {
            check.add(path, format!("{name} again"), "each name once");
        }
    }
}

/// Names that a ClientHello may have (RFC 6066 section 3), and wildcards for them.
fn read_hosts(check: &mut Check<'_>, names: &[String]) -> Vec<Arc<str>> {
    if names.is_empty() {
        let allowed = "at least one, as in orders.example.com";
        check.add("spec.hostnames", "none", allowed);
    }
    limit(check, "spec.hostnames", names.len(), HOSTS_MAX);
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for (index, name) in names.iter().take(HOSTS_MAX).enumerate() {
        let at = format!("spec.hostnames[{index}]");
        let bare = name.strip_prefix("*.").unwrap_or(name);
        let labels = bare.split('.').all(|label| check_label(label).is_ok());
        let all_digits = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        // Whose last label is a number is an address (WHATWG URL section 3.5).
        let address = bare.rsplit('.').next().is_none_or(all_digits);
        if !labels || address || name.len() > HOST_MAX_BYTES {
            let allowed =
                "a name as in orders.example.com, or *.example.com; lower case, no address";
            check.add(at, format!("{name:?}"), allowed);
        } else if hosts.iter().any(|host| **host == **name) {
            check.add(at, format!("{name:?} again"), "each once");
        } else {
            hosts.push(name.as_str().into());
        }
    }
    hosts
}

fn read_parents(
    check: &mut Check<'_>,
    namespace: &str,
    refs: &[HttpRouteParentRefs],
) -> Vec<Parent> {
    if refs.is_empty() {
        let allowed = "at least one, as in {group: \"\", kind: Service, name: orders}";
        check.add("spec.parentRefs", "none", allowed);
    }
    limit(check, "spec.parentRefs", refs.len(), PARENTS_MAX);
    let mut parents: Vec<Parent> = Vec::new();
    for (index, parent) in refs.iter().take(PARENTS_MAX).enumerate() {
        let at = format!("spec.parentRefs[{index}]");
        let section = parent.section_name.is_some();
        let allowed = "nothing: ports of a Service have numbers; use port";
        refuse(check, &format!("{at}.sectionName"), section, allowed);
        let group = parent.group.as_deref();
        let kind = parent.kind.as_deref();
        let (group, kind) = (group.unwrap_or(GATEWAY_GROUP), kind.unwrap_or("Gateway"));
        let Some(service) = read_service(
            check,
            &at,
            (group, kind),
            parent.namespace.as_deref().unwrap_or(namespace),
            &parent.name,
        ) else {
            continue;
        };
        let port = parent.port.map(|port| read_port(check, &at, port));
        let parent = Parent {
            service,
            port: port.flatten(),
        };
        if parents.contains(&parent) {
            check.add(at, "the same Service and port again", "each once");
        } else {
            parents.push(parent);
        }
    }
    parents
}

/// A reference to a Service.
fn read_service(
    check: &mut Check<'_>,
    at: &str,
    (group, kind): (&str, &str),
    namespace: &str,
    name: &str,
) -> Option<ServiceName> {
    let ours = group.is_empty() || group == super::API_GROUP;
    let external = group == super::API_GROUP && kind == "ExternalService";
    if !external && (!ours || kind != "Service") {
        let found = format!("group {group:?}, kind {kind:?}");
        check.add(at, found, super::SERVICE_KINDS);
        return None;
    }
    for (field, text) in [("namespace", namespace), ("name", name)] {
        if check_label(text).is_err() {
            let path = format!("{at}.{field}");
            check.add(path, format!("{text:?}"), super::LABEL);
        }
    }
    let service = ServiceName::new(namespace, name).ok()?;
    if external {
        check.externals.insert(service.clone());
    }
    Some(service)
}

fn read_port(check: &mut Check<'_>, at: &str, port: i32) -> Option<u16> {
    let read = u16::try_from(port).ok().filter(|port| *port != 0);
    if read.is_none() {
        check.add(format!("{at}.port"), port, "1 to 65535");
    }
    read
}

fn read_rule(check: &mut Check<'_>, namespace: &str, at: &str, rule: &HttpRouteRules) -> RuleDraft {
    let persistence = rule.session_persistence.is_some();
    let allowed = "nothing: not there yet";
    refuse(
        check,
        &format!("{at}.sessionPersistence"),
        persistence,
        allowed,
    );
    let read = read_http_matches(check, at, rule.matches.as_deref().unwrap_or_default());
    let place = filter::Place {
        namespace,
        matches: &read,
        backend: false,
    };
    let filters = rule.filters.as_deref().unwrap_or_default();
    let (filters, faults) = filter::read(check, &format!("{at}.filters"), place, filters);
    let refs = rule.backend_refs.as_deref().unwrap_or_default();
    let path = format!("{at}.backendRefs");
    limit(check, &path, refs.len(), BACKENDS_MAX);
    let answers = filters.iter().any(filter::answers_itself);
    if answers && !refs.is_empty() {
        check.add(
            &path,
            format!("{} beside a RequestRedirect", refs.len()),
            "none",
        );
    }
    let backends = refs.iter().take(BACKENDS_MAX).enumerate();
    let backends = backends.filter_map(|(index, backend)| {
        read_backend(check, place, &format!("{path}[{index}]"), backend)
    });
    let backends = backends.collect();
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let (request, backend) = read_timeouts(check, &format!("{at}.timeouts"), &timeouts);
    let retry = rule.retry.as_ref();
    let rule = Rule {
        name: rule.name.as_deref().map(Into::into),
        matches: read,
        filters,
        backends,
        request_timeout: request,
        backend_timeout: backend,
        retry: retry.map(|retry| read_retry(check, &format!("{at}.retry"), retry)),
    };
    // Filters and backends were checked where they stand in the document.
    let mut errors = rule.validate_retry();
    errors.extend(rule.validate_timeouts());
    for error in errors {
        check.add(format!("{at}.{}", error.field), error.found, error.allowed);
    }
    RuleDraft { rule, faults }
}

fn read_backend(
    check: &mut Check<'_>,
    place: filter::Place<'_>,
    at: &str,
    backend: &HttpRouteRulesBackendRefs,
) -> Option<Backend> {
    let weight = backend.weight.unwrap_or(1);
    if !(0..=WEIGHT_MAX).contains(&weight) {
        check.add(format!("{at}.weight"), weight, "0 to 1000000");
    }
    let filters: Vec<HttpRouteRulesFilters> = again(&backend.filters);
    let place = filter::Place {
        backend: true,
        ..place
    };
    let (filters, _none) = filter::read(check, &format!("{at}.filters"), place, &filters);
    let (service, port) = read_target(
        check,
        at,
        place.namespace,
        &Target {
            group: backend.group.as_deref(),
            kind: backend.kind.as_deref(),
            namespace: backend.namespace.as_deref(),
            name: &backend.name,
            port: backend.port,
        },
    )?;
    Some(Backend {
        service: Some(service),
        port,
        weight: u32::try_from(weight).unwrap_or_default(),
        filters: filters.into(),
    })
}

/// A reference to where requests go.
struct Target<'a> {
    group: Option<&'a str>,
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
    name: &'a str,
    port: Option<i32>,
}

fn read_target(
    check: &mut Check<'_>,
    at: &str,
    namespace: &str,
    target: &Target<'_>,
) -> Option<(ServiceName, u16)> {
    let kind = (
        target.group.unwrap_or_default(),
        target.kind.unwrap_or("Service"),
    );
    let namespace = target.namespace.unwrap_or(namespace);
    let service = read_service(check, at, kind, namespace, target.name);
    let Some(port) = target.port else {
        check.add(format!("{at}.port"), "nothing", "a port of the Service");
        return None;
    };
    let port = read_port(check, at, port);
    Some((service?, port?))
}

/// A time of the Gateway API (GEP-2257).
fn read_time(check: &mut Check<'_>, at: &str, text: &str) -> Option<Duration> {
    match text.parse::<gateway_api::Duration>() {
        Ok(time) => Some(Duration::new(time.as_secs(), time.subsec_nanos())),
        Err(_error) => {
            let allowed = "a time as in 250ms, 10s or 1m30s";
            check.add(at, format!("{text:?}"), allowed);
            None
        }
    }
}

fn read_timeouts(
    check: &mut Check<'_>,
    at: &str,
    timeouts: &HttpRouteRulesTimeouts,
) -> (Option<Duration>, Option<Duration>) {
    let request = timeouts.request.as_deref();
    let request = request.and_then(|text| read_time(check, &format!("{at}.request"), text));
    let path = format!("{at}.backendRequest");
    let backend = timeouts.backend_request.as_deref();
    let backend = backend.and_then(|text| read_time(check, &path, text));
    (request, backend)
}

fn read_retry(check: &mut Check<'_>, at: &str, retry: &HttpRouteRulesRetry) -> RetryPolicy {
    let defaults = RetryPolicy::default();
    let backoff = retry.backoff.as_deref();
    let backoff = backoff.and_then(|text| read_time(check, &format!("{at}.backoff"), text));
    let backoff_is_minimum = backoff.is_some();
    let backoff = backoff.unwrap_or(defaults.backoff);
    let codes = retry.codes.as_ref().map(|codes| {
        let codes = codes.iter().map(|code| u16::try_from(*code));
        codes.map(Result::unwrap_or_default).collect::<Vec<u16>>()
    });
    let attempts = retry.attempts.map(u32::try_from);
    RetryPolicy {
        attempts: attempts.map_or(defaults.attempts, |read| read.unwrap_or(u32::MAX)),
        statuses: codes.map_or(defaults.statuses, Into::into),
        grpc_codes: defaults.grpc_codes,
        backoff,
        // It doubles: ten times the first is the third.
        backoff_max: defaults.backoff_max.max(backoff.saturating_mul(10)),
        backoff_is_minimum,
        body_max: defaults.body_max,
    }
}
