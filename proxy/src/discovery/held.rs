//! What the sidecar holds of what the control plane sent: pure bookkeeping of delta xDS.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use weft_core::model::TrustBundle;
use weft_core::slices;
use weft_core::time::Instant;
use weft_core::unknown::{TooMany, UnknownNames};
use weft_proto::resource::{Kind, Resource};

use super::composed::{Composed, Parts};
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
#[derive(Debug)]
pub(super) struct Held {
    /// Its version.
    pub(super) version: String,
    /// Other names it goes by.
    pub(super) aliases: Vec<String>,
    /// Its content; services are without their endpoints, which are slices.
    pub(super) resource: Resource,
}

/// Everything held and everything asked for.
#[derive(Debug)]
pub(super) struct Holdings {
    /// What came last, by name.
    held: BTreeMap<(Kind, String), Arc<Held>>,
    /// Services with their endpoints, by name: as they were when all of their slices were last there.
    composed: BTreeMap<String, Composed>,
    /// Names asked for: resource names, hostnames or addresses.
    subscribed: BTreeSet<(Kind, String)>,
    /// Names asked for that do not exist.
    absent: HashSet<(Kind, String)>,
    /// Names asked for whose only answer so far was rejected, of kinds that say what is enforced here.
    refused: HashSet<(Kind, String)>,
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
            held: BTreeMap::new(),
            composed: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            absent: HashSet::new(),
            refused: HashSet::new(),
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
        let mut services = BTreeSet::new();
        // Removals first: an alias that moved is removed from its old owner before it is given
        // to the new one.
        for name in removed {
            services.extend(service_of(kind, &name).map(str::to_owned));
            applied.changed |= self.remove(kind, name, now);
        }
        for received in received {
            let key = (kind, received.name.clone());
            match checked(kind, received) {
                Ok((name, held)) => {
                    services.extend(service_of(kind, &name).map(str::to_owned));
                    applied.changed |= self.insert(kind, name, held);
                }
                Err(line) => {
                    applied.changed |= self.refuse(key);
                    applied.rejected.push(line);
                }
            }
        }
        for service in services {
            applied.changed |= self.compose(&service);
        }
        applied
    }

    /// Takes note of a rejected answer where it leaves nothing to go by; whether that is news.
    fn refuse(&mut self, key: (Kind, String)) -> bool {
        enforced(key.0)
            && self.subscribed.contains(&key)
            && !self.held.contains_key(&key)
            && !self.absent.contains(&key)
            && self.refused.insert(key)
    }

    /// Removes a resource, or takes note that there is none of a name; whether that is news.
    fn remove(&mut self, kind: Kind, name: String, now: Instant) -> bool {
        let key = (kind, name);
        let mut changed = self.refused.remove(&key);
        if let Some(held) = self.held.remove(&key) {
            // A slice that goes changes nothing until its service can be put together without it.
            changed |= kind != Kind::EndpointSlice;
            let aliases = held.aliases.iter().map(|alias| (kind, alias.clone()));
            for alias in aliases.filter(|alias| self.subscribed.contains(alias)) {
                self.unknown.handle_gone(alias, now);
            }
        }
        if self.subscribed.contains(&key) {
            if demanded(kind) {
                self.unknown.handle_gone(key.clone(), now);
            }
            changed |= self.absent.insert(key);
        }
        changed
    }

    /// Takes a resource; whether that is news by itself.
    fn insert(&mut self, kind: Kind, name: String, held: Held) -> bool {
        for name in held.aliases.iter().chain([&name]) {
            let key = (kind, name.clone());
            self.absent.remove(&key);
            // A service leads somewhere when it has been put together.
            if kind != Kind::Service {
                self.unknown.handle_known(&key);
            }
        }
        let key = (kind, name);
        self.refused.remove(&key);
        self.held.insert(key, Arc::new(held));
        kind != Kind::EndpointSlice
    }

    /// Puts a service together anew, if all of it is there; until then it stays as it was. Whether
    /// it is different now.
    fn compose(&mut self, name: &str) -> bool {
        let Some(own) = self.held.get(&(Kind::Service, name.to_owned())) else {
            return self.composed.remove(name).is_some();
        };
        let slice = |name| self.held.get(&(Kind::EndpointSlice, name)).cloned();
        let Some(parts) = Parts::find(own, slice) else {
            return false;
        };
        let before = self.composed.get(name);
        if before.is_some_and(|before| before.parts.same(&parts)) {
            return false;
        }
        let names = own.aliases.iter().map(String::as_str).chain([name]);
        for name in names {
            self.unknown.handle_known(&(Kind::Service, name.to_owned()));
        }
        let Some(composed) = parts.compose() else {
            return false;
        };
        self.composed.insert(name.to_owned(), composed);
        true
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
            self.refused.remove(key);
            self.subscribed.remove(key);
        }
        if forgotten.iter().any(|(kind, _)| *kind == Kind::Service) {
            self.drop_incomplete();
        }
        forgotten
    }

    /// Drops services that have never been put together and are not asked for any more; the control
    /// plane removes their slices.
    fn drop_incomplete(&mut self) {
        let incomplete = self.of_kind(Kind::Service).filter(|(name, held)| {
            let mut names = held.aliases.iter().map(String::as_str).chain([*name]);
            let asked = |name: &str| {
                let key = (Kind::Service, name.to_owned());
                self.subscribed.contains(&key)
            };
            !self.composed.contains_key(*name) && !names.any(asked)
        });
        let incomplete: Vec<String> = incomplete.map(|(name, _)| name.to_owned()).collect();
        for name in incomplete {
            self.held.remove(&(Kind::Service, name));
        }
    }

    /// Drops a resource that nobody uses, with every name it was asked for under; the names to
    /// unsubscribe from. The slices of a service stay until the control plane removes them: they are
    /// not asked for, so that it could not know that they were dropped.
    pub(super) fn release(&mut self, kind: Kind, name: &str) -> Vec<String> {
        let mut names = vec![name.to_owned()];
        if let Some(held) = self.held.remove(&(kind, name.to_owned())) {
            names.extend(held.aliases.iter().cloned());
        }
        if kind == Kind::Service {
            self.composed.remove(name);
        }
        names.retain(|name| {
            let key = (kind, name.clone());
            self.absent.remove(&key);
            self.refused.remove(&key);
            self.unknown.handle_known(&key);
            self.subscribed.remove(&key)
        });
        names
    }

    /// Forgets every slice, so that all of them come again: for when they are too many to be named on
    /// reconnect. Services that are in force stay so, with the slices that they are put together from.
    pub(super) fn forget_slices(&mut self) {
        self.held
            .retain(|(kind, _), _| *kind != Kind::EndpointSlice);
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

    /// What came last, by name and version: said on reconnect, so that only the difference comes.
    pub(super) fn versions(&self, kind: Kind) -> HashMap<String, String> {
        let versions = self
            .of_kind(kind)
            .map(|(name, held)| (name.to_owned(), held.version.clone()));
        versions.collect()
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&str, &Arc<Held>)> {
        let from = self.held.range((kind, String::new())..);
        let of_kind = from.take_while(move |((of, _), _)| *of == kind);
        of_kind.map(|((_, name), held)| (name.as_str(), held))
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
            refused: self.refused.clone(),
            ..World::default()
        };
        let services = self.composed.iter().map(|(name, composed)| {
            let aliases = self.names_of(name, composed);
            (Arc::clone(&composed.service), aliases)
        });
        world.services = services.collect();
        for held in self.held.values() {
            match &held.resource {
                Resource::Workload(workload) => {
                    let workload = (workload.clone(), held.aliases.clone());
                    world.workloads.push(workload);
                }
                Resource::MeshConfig(config) => world.config = Some(config.clone()),
                Resource::Namespace(namespace) => world.namespace = Some(namespace.clone()),
                Resource::ServerPolicy(policy) => {
                    world.server.insert(policy.service.clone(), policy.clone());
                }
                Resource::Service(_) | Resource::EndpointSlice(_) | Resource::TrustBundle(_) => {}
            }
        }
        world
    }

    /// The other names of a service that is in force: those that it has lost since are gone at
    /// once, as they may belong to another one.
    fn names_of(&self, name: &str, composed: &Composed) -> Vec<String> {
        let newest = self.held.get(&(Kind::Service, name.to_owned()));
        let before = composed.parts.own.aliases.iter();
        let kept = before.filter(|alias| {
            let still = |newest: &Arc<Held>| newest.aliases.contains(alias);
            newest.is_some_and(still)
        });
        kept.cloned().collect()
    }

    /// The trust bundle held, of our own trust domain.
    pub(super) fn trust_bundle(&self) -> Option<&TrustBundle> {
        let mut bundles = self.of_kind(Kind::TrustBundle);
        bundles.find_map(|(_, held)| match &held.resource {
            Resource::TrustBundle(bundle) => Some(bundle),
            Resource::EndpointSlice(_)
            | Resource::Service(_)
            | Resource::Workload(_)
            | Resource::MeshConfig(_)
            | Resource::Namespace(_)
            | Resource::ServerPolicy(_) => None,
        })
    }

    /// Everything in force, in a stable order: for the disk. Of services that is what they were put
    /// together from.
    pub(super) fn in_force(&self) -> impl Iterator<Item = &Held> {
        let parts = self.composed.values().map(|composed| &composed.parts);
        let parts = parts.flat_map(|parts| parts.slices.iter().chain([&parts.own]));
        let whole = self
            .held
            .iter()
            .filter(|((kind, _), _)| !matches!(kind, Kind::Service | Kind::EndpointSlice));
        parts.chain(whole.map(|(_, held)| held)).map(|held| &**held)
    }
}

