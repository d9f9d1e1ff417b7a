//! That a service is in force with all of its endpoints or as it was before, in whatever order its
//! parts come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use weft_core::model::{AppProtocol, Endpoint, EndpointPort, ServicePort, Transport, slice_of};
use weft_core::name::ServiceName;
use weft_core::policy::TrafficPolicy;
use weft_core::reason::Reason;
use weft_core::route::{About, Route, RouteName, Rule};
use weft_core::time::Instant;
use weft_proto::resource::Kind;

use super::super::grpc::{from_bytes, to_bytes};
use super::super::held::{Applied, Holdings, Received};
use super::*;
use crate::config::ProxyConfig;
use crate::mesh::Mesh;
use crate::telemetry::metrics::Metrics;

const NOW: Instant = Instant::from_nanos(0);
const WEB: &str = "shop/web";

/// The service in one state: its port tells the content of its resource, weights those of slices.
#[derive(Debug, Clone, PartialEq)]
struct State {
    port: u16,
    count: u32,
    endpoints: BTreeMap<String, u32>,
}

fn state(port: u16, count: u32, endpoints: &[(&str, u32)]) -> State {
    let endpoints = endpoints.iter().map(|(name, n)| ((*name).to_owned(), *n));
    State {
        port,
        count,
        endpoints: endpoints.collect(),
    }
}

impl State {
    fn service(&self) -> Received {
        let route = Route {
            name: RouteName {
                namespace: "shop".into(),
                name: "r".into(),
            },
            ports: Vec::new(),
            about: About::Requests,
            created: 0,
            rules: vec![Rule::default()],
        };
        received(Resource::Service(Service {
            name: WEB.parse().unwrap(),
            addresses: vec!["240.0.0.1".parse().unwrap()],
            ports: vec![ServicePort {
                port: self.port,
                protocol: AppProtocol::Http,
            }],
            endpoints: Vec::new(),
            endpoint_slices: self.count,
            distribution: Default::default(),
            policies: [(self.port, Arc::new(TrafficPolicy::default()))].into(),
            routes: vec![Arc::new(route)],
            external: None,
        }))
    }

    fn slices(&self) -> Vec<Received> {
        let endpoints = self.endpoints.iter().map(|(instance, weight)| Endpoint {
            instance: instance.as_str().into(),
            workload: WEB.parse().unwrap(),
            identity: Some("spiffe://weft.local/ns/shop/sa/web".parse().unwrap()),
            zone: String::new(),
            placement: Default::default(),
            weight: *weight,
            transport: Transport::Mesh,
            ports: vec![EndpointPort {
                service_port: self.port,
                address: "127.0.0.1:1".parse().unwrap(),
            }],
        });
        let name: ServiceName = WEB.parse().unwrap();
        let slices = EndpointSlice::divide(&name, endpoints.collect(), self.count);
        let slices = slices.into_iter().map(Resource::EndpointSlice);
        slices.map(received).collect()
    }
}

fn received(resource: Resource) -> Received {
    let version = format!("{:?}", resource.encode().value);
    Received {
        name: resource.name(),
        version,
        aliases: resource.aliases(),
        resource: Ok(resource),
    }
}

fn take(holdings: &mut Holdings, received: Received) -> Applied {
    let kind = match &received.resource {
        Ok(resource) => resource.kind(),
        Err(_) => Kind::EndpointSlice,
    };
    holdings.handle_response(kind, vec![received], Vec::new(), NOW)
}

fn remove(holdings: &mut Holdings, kind: Kind, names: &[&str]) -> Applied {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    holdings.handle_response(kind, Vec::new(), names, NOW)
}

fn take_all(holdings: &mut Holdings, state: &State) {
    for received in std::iter::once(state.service()).chain(state.slices()) {
        take(holdings, received);
    }
}

/// The service as it is in force.
fn in_force(holdings: &Holdings) -> Option<State> {
    let world = holdings.world();
    let (service, _) = world.services.first()?;
    let endpoints = service.endpoints.iter();
    let endpoints = endpoints.map(|endpoint| (endpoint.instance.to_string(), endpoint.weight));
    Some(State {
        port: service.ports[0].port,
        count: service.endpoint_slices,
        endpoints: endpoints.collect(),
    })
}

const FIVE: [(&str, u32); 5] = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)];

