//! Documents that are refused, and what they are written with.

/// A document that is refused, and where, for what found, with what allowed.
pub(super) struct Bad {
    pub(super) what: &'static str,
    pub(super) text: String,
    pub(super) parts: [&'static str; 3],
}

pub(super) fn bad(what: &'static str, text: impl Into<String>, parts: [&'static str; 3]) -> Bad {
    let text = text.into();
    Bad { what, text, parts }
}

pub(super) const GATEWAY: &str = "gateway.networking.k8s.io/v1";
pub(super) const OURS: &str = "weft-mesh.io/v1alpha1";

pub(super) fn document(version: &str, kind: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {version}\nkind: {kind}\n\
         metadata: {{name: bad, namespace: shop}}\nspec: {spec}\n"
    )
}

pub(super) const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: web}]";

/// A route of a kind for `web`.
pub(super) fn route(kind: &str, rest: &str) -> String {
    let version = match kind {
        "TCPRoute" => "gateway.networking.k8s.io/v1alpha2",
        _ => GATEWAY,
    };
    document(version, kind, &format!("{{{PARENT}, {rest}}}"))
}

/// An HTTPRoute with one rule.
pub(super) fn rule(rule: &str) -> String {
    route("HTTPRoute", &format!("rules: [{rule}]"))
}

pub(super) fn policy(rest: &str) -> String {
    let target = "targetRef: {kind: Service, name: web}";
    document(OURS, "TrafficPolicy", &format!("{{{target}, {rest}}}"))
}

pub(super) fn config(spec: &str) -> String {
    document(OURS, "MeshConfig", spec).replace(
        "{name: bad, namespace: shop}",
        "{name: mesh, namespace: weft-system}",
    )
}

pub(super) fn grant(spec: &str) -> String {
    document(GATEWAY, "ReferenceGrant", spec)
}

pub(super) fn fault(spec: &str) -> String {
    document(OURS, "FaultInjection", spec)
}

pub(super) const BACKENDS: &str = "rules[0].backendRefs[0]";
pub(super) const TO_WEB: &str = "{backendRefs: [{name: web, port: 8080}]}";
