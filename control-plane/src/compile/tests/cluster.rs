//! Services, slices and pods of a cluster.

use super::*;
use crate::model::ObjectName;
use crate::peer::PeerIdentity;
use crate::world::cluster::{
    ClusterPort, ClusterService, ClusterSlice, Pod, SERVICE_SLICES_MAX, Serving, SliceEndpoint,
};
use weft_core::external::{EndpointHost, External, ExternalEndpoint};
use weft_core::locality::Distribution;
use weft_core::model::{Endpoint, Transport};

fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap()
}

fn v4(last: u8) -> IpAddr {
    IpAddr::from([10, 9, 9, last])
}

fn v6(last: u8) -> IpAddr {
    format!("fd00::{last}").parse().unwrap()
}

/// A Service with ports `(number, name)`.
pub(super) fn cluster(name: &str, addresses: Vec<IpAddr>, ports: &[(u16, &str)]) -> Delta {
    let ports = ports.iter().map(|(port, name)| ClusterPort {
        port: *port,
        name: (*name).into(),
        protocol: match *name {
            "http" => AppProtocol::Http,
            _ => AppProtocol::Detect,
        },
        target: None,
    });
    Delta::ClusterService(Arc::new(ClusterService {
        name: name.parse().unwrap(),
        addresses,
        ports: ports.collect(),
        distribution: Distribution::Anywhere,
        external: None,
    }))
}

type Member<'a> = (IpAddr, Option<&'a str>, Serving);

