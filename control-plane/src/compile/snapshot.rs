//! The world and what sidecars are told of it, as they are at one moment.

use std::sync::Arc;

use weft_core::model::{EndpointSlice, Service};
use weft_core::name::ServiceName;
use weft_core::slices;
use weft_proto::resource::{Kind, Resource};

use super::{
    Changes, Compiled, Dangling, Encoded, ExternalStatus, ParentStatus, References, RouteStatus,
    compile,
};
use crate::model::{Document, ObjectName, ResourceKey, RouteKind};
use crate::world::addresses::AddressRecord;
use crate::world::dirty::Dirty;
use crate::world::{Delta, World};

/// The world and what follows from it. A clone costs nothing.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Every fact.
    pub world: World,
    /// What sidecars are told.
    pub compiled: Compiled,
}

impl Snapshot {
    /// Nothing but mesh-wide settings.
    pub fn new(world: World) -> Self {
        let mut compiled = Compiled::default();
        let dirty = Dirty {
            config: true,
            bundle: true,
            externals: true,
            ..Dirty::default()
        };
        compile(&world, dirty, &mut compiled);
        Self { world, compiled }
    }

    /// Takes changes; `now` is in seconds since the Unix epoch. With what has changed, what is to be
    /// written down of names.
    pub fn apply(
        &mut self,
        deltas: impl IntoIterator<Item = Delta>,
        now: i64,
    ) -> (Changes, Vec<AddressRecord>) {
        let mut dirty = Dirty::default();
        for delta in deltas {
            self.world.apply(delta, now, &mut dirty);
        }
        self.compile(dirty)
    }

    /// Brings what is compiled up to date with changes that the world has taken; with what has changed,
    /// what is to be written down of names.
    pub fn compile(&mut self, mut dirty: Dirty) -> (Changes, Vec<AddressRecord>) {
        let mut records = std::mem::take(&mut dirty.addresses);
        let changes = compile(&self.world, dirty, &mut self.compiled);
        for (name, slices) in &changes.divided {
            self.world.set_slices(name, *slices, &mut records);
        }
        (changes, records)
    }

    /// Lets the addresses of names rest that do not exist; what is to be written down.
    pub fn release_unused(&mut self, now: i64) -> Vec<AddressRecord> {
        let mut dirty = Dirty::default();
        self.world.release_unused(now, &mut dirty);
        dirty.addresses
    }

    /// What would be after these changes; nothing changes.
    #[must_use]
    pub fn after(&self, deltas: impl IntoIterator<Item = Delta>, now: i64) -> Self {
        let mut after = self.clone();
        // Nothing is written down of what does not happen.
        let _what_would_be = after.apply(deltas, now);
        after
    }

    fn references(&self) -> References<'_> {
        References {
            world: &self.world,
            shapes: &self.compiled.shapes,
        }
    }

    /// What of a document leads nowhere.
    pub fn dangling(&self, document: &Document) -> Vec<Dangling> {
        match document {
            Document::Route(..) => {
                let status = self.route_status(&document.key()).unwrap_or_default();
                let refused = status.parents.into_iter().filter_map(|p| p.refused);
                refused.chain(status.unresolved).collect()
            }
            Document::TrafficPolicy(..) | Document::RateLimitPolicy(..) => {
                self.references().check_policy(&document.relations())
            }
            Document::ExternalService(name, _) => {
                let status = self.compiled.external_status(name);
                status.map(|s| s.refused.clone()).unwrap_or_default()
            }
            Document::Service(name, _) if self.world.external(name).is_some() => {
                vec![Dangling {
                    path: "metadata.name".to_owned(),
                    reason: "Conflicted",
                    found: format!("{name}, as an ExternalService is called too"),
                    allowed: "a name that no ExternalService has".to_owned(),
                }]
            }
            Document::Service(name, _) if self.world.cluster_service(name).is_some() => {
                vec![Dangling {
                    path: "metadata.name".to_owned(),
                    reason: "Conflicted",
                    found: format!(
                        "{name}, as a Service of the cluster is called too: its ports and addresses count"
                    ),
                    allowed: "a name that no Service of the cluster has".to_owned(),
                }]
            }
            Document::Service(..)
            | Document::MeshConfig(_)
            | Document::FaultInjection(..)
            | Document::ReferenceGrant(..) => Vec::new(),
        }
    }

    /// What has been found out about a route; `None` where there is none of that name.
    pub fn route_status(&self, key: &ResourceKey) -> Option<RouteStatus> {
        let kind = RouteKind::parse(&key.kind)?;
        let name = ObjectName {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        let key = (kind, name);
        let entry = self.world.route(&key)?;
        let parents = entry.draft.parents.iter().enumerate();
        let parents = parents.map(|(index, parent)| {
            let group = (entry.name.namespace.clone(), parent.service.clone());
            let group = self.compiled.groups.get(&group);
            let refused = group.and_then(|group| group.refused.get(&(key.clone(), index)));
            ParentStatus {
                parent: parent.clone(),
                external: entry.draft.externals.contains(&parent.service),
                refused: refused.cloned(),
                generation: entry.generation,
            }
        });
        let resolved = self.compiled.resolved.get(&key);
        Some(RouteStatus {
            parents: parents.collect(),
            unresolved: resolved.map_or_else(Vec::new, |resolved| resolved.unresolved.clone()),
        })
    }
}

