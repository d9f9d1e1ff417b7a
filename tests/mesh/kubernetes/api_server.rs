//! The cluster's API server: hung, killed and back, while pods call each other.

use std::time::{Duration, Instant};

use super::cluster::Space;
use super::control_plane::{goes_on, web_and_client};
use super::{Cluster, apps};
use crate::support::{Machine, Running, long, need};

/// How long it does not answer: longer than a control plane's lease lasts.
const HUNG: Duration = Duration::from_secs(18);
/// How long there is none.
const GONE: Duration = Duration::from_secs(8);

/// Sends requests from the client's network namespace, each on a connection of its own, until the guard
/// is dropped. What `kubectl exec` starts ends with the API server.
fn load(space: &Space) -> Running {
    let service = space.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    let curl = format!(
        "curl -s -m 10 -o /dev/null -w '%{{http_code}} %header{{weft-reason}}\\n' \
         --resolve web:80:{service} http://web/"
    );
    let script = format!("while true; do {curl}; sleep 0.03; done");
    space.start_inside("client", &["sh", "-c", &script])
}

/// Starts the node's API server anew after a failure: other tests have the same node.
struct Back(&'static Cluster);

impl Drop for Back {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // It may be gone already.
            let _killed = self.0.api_server("KILL");
            let _started = self.0.api_server("start");
        }
    }
}

/// No request fails while the API server does not answer, while there is none, and when it is back;
/// then policies and new pods are served as before.
#[test]
fn no_request_fails_without_the_api_server() {
    if !long() {
        return;
    }
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::alone();
    let cluster = Cluster::meshed();
    let space = web_and_client(cluster);
    let mut load = load(&space);
    goes_on(&mut load);
    let mut during = |time: Duration| {
        let began = Instant::now();
        while began.elapsed() < time {
            goes_on(&mut load);
        }
    };
    let _back = Back(cluster);
    cluster.api_server("STOP").success();
    during(HUNG);
    cluster.api_server("CONT").success();
    during(Duration::from_secs(1));
    cluster.api_server("KILL").success();
    during(GONE);
    cluster.api_server("start").success();
    during(Duration::from_secs(1));

    let policy = "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: web}\n\
                  spec: {targetRef: {kind: Service, name: web}, retry: {attempts: 2}}\n";
    space.apply(policy);
    let programmed =
        r#"{.status.ancestors[0].conditions[?(@.type=="weft-mesh.io/Programmed")].status}"#;
    space.wait_for_value("trafficpolicy/web", programmed, "True");
    space.apply(&apps::web("late", 1, ""));
    space.wait_rolled_out("late");
    space.kubectl("rollout restart deployment/web");
    space.wait_rolled_out("web");
    during(Duration::from_secs(1));
    let late = "curl -sS --fail -m 10 --retry 10 --retry-all-errors http://late/";
    let answered = space.shell("deploy/client", "client", late).success();
    assert_eq!(answered.stdout, "late\n");
}
