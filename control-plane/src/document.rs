//! The user-facing model: documents in Kubernetes' form, read strictly. What is wrong is said with
//! file, field path, what was found and what is allowed, for the whole input at once.

mod traffic_policy;

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use weft_core::model::{AppProtocol, Cidr, UnknownDestinations};
use weft_core::name::{ServiceName, check_label};

use crate::store::ResourceKey;

pub use traffic_policy::{
    BackoffSpec, BudgetSpec, CircuitBreakerSpec, HalfOpenSpec, LimitsSpec, LoadBalancerSpec,
    LoadBalancerType, RetrySpec, TargetKind, TargetRef, Time, TimeoutsSpec, TrafficPolicySpec,
    WindowSpec,
};

/// The group and version of our own kinds.
pub const API_VERSION: &str = "weft-mesh.io/v1alpha1";
/// The kinds that exist. To add one: a variant of [`Document`], its spec, and its checks below.
pub const KINDS: [&str; 3] = ["Service", "MeshConfig", "TrafficPolicy"];
/// Largest input, bytes.
pub const INPUT_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Documents in one input.
const DOCUMENTS_MAX: usize = 1000;
/// Ports of a service.
const PORTS_MAX: usize = 64;

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
    TrafficPolicy(PolicyName, Box<TrafficPolicySpec>),
}

/// What a policy goes by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyName {
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
    _labels: std::collections::BTreeMap<String, String>,
    #[serde(default, rename = "annotations")]
    _annotations: std::collections::BTreeMap<String, String>,
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
            Self::TrafficPolicy(policy, _) => key("TrafficPolicy", &policy.namespace, &policy.name),
        }
    }

    /// The document as it is stored and shown.
    pub fn to_value(&self) -> Value {
        let key = self.key();
        let spec = match self {
            Self::Service(_, spec) => serde_json::to_value(spec),
            Self::MeshConfig(spec) => serde_json::to_value(spec),
            Self::TrafficPolicy(_, spec) => serde_json::to_value(spec),
        };
        serde_json::json!({
            "apiVersion": API_VERSION,
            "kind": key.kind,
            "metadata": { "name": key.name, "namespace": key.namespace },
            "spec": spec.unwrap_or_default(),
        })
    }

    /// Reads one that was stored.
    pub fn from_value(value: Value) -> Result<Self, Vec<Problem>> {
        read_one("the store", 1, value)
    }
}

/// Reads every document of an input: all are good, or everything that is wrong is said.
pub fn read(source: &str, text: &str) -> Result<Vec<Document>, Vec<Problem>> {
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
        let first = text.lines().next().unwrap_or_default().to_owned();
        whole(first, "well-formed YAML or JSON")
    })?;
    let values: Vec<Value> = values.into_iter().filter(|v| !v.is_null()).collect();
    if values.is_empty() || values.len() > DOCUMENTS_MAX {
        return Err(whole(format!("{} documents", values.len()), "1 to 1000"));
    }
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    let mut keys = BTreeSet::new();
    for (index, value) in values.into_iter().enumerate() {
        match read_one(source, index + 1, value) {
            Ok(document) => {
                let key = document.key();
                if keys.insert(key.clone()) {
                    documents.push(document);
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
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn add(&mut self, path: impl Into<String>, found: impl ToString, allowed: impl Into<String>) {
        self.problems.push(Problem {
            source_name: self.source.to_owned(),
            document: self.document,
            path: path.into(),
            found: found.to_string(),
            allowed: allowed.into(),
        });
    }

    /// Reads a value strictly: unknown fields are problems.
    fn typed<T: for<'de> Deserialize<'de>>(&mut self, prefix: &str, value: &Value) -> Option<T> {
        let mut unknown = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string());
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
        let result = T::deserialize(serde_ignored::Deserializer::new(deserializer, &mut note));
        for path in unknown {
            self.add(
                format!("{prefix}{path}"),
                "an unknown field",
                "fields of this kind",
            );
        }
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let path = track.path().to_string();
                let path = if path == "." { String::new() } else { path };
                let path = format!("{prefix}{path}");
                let text = error.to_string();
                let (found, allowed) = text.split_once(", expected ").unwrap_or((&text, ""));
                // serde names the type; people want to know the range.
                let allowed = match allowed {
                    "u16" => "an integer from 1 to 65535",
                    "" => "what the guide says",
                    other => other,
                };
                self.add(path.trim_end_matches('.'), found, allowed);
                None
            }
        }
    }
}