/// The service that a resource is a part of, `NAMESPACE/NAME`.
fn service_of(kind: Kind, name: &str) -> Option<&str> {
    match kind {
        Kind::Service => Some(name),
        Kind::EndpointSlice => slices::service_of(name),
        Kind::Workload
        | Kind::TrustBundle
        | Kind::MeshConfig
        | Kind::Namespace
        | Kind::ServerPolicy => None,
    }
}

/// A resource of a response, by its name; `Err` is the line that rejects it.
fn checked(kind: Kind, received: Received) -> Result<(String, Held), String> {
    let name = received.name;
    match received.resource {
        Ok(resource) if resource.kind() != kind => {
            Err(format!("{name}: is a {}", resource.kind().as_str()))
        }
        Ok(resource) if resource.name() != name => {
            Err(format!("{name}: is called {}", resource.name()))
        }
        Ok(resource) => {
            let held = Held {
                version: received.version,
                aliases: received.aliases,
                resource,
            };
            Ok((name, held))
        }
        // One line each: the control plane reads the reasons back by line.
        Err(reason) => Err(format!("{name}: {}", reason.replace('\n', " "))),
    }
}

/// Whether resources of a kind say what is enforced here, and for what.
fn enforced(kind: Kind) -> bool {
    matches!(kind, Kind::ServerPolicy | Kind::Workload)
}

/// Whether resources of a kind are asked for because connections lead to them.
fn demanded(kind: Kind) -> bool {
    matches!(kind, Kind::Service | Kind::Workload)
}

#[cfg(test)]
mod tests;
