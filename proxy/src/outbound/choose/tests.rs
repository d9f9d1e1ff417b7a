//! Who is picked, of the endpoints that a sidecar holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use weft_core::breaker::{BreakerConfig, CallClass};
use weft_core::health::{Check, CheckFailure, HealthCheck};
use weft_core::locality::{Distribution, Locality};
use weft_core::model::{self, AppProtocol, ServicePort, Transport};
use weft_core::policy::{BreakerMode, TrafficPolicy};
use weft_core::reason::Reason;
use weft_core::retry::Failure;

use crate::config::ProxyConfig;
use crate::mesh::{Mesh, PortView, World};
use crate::outbound::choose::{Avoid, Wish, pick};
use crate::telemetry::metrics::Metrics;

const PICKS: usize = 4000;

/// A sidecar that holds `shop/web` with endpoints in these zones.
fn mesh(zones: &[&str], policy: TrafficPolicy) -> Arc<Mesh> {
    let (mesh, _demanded) = Mesh::new(Metrics::new(100), &ProxyConfig::default());
    publish(&mesh, zones, policy);
    mesh
}

fn publish(mesh: &Mesh, zones: &[&str], policy: TrafficPolicy) {
    let endpoint = |(index, zone): (usize, &&str)| model::Endpoint {
        instance: format!("i{index}").into(),
        workload: "shop/web".parse().unwrap(),
        identity: Some("spiffe://weft.local/ns/shop/sa/web".parse().unwrap()),
        zone: (*zone).to_owned(),
        placement: Default::default(),
        weight: 100,
        transport: Transport::Mesh,
        ports: vec![model::EndpointPort {
            service_port: 80,
            address: ([127, 0, 0, 1], 1000 + u16::try_from(index).unwrap()).into(),
        }],
    };
    let service = model::Service {
        name: "shop/web".parse().unwrap(),
        addresses: Vec::new(),
        ports: vec![ServicePort {
            port: 80,
            protocol: AppProtocol::Http,
        }],
        endpoints: zones.iter().enumerate().map(endpoint).collect(),
        endpoint_slices: 1,
        distribution: Default::default(),
        policies: BTreeMap::from([(80, Arc::new(policy))]),
        routes: Vec::new(),
        external: None,
    };
    mesh.publish(World {
        services: vec![(Arc::new(service), Vec::new())],
        ..World::default()
    });
}

/// Endpoint `index` is on the node `nINDEX`; this sidecar on `n1`, in zone `a`.
fn placed(mesh: &Mesh, distribution: Distribution) {
    let snapshot = mesh.snapshot();
    let service = snapshot.services.values().next().unwrap();
    let mut service = model::Service::clone(&service.model);
    service.distribution = distribution;
    for (index, endpoint) in service.endpoints.iter_mut().enumerate() {
        endpoint.placement.node = format!("n{index}");
    }
    let own = model::Workload {
        name: mesh.followed().unwrap().parse().unwrap(),
        instance: "i".into(),
        identity: "spiffe://weft.local/ns/shop/sa/web".parse().unwrap(),
        addresses: vec![[127, 0, 0, 9].into()],
        ports: Vec::new(),
        transport: Transport::Mesh,
        services: Vec::new(),
        place: Locality {
            node: "n1".to_owned(),
            zone: "a".to_owned(),
        },
    };
    mesh.publish(World {
        services: vec![(Arc::new(service), Vec::new())],
        workloads: vec![(own, Vec::new())],
        ..World::default()
    });
}

#[test]
fn callers_go_as_far_as_the_service_says() {
    let mut config = ProxyConfig::default();
    config.workload.name = "me".to_owned();
    config.control_plane.service_account_token_file = Some("/token".into());
    let (mesh, _demanded) = Mesh::new(Metrics::new(100), &config);
    let of = |zones: &[&str], distribution| {
        publish(&mesh, zones, policy());
        placed(&mesh, distribution);
        assert_eq!((mesh.zone(), mesh.place().node.as_str()), ("a", "n1"));
        port(&mesh)
    };
    let near = of(&["b", "a", "b"], Distribution::PreferZone);
    assert_eq!(shares(&near), [0.0, 1.0, 0.0]);
    let near = of(&["a", "b", "b"], Distribution::PreferNode);
    assert_eq!(shares(&near), [0.0, 1.0, 0.0]);
    // Where none there is well, further: to the zone.
    fail_call(&near, 1);
    assert_eq!(shares(&near), [1.0, 0.0, 0.0]);
    let only = of(&["a", "b"], Distribution::NodeOnly);
    assert_eq!(only.endpoints.len(), 1);
    let nobody = of(&["a"], Distribution::NodeOnly);
    let wish = Wish {
        key: None,
        zone: "a",
        route: 0,
    };
    let picked = pick(&nobody, Avoid::default(), wish);
    assert!(matches!(picked, Err(Reason::NoEndpoints)));
    assert_eq!(
        nobody.nobody(),
        "shop/web:80: internalTrafficPolicy is Local, and none of its 1 endpoints is on the caller's node n1"
    );
}

