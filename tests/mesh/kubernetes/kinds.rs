//! Services and routes of every kind, by requests between pods.

use super::{Cluster, apps};
use crate::support::{Machine, need};

/// Services of `web` in IPv4 and IPv6 and in IPv6 alone, and names for something else. The node's DNS
/// serves `outside.example`, which is no name of the cluster, from the same Services.
fn services(own: &str, plain: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: both}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http, appProtocol: http}}]
---
apiVersion: v1
kind: Service
metadata: {{name: six}}
spec:
  ipFamilies: [IPv6]
  ipFamilyPolicy: SingleStack
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http, appProtocol: http}}]
---
apiVersion: v1
kind: Service
metadata: {{name: alias}}
spec: {{type: ExternalName, externalName: both.{own}.svc.cluster.local}}
---
apiVersion: v1
kind: Service
metadata: {{name: far}}
spec:
  type: ExternalName
  externalName: web.{plain}.svc.outside.example
  ports: [{{name: http, port: 80, appProtocol: http}}]
"#
    )
}

/// What leads from the ports of `echo-front` elsewhere.
const ROUTES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: echo}
spec:
  parentRefs: [{group: "", kind: Service, name: echo-front, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: echo}
spec:
  parentRefs: [{group: "", kind: Service, name: echo-front, port: 443}]
  hostnames: [echo.example]
  rules: [{backendRefs: [{name: echo, port: 443}]}]
"#;

/// Both families, names for something else inside and outside of the cluster, TCP and TLS routes, and
/// probes in gRPC under strict mutual TLS.
#[test]
fn services_and_routes_of_every_kind_are_reached() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let (space, plain) = (cluster.space(true), cluster.space(false));
    plain.apply(&apps::web("web", 1, ""));
    let echo = apps::echo("echo", &cluster.echo_image());
    let web = apps::web("web", 1, "");
    space.apply(&format!(
        "{web}{}{echo}{}",
        apps::client("client"),
        services(space.name(), plain.name())
    ));
    space.apply(ROUTES);
    for deployment in ["web", "client", "echo"] {
        space.wait_rolled_out(deployment);
    }
    plain.wait_rolled_out("web");
    let front = space.kubectl("get service echo-front -o jsonpath={.spec.clusterIP}");
    let secure = format!("--resolve echo.example:443:{front} -k https://echo.example");
    // The first of each: routes and names are in force a moment after they were applied.
    let retry = "--retry 20 --retry-all-errors --retry-delay 1";
    for (asked, expected) in [
        ("-4 http://both", "web\n"),
        ("-6 http://both", "web\n"),
        ("-6 http://six", "web\n"),
        ("http://alias", "web\n"),
        ("http://far", "web\n"),
        ("http://echo-front", "web\n"),
        (&secure, "Host=echo.example"),
        ("http://echo", "Host=echo"),
    ] {
        let curl = format!("curl -sS --fail -m 10 {retry} {asked}/");
        let finished = space.shell("deploy/client", "client", &curl).success();
        assert!(finished.stdout.contains(expected), "{asked}: {finished}");
    }
    let refused = space.shell(
        "deploy/client",
        "client",
        "curl -sS --fail -m 5 -4 http://six/",
    );
    assert!(
        !refused.status.success(),
        "IPv4 to a Service without: {refused}"
    );

    let metrics = "curl -sS -m 5 http://127.0.0.1:15020/metrics";
    let metrics = space.shell("deploy/client", "client", metrics).success();
    let counted = |service: &str, security: &str| {
        let service = format!("\"{}/{service}\"", space.name());
        metrics.stdout.lines().any(|line| {
            line.starts_with("weft_requests_total")
                && line.contains(&service)
                && line.contains(&format!("\"{security}\""))
        })
    };
    for service in ["both", "six", "echo"] {
        assert!(
            counted(service, "mtls") && !counted(service, "plaintext"),
            "{service}: {metrics}"
        );
    }
    assert!(counted("far", "plaintext"), "{metrics}");

    // Probes go on: a container that fails them is started anew after three.
    let restarts = space.value_of("pod", "echo", ".status.containerStatuses[0].restartCount");
    assert_eq!(restarts, "0");
}
