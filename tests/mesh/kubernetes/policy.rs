//! Documents that users apply with kubectl: what they do to requests of injected pods, and what their
//! statuses say.

use super::cluster::LIMIT;
use super::{Cluster, apps};
use crate::support::{Machine, need, wait_for};

/// Requests with this header go to another service.
const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: by-header}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules:
  - matches: [{headers: [{name: x-to, value: other}]}]
    backendRefs: [{name: other, port: 80}]
  - backendRefs: [{name: web, port: 80}]
"#;

/// One request a minute for each caller, for all pods of the service together.
const LIMITED: &str = r#"
apiVersion: weft-mesh.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: dear}
spec:
  targetRef: {kind: Service, name: web}
  scope: global
  rules:
  - matches: [{path: {type: PathPrefix, value: /dear}}]
    key: [{caller: {}}]
    requests: 1
    per: 1m
"#;

/// Calls of one method go to another service.
const BY_METHOD: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: by-method}
spec:
  parentRefs: [{group: "", kind: Service, name: calls, port: 9000}]
  rules:
  - matches: [{method: {service: shop.Orders, method: Cancel}}]
    backendRefs: [{name: cancellations, port: 9000}]
  - backendRefs: [{name: calls, port: 9000}]
"#;

/// Two failures in a row keep requests away from an endpoint, and from the service, for an hour.
const BROKEN: &str = r#"
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: careful}
spec:
  targetRef: {kind: Service, name: web}
  circuitBreaker:
    consecutiveFailures: 2
    service: {consecutiveFailures: 2, openTime: 1h, maxOpenTime: 1h}
"#;

fn condition(list: &str, kind: &str) -> String {
    format!("{{.status.{list}[0].conditions[?(@.type==\"{kind}\")].status}}")
}

/// A route and a limit count as soon as their statuses say so; what leads nowhere is told; what is
/// wrong by itself is refused by the API server.
#[test]
fn documents_count_and_say_so() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let space = Cluster::meshed().space(true);
    let all = apps::web("web", 2, "") + &apps::web("other", 1, "") + &apps::client("client");
    space.apply(&all);
    for deployment in ["web", "other", "client"] {
        space.wait_rolled_out(deployment);
    }
    let ask = |line: &str| {
        let curl = format!("curl -sS -m 10 -o /dev/null -w '%{{http_code}}' {line}");
        space.shell("deploy/client", "client", &curl).stdout
    };
    let answered_by = |line: &str| {
        let curl = format!("curl -sS --fail -m 10 {line}");
        space.shell("deploy/client", "client", &curl).stdout
    };
    assert_eq!(answered_by("-H x-to:other http://web/"), "web\n");
    space.apply(ROUTE);
    for kind in ["Accepted", "ResolvedRefs", "weft-mesh.io/Programmed"] {
        space.wait_for_value("httproute/by-header", &condition("parents", kind), "True");
    }
    assert_eq!(answered_by("-H x-to:other http://web/"), "other\n");
    assert_eq!(answered_by("http://web/"), "web\n");
    space.apply(LIMITED);
    for kind in ["Accepted", "weft-mesh.io/Programmed"] {
        space.wait_for_value(
            "ratelimitpolicy/dear",
            &condition("ancestors", kind),
            "True",
        );
    }
    // The pods' own sidecars ask for their share with the first request.
    wait_for("the limit", LIMIT, || {
        (ask("http://web/dear") == "429").then_some(())
    });
    assert_eq!(ask("http://web/cheap"), "200");
    let lost = ROUTE
        .replace("by-header", "lost")
        .replace("name: other", "name: nobody");
    space.apply(&lost);
    space.wait_for_value(
        "httproute/lost",
        &condition("parents", "ResolvedRefs"),
        "False",
    );
    for (wrong, field) in [
        (LIMITED.replace("requests: 1", "requests: 0"), "requests"),
        (
            LIMITED.replace("scope: global", "scope: everywhere"),
            "scope",
        ),
        (LIMITED.replace("per: 1m", "every: 1m"), "every"),
    ] {
        let refused = space.try_apply(&wrong);
        assert!(!refused.status.success(), "{refused}");
        assert!(refused.stderr.contains(field), "{field}: {refused}");
    }
}

/// A GRPCRoute chooses by method and a TrafficPolicy breaks, as soon as their statuses say so.
#[test]
fn calls_are_routed_and_breakers_break() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let space = Cluster::meshed().space(true);
    let all = apps::web("web", 1, "") + &apps::grpc("calls") + &apps::grpc("cancellations");
    space.apply(&(all + &apps::client("client")));
    for deployment in ["web", "client"] {
        space.wait_rolled_out(deployment);
    }
    space.kubectl("wait --for=condition=Ready pod --all --timeout=60s");
    let called = |method: &str| {
        let curl = format!(
            "curl -sS --fail -m 10 --http2-prior-knowledge -H 'content-type: application/grpc' \
             -H 'te: trailers' --data-binary '' http://calls:9000/shop.Orders/{method}"
        );
        space.shell("deploy/client", "client", &curl).stdout
    };
    assert_eq!(called("Cancel"), "calls\n");
    space.apply(BY_METHOD);
    for kind in ["Accepted", "ResolvedRefs", "weft-mesh.io/Programmed"] {
        space.wait_for_value("grpcroute/by-method", &condition("parents", kind), "True");
    }
    assert_eq!(called("Cancel"), "cancellations\n");
    assert_eq!(called("Place"), "calls\n");
    let asked = |path: &str| {
        let curl = format!(
            "curl -sS -m 10 -o /dev/null -w '%{{http_code}} %header{{weft-reason}}' http://web{path}"
        );
        space.shell("deploy/client", "client", &curl).stdout
    };
    for _ in 0..4 {
        assert_eq!(asked("/broken"), "500 ");
    }
    assert_eq!(asked("/"), "200 ");
    space.apply(BROKEN);
    for kind in ["Accepted", "weft-mesh.io/Programmed"] {
        let path = condition("ancestors", kind);
        space.wait_for_value("trafficpolicy/careful", &path, "True");
    }
    assert_eq!(asked("/broken"), "500 ");
    assert_eq!(asked("/broken"), "500 ");
    assert_eq!(asked("/"), "503 circuit-open");
}
