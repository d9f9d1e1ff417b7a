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
/// A kind that only another version has, and a document of it.
const KIND: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: guards.weft-mesh.io}
spec:
  group: weft-mesh.io
  scope: Namespaced
  names: {kind: Guard, plural: guards, singular: guard, listKind: GuardList}
  versions:
    - name: v1alpha1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;
const GUARD: &str = "{apiVersion: weft-mesh.io/v1alpha1, kind: Guard, metadata: {name: all}}";
/// What the definitions take and the model refuses.
const REFUSED: &str = r#"
apiVersion: weft-mesh.io/v1alpha1
kind: FaultInjection
metadata: {name: slow}
spec: {headers: [{name: x, type: RegularExpression, value: "("}], delay: {time: 1s}}
"#;
/// The definition as that version would have it.
const PATCH: &str = r#"[{"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/guard", "value": {"type": "boolean"}}]"#;

/// Takes away what stops upgrades, also after a failure: the node is everybody's.
#[derive(Debug)]
struct Unstopped<'a>(&'a Cluster, String);

impl Drop for Unstopped<'_> {
    fn drop(&mut self) {
        let Self(cluster, namespace) = self;
        for what in [
            format!("-n {namespace} delete trafficpolicy/guarded faultinjection/slow"),
            // With every document of the kind.
            "delete crd guards.weft-mesh.io".to_owned(),
        ] {
            // A second panic would end the process.
            let delete = || cluster.try_kubectl(&format!("{what} --ignore-not-found"));
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(delete));
        }
    }
}

/// An upgrade that would drop a field of a document, that does not know the kind of one, or that refuses
/// one, stops before it changes anything, and says which; without them it goes on.
#[test]
fn helm_does_not_turn_off_what_a_document_says() {
    need!("root", "kubernetes", "buildah");
    let _machine = Machine::alone();
    let cluster = Cluster::meshed();
    let space = cluster.space(false);
    let _unstopped = Unstopped(cluster, space.name().to_owned());
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

    space.apply(KIND);
    space.kubectl("wait --for=condition=Established crd/guards.weft-mesh.io");
    space.apply(GUARD);
    space.apply(REFUSED);
    let refused = cluster.try_upgrade(&["controlPlane.podLabels.refused=yes"]);
    assert!(!refused.status.success(), "{refused}");
    let job = "-n weft-system logs job/weft-upgrade-check --all-pods=true";
    let log = cluster.kubectl(job).stdout;
    for (kind, said) in [
        (
            "TrafficPolicy",
            "guarded: spec.guard: this version does not know",
        ),
        ("Guard", "all: this version does not know the kind"),
        ("FaultInjection", "slow: spec.headers[0]"),
    ] {
        let said = format!("{kind} {}/{said}", space.name());
        assert!(log.contains(&said), "{said}: {log}");
    }
    let labels = "-n weft-system get deployment weft-control-plane -o jsonpath={.spec.template.metadata.labels}";
    let labels = cluster.kubectl(labels).stdout;
    assert!(!labels.contains("refused"), "{labels}");
    let said = space.kubectl(&format!("get tp guarded -o jsonpath={guard}"));
    assert_eq!(said, "true");

    // Who accepts that is told of the same.
    cluster.upgrade(&["upgradeCheck.acceptUnenforced=true"]);
    let definition = cluster.kubectl(&format!("get {crd} -o yaml")).stdout;
    assert!(!definition.contains("guard:"), "{definition}");

    let refused = cluster.try_upgrade(&[]);
    assert!(!refused.status.success(), "{refused}");
    space.kubectl("delete tp/guarded guard/all faultinjection/slow");
    cluster.upgrade(&[]);
    let definition = cluster.kubectl(&format!("get {crd} -o yaml")).stdout;
    assert!(!definition.contains("guard:"), "{definition}");
    space.kubectl("delete crd guards.weft-mesh.io");
    let job = "-n weft-system get job,serviceaccount,clusterrole -o name";
    let left = cluster.kubectl(job).stdout;
    assert!(!left.contains("upgrade-check"), "{left}");
}
