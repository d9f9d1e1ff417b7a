//! `weft check --kubernetes` on a cluster where all is well, and where something is not.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Cluster, apps};
use crate::support::{Machine, Program, need, weft_binary};

/// The checks' statuses and what they found.
pub(super) fn check(cluster: &Cluster) -> BTreeMap<String, (String, String)> {
    let weft = Program::new(weft_binary()).args(["check", "--kubernetes", "-o", "json"]);
    let finished = cluster.run(weft.env("KUBECONFIG", cluster.kubeconfig()));
    let said: Value = serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {finished}"));
    let items = said["items"].as_array().expect("items").iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = items.map(|one| {
        (
            text(&one["id"]),
            (text(&one["status"]), text(&one["found"])),
        )
    });
    items.collect()
}

/// What only a running mesh shows: the webhook answers the API server, clocks agree, sidecars have
/// certificates.
#[test]
fn a_mesh_that_runs_is_checked_by_using_it() {
    need!("root", "kubernetes", "buildah", "nginx");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let space = cluster.space(true);
    space.apply(&apps::web("web", 1, ""));
    space.wait_rolled_out("web");
    let found = check(cluster);
    for id in [
        "api-version",
        "clock-skew",
        "node-clocks",
        "gateway-api",
        "crds",
        "control-plane",
        "webhook",
        "webhook-endpoints",
        "webhook-authority",
        "webhook-answers",
        "roots",
    ] {
        assert_eq!(found[id].0, "ok", "{id}: {}", found[id].1);
    }
    // Pods of other tests come and go.
    let (status, said) = &found["certificates"];
    assert!(status != "failed" && !said.contains(space.name()), "{said}");
    assert!(!said.starts_with("0 "), "{said}");
}
