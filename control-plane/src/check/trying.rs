//! Facts that are had by trying: a pod that is created for show, the times that nodes write, and the
//! metrics of sidecars.

use futures_util::StreamExt;
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::collect::{Asked, list};
use super::facts::{CertificateFact, NamespaceFact, NodeClock, PodFact, Sidecar, Trial, TrialFact};
use crate::injector;
use crate::kubernetes::{names, told};

/// Where the kubelets' heartbeats are.
const HEARTBEATS: &str = "kube-node-lease";
/// Sidecars whose certificates are asked about.
const ASKED_MAX: usize = 50;
/// How many of them at a time.
const AT_A_TIME: usize = 10;
/// How long one may take.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(3);
/// How much one may say.
const SAID_MAX: usize = 8 << 20;
const EXPIRY: &str = "weft_certificate_expiry_timestamp_seconds ";

/// Has a pod created by the API server as far as it can be without keeping it (`dryRun`): the
/// webhook is called as for every pod.
pub(super) async fn trial(client: &Client, namespaces: &[NamespaceFact]) -> Asked<TrialFact> {
    let mut enabled = namespaces.iter().filter(|one| injector::asks(&one.labels));
    let namespace = enabled.next();
    let namespace = namespace.map_or("default", |one| one.name.as_str());
    let pod = json!({
        "metadata": {
            "generateName": "weft-check-",
            "labels": {(names::INJECT): names::ENABLED},
        },
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "none", "image": "none.invalid/none:none",
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                },
                "resources": {
                    "requests": {"cpu": "1m", "memory": "1Mi"},
                    "limits": {"cpu": "1m", "memory": "1Mi"},
                },
            }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).map_err(|error| error.to_string())?;
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let trial = match api.create(&params, &pod).await {
        Ok(pod) => {
            let spec = pod.spec.unwrap_or_default();
            let mut all = spec
                .init_containers
                .iter()
                .flatten()
                .chain(&spec.containers);
            match all.any(|one| one.name == names::PROXY_CONTAINER) {
                true => Trial::Injected,
                false => Trial::Untouched,
            }
        }
        Err(kube::Error::Api(refusal)) => Trial::Refused(refusal.message),
        Err(error) => return Err(format!("a pod for show: {}", told(&error))),
    };
    let namespace = namespace.to_owned();
    Ok(TrialFact { namespace, trial })
}

/// What the nodes' clocks are from the API server's: a kubelet writes its own time into its Lease,
/// and the API server notes beside it when that was.
pub(super) async fn node_clocks(client: &Client) -> Asked<Vec<NodeClock>> {
    let api = Api::<Lease>::namespaced(client.clone(), HEARTBEATS);
    let leases: Vec<Lease> = list(&api, "").await?;
    let clocks = leases.iter().filter_map(|lease| {
        let renewed = lease.spec.as_ref()?.renew_time.as_ref()?.0.as_second();
        let noted = lease.managed_fields().iter();
        let noted = noted.filter_map(|entry| Some(entry.time.as_ref()?.0.as_second()));
        let noted = noted.max()?;
        Some(NodeClock {
            node: lease.name_any(),
            skew: renewed - noted,
        })
    });
    Ok(clocks.collect())
}

/// When the certificates of sidecars end, as their own metrics say, asked through the API server.
pub(super) async fn certificates(client: &Client, pods: &[PodFact]) -> Asked<Vec<CertificateFact>> {
    let ready = pods
        .iter()
        .filter(|pod| matches!(pod.sidecar, Sidecar::Injected { ready: true, .. }));
    let asked = ready.take(ASKED_MAX).map(|pod| async {
        let left = tokio::time::timeout(ANSWER, expiry(client, &pod.name)).await;
        let left = left.unwrap_or_else(|_| Err(format!("no answer in {ANSWER:?}")));
        CertificateFact {
            pod: pod.name.clone(),
            left: left.map(|end| end.saturating_sub(crate::unix_seconds())),
        }
    });
    let asked = futures_util::stream::iter(asked).buffered(AT_A_TIME);
    Ok(asked.collect().await)
}

/// The end of one pod's certificate, seconds since the Unix epoch.
async fn expiry(client: &Client, pod: &str) -> Asked<i64> {
    let (namespace, name) = pod.split_once('/').unwrap_or_default();
    let port = names::STATUS_PORT;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
    let request = http::Request::get(path).body(kube::client::Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| told(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), SAID_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    if !status.is_success() {
        return Err(format!("the API server says {status}"));
    }
    let text = String::from_utf8_lossy(&body);
    let sample = text.lines().find_map(|line| line.strip_prefix(EXPIRY));
    let end = sample.and_then(|value| value.trim().parse::<f64>().ok());
    #[expect(
        clippy::cast_possible_truncation,
        reason = "saturates; seconds of a date are far below"
    )]
    let end = end.map(|end| end as i64);
    end.ok_or_else(|| "it has no certificate".to_owned())
}
