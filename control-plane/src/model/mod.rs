//! The user-facing model: documents in Kubernetes' form, read strictly. What is wrong is said with
//! file, field path, what was found and what is allowed, for the whole input at once.

mod external;
mod fault;
mod rate_limit;
pub(crate) mod reader;
mod route;
mod traffic_policy;
mod typed;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use weft_core::model::{AppProtocol, Cidr, UnknownDestinations};
use weft_core::name::{ServiceName, check_label, check_subdomain};

use crate::store::ResourceKey;

use gateway_api::experimental::grpcroutes::GrpcRouteSpec;
use gateway_api::experimental::httproutes::HttpRouteSpec;
use gateway_api::experimental::referencegrants::ReferenceGrantSpec;
use gateway_api::experimental::tcproutes::TcpRouteSpec;
use gateway_api::experimental::tlsroutes::TlsRouteSpec;

pub use external::{
    ExternalEndpointSpec, ExternalPortSpec, ExternalServiceSpec, ExternalTlsSpec, ResolutionMode,
    TlsMode,
};
pub use fault::{AbortSpec, DelaySpec, FaultInjectionSpec, HeaderMatchType, HeaderSpec};
pub use rate_limit::{RateKeySpec, RateLimitPolicySpec, RateRuleSpec, RateScopeSpec, limit_text};
pub use route::{GATEWAY_GROUP, Parent, RouteDraft, RouteKind, RouteSpec, RuleDraft};
pub use traffic_policy::PathNormalizationSpec;
pub(crate) use traffic_policy::hedge_in_words;
pub use traffic_policy::{AdaptiveConcurrencySpec, AdaptiveLimitSpec, CriticalSpec, SheddingSpec};
pub use traffic_policy::{
    BackoffSpec, BreakerModeSpec, BudgetSpec, CheckHeaderSpec, CircuitBreakerSpec, CookieSpec,
    FailuresSpec, FallbackBackendSpec, FallbackResponseSpec, FallbackSpec, GrpcCheckSpec,
    HalfOpenSpec, HashOnSpec, HealthCheckSpec, HedgeSpec, HttpCheckSpec, InitialStateSpec,
    LimitsSpec, LoadBalancerSpec, LoadBalancerType, RetrySpec, SourceSpec, Statuses, TargetKind,
    TargetRef, TcpCheckSpec, Time, TimeoutsSpec, TrafficPolicySpec, WindowSpec, spelled_out,
};

/// The group of our own kinds.
pub const API_GROUP: &str = "weft-mesh.io";
/// The group and version of our own kinds.
pub const API_VERSION: &str = "weft-mesh.io/v1alpha1";
/// The group and version of the Gateway API's kinds.
pub const GATEWAY_VERSION: &str = "gateway.networking.k8s.io/v1";
/// The group and version of those of its kinds that are not further.
pub const GATEWAY_ALPHA: &str = "gateway.networking.k8s.io/v1alpha2";
/// The kinds that exist, with the versions that they are read in; they are stored and shown in the
/// first. To add one: a variant of [`Document`], its spec, and its checks below.
pub const KINDS: [(&str, &[&str]); 11] = [
    ("Service", &[API_VERSION]),
    ("MeshConfig", &[API_VERSION]),
    ("TrafficPolicy", &[API_VERSION]),
    ("FaultInjection", &[API_VERSION]),
    ("ExternalService", &[API_VERSION]),
    ("RateLimitPolicy", &[API_VERSION]),
    ("HTTPRoute", &[GATEWAY_VERSION]),
    ("GRPCRoute", &[GATEWAY_VERSION]),
    ("TLSRoute", &[GATEWAY_VERSION, GATEWAY_ALPHA]),
    ("TCPRoute", &[GATEWAY_ALPHA]),
    (
        "ReferenceGrant",
        &[GATEWAY_VERSION, "gateway.networking.k8s.io/v1beta1"],
    ),
];
/// What references lead to.
const SERVICE_KINDS: &str =
    "group \"\" and kind Service, or group weft-mesh.io and kind ExternalService";
