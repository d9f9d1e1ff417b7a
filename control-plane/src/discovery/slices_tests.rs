//! That slices come to who asked for their service, and to nobody else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use proptest::prelude::*;
use weft_core::model::{AppProtocol, Endpoint, EndpointSlice, Service, ServicePort, Transport};
use weft_core::name::ServiceName;
use weft_proto::resource::{Kind, Resource};

use super::*;
use crate::compile::Compiled;

/// A service of a world: its content, its slices with the content of each, its address.
#[derive(Debug, Clone)]
struct Kept {
    port: u16,
    slices: Vec<u32>,
    address: Option<u8>,
}

fn endpoint(weight: u32) -> Endpoint {
    Endpoint {
        instance: "i".into(),
        workload: "shop/web".parse().unwrap(),
        identity: None,
        zone: String::new(),
        placement: Default::default(),
        weight,
        transport: Transport::Plain,
        ports: Vec::new(),
    }
}

fn world(serial: u64, services: &[(&str, Kept)]) -> Compiled {
    let resources = services.iter().flat_map(|(name, kept)| {
        let name: ServiceName = name.parse().unwrap();
        let count = u32::try_from(kept.slices.len()).unwrap();
        let address = kept.address.map(|last| IpAddr::from([240, 0, 0, last]));
        let service = Resource::Service(Service {
            name: name.clone(),
            addresses: address.into_iter().collect(),
            ports: vec![ServicePort {
                port: kept.port,
                protocol: AppProtocol::Tcp,
            }],
            endpoints: Vec::new(),
            endpoint_slices: count,
            distribution: Default::default(),
            policies: BTreeMap::new(),
            routes: Vec::new(),
            external: None,
        });
        let aliases = service.aliases();
        let slices = kept.slices.iter().enumerate().map(move |(index, content)| {
            let slice = EndpointSlice {
                service: name.clone(),
                index: u32::try_from(index).unwrap(),
                count,
                endpoints: vec![endpoint(*content)],
            };
            (Resource::EndpointSlice(slice), Vec::new())
        });
        std::iter::once((service, aliases)).chain(slices)
    });
    Compiled::of(serial, resources.collect())
}

fn kept(port: u16, slices: &[u32]) -> Kept {
    Kept {
        port,
        slices: slices.to_vec(),
        address: None,
    }
}

fn rendered(push: &Push) -> String {
    let resources = push.resources.iter().map(|r| format!("+{}", r.name));
    let removed = push.removed.iter().map(|name| format!("-{name}"));
    resources.chain(removed).collect::<Vec<_>>().join(" ")
}

fn asking(subscribe: &[&str], unsubscribe: &[&str]) -> Request {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Request {
        subscribe: names(subscribe),
        unsubscribe: names(unsubscribe),
        ..Request::default()
    }
}

/// Every name may be different.
fn mark_all(session: &mut Session, world: &Compiled) {
    for kind in [Kind::Service, Kind::EndpointSlice] {
        let asked: Vec<Arc<str>> = session.asked(kind).map(Arc::from).collect();
        let held: Vec<Arc<str>> = session.held(kind).map(|(name, _)| name.into()).collect();
        let there = world.of_kind(kind).map(|found| Arc::clone(&found.name));
        for name in asked.into_iter().chain(held).chain(there) {
            session.mark(kind, name);
        }
    }
}

/// Pushes and acknowledges until there is nothing left to say.
fn settle(session: &mut Session, world: &Compiled) -> Vec<String> {
    let mut said = Vec::new();
    mark_all(session, world);
    while let Some(push) = session.poll_push(world) {
        assert!(said.len() < 100, "never done: {said:?}");
        said.push(rendered(&push));
        let answer = Request {
            answer: Some(Answer {
                nonce: push.nonce,
                error: None,
            }),
            ..Request::default()
        };
        session.handle_request(push.kind, answer).unwrap();
    }
    said
}

fn open(held: &[(&str, &str)], services: &[&str]) -> Session {
    let mut session = Session::default();
    let held = held.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    let slices = Request {
        initial_versions: held.collect(),
        ..Request::default()
    };
    session.handle_request(Kind::EndpointSlice, slices).unwrap();
    let services = asking(services, &[]);
    session.handle_request(Kind::Service, services).unwrap();
    session
}