#[test]
fn slices_that_are_forgotten_come_again_and_the_service_stays_in_force() {
    let (before, after) = (state(80, 2, &FIVE), state(80, 2, &FIVE[1..]));
    let mut holdings = Holdings::default();
    take_all(&mut holdings, &before);
    holdings.forget_slices();
    assert!(holdings.versions(Kind::EndpointSlice).is_empty());
    assert_eq!(holdings.versions(Kind::Service).len(), 1);
    assert_eq!(in_force(&holdings), Some(before.clone()));
    let [first, second] = after.slices().try_into().unwrap();
    take(&mut holdings, first);
    assert_eq!(in_force(&holdings), Some(before), "one is missing");
    take(&mut holdings, second);
    assert_eq!(in_force(&holdings), Some(after));
}

#[test]
fn every_order_of_arrival_composes_the_same() {
    let state = state(80, 2, &FIVE);
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for order in orders {
        let mut holdings = Holdings::default();
        holdings.subscribe(Kind::Service, "240.0.0.1");
        remove(&mut holdings, Kind::Service, &["240.0.0.1"]);
        let mut parts = vec![state.service()];
        parts.extend(state.slices());
        let mut parts: Vec<Option<Received>> = parts.into_iter().map(Some).collect();
        for (nth, part) in order.into_iter().enumerate() {
            let applied = take(&mut holdings, parts[part].take().unwrap());
            let whole = (nth == 2).then(|| state.clone());
            assert_eq!(in_force(&holdings), whole, "{order:?} {nth}");
            assert!(applied.rejected.is_empty());
            // A slice by itself is no news; the service is, as it exists.
            assert_eq!(applied.changed, nth == 2 || part == 0, "{order:?} {nth}");
        }
        assert!(holdings.world().absent.is_empty());
        assert_eq!(holdings.versions(Kind::EndpointSlice).len(), 2);
    }
}

/// Unanswered is not absent: it waits, and then fails as such.
#[tokio::test]
async fn what_is_not_whole_is_unanswered() {
    let mut config = ProxyConfig::default();
    config.workload.name = "me".to_owned();
    config.workload.namespace = "shop".to_owned();
    config.timeouts.discovery_wait = Duration::from_millis(50);
    let (mesh, _demanded) = Mesh::new(Metrics::new(10), &config);
    let mut holdings = Holdings::default();
    holdings.subscribe(Kind::Namespace, "shop");
    holdings.subscribe(Kind::Service, WEB);
    remove(&mut holdings, Kind::Namespace, &["shop"]);
    let state = state(80, 2, &FIVE);
    let name: ServiceName = WEB.parse().unwrap();
    let mut slices = state.slices();
    take(&mut holdings, state.service());
    take(&mut holdings, slices.remove(0));
    mesh.publish(holdings.world());
    let found = mesh.resolve_service(&name, 80).await;
    assert_eq!(found.unwrap_err(), Reason::DiscoveryUnavailable);
    take(&mut holdings, slices.remove(0));
    mesh.publish(holdings.world());
    let found = mesh.resolve_service(&name, 80).await.unwrap();
    assert_eq!(found.endpoints.len(), 5);
}

#[test]
fn a_service_without_endpoints_is_whole() {
    let mut holdings = Holdings::default();
    // Outside the mesh there are no slices.
    take(&mut holdings, state(80, 0, &[]).service());
    assert_eq!(in_force(&holdings), Some(state(80, 0, &[])));
    // In the mesh there is one, and it is empty: that is an answer as well.
    take_all(&mut holdings, &state(80, 1, &[]));
    assert_eq!(in_force(&holdings), Some(state(80, 1, &[])));
}

#[test]
fn what_was_whole_stays_until_the_next_is() {
    let old = state(80, 1, &FIVE);
    let new = state(81, 2, &[("a", 2), ("b", 2), ("f", 2)]);
    let mut holdings = Holdings::default();
    take_all(&mut holdings, &old);
    take(&mut holdings, new.service());
    assert_eq!(in_force(&holdings).as_ref(), Some(&old));
    // Also when the old slice goes before the new ones have come.
    remove(&mut holdings, Kind::EndpointSlice, &["shop/web/0-1"]);
    assert_eq!(in_force(&holdings).as_ref(), Some(&old));
    let mut slices = new.slices();
    take(&mut holdings, slices.remove(1));
    assert_eq!(in_force(&holdings).as_ref(), Some(&old));

    // And through a restart without the control plane.
    let mut restored = Holdings::default();
    assert!(from_bytes(&to_bytes(&holdings), &mut restored).is_empty());
    assert_eq!(in_force(&restored).as_ref(), Some(&old));
    assert_eq!(restored.subscriptions(Kind::Service), [WEB]);
    assert!(restored.subscriptions(Kind::EndpointSlice).is_empty());
    let held = restored.versions(Kind::EndpointSlice);
    assert_eq!(held.keys().collect::<Vec<_>>(), ["shop/web/0-1"]);

    take(&mut holdings, slices.remove(0));
    assert_eq!(in_force(&holdings).as_ref(), Some(&new));
    let mut restored = Holdings::default();
    assert!(from_bytes(&to_bytes(&holdings), &mut restored).is_empty());
    assert_eq!(in_force(&restored).as_ref(), Some(&new));
    for kind in [Kind::Service, Kind::EndpointSlice] {
        assert_eq!(restored.versions(kind), holdings.versions(kind));
    }
}