fn port(mesh: &Mesh) -> Arc<PortView> {
    Arc::clone(mesh.snapshot().ports().next().unwrap())
}

/// The share that each endpoint gets of requests of a caller in zone `a`.
fn shares(port: &PortView) -> Vec<f64> {
    let wish = Wish {
        key: None,
        zone: "a",
        route: 0,
    };
    let mut counts = HashMap::new();
    for _ in 0..PICKS {
        let (endpoint, call) = pick(port, Avoid::default(), wish).unwrap();
        drop(call);
        *counts.entry(endpoint.key.address).or_insert(0) += 1;
    }
    let of = |address| f64::from(*counts.get(&address).unwrap_or(&0)) / PICKS as f64;
    let endpoints = port.endpoints.iter();
    endpoints.map(|endpoint| of(endpoint.key.address)).collect()
}

fn near(found: &[f64], expected: &[f64]) {
    let close = |(a, b): (&f64, &f64)| (a - b).abs() < 0.05 && (*b > 0.0 || *a == 0.0);
    let all = found.len() == expected.len() && found.iter().zip(expected).all(close);
    assert!(all, "{found:?}, expected {expected:?}");
}

/// Any endpoint by chance, checked, and with a breaker that opens at the first failure.
fn policy() -> TrafficPolicy {
    TrafficPolicy {
        balancing: weft_core::balance::Policy::Random,
        breaker: Some(BreakerConfig {
            consecutive_failures: Some(1),
            open: Duration::from_secs(60),
            ..BreakerConfig::default()
        }),
        health_check: Some(Arc::new(HealthCheck::new(Check::Tcp))),
        ..TrafficPolicy::default()
    }
}

/// Checks say that these are unwell.
fn fail_checks(port: &PortView, which: &[usize]) {
    for index in which {
        for _ in 0..3 {
            let live = &port.endpoints[*index].live;
            live.on_check(Err(CheckFailure::Timeout), crate::clock::now());
        }
    }
}

/// A call to this one has failed.
fn fail_call(port: &PortView, which: usize) {
    let now = crate::clock::now();
    let call = port.endpoints[which].live.begin(0, now).unwrap();
    assert!(call.finish(CallClass::Failure, now).is_some());
}

#[test]
fn calls_and_checks_keep_requests_away_alike() {
    let mesh = mesh(&["a", "a", "a", "a"], policy());
    let port = port(&mesh);
    near(&shares(&port), &[0.25; 4]);
    fail_checks(&port, &[0]);
    fail_call(&port, 1);
    near(&shares(&port), &[0.0, 0.0, 0.5, 0.5]);
    // The last one, and then any.
    fail_checks(&port, &[2]);
    near(&shares(&port), &[0.0, 0.0, 0.0, 1.0]);
    fail_call(&port, 3);
    near(&shares(&port), &[0.25; 4]);
}

#[test]
fn breakers_that_are_only_observed_keep_nothing_away_and_checks_do() {
    let observed = TrafficPolicy {
        breaker_mode: BreakerMode::Observe,
        ..policy()
    };
    let mesh = mesh(&["a", "a", "a", "a"], observed);
    let port = port(&mesh);
    fail_call(&port, 1);
    near(&shares(&port), &[0.25; 4]);
    fail_checks(&port, &[0]);
    near(&shares(&port), &[0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]);
}

#[test]
fn too_few_that_are_well_are_as_good_as_none() {
    let guarded = TrafficPolicy {
        panic_threshold: 0.5,
        ..policy()
    };
    let mesh = mesh(&["a", "a", "a", "a"], guarded);
    let port = port(&mesh);
    fail_checks(&port, &[0]);
    fail_call(&port, 1);
    near(&shares(&port), &[0.0, 0.0, 0.5, 0.5]);
    fail_checks(&port, &[2]);
    near(&shares(&port), &[0.25; 4]);
}