/// What names are.
const LABEL: &str = "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit";
/// Of a name that is refused, so many characters are shown.
const FOUND_MAX: usize = 80;
/// What other names of objects are.
const SUBDOMAIN: &str =
    "1 to 253 of a-z, 0-9, '-' and '.', each part beginning and ending with a letter or digit";
/// Largest input, bytes.
pub const INPUT_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Documents in one input.
const DOCUMENTS_MAX: usize = 1000;
/// Ports of a service.
const PORTS_MAX: usize = 64;
/// Ranges of workloads' own addresses.
const RANGES_MAX: usize = 256;
/// What a ReferenceGrant lists, on either side (Gateway API's own limit).
const GRANTS_MAX: usize = 16;

/// One thing that is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{source_name}: document {document}: {path}: found {found}; allowed: {allowed}")]
pub struct Problem {
    /// The file, or `-`.
    pub source_name: String,
    /// Which document in it, from 1.
    pub document: usize,
    /// The path of the field, as in `spec.ports[1].port`.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
}

/// A document that has been checked.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// A service that is to exist, whether or not anybody serves it.
    Service(ServiceName, ServiceSpec),
    /// Settings of the mesh as a whole; there is one, `weft-system/mesh`.
    MeshConfig(MeshConfigSpec),
    /// How callers treat a service; by its own name.
    TrafficPolicy(ObjectName, Box<TrafficPolicySpec>),
    /// How many requests the service's own sidecars let through.
    RateLimitPolicy(ObjectName, RateLimitPolicySpec),
    /// Where requests to a service go.
    Route(ObjectName, RouteSpec),
    /// A destination outside the mesh that programs reach by its ordinary names.
    ExternalService(ServiceName, Box<ExternalServiceSpec>),
    /// A fault that routes may name.
    FaultInjection(ObjectName, FaultInjectionSpec),
    /// What routes of other namespaces may send requests to.
    ReferenceGrant(ObjectName, ReferenceGrantSpec),
}

/// The names of the kinds, for people.
pub fn kind_names() -> String {
    KINDS.map(|(kind, _versions)| kind).join(", ")
}

/// The version that a kind is shown in.
pub fn version_of(kind: &str) -> &'static str {
    let found = KINDS.iter().find(|(name, _)| *name == kind);
    found.map_or(API_VERSION, |(_, versions)| versions[0])
}

/// A document with where it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// The file, or `-`.
    pub source_name: String,
    /// Which document in it, from 1.
    pub document: usize,
    /// The document.
    pub value: Document,
}

/// What a policy or a route goes by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// `spec` of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Its ports.
    pub ports: Vec<ServicePortSpec>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortSpec {
    /// The service's port, 1 to 65535.
    pub port: u16,
    /// The workloads' port; by default the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// What is spoken there; by default what the workloads declare.
    #[serde(
        default,
        deserialize_with = "protocol",
        skip_serializing_if = "is_undeclared"
    )]
    pub protocol: AppProtocol,
}

/// `spec` of MeshConfig.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// What happens to destinations outside the mesh.
    #[serde(default)]
    pub unknown_destinations: UnknownDestinations,
    /// Ranges of workloads' own addresses, beside those the control plane was started with.
    #[serde(default)]
    pub workload_ranges: Vec<String>,
    /// What is different in single namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, NamespaceSpec>,
}

/// What is different in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSpec {
    /// What happens to destinations outside the mesh that its workloads call.
    pub unknown_destinations: UnknownDestinations,
}

fn is_undeclared(protocol: &AppProtocol) -> bool {
    *protocol == AppProtocol::Detect
}