fn slice(name: &str, service: &str, ports: &[(&str, u16)], members: &[Member<'_>]) -> Delta {
    let namespace = split(service).0;
    let endpoints = members.iter().map(|(address, pod, serving)| SliceEndpoint {
        address: *address,
        pod: pod.map(|pod| (pod.into(), "".into())),
        zone: "z".into(),
        node: "n1".into(),
        zone_hints: Arc::new([]),
        serving: *serving,
    });
    Delta::ClusterSlice(Arc::new(ClusterSlice {
        name: ObjectName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
        service: service.parse().unwrap(),
        ports: ports
            .iter()
            .map(|(name, port)| ((*name).into(), *port))
            .collect(),
        endpoints: endpoints.collect(),
    }))
}

fn slice_gone(namespace: &str, name: &str) -> Delta {
    Delta::ClusterSliceGone(ObjectName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn pod(name: &str, uid: &str, addresses: Vec<IpAddr>, in_mesh: bool) -> Delta {
    saying(name, uid, addresses, in_mesh, &[])
}

fn saying(
    name: &str,
    uid: &str,
    addresses: Vec<IpAddr>,
    in_mesh: bool,
    protocols: &[(u16, AppProtocol)],
) -> Delta {
    Delta::Pod(Arc::new(Pod {
        name: name.parse().unwrap(),
        uid: uid.into(),
        addresses,
        identity: in_mesh.then(|| "spiffe://weft.test/ns/shop/sa/web".parse().unwrap()),
        protocols: protocols.into(),
        node: "n1".into(),
    }))
}

fn endpoints(found: &Snapshot, service: &str) -> Vec<Endpoint> {
    found.compiled.service(service).unwrap().endpoints
}

/// Instance, transport and where each port is served.
fn shown(found: &Snapshot, service: &str) -> Vec<(String, Transport, Vec<String>)> {
    let all = endpoints(found, service).into_iter();
    let all = all.map(|endpoint| {
        let ports = endpoint.ports.iter();
        let ports = ports.map(|port| format!("{}>{}", port.service_port, port.address));
        (
            endpoint.instance.to_string(),
            endpoint.transport,
            ports.collect(),
        )
    });
    all.collect()
}

/// Web of shop: `http` on 80 and `x` on 81, two pods with sidecars, one without.
fn web() -> Vec<Delta> {
    vec![
        cluster(
            "shop/web",
            vec![[10, 96, 0, 1].into()],
            &[(80, "http"), (81, "x")],
        ),
        slice(
            "web-1",
            "shop/web",
            &[("http", 8080), ("x", 9)],
            &[
                (v4(1), Some("a"), Serving::Ready),
                (v4(2), Some("b"), Serving::Ready),
                (v4(3), Some("c"), Serving::No),
                (v4(4), Some("d"), Serving::Terminating),
                (v4(5), Some("unknown"), Serving::Ready),
            ],
        ),
        pod("shop/a", "ua", vec![v4(1)], true),
        pod("shop/b", "ub", vec![v4(2)], false),
        pod("shop/c", "uc", vec![v4(3)], true),
        pod("shop/d", "ud", vec![v4(4)], true),
    ]
}

#[test]
fn pods_are_endpoints_with_an_identity_exactly_if_they_are_in_the_mesh() {
    let mut deltas = web();
    for _ in 0..deltas.len() {
        deltas.rotate_left(1);
        let found = snapshot(deltas.clone());
        let service = found.compiled.service_policy("10.96.0.1").unwrap();
        assert_eq!(service.name.to_string(), "shop/web");
        assert_eq!(service.addresses, [IpAddr::from([10, 96, 0, 1])]);
        assert_eq!(service.ports[0].protocol, AppProtocol::Http);
        let expected = |uid: &str, transport, last: u8| {
            let at = |port: u16, target: u16| format!("{port}>10.9.9.{last}:{target}");
            (
                format!("pod-{uid}"),
                transport,
                vec![at(80, 8080), at(81, 9)],
            )
        };
        assert_eq!(
            shown(&found, "shop/web"),
            [
                expected("ua", Transport::Mesh, 1),
                expected("ub", Transport::Plain, 2)
            ]
        );
        let all = endpoints(&found, "shop/web");
        assert!(all[0].identity.is_some() && all[1].identity.is_none());
    }
}

#[test]
fn a_pod_is_known_by_its_instance_and_its_identity() {
    let mut found = snapshot(web());
    let peer = |instance: &str, account: &str| PeerIdentity {
        identity: format!("spiffe://weft.test/ns/shop/sa/{account}")
            .parse()
            .unwrap(),
        instance: instance.into(),
        not_after: 0,
    };
    let name = |found: &Snapshot, instance: &str, account: &str| {
        let pod = found.world.pod_of(&peer(instance, account));
        pod.map(ToString::to_string)
    };
    assert_eq!(name(&found, "pod-ua", "web").as_deref(), Some("shop/a"));
    assert_eq!(name(&found, "pod-ua", "other"), None, "another identity");
    assert_eq!(name(&found, "pod-ub", "web"), None, "it has no sidecar");
    // A pod of the same name is another instance.
    found.apply([pod("shop/a", "u2", vec![v4(1)], true)], 0);
    assert_eq!(name(&found, "pod-ua", "web"), None);
    assert_eq!(name(&found, "pod-u2", "web").as_deref(), Some("shop/a"));
}

#[test]
fn those_that_terminate_serve_where_nobody_is_ready() {
    let mut found = snapshot(web());
    let flip = |serving| {
        let members = [
            (v4(1), Some("a"), serving),
            (v4(4), Some("d"), Serving::Terminating),
        ];
        slice("web-1", "shop/web", &[("http", 8080)], &members)
    };
    let who = |found: &Snapshot| {
        let all = shown(found, "shop/web").into_iter();
        all.map(|(instance, ..)| instance).collect::<Vec<_>>()
    };
    found.apply([flip(Serving::No)], 0);
    assert_eq!(who(&found), ["pod-ud"]);
    found.apply([flip(Serving::Ready)], 0);
    assert_eq!(who(&found), ["pod-ua"]);
    found.apply([flip(Serving::Terminating)], 0);
    assert_eq!(who(&found), ["pod-ua", "pod-ud"]);
}

/// Whoever may write a slice must not have a pod of the mesh spoken to without its certificate, nor
/// as somebody else.
#[test]
fn an_address_of_a_pod_in_the_mesh_is_never_plaintext() {
    let mut found = snapshot(web());
    let forged = [
        (v4(1), None, Serving::Ready),
        (v4(1), Some("b"), Serving::Ready),
        ([192, 0, 2, 1].into(), None, Serving::Ready),
    ];
    found.apply(
        [
            cluster("lab/x", vec![], &[(80, "http")]),
            slice("x-1", "lab/x", &[("http", 8080)], &forged),
            pod("lab/b", "lb", vec![v4(7)], false),
        ],
        0,
    );
    let ports = |at: &str| vec![format!("80>{at}:8080")];
    assert_eq!(
        shown(&found, "lab/x"),
        [
            (
                "address-192.0.2.1".to_owned(),
                Transport::Plain,
                ports("192.0.2.1")
            ),
            ("pod-ua".to_owned(), Transport::Mesh, ports("10.9.9.1")),
        ]
    );
    // Its address becomes somebody else's.
    found.apply([Delta::PodGone("shop/a".parse().unwrap())], 0);
    assert_eq!(shown(&found, "lab/x")[0].1, Transport::Plain);
    assert_eq!(shown(&found, "lab/x").len(), 3);
}

#[test]
fn a_pod_of_two_families_is_one_endpoint_in_the_services_own() {
    for (first, second, expected) in [
        (v4(200), v6(200), "80>10.9.9.1:8080"),
        (v6(200), v4(200), "80>[fd00::1]:8080"),
    ] {
        let found = snapshot([
            cluster("shop/web", vec![first, second], &[(80, "http")]),
            slice(
                "v4",
                "shop/web",
                &[("http", 8080)],
                &[(v4(1), Some("a"), Serving::Ready)],
            ),
            slice(
                "v6",
                "shop/web",
                &[("http", 8080)],
                &[(v6(1), Some("a"), Serving::Ready)],
            ),
            pod("shop/a", "ua", vec![v4(1), v6(1)], true),
        ]);
        let all = shown(&found, "shop/web");
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].2, [expected]);
        for address in [v4(1), v6(1)] {
            let own = found.compiled.find(Kind::Workload, &address.to_string());
            assert_eq!(
                own.map(|own| own.name.to_string()).as_deref(),
                Some("shop/a")
            );
        }
    }
}

#[test]
fn what_a_pod_serves_is_what_the_cluster_says() {
    let mut found = snapshot(web());
    let ports = |found: &Snapshot| {
        let own = found.compiled.find(Kind::Workload, "shop/a").unwrap();
        let Resource::Workload(own) = &own.resource else {
            unreachable!()
        };
        let ports = own.ports.iter();
        ports
            .map(|port| (port.port, port.protocol))
            .collect::<Vec<_>>()
    };
    let both = [(9, AppProtocol::Detect), (8080, AppProtocol::Http)];
    assert_eq!(ports(&found), both);
    // What its sidecar registers says nothing.
    found.apply([Workload::of("shop/a", "shop/other", 1).delta()], 0);
    assert_eq!(ports(&found), both);
    found.apply([slice_gone("shop", "web-1")], 0);
    assert_eq!(ports(&found), []);
    // It is the pod's as long as the pod is there, and the registration's after that.
    found.apply([Delta::PodGone("shop/a".parse().unwrap())], 0);
    assert!(found.compiled.find(Kind::Workload, "10.9.9.1").is_none());
}

/// What pods say is spoken on their ports reaches their own sidecars and their callers'; what a Service
/// declares beats it.
#[test]
fn pods_say_what_is_spoken_where_their_services_do_not() {
    let mut found = snapshot(web());
    let of_service = |found: &Snapshot| {
        let service = found.compiled.service_policy("shop/web").unwrap();
        let ports = service.ports.iter();
        ports
            .map(|port| (port.port, port.protocol))
            .collect::<Vec<_>>()
    };
    let of_pod = |found: &Snapshot| {
        let own = found.compiled.find(Kind::Workload, "shop/a").unwrap();
        let Resource::Workload(own) = &own.resource else {
            unreachable!()
        };
        let ports = own.ports.iter();
        ports
            .map(|port| (port.port, port.protocol))
            .collect::<Vec<_>>()
    };
    let (detect, http) = (AppProtocol::Detect, AppProtocol::Http);
    let (tcp, grpc) = (AppProtocol::Tcp, AppProtocol::Grpc);
    let says =
        |protocols: &[(u16, AppProtocol)]| saying("shop/a", "ua", vec![v4(1)], true, protocols);
    for (said, service, pod) in [
        (
            &[][..],
            [(80, http), (81, detect)],
            vec![(9, detect), (8080, http)],
        ),
        (
            &[(7, grpc), (9, tcp), (8080, tcp)],
            [(80, http), (81, tcp)],
            vec![(7, grpc), (9, tcp), (8080, http)],
        ),
        (
            &[(9, grpc)],
            [(80, http), (81, grpc)],
            vec![(9, grpc), (8080, http)],
        ),
        (
            &[],
            [(80, http), (81, detect)],
            vec![(9, detect), (8080, http)],
        ),
    ] {
        found.apply([says(said)], 0);
        assert_eq!(of_service(&found), service, "{said:?}");
        assert_eq!(of_pod(&found), pod, "{said:?}");
    }
    // One without a sidecar says nothing, and neither does one that is gone.
    found.apply([saying("shop/b", "ub", vec![v4(2)], false, &[(9, tcp)])], 0);
    assert_eq!(of_service(&found)[1], (81, detect));
    found.apply([says(&[(9, tcp)])], 0);
    found.apply([Delta::PodGone("shop/a".parse().unwrap())], 0);
    assert_eq!(of_service(&found)[1], (81, detect));
}

/// A service that the cluster has and processes serve, too; a document of its name counts for nothing
/// and is told so.
#[test]
fn the_clusters_service_wins_and_processes_join_it() {
    let mut found = snapshot([service("shop/web", &[99])]);
    let of = |found: &Snapshot| {
        let service = found.compiled.service_policy("shop/web").unwrap();
        (service.addresses.len(), service.ports[0].port)
    };
    assert_eq!(of(&found), (2, 99));
    found.apply(web(), 0);
    assert_eq!(of(&found), (1, 80));
    let Delta::Document(stated) = service("shop/web", &[99]) else {
        unreachable!()
    };
    assert_eq!(found.dangling(&stated.document)[0].reason, "Conflicted");
    found.apply([Workload::of("shop/process", "shop/web", 80).delta()], 0);
    let instances: Vec<String> = shown(&found, "shop/web").into_iter().map(|e| e.0).collect();
    assert_eq!(instances, ["i-shop/process", "pod-ua", "pod-ub"]);
    found.apply([Delta::ClusterServiceGone("shop/web".parse().unwrap())], 0);
    assert_eq!(of(&found), (2, 99));
    assert_eq!(endpoints(&found, "shop/web"), []);
}

#[test]
fn named_ports_may_lead_to_another_port_in_each_pod() {
    let limit =
        "{targetRef: {kind: Service, name: web}, scope: local, rules: [{requests: 5, per: 1s}]}";
    let found = snapshot([
        cluster("shop/web", vec![v4(200)], &[(80, "http")]),
        slice(
            "one",
            "shop/web",
            &[("http", 8080)],
            &[(v4(1), Some("a"), Serving::Ready)],
        ),
        slice(
            "two",
            "shop/web",
            &[("http", 9090)],
            &[(v4(2), Some("b"), Serving::Ready)],
        ),
        pod("shop/a", "ua", vec![v4(1)], true),
        pod("shop/b", "ub", vec![v4(2)], true),
        document("RateLimitPolicy", "shop/limit", limit),
    ]);
    let ports: Vec<String> = shown(&found, "shop/web")
        .into_iter()
        .flat_map(|e| e.2)
        .collect();
    assert_eq!(ports, ["80>10.9.9.1:8080", "80>10.9.9.2:9090"]);
    let policy = found.compiled.find(Kind::ServerPolicy, "shop/web").unwrap();
    let Resource::ServerPolicy(policy) = &policy.resource else {
        unreachable!()
    };
    for target in [8080, 9090] {
        assert_eq!(policy.ports[&target].rate_limits.len(), 1, "{target}");
    }
}

/// Policies and routes are attached to services of the cluster as to any other.
#[test]
fn routes_and_policies_find_services_of_the_cluster() {
    let parent = "parentRefs: [{group: '', kind: Service, name: web}]";
    let route = format!("{{{parent}, rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}");
    let mut found = snapshot([document("HTTPRoute", "shop/r", &route)]);
    assert_eq!(
        reasons(&found, "shop/r"),
        ["NoMatchingParent", "BackendNotFound"]
    );
    found.apply(web(), 0);
    assert!(reasons(&found, "shop/r").is_empty());
    assert_eq!(routes(&found, "shop/web").len(), 1);
}

#[test]
fn one_pod_of_many_that_becomes_unready_is_one_slice() {
    let mut found = snapshot(web());
    let policy = "{targetRef: {kind: Service, name: big}, retry: {attempts: 2}}";
    let many = |n: u16, flipped: u16| {
        let names: Vec<String> = (0..100).map(|m| format!("p{}", n * 100 + m)).collect();
        let members: Vec<Member<'_>> = (0..100u16)
            .map(|m| {
                let address = IpAddr::from([10, 8, n as u8, m as u8]);
                let serving = match n * 100 + m == flipped {
                    true => Serving::No,
                    false => Serving::Ready,
                };
                (address, Some(names[usize::from(m)].as_str()), serving)
            })
            .collect();
        slice(&format!("big-{n}"), "shop/big", &[("http", 8080)], &members)
    };
    let pods = (0..1000u16).map(|m| {
        let address = IpAddr::from([10, 8, (m / 100) as u8, (m % 100) as u8]);
        pod(&format!("shop/p{m}"), &format!("u{m}"), vec![address], true)
    });
    found.apply([document("TrafficPolicy", "shop/big", policy)], 0);
    found.apply([cluster("shop/big", vec![v4(200)], &[(80, "http")])], 0);
    found.apply(pods, 0);
    found.apply((0..10).map(|n| many(n, 1000)), 0);
    assert_eq!(endpoints(&found, "shop/big").len(), 1000);
    let (compiled, names) = counted(&mut found, many(3, 333));
    assert!(names[0].starts_with("EndpointSlice shop/big/"), "{names:?}");
    assert_eq!(names.len(), 1, "{names:?}");
    // A limit that is shared would depend on how many serve: that is looked at, too.
    assert_eq!(compiled, 2);
    assert_eq!(endpoints(&found, "shop/big").len(), 999);
    // The same again says nothing.
    assert_eq!(counted(&mut found, many(3, 333)), (0, Vec::new()));
}

#[test]
fn of_too_many_slices_the_first_are_used() {
    let name = |n: usize| format!("s{n:04}");
    let one = |n: usize| {
        let address = IpAddr::from([10, 7, (n / 250) as u8, (n % 250) as u8]);
        slice(
            &name(n),
            "shop/web",
            &[("http", 80)],
            &[(address, None, Serving::Ready)],
        )
    };
    let mut found = snapshot([cluster("shop/web", vec![v4(200)], &[(80, "http")])]);
    // In whatever order they come.
    let all: Vec<Delta> = (0..SERVICE_SLICES_MAX + 2).rev().map(one).collect();
    found.apply(all, 0);
    let len = |found: &Snapshot| endpoints(found, "shop/web").len();
    let has = |found: &Snapshot, n: usize| {
        let at = format!("address-10.7.{}.{}", n / 250, n % 250);
        let all = endpoints(found, "shop/web");
        all.iter().any(|endpoint| *endpoint.instance == *at)
    };
    let partial = |found: &Snapshot| {
        let all = found.world.partial();
        all.map(|(name, many)| (name.to_string(), many))
            .collect::<Vec<_>>()
    };
    assert_eq!(len(&found), SERVICE_SLICES_MAX);
    assert_eq!(partial(&found), [("shop/web".to_owned(), 2)]);
    assert!(has(&found, 0) && !has(&found, SERVICE_SLICES_MAX));
    found.apply([slice_gone("shop", &name(0))], 0);
    assert!(!has(&found, 0) && has(&found, SERVICE_SLICES_MAX));
    assert_eq!(partial(&found), [("shop/web".to_owned(), 1)]);
    found.apply([one(0)], 0);
    assert!(has(&found, 0) && !has(&found, SERVICE_SLICES_MAX));
    // One that is left out changes nothing.
    let (compiled, names) = counted(
        &mut found,
        slice_gone("shop", &name(SERVICE_SLICES_MAX + 1)),
    );
    assert_eq!((compiled, names.len()), (0, 0));
    // Another service takes the last that are too many.
    let moved = slice(
        &name(3),
        "shop/other",
        &[("http", 80)],
        &[(v4(3), None, Serving::Ready)],
    );
    found.apply([moved], 0);
    assert_eq!(partial(&found), []);
    assert!(len(&found) == SERVICE_SLICES_MAX && has(&found, SERVICE_SLICES_MAX));
}

#[test]
fn where_a_pod_runs_is_told_to_its_sidecar_and_to_callers_that_go_by_it() {
    let mut found = snapshot(web());
    let place = |found: &Snapshot| {
        let own = found.compiled.find(Kind::Workload, "shop/a").unwrap();
        let Resource::Workload(own) = &own.resource else {
            unreachable!()
        };
        (own.place.node.clone(), own.place.zone.clone())
    };
    let of = |node: &str, zone: &str| (node.to_owned(), zone.to_owned());
    assert_eq!(place(&found), of("n1", ""));
    let node = |zone: &str| Delta::Node("n1".into(), zone.into());
    // A node is told of in its own pods alone.
    let (_, told) = counted(&mut found, node("a"));
    let own = ["shop/a", "shop/c", "shop/d"].map(|name| format!("Workload {name}"));
    assert!(own.iter().all(|name| told.contains(name)), "{told:?}");
    assert!(
        told.iter().all(|name| name.starts_with("Workload ")),
        "{told:?}"
    );
    assert_eq!(place(&found), of("n1", "a"));
    assert_eq!(counted(&mut found, node("a")), (0, Vec::new()));
    found.apply([Delta::NodeGone("n1".into())], 0);
    assert_eq!(place(&found), of("n1", ""));
    let nodes = |found: &Snapshot| {
        let all = endpoints(found, "shop/web").into_iter();
        all.map(|endpoint| endpoint.placement.node)
            .collect::<Vec<_>>()
    };
    assert_eq!(nodes(&found), ["", ""]);
    let Delta::ClusterService(service) =
        cluster("shop/web", vec![[10, 96, 0, 1].into()], &[(80, "http")])
    else {
        unreachable!()
    };
    let local = ClusterService {
        distribution: Distribution::NodeOnly,
        ..ClusterService::clone(&service)
    };
    found.apply([Delta::ClusterService(Arc::new(local))], 0);
    assert_eq!(nodes(&found), ["n1", "n1"]);
    let told = found.compiled.service_policy("shop/web").unwrap();
    assert_eq!(told.distribution, Distribution::NodeOnly);
}

/// A name for something outside the mesh.
fn external_name(name: &str, host: &str) -> Delta {
    let Delta::ClusterService(service) = cluster(name, vec![], &[(80, "")]) else {
        unreachable!()
    };
    let endpoint = ExternalEndpoint {
        host: EndpointHost::parse(host).unwrap(),
        zone: String::new(),
        weight: 100,
        ports: vec![(80, 80)],
    };
    Delta::ClusterService(Arc::new(ClusterService {
        external: Some(Arc::new(External {
            hosts: vec![host.into()],
            tls: Vec::new(),
            endpoints: vec![endpoint],
        })),
        ..ClusterService::clone(&service)
    }))
}

/// It is reached by its own name and nothing else: nobody else's names are touched.
#[test]
fn a_name_for_the_outside_takes_no_other_name() {
    let mut found = Snapshot::new(World::of_nobody().in_cluster("weft-system"));
    found.apply(
        [
            external_name("evil/db", "api.example"),
            external_name("weft-system/db", "api.example"),
            external("shop/api", "api.example"),
        ],
        0,
    );
    assert!(found.compiled.service_policy("api.example").is_none());
    let reached = found.compiled.service_for("shop", "api.example").unwrap();
    assert_eq!(reached.name.to_string(), "shop/api");
    assert!(found.compiled.service_for("evil", "api.example").is_none());
    let db = found.compiled.service_policy("db.evil.mesh").unwrap();
    assert_eq!((db.addresses.len(), db.endpoint_slices), (2, 0));
    assert!(db.external.is_some());
    // It is no service of the mesh, and policies find it as a Service.
    assert!(found.compiled.find(Kind::ServerPolicy, "evil/db").is_none());
    let policy = "{targetRef: {kind: Service, name: db}, retry: {attempts: 2}}";
    found.apply([document("TrafficPolicy", "evil/p", policy)], 0);
    let db = found.compiled.service_policy("db.evil.mesh").unwrap();
    assert_eq!(db.policies.len(), 1);
    // It becomes a Service with addresses of its own.
    found.apply([cluster("evil/db", vec![v4(200)], &[(80, "http")])], 0);
    let db = found.compiled.service_policy("db.evil.mesh").unwrap();
    assert_eq!(
        (db.addresses.as_slice(), db.external.is_some()),
        (&[v4(200)][..], false)
    );
    assert!(found.compiled.find(Kind::ServerPolicy, "evil/db").is_some());
}

/// A change of a small cluster.
pub(super) fn delta() -> impl Strategy<Value = Delta> {
    let serving = || prop::sample::select(vec![Serving::No, Serving::Terminating, Serving::Ready]);
    let name = || prop::sample::select(NAMES.to_vec());
    let pods = ["p0", "p1", "p2"];
    let members = prop::collection::vec((0u8..3, 0usize..4, any::<bool>(), serving()), 0..4);
    let ports = prop::sample::subsequence(vec![("http", 8080u16), ("x", 80)], 0..=2);
    prop_oneof![
        3 => (name(), prop::sample::subsequence(vec![(80u16, "http"), (81, "x")], 1..=2), 0u8..4).prop_map(|(name, ports, addresses)| {
            // No two services have an address in common.
            let n = NAMES.iter().position(|other| *other == name).unwrap() as u8;
            let both = [v4(200 + n), v6(200 + n)];
            let addresses = match addresses {
                0 => vec![],
                1 => vec![both[0]],
                2 => vec![both[1], both[0]],
                _ => both.to_vec(),
            };
            cluster(name, addresses, &ports)
        }),
        1 => name().prop_map(|name| external_name(name, "n.example")),
        1 => prop::sample::select(vec!["", "a", "b"]).prop_map(|zone| Delta::Node("n1".into(), zone.into())),
        1 => Just(Delta::NodeGone("n1".into())),
        2 => name().prop_map(|name| Delta::ClusterServiceGone(name.parse().unwrap())),
        4 => (name(), 0u8..3, ports, members).prop_map(move |(service, n, ports, members)| {
            let members: Vec<Member<'_>> = members.into_iter().map(|(address, pod, six, serving)| {
                let address = if six { v6(address) } else { v4(address) };
                (address, pods.get(pod).copied(), serving)
            }).collect();
            slice(&format!("s{n}"), service, &ports, &members)
        }),
        2 => (prop::sample::select(vec!["shop", "lab"]), 0u8..3).prop_map(|(namespace, n)| slice_gone(namespace, &format!("s{n}"))),
        3 => (prop::sample::select(vec!["shop", "lab"]), 0u8..3, 0u8..3, 0u8..2, any::<bool>()).prop_map(|(namespace, n, address, uid, in_mesh)| {
            pod(&format!("{namespace}/p{n}"), &format!("{namespace}-{n}-{uid}"), vec![v4(address), v6(address)], in_mesh)
        }),
        2 => (prop::sample::select(vec!["shop", "lab"]), 0u8..3).prop_map(|(namespace, n)| Delta::PodGone(format!("{namespace}/p{n}").parse().unwrap())),
    ]
}

