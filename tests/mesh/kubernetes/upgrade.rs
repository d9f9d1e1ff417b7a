//! Upgrades by helm, with documents in the cluster.

use super::Cluster;
use crate::support::{Machine, need};

/// A document with a field that only another version has.
const DOCUMENT: &str = r#"
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: guarded}
spec: {targetRef: {kind: Service, name: web}, guard: true}
"#;
/// The definition as that version would have it.
const PATCH: &str = r#"[{"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/guard", "value": {"type": "boolean"}}]"#;

/// An upgrade that would drop a field of a document stops before it changes anything, and says which;
/// without the field it goes on.
#[test]
fn helm_does_not_drop_what_a_document_says() {
    need!("root", "kubernetes", "buildah");
    let _machine = Machine::alone();
    let cluster = Cluster::meshed();
    let space = cluster.space(false);
    let crd = "crd trafficpolicies.weft-mesh.io";
    let patch = cluster.program("kubectl").args(["patch"]);
    let patch = patch
        .args(crd.split(' '))
        .args(["--type=json", "-p", PATCH]);
    cluster.run(patch).success();
    // The API server takes a moment until it knows the field.
    let guard = "{.spec.guard}";
    crate::support::wait_for("a field that is kept", super::cluster::LIMIT, || {
        space.apply(DOCUMENT);
        let said = space.kubectl(&format!("get tp guarded -o jsonpath={guard}"));
        (said == "true").then_some(())
    });

    let refused = cluster.try_upgrade(&["controlPlane.podLabels.refused=yes"]);
    assert!(!refused.status.success(), "{refused}");
    let job = "-n weft-system logs job/weft-upgrade-check --all-pods=true";
    let log = cluster.kubectl(job).stdout;
    let field = format!("TrafficPolicy {}/guarded: spec.guard", space.name());
    assert!(log.contains(&field), "{log}");
    let labels = "-n weft-system get deployment weft-control-plane -o jsonpath={.spec.template.metadata.labels}";
    let labels = cluster.kubectl(labels).stdout;
    assert!(!labels.contains("refused"), "{labels}");
    let said = space.kubectl(&format!("get tp guarded -o jsonpath={guard}"));
    assert_eq!(said, "true");

    space.kubectl("delete tp guarded");
    cluster.upgrade(&[]);
    let definition = cluster.kubectl(&format!("get {crd} -o yaml")).stdout;
    assert!(!definition.contains("guard:"), "{definition}");
    let job = "-n weft-system get job,serviceaccount,clusterrole -o name";
    let left = cluster.kubectl(job).stdout;
    assert!(!left.contains("upgrade-check"), "{left}");
}
