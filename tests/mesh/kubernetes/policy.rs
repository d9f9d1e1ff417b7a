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
