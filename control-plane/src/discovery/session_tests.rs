//! A sidecar modelled beside the session: whatever happens, it ends up with the world.

use super::*;
use crate::compile::{VirtualAddresses, World, compile};
use crate::document::{ServicePortSpec, ServiceSpec};
use proptest::prelude::*;
use weft_core::model::{AppProtocol, MeshConfig, TrustBundle, UnknownDestinations};
use weft_core::name::ServiceName;

struct Mesh {
    services: BTreeMap<ServiceName, ServiceSpec>,
    addresses: VirtualAddresses,
    compiled: Compiled,
}

impl Mesh {
    fn new() -> Self {
        Self {
            services: BTreeMap::new(),
            addresses: VirtualAddresses::default(),
            compiled: Compiled::default(),
        }
    }

    fn set(&mut self, service: &str, port: Option<u16>) {
        let name: ServiceName = service.parse().unwrap();
        match port {
            Some(port) => {
                let port = ServicePortSpec {
                    port,
                    target_port: None,
                    protocol: AppProtocol::Detect,
                };
                self.services
                    .insert(name, ServiceSpec { ports: vec![port] });
            }
            None => {
                self.services.remove(&name);
            }
        }
        self.addresses.assign(self.services.keys(), 0);
        let config = MeshConfig {
            trust_domain: "t".parse().unwrap(),
            virtual_ranges: vec![],
            workload_ranges: vec![],
            unknown_destinations: UnknownDestinations::Passthrough,
        };
        let bundle = TrustBundle {
            trust_domain: "t".parse().unwrap(),
            roots: vec![vec![1]],
            revoked_instances: BTreeSet::new(),
        };
        let world = World {
            entries: &[],
            services: &self.services,
            addresses: &self.addresses,
            config: &config,
            bundle: &bundle,
        };
        self.compiled = compile(world, &self.compiled, 0);
    }
}

#[test]
fn unknown_is_answered_once_and_sent_when_it_comes_into_being() {
    let mut mesh = Mesh::new();
    mesh.set("shop/other", Some(1));
    let mut session = Session::new(Kind::Service);
    session.handle_request(HashMap::new(), vec!["web.shop.mesh".to_owned()], &[]);
    let push = session.poll_push(&mesh.compiled).unwrap();
    assert_eq!(push.removed, ["web.shop.mesh"]);
    assert!(
        session.poll_push(&mesh.compiled).is_none(),
        "one outstanding"
    );
    assert!(!session.handle_answer("99", ""));
    assert!(session.handle_answer(&push.nonce, ""));
    assert!(session.poll_push(&mesh.compiled).is_none(), "said once");
    mesh.set("shop/web", Some(80));
    let push = session.poll_push(&mesh.compiled).unwrap();
    assert_eq!(push.resources[0].name, "shop/web");
    assert!(
        push.resources[0]
            .aliases
            .contains(&"web.shop.mesh".to_owned())
    );
}

#[test]
fn a_reconnect_brings_only_the_difference() {
    let mut mesh = Mesh::new();
    mesh.set("shop/a", Some(1));
    mesh.set("shop/b", Some(1));
    let version = mesh
        .compiled
        .find(Kind::Service, "shop/a")
        .unwrap()
        .version
        .clone();
    let held = HashMap::from([
        ("shop/a".to_owned(), version),
        ("shop/b".to_owned(), "old".to_owned()),
        ("shop/gone".to_owned(), "1".to_owned()),
    ]);
    let asked = ["a.shop.mesh", "b.shop.mesh", "gone.shop.mesh"].map(str::to_owned);
    let mut session = Session::new(Kind::Service);
    session.handle_request(held, asked.into(), &[]);
    let push = session.poll_push(&mesh.compiled).unwrap();
    let names: Vec<_> = push.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["shop/b"]);
    assert_eq!(push.removed, ["gone.shop.mesh", "shop/gone"]);
}

#[test]
fn a_rejection_is_visible_and_not_repeated() {
    let mut mesh = Mesh::new();
    mesh.set("shop/web", Some(80));
    let mut session = Session::new(Kind::Service);
    session.handle_request(HashMap::new(), vec!["shop/web".to_owned()], &[]);
    let push = session.poll_push(&mesh.compiled).unwrap();
    session.handle_answer(&push.nonce, "shop/web: ports.port: bad");
    assert_eq!(session.rejected()["shop/web"], "ports.port: bad");
    assert!(session.poll_push(&mesh.compiled).is_none());
    mesh.set("shop/web", Some(81));
    assert!(session.poll_push(&mesh.compiled).is_some());
    assert!(session.rejected().is_empty());
}

proptest! {
    #[test]
    fn converges_whatever_the_interleaving(steps in proptest::collection::vec((0u8..5, 0u8..5, 1u16..4), 1..80)) {
        let mut mesh = Mesh::new();
        let mut session = Session::new(Kind::Service);
        let mut model: BTreeMap<String, String> = BTreeMap::new();
        let mut asked: BTreeSet<String> = BTreeSet::new();
        let mut waiting: Option<Push> = None;
        let take = |push: &Push, model: &mut BTreeMap<String, String>| {
            for name in &push.removed { model.remove(name); }
            for r in &push.resources { model.insert(r.name.clone(), r.version.clone()); }
        };
        for (step, n, port) in steps {
            let name = format!("shop/s{n}");
            match step {
                0 => mesh.set(&name, Some(port)),
                1 => mesh.set(&name, None),
                2 => {
                    asked.insert(name.clone());
                    session.handle_request(HashMap::new(), vec![name], &[]);
                }
                3 => if let Some(push) = waiting.take() { session.handle_answer(&push.nonce, ""); },
                _ => if let Some(push) = session.poll_push(&mesh.compiled) {
                    prop_assert!(waiting.is_none());
                    take(&push, &mut model);
                    waiting = Some(push);
                },
            }
        }
        for _ in 0..3 {
            if let Some(push) = waiting.take() { session.handle_answer(&push.nonce, ""); }
            if let Some(push) = session.poll_push(&mesh.compiled) {
                take(&push, &mut model);
                waiting = Some(push);
            }
        }
        let expected: BTreeMap<String, String> = asked.iter()
            .filter_map(|name| mesh.compiled.find(Kind::Service, name))
            .map(|e| (e.name.clone(), e.version.clone())).collect();
        prop_assert_eq!(model, expected);
        prop_assert_eq!(session.applied(), Some(mesh.compiled.generation));
    }
}
