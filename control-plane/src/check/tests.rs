use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::kubernetes::{names, testing};

const DAY: i64 = 24 * 3600;
const NOW: i64 = 1_800_000_000;

/// A root that ends `days` from [`NOW`].
fn root(days: i64) -> String {
    let mut params = rcgen::CertificateParams::default();
    let end = std::time::UNIX_EPOCH + std::time::Duration::from_secs((NOW + days * DAY) as u64);
    params.not_after = end.into();
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

fn namespace(name: &str, label: Option<&str>, roots: Option<&str>) -> NamespaceFact {
    let label = label.map(|value| (names::INJECT.to_owned(), value.to_owned()));
    NamespaceFact {
        name: name.to_owned(),
        labels: label.into_iter().collect(),
        roots: roots.map(str::to_owned),
    }
}

/// A cluster in which all is well.
fn well() -> Facts {
    let root = root(3000);
    let crd = |name: &str, version: &str| Crd {
        name: name.to_owned(),
        served: vec![version.to_owned()],
        established: true,
        bundle: Some("v1.5.1".to_owned()),
        channel: Some("experimental".to_owned()),
        lacks: Vec::new(),
    };
    Facts {
        version: "0.1.0".to_owned(),
        namespace: "weft-system".to_owned(),
        now: NOW,
        server: Ok(ServerFact {
            version: (1, 35),
            skew: Some(-1),
        }),
        denied: Ok(Vec::new()),
        crds: Ok(vec![
            crd("httproutes.gateway.networking.k8s.io", "v1"),
            crd("grpcroutes.gateway.networking.k8s.io", "v1"),
            crd("tlsroutes.gateway.networking.k8s.io", "v1alpha2"),
            crd("tcproutes.gateway.networking.k8s.io", "v1alpha2"),
            crd("referencegrants.gateway.networking.k8s.io", "v1beta1"),
            crd("trafficpolicies.weft-mesh.io", "v1alpha1"),
        ]),
        wanted_crds: Ok(vec!["trafficpolicies.weft-mesh.io".to_owned()]),
        installed: Installed {
            deployment: Ok(Some(Deployment {
                wanted: 2,
                available: 2,
                version: Some("0.1.0".to_owned()),
                args: Vec::new(),
            })),
            webhooks: Ok(Some(vec![Webhook {
                name: "pod.inject.weft-mesh.io".to_owned(),
                authority: root.clone(),
                service: "weft-system/weft-control-plane".to_owned(),
            }])),
            endpoints: Ok(2),
            cni: Ok(Some((3, 3))),
        },
        namespaces: Ok(vec![
            namespace("default", None, None),
            namespace("shop", Some("enabled"), Some(&root)),
        ]),
        pods: Ok(vec![pod(Some("0.1.0"), true)]),
        trial: trial(Trial::Injected),
        unenforced: Ok(Vec::new()),
        node_clocks: clocks(1),
        certificates: certificate(Ok(1800)),
        lapsed: Ok(Vec::new()),
        replicas: replica(Ok(Vec::new())),
        leaf_seconds: 3600,
    }
}

fn trial(trial: Trial) -> Result<Option<TrialFact>, String> {
    let namespace = "shop".to_owned();
    Ok(Some(TrialFact { namespace, trial }))
}

fn lapsed(why: &str) -> Result<Vec<LapsedFact>, String> {
    let (pod, why) = ("shop/web-1".to_owned(), why.to_owned());
    Ok(vec![LapsedFact { pod, why }])
}

fn replica(said: Result<Vec<String>, String>) -> Result<Vec<ReplicaFact>, String> {
    let fact = |pod: &str, said| ReplicaFact {
        pod: pod.to_owned(),
        said,
    };
    Ok(vec![
        fact("weft-control-plane-1", said),
        fact("weft-control-plane-2", Ok(Vec::new())),
    ])
}

fn clocks(skew: i64) -> Result<Vec<NodeClock>, String> {
    let node = "node1".to_owned();
    Ok(vec![NodeClock { node, skew }])
}

fn certificate(left: Result<i64, String>) -> Result<Vec<CertificateFact>, String> {
    let pod = "shop/web-1".to_owned();
    Ok(vec![CertificateFact { pod, left }])
}

fn pod(version: Option<&str>, ready: bool) -> PodFact {
    PodFact {
        name: "shop/web-1".to_owned(),
        uid: "u".to_owned(),
        sidecar: Sidecar::Injected {
            version: version.map(str::to_owned),
            ready,
        },
    }
}

fn without(sidecar: Sidecar) -> Vec<PodFact> {
    let name = "shop/web-1".to_owned();
    let uid = "u".to_owned();
    vec![PodFact { name, uid, sidecar }]
}

#[test]
fn a_cluster_in_which_all_is_well_passes() {
    for before in [false, true] {
        for finding in run(&well(), before) {
            assert_eq!(finding.status, Status::Ok, "{finding:?}");
        }
    }
}

/// Changes one of the facts of [`well`].
type Change = fn(&mut Facts);

/// A check, what it says in which words, and the change that it says it of.
const CASES: &[(&str, Status, &str, Change)] = &[
    (
        "api-version",
        Status::Failed,
        "Kubernetes 1.26; 1.27 and newer",
        |f| server(f, (1, 26), 0),
    ),
    ("api-version", Status::Warning, "no native sidecars", |f| {
        server(f, (1, 28), 0)
    }),
    ("api-version", Status::Failed, "not known: gone", |f| {
        f.server = Err("gone".to_owned())
    }),
    ("clock-skew", Status::Failed, "is 300 s from", |f| {
        server(f, (1, 35), 300)
    }),
    ("clock-skew", Status::Warning, "is -60 s from", |f| {
        server(f, (1, 35), -60)
    }),
    (
        "service-ranges",
        Status::Warning,
        "does not say which",
        |f| server(f, (1, 32), 0),
    ),
    ("cni", Status::Failed, "ready on 2 of 3 nodes", |f| {
        f.installed.cni = Ok(Some((3, 2)));
    }),
    (
        "documents",
        Status::Failed,
        "would not be enforced: TrafficPolicy a",
        |f| f.unenforced = Ok(vec!["TrafficPolicy a".to_owned()]),
    ),
    (
        "cluster-followed",
        Status::Warning,
        "weft-control-plane-1: stale: pods not followed",
        |f| f.replicas = replica(Ok(vec!["stale: pods not followed for 9 s".to_owned()])),
    ),
    (
        "cluster-followed",
        Status::Warning,
        "weft-control-plane-1 was not asked: silent",
        |f| f.replicas = replica(Err("silent".to_owned())),
    ),
    (
        "cluster-followed",
        Status::Warning,
        "there is no replica to ask",
        |f| f.replicas = Ok(Vec::new()),
    ),
    (
        "cluster-followed",
        Status::Warning,
        "2 of 3 replicas were asked",
        |f| deployment(f).wanted = 3,
    ),
    (
        "cluster-followed",
        Status::Warning,
        "2 of 12 replicas were asked",
        |f| f.installed.endpoints = Ok(12),
    ),
    ("node-clocks", Status::Failed, "node1 (-241 s)", |f| {
        f.node_clocks = clocks(-241)
    }),
    ("node-clocks", Status::Warning, "node1 (31 s)", |f| {
        f.node_clocks = clocks(31)
    }),
    (
        "webhook-answers",
        Status::Failed,
        "no pod can be made in shop: it",
        |f| f.trial = trial(Trial::Refused("it times out".to_owned())),
    ),
    (
        "webhook-answers",
        Status::Failed,
        "would get no sidecar",
        |f| f.trial = trial(Trial::Untouched),
    ),
    (
        "webhook-answers",
        Status::Warning,
        "there is no webhook",
        |f| f.trial = Ok(None),
    ),
    ("webhook-answers", Status::Warning, "not tried: full", |f| {
        f.trial = trial(Trial::NotTried("full".to_owned()))
    }),
    (
        "interception",
        Status::Failed,
        "in plaintext: shop/web-1 (it is not redirected)",
        |f| f.lapsed = lapsed("it is not redirected"),
    ),
    (
        "certificates",
        Status::Failed,
        "have ended: shop/web-1",
        |f| f.certificates = certificate(Ok(0)),
    ),
    (
        "certificates",
        Status::Warning,
        "renewed: shop/web-1 (599 s)",
        |f| f.certificates = certificate(Ok(599)),
    ),
    (
        "certificates",
        Status::Warning,
        "shop/web-1 (silent)",
        |f| f.certificates = certificate(Err("silent".to_owned())),
    ),
    (
        "permissions",
        Status::Failed,
        "you may not: create Role",
        |f| {
            f.denied = Ok(vec!["create Role".to_owned()]);
        },
    ),
    (
        "gateway-api",
        Status::Warning,
        "httproutes.gateway.networking.k8s.io v1",
        |f| {
            f.crds.as_mut().unwrap()[0].served = vec!["v1beta1".to_owned()];
        },
    ),
    (
        "gateway-api",
        Status::Warning,
        "referencegrants.gateway.networking.k8s.io v1 or v1beta1",
        |f| {
            f.crds.as_mut().unwrap()[4].established = false;
        },
    ),
    (
        "gateway-api",
        Status::Warning,
        "HTTPRoute (v1.1.0, standard channel) drops spec.rules[].retry",
        |f| {
            let crd = &mut f.crds.as_mut().unwrap()[0];
            crd.bundle = Some("v1.1.0".to_owned());
            crd.channel = Some("standard".to_owned());
            crd.lacks = vec!["spec.rules[].retry".to_owned()];
        },
    ),
    (
        "crds",
        Status::Failed,
        "trafficpolicies.weft-mesh.io",
        |f| {
            f.crds.as_mut().unwrap()[5].established = false;
        },
    ),
    (
        "control-plane",
        Status::Failed,
        "there is no Deployment",
        |f| {
            f.installed.deployment = Ok(None);
        },
    ),
    ("control-plane", Status::Failed, "0 of 2", |f| {
        deployment(f).available = 0
    }),
    ("control-plane", Status::Warning, "1 of 2", |f| {
        deployment(f).available = 1
    }),
    ("version", Status::Warning, "control plane 0.2.0", |f| {
        deployment(f).version = Some("0.2.0".to_owned());
    }),
    (
        "webhook",
        Status::Failed,
        "there is no MutatingWebhookConfiguration",
        |f| {
            f.installed.webhooks = Ok(None);
        },
    ),
    ("webhook", Status::Failed, "calls other/x", |f| {
        webhook(f).service = "other/x".to_owned();
    }),
    (
        "webhook-endpoints",
        Status::Failed,
        "no ready endpoint",
        |f| {
            f.installed.endpoints = Ok(0);
        },
    ),
    (
        "webhook-authority",
        Status::Failed,
        "has no caBundle",
        |f| {
            webhook(f).authority = String::new();
        },
    ),
    (
        "webhook-authority",
        Status::Failed,
        "not one of the mesh's roots",
        |f| {
            webhook(f).authority = root(9);
        },
    ),
    (
        "webhook-authority",
        Status::Failed,
        "not one of the mesh's roots",
        |f| {
            webhook(f).authority = "none".to_owned();
        },
    ),
    (
        "roots",
        Status::Failed,
        "pods wait for the mesh's roots in shop",
        |f| {
            f.namespaces.as_mut().unwrap()[1].roots = None;
        },
    ),
    ("roots", Status::Warning, "valid for 29 days", |f| {
        f.namespaces.as_mut().unwrap()[1].roots = Some(root(29) + &root(3));
    }),
    ("roots", Status::Failed, "has ended", |f| {
        f.namespaces.as_mut().unwrap()[1].roots = Some(root(-1));
    }),
    ("namespace-labels", Status::Failed, "x=true", |f| {
        f.namespaces
            .as_mut()
            .unwrap()
            .push(namespace("x", Some("true"), None));
    }),
    (
        "pods-injected",
        Status::Failed,
        "in plaintext: shop/web-1",
        |f| {
            f.pods = Ok(without(Sidecar::Missing));
        },
    ),
    (
        "pods-injected",
        Status::Failed,
        "shop/web-1 (a port)",
        |f| {
            f.pods = Ok(without(Sidecar::Refused("a port".to_owned())));
        },
    ),
    (
        "sidecars-ready",
        Status::Warning,
        "not ready: shop/web-1",
        |f| {
            f.pods = Ok(vec![pod(Some("0.1.0"), false)]);
        },
    ),
    (
        "sidecars-current",
        Status::Warning,
        "shop/web-1 (0.0.9)",
        |f| {
            f.pods = Ok(vec![pod(Some("0.0.9"), true)]);
        },
    ),
    (
        "sidecars-current",
        Status::Warning,
        "shop/web-1 (no version)",
        |f| {
            f.pods = Ok(vec![pod(None, true)]);
        },
    ),
];

/// Who accepts what is not enforced is told of it all the same; what is not known is not accepted.
#[test]
fn documents_that_are_not_enforced_can_be_accepted() {
    let some = Ok(vec!["TrafficPolicy a".to_owned()]);
    let unknown = Err("gone".to_owned());
    for (unenforced, accept, status, said) in [
        (&some, false, Status::Failed, "TrafficPolicy a"),
        (&some, true, Status::Warning, "TrafficPolicy a"),
        (&unknown, true, Status::Failed, "not known: gone"),
        (&Ok(Vec::new()), true, Status::Ok, "all of them"),
    ] {
        let findings = documents_found(unenforced, accept);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].status, status, "{findings:?}");
        assert!(findings[0].found.contains(said), "{findings:?}");
    }
}