#[test]
fn slices_come_with_their_service() {
    let first = world(
        1,
        &[("shop/web", kept(80, &[1, 1])), ("shop/db", kept(80, &[1]))],
    );
    let mut session = open(&[], &["web.shop.mesh"]);
    let all = "+shop/web/0-2 +shop/web/1-2";
    assert_eq!(settle(&mut session, &first), [all, "+shop/web"]);
    // One slice, and nothing of the service.
    let second = world(
        2,
        &[("shop/web", kept(80, &[1, 2])), ("shop/db", kept(80, &[9]))],
    );
    assert_eq!(settle(&mut session, &second), ["+shop/web/1-2"]);
    // The service, and no slice.
    let third = world(3, &[("shop/web", kept(81, &[1, 2]))]);
    assert_eq!(settle(&mut session, &third), ["+shop/web"]);
    // Another division.
    let fourth = world(4, &[("shop/web", kept(81, &[1]))]);
    let said = settle(&mut session, &fourth);
    assert_eq!(
        said,
        ["+shop/web/0-1 -shop/web/0-2 -shop/web/1-2", "+shop/web"]
    );
    assert_eq!(session.applied().map(|a| a.generation), Some(4));
    let gone = settle(&mut session, &world(5, &[]));
    assert_eq!(gone, ["-shop/web/0-1", "-shop/web -web.shop.mesh"]);
}

#[test]
fn they_go_with_the_last_name_of_their_service() {
    let world = world(1, &[("shop/web", kept(80, &[1, 1]))]);
    let mut session = open(&[], &["shop/web", "web.shop.mesh"]);
    settle(&mut session, &world);
    let one = asking(&[], &["shop/web"]);
    session.handle_request(Kind::Service, one).unwrap();
    assert!(settle(&mut session, &world).is_empty());
    assert_eq!(session.held(Kind::EndpointSlice).count(), 2);
    let last = asking(&[], &["web.shop.mesh"]);
    session.handle_request(Kind::Service, last).unwrap();
    let gone = "-shop/web/0-2 -shop/web/1-2";
    assert_eq!(settle(&mut session, &world), [gone]);
    assert_eq!(session.held(Kind::EndpointSlice).count(), 0);
    let again = asking(&["shop/web"], &[]);
    session.handle_request(Kind::Service, again).unwrap();
    let all = "+shop/web/0-2 +shop/web/1-2";
    assert_eq!(settle(&mut session, &world), [all, "+shop/web"]);
}

#[test]
fn after_a_reconnect_only_the_difference() {
    let world = world(1, &[("shop/web", kept(80, &[1, 1, 1, 1]))]);
    let version = |index: u32| {
        let name = format!("shop/web/{index}-4");
        world
            .find(Kind::EndpointSlice, &name)
            .unwrap()
            .version
            .to_string()
    };
    let (first, second) = (version(0), version(1));
    let held = [
        ("shop/web/0-4", &*first),
        ("shop/web/1-4", &*second),
        ("shop/web/2-4", "other"),
        ("shop/db/0-1", "1"),
    ];
    // Nothing is said while it is not known which services are wanted.
    let mut session = Session::default();
    let slices = Request {
        initial_versions: { held.iter() }
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
        ..Request::default()
    };
    session.handle_request(Kind::EndpointSlice, slices).unwrap();
    assert!(session.poll_push(&world).is_none());
    let mut session = open(&held, &["shop/web"]);
    let difference = "+shop/web/2-4 +shop/web/3-4 -shop/db/0-1";
    assert_eq!(settle(&mut session, &world), [difference, "+shop/web"]);
}