#[test]
fn a_namespace_names_the_outside_for_itself_and_the_control_planes_for_all() {
    let mut found = Snapshot::new(World::of_nobody().in_cluster("weft-system"));
    let deltas = [
        external("evil/api", "api.example"),
        external("weft-system/api", "api.example"),
        external("weft-system/b", "b.example"),
        external("shop/c", "c.example"),
    ];
    found.apply(deltas, 0);
    let by_name = |found: &Snapshot, name: &str| {
        let service = found.compiled.service_policy(name);
        service.map(|service| service.name.to_string())
    };
    let reached = |found: &Snapshot, from: &str, host: &str| {
        let service = found.compiled.service_for(from, host);
        service.map(|service| service.name.to_string())
    };
    // What everybody may ask for by name is what the control plane's namespace says.
    assert_eq!(
        by_name(&found, "api.example").as_deref(),
        Some("weft-system/api")
    );
    assert_eq!(by_name(&found, "c.example"), None);
    assert_eq!(by_name(&found, "c.shop.mesh").as_deref(), Some("shop/c"));
    let Resource::MeshConfig(config) = &found
        .compiled
        .find(Kind::MeshConfig, "mesh")
        .unwrap()
        .resource
    else {
        panic!("no settings");
    };
    let hosts: Vec<&str> = config.external_hosts.iter().map(|host| &**host).collect();
    assert_eq!(hosts, ["api.example", "b.example"]);
    for (from, host, expected) in [
        ("evil", "api.example", Some("evil/api")),
        ("shop", "api.example", Some("weft-system/api")),
        ("shop", "c.example", Some("shop/c")),
        ("lab", "c.example", None),
        ("lab", "b.example", Some("weft-system/b")),
    ] {
        let found = reached(&found, from, host);
        assert_eq!(found.as_deref(), expected, "{host} from {from}");
    }
    let own = |found: &Snapshot, namespace: &str| {
        let encoded = found.compiled.find(Kind::Namespace, namespace)?;
        let Resource::Namespace(namespace) = &encoded.resource else {
            return None;
        };
        let hosts = namespace.external_hosts.iter();
        let hosts = hosts.map(|(host, service)| format!("{host}>{service}"));
        Some(hosts.collect::<Vec<_>>())
    };
    assert_eq!(own(&found, "evil").unwrap(), ["api.example>evil/api"]);
    assert_eq!(own(&found, "weft-system"), None);
    found.apply([gone("ExternalService", "evil/api")], 0);
    assert_eq!(own(&found, "evil"), None);
    assert_eq!(
        reached(&found, "evil", "api.example").as_deref(),
        Some("weft-system/api")
    );
}