#[test]
fn every_check_can_fail_and_says_what_was_found() {
    for (id, status, said, change) in CASES {
        let mut facts = well();
        change(&mut facts);
        let mut findings = run(&facts, false);
        findings.extend(run(&facts, true));
        let found = findings.iter().find(|one| one.id == *id).unwrap();
        assert_eq!(found.status, *status, "{found:?}");
        assert!(found.found.contains(said), "{found:?}");
        assert!(found.mend.is_some());
    }
    let tried: BTreeSet<&str> = CASES.iter().map(|case| case.0).collect();
    let all: BTreeSet<&str> = CHECKS.iter().map(|check| check.id).collect();
    assert_eq!(tried, all);
}

fn server(facts: &mut Facts, version: (u32, u32), skew: i64) {
    let skew = Some(skew);
    facts.server = Ok(ServerFact { version, skew });
}

fn deployment(facts: &mut Facts) -> &mut Deployment {
    facts
        .installed
        .deployment
        .as_mut()
        .unwrap()
        .as_mut()
        .unwrap()
}

fn webhook(facts: &mut Facts) -> &mut Webhook {
    let webhooks = facts.installed.webhooks.as_mut().unwrap();
    &mut webhooks.as_mut().unwrap()[0]
}

#[test]
fn many_names_are_counted() {
    let mut facts = well();
    let pods = (0..8).map(|number| PodFact {
        name: format!("shop/p{number}"),
        uid: number.to_string(),
        sidecar: Sidecar::Missing,
    });
    facts.pods = Ok(pods.collect());
    let findings = run(&facts, false);
    let found = findings
        .iter()
        .find(|one| one.id == "pods-injected")
        .unwrap();
    assert!(found.found.ends_with("shop/p4 and 3 more"), "{found:?}");
}