fn protocol<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AppProtocol, D::Error> {
    let text = String::deserialize(deserializer)?;
    AppProtocol::parse(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?}, expected {}", AppProtocol::ALLOWED))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Value,
    #[serde(default, rename = "status")]
    _status: Value,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default = "default_namespace")]
    namespace: String,
    #[serde(default, rename = "labels")]
    _labels: BTreeMap<String, String>,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Document {
    /// What it goes by.
    pub fn key(&self) -> ResourceKey {
        let key = |kind: &str, namespace: &str, name: &str| ResourceKey {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match self {
            Self::Service(name, _) => key("Service", name.namespace(), name.name()),
            Self::MeshConfig(_) => key("MeshConfig", "weft-system", "mesh"),
            Self::TrafficPolicy(name, _) => key("TrafficPolicy", &name.namespace, &name.name),
            Self::RateLimitPolicy(name, _) => key("RateLimitPolicy", &name.namespace, &name.name),
            Self::Route(name, spec) => key(spec.kind().as_str(), &name.namespace, &name.name),
            Self::ExternalService(name, _) => key("ExternalService", name.namespace(), name.name()),
            Self::FaultInjection(name, _) => key("FaultInjection", &name.namespace, &name.name),
            Self::ReferenceGrant(name, _) => key("ReferenceGrant", &name.namespace, &name.name),
        }
    }

    /// The document as it is stored and shown.
    pub fn to_value(&self) -> Value {
        let key = self.key();
        let spec = match self {
            Self::Service(_, spec) => serde_json::to_value(spec),
            Self::MeshConfig(spec) => serde_json::to_value(spec),
            Self::TrafficPolicy(_, spec) => serde_json::to_value(spec),
            Self::RateLimitPolicy(_, spec) => serde_json::to_value(spec),
            Self::Route(_, spec) => spec.to_value(),
            Self::ExternalService(_, spec) => serde_json::to_value(spec),
            Self::FaultInjection(_, spec) => serde_json::to_value(spec),
            Self::ReferenceGrant(_, spec) => serde_json::to_value(spec),
        };
        serde_json::json!({
            "apiVersion": version_of(&key.kind),
            "kind": key.kind,
            "metadata": { "name": key.name, "namespace": key.namespace },
            "spec": spec.unwrap_or_default(),
        })
    }

    /// Reads one that was stored. It was checked then: a field that is not known is one of another
    /// version's.
    pub fn from_value(value: Value) -> Result<Self, Vec<Problem>> {
        let mut check = Check::new("the store", 1);
        check.stored = true;
        checked(check, &value)
    }
}

/// Reads every document of an input: all are good, or everything that is wrong is said.
pub fn read(source: &str, text: &str) -> Result<Vec<Placed>, Vec<Problem>> {
    let whole = |found: String, allowed: &str| {
        vec![Problem {
            source_name: source.to_owned(),
            document: 1,
            path: "(input)".to_owned(),
            found,
            allowed: allowed.to_owned(),
        }]
    };
    if text.len() > INPUT_MAX_BYTES {
        return Err(whole(format!("{} bytes", text.len()), "4 MiB at most"));
    }
    let values: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        match first.split_once(", set DuplicateKeyPolicy") {
            Some((first, _advice_to_programmers)) => whole(first.to_owned(), "each field once"),
            None => whole(first.to_owned(), "well-formed YAML or JSON"),
        }
    })?;
    let values: Vec<Value> = values.into_iter().filter(|v| !v.is_null()).collect();
    if values.is_empty() || values.len() > DOCUMENTS_MAX {
        return Err(whole(format!("{} documents", values.len()), "1 to 1000"));
    }
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    let mut keys = BTreeSet::new();
    for (index, value) in values.into_iter().enumerate() {
        match read_one(source, index + 1, &value) {
            Ok(document) => {
                let key = document.key();
                if keys.insert(key.clone()) {
                    documents.push(Placed {
                        source_name: source.to_owned(),
                        document: index + 1,
                        value: document,
                    });
                } else {
                    problems.push(Problem {
                        source_name: source.to_owned(),
                        document: index + 1,
                        path: "metadata.name".to_owned(),
                        found: format!("{key} a second time"),
                        allowed: "each resource once".to_owned(),
                    });
                }
            }
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() {
        Ok(documents)
    } else {
        Err(problems)
    }
}

struct Check<'a> {
    source: &'a str,
    document: usize,
    /// Whether it is out of the store.
    stored: bool,
    problems: Vec<Problem>,
    /// Names that are referred to as ExternalServices.
    externals: BTreeSet<ServiceName>,
}

