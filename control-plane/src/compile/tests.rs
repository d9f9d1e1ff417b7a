use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use weft_core::model::{AppProtocol, RegisteredPort, Registration, TrustBundle};

use super::*;
use crate::model::{ResourceKey, read};
use crate::registry::Entry;
use crate::world::Delta;
use crate::world::addresses::{Assigned, VirtualAddresses};
use crate::world::facts::Stated;

mod cluster;

/// A document as the store has it.
fn stated(created: i64, text: &str) -> Delta {
    let placed = read("-", text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
    Delta::Document(Box::new(Stated {
        created,
        generation: 1,
        document: placed.into_iter().next().unwrap().value,
    }))
}

fn document(kind: &str, name: &str, spec: &str) -> Delta {
    let (namespace, name) = name.split_once('/').unwrap();
    let version = match kind {
        "HTTPRoute" | "GRPCRoute" => "gateway.networking.k8s.io/v1",
        "ReferenceGrant" => "gateway.networking.k8s.io/v1beta1",
        _ => "weft-mesh.io/v1alpha1",
    };
    stated(
        1500,
        &format!(
            "apiVersion: {version}\nkind: {kind}\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        ),
    )
}

fn service(name: &str, ports: &[u16]) -> Delta {
    let ports: Vec<String> = ports
        .iter()
        .map(|port| format!("{{port: {port}}}"))
        .collect();
    document(
        "Service",
        name,
        &format!("{{ports: [{}]}}", ports.join(", ")),
    )
}

fn external(name: &str, host: &str) -> Delta {
    let spec = format!("{{hosts: [{host}], ports: [{{port: 80, protocol: http}}]}}");
    document("ExternalService", name, &spec)
}

struct Workload {
    name: String,
    instance: String,
    services: Vec<String>,
    addresses: Vec<IpAddr>,
    ports: Vec<(u16, AppProtocol, bool)>,
    connected: bool,
}

impl Workload {
    fn of(name: &str, service: &str, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            instance: format!("i-{name}"),
            services: vec![service.to_owned()],
            addresses: Vec::new(),
            ports: vec![(port, AppProtocol::Http, true)],
            connected: true,
        }
    }

    fn delta(&self) -> Delta {
        let ports = self
            .ports
            .iter()
            .map(|(port, protocol, ready)| RegisteredPort {
                port: *port,
                protocol: *protocol,
                advertised: SocketAddr::from(([10, 0, 0, 1], *port)),
                ready: *ready,
            });
        Delta::Workload(Arc::new(Entry {
            instance: self.instance.as_str().into(),
            identity: "spiffe://weft.test/ns/shop/sa/web".parse().unwrap(),
            registration: Registration {
                workload: self.name.parse().unwrap(),
                services: self.services.iter().map(|s| s.parse().unwrap()).collect(),
                addresses: self.addresses.clone(),
                ports: ports.collect(),
                labels: BTreeMap::new(),
                zone: String::new(),
                weight: 0,
                metrics_target: String::new(),
                version: String::new(),
            },
            stream: self.connected.then_some(1),
            expires: Default::default(),
        }))
    }
}

fn snapshot(deltas: impl IntoIterator<Item = Delta>) -> Snapshot {
    let mut snapshot = Snapshot::new(World::of_nobody());
    snapshot.apply(deltas, 0);
    snapshot
}

/// Services a and b of shop with ports 80 and 81, the ExternalService c, and x of lab.
fn shop() -> Vec<Delta> {
    vec![
        service("shop/a", &[80, 81]),
        service("shop/b", &[80, 81]),
        external("shop/c", "c.example"),
        service("lab/x", &[80]),
    ]
}

fn with(deltas: impl IntoIterator<Item = Delta>) -> Snapshot {
    snapshot(shop().into_iter().chain(deltas))
}

const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: a}]";

fn to(backend: &str) -> String {
    format!("{{{PARENT}, rules: [{{backendRefs: [{backend}]}}]}}")
}

