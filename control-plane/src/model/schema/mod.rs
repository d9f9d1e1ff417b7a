//! CustomResourceDefinitions of our kinds, generated from the types of their `spec`.
//!
//! The shape of a document comes from the types; what [`validate`](super::DocumentKind::validate)
//! asks of one document beyond that is said in `traffic_policy.rs`, `external_service.rs` and
//! `others.rs` as limits and as rules in CEL, so that the API server refuses what `weft apply`
//! refuses and no webhook stands in between. `Service` is left out: in a cluster, services are the
//! cluster's own.

mod external_service;
mod others;
mod overlay;
mod structural;
mod traffic_policy;

use schemars::JsonSchema;
use serde_json::{Value, json};

use super::external_service::ExternalServiceSpec;
use super::fault_injection::FaultInjectionSpec;
use super::kind::{API_GROUP, API_VERSION, DocumentKind};
use super::mesh_config::MeshConfigSpec;
use super::rate_limit::RateLimitPolicySpec;
use super::traffic_policy::TrafficPolicySpec;
use overlay::Overlay;

/// A column of `kubectl get`: its name, its type, and where its value is.
type Column = (&'static str, &'static str, &'static str);

const TARGET: Column = ("Target", "string", ".spec.targetRef.name");
const AGE: Column = ("Age", "date", ".metadata.creationTimestamp");
/// Whether the proxies concerned have it, of a document with conditions of its own.
const PROGRAMMED: Column = (
    "Programmed",
    "string",
    ".status.conditions[?(@.type==\"weft-mesh.io/Programmed\")].status",
);
/// The same, of a policy with conditions for each ancestor.
const POLICY_PROGRAMMED: Column = (
    "Programmed",
    "string",
    ".status.ancestors[0].conditions[?(@.type==\"weft-mesh.io/Programmed\")].status",
);

/// The CustomResourceDefinitions of our kinds.
pub fn crds() -> Vec<Value> {
    let (crds, _misplaced) = build();
    crds
}

/// The CustomResourceDefinitions of our kinds as `kubectl apply` reads them.
pub fn crds_yaml() -> String {
    let mut text = String::from("# Written by `weft crds`.\n");
    for crd in crds() {
        // Plain values with string keys: their YAML cannot fail.
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd).unwrap_or_default());
    }
    text
}

/// The definitions, and what the limits and rules name that is in no schema.
fn build() -> (Vec<Value>, Vec<String>) {
    let mut misplaced = Vec::new();
    let mut crds = Vec::new();
    let mut add = |(crd, missing): (Value, Vec<String>)| {
        crds.push(crd);
        misplaced.extend(missing);
    };
    add(crd::<TrafficPolicySpec>(
        &["tp"],
        &[TARGET, POLICY_PROGRAMMED, AGE],
        policy_status(),
        traffic_policy::refine,
    ));
    add(crd::<RateLimitPolicySpec>(
        &["rlp"],
        &[TARGET, POLICY_PROGRAMMED, AGE],
        policy_status(),
        others::refine_rate_limit,
    ));
    add(crd::<FaultInjectionSpec>(
        &["fi"],
        &[PROGRAMMED, AGE],
        status(),
        others::refine_fault,
    ));
    add(crd::<ExternalServiceSpec>(
        &["exts"],
        &[
            ("Hosts", "string", ".spec.hosts"),
            ("Resolution", "string", ".spec.resolution"),
            PROGRAMMED,
            AGE,
        ],
        status(),
        external_service::refine,
    ));
    add(crd::<MeshConfigSpec>(
        &["mc"],
        &[
            ("Unknown", "string", ".spec.unknownDestinations"),
            PROGRAMMED,
            AGE,
        ],
        status(),
        others::refine_mesh,
    ));
    (crds, misplaced)
}

/// The definition of a kind.
fn crd<K: DocumentKind + JsonSchema>(
    short_names: &[&str],
    columns: &[Column],
    status: Value,
    refine: fn(&mut Overlay<'_>),
) -> (Value, Vec<String>) {
    let mut spec = structural::of::<K>();
    let mut overlay = Overlay::new(&mut spec);
    refine(&mut overlay);
    let misplaced = overlay.misplaced();
    structural::bound(&mut spec);
    let mut schema = json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    });
    let mut whole = Overlay::new(&mut schema);
    others::refine_name::<K>(&mut whole);
    let columns = columns
        .iter()
        .map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}));
    let version = API_VERSION.rsplit('/').next().unwrap_or_default();
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{API_GROUP}", K::PLURAL),
            "labels": {"app.kubernetes.io/part-of": "weft"},
        },
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": K::NAME,
                "plural": K::PLURAL,
                "singular": K::NAME.to_lowercase(),
                "listKind": format!("{}List", K::NAME),
                "shortNames": short_names,
                "categories": ["weft"],
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns.collect::<Vec<_>>(),
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    });
    (crd, misplaced)
}

/// Conditions, as Kubernetes' own type has them.
fn conditions() -> Value {
    json!({
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "maxLength": 316},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
                "message": {"type": "string", "maxLength": 32768},
            },
        },
    })
}

fn status() -> Value {
    json!({"type": "object", "properties": {"conditions": conditions()}})
}

/// The status of a policy (GEP-713): conditions for each of those that it is for.
fn policy_status() -> Value {
    let text = json!({"type": "string", "maxLength": 253});
    json!({
        "type": "object",
        "properties": {
            "ancestors": {
                "type": "array",
                "maxItems": 16,
                "items": {
                    "type": "object",
                    "required": ["ancestorRef", "controllerName"],
                    "properties": {
                        "ancestorRef": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {
                                "group": text,
                                "kind": text,
                                "namespace": text,
                                "name": text,
                                "sectionName": text,
                                "port": {"type": "integer", "format": "int32"},
                            },
                        },
                        "controllerName": text,
                        "conditions": conditions(),
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests;