/// The guide lists every check, and none that is not there.
#[test]
fn the_guide_lists_the_checks() {
    let guide = include_str!("../../../deploy/guide/kubernetes.md");
    for check in CHECKS {
        let row = format!("| `{}` |", check.id);
        assert!(guide.contains(&row), "deploy/guide/kubernetes.md: {row}");
    }
}

#[tokio::test]
async fn facts_are_those_of_an_api_server() {
    let Some(server) = testing::ApiServer::start().await else {
        return;
    };
    let client = server.client().await;
    let facts = collect(&client, names::NAMESPACE).await;
    let by_id = |findings: Vec<Finding>| -> BTreeMap<&str, Finding> {
        findings.into_iter().map(|one| (one.id, one)).collect()
    };
    let before = by_id(run(&facts, true));
    for id in ["api-version", "clock-skew", "permissions"] {
        assert_eq!(before[id].status, Status::Ok, "{:?}", before[id]);
    }
    let after = by_id(run(&facts, false));
    for id in ["control-plane", "webhook", "webhook-endpoints"] {
        assert_eq!(after[id].status, Status::Failed, "{:?}", after[id]);
    }

    let objects = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft-mesh.io/inject: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: shop}
spec: {containers: [{name: a, image: a}]}
---
apiVersion: v1
kind: Pod
metadata: {name: forbidden, namespace: shop, labels: {weft-mesh.io/inject: disabled}}
spec: {containers: [{name: a, image: a}]}
---
apiVersion: v1
kind: Pod
metadata: {name: in, namespace: shop, annotations: {weft-mesh.io/injected: '{\"version\":\"0.0.1\"}'}}
spec:
  initContainers: [{name: weft-proxy, image: a, restartPolicy: Always}]
  containers: [{name: a, image: a}]