impl<'a> Check<'a> {
    fn new(source: &'a str, document: usize) -> Self {
        Self {
            source,
            document,
            stored: false,
            problems: Vec::new(),
            externals: BTreeSet::new(),
        }
    }

    fn add(&mut self, path: impl Into<String>, found: impl ToString, allowed: impl Into<String>) {
        self.problems.push(Problem {
            source_name: self.source.to_owned(),
            document: self.document,
            path: path.into(),
            found: found.to_string(),
            allowed: allowed.into(),
        });
    }
}

fn read_one(source: &str, document: usize, value: &Value) -> Result<Document, Vec<Problem>> {
    checked(Check::new(source, document), value)
}

fn checked(mut check: Check<'_>, value: &Value) -> Result<Document, Vec<Problem>> {
    let read = parse(&mut check, value);
    match read {
        Some(read) if check.problems.is_empty() => Ok(read),
        Some(_) | None => Err(check.problems),
    }
}

fn parse(check: &mut Check<'_>, value: &Value) -> Option<Document> {
    let envelope: Envelope = check.typed("", value)?;
    let kind = envelope.kind.as_str();
    let Some((_, versions)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        check.add("kind", format!("{kind:?}"), kind_names());
        return None;
    };
    if !versions.contains(&&*envelope.api_version) {
        check.add("apiVersion", &envelope.api_version, versions.join(", "));
    }
    let metadata = &envelope.metadata;
    if check_label(&metadata.namespace).is_err() {
        let found = format!("{:?}", metadata.namespace);
        check.add("metadata.namespace", found, LABEL);
    }
    // Services are found by DNS; the names of all else are as Kubernetes has them.
    let (is_name, allowed) = match kind {
        "Service" | "ExternalService" => (check_label(&metadata.name).is_ok(), LABEL),
        _ => (check_subdomain(&metadata.name).is_ok(), SUBDOMAIN),
    };
    if !is_name {
        let found: String = metadata.name.chars().take(FOUND_MAX).collect();
        check.add("metadata.name", format!("{found:?}"), allowed);
    }
    let own = ObjectName {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
    };
    read_spec(check, kind, own, &envelope.spec)
}

/// Reads the `spec` of a kind.
fn read_spec(check: &mut Check<'_>, kind: &str, own: ObjectName, spec: &Value) -> Option<Document> {
    match kind {
        "Service" => {
            let spec: ServiceSpec = check.typed("spec.", spec)?;
            check_ports(check, &spec);
            let name = ServiceName::new(&own.namespace, &own.name).ok()?;
            Some(Document::Service(name, spec))
        }
        "MeshConfig" => {
            let spec: MeshConfigSpec = check.typed("spec.", spec)?;
            check_config(check, &own, &spec);
            Some(Document::MeshConfig(spec))
        }
        "TrafficPolicy" => {
            let spec: TrafficPolicySpec = check.typed("spec.", spec)?;
            check_policy(check, &own.namespace, &spec);
            Some(Document::TrafficPolicy(own, Box::new(spec)))
        }
        "ExternalService" => external::parse(check, &own, spec),
        "FaultInjection" => {
            let spec: FaultInjectionSpec = check.typed("spec.", spec)?;
            spec.read(check);
            Some(Document::FaultInjection(own, spec))
        }
        "RateLimitPolicy" => read_rate_limits(check, own, spec),
        "ReferenceGrant" => {
            let spec: ReferenceGrantSpec = check.typed("spec.", spec)?;
            check_grant(check, &spec);
            Some(Document::ReferenceGrant(own, spec))
        }
        "HTTPRoute" => {
            let spec: HttpRouteSpec = check.typed("spec.", spec)?;
            Some(read_route(check, own, RouteSpec::Http(Box::new(spec))))
        }
        "GRPCRoute" => {
            let spec: GrpcRouteSpec = check.typed("spec.", spec)?;
            Some(read_route(check, own, RouteSpec::Grpc(Box::new(spec))))
        }
        "TLSRoute" => {
            let spec: TlsRouteSpec = check.typed("spec.", spec)?;
            Some(read_route(check, own, RouteSpec::Tls(Box::new(spec))))
        }
        "TCPRoute" => {
            let spec: TcpRouteSpec = check.typed("spec.", spec)?;
            Some(read_route(check, own, RouteSpec::Tcp(Box::new(spec))))
        }
        // All of KINDS are above; a test reads an example of each.
        _ => None,
    }
}