fn status(snapshot: &Snapshot, kind: &str, name: &str) -> RouteStatus {
    let (namespace, name) = name.split_once('/').unwrap();
    let key = ResourceKey {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    snapshot.route_status(&key).unwrap()
}

/// The reasons that a route's status gives: of its parents, then of what leads nowhere.
fn reasons(snapshot: &Snapshot, name: &str) -> Vec<&'static str> {
    let status = status(snapshot, "HTTPRoute", name);
    let refused = status.parents.iter().filter_map(|p| p.refused.as_ref());
    let all = refused.chain(&status.unresolved);
    all.map(|dangling| dangling.reason).collect()
}

fn routes(snapshot: &Snapshot, service: &str) -> Vec<Arc<weft_core::route::Route>> {
    snapshot.compiled.service(service).unwrap().routes
}

#[test]
fn what_leads_nowhere_is_said_and_harms_nothing_else() {
    let cases: [(&str, &[&str]); 9] = [
        ("{name: b, port: 80}", &[]),
        (
            "{group: weft-mesh.io, kind: ExternalService, name: c, port: 80}",
            &[],
        ),
        ("{name: c, port: 80}", &["BackendNotFound"]),
        (
            "{group: weft-mesh.io, kind: ExternalService, name: b, port: 80}",
            &["BackendNotFound"],
        ),
        ("{name: b, port: 99}", &["BackendNotFound"]),
        ("{name: gone, port: 80}", &["BackendNotFound"]),
        ("{name: x, namespace: lab, port: 80}", &["RefNotPermitted"]),
        (
            "{name: b, port: 80}, {name: gone, port: 80}",
            &["BackendNotFound"],
        ),
        (
            "{name: b, port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}]}",
            &["BackendNotFound"],
        ),
    ];
    for (backends, expected) in cases {
        let found = with([document("HTTPRoute", "shop/r", &to(backends))]);
        assert_eq!(reasons(&found, "shop/r"), expected, "{backends}");
        let route = &routes(&found, "shop/a")[0];
        assert_eq!(route.created, 1);
        let inside = backends.starts_with("{name: b,") && !backends.contains("99");
        let there = inside || backends.contains("ExternalService, name: c");
        let backends = &route.rules[0].backends;
        assert_eq!(backends[0].service.is_some(), there);
    }
}

#[test]
fn a_missing_parent_takes_no_route() {
    for (parent, reason) in [
        ("{group: '', kind: Service, name: gone}", "NoMatchingParent"),
        (
            "{group: '', kind: Service, name: a, port: 99}",
            "NoMatchingParent",
        ),
    ] {
        let both =
            format!("{{parentRefs: [{parent}, {{group: '', kind: Service, name: b, port: 81}}]}}");
        let found = with([document("HTTPRoute", "shop/r", &both)]);
        assert_eq!(reasons(&found, "shop/r"), [reason]);
        assert!(routes(&found, "shop/a").is_empty());
        assert_eq!(routes(&found, "shop/b")[0].ports, [81]);
    }
}

#[test]
fn another_namespace_has_to_permit_it() {
    let there = to("{name: x, namespace: lab, port: 80}");
    let grant = |namespace: &str, kind: &str, from: &str, name: &str| {
        let group = crate::model::GATEWAY_GROUP;
        let spec = format!(
            "{{from: [{{group: {group}, kind: {kind}, namespace: {from}}}], \
             to: [{{group: '', kind: Service{name}}}]}}"
        );
        document("ReferenceGrant", &format!("{namespace}/g"), &spec)
    };
    let cases = [
        (grant("lab", "HTTPRoute", "shop", ""), true),
        (grant("lab", "HTTPRoute", "shop", ", name: x"), true),
        (grant("lab", "HTTPRoute", "shop", ", name: z"), false),
        (grant("lab", "GRPCRoute", "shop", ""), false),
        (grant("lab", "HTTPRoute", "web", ""), false),
        (grant("shop", "HTTPRoute", "shop", ""), false),
    ];
    for (grant, expected) in cases {
        let route = document("HTTPRoute", "shop/r", &there);
        // In either order, and gone with the grant.
        let mut found = with([route.clone(), grant.clone()]);
        assert_eq!(reasons(&found, "shop/r").is_empty(), expected, "{grant:?}");
        let found_again = with([grant.clone(), route]);
        assert_eq!(reasons(&found_again, "shop/r").is_empty(), expected);
        let Delta::Document(stated) = &grant else {
            unreachable!()
        };
        found.apply([Delta::DocumentGone(stated.document.key())], 0);
        assert_eq!(reasons(&found, "shop/r"), ["RefNotPermitted"]);
    }
}

