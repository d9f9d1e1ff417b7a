//! From facts to what sidecars are told: pure, the same for everybody who asks, encoded once.
//!
//! [`compile`] brings [`Compiled`] up to date with a [`World`] after a change, and does no more
//! than what depends on the change: it goes from what refers to nothing (which ExternalServices are
//! in force, the ports of services) to what refers to that (routes, services, endpoint slices).
//! Invariant: the result is the one of compiling everything anew (`tests.rs`).

mod encoded;
mod external;
mod references;
mod routes;
mod server;
mod service;
mod shape;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_core::model::{Namespace, slices_for};
use weft_core::name::ServiceName;
use weft_core::slices::{self, SLICES_MAX};
use weft_proto::resource::{Kind, Resource};

use crate::store::Revision;
use crate::world::World;
use crate::world::dirty::Dirty;
use crate::world::facts::RouteKey;
use crate::world::index::Map;

pub use encoded::{ChangedNames, Encoded, Resources};
pub use external::{Admitted, ExternalNames, ExternalStatus};
pub use references::{Dangling, References};
pub use routes::{Group, ParentStatus, Resolved, RouteStatus};
pub use shape::{PortShape, Shape};
pub use snapshot::Snapshot;

/// Everything that sidecars may be told, at one moment, and what it was made from. A clone is a
/// snapshot.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// Grows with every change of a resource.
    pub generation: u64,
    /// The revision of the store that is in it.
    pub revision: Revision,
    resources: Resources,
    admitted: Arc<Admitted>,
    shapes: Map<ServiceName, Arc<Shape>>,
    resolved: Map<RouteKey, Arc<Resolved>>,
    groups: Map<(String, ServiceName), Arc<Group>>,
    /// How many slices the endpoints of each service of the mesh are in.
    slices: Map<ServiceName, u32>,
}

/// Outcome of compiling a change.
#[derive(Debug, Default)]
pub struct Changes {
    /// Names under which something else is found than before.
    pub names: ChangedNames,
    /// Resources that were made, whether they came out different or not.
    pub compiled: u64,
    /// Resources that came, changed or went.
    pub changed: u64,
    /// Services whose endpoints are in another number of slices than before.
    pub divided: Vec<(ServiceName, u32)>,
}

/// Brings what is compiled up to date with the world; `dirty` says what may be different.
pub fn compile(world: &World, dirty: Dirty, compiled: &mut Compiled) -> Changes {
    let mut work = Work {
        world,
        compiled,
        recut: dirty.recut.clone(),
        dirty,
        changes: Changes::default(),
    };
    work.externals();
    work.shapes();
    work.routes();
    work.groups();
    work.slices();
    work.services();
    work.namespaces();
    work.workloads();
    work.everybodys();
    let changes = work.changes;
    if changes.changed > 0 {
        compiled.generation += 1;
    }
    changes
}

struct Work<'a> {
    world: &'a World,
    compiled: &'a mut Compiled,
    dirty: Dirty,
    /// Services of which every slice has to be made anew.
    recut: BTreeSet<ServiceName>,
    changes: Changes,
}

