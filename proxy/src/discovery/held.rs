//! What the sidecar holds of what the control plane sent: pure bookkeeping of delta xDS.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use weft_core::model::TrustBundle;
use weft_core::time::Instant;
use weft_core::unknown::{TooMany, UnknownNames};
use weft_proto::resource::{Kind, Resource};

use crate::mesh::World;

/// One resource of a response, decoded or not.
#[derive(Debug)]
pub(super) struct Received {
    /// Its name.
    pub(super) name: String,
    /// Its version.
    pub(super) version: String,
    /// Other names it goes by.
    pub(super) aliases: Vec<String>,
    /// The resource, or why it is not taken.
    pub(super) resource: Result<Resource, String>,
}

/// A resource held.
#[derive(Debug, Clone)]
struct Held {
    version: String,
    aliases: Vec<String>,
    resource: Resource,
}

/// Everything held and everything asked for.
#[derive(Debug)]
pub(super) struct Holdings {
    held: HashMap<(Kind, String), Held>,
    /// Names asked for: resource names, hostnames or addresses.
    subscribed: BTreeSet<(Kind, String)>,
    /// Names asked for that do not exist.
    absent: HashSet<(Kind, String)>,
    /// Names of services and workloads asked for that lead nowhere so far.
    unknown: UnknownNames<(Kind, String)>,
}

impl Default for Holdings {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

/// What became of a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// Whether anything is different now.
    pub(super) changed: bool,
    /// One line `NAME: reason` for each resource that was not taken.
    pub(super) rejected: Vec<String>,
}

impl Holdings {
    /// Nothing yet; `unknown_max` bounds the names that lead nowhere.
    pub(super) fn new(unknown_max: usize) -> Self {
        Self {
            held: HashMap::new(),
            subscribed: BTreeSet::new(),
            absent: HashSet::new(),
            unknown: UnknownNames::new(unknown_max),
        }
    }

    /// Takes a response: good resources are taken even beside bad ones, a bad one leaves its
    /// predecessor in force.
    pub(super) fn handle_response(
        &mut self,
        kind: Kind,
        received: Vec<Received>,
        removed: Vec<String>,
        now: Instant,
    ) -> Applied {
        let mut applied = Applied::default();
        // Removals first: an alias that moved is removed from its old owner before it is given
        // to the new one.
        for name in removed {
            let key = (kind, name);
            if let Some(held) = self.held.remove(&key) {
                applied.changed = true;
                let aliases = held.aliases.into_iter().map(|alias| (kind, alias));
                for alias in aliases.filter(|alias| self.subscribed.contains(alias)) {
                    self.unknown.handle_gone(alias, now);
                }
            }
            if self.subscribed.contains(&key) {
                if demanded(kind) {
                    self.unknown.handle_gone(key.clone(), now);
                }
                applied.changed |= self.absent.insert(key);
            }
        }
        for received in received {
            let resource = match received.resource {
                Ok(resource) if resource.kind() == kind => resource,
                Ok(other) => {
                    let other = other.kind().as_str();
                    let line = format!("{}: is a {other}", received.name);
                    applied.rejected.push(line);
                    continue;
                }
                Err(reason) => {
                    // One line each: the control plane reads the reasons back by line.
                    let reason = reason.replace('\n', " ");
                    applied
                        .rejected
                        .push(format!("{}: {reason}", received.name));
                    continue;
                }
            };
            for name in received.aliases.iter().chain([&received.name]) {
                let key = (kind, name.clone());
                self.absent.remove(&key);
                self.unknown.handle_known(&key);
            }
            applied.changed = true;
            self.held.insert(
                (kind, received.name),
                Held {
                    version: received.version,
                    aliases: received.aliases,
                    resource,
                },
            );
        }
        applied
    }

    /// Asks for a name; true when it was not asked for before.
    pub(super) fn subscribe(&mut self, kind: Kind, name: &str) -> bool {
        self.subscribed.insert((kind, name.to_owned()))
    }

    /// Asks for a name that some connection waits for; `Ok(true)` when it was not asked for before.
    ///
    /// # Errors
    ///
    /// When too many new names were asked for in a short time.
    pub(super) fn demand(&mut self, kind: Kind, name: &str, now: Instant) -> Result<bool, TooMany> {
        let key = (kind, name.to_owned());
        if self.subscribed.contains(&key) {
            return Ok(false);
        }
        self.unknown.handle_asked(key.clone(), now)?;
        Ok(self.subscribed.insert(key))
    }

    /// Whether more names lead nowhere than may be asked for.
    pub(super) fn has_too_many_unknown(&self) -> bool {
        self.unknown.is_over()
    }