/// A name may belong to another service by now.
#[test]
fn what_stays_has_no_names_that_it_has_lost() {
    let mut holdings = Holdings::default();
    take_all(&mut holdings, &state(80, 1, &FIVE));
    let mut newest = state(80, 2, &FIVE).service();
    newest.aliases.retain(|alias| alias != "240.0.0.1");
    newest.aliases.push("240.0.0.2".to_owned());
    take(&mut holdings, newest);
    let names = holdings.world().services[0].1.clone();
    assert_eq!(names, ["web.shop.mesh"]);
    for slice in state(80, 2, &FIVE).slices() {
        take(&mut holdings, slice);
    }
    let names = holdings.world().services[0].1.clone();
    assert_eq!(names, ["web.shop.mesh", "240.0.0.2"]);
}

#[test]
fn a_bad_slice_leaves_its_predecessor_and_its_neighbours() {
    let old = state(80, 2, &FIVE);
    let mut holdings = Holdings::default();
    take_all(&mut holdings, &old);
    let new = state(80, 2, &FIVE.map(|(name, _)| (name, 2)));
    let [mut first, second] = <[Received; 2]>::try_from(new.slices()).unwrap();
    first.resource = Err("endpoints.weight: \"0\" is not\na weight".to_owned());
    let answer =
        holdings.handle_response(Kind::EndpointSlice, vec![first, second], Vec::new(), NOW);
    let line = "shop/web/0-2: endpoints.weight: \"0\" is not a weight";
    assert_eq!(answer.rejected, [line]);
    let weights = in_force(&holdings).unwrap().endpoints;
    for (instance, weight) in weights {
        assert_eq!(weight, 1 + slice_of(&instance, 2), "{instance}");
    }
    // What is called otherwise is not taken either: its name is how it is found.
    let mut other = new.slices().remove(0);
    other.name = "shop/web/1-2".to_owned();
    let answer = take(&mut holdings, other);
    assert_eq!(answer.rejected, ["shop/web/1-2: is called shop/web/0-2"]);
}

#[test]
fn a_service_that_is_removed_is_gone_whatever_slices_there_are() {
    let old = state(80, 2, &FIVE);
    let mut holdings = Holdings::default();
    holdings.subscribe(Kind::Service, WEB);
    take_all(&mut holdings, &old);
    assert!(remove(&mut holdings, Kind::Service, &[WEB]).changed);
    assert_eq!(in_force(&holdings), None);
    assert!(holdings.world().absent.contains(WEB));
    assert!(!take(&mut holdings, old.slices().remove(0)).changed);
    assert_eq!(in_force(&holdings), None);
    // It is back before they were removed: the control plane knows that they are held.
    take(&mut holdings, old.service());
    assert_eq!(in_force(&holdings), Some(old));
}

/// Slices are not asked for: only the control plane can say that they are not wanted any more.
#[test]
fn a_service_that_nobody_uses_goes_and_then_its_slices() {
    let mut holdings = Holdings::default();
    for name in [WEB, "web.shop.mesh"] {
        holdings.subscribe(Kind::Service, name);
    }
    let state = state(80, 2, &FIVE);
    take_all(&mut holdings, &state);
    let mut names = holdings.release(Kind::Service, WEB);
    names.sort();
    assert_eq!(names, [WEB, "web.shop.mesh"]);
    assert_eq!(in_force(&holdings), None);
    // They are told on the next stream, if they were not removed before, and are not on the disk.
    assert_eq!(holdings.versions(Kind::EndpointSlice).len(), 2);
    let mut restored = Holdings::default();
    assert!(from_bytes(&to_bytes(&holdings), &mut restored).is_empty());
    assert!(restored.versions(Kind::EndpointSlice).is_empty());
    // Wanted again before they were removed, it is whole at once.
    holdings.subscribe(Kind::Service, WEB);
    take(&mut holdings, state.service());
    assert_eq!(in_force(&holdings), Some(state));
    holdings.release(Kind::Service, WEB);
    let removed = ["shop/web/0-2", "shop/web/1-2"];
    assert!(!remove(&mut holdings, Kind::EndpointSlice, &removed).changed);
    assert!(holdings.versions(Kind::EndpointSlice).is_empty());
}