#[test]
fn consumers_have_their_own_and_may_name_what_they_call() {
    let spec = "{parentRefs: [{group: '', kind: Service, name: a, namespace: shop}], \
                rules: [{backendRefs: [{name: b, namespace: shop, port: 80}]}]}";
    let found = with([document("HTTPRoute", "lab/mine", spec)]);
    assert!(reasons(&found, "lab/mine").is_empty());
    assert!(routes(&found, "shop/a").is_empty());
    let lab = found.compiled.find(Kind::Namespace, "lab").unwrap();
    let Resource::Namespace(lab) = &lab.resource else {
        unreachable!()
    };
    assert_eq!(lab.routes[&"shop/a".parse().unwrap()].len(), 1);
}

#[test]
fn the_more_specific_kind_has_the_port() {
    let http = |ports: &str| {
        let spec = format!("{{parentRefs: [{ports}]}}");
        document("HTTPRoute", "shop/http", &spec)
    };
    let grpc = document(
        "GRPCRoute",
        "shop/grpc",
        "{parentRefs: [{group: '', kind: Service, name: a, port: 80}]}",
    );
    let mut found = with([http("{group: '', kind: Service, name: a}"), grpc]);
    let all = routes(&found, "shop/a");
    let ports: Vec<(&str, &[u16])> = all.iter().map(|r| (&*r.name.name, &*r.ports)).collect();
    assert_eq!(ports, [("grpc", &[80][..]), ("http", &[81][..])]);
    found.apply([http("{group: '', kind: Service, name: a, port: 80}")], 0);
    assert_eq!(reasons(&found, "shop/http"), ["Conflicted"]);
}

