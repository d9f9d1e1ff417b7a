//! The control plane as a Deployment: away, and replaced, while pods call each other.

use serde_json::Value;

use super::cluster::{LIMIT, Space};
use super::{Cluster, apps};
use crate::support::{Machine, Running, need, wait_for};

/// Begins to send requests from the client to `web`, each on a connection of its own, until the guard is
/// dropped.
fn load(space: &Space) -> Running {
    let curl = "curl -s -m 10 -o /dev/null -w '%{http_code} %header{weft-reason}\\n' http://web/";
    let script = format!("while true; do {curl}; sleep 0.03; done");
    space.start_shell("deploy/client", "client", &script)
}

/// Waits for 50 more answers; all that there were have to be 200.
pub(super) fn goes_on(load: &mut Running) {
    let before = load.stdout().lines().count();
    load.wait_until("answers", LIMIT, |load| {
        load.stdout().lines().count() > before + 50
    });
    let said = load.stdout();
    // The last line may still be on its way.
    let whole = said.rsplit_once('\n').map_or("", |(whole, _rest)| whole);
    let failed: Vec<&str> = whole.lines().filter(|line| *line != "200 ").collect();
    assert!(failed.is_empty(), "{failed:?}");
}

pub(super) fn web_and_client(cluster: &'static Cluster) -> Space {
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
    let mut load = load(&space);
    goes_on(&mut load);
    let back = cluster.upgraded(&[]);
    cluster.kubectl("-n weft-system scale deployment/weft-control-plane --replicas=0");
    let own = "-n weft-system get pods -l app.kubernetes.io/component=control-plane -o name";
    wait_for("no control plane", LIMIT, || {
        cluster.kubectl(own).stdout.is_empty().then_some(())
    });
    goes_on(&mut load);

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

    goes_on(&mut load);
    drop(back);
    space.wait_rolled_out("web");
    goes_on(&mut load);
    // One that was there before may still be on its way out.
    let pods: Value = serde_json::from_str(&space.kubectl("get pods -l app=web -o json"))
        .expect("a list of pods");
    let pods = pods["items"].as_array().expect("items");
    let has_sidecar = |pod: &Value| {
        let inits = pod["spec"]["initContainers"].as_array();
        inits.is_some_and(|inits| inits.iter().any(|one| one["name"] == "weft-proxy"))
    };
    assert!(pods.len() >= 2 && pods.iter().all(has_sidecar), "{pods:#?}");
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
    let mut load = load(&space);
    goes_on(&mut load);
    cluster.kubectl("-n weft-system rollout restart deployment/weft-control-plane");
    let policy = "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: web}\n\
                  spec: {targetRef: {kind: Service, name: web}, retry: {attempts: 2}}\n";
    space.apply(policy);
    cluster.kubectl("-n weft-system rollout status deployment/weft-control-plane --timeout=80s");
    let programmed =
        r#"{.status.ancestors[0].conditions[?(@.type=="weft-mesh.io/Programmed")].status}"#;
    space.wait_for_value("trafficpolicy/web", programmed, "True");
    goes_on(&mut load);
}