/// A service that never becomes whole leads nowhere: it does not push out what is known.
#[test]
fn what_never_becomes_whole_is_forgotten() {
    let mut holdings = Holdings::new(10);
    let second = |second: u64| Instant::from_nanos(second * 1_000_000_000);
    holdings.demand(Kind::Service, WEB, second(1)).unwrap();
    take(&mut holdings, state(80, 2, &FIVE).service());
    take(&mut holdings, state(80, 2, &FIVE).slices().remove(0));
    assert!(holdings.forget_unknown(|_| None, second(60)).is_empty());
    let forgotten = holdings.forget_unknown(|_| None, second(100));
    assert_eq!(forgotten, [(Kind::Service, WEB.to_owned())]);
    assert!(holdings.versions(Kind::Service).is_empty());
    // One that became whole is not.
    holdings.demand(Kind::Service, WEB, second(200)).unwrap();
    take_all(&mut holdings, &state(80, 2, &FIVE));
    assert!(holdings.forget_unknown(|_| None, second(300)).is_empty());
    assert_eq!(in_force(&holdings), Some(state(80, 2, &FIVE)));
}

/// A change of one endpoint touches neither the service's policies and routes nor other services.
#[test]
fn a_slice_changes_nothing_but_endpoints() {
    let mut config = ProxyConfig::default();
    config.workload.name = "me".to_owned();
    config.workload.namespace = "shop".to_owned();
    let (mesh, _demanded) = Mesh::new(Metrics::new(10), &config);
    let mut holdings = Holdings::default();
    take_all(&mut holdings, &state(80, 2, &FIVE));
    let mut other = state(80, 0, &[]).service();
    if let Ok(Resource::Service(service)) = &mut other.resource {
        service.name = "shop/other".parse().unwrap();
        other.name = "shop/other".to_owned();
    }
    take(&mut holdings, other);
    mesh.publish(holdings.world());
    let before = mesh.snapshot();
    let mut changed = FIVE;
    changed[0].1 = 2;
    let slices = state(80, 2, &changed).slices();
    take(
        &mut holdings,
        slices.into_iter().nth(slice_of("a", 2) as usize).unwrap(),
    );
    mesh.publish(holdings.world());
    let after = mesh.snapshot();
    let view = |snapshot: &crate::mesh::Snapshot, name: &str| {
        Arc::clone(&snapshot.services[&name.parse::<ServiceName>().unwrap()])
    };
    assert!(Arc::ptr_eq(
        &view(&before, "shop/other"),
        &view(&after, "shop/other")
    ));
    let (old, new) = (view(&before, WEB), view(&after, WEB));
    assert!(!Arc::ptr_eq(&old, &new));
    let (old, new) = (old.port(80).unwrap(), new.port(80).unwrap());
    assert!(Arc::ptr_eq(&old.policy, &new.policy));
    let (routes, same) = (old.routes.as_ref().unwrap(), new.routes.as_ref().unwrap());
    assert!(Arc::ptr_eq(routes, same));
    let weights = new.endpoints.iter().map(|endpoint| endpoint.model.weight);
    assert_eq!(weights.collect::<Vec<_>>(), [2, 1, 1, 1, 1]);
    for (old, new) in old.endpoints.iter().zip(&new.endpoints) {
        assert!(Arc::ptr_eq(&old.live, &new.live), "{}", old.key.instance);
    }
}

/// Live state stays with a service through snapshots in which nothing of it changed.
#[test]
fn live_state_outlives_snapshots_that_are_about_others() {
    let mut config = ProxyConfig::default();
    config.workload.name = "me".to_owned();
    let (mesh, _demanded) = Mesh::new(Metrics::new(10), &config);
    let mut holdings = Holdings::default();
    take_all(&mut holdings, &state(80, 1, &FIVE));
    mesh.publish(holdings.world());
    let live = || {
        let port = mesh.known(&WEB.parse().unwrap(), 80).unwrap();
        Arc::clone(&port.endpoints[0].live)
    };
    let first = live();
    for _ in 0..3 {
        mesh.publish(holdings.world());
    }
    assert!(Arc::ptr_eq(&first, &live()));
    take_all(&mut holdings, &state(80, 2, &FIVE));
    mesh.publish(holdings.world());
    assert!(Arc::ptr_eq(&first, &live()));
}