#[test]
fn the_most_specific_policy_wins_then_the_oldest() {
    let policy = |created, own: &str, service: &str, port: &str| {
        let (namespace, name) = own.split_once('/').unwrap();
        stated(
            created,
            &format!(
                "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{targetRef: {{kind: Service, name: {service}{port}}}, retry: {{attempts: 1}}}}\n"
            ),
        )
    };
    let found = snapshot([
        policy(1, "other/elsewhere", "web", ", port: 80"),
        policy(3, "shop/younger", "web", ""),
        policy(2, "shop/whole", "web", ""),
        policy(4, "shop/port", "web", ", port: 80"),
    ]);
    let won = |service: &str, port| {
        let service: ServiceName = service.parse().unwrap();
        let all = found.world.policies_for(&service, port).into_iter();
        all.map(|entry| entry.name.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(won("shop/web", 80), ["port", "whole", "younger"]);
    assert_eq!(won("shop/web", 81), ["whole", "younger"]);
    assert!(won("shop/orders", 80).is_empty());
    assert!(won("other/web", 81).is_empty());
}

/// What a change comes to: resources made, and the kinds and names under which something changed.
fn counted(found: &mut Snapshot, delta: Delta) -> (u64, Vec<String>) {
    let (changes, _) = found.apply([delta], 0);
    let names = changes.names.into_iter().flat_map(|(kind, names)| {
        let named = move |name: Arc<str>| format!("{} {name}", kind.as_str());
        names.into_iter().map(named)
    });
    (changes.compiled, names.collect())
}

/// One endpoint of a service with many that becomes unready is one slice, and nothing else of the
/// service is made again, whatever else is in the world.
#[test]
fn a_readiness_flip_is_one_slice() {
    let mut found = snapshot((0..40).map(|n| service(&format!("other/s{n}"), &[80])));
    let policy = "{targetRef: {kind: Service, name: web}, retry: {attempts: 2}}";
    found.apply([document("TrafficPolicy", "shop/web", policy)], 0);
    let many = (0..1000).map(|n| Workload::of(&format!("shop/w{n}"), "shop/web", 80));
    found.apply(many.map(|workload| workload.delta()), 0);
    let web = found.compiled.service("shop/web").unwrap();
    assert_eq!(web.endpoints.len(), 1000);
    assert_eq!(web.endpoint_slices, 16);
    let mut workload = Workload::of("shop/w7", "shop/web", 80);
    workload.ports[0].2 = false;
    let generation = found.compiled.generation;
    let (compiled, names) = counted(&mut found, workload.delta());
    assert_eq!((compiled, names.len()), (1, 1), "{names:?}");
    assert!(names[0].starts_with("EndpointSlice shop/web/"), "{names:?}");
    assert_eq!(found.compiled.generation, generation + 1);
    assert_eq!(
        found.compiled.service("shop/web").unwrap().endpoints.len(),
        999
    );
}

/// The number of slices depends on how many endpoints there were before.
#[test]
fn endpoints_are_divided_after_a_restart_as_before() {
    let workload = |n: u32| Workload::of(&format!("shop/w{n}"), "shop/web", 80).delta();
    let gone = |n: u32| Delta::WorkloadGone(format!("shop/w{n}").parse().unwrap());
    let web = || service("shop/web", &[80]);
    let mut before = Snapshot::new(World::of_nobody());
    let mut records = BTreeMap::new();
    let mut apply = |snapshot: &mut Snapshot, deltas: Vec<Delta>| {
        let (_, noted) = snapshot.apply(deltas, 0);
        let many = noted.len();
        records.extend(noted);
        many
    };
    let all = std::iter::once(web()).chain((0..90).map(workload));
    assert_eq!(apply(&mut before, all.collect()), 1, "its address");
    let grown = (90..200).map(workload).collect();
    assert_eq!(apply(&mut before, grown), 1, "its slices");
    assert_eq!(apply(&mut before, (100..200).map(gone).collect()), 0);
    assert_eq!(before.world.slices_of(&"shop/web".parse().unwrap()), 4);

    let records = records.into_iter();
    let records = records.filter_map(|(name, assigned)| Some((name, assigned?)));
    let (addresses, _) = VirtualAddresses::restore(records);
    let empty = World::of_nobody();
    let empty = World::new(empty.config(), empty.bundle().clone(), addresses);
    let mut after = Snapshot::new(empty);
    let all = std::iter::once(web()).chain((0..100).map(workload));
    let (_, noted) = after.apply(all, 0);
    assert_eq!(noted, [], "all of it is on record");
    assert_eq!(everything(&after.compiled), everything(&before.compiled));
}

#[test]
fn what_changes_no_rendered_byte_is_told_to_nobody() {
    let mut found = with([Workload::of("shop/w", "shop/a", 80).delta()]);
    let generation = found.compiled.generation;
    for delta in shop() {
        assert!(counted(&mut found, delta).1.is_empty());
    }
    // A label, and the stream that holds the registration.
    let mut workload = Workload::of("shop/w", "shop/a", 80);
    workload.connected = false;
    assert!(counted(&mut found, workload.delta()).1.is_empty());
    assert_eq!(found.compiled.generation, generation);
}

#[test]
fn a_policy_is_its_service_and_what_its_servers_enforce() {
    let mut found = snapshot((0..100).map(|n| service(&format!("shop/s{n}"), &[80])));
    let policy = "{targetRef: {kind: Service, name: s7}, retry: {attempts: 2}}";
    let (compiled, names) = counted(&mut found, document("TrafficPolicy", "shop/p", policy));
    assert_eq!(compiled, 2, "{names:?}");
    assert!(
        names.iter().all(|name| name.starts_with("Service ")),
        "{names:?}"
    );
}

#[test]
fn an_address_belongs_to_who_is_connected_then_to_the_first() {
    let claim = |name: &str, connected| {
        let mut workload = Workload::of(name, "shop/a", 80);
        workload.addresses = vec!["10.1.1.1".parse().unwrap()];
        workload.connected = connected;
        workload.delta()
    };
    let mut found = with([claim("shop/b", true), claim("shop/c", true)]);
    let owner = |found: &Snapshot| {
        let found = found.compiled.find(Kind::Workload, "10.1.1.1");
        found.map(|found| found.name.to_string())
    };
    assert_eq!(owner(&found).as_deref(), Some("shop/b"));
    found.apply([claim("shop/b", false)], 0);
    assert_eq!(owner(&found).as_deref(), Some("shop/c"));
    found.apply([Delta::WorkloadGone("shop/c".parse().unwrap())], 0);
    assert_eq!(owner(&found).as_deref(), Some("shop/b"));
    found.apply([Delta::WorkloadGone("shop/b".parse().unwrap())], 0);
    assert_eq!(owner(&found), None);
}

const NAMES: [&str; 4] = ["shop/a", "shop/b", "lab/x", "lab/z"];

/// A change of a small world, where everything refers to everything.
#[expect(clippy::too_many_lines, reason = "a list of every kind of change")]
fn delta() -> impl Strategy<Value = Delta> {
    let name = || prop::sample::select(NAMES.to_vec());
    let ports = prop::sample::subsequence(vec![80u16, 81], 1..=2);
    let route_kind = prop::sample::select(vec!["HTTPRoute", "GRPCRoute"]);
    let parents = prop::collection::btree_map(name(), prop::option::of(80u16..82), 1..3);
    let route = (
        route_kind,
        name(),
        parents,
        name(),
        any::<bool>(),
        80u16..82,
    );
    let workload = (
        0usize..6,
        prop::sample::subsequence(NAMES.to_vec(), 0..3),
        prop::collection::btree_set(0u8..3, 0..2),
        prop::collection::vec((80u16..82, any::<bool>(), any::<bool>()), 1..3),
        any::<bool>(),
    );
    prop_oneof![
        3 => (name(), ports).prop_map(|(name, ports)| service(name, &ports)),
        1 => (name(), 0u8..3).prop_map(|(name, n)| external(name, &format!("h{n}.example"))),
        2 => (name(), name(), prop::option::of(80u16..82), 1i64..4, 0u32..3).prop_map(|(own, target, port, created, attempts)| {
            let (namespace, own) = own.split_once('/').unwrap();
            let target = target.split_once('/').unwrap().1;
            let port = port.map_or_else(String::new, |port| format!(", port: {port}"));
            stated(created, &format!(
                "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {own}, namespace: {namespace}}}\n\
                 spec: {{targetRef: {{kind: Service, name: {target}{port}}}, retry: {{attempts: {attempts}}}}}\n"
            ))
        }),
        1 => (name(), name(), 1u32..4).prop_map(|(own, target, n)| {
            let target = target.split_once('/').unwrap().1;
            document("RateLimitPolicy", own, &format!(
                "{{targetRef: {{kind: Service, name: {target}}}, scope: global, rules: [{{requests: {n}, per: 1s}}]}}"
            ))
        }),
        3 => route.prop_map(|(kind, own, parents, backend, fault, port)| {
            let parents: Vec<String> = parents.into_iter().map(|(parent, port)| {
                let (namespace, parent) = parent.split_once('/').unwrap();
                let port = port.map_or_else(String::new, |port| format!(", port: {port}"));
                format!("{{group: '', kind: Service, name: {parent}, namespace: {namespace}{port}}}")
            }).collect();
            let (namespace, backend) = backend.split_once('/').unwrap();
            let filters = if fault {
                "filters: [{type: ExtensionRef, extensionRef: {group: weft-mesh.io, kind: FaultInjection, name: f}}], "
            } else {
                ""
            };
            document(kind, own, &format!(
                "{{parentRefs: [{}], rules: [{{{filters}backendRefs: [{{name: {backend}, namespace: {namespace}, port: {port}}}]}}]}}",
                parents.join(", ")
            ))
        }),
        1 => (prop::sample::select(vec!["shop/f", "lab/f"]), 1u32..100).prop_map(|(name, n)| {
            document("FaultInjection", name, &format!("{{abort: {{status: 503, percentage: {n}}}}}"))
        }),
        1 => (prop::sample::select(vec!["shop", "lab"]), prop::sample::select(vec!["shop", "lab"])).prop_map(|(own, from)| {
            document("ReferenceGrant", &format!("{own}/g"), &format!(
                "{{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}], to: [{{group: '', kind: Service}}]}}"
            ))
        }),
        1 => any::<bool>().prop_map(|refuse| {
            let what = if refuse { "refuse" } else { "passthrough" };
            document("MeshConfig", "weft-system/mesh", &format!("{{namespaces: {{lab: {{unknownDestinations: {what}}}}}}}"))
        }),
        4 => workload.prop_map(|(n, services, addresses, ports, connected)| {
            let namespace = if n % 2 == 0 { "shop" } else { "lab" };
            Workload {
                name: format!("{namespace}/w{n}"),
                instance: format!("i{n}-{}", services.len()),
                services: services.into_iter().map(str::to_owned).collect(),
                addresses: addresses.into_iter().map(|n| IpAddr::from([10, 9, 9, n])).collect(),
                ports: ports.into_iter().map(|(port, http, ready)| {
                    (port, if http { AppProtocol::Http } else { AppProtocol::Detect }, ready)
                }).collect(),
                connected,
            }.delta()
        }),
        2 => (0usize..6).prop_map(|n| {
            let namespace = if n % 2 == 0 { "shop" } else { "lab" };
            Delta::WorkloadGone(format!("{namespace}/w{n}").parse().unwrap())
        }),
        4 => (prop::sample::select(vec!["Service", "ExternalService", "TrafficPolicy", "RateLimitPolicy", "HTTPRoute", "GRPCRoute"]), name()).prop_map(|(kind, name)| gone(kind, name)),
        1 => prop::sample::select(vec![("FaultInjection", "shop/f"), ("FaultInjection", "lab/f"), ("ReferenceGrant", "shop/g"), ("ReferenceGrant", "lab/g"), ("MeshConfig", "weft-system/mesh")]).prop_map(|(kind, name)| gone(kind, name)),
        8 => cluster::delta(),
        2 => prop::collection::vec((name(), 1u32..5, any::<bool>()), 0..3).prop_map(|theirs| {
            let theirs = theirs.into_iter().map(|(name, index, rests)| (name.parse().unwrap(), Assigned {
                index,
                released: rests.then_some(0),
                slices: 0,
                since: 0,
            }));
            Delta::Addresses(theirs.collect())
        }),
        1 => "[a-c]".prop_map(|instance| Delta::Bundle(Arc::new(TrustBundle {
            trust_domain: "weft.test".parse().unwrap(),
            roots: Vec::new(),
            revoked_instances: [instance].into(),
        }))),
    ]
}

fn gone(kind: &str, name: &str) -> Delta {
    let (namespace, name) = name.split_once('/').unwrap();
    Delta::DocumentGone(ResourceKey {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// What a change is about, and whether it is there afterwards.
fn fact_of(delta: &Delta) -> (String, bool) {
    let document = |key: ResourceKey| format!("document {key}");
    match delta {
        Delta::Document(stated) => (document(stated.document.key()), true),
        Delta::DocumentGone(key) => (document(key.clone()), false),
        Delta::Workload(entry) => (format!("workload {}", entry.registration.workload), true),
        Delta::WorkloadGone(name) => (format!("workload {name}"), false),
        Delta::ClusterService(service) => (format!("service {}", service.name), true),
        Delta::ClusterServiceGone(name) => (format!("service {name}"), false),
        Delta::ClusterSlice(slice) => (format!("slice {:?}", slice.name), true),
        Delta::ClusterSliceGone(name) => (format!("slice {name:?}"), false),
        Delta::Pod(pod) => (format!("pod {}", pod.name), true),
        Delta::Node(name, _) => (format!("node {name}"), true),
        Delta::NodeGone(name) => (format!("node {name}"), false),
        Delta::PodGone(name) => (format!("pod {name}"), false),
        Delta::Addresses(_) => ("addresses".to_owned(), true),
        Delta::Bundle(_) => ("bundle".to_owned(), true),
    }
}

/// Everything by kind and name: versions and other names.
fn everything(compiled: &Compiled) -> BTreeMap<(Kind, String), (String, Vec<String>)> {
    let all = Kind::ALL.into_iter().flat_map(|kind| {
        let of_kind = compiled.of_kind(kind);
        of_kind.map(move |found| ((kind, found.name.to_string()), found))
    });
    let all = all.map(|(key, found)| {
        let aliases = found.aliases.iter().map(ToString::to_string);
        (key, (found.version.to_string(), aliases.collect()))
    });
    all.collect()
}

fn statuses(snapshot: &Snapshot) -> Vec<RouteStatus> {
    let names = NAMES.iter();
    let keys = names.flat_map(|name| ["HTTPRoute", "GRPCRoute"].map(|kind| (kind, *name)));
    let statuses = keys.filter_map(|(kind, name)| {
        let (namespace, name) = name.split_once('/').unwrap();
        snapshot.route_status(&ResourceKey {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    });
    statuses.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever happens in whatever order: what is compiled step by step is what compiling the
    /// world anew gives, and only names under which something changed are told.
    #[test]
    fn step_by_step_is_anew(deltas in prop::collection::vec(delta(), 1..60), in_cluster in any::<bool>()) {
        let world = || match in_cluster {
            true => World::of_nobody().in_cluster("shop"),
            false => World::of_nobody(),
        };
        let mut found = Snapshot::new(world());
        let mut facts: BTreeMap<String, Delta> = BTreeMap::new();
        for delta in deltas {
            let (fact, there) = fact_of(&delta);
            match there {
                true => facts.insert(fact, delta.clone()),
                false => facts.remove(&fact),
            };
            let before = found.clone();
            let (changes, _) = found.apply([delta], 0);
            let (old, new) = (everything(&before.compiled), everything(&found.compiled));
            for kind in Kind::ALL {
                let told = changes.names.get(&kind);
                for (key, value) in old.iter().chain(&new).filter(|((k, _), _)| *k == kind) {
                    if old.get(key) == new.get(key) {
                        continue;
                    }
                    for name in value.1.iter().chain([&key.1]) {
                        let told = told.is_some_and(|told| told.contains(name.as_str()));
                        prop_assert!(told, "{:?} changed, {} is not told", key, name);
                    }
                }
            }
            let changed = old.iter().filter(|(k, v)| new.get(*k) != Some(v)).count()
                + new.keys().filter(|k| !old.contains_key(*k)).count();
            prop_assert_eq!(changes.changed > 0, changed > 0);
        }
        let mut anew = Compiled::default();
        let mut dirty = Dirty::default();
        found.world.touch_all(&mut dirty);
        compile(&found.world, dirty, &mut anew);
        prop_assert_eq!(everything(&found.compiled), everything(&anew));
        for (kind, alias) in found.compiled.resources.aliases() {
            let (one, other) = (found.compiled.find(kind, &alias), anew.find(kind, &alias));
            prop_assert_eq!(one.map(|e| &e.name), other.map(|e| &e.name), "{}", alias);
        }
        let anew = Snapshot { world: found.world.clone(), compiled: anew };
        prop_assert_eq!(statuses(&found), statuses(&anew));
        // The facts alone, without what came and went in between; addresses are as they were given.
        facts.remove("addresses");
        let mut only = Snapshot::new(world().with_addresses(&found.world));
        only.apply(facts.into_values(), 0);
        prop_assert_eq!(everything(&found.compiled), everything(&only.compiled));
    }
}