    /// Forgets names that lead nowhere and are not used, or too many; those to unsubscribe from.
    /// `used` says when a name that does not exist was last used.
    pub(super) fn forget_unknown(
        &mut self,
        used: impl Fn(&str) -> Option<Instant>,
        now: Instant,
    ) -> Vec<(Kind, String)> {
        let forgotten = self.unknown.poll_forgotten(|(_, name)| used(name), now);
        for key in &forgotten {
            self.absent.remove(key);
            self.subscribed.remove(key);
        }
        forgotten
    }

    /// Drops a resource that nobody uses, with every name it was asked for under; the names to
    /// unsubscribe from.
    pub(super) fn release(&mut self, kind: Kind, name: &str) -> Vec<String> {
        let mut names = vec![name.to_owned()];
        if let Some(held) = self.held.remove(&(kind, name.to_owned())) {
            names.extend(held.aliases);
        }
        names.retain(|name| {
            let key = (kind, name.clone());
            self.absent.remove(&key);
            self.unknown.handle_known(&key);
            self.subscribed.remove(&key)
        });
        names
    }

    /// How many names are asked for.
    pub(super) fn asked(&self) -> usize {
        self.subscribed.len()
    }

    /// Every name asked for, of one kind.
    pub(super) fn subscriptions(&self, kind: Kind) -> Vec<String> {
        let of_kind = self.subscribed.iter().filter(|(k, _)| *k == kind);
        of_kind.map(|(_, name)| name.clone()).collect()
    }

    /// What is held, by name and version: said on reconnect, so that only the difference comes.
    pub(super) fn versions(&self, kind: Kind) -> HashMap<String, String> {
        let of_kind = self.held.iter().filter(|((k, _), _)| *k == kind);
        of_kind
            .map(|((_, name), held)| (name.clone(), held.version.clone()))
            .collect()
    }

    /// Everything as the data path wants it.
    pub(super) fn world(&self) -> World {
        // What nobody enforces for a service says nothing about the service.
        let mut absent = self.absent.iter();
        let (server, names): (Vec<_>, Vec<_>) = absent
            .by_ref()
            .partition(|(kind, _)| *kind == Kind::ServerPolicy);
        let mut world = World {
            absent: names.into_iter().map(|(_, name)| name.clone()).collect(),
            server_absent: server.into_iter().map(|(_, name)| name.clone()).collect(),
            ..World::default()
        };
        for held in self.held.values() {
            let aliases = held.aliases.clone();
            match &held.resource {
                Resource::Service(service) => world.services.push((service.clone(), aliases)),
                Resource::Workload(workload) => world.workloads.push((workload.clone(), aliases)),
                Resource::MeshConfig(config) => world.config = Some(config.clone()),
                Resource::Namespace(namespace) => world.namespace = Some(namespace.clone()),
                Resource::ServerPolicy(policy) => {
                    world.server.insert(policy.service.clone(), policy.clone());
                }
                Resource::TrustBundle(_) => {}
            }
        }
        world
    }

    /// The trust bundle held, of our own trust domain.
    pub(super) fn trust_bundle(&self) -> Option<&TrustBundle> {
        self.held.values().find_map(|held| match &held.resource {
            Resource::TrustBundle(bundle) => Some(bundle),
            Resource::Service(_)
            | Resource::Workload(_)
            | Resource::MeshConfig(_)
            | Resource::Namespace(_)
            | Resource::ServerPolicy(_) => None,
        })
    }

    /// Everything held with name, version and aliases, in a stable order: for the disk and for
    /// people.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str, &[String], &Resource)> {
        let ordered: BTreeMap<_, _> = self.held.iter().collect();
        ordered.into_iter().map(|((_, name), held)| {
            (
                name.as_str(),
                held.version.as_str(),
                held.aliases.as_slice(),
                &held.resource,
            )
        })
    }
}