fn read_one(source: &str, document: usize, value: Value) -> Result<Document, Vec<Problem>> {
    let mut check = Check {
        source,
        document,
        problems: Vec::new(),
    };
    let read = parse(&mut check, &value);
    match read {
        Some(read) if check.problems.is_empty() => Ok(read),
        Some(_) | None => Err(check.problems),
    }
}

fn parse(check: &mut Check<'_>, value: &Value) -> Option<Document> {
    let envelope: Envelope = check.typed("", value)?;
    if envelope.api_version != API_VERSION {
        check.add("apiVersion", &envelope.api_version, API_VERSION);
    }
    let metadata = &envelope.metadata;
    for (path, text) in [
        ("metadata.name", &metadata.name),
        ("metadata.namespace", &metadata.namespace),
    ] {
        if check_label(text).is_err() {
            let allowed =
                "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit";
            check.add(path, format!("{text:?}"), allowed);
        }
    }
    match envelope.kind.as_str() {
        "Service" => {
            let spec: ServiceSpec = check.typed("spec.", &envelope.spec)?;
            check_ports(check, &spec);
            let name = ServiceName::new(&metadata.namespace, &metadata.name).ok()?;
            Some(Document::Service(name, spec))
        }
        "MeshConfig" => {
            let spec: MeshConfigSpec = check.typed("spec.", &envelope.spec)?;
            if (metadata.namespace.as_str(), metadata.name.as_str()) != ("weft-system", "mesh") {
                let found = format!("{}/{}", metadata.namespace, metadata.name);
                check.add(
                    "metadata",
                    found,
                    "weft-system/mesh: there is one MeshConfig",
                );
            }
            for (index, range) in spec.workload_ranges.iter().enumerate() {
                if Cidr::parse(range).is_none() {
                    let path = format!("spec.workloadRanges[{index}]");
                    check.add(path, format!("{range:?}"), "a range ADDRESS/PREFIX");
                }
            }
            Some(Document::MeshConfig(spec))
        }
        "TrafficPolicy" => {
            let spec: TrafficPolicySpec = check.typed("spec.", &envelope.spec)?;
            check_policy(check, &spec);
            let name = PolicyName {
                namespace: envelope.metadata.namespace,
                name: envelope.metadata.name,
            };
            Some(Document::TrafficPolicy(name, Box::new(spec)))
        }
        other => {
            check.add("kind", format!("{other:?}"), KINDS.join(", "));
            None
        }
    }
}