fn read_rate_limits(check: &mut Check<'_>, name: ObjectName, spec: &Value) -> Option<Document> {
    let spec: RateLimitPolicySpec = check.typed("spec.", spec)?;
    spec.read(check, &name);
    Some(Document::RateLimitPolicy(name, spec))
}

fn read_route(check: &mut Check<'_>, name: ObjectName, spec: RouteSpec) -> Document {
    spec.read(check, &name);
    Document::Route(name, spec)
}

fn check_config(check: &mut Check<'_>, own: &ObjectName, spec: &MeshConfigSpec) {
    if (&*own.namespace, &*own.name) != ("weft-system", "mesh") {
        let found = format!("{}/{}", own.namespace, own.name);
        let allowed = "weft-system/mesh: there is one MeshConfig";
        check.add("metadata", found, allowed);
    }
    for namespace in spec.namespaces.keys() {
        if check_label(namespace).is_err() {
            check.add("spec.namespaces", format!("{namespace:?}"), LABEL);
        }
    }
    let ranges = &spec.workload_ranges;
    if ranges.len() > RANGES_MAX {
        let found = format!("{} of them", ranges.len());
        check.add("spec.workloadRanges", found, "256 at most");
    }
    for (index, range) in ranges.iter().enumerate().take(RANGES_MAX) {
        let path = format!("spec.workloadRanges[{index}]");
        if Cidr::parse(range).is_none() {
            let allowed = "a range ADDRESS/PREFIX, as in 10.0.0.0/8";
            check.add(path, format!("{range:?}"), allowed);
        } else if ranges[..index].contains(range) {
            check.add(path, format!("{range} again"), "each range once");
        }
    }
}

fn check_grant(check: &mut Check<'_>, spec: &ReferenceGrantSpec) {
    for (field, count) in [("from", spec.from.len()), ("to", spec.to.len())] {
        if !(1..=GRANTS_MAX).contains(&count) {
            let found = match count {
                0 => "none".to_owned(),
                count => format!("{count} of them"),
            };
            check.add(format!("spec.{field}"), found, "1 to 16");
        }
    }
    for (index, from) in spec.from.iter().enumerate().take(GRANTS_MAX) {
        if spec.from[..index].contains(from) {
            let path = format!("spec.from[{index}]");
            check.add(path, "the same again", "each once");
        }
        if check_label(&from.namespace).is_err() {
            let path = format!("spec.from[{index}].namespace");
            check.add(path, format!("{:?}", from.namespace), LABEL);
        }
        let kinds = RouteKind::ALL.map(RouteKind::as_str);
        let known = from.group == GATEWAY_GROUP && kinds.contains(&&*from.kind);
        if !known {
            let path = format!("spec.from[{index}]");
            let found = format!("group {:?}, kind {:?}", from.group, from.kind);
            let kinds = kinds.join(" or ");
            check.add(path, found, format!("group {GATEWAY_GROUP}, kind {kinds}"));
        }
    }
    for (index, to) in spec.to.iter().enumerate().take(GRANTS_MAX) {
        if spec.to[..index].contains(to) {
            let path = format!("spec.to[{index}]");
            check.add(path, "the same again", "each once");
        }
        if let Some(name) = to.name.as_deref().filter(|name| check_label(name).is_err()) {
            let path = format!("spec.to[{index}].name");
            check.add(path, format!("{name:?}"), LABEL);
        }
        let known = (to.group.is_empty() && to.kind == "Service")
            || (to.group == API_GROUP && to.kind == "ExternalService");
        if !known {
            let path = format!("spec.to[{index}]");
            let found = format!("group {:?}, kind {:?}", to.group, to.kind);
            check.add(path, found, SERVICE_KINDS);
        }
    }
}