";
    let (made, said) = server.kubectl(&["apply", "-f", "-"], objects);
    assert!(made, "{said}");
    let facts = collect(&client, names::NAMESPACE).await;
    let mut pods = facts.pods.clone().unwrap();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    let pods: Vec<_> = pods
        .into_iter()
        .map(|pod| (pod.name, pod.sidecar))
        .collect();
    let version = Some("0.0.1".to_owned());
    let injected = Sidecar::Injected {
        version,
        ready: false,
    };
    let expected = [
        ("shop/bare".to_owned(), Sidecar::Missing),
        ("shop/in".to_owned(), injected),
    ];
    assert_eq!(pods, expected);
    let after = by_id(run(&facts, false));
    assert!(
        after["roots"].found.contains("shop"),
        "{:?}",
        after["roots"]
    );

    interception_is_known_by_events(&server, &client).await;

    // Somebody who may do nothing learns that, and not that all is well.
    let (made, said) = server.kubectl(&["auth", "can-i", "create", "pods", "--as=nobody"], "");
    assert!(!made, "{said}");
}

/// The newest Event about the pod itself decides where its sidecar does not answer.
async fn interception_is_known_by_events(server: &testing::ApiServer, client: &Client) {
    let event = |uid: &str, reason: &str, second: u32| {
        let event = format!(
            "{{apiVersion: v1, kind: Event, metadata: {{name: in-{second}-{uid}, namespace: shop}}, \
             involvedObject: {{apiVersion: v1, kind: Pod, namespace: shop, name: in, uid: {uid}}}, \
             type: Warning, reason: {reason}, lastTimestamp: '2026-01-01T00:00:0{second}Z'}}"
        );
        let (made, said) = server.kubectl(&["apply", "-f", "-"], &event);
        assert!(made, "{said}");
    };
    let uid = "-n shop get pod in -o jsonpath={.metadata.uid}";
    let uid = server.kubectl(&uid.split(' ').collect::<Vec<_>>(), "").1;
    let uid = uid.trim();
    let interception = || async {
        let facts = collect(client, names::NAMESPACE).await;
        let findings = run(&facts, false).into_iter();
        let mut findings = findings.filter(|one| one.id == "interception");
        findings.next().unwrap()
    };
    event("another", "InterceptionLost", 0);
    assert_eq!(interception().await.status, Status::Ok);
    event(uid, "InterceptionLost", 1);
    let lost = interception().await;
    assert_eq!(lost.status, Status::Failed, "{lost:?}");
    let said = "shop/in (Event InterceptionLost of 2026-01-01T00:00:01Z)";
    assert!(lost.found.ends_with(said), "{lost:?}");
    event(uid, "InterceptionRestored", 2);
    assert_eq!(interception().await.status, Status::Ok);
}
