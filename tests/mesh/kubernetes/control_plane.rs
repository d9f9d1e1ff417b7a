//! The control plane as a Deployment: away, and replaced, while pods call each other.

use super::cluster::{LIMIT, Space};
use super::{Cluster, apps};
use crate::support::{Machine, Running, need, wait_for};

const REQUESTS: usize = 1600;

/// Begins to send requests from the client to `web`, 40 a second.
fn load(space: &Space) -> Running {
    let curl = "curl -sS -m 10 --rate 40/s -o /dev/null -w '%{http_code} %header{weft-reason}\\n'";
    let script = format!("{curl} 'http://web/[1-{REQUESTS}]'");
    space.start_shell("deploy/client", "client", &script)
}

/// Waits until all are answered; each has to be with 200.
fn all_answered(load: Running) {
    let finished = load.finish(LIMIT).success();
    let codes: Vec<&str> = finished.stdout.lines().collect();
    let failed = codes.iter().filter(|line| **line != "200 ").count();
    assert_eq!((codes.len(), failed), (REQUESTS, 0), "{finished}");
}

fn web_and_client(cluster: &'static Cluster) -> Space {
    let space = cluster.space(true);
    space.apply(&(apps::web("web", 2, "") + &apps::client("client")));
    space.wait_rolled_out("web");
    space.wait_rolled_out("client");
    space
}

/// The webhook is away: no pod that should have a sidecar starts without one, pods that ask for none
/// start, and those that run call each other. When it is back, what was refused is made.
#[test]
fn without_the_webhook_nothing_is_let_in_and_no_request_fails() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::alone();
    let cluster = Cluster::meshed();
    let space = web_and_client(cluster);
    let plain = cluster.space(false);
    let load = load(&space);
    let back = cluster.upgraded(&[]);
    cluster.kubectl("-n weft-system scale deployment/weft-control-plane --replicas=0");
    let own = "-n weft-system get pods -l app.kubernetes.io/component=control-plane -o name";
    wait_for("no control plane", LIMIT, || {
        cluster.kubectl(own).stdout.is_empty().then_some(())
    });

    let refused = space.try_apply(&apps::bare("bare"));
    assert!(
        !refused.status.success() && refused.stderr.contains("inject.weft-mesh.io"),
        "{refused}"
    );
    space.kubectl("rollout restart deployment/web");
    let events = "get events --field-selector reason=FailedCreate -o jsonpath={.items[*].message}";
    wait_for("a refused pod of the new ReplicaSet", LIMIT, || {
        let said = space.kubectl(events);
        said.contains("inject.weft-mesh.io").then_some(())
    });
    plain.apply(&apps::client("client"));
    plain.wait_rolled_out("client");

    drop(back);
    space.wait_rolled_out("web");
    all_answered(load);
    let inits =
        space.kubectl("get pods -l app=web -o jsonpath={.items[*].spec.initContainers[*].name}");
    assert_eq!(inits.matches("weft-proxy").count(), 2, "{inits}");
}

/// Two replicas are replaced one after the other while a policy changes: no request fails, and the change
/// reaches everybody.
#[test]
fn a_rollout_of_the_control_plane_loses_no_request() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::alone();
    let cluster = Cluster::meshed();
    let _back = cluster.upgraded(&["controlPlane.replicas=2"]);
    let space = web_and_client(cluster);
    let load = load(&space);
    cluster.kubectl("-n weft-system rollout restart deployment/weft-control-plane");
    let policy = "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: web}\n\
                  spec: {targetRef: {kind: Service, name: web}, retry: {attempts: 2}}\n";
    space.apply(policy);
    cluster.kubectl("-n weft-system rollout status deployment/weft-control-plane --timeout=80s");
    let programmed =
        r#"{.status.ancestors[0].conditions[?(@.type=="weft-mesh.io/Programmed")].status}"#;
    space.wait_for_value("trafficpolicy/web", programmed, "True");
    all_answered(load);
}
