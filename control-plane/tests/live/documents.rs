//! Documents: names as Kubernetes has them, labels and annotations.

use http::Method;
use serde_json::{Value, json};
use weft_api::client::ClientError;
use weft_api::types::{Action, ApplyResult};
use weft_proto::identity::sign_request::Credential;
use weft_proto::resource::{Kind, Resource};

use crate::support::{ControlPlane, Sidecar, wait_until};

/// Names of a Service, a route with two rules, its fault, a policy, limits, and a grant.
fn named(route: &str, rule: &str) -> String {
    format!(
        r#"
apiVersion: weft-mesh.io/v1alpha1
kind: Service
metadata: {{name: web, namespace: shop}}
spec: {{ports: [{{port: 80, protocol: http}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {route}, namespace: shop}}
spec:
  parentRefs: [{{group: "", kind: Service, name: web}}]
  rules:
    - name: {rule}
      matches: [{{path: {{type: PathPrefix, value: /slow}}}}]
      filters:
        - type: ExtensionRef
          extensionRef: {{group: weft-mesh.io, kind: FaultInjection, name: slow.by.half}}
      backendRefs: [{{name: web, port: 80}}]
    - backendRefs: [{{name: web, port: 80}}]
---
apiVersion: weft-mesh.io/v1alpha1
kind: FaultInjection
metadata: {{name: slow.by.half, namespace: shop}}
spec: {{delay: {{time: 10ms, percentage: 50}}}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {{name: web.defaults, namespace: shop}}
spec: {{targetRef: {{kind: Service, name: web}}, timeouts: {{request: 5s}}}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: RateLimitPolicy
metadata: {{name: web.limits.v1, namespace: shop}}
spec: {{targetRef: {{kind: Service, name: web}}, rules: [{{requests: 10, per: 1s}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {{name: from.lab, namespace: shop}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: lab}}]
  to: [{{group: "", kind: Service}}]
"#
    )
}

/// 253 characters with dots in them.
fn long() -> String {
    [
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(61),
    ]
    .join(".")
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_have_dots() {
    let control_plane = ControlPlane::start().await;
    // A pod's name and a service account's are subdomains too.
    let token = control_plane
        .token_for("shop/web.v1-0", Some("web.v1"), &["shop/web"], &[80])
        .await;
    let mut web = Sidecar::new(&control_plane);
    web.sign(Credential::JoinToken(token)).await.unwrap();
    let _registered = web.register(&[80]).await;
    let (first, long) = ("web.v2.split".to_owned(), long());
    for (route, rule) in [(&first, &long), (&long, &first)] {
        let applied = control_plane.apply(&named(route, rule)).await.unwrap();
        wait_until("sidecars are told", async || {
            let status = control_plane.get("/v1/status").await;
            status["compiledRevision"] == applied.revision
        })
        .await;
        let policies = control_plane.get("/v1/effective").await;
        assert_eq!(policies[0]["policy"], "web.defaults");
        assert_eq!(policies[0]["rateLimits"][0]["policy"], "web.limits.v1");
        let steps =
            json!({"from": "lab/caller.v1", "method": "GET", "url": "http://web.shop.mesh/slow"});
        let steps: Value = control_plane
            .client()
            .post("/v1/explain", &steps)
            .await
            .unwrap();
        let by = format!("\"route shop/{route}\"");
        assert!(steps.to_string().contains(&by), "{by}: {steps}");

        // What a sidecar gets has the same names.
        let mut discovery = web.discover().await;
        discovery.ask(Kind::Service, &["shop/web"], &[]).await;
        let push = discovery.next().await.unwrap();
        let encoded = push.resources[0].resource.as_ref().unwrap();
        let Resource::Service(service) = Resource::decode(encoded).unwrap() else {
            panic!("not a service: {encoded:?}");
        };
        let found = &service.routes[0];
        assert_eq!(
            (&*found.name.namespace, &*found.name.name),
            ("shop", &**route)
        );
        assert_eq!(found.rules[0].name.as_deref(), Some(&**rule));
        drop(discovery);

        let path = format!("/v1/resources/httproutes/shop/{route}");
        let client = control_plane.client();
        let deleted = client.call::<(), ApplyResult>(Method::DELETE, &path, None);
        let deleted = deleted.await.unwrap();
        assert_eq!(deleted.resources[0].key.name, *route);
        assert_eq!(deleted.resources[0].action, Action::Deleted);
    }
}

/// Services are found by DNS, and namespaces are labels.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_name_is_refused() {
    let control_plane = ControlPlane::start().await;
    let long = long();
    for (text, path) in [
        (named(&format!("{long}x"), "a"), "metadata.name"),
        (named("a..b", "a"), "metadata.name"),
        (named("a", "b."), "spec.rules[0].name"),
        (
            named("a", "b").replace(
                "{name: web, namespace: shop}",
                "{name: web.v1, namespace: shop}",
            ),
            "metadata.name",
        ),
        (
            named("a", "b").replace(
                "{name: web, namespace: shop}",
                "{name: web, namespace: sh.op}",
            ),
            "metadata.namespace",
        ),
    ] {
        let refused = control_plane.apply(&text).await.unwrap_err();
        let ClientError::Refused { problems, .. } = refused else {
            panic!("{path}: {refused}");
        };
        assert!(
            problems.iter().any(|problem| problem.path == path),
            "{path}: {problems:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_annotations_are_kept() {
    let control_plane = ControlPlane::start().await;
    let service = |labels: &str| {
        format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\n\
             metadata: {{name: web, namespace: shop, {labels}}}\n\
             spec: {{ports: [{{port: 80}}]}}\n"
        )
    };
    let first = "labels: {app.kubernetes.io/name: web}, annotations: {note: 'any text'}";
    let created = control_plane.apply(&service(first)).await.unwrap();
    assert_eq!(created.resources[0].action, Action::Created);
    let again = control_plane.apply(&service(first)).await.unwrap();
    assert_eq!(again.resources[0].action, Action::Unchanged);
    let shown = control_plane.get("/v1/resources?kind=services").await;
    let metadata = json!({
        "name": "web",
        "namespace": "shop",
        "labels": {"app.kubernetes.io/name": "web"},
        "annotations": {"note": "any text"},
        "resourceVersion": "1",
    });
    assert_eq!(shown[0]["metadata"], metadata);
    wait_until("it is shown among services", async || {
        control_plane.get("/v1/services").await[0]["metadata"] == metadata
    })
    .await;

    // Other labels are another revision, and nothing that sidecars are told.
    let mut sidecar = control_plane
        .enrol("shop/caller", &[])
        .await
        .discover()
        .await;
    sidecar.ask(Kind::Service, &["shop/web"], &[]).await;
    sidecar.until("+shop/web").await;
    while !sidecar.quiet().await {}
    let changed = control_plane
        .apply(&service("labels: {tier: front}"))
        .await
        .unwrap();
    assert_eq!(changed.resources[0].action, Action::Changed);
    assert_eq!(changed.revision, again.revision + 1);
    let shown = control_plane.get("/v1/resources?kind=services").await;
    let metadata = json!({"name": "web", "namespace": "shop", "labels": {"tier": "front"}, "resourceVersion": "2"});
    assert_eq!(shown[0]["metadata"], metadata);
    assert_eq!(shown[0]["status"]["generation"], 2);
    assert!(sidecar.quiet().await, "labels were pushed");

    let control_plane = control_plane.restart().await;
    let shown = control_plane.get("/v1/resources?kind=services").await;
    assert_eq!(shown[0]["metadata"], metadata);
}