impl Compiled {
    /// A resource by its name or any other name it goes by.
    pub fn find(&self, kind: Kind, name: &str) -> Option<&Arc<Encoded>> {
        self.resources.find(kind, name)
    }

    /// Every resource of a kind, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Encoded>> {
        self.resources.of_kind(kind)
    }

    /// A service without its endpoints, by its name or any other name it goes by.
    pub fn service_policy(&self, name: &str) -> Option<&Service> {
        self.find(Kind::Service, name)
            .and_then(|encoded| as_service(encoded))
    }

    /// The slices of a service, by its name or any other name it goes by.
    pub fn slices(&self, name: &str) -> impl Iterator<Item = &Arc<Encoded>> {
        let services = self.service_policy(name).into_iter();
        services.flat_map(|service| {
            let (name, count) = (service.name.to_string(), service.endpoint_slices);
            let names = (0..count).map(move |index| slices::resource_name(&name, index, count));
            names.filter_map(|name| self.find(Kind::EndpointSlice, &name))
        })
    }

    /// A service with its endpoints, by its name or any other name it goes by.
    pub fn service(&self, name: &str) -> Option<Service> {
        let service = self.service_policy(name)?;
        let slices = self.slices(name).filter_map(|slice| as_slice(slice));
        Some(service.with_endpoints(slices))
    }

    /// Every service, without its endpoints.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        let of_kind = self.of_kind(Kind::Service);
        of_kind.filter_map(|encoded| as_service(encoded))
    }

    /// A service with its endpoints, as the callers of a namespace reach it by a host: by any name that
    /// it goes by for everybody, or one outside the mesh that it has for them.
    pub fn service_for(&self, namespace: &str, host: &str) -> Option<Service> {
        match self.admitted.service_of(namespace, host) {
            Some(name) => self.service(&name.to_string()),
            None => self.service(host),
        }
    }

    /// What has been found out about an ExternalService; `None` where there is none of that name.
    pub fn external_status(&self, name: &ServiceName) -> Option<&ExternalStatus> {
        self.admitted.statuses.get(name)
    }

    /// Just these resources, with these other names.
    #[cfg(test)]
    pub(crate) fn of(generation: u64, resources: Vec<(Resource, Vec<String>)>) -> Self {
        let mut compiled = Self {
            generation,
            revision: generation,
            ..Self::default()
        };
        let mut sliced = Vec::new();
        for (resource, aliases) in resources {
            let mut resource = resource;
            if let Resource::Service(service) = &mut resource
                && !service.endpoints.is_empty()
            {
                let endpoints = std::mem::take(&mut service.endpoints);
                service.endpoint_slices = 1;
                sliced.extend(EndpointSlice::divide(&service.name, endpoints, 1));
            }
            let encoded = Encoded::with_aliases(resource, aliases);
            compiled
                .resources
                .put(encoded, &mut super::ChangedNames::new());
        }
        for slice in sliced {
            let encoded = Encoded::new(Resource::EndpointSlice(slice));
            compiled
                .resources
                .put(encoded, &mut super::ChangedNames::new());
        }
        compiled
    }
}

fn as_service(encoded: &Encoded) -> Option<&Service> {
    match &encoded.resource {
        Resource::Service(service) => Some(service),
        Resource::EndpointSlice(_)
        | Resource::Workload(_)
        | Resource::TrustBundle(_)
        | Resource::MeshConfig(_)
        | Resource::Namespace(_)
        | Resource::ServerPolicy(_) => None,
    }
}

fn as_slice(encoded: &Encoded) -> Option<&EndpointSlice> {
    match &encoded.resource {
        Resource::EndpointSlice(slice) => Some(slice),
        Resource::Service(_)
        | Resource::Workload(_)
        | Resource::TrustBundle(_)
        | Resource::MeshConfig(_)
        | Resource::Namespace(_)
        | Resource::ServerPolicy(_) => None,
    }
}