/// A sidecar that asks for few services may hold more slices than names may be asked for.
#[test]
fn slices_are_removed_however_many_are_held() {
    let known = world(1, &[("shop/web", kept(80, &[1]))]);
    let wanted = known.find(Kind::EndpointSlice, "shop/web/0-1").unwrap();
    let stale = (0..NAMES_MAX + 1_000).map(|n| format!("shop/gone-{:05}/{}-4", n / 4, n % 4));
    let stale: Vec<String> = stale.collect();
    let mut held: Vec<(&str, &str)> = stale.iter().map(|name| (&**name, "1")).collect();
    held.push(("shop/web/0-1", &wanted.version));
    let mut session = open(&held, &["shop/web"]);
    let said = settle(&mut session, &known).join(" ");
    let removed = said.split(' ').filter(|name| name.starts_with('-'));
    assert_eq!(removed.count(), stale.len());
    let left: Vec<&str> = session.held(Kind::EndpointSlice).map(|(n, _)| n).collect();
    assert_eq!(left, ["shop/web/0-1"]);
}

#[test]
fn they_are_not_asked_for_by_name() {
    let mut session = Session::default();
    let request = asking(&["shop/web/0-1"], &[]);
    let refused = session.handle_request(Kind::EndpointSlice, request);
    assert_eq!(refused, Err(SessionError::SliceByName));
    // A sidecar that has not opened the kind gets none.
    let world = world(1, &[("shop/web", kept(80, &[1]))]);
    let mut session = Session::default();
    let request = asking(&["shop/web"], &[]);
    session.handle_request(Kind::Service, request).unwrap();
    assert_eq!(settle(&mut session, &world), ["+shop/web"]);
}

/// A sidecar as ours is, at the far end of two queues.
#[derive(Debug, Default)]
struct Sidecar {
    held: BTreeMap<(Kind, String), (String, Vec<String>)>,
    subscribed: BTreeSet<String>,
    requests: VecDeque<(Kind, Request)>,
    responses: VecDeque<Push>,
}

impl Sidecar {
    fn open(&mut self) {
        self.requests.clear();
        self.responses.clear();
        for kind in [Kind::EndpointSlice, Kind::Service] {
            let held = self.held.iter().filter(|((of, _), _)| *of == kind);
            let names = self.subscribed.iter().filter(|_| kind == Kind::Service);
            let request = Request {
                subscribe: names.cloned().collect(),
                initial_versions: held
                    .map(|((_, n), (v, _))| (n.clone(), v.clone()))
                    .collect(),
                ..Request::default()
            };
            self.requests.push_back((kind, request));
        }
    }

    fn ask(&mut self, name: &str) {
        if self.subscribed.insert(name.to_owned()) {
            let request = asking(&[name], &[]);
            self.requests.push_back((Kind::Service, request));
        }
    }

    /// As it does with a service that it has and nobody uses.
    fn release(&mut self, name: &str) {
        let Some((_, aliases)) = self.held.remove(&(Kind::Service, name.to_owned())) else {
            return;
        };
        let mut names = vec![name.to_owned()];
        names.extend(aliases);
        names.retain(|name| self.subscribed.remove(name));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.requests
            .push_back((Kind::Service, asking(&[], &names)));
    }

    fn receive(&mut self) {
        let Some(push) = self.responses.pop_front() else {
            return;
        };
        for name in &push.removed {
            self.held.remove(&(push.kind, name.clone()));
        }
        for resource in &push.resources {
            let aliases = resource.aliases.iter().map(ToString::to_string);
            let content = (resource.version.to_string(), aliases.collect());
            self.held
                .insert((push.kind, resource.name.to_string()), content);
        }
        let answer = Request {
            answer: Some(Answer {
                nonce: push.nonce,
                error: None,
            }),
            ..Request::default()
        };
        self.requests.push_back((push.kind, answer));
    }
}

#[derive(Debug, Clone)]
enum Step {
    World(Vec<Option<Kept>>),
    Ask(usize),
    Release(usize),
    ToServer,
    ToSidecar,
    Reconnect,
}

const NAMES: [&str; 6] = [
    "shop/a",
    "shop/b",
    "shop/c",
    "a.shop.mesh",
    "240.0.0.1",
    "240.0.0.2",
];

