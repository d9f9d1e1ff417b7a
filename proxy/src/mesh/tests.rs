//! What is kept, and what is let go.

use std::collections::BTreeMap;

use weft_core::model::{self, AppProtocol, ServicePort, Transport};
use weft_core::policy::TrafficPolicy;

use super::*;

fn mesh() -> Arc<Mesh> {
    let mut config = ProxyConfig::default();
    config.workload.name = "me".to_owned();
    config.workload.namespace = "shop".to_owned();
    let (mesh, _demanded) = Mesh::new(Metrics::new(10), &config);
    mesh
}

fn world(names: &[&str]) -> World {
    let services = names.iter().map(|name| {
        let service = model::Service {
            name: name.parse().unwrap(),
            addresses: Vec::new(),
            ports: vec![ServicePort {
                port: 80,
                protocol: AppProtocol::Http,
            }],
            endpoints: Vec::new(),
            endpoint_slices: 1,
            distribution: Default::default(),
            policies: BTreeMap::new(),
            routes: Vec::new(),
            external: None,
        };
        (Arc::new(service), Vec::new())
    });
    World {
        services: services.collect(),
        ..World::default()
    }
}

fn unused(mesh: &Mesh) -> Vec<String> {
    // Longer than no time at all since the last use.
    std::thread::sleep(Duration::from_millis(2));
    let unused = mesh.unused_since(Duration::ZERO);
    let mut names: Vec<String> = unused.into_iter().map(|demand| demand.name).collect();
    names.sort();
    names
}

/// A connection that stands uses its service, however long nothing was asked over it, and in
/// whatever snapshot it found its port.
#[test]
fn what_a_connection_has_is_in_use() {
    let mesh = mesh();
    mesh.publish(world(&["shop/idle", "shop/web"]));
    let web: ServiceName = "shop/web".parse().unwrap();
    assert_eq!(unused(&mesh), ["shop/idle", "shop/web"]);
    let port = mesh.known(&web, 80).unwrap();
    assert_eq!(unused(&mesh), ["shop/idle"]);
    // The snapshot's own is another one now; the connection's is the one before.
    mesh.publish(world(&["shop/idle", "shop/web"]));
    assert_eq!(unused(&mesh), ["shop/idle"]);
    let fresh = mesh.refresh(&port).unwrap();
    drop(port);
    assert_eq!(unused(&mesh), ["shop/idle"]);
    drop(fresh);
    assert_eq!(unused(&mesh), ["shop/idle", "shop/web"]);
}

#[test]
fn weights_are_known_without_looking() {
    let mesh = mesh();
    let mut world = world(&["shop/web"]);
    let endpoint = |number: u16, weight| model::Endpoint {
        instance: format!("i-{number}").into(),
        workload: "shop/web".parse().unwrap(),
        identity: Some("spiffe://mesh/ns/shop/sa/web".parse().unwrap()),
        zone: String::new(),
        placement: Default::default(),
        weight,
        transport: Transport::Mesh,
        ports: vec![model::EndpointPort {
            service_port: 80,
            address: SocketAddr::from(([127, 0, 0, 1], number)),
        }],
    };
    let web: ServiceName = "shop/web".parse().unwrap();
    Arc::make_mut(&mut world.services[0].0).endpoints = vec![endpoint(1, 100), endpoint(2, 100)];
    mesh.publish(world);
    let now = crate::clock::now();
    let port = mesh.known(&web, 80).unwrap();
    assert_eq!(port.heaviest(now), None);
    let mut world = self::world(&["shop/web"]);
    Arc::make_mut(&mut world.services[0].0).endpoints = vec![endpoint(1, 100), endpoint(2, 300)];
    mesh.publish(world);
    assert_eq!(mesh.known(&web, 80).unwrap().heaviest(now), Some(300));
    // While one is new, they differ.
    let mut world = self::world(&["shop/web"]);
    Arc::make_mut(&mut world.services[0].0).endpoints = vec![endpoint(1, 100), endpoint(3, 100)];
    let policy = TrafficPolicy {
        slow_start: Some(Duration::from_secs(60)),
        ..Default::default()
    };
    let service = Arc::make_mut(&mut world.services[0].0);
    service.policies.insert(80, Arc::new(policy));
    mesh.publish(world);
    let port = mesh.known(&web, 80).unwrap();
    let now = crate::clock::now();
    assert_eq!(port.heaviest(now), Some(100));
    assert_eq!(port.heaviest(now + Duration::from_secs(61)), None);
}

#[tokio::test]
async fn the_outside_of_ones_own_namespace_counts_before_everybodys() {
    let mesh = mesh();
    let at: SocketAddr = "203.0.113.5:80".parse().unwrap();
    let config = model::MeshConfig {
        trust_domain: "weft.test".parse().unwrap(),
        virtual_ranges: Vec::new(),
        workload_ranges: Vec::new(),
        unknown_destinations: UnknownDestinations::Refuse,
        external_hosts: vec!["api.example".into(), "b.example".into()],
        external_addresses: vec![at],
    };
    let api: ServiceName = "shop/api".parse().unwrap();
    let namespace = model::Namespace {
        name: "shop".to_owned(),
        external_hosts: [("api.example".into(), api.clone())].into(),
        external_addresses: [(at, api)].into(),
        ..Default::default()
    };
    mesh.publish(World {
        config: Some(config),
        namespace: Some(namespace),
        ..World::default()
    });
    for (host, expected) in [
        ("api.example", Some("shop/api")),
        ("b.example", Some("b.example")),
        ("c.example", None),
    ] {
        let found = mesh.external_host(host).await.unwrap();
        assert_eq!(found.as_deref(), expected, "{host}");
    }
    let snapshot = mesh.snapshot();
    let config = snapshot.config.as_ref().unwrap();
    assert_eq!(
        snapshot.external_name(config, at).as_deref(),
        Some("shop/api")
    );
}
