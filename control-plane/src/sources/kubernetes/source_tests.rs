//! The source with a real API server.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use weft_core::locality::Distribution;

use super::*;
use crate::compile::Snapshot;
use crate::kubernetes::testing::{ApiServer, Gate};
use crate::kubernetes::watches::WatchView;
use crate::world::World;

const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [192.0.2.1]}, {addresses: [192.0.2.2], conditions: {ready: false}}]
";

/// A snapshot that follows a source.
struct Followed {
    source: KubernetesSource,
    snapshot: Snapshot,
    /// Names under which something else was found than before.
    changed: BTreeSet<String>,
}

impl Followed {
    async fn of(server: &ApiServer) -> Self {
        Self::by(&server.client().await)
    }

    fn by(client: &Client) -> Self {
        Self {
            source: KubernetesSource::new(
                client,
                &Arc::default(),
                &"weft.test".parse().unwrap(),
                "cluster.local",
                |_| {},
            ),
            snapshot: Snapshot::new(World::of_nobody()),
            changed: BTreeSet::new(),
        }
    }

    /// Takes what comes until something holds. The wait is cut again and again, as the pipeline does.
    async fn until(&mut self, what: &str, mut holds: impl FnMut(&Snapshot) -> bool) {
        let began = Instant::now();
        while !holds(&self.snapshot) {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{what}: {:?}",
                self.source.status()
            );
            let next = timeout(Duration::from_millis(3), self.source.next());
            if let Ok(batch) = next.await {
                let (changes, _) = self.snapshot.apply(batch.unwrap().deltas, 0);
                let names = changes.names.values().flatten();
                self.changed.extend(names.map(ToString::to_string));
            }
        }
    }
}

/// How the watch of a kind fares.
fn view(followed: &Followed, kind: Watched) -> WatchView {
    let views = followed.source.status().watches().view(Instant::now());
    let found = views.into_iter().find(|one| *one.name == *kind.as_str());
    found.unwrap()
}

fn addresses(found: &Snapshot, service: &str) -> Option<Vec<String>> {
    let service = found.compiled.service(service)?;
    let ports = service
        .endpoints
        .iter()
        .flat_map(|endpoint| &endpoint.ports);
    Some(ports.map(|port| port.address.to_string()).collect())
}

fn is_web(found: &Snapshot, expected: &[&str]) -> bool {
    addresses(found, "default/web").is_some_and(|found| found == expected)
}

fn run(server: &ApiServer, args: &[&str], input: &str) {
    let (made, said) = server.kubectl(args, input);
    assert!(made, "{args:?}: {said}");
}

#[tokio::test]
async fn what_kubectl_does_is_a_fact() {
    let Some(mut server) = ApiServer::start().await else {
        return;
    };
    let mut followed = Followed::of(&server).await;
    assert!(followed.source.start().unwrap().deltas.is_empty());
    assert!(!followed.source.is_complete());
    followed
        .until("kubernetes", |found| {
            addresses(found, "default/kubernetes").is_some()
        })
        .await;
    assert!(followed.source.is_complete());
    assert_eq!(followed.source.status().missing(), None);
    run(&server, &["apply", "-f", "-"], WEB);
    followed
        .until("web", |found| is_web(found, &["192.0.2.1:8080"]))
        .await;
    let web = followed
        .snapshot
        .compiled
        .service_policy("default/web")
        .unwrap();
    assert!(
        web.addresses[0].to_string().starts_with("10.96."),
        "{web:?}"
    );
    // A label is no fact: nothing is compiled for it.
    let generation = followed.snapshot.compiled.generation;
    run(
        &server,
        &["label", "service/web", "endpointslice/web-1", "a=b"],
        "",
    );
    run(&server, &["annotate", "service/web", "a=b"], "");
    // What comes after them has come.
    run(&server, &["apply", "-f", "-"], &WEB.replace("web", "other"));
    followed
        .until("other", |found| {
            addresses(found, "default/other").is_some_and(|all| all.len() == 1)
        })
        .await;
    let changed = followed.snapshot.compiled.generation - generation;
    assert!(
        changed <= 2,
        "the Service and the slice of other, not {changed}"
    );
    // While it is away, what is known stays; afterwards come the differences.
    server.kill();
    let gone = Instant::now();
    let stale = |followed: &Followed| view(followed, Watched::Services).stale;
    followed
        .until("stale", |_| gone.elapsed() > Duration::from_secs(3))
        .await;
    assert!(
        stale(&followed) > Duration::from_secs(1),
        "{:?}",
        followed.source.status()
    );
    assert!(is_web(&followed.snapshot, &["192.0.2.1:8080"]));
    server.restart().await;
    run(&server, &["delete", "service/other"], "");
    run(
        &server,
        &["apply", "-f", "-"],
        &WEB.replace("192.0.2.1", "192.0.2.9"),
    );
    followed
        .until("back", |found| is_web(found, &["192.0.2.9:8080"]))
        .await;
    followed
        .until("gone", |found| addresses(found, "default/other").is_none())
        .await;
}