#[test]
fn no_more_than_the_share_are_left_out() {
    let guarded = TrafficPolicy {
        max_ejected_share: 0.5,
        ..policy()
    };
    let mesh = mesh(&["a", "a", "a", "a"], guarded);
    let port = port(&mesh);
    fail_checks(&port, &[0]);
    fail_call(&port, 1);
    near(&shares(&port), &[0.0, 0.0, 0.5, 0.5]);
    // The one that goes out last takes requests all the same.
    fail_checks(&port, &[2]);
    near(&shares(&port), &[0.0, 0.0, 0.5, 0.5]);
}

#[test]
fn one_that_was_tried_comes_before_one_that_is_out() {
    let mesh = mesh(&["a", "a"], policy());
    let port = port(&mesh);
    fail_call(&port, 1);
    let tried = [port.endpoints[0].key.clone()];
    let (avoid, wish) = (
        Avoid {
            tried: &tried,
            ..Avoid::default()
        },
        Wish {
            key: None,
            zone: "a",
            route: 0,
        },
    );
    for _ in 0..100 {
        let (endpoint, _call) = pick(&port, avoid, wish).unwrap();
        assert_eq!(endpoint.key, tried[0]);
    }
}

#[test]
fn a_quota_makes_an_endpoint_dearer_and_opens_nothing() {
    let mesh = mesh(&["a", "a"], TrafficPolicy::default());
    let port = port(&mesh);
    let now = crate::clock::now();
    for endpoint in &port.endpoints {
        let mut call = endpoint.live.begin(1, now).unwrap();
        let later = now + Duration::from_millis(5);
        call.on_response(later);
        call.finish(CallClass::Success, later);
    }
    for failure in [Failure::Status(429), Failure::GrpcStatus(8), Failure::Shed] {
        for _ in 0..50 {
            let mut call = port.endpoints[0].live.begin(1, now).unwrap();
            call.on_failure(failure);
            assert_eq!(call.finish(CallClass::Success, now), None);
        }
    }
    let live = &port.endpoints[0].live;
    assert_eq!(live.breaker(now).unwrap().opened, 0);
    assert!((live.bias(1, now) - 4.0).abs() < 0.1);
    assert_eq!(live.bias(2, now), 1.0, "another route");
}

#[test]
fn what_a_zone_does_not_stand_goes_to_the_others() {
    let preferring = TrafficPolicy {
        prefer_zone: true,
        ..policy()
    };
    let zones = ["a", "a", "a", "a", "b", "b"];
    let mesh = mesh(&zones, preferring);
    let port = port(&mesh);
    near(&shares(&port), &[0.25, 0.25, 0.25, 0.25, 0.0, 0.0]);
    // Three quarters stand everything.
    fail_checks(&port, &[0]);
    let third = 1.0 / 3.0;
    near(&shares(&port), &[0.0, third, third, third, 0.0, 0.0]);
    // Half of them 70 %; nothing of what is let go comes back.
    fail_call(&port, 1);
    near(&shares(&port), &[0.0, 0.0, 0.35, 0.35, 0.15, 0.15]);
    fail_checks(&port, &[2, 3]);
    near(&shares(&port), &[0.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
    // Nobody is well.
    fail_checks(&port, &[4, 5]);
    near(&shares(&port), &[0.25, 0.25, 0.25, 0.25, 0.0, 0.0]);
}

#[test]
fn checks_are_no_use_of_a_service() {
    let mesh = mesh(&["a"], policy());
    let key = port(&mesh).endpoints[0].key.clone();
    let service = "shop/web".parse().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let idle = Duration::from_millis(10);
    // All that the checker asks of it.
    assert!(mesh.snapshot().endpoint(&key).is_some());
    assert_eq!(mesh.unused_since(idle).len(), 1);
    assert!(mesh.known(&service, 80).is_some());
    assert_eq!(mesh.unused_since(idle).len(), 0);
}

#[test]
fn a_change_of_policy_keeps_what_was_found() {
    let mesh = mesh(&["a", "a"], policy());
    fail_checks(&port(&mesh), &[0]);
    let mut slower = HealthCheck::new(Check::Tcp);
    slower.interval = Duration::from_secs(30);
    let changed = TrafficPolicy {
        breaker: None,
        health_check: Some(Arc::new(slower)),
        ..policy()
    };
    publish(&mesh, &["a", "a"], changed);
    near(&shares(&port(&mesh)), &[0.0, 1.0]);
    let without = TrafficPolicy {
        health_check: None,
        ..policy()
    };
    publish(&mesh, &["a", "a"], without);
    near(&shares(&port(&mesh)), &[0.5, 0.5]);
}