fn check_target(check: &mut Check<'_>, target: &TargetRef) {
    if check_label(&target.name).is_err() {
        check.add(
            "spec.targetRef.name",
            format!("{:?}", target.name),
            "the name of a Service or ExternalService of this namespace",
        );
    }
    if target.port == Some(0) {
        check.add("spec.targetRef.port", 0, "1 to 65535");
    }
}

fn check_policy(check: &mut Check<'_>, namespace: &str, spec: &TrafficPolicySpec) {
    check_target(check, &spec.target_ref);
    for (field, allowed) in spec.idle_fields() {
        check.add(format!("spec.{field}"), "a value", allowed);
    }
    for (field, found, allowed) in spec.health_check.iter().flat_map(HealthCheckSpec::misfits) {
        check.add(format!("spec.healthCheck{field}"), found, allowed);
    }
    let hash_on = spec.load_balancer.as_ref();
    let hash_on = hash_on.and_then(|balancer| balancer.hash_on.as_ref());
    if let Some(header) = hash_on.filter(|hash_on| hash_on.resolve().is_none()) {
        let found = format!("{header:?}");
        check.add(
            "spec.loadBalancer.hashOn.header",
            found,
            "the name of a header field",
        );
    }
    let fallback = spec.circuit_breaker.as_ref();
    let fallback = fallback.and_then(|breaker| breaker.fallback.as_ref());
    if let Some(FallbackSpec::Backend(backend)) = fallback
        && (FallbackSpec::Backend(backend.clone())
            .resolve(namespace)
            .is_none()
            || backend.port == 0)
    {
        let found = format!("{}:{}", backend.name, backend.port);
        let path = "spec.circuitBreaker.fallback.backend";
        check.add(
            path,
            found,
            "the name of a Service and a port from 1 to 65535",
        );
    }
    for (path, found, allowed) in spec.hedge.iter().flat_map(HedgeSpec::problems) {
        check.add(path, found, allowed);
    }
    if spec.path_normalization.is_some() {
        PathNormalizationSpec::check(check, spec.target_ref.kind);
    }
    if let Some(adaptive) = &spec.adaptive_concurrency {
        adaptive.check(check, spec.target_ref.kind);
    }
    for error in spec.resolve(namespace).validate() {
        let path = format!("spec.{}", error.field);
        check.add(path, error.found, error.allowed);
    }
}

fn check_ports(check: &mut Check<'_>, spec: &ServiceSpec) {
    if spec.ports.is_empty() || spec.ports.len() > PORTS_MAX {
        check.add(
            "spec.ports",
            format!("{} ports", spec.ports.len()),
            "1 to 64 ports",
        );
    }
    let mut seen = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        if port.port == 0 {
            check.add(format!("spec.ports[{index}].port"), 0, "1 to 65535");
        }
        if port.target_port == Some(0) {
            check.add(format!("spec.ports[{index}].targetPort"), 0, "1 to 65535");
        }
        if !seen.insert(port.port) {
            let path = format!("spec.ports[{index}].port");
            check.add(
                path,
                format!("{} a second time", port.port),
                "each port once",
            );
        }
    }
}

#[cfg(test)]
mod tests;
