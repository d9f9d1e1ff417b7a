//! The source with a real API server.

use tokio::time::timeout;

use super::*;
use crate::compile::Snapshot;
use crate::kubernetes::testing::ApiServer;
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
}

impl Followed {
    async fn of(server: &ApiServer) -> Self {
        let client = server.client().await;
        Self {
            source: KubernetesSource::new(&client, &"weft.test".parse().unwrap(), |_| {}),
            snapshot: Snapshot::new(World::of_nobody()),
        }
    }

    /// Takes what comes until something holds. The wait is cut again and again, as the pipeline does.
    async fn until(&mut self, what: &str, mut holds: impl FnMut(&Snapshot) -> bool) {
        let began = std::time::Instant::now();
        while !holds(&self.snapshot) {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{what}: {:?}",
                self.source.status()
            );
            let next = timeout(Duration::from_millis(3), self.source.next());
            if let Ok(batch) = next.await {
                self.snapshot.apply(batch.unwrap().deltas, 0);
            }
        }
    }
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
    let gone = std::time::Instant::now();
    let stale =
        |followed: &Followed| followed.source.status().view(std::time::Instant::now())[0].stale;
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
