use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use serde_json::{Value, json};

use super::*;

fn facts(asks: bool, ends: bool) -> NamespaceFacts {
    NamespaceFacts { asks, ends }
}

fn map(roots: &str, immutable: Option<bool>) -> ConfigMap {
    let map = json!({
        "metadata": {"name": "weft-trust-bundle", "resourceVersion": "7"},
        "data": {"roots.pem": roots},
        "immutable": immutable,
    });
    serde_json::from_value(map).unwrap()
}

#[test]
fn every_namespace_with_sidecars_has_the_roots() {
    let mut observed = Observed::default();
    for (name, facts) in [
        ("asks", facts(true, false)),
        ("ends", facts(true, true)),
        ("has-pods", facts(false, false)),
        ("has-an-old-map", facts(false, false)),
        ("has-a-good-map", facts(true, false)),
        ("has-a-fixed-map", facts(true, false)),
        ("has-a-map-that-goes", facts(true, false)),
        ("neither", facts(false, false)),
    ] {
        observed.namespaces.insert(name.to_owned(), facts);
    }
    // Deleted again and again, one with a finalizer would be a request in a loop.
    let mut going = map("old", Some(true));
    going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
    let pods = ["web-1".to_owned()].into();
    observed.injected.insert("has-pods".to_owned(), pods);
    for (name, map) in [
        ("has-an-old-map", map("old", None)),
        ("has-a-good-map", map("new", Some(true))),
        ("has-a-fixed-map", map("old", Some(true))),
        ("gone", map("old", None)),
        ("has-a-map-that-goes", going),
    ] {
        observed.maps.insert(name.to_owned(), map);
    }
    let [asks, has_pods, old, fixed] =
        ["asks", "has-pods", "has-an-old-map", "has-a-fixed-map"].map(str::to_owned);
    let seven = || "7".to_owned();
    let expected = [
        Step::Create(asks),
        Step::Remove(fixed, seven()),
        Step::Replace(old, seven()),
        Step::Create(has_pods),
    ];
    assert_eq!(decide(&observed, "new"), expected);
}

fn configuration(bundles: &[Option<&str>]) -> MutatingWebhookConfiguration {
    let webhooks = bundles.iter().map(|bundle| {
        let bundle = bundle.map(|bundle| ByteString(bundle.as_bytes().to_vec()));
        json!({
            "name": "n",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"url": "https://localhost", "caBundle": bundle},
        })
    });
    let webhooks: Vec<Value> = webhooks.collect();
    let configuration = json!({"metadata": {"resourceVersion": "9"}, "webhooks": webhooks});
    serde_json::from_value(configuration).unwrap()
}

#[test]
fn only_bundles_that_are_stale_are_patched() {
    let patched = |bundles: &[Option<&str>]| {
        let observed = Observed {
            webhook: Some(configuration(bundles)),
            ..Observed::default()
        };
        decide(&observed, "new")
    };
    assert_eq!(patched(&[]), []);
    assert_eq!(patched(&[Some("new"), Some("new")]), []);
    let steps = patched(&[Some("new"), None, Some("old")]);
    let [Step::PatchWebhook(patch)] = &*steps else {
        panic!("{steps:?}");
    };
    let expected = json!([
        {"op": "test", "path": "/metadata/resourceVersion", "value": "9"},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "bmV3"},
        {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "bmV3"},
    ]);
    assert_eq!(json!(patch), expected);
}

#[test]
fn a_namespace_asks_by_its_label() {
    for (metadata, expected) in [
        (json!({}), facts(false, false)),
        (
            json!({"labels": {"weft-mesh.io/inject": "disabled"}}),
            facts(false, false),
        ),
        (
            json!({"labels": {"weft-mesh.io/inject": "enabled"}}),
            facts(true, false),
        ),
        (
            json!({"labels": {"weft-mesh.io/inject": "enabled"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}),
            facts(true, true),
        ),
    ] {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        assert_eq!(NamespaceFacts::from(&namespace), expected);
    }
}
