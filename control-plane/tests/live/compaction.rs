//! What happened while a control plane was cut off from the cluster's API, and what etcd has forgotten
//! since (`410 Gone`), is seen all the same.

use serde_json::{Value, json};

use crate::kubernetes::{FAULT, Site};
use crate::support::{ControlPlane, DEADLINE, wait_until};
use crate::testing::Gate;

impl ControlPlane {
    /// The value of a metric of a watch of the cluster's API.
    pub(crate) async fn of_watch(&self, metric: &str, kind: &str) -> u64 {
        let metrics = self.http("/metrics").await;
        let label = format!("{metric}{{kind=\"{kind}\"}} ");
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(&label));
        let value = value.unwrap_or_else(|| panic!("no {label}: {metrics}"));
        value.parse().unwrap()
    }

    /// Names and delays of the FaultInjections in force.
    async fn faults(&self) -> Value {
        let all = self.get("/v1/resources").await;
        let all = all.as_array().unwrap().iter();
        let all = all.map(|one| json!([one["metadata"]["name"], one["spec"]["delay"]["time"]]));
        let mut all: Vec<Value> = all.collect();
        all.sort_by_key(ToString::to_string);
        Value::Array(all)
    }

    async fn has_revoked(&self, instance: &str) -> bool {
        let certs = self.get("/v1/certs").await;
        let mut certs = certs.as_array().unwrap().iter();
        certs.any(|cert| cert["instance"] == *instance && !cert["revoked"].is_null())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_revocations_that_were_compacted_away_are_seen() {
    let Some(mut site) = Site::start().await else {
        return;
    };
    let gate = Gate::before(&site.0).await;
    let other = site.control_plane().await;
    let cut = ControlPlane::start_in_cluster(&site.through(gate.address())).await;
    let of = |name: &str| FAULT.replace("slow", name);
    site.apply(&[of("changes"), of("goes")].join("---\n"));
    let before = json!([["changes", "1s"], ["goes", "1s"]]);
    wait_until("both documents", async || cut.faults().await == before).await;
    let mut sidecar = other.enrol("shop/web", &[80]).await;
    let instance = sidecar.instance().to_owned();
    wait_until("the instance", async || {
        cut.get("/v1/certs").await.to_string().contains(&instance)
    })
    .await;
    sidecar.goes_to(cut.grpc);
    let mut stream = sidecar.discover().await;
    for kind in ["faultinjections", "records"] {
        assert_eq!(cut.of_watch("weft_kubernetes_lists_total", kind).await, 1);
    }

    gate.close();
    site.apply(&of("changes").replace("1s", "2s"));
    site.run(&["delete", "fi", "goes", "-n", "shop"], "");
    site.apply(&of("comes"));
    other.revoke(&instance).await.unwrap();
    site.0.compact();
    site.0.restart().await;
    // It says since when what it has may be old, and keeps it.
    for kind in ["faultinjections", "records", "pods", "leases"] {
        wait_until("it is stale", async || {
            cut.of_watch("weft_kubernetes_stale_seconds", kind).await > 0
        })
        .await;
    }
    let ready = cut.http("/readyz").await;
    let said = "stale: faultinjections not followed for ";
    assert!(ready.contains("200 OK") && ready.contains(said), "{ready}");
    assert_eq!(cut.faults().await, before);
    assert!(!cut.has_revoked(&instance).await && stream.quiet().await);

    gate.open();
    let after = json!([["changes", "2s"], ["comes", "1s"]]);
    wait_until("all changes", async || cut.faults().await == after).await;
    wait_until("the revocation", async || cut.has_revoked(&instance).await).await;
    let ended = tokio::time::timeout(DEADLINE, stream.standing()).await;
    let ended = ended.unwrap().unwrap_err();
    assert!(ended.message().contains("revoked"), "{ended}");
    sidecar.try_discover().await.map(drop).unwrap_err();
    for kind in ["faultinjections", "records"] {
        let lists = cut.of_watch("weft_kubernetes_lists_total", kind).await;
        assert!(lists > 1, "{kind} was not listed anew: its watch went on");
    }
    wait_until("nothing is stale", async || {
        !cut.http("/readyz").await.contains("stale: ")
    })
    .await;
}
