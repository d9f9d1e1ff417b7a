//! Facts that are had by trying: a pod that is created for show, the times that nodes write, and the
//! metrics of sidecars.

use futures_util::StreamExt;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::collect::{Asked, list};
use super::facts::{CertificateFact, NamespaceFact, NodeClock, PodFact, Sidecar, Trial, TrialFact};
use crate::injector::{self, Settings};
use crate::kubernetes::{names, told};

/// Namespaces in which a pod is tried while quotas have no place for it.
const TRIED_MAX: usize = 5;
/// Where the kubelets' heartbeats are.
const HEARTBEATS: &str = "kube-node-lease";
/// Sidecars that are asked.
pub(super) const ASKED_MAX: usize = 50;
/// How many of them at a time.
pub(super) const AT_A_TIME: usize = 10;
/// How long one may take.
pub(super) const ANSWER: std::time::Duration = std::time::Duration::from_secs(3);
/// How much one may say.
const SAID_MAX: usize = 8 << 20;
const EXPIRY: &str = "weft_certificate_expiry_timestamp_seconds ";

/// Where a pod may be tried: in namespaces that ask for sidecars, then in others, where the pod asks
/// itself; never in one whose pods the injector is not asked about.
pub(super) fn places<'a>(namespaces: &'a [NamespaceFact], settings: &Settings) -> Vec<&'a str> {
    let open = namespaces.iter();
    let mut open: Vec<_> = open
        .filter(|one| !injector::is_exempt(&one.name, settings))
        .collect();
    open.sort_by_key(|one| (!injector::asks(&one.labels), one.name != "default"));
    let open = open.into_iter().take(TRIED_MAX);
    open.map(|one| one.name.as_str()).collect()
}

/// Has a pod created by the API server as far as it can be without keeping it (`dryRun`): the
/// webhook is called as for every pod. Where no pod can be made at all, the next place is tried.
pub(super) async fn trial(client: &Client, places: &[&str]) -> Asked<TrialFact> {
    let mut without = Vec::new();
    for namespace in places {
        let trial = trial_in(client, namespace).await?;
        let obstacle = match &trial {
            Trial::Refused(said) => obstacle(said),
            Trial::Injected | Trial::Untouched | Trial::NotTried(_) => None,
        };
        let Some(obstacle) = obstacle else {
            let namespace = (*namespace).to_owned();
            return Ok(TrialFact { namespace, trial });
        };
        without.push(format!("{namespace} ({obstacle})"));
    }
    let why = match without.is_empty() {
        true => "every namespace is exempt from injection".to_owned(),
        false => format!("no pod can be made in {}", without.join(", ")),
    };
    Ok(TrialFact {
        namespace: String::new(),
        trial: Trial::NotTried(why),
    })
}

/// Why no pod at all can be made in a namespace, where that is why one was refused: in the words of
/// the API server, which speaks of the pod first. A webhook's words come after its name.
fn obstacle(said: &str) -> Option<&'static str> {
    let (_pod, why) = said
        .strip_prefix("pods \"")?
        .split_once("\" is forbidden: ")?;
    let quotas = [
        "exceeded quota: ",
        "failed quota: ",
        "status unknown for quota: ",
    ];
    if quotas.iter().any(|quota| why.starts_with(quota)) {
        return Some("a quota");
    }
    // Of the admission plugin NamespaceLifecycle.
    let ends = why.starts_with("unable to create new content in namespace ")
        && why.ends_with(" because it is being terminated");
    ends.then_some("it is being deleted")
}

async fn trial_in(client: &Client, namespace: &str) -> Asked<Trial> {
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
    Ok(match api.create(&params, &pod).await {
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
    })
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
    let (status, text) = ask(client, pod, "metrics").await?;
    if !status.is_success() {
        return Err(format!("the API server says {status}"));
    }
    let sample = text.lines().find_map(|line| line.strip_prefix(EXPIRY));
    let end = sample.and_then(|value| value.trim().parse::<f64>().ok());
    #[expect(
        clippy::cast_possible_truncation,
        reason = "saturates; seconds of a date are far below"
    )]
    let end = end.map(|end| end as i64);
    end.ok_or_else(|| "it has no certificate".to_owned())
}

/// What a sidecar answers at its status port, asked through the API server.
pub(super) async fn ask(client: &Client, pod: &str, path: &str) -> Asked<(StatusCode, String)> {
    let pod = pod.split_once('/').unwrap_or_default();
    ask_port(client, pod, names::STATUS_PORT, path).await
}