/// Whether resources of a kind are asked for because connections lead to them.
fn demanded(kind: Kind) -> bool {
    matches!(kind, Kind::Service | Kind::Workload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use weft_core::model::Service;
    use weft_core::server::ServerPolicy;

    const NOW: Instant = Instant::from_nanos(0);

    fn service(name: &str, address: &str) -> Received {
        let service = Service {
            name: name.parse().unwrap(),
            addresses: vec![address.parse().unwrap()],
            ports: vec![],
            endpoints: vec![],
            policies: BTreeMap::new(),
            routes: Vec::new(),
            external: None,
        };
        let resource = Resource::Service(service);
        Received {
            name: name.to_owned(),
            version: "1".to_owned(),
            aliases: resource.aliases(),
            resource: Ok(resource),
        }
    }

    #[test]
    fn a_bad_resource_leaves_its_predecessor_and_its_neighbours() {
        let mut holdings = Holdings::default();
        holdings.handle_response(
            Kind::Service,
            vec![service("shop/web", "240.0.0.1")],
            vec![],
            NOW,
        );
        let bad = Received {
            resource: Err("ports.port: \"0\" is not\na port".to_owned()),
            ..service("shop/web", "240.0.0.1")
        };
        let good = service("shop/orders", "240.0.0.2");
        let applied = holdings.handle_response(Kind::Service, vec![bad, good], vec![], NOW);
        assert_eq!(
            applied.rejected,
            ["shop/web: ports.port: \"0\" is not a port"]
        );
        assert_eq!(holdings.world().services.len(), 2);
    }

    #[test]
    fn a_negative_answer_is_kept_until_the_name_comes_into_being() {
        let mut holdings = Holdings::default();
        assert!(holdings.subscribe(Kind::Service, "web.shop.mesh"));
        assert!(!holdings.subscribe(Kind::Service, "web.shop.mesh"));
        let removed = vec!["web.shop.mesh".to_owned()];
        assert!(
            holdings
                .handle_response(Kind::Service, vec![], removed, NOW)
                .changed
        );
        assert!(holdings.world().absent.contains("web.shop.mesh"));
        holdings.handle_response(
            Kind::Service,
            vec![service("shop/web", "240.0.0.1")],
            vec![],
            NOW,
        );
        assert!(holdings.world().absent.is_empty());
    }

    #[test]
    fn names_that_lead_nowhere_are_forgotten_and_others_stay() {
        let mut holdings = Holdings::new(10);
        let second = |second: u64| Instant::from_nanos(second * 1_000_000_000);
        let ask = |holdings: &mut Holdings, name: &str| {
            holdings.demand(Kind::Service, name, second(1)).unwrap()
        };
        assert!(ask(&mut holdings, "web.shop.mesh"));
        assert!(!ask(&mut holdings, "web.shop.mesh"));
        let web = vec![service("shop/web", "240.0.0.1")];
        holdings.handle_response(Kind::Service, web, vec![], second(1));
        for number in 0..11 {
            ask(&mut holdings, &format!("x{number}.shop.mesh"));
        }
        let absent = vec!["x0.shop.mesh".to_owned()];
        holdings.handle_response(Kind::Service, vec![], absent, second(1));
        assert!(holdings.has_too_many_unknown() && holdings.asked() == 12);
        assert_eq!(holdings.forget_unknown(|_| None, second(1)).len(), 2);
        assert_eq!(holdings.forget_unknown(|_| None, second(100)).len(), 9);
        assert_eq!(holdings.subscriptions(Kind::Service), ["web.shop.mesh"]);
        assert!(holdings.world().absent.is_empty());
        // One that was there and is gone is forgotten as well.
        let gone = ["shop/web", "web.shop.mesh"].map(str::to_owned).into();
        holdings.handle_response(Kind::Service, vec![], gone, second(100));
        assert_eq!(holdings.forget_unknown(|_| None, second(200)).len(), 1);
        assert_eq!(holdings.asked(), 0);
    }

    #[test]
    fn releasing_unsubscribes_every_name() {
        let mut holdings = Holdings::default();
        holdings.subscribe(Kind::Service, "240.0.0.1");
        holdings.subscribe(Kind::Service, "web.shop.mesh");
        holdings.subscribe(Kind::Service, "other.shop.mesh");
        holdings.handle_response(
            Kind::Service,
            vec![service("shop/web", "240.0.0.1")],
            vec![],
            NOW,
        );
        let mut names = holdings.release(Kind::Service, "shop/web");
        names.sort();
        assert_eq!(names, ["240.0.0.1", "web.shop.mesh"]);
        assert_eq!(holdings.subscriptions(Kind::Service), ["other.shop.mesh"]);
    }

    /// What a sidecar enforces outlives its restart; that there is nothing says nothing about the
    /// service of the same name.
    #[test]
    fn what_is_enforced_is_kept_on_the_disk() {
        let policy = |service: &str| ServerPolicy {
            service: service.parse().unwrap(),
            instances: 2,
            ports: [(8080, Arc::default())].into(),
        };
        let received = Received {
            name: "shop/web".to_owned(),
            version: "1".to_owned(),
            aliases: Vec::new(),
            resource: Ok(Resource::ServerPolicy(policy("shop/web"))),
        };
        let mut holdings = Holdings::default();
        for name in ["shop/web", "shop/more"] {
            holdings.subscribe(Kind::ServerPolicy, name);
        }
        let removed = vec!["shop/more".to_owned()];
        holdings.handle_response(Kind::ServerPolicy, vec![received], removed, NOW);
        let world = holdings.world();
        assert!(world.absent.is_empty() && world.server_absent.contains("shop/more"));

        let mut restored = Holdings::default();
        let bytes = super::super::grpc::to_bytes(&holdings);
        let rejected = super::super::grpc::from_bytes(&bytes, &mut restored);
        assert!(rejected.is_empty(), "{rejected:?}");
        let web = "shop/web".parse().unwrap();
        assert_eq!(restored.world().server.get(&web), Some(&policy("shop/web")));
        assert_eq!(restored.subscriptions(Kind::ServerPolicy), ["shop/web"]);
    }
}
