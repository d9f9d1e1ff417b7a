//! The sidecar as clusters before Kubernetes 1.29 have it: an ordinary container.

use super::cluster::LIMIT;
use super::{Cluster, apps};
use crate::support::{Machine, need, wait_for};

/// It calls a service with its first command, and again a while after it was told to stop.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: old}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: app
    image: localhost/tools:test
    command:
    - sh
    - -c
    - |
      curl -sS --fail -m 5 http://web/ || exit 1
      trap "sleep 3; curl -sS --fail -m 5 http://web/; exit 0" TERM
      sleep infinity & wait
"#;

/// The application starts when the sidecar is ready, and the sidecar outlives the application's end:
/// under strict mutual TLS no call of it would get through without.
#[test]
fn an_ordinary_container_holds_the_application_and_goes_on_at_the_end() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let space = Cluster::meshed().space(true);
    let strict = "      annotations: {weft-mesh.io/mtls: strict}";
    space.apply(&apps::web("web", 1, strict));
    space.wait_rolled_out("web");
    let flags = [
        "--kubernetes-version",
        "1.28",
        "--proxy-image",
        "localhost/weft-proxy:test",
    ];
    space.apply_injected(POD, &flags);
    space.kubectl("wait --for=condition=Ready pod/old --timeout=80s");
    let containers = space.kubectl("get pod old -o jsonpath={.spec.containers[*].name}");
    assert_eq!(containers, "weft-proxy app");
    let restarts = "get pod old -o jsonpath={.status.containerStatuses[*].restartCount}";
    assert_eq!(space.kubectl(restarts), "0 0");
    wait_for("the first call", LIMIT, || {
        (space.kubectl("logs old -c app") == "web\n").then_some(())
    });
    let told = space.start_kubectl("logs --follow old -c app");
    space.kubectl("delete pod old --timeout=60s");
    assert_eq!(told.finish(LIMIT).stdout, "web\nweb\n");
}