/// What a pod, NAMESPACE and NAME, answers at a port, asked through the API server.
pub(super) async fn ask_port(
    client: &Client,
    (namespace, name): (&str, &str),
    port: u16,
    path: &str,
) -> Asked<(StatusCode, String)> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/{path}");
    let request = http::Request::get(path).body(kube::client::Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| told(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), SAID_MAX).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::kubernetes::testing::ApiServer;

    fn namespace(name: &str, label: Option<&str>) -> NamespaceFact {
        let label = label.map(|value| (names::INJECT.to_owned(), value.to_owned()));
        NamespaceFact {
            name: name.to_owned(),
            labels: label.into_iter().collect::<BTreeMap<_, _>>(),
            roots: None,
        }
    }

    #[test]
    fn a_pod_is_tried_where_the_injector_is_asked() {
        let mut settings = Settings::new("weft-proxy", "weft-system");
        settings.exempt_namespaces.insert("batch".to_owned());
        let all = [
            namespace("apps", None),
            namespace("batch", Some("enabled")),
            namespace("default", None),
            namespace("kube-system", Some("enabled")),
            namespace("shop", Some("enabled")),
            namespace("weft-system", Some("enabled")),
        ];
        assert_eq!(places(&all, &settings), ["shop", "default", "apps"]);
        assert!(places(&all[5..], &settings).is_empty());
    }

    #[test]
    fn a_webhooks_words_are_no_obstacles() {
        for (said, expected) in [
            (
                r#"pods "a" is forbidden: exceeded quota: q, requested: pods=1"#,
                Some("a quota"),
            ),
            (
                r#"pods "a" is forbidden: failed quota: q: must specify limits.cpu"#,
                Some("a quota"),
            ),
            (
                r#"pods "a" is forbidden: unable to create new content in namespace b because it is being terminated"#,
                Some("it is being deleted"),
            ),
            (
                r#"admission webhook "x" denied: pods "a" is forbidden: unable to create new content in namespace b because it is being terminated"#,
                None,
            ),
            (
                r#"pods "a" is forbidden: violates PodSecurity "restricted:latest""#,
                None,
            ),
            (
                r#"admission webhook "x" denied the request: exceeded quota: q"#,
                None,
            ),
            (
                r#"admission webhook "x" denied: pods "a" is forbidden: exceeded quota: q"#,
                None,
            ),
        ] {
            assert_eq!(obstacle(said), expected, "{said}");
        }
    }

    /// A namespace in which no pod can be made is passed over, and where that is so of all nothing is
    /// known.
    #[tokio::test]
    async fn a_full_or_ending_namespace_is_no_failure_of_the_webhook() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let client = server.client().await;
        let objects = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: default}
---
apiVersion: v1
kind: Namespace
metadata: {name: full}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: full}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: none, namespace: full}
spec: {hard: {pods: "0"}}
---
apiVersion: v1
kind: Namespace
metadata: {name: ends}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: ends}
"#;
        let (made, said) = server.kubectl(&["apply", "-f", "-"], objects);
        assert!(made, "{said}");
        // Nobody runs who would count what is used.
        let status = r#"{"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}"#;
        let patch = "-n full patch quota none --subresource=status --type=merge -p";
        let args: Vec<&str> = patch.split(' ').chain([status]).collect();
        let (made, said) = server.kubectl(&args, "");
        assert!(made, "{said}");
        // The API server's cache of quotas learns of it a moment later.
        let began = std::time::Instant::now();
        while !matches!(trial_in(&client, "full").await, Ok(Trial::Refused(_))) {
            assert!(
                began.elapsed().as_secs() < 60,
                "a pod without place is made"
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let trial_of = |places: &'static [&'static str]| {
            let client = client.clone();
            async move { trial(&client, places).await.unwrap() }
        };
        // Nobody runs who would end it: it stays as it is now.
        let (deleted, said) = server.kubectl(&["delete", "--wait=false", "namespace", "ends"], "");
        assert!(deleted, "{said}");
        while !matches!(trial_in(&client, "ends").await, Ok(Trial::Refused(_))) {
            assert!(
                began.elapsed().as_secs() < 120,
                "a pod is made in one that ends"
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let found = trial_of(&["full", "ends", "default"]).await;
        assert_eq!(found.namespace, "default");
        assert_eq!(found.trial, Trial::Untouched);
        let why = "no pod can be made in full (a quota), ends (it is being deleted)".to_owned();
        assert_eq!(
            trial_of(&["full", "ends"]).await.trial,
            Trial::NotTried(why)
        );
        let why = "every namespace is exempt from injection".to_owned();
        assert_eq!(trial_of(&[]).await.trial, Trial::NotTried(why));
    }
}