impl Work<'_> {
    fn put(&mut self, encoded: Encoded) {
        self.changes.compiled += 1;
        let resources = &mut self.compiled.resources;
        if resources.put(encoded, &mut self.changes.names) {
            self.changes.changed += 1;
        }
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        let resources = &mut self.compiled.resources;
        if resources.remove(kind, name, &mut self.changes.names) {
            self.changes.changed += 1;
        }
    }

    fn externals(&mut self) {
        if !std::mem::take(&mut self.dirty.externals) {
            return;
        }
        let admitted = external::admit(self.world);
        let before = &self.compiled.admitted;
        let changed: Vec<ServiceName> = admitted
            .changed_since(before)
            .into_iter()
            .cloned()
            .collect();
        self.dirty.config |= admitted.has_other_names(before);
        let namespaces = admitted.changed_namespaces(before).into_iter();
        self.dirty.namespaces.extend(namespaces.cloned());
        self.dirty.shapes.extend(changed.iter().cloned());
        self.dirty.services.extend(changed);
        self.compiled.admitted = Arc::new(admitted);
    }

    fn shapes(&mut self) {
        for name in std::mem::take(&mut self.dirty.shapes) {
            let shape = shape::shape_of(self.world, &self.compiled.admitted, &name);
            let before = self.compiled.shapes.get(&name).map(|shape| &**shape);
            if shape.as_ref() == before {
                continue;
            }
            let routes = self.world.routes_to(&name).cloned();
            self.dirty.routes.extend(routes);
            let namespaces = self.world.attaching(&name);
            let groups = namespaces.map(|namespace| (namespace.clone(), name.clone()));
            self.dirty.groups.extend(groups);
            self.dirty.services.insert(name.clone());
            self.dirty.servers.insert(name.clone());
            self.recut.insert(name.clone());
            match shape {
                Some(shape) => {
                    self.compiled.shapes.insert_cow(name, Arc::new(shape));
                }
                None => {
                    self.compiled.shapes.remove_cow(&name);
                }
            }
        }
    }

    fn references(&self) -> References<'_> {
        References {
            world: self.world,
            shapes: &self.compiled.shapes,
        }
    }

    fn routes(&mut self) {
        for key in std::mem::take(&mut self.dirty.routes) {
            let Some(entry) = self.world.route(&key) else {
                self.compiled.resolved.remove_cow(&key);
                continue;
            };
            let resolved = routes::resolve(entry, self.references());
            let before = self.compiled.resolved.get(&key);
            if before.is_some_and(|before| **before == resolved) {
                continue;
            }
            let namespace = &entry.name.namespace;
            let groups = entry.relations.attached().into_iter();
            let groups = groups.map(|service| (namespace.clone(), service.clone()));
            self.dirty.groups.extend(groups);
            self.compiled.resolved.insert_cow(key, Arc::new(resolved));
        }
    }

    fn groups(&mut self) {
        for key in std::mem::take(&mut self.dirty.groups) {
            let (namespace, service) = &key;
            let rules = |route: &RouteKey| {
                let resolved = self.compiled.resolved.get(route);
                resolved.map_or_else(Vec::new, |resolved| resolved.rules.clone())
            };
            let attached = self.world.attached(&key);
            let group = routes::attach(service, attached, self.references(), rules);
            let before = self.compiled.groups.get(&key);
            let routes = before.map_or(&[][..], |before| &before.routes);
            if *routes != *group.routes {
                if service.namespace() == namespace {
                    self.dirty.services.insert(service.clone());
                } else {
                    self.dirty.namespaces.insert(namespace.clone());
                }
            }
            if group == Group::default() {
                self.compiled.groups.remove_cow(&key);
            } else {
                self.compiled.groups.insert_cow(key, Arc::new(group));
            }
        }
    }

    /// The shape of a service of the mesh.
    fn inside(&self, name: &ServiceName) -> Option<Arc<Shape>> {
        let shape = self.compiled.shapes.get(name)?;
        (!shape.outside).then(|| Arc::clone(shape))
    }

    fn slices(&mut self) {
        let mut changed = std::mem::take(&mut self.dirty.endpoints);
        for name in &self.recut {
            changed.entry(name.clone()).or_default();
        }
        for (name, places) in changed {
            let before = self.compiled.slices.get(&name).copied().unwrap_or(0);
            let shape = self.inside(&name);
            let count = match &shape {
                Some(_) => {
                    // After a restart nothing is compiled yet, and the record says what was.
                    let last = match before {
                        0 => self.world.slices_of(&name),
                        before => before,
                    };
                    slices_for(self.world.endpoints_len(&name), last)
                }
                None => 0,
            };
            let text = name.to_string();
            if count != before {
                for index in 0..before {
                    let old = slices::resource_name(&text, index, before);
                    self.remove(Kind::EndpointSlice, &old);
                }
                self.dirty.services.insert(name.clone());
                match count {
                    0 => self.compiled.slices.remove_cow(&name),
                    count => {
                        self.changes.divided.push((name.clone(), count));
                        self.compiled.slices.insert_cow(name.clone(), count)
                    }
                };
            }
            let Some(shape) = shape else {
                continue;
            };
            let all = count != before || self.recut.contains(&name);
            let indices: BTreeSet<u32> = match all {
                true => (0..count).collect(),
                false => places.iter().map(|place| index_of(*place, count)).collect(),
            };
            for index in indices {
                let slice = service::slice(self.world, &name, &shape, (index, count));
                self.put(Encoded::new(Resource::EndpointSlice(slice)));
            }
        }
    }

    fn services(&mut self) {
        for name in std::mem::take(&mut self.dirty.services) {
            let Some(shape) = self.compiled.shapes.get(&name).cloned() else {
                self.remove(Kind::Service, &name.to_string());
                continue;
            };
            let own = (name.namespace().to_owned(), name.clone());
            let group = self.compiled.groups.get(&own);
            let routes = group.map_or_else(Vec::new, |group| group.routes.clone());
            let slices = self.compiled.slices.get(&name).copied().unwrap_or(0);
            let service = service::service(self.world, &name, &shape, routes, slices);
            self.put(service::encoded(self.world, service));
        }
        for name in std::mem::take(&mut self.dirty.servers) {
            match self.inside(&name) {
                Some(shape) => {
                    let policy = server::policy(self.world, &name, &shape);
                    self.put(Encoded::new(Resource::ServerPolicy(policy)));
                }
                None => self.remove(Kind::ServerPolicy, &name.to_string()),
            }
        }
    }

    /// Also where nothing holds: a sidecar that comes back without the control plane knows it then.
    fn namespaces(&mut self) {
        for name in std::mem::take(&mut self.dirty.namespaces) {
            let mut routes = BTreeMap::new();
            for service in self.world.consumed(&name) {
                let group = self.compiled.groups.get(&(name.clone(), service.clone()));
                if let Some(group) = group.filter(|group| !group.routes.is_empty()) {
                    routes.insert(service.clone(), group.routes.clone());
                }
            }
            let own = self.world.mesh().namespaces.get(&name);
            let externals = self.compiled.admitted.of_namespace(&name);
            let is_nothing = routes.is_empty() && own.is_none() && externals.is_none();
            if is_nothing && !self.world.is_inhabited(&name) {
                self.remove(Kind::Namespace, &name);
                continue;
            }
            let hosts = externals.map(|names| names.hosts.clone());
            let addresses = externals.map(|names| names.addresses.clone());
            let namespace = Namespace {
                name,
                routes,
                unknown_destinations: own.map(|own| own.unknown_destinations),
                external_hosts: hosts.unwrap_or_default(),
                external_addresses: addresses.unwrap_or_default(),
            };
            self.put(Encoded::new(Resource::Namespace(namespace)));
        }
    }

    fn workloads(&mut self) {
        for name in std::mem::take(&mut self.dirty.workloads) {
            // A pod is what the cluster says, whatever its sidecar registers.
            let found = match self.world.mesh_pod(&name) {
                Some(pod) => service::pod(self.world, pod),
                None => {
                    let entry = self.world.workload(&name);
                    entry.and_then(|entry| service::workload(self.world, entry))
                }
            };
            match found {
                Some((workload, aliases)) => {
                    let resource = Resource::Workload(workload);
                    self.put(Encoded::with_aliases(resource, aliases));
                }
                None => self.remove(Kind::Workload, &name.to_string()),
            }
        }
    }

    fn everybodys(&mut self) {
        if self.dirty.config {
            let config = self.compiled.admitted.config(self.world.config());
            self.put(Encoded::new(Resource::MeshConfig(config)));
        }
        if self.dirty.bundle {
            let bundle = self.world.bundle().clone();
            self.put(Encoded::new(Resource::TrustBundle(bundle)));
        }
    }
}

/// Which of `count` slices has the endpoints at a place.
fn index_of(place: u32, count: u32) -> u32 {
    let width = SLICES_MAX / count.clamp(1, SLICES_MAX);
    match count.trailing_zeros() {
        0 => 0,
        bits => (place / width).reverse_bits() >> (u32::BITS - bits),
    }
}

#[cfg(test)]
mod tests;