fn check_policy(check: &mut Check<'_>, spec: &TrafficPolicySpec) {
    let target = &spec.target_ref;
    if check_label(&target.name).is_err() {
        check.add(
            "spec.targetRef.name",
            format!("{:?}", target.name),
            "the name of a Service of this namespace",
        );
    }
    if target.port == Some(0) {
        check.add("spec.targetRef.port", 0, "1 to 65535");
    }
    for error in spec.resolve().validate() {
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
mod tests {
    use super::*;

    fn service(spec: &str) -> String {
        format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
        )
    }

    #[track_caller]
    fn check(text: &str, path: &str, found: &str) {
        let problems = read("file.yaml", text).unwrap_err();
        let hit = problems
            .iter()
            .any(|p| p.path.contains(path) && p.found.contains(found));
        assert!(hit, "{path} {found} not in {problems:#?}");
    }

    #[test]
    fn good_ones() {
        let text = service("{ports: [{port: 80, targetPort: 8080, protocol: http}]}");
        let documents = read("-", &text).unwrap();
        let value = documents[0].to_value();
        assert_eq!(Document::from_value(value).unwrap(), documents[0]);
        let two = format!(
            "{text}---\napiVersion: weft-mesh.io/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh, namespace: weft-system}}\nspec: {{unknownDestinations: refuse}}\n"
        );
        assert_eq!(read("-", &two).unwrap().len(), 2);
    }

    #[test]
    fn the_examples_are_good() {
        let examples = [
            include_str!("../../deploy/examples/service.yaml"),
            include_str!("../../deploy/examples/mesh-config.yaml"),
            include_str!("../../deploy/examples/traffic-policy.yaml"),
        ];
        let kinds: BTreeSet<String> = examples
            .into_iter()
            .flat_map(|text| read("-", text).unwrap())
            .map(|document| document.key().kind)
            .collect();
        assert_eq!(kinds.len(), KINDS.len(), "an example for every kind");
    }

    #[test]
    fn policies_are_read_strictly() {
        let policy = |rest: &str| {
            format!(
                "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRef: {{kind: Service, name: web}}, {rest}}}\n"
            )
        };
        let good = policy("circuitBreaker: {window: {count: 10}, openTime: 1500ms}");
        let document = read("-", &good).unwrap().remove(0);
        assert_eq!(Document::from_value(document.to_value()).unwrap(), document);
        let cases = [
            ("timeouts: {request: soon}", "spec.timeouts.request", "soon"),
            ("timeouts: {request: -1s}", "spec.timeouts.request", "-1s"),
            ("timeouts: {request: 0s}", "spec.timeouts.request", "0"),
            (
                "timeouts: {request: 1s, perTry: 2s}",
                "spec.timeouts.perTry",
                "2s",
            ),
            (
                "circuitBreaker: {failureRate: 1.5}",
                "spec.circuitBreaker.failureRate",
                "1.5",
            ),
            (
                "circuitBreaker: {window: {count: 1, time: 1s}}",
                "spec.circuitBreaker.window",
                "",
            ),
            (
                "loadBalancer: {type: fair}",
                "spec.loadBalancer.type",
                "fair",
            ),
            ("retry: {attempts: 99}", "spec.retry.attempts", "99"),
            ("retry: {atempts: 1}", "spec.retry", "unknown"),
            (
                "retry: {budget: {ratio: -1}}",
                "spec.retry.budget.ratio",
                "",
            ),
        ];
        for (rest, path, found) in cases {
            check(&policy(rest), path, found);
        }
    }

    #[test]
    fn bad_ones() {
        check("a: [", "(input)", "");
        check("", "(input)", "0 documents");
        check(&"#".repeat(INPUT_MAX_BYTES + 1), "(input)", "bytes");
        check(&service("{ports: [{port: 80}], x: 1}"), "spec.x", "unknown");
        check(
            &service("{ports: [{port: 80, colour: red}]}"),
            "spec.ports",
            "unknown",
        );
        check(
            &service("{ports: [{port: eighty}]}"),
            "spec.ports[0].port",
            "eighty",
        );
        check(
            &service("{ports: [{port: 70000}]}"),
            "spec.ports[0].port",
            "70000",
        );
        check(&service("{ports: [{port: 0}]}"), "spec.ports[0].port", "0");
        check(
            &service("{ports: [{port: 1}, {port: 1}]}"),
            "spec.ports[1]",
            "second",
        );
        check(
            &service("{ports: [{port: 1, protocol: carrier-pigeon}]}"),
            "spec.ports[0].protocol",
            "pigeon",
        );
        check(&service("{ports: []}"), "spec.ports", "0 ports");
        check(&service("{}"), "spec", "ports");
        let text = service("{ports: [{port: 1}]}");
        check(&text.replace("Service", "Servise"), "kind", "Servise");
        check(&text.replace("v1alpha1", "v9"), "apiVersion", "v9");
        check(
            &text.replace("name: web", "name: Web!"),
            "metadata.name",
            "Web!",
        );
        check(
            &format!("{text}---\n{text}"),
            "metadata.name",
            "second time",
        );
    }
}