fn any_state() -> impl Strategy<Value = Option<State>> {
    let endpoints = prop::collection::btree_map("[a-f]", 1u32..4, 0..6);
    let count = prop::sample::select(vec![1u32, 2, 4]);
    let state = (1u16..4, count, endpoints).prop_map(|(port, count, endpoints)| State {
        port,
        count,
        endpoints,
    });
    prop::option::weighted(0.85, state)
}

/// What a control plane sends of one kind, in order: the difference between states.
#[derive(Debug, Default)]
struct Queue {
    sent: BTreeMap<String, String>,
    responses: VecDeque<(Vec<Received>, Vec<String>)>,
}

impl Queue {
    fn say(&mut self, now: Vec<Received>, at_once: bool) {
        let names: BTreeSet<&String> = now.iter().map(|r| &r.name).collect();
        let gone = self.sent.keys().filter(|name| !names.contains(name));
        let gone: Vec<String> = gone.cloned().collect();
        let news: Vec<Received> = { now.into_iter() }
            .filter(|r| self.sent.get(&r.name) != Some(&r.version))
            .collect();
        gone.iter().for_each(|name| {
            self.sent.remove(name);
        });
        let versions = news.iter().map(|r| (r.name.clone(), r.version.clone()));
        self.sent.extend(versions);
        if at_once {
            self.responses.push_back((news, gone));
        } else {
            self.responses.push_back((Vec::new(), gone));
            let single = news.into_iter().map(|r| (vec![r], Vec::new()));
            self.responses.extend(single);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Responses of a kind come in order, those of different kinds in any: what is in force has, of
    /// every slice, one state that the control plane has told, all of one count; once it was whole
    /// it is never without endpoints; and in the end it is what the control plane has told last.
    #[test]
    fn a_service_is_whole_at_every_moment(
        states in prop::collection::vec((any_state(), any::<bool>()), 1..8),
        order in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let (mut services, mut slices) = (Queue::default(), Queue::default());
        let mut told: BTreeMap<(u32, u32), Vec<BTreeMap<String, u32>>> = BTreeMap::new();
        for (state, at_once) in &states {
            let of_state = state.iter();
            services.say(of_state.clone().map(State::service).collect(), *at_once);
            slices.say(of_state.clone().flat_map(State::slices).collect(), *at_once);
            for state in of_state {
                for index in 0..state.count {
                    let part = state.endpoints.iter();
                    let part = part.filter(|(name, _)| slice_of(name, state.count) == index);
                    let part = part.map(|(name, weight)| (name.clone(), *weight)).collect();
                    told.entry((state.count, index)).or_default().push(part);
                }
            }
        }
        let mut holdings = Holdings::default();
        holdings.subscribe(Kind::Service, WEB);
        let mut whole = false;
        let mut order = order.into_iter().cycle();
        loop {
            let first = order.next().unwrap();
            let kinds = [(Kind::Service, &mut services), (Kind::EndpointSlice, &mut slices)];
            let mut kinds = kinds.into_iter().filter(|(_, queue)| !queue.responses.is_empty());
            let next = if first { kinds.next() } else { kinds.last() };
            let Some((kind, queue)) = next else { break };
            let (received, removed) = queue.responses.pop_front().unwrap();
            whole &= !(kind == Kind::Service && removed.iter().any(|name| name == WEB));
            let applied = holdings.handle_response(kind, received, removed, NOW);
            prop_assert!(applied.rejected.is_empty());
            let now = in_force(&holdings);
            prop_assert!(!whole || now.is_some(), "it was whole before");
            whole |= now.is_some();
            let Some(now) = now else { continue };
            for index in 0..now.count {
                let part = now.endpoints.iter();
                let part = part.filter(|(name, _)| slice_of(name, now.count) == index);
                let part = part.map(|(name, weight)| (name.clone(), *weight)).collect();
                let known = told.get(&(now.count, index)).is_some_and(|told| told.contains(&part));
                prop_assert!(known, "slice {index} of {} is no slice: {part:?}", now.count);
            }
        }
        let (last, _) = states.into_iter().next_back().unwrap();
        let mut restored = Holdings::default();
        prop_assert!(from_bytes(&to_bytes(&holdings), &mut restored).is_empty());
        prop_assert_eq!(in_force(&restored), last.clone());
        prop_assert_eq!(in_force(&holdings), last);
    }
}