fn step() -> impl Strategy<Value = Step> {
    let count = prop::sample::select(vec![1usize, 2, 4]);
    let slices = count.prop_flat_map(|count| prop::collection::vec(1u32..3, count));
    let service =
        (1u16..3, slices, prop::option::of(1u8..3)).prop_map(|(port, slices, address)| Kept {
            port,
            slices,
            address,
        });
    let services = prop::collection::vec(prop::option::weighted(0.8, service), 3);
    prop_oneof![
        2 => services.prop_map(Step::World),
        3 => (0..NAMES.len()).prop_map(Step::Ask),
        1 => (0usize..3).prop_map(Step::Release),
        5 => Just(Step::ToServer),
        5 => Just(Step::ToSidecar),
        1 => Just(Step::Reconnect),
    ]
}

fn make_world(serial: u64, services: &[Option<Kept>]) -> Compiled {
    let mut taken = BTreeSet::new();
    let services = NAMES.iter().zip(services).filter_map(|(name, kept)| {
        let mut kept = kept.clone()?;
        // An address is of one service.
        kept.address = kept.address.filter(|address| taken.insert(*address));
        Some((*name, kept))
    });
    world(serial, &services.collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever happens in whatever order: once everything has been delivered, the sidecar holds
    /// every service that it asked for with all of its slices as they are now, and nothing else.
    #[test]
    fn the_sidecar_comes_to_hold_whole_services(steps in prop::collection::vec(step(), 1..80)) {
        let mut serial = 1;
        let first = Kept { port: 1, slices: vec![1, 1], address: Some(1) };
        let mut world = make_world(serial, &[Some(first), None, None]);
        let mut session = Session::default();
        let mut sidecar = Sidecar::default();
        sidecar.open();
        let drain = (0..80).flat_map(|_| [Step::ToServer, Step::ToSidecar]);
        for step in steps.into_iter().chain(drain) {
            match step {
                Step::World(services) => {
                    serial += 1;
                    let before = std::mem::replace(&mut world, make_world(serial, &services));
                    // Exactly what is different, as it is told to who asked for a service.
                    for name in NAMES {
                        let version = |world: &Compiled| {
                            let found = world.find(Kind::Service, name);
                            found.map(|found| (Arc::clone(&found.name), Arc::clone(&found.version)))
                        };
                        if version(&before) != version(&world) {
                            session.mark(Kind::Service, name.into());
                        }
                    }
                    let slices = |world: &Compiled| -> BTreeMap<Arc<str>, Arc<str>> {
                        let slices = world.of_kind(Kind::EndpointSlice);
                        slices.map(|s| (Arc::clone(&s.name), Arc::clone(&s.version))).collect()
                    };
                    let (old, new) = (slices(&before), slices(&world));
                    for name in old.keys().chain(new.keys()) {
                        if old.get(name) != new.get(name) {
                            session.mark(Kind::EndpointSlice, Arc::clone(name));
                        }
                    }
                }
                Step::Ask(n) => sidecar.ask(NAMES[n]),
                Step::Release(n) => sidecar.release(NAMES[n]),
                Step::ToServer => {
                    if let Some((kind, request)) = sidecar.requests.pop_front() {
                        session.handle_request(kind, request).unwrap();
                    }
                }
                Step::ToSidecar => sidecar.receive(),
                Step::Reconnect => {
                    session = Session::default();
                    sidecar.open();
                }
            }
            while let Some(push) = session.poll_push(&world) {
                sidecar.responses.push_back(push);
            }
        }
        prop_assert!(sidecar.requests.is_empty() && sidecar.responses.is_empty());
        let mut expected = BTreeMap::new();
        for name in &sidecar.subscribed {
            let found = world.find(Kind::Service, name).into_iter();
            let found = found.map(|found| (Kind::Service, found));
            let slices = world.slices(name).map(|slice| (Kind::EndpointSlice, slice));
            for (kind, found) in found.chain(slices) {
                expected.insert((kind, found.name.to_string()), found.version.to_string());
            }
        }
        let held = sidecar.held.iter();
        let held: BTreeMap<_, _> = held.map(|(key, (version, _))| (key.clone(), version.clone())).collect();
        prop_assert_eq!(held, expected);
        prop_assert_eq!(session.applied().map(|a| a.generation), Some(serial));
    }
}
