//! Pods that were made before their namespace asked for sidecars.

use std::time::Instant;

use super::cluster::LIMIT;
use super::{Cluster, apps};
use crate::support::{Machine, need, wait_for};

const BUDGET: &str = r#"
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: client}
spec: {minAvailable: 1, selector: {matchLabels: {app: client}}}
---
"#;

/// They are told of in an Event; where that is allowed they are evicted, but not against their budget, and
/// what takes their place is in the mesh.
#[test]
fn pods_that_were_there_before_are_told_of_and_evicted_within_their_budget() {
    need!("root", "kubernetes", "buildah");
    let _machine = Machine::alone();
    let cluster = Cluster::meshed();
    let eviction = [
        "injector.eviction.enabled=true",
        "injector.eviction.after=1s",
        "injector.eviction.perMinute=60",
    ];
    let space = cluster.space(false);
    space.apply(&(BUDGET.to_owned() + &apps::client("client")));
    space.wait_rolled_out("client");
    let pod = space.value_of("pod", "client", ".metadata.name");
    cluster.kubectl(&format!(
        "label namespace {} weft-mesh.io/inject=enabled",
        space.name()
    ));
    let logs = "-n weft-system logs -l app.kubernetes.io/name=weft --tail=-1";
    let told = |reason: &str| {
        let events = format!(
            "get events --field-selector involvedObject.name={pod},reason={reason} -o name"
        );
        wait_for(reason, LIMIT, || {
            (!space.kubectl(&events).is_empty()).then_some(())
        });
    };
    let logged = |what: &str| {
        let begun = Instant::now();
        wait_for(what, LIMIT, || {
            // A pod may end while it is read.
            let log = cluster.try_kubectl(logs).stdout;
            let mut of_pod = log.lines().filter(|line| line.contains(&pod));
            let is_told = of_pod.any(|line| line.contains(what));
            assert!(
                is_told || begun.elapsed() < LIMIT,
                "{what} is not in:\n{log}"
            );
            is_told.then_some(())
        });
    };
    // With the chart's rights of who evicts nobody, and the arguments of who does.
    let arguments = "controlPlane.extraArgs={--evict-pods-without-sidecar,--evict-after=1s}";
    let _back = cluster.upgraded(&[arguments]);
    told("SidecarMissing");
    logged("pods/eviction");
    cluster.upgrade(&eviction);
    // Its time is over, and its budget does not allow it.
    logged("would violate the pod's disruption budget");
    let counted = counts(cluster);
    counted("weft_pod_evictions_total{outcome=\"refused\"}");
    counted("weft_pod_events_total{reason=\"SidecarMissing\",outcome=\"written\"}");
    let phase =
        format!("get pod {pod} -o jsonpath={{.status.phase}}{{.metadata.deletionTimestamp}}");
    assert_eq!(space.kubectl(&phase), "Running");

    space.kubectl("delete poddisruptionbudget client");
    told("EvictedForSidecar");
    counted("weft_pod_evictions_total{outcome=\"evicted\"}");
    let inits = "get pods --field-selector status.phase=Running -o jsonpath={.items[*].spec.initContainers[*].name}";
    wait_for("the pod in its place", LIMIT, || {
        space.kubectl(inits).contains("weft-proxy").then_some(())
    });
}

/// Waits until the newest replica of the control plane counts something.
fn counts(cluster: &Cluster) -> impl Fn(&str) {
    let control_plane = "-n weft-system get pods -l app.kubernetes.io/component=control-plane \
                         --sort-by=.metadata.creationTimestamp -o jsonpath={.items[-1:].metadata.name}";
    let name = cluster.kubectl(control_plane).stdout;
    let metrics =
        format!("get --raw /api/v1/namespaces/weft-system/pods/{name}:15014/proxy/metrics");
    move |sample| {
        wait_for(sample, LIMIT, || {
            let metrics = cluster.try_kubectl(&metrics).stdout;
            let mut samples = { metrics.lines() }.filter_map(|line| line.strip_prefix(sample));
            let value = samples.next()?.trim().parse::<u64>().ok()?;
            (value > 0).then_some(())
        });
    }
}
