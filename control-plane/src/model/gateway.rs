//! What the Gateway API's definitions in a cluster lack of what is read here. Pure.
//!
//! The API server drops fields that its definition of a kind does not have: an older bundle, or the
//! standard channel, takes retries or names of rules out of a route without a word.

use std::sync::LazyLock;

use gateway_api::experimental::grpcroutes::GrpcRoute;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::referencegrants::ReferenceGrant;
use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::experimental::tlsroutes::TlsRoute;
use kube::CustomResourceExt as _;
use serde_json::Value;

use super::kind::Kind;
use super::kinds::KINDS;
use super::route::GATEWAY_GROUP;

/// The annotation of a definition that says of which version of the Gateway API it is.
pub const BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";
/// The annotation that says of which channel: `standard` or `experimental`.
pub const CHANNEL: &str = "gateway.networking.k8s.io/channel";

/// Fields that are refused here wherever they are: that a definition does not have them takes nothing
/// away.
const NOT_READ: [&str; 3] = ["externalAuth", "sessionPersistence", "useDefaultGateways"];
/// Fields that are named of one definition.
const NAMED_MAX: usize = 20;

/// What is read of each of the Gateway API's kinds: the schema of its `spec`.
static READ: LazyLock<[(&str, Value); 5]> = LazyLock::new(|| {
    let definitions = [
        ("HTTPRoute", HttpRoute::crd()),
        ("GRPCRoute", GrpcRoute::crd()),
        ("TLSRoute", TlsRoute::crd()),
        ("TCPRoute", TcpRoute::crd()),
        ("ReferenceGrant", ReferenceGrant::crd()),
    ];
    definitions.map(|(kind, definition)| {
        let mut definition = serde_json::to_value(definition).unwrap_or_default();
        let version = &mut definition["spec"]["versions"][0];
        let schema = &mut version["schema"]["openAPIV3Schema"];
        (kind, schema["properties"]["spec"].take())
    })
});

/// The kinds of the Gateway API that are read here.
pub fn gateway_kinds() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| {
        let group = kind.version.split_once('/').map(|(group, _)| group);
        group == Some(GATEWAY_GROUP)
    })
}

/// Fields that are read of a kind and that a definition of it does not have, as in
/// `spec.rules[].retry`; none of a kind that is not the Gateway API's. `definition` is the whole schema
/// of the object, `openAPIV3Schema`.
pub fn lacking(kind: &str, definition: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some((_, read)) = READ.iter().find(|(name, _)| *name == kind) {
        compare("spec", read, &definition["properties"]["spec"], &mut found);
    }
    found.truncate(NAMED_MAX);
    found
}

fn compare(path: &str, read: &Value, there: &Value, found: &mut Vec<String>) {
    if there["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    for (name, read) in read["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match there["properties"].get(name) {
            _ if NOT_READ.contains(&&**name) => {}
            Some(there) => compare(&path, read, there, found),
            None => found.push(path),
        }
    }
    if read["items"].is_object() {
        compare(&format!("{path}[]"), &read["items"], &there["items"], found);
    }
}

/// What is said of routes of a kind whose definition lacks these fields.
pub fn lacking_in_words(kind: &str, lacking: &[String]) -> Option<String> {
    (!lacking.is_empty()).then(|| {
        format!(
            "the cluster's definition of {kind} is older than what is read here, or of the standard \
             channel: the API server drops {}; install the Gateway API's experimental channel, 1.5",
            lacking.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The definition that has everything.
    fn whole(kind: &str) -> Value {
        let (_, spec) = READ.iter().find(|(name, _)| *name == kind).unwrap();
        json!({"properties": {"spec": spec}})
    }

    /// Takes a field away, of `rules[]` where the path says so.
    fn without(mut definition: Value, path: &str) -> Value {
        let pointer = path.replace("[]", "/items").replace('.', "/properties/");
        let pointer = format!("/properties/{pointer}");
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = definition.pointer_mut(parent).unwrap();
        parent.as_object_mut().unwrap().remove(name).unwrap();
        definition
    }

    #[test]
    fn every_kind_of_the_gateway_api_is_compared() {
        let kinds: Vec<&str> = gateway_kinds().map(|kind| kind.name).collect();
        assert_eq!(kinds.len(), READ.len());
        for kind in kinds {
            assert_eq!(lacking(kind, &whole(kind)), Vec::<String>::new());
            let nothing = lacking(kind, &json!({"properties": {}}));
            assert!(!nothing.is_empty(), "{kind} has no schema");
        }
        assert_eq!(lacking("TrafficPolicy", &json!({})), Vec::<String>::new());
    }

    #[test]
    fn fields_that_a_definition_lacks_are_named() {
        for (kind, field, expected) in [
            ("HTTPRoute", "spec.rules[].retry", true),
            ("HTTPRoute", "spec.rules[].name", true),
            ("HTTPRoute", "spec.rules[].timeouts", true),
            ("HTTPRoute", "spec.rules[].filters[].cors", true),
            (
                "HTTPRoute",
                "spec.rules[].filters[].requestMirror.percent",
                true,
            ),
            ("HTTPRoute", "spec.parentRefs[].port", true),
            ("GRPCRoute", "spec.parentRefs[].port", true),
            ("TLSRoute", "spec.rules[].name", true),
            ("TCPRoute", "spec.rules[].backendRefs[].weight", true),
            ("ReferenceGrant", "spec.to[].name", true),
            // Refused here anyway.
            ("HTTPRoute", "spec.rules[].sessionPersistence", false),
            ("HTTPRoute", "spec.rules[].filters[].externalAuth", false),
            ("GRPCRoute", "spec.useDefaultGateways", false),
        ] {
            let found = lacking(kind, &without(whole(kind), field));
            let expected = expected.then(|| field.to_owned());
            assert_eq!(found, Vec::from_iter(expected), "{kind}");
        }
        let open = json!({"properties": {"spec": {"x-kubernetes-preserve-unknown-fields": true}}});
        assert_eq!(lacking("HTTPRoute", &open), Vec::<String>::new());
    }

    #[test]
    fn what_is_dropped_is_said_with_what_to_do() {
        assert_eq!(lacking_in_words("HTTPRoute", &[]), None);
        let said = lacking_in_words("HTTPRoute", &["spec.rules[].retry".to_owned()]).unwrap();
        assert!(
            said.contains("drops spec.rules[].retry; install "),
            "{said}"
        );
    }
}