/// What went while a listing was not possible is gone with the next one.
#[tokio::test]
async fn a_new_listing_takes_out_what_is_not_in_it() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    run(&server, &["apply", "-f", "-"], WEB);
    let mut followed = Followed::of(&server).await;
    followed
        .until("web", |found| is_web(found, &["192.0.2.1:8080"]))
        .await;
    let name = |own: &str| ObjectName {
        namespace: "default".to_owned(),
        name: own.to_owned(),
    };
    let events = [
        What::Begin,
        What::There(name("kubernetes"), None),
        What::End,
    ];
    for what in events {
        followed.source.handle(Seen {
            kind: Watched::Services,
            what,
        });
    }
    followed
        .until("gone", |found| addresses(found, "default/web").is_none())
        .await;
}

/// While the watch is cut, objects come, change and go, and etcd and the API server forget that they
/// did: the watch cannot go on (`410 Gone`).
#[tokio::test]
async fn after_a_compaction_everything_is_listed_anew_and_only_differences_are_told() {
    let Some(mut server) = ApiServer::start().await else {
        return;
    };
    let of = |name: &str| WEB.replace("web", name);
    for name in ["same", "changes", "goes"] {
        run(&server, &["apply", "-f", "-"], &of(name));
    }
    let gate = Gate::before(&server).await;
    let mut followed = Followed::by(&gate.client(&server).await);
    for name in ["same", "changes", "goes"] {
        let name = format!("default/{name}");
        let is_there = |found: &Snapshot| addresses(found, &name).is_some_and(|all| all.len() == 1);
        followed.until(&name, is_there).await;
    }
    let lists = |followed: &Followed| Watched::ALL.map(|kind| view(followed, kind).lists);
    assert_eq!(lists(&followed)[..3], [1, 1, 1]);
    followed.changed.clear();
    gate.close();
    run(&server, &["delete", "service/goes"], "");
    run(
        &server,
        &["label", "service/same", "endpointslice/same-1", "a=b"],
        "",
    );
    let changed = of("changes").replace("192.0.2.1", "192.0.2.9");
    run(&server, &["apply", "-f", "-"], &changed);
    run(&server, &["apply", "-f", "-"], &of("comes"));
    server.compact();
    server.restart().await;
    assert!(
        is_of(&followed.snapshot, "goes", &["192.0.2.1:8080"]),
        "the last good stays"
    );
    gate.open();
    followed
        .until("comes", |found| is_of(found, "comes", &["192.0.2.1:8080"]))
        .await;
    followed
        .until("changes", |found| {
            is_of(found, "changes", &["192.0.2.9:8080"])
        })
        .await;
    followed
        .until("goes", |found| addresses(found, "default/goes").is_none())
        .await;
    assert!(
        lists(&followed)[..2].iter().all(|lists| *lists >= 2),
        "{:?}",
        lists(&followed)
    );
    assert!(is_of(&followed.snapshot, "same", &["192.0.2.1:8080"]));
    let touched = |name: &str| {
        followed
            .changed
            .iter()
            .any(|changed| changed.contains(name))
    };
    assert!(touched("default/comes") && touched("default/changes") && touched("default/goes"));
    assert!(
        !touched("same") && !touched("kubernetes"),
        "{:?}",
        followed.changed
    );
}

fn is_of(found: &Snapshot, name: &str, expected: &[&str]) -> bool {
    addresses(found, &format!("default/{name}")).is_some_and(|found| found == expected)
}

/// What callers are told of where endpoints are, of names for the outside, and of nodes.
#[tokio::test]
async fn where_callers_go_is_what_the_service_and_its_slices_say() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    let input = "apiVersion: v1
kind: Service
metadata: {name: local, namespace: default}
spec: {internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: close, namespace: default}
spec: {trafficDistribution: PreferSameNode, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {type: ExternalName, externalName: db.example.com, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: default}
spec: {type: ExternalName, externalName: local.default.svc.cluster.local, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: close-1, namespace: default, labels: {kubernetes.io/service-name: close}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [192.0.2.1], nodeName: n1, zone: a, hints: {forZones: [{name: a}, {name: b}]}}]
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
";
    run(&server, &["apply", "-f", "-"], input);
    let mut followed = Followed::of(&server).await;
    followed
        .until("close", |found| {
            is_of(found, "close", &["192.0.2.1:80"]) && found.world.node_zone("n1") == "a"
        })
        .await;
    let of = |name: &str| followed.snapshot.compiled.service(name);
    let local = of("default/local").unwrap();
    assert_eq!(local.distribution, Distribution::NodeOnly);
    let close = of("default/close").unwrap();
    assert_eq!(close.distribution, Distribution::PreferNode);
    let placement = &close.endpoints[0].placement;
    assert_eq!(
        (placement.node.as_str(), placement.zone_hints.len()),
        ("n1", 2)
    );
    let db = of("default/db").unwrap();
    assert_eq!(db.addresses.len(), 2);
    assert_eq!(&*db.external.unwrap().hosts[0], "db.example.com");
    assert!(of("default/alias").is_none());
}
