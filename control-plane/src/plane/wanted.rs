//! What was asked for, as it is in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gateway_api::experimental::referencegrants::ReferenceGrantSpec;
use weft_core::model::{MeshConfig, TrustBundle};
use weft_core::name::ServiceName;
use weft_core::route::Fault;

use crate::compile::{
    ExternalEntry, RateLimitEntry, RouteEntry, VirtualAddresses, World, service_names,
};
use crate::model::{Document, MeshConfigSpec, ObjectName, ServiceSpec, TrafficPolicySpec};
use crate::registry::Entry;
use crate::store::StoredResource;

/// What was asked for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) services: BTreeMap<ServiceName, ServiceSpec>,
    /// The oldest first.
    pub(super) policies: Vec<(ObjectName, TrafficPolicySpec)>,
    pub(super) externals: Vec<ExternalEntry>,
    /// By name.
    pub(super) rate_limits: Vec<RateLimitEntry>,
    pub(super) routes: Vec<RouteEntry>,
    pub(super) faults: BTreeMap<ObjectName, Fault>,
    pub(super) grants: Vec<(ObjectName, ReferenceGrantSpec)>,
    pub(super) config: MeshConfigSpec,
}

impl Wanted {
    /// Together with what is there.
    pub(super) fn world<'a>(
        &'a self,
        entries: &'a [Entry],
        addresses: &'a VirtualAddresses,
        config: &'a MeshConfig,
        bundle: &'a TrustBundle,
    ) -> World<'a> {
        World {
            entries,
            services: &self.services,
            externals: &self.externals,
            policies: &self.policies,
            rate_limits: &self.rate_limits,
            routes: &self.routes,
            faults: &self.faults,
            grants: &self.grants,
            addresses,
            config,
            namespaces: &self.config.namespaces,
            bundle,
        }
    }

    /// Every name that has virtual addresses: of services, and of ExternalServices, in force or not.
    pub(super) fn names<'a>(&'a self, entries: &'a [Entry]) -> BTreeSet<&'a ServiceName> {
        let mut names = service_names(entries, &self.services);
        names.extend(self.externals.iter().map(|entry| &entry.name));
        names
    }

    /// Everything in the store that is readable.
    pub(super) fn read(resources: Vec<StoredResource>) -> Self {
        let mut wanted = Self::default();
        let mut policies = Vec::new();
        for resource in resources {
            let (created, generation) = (resource.created, resource.generation);
            match Document::from_value(resource.document) {
                Ok(Document::Service(name, spec)) => {
                    wanted.services.insert(name, spec);
                }
                Ok(Document::ExternalService(name, spec)) => {
                    wanted.externals.push(ExternalEntry {
                        name,
                        created,
                        generation,
                        ports: spec.ports(),
                        external: Arc::new(spec.resolve()),
                    });
                }
                Ok(Document::MeshConfig(spec)) => wanted.config = spec,
                Ok(Document::TrafficPolicy(name, spec)) => policies.push((created, name, *spec)),
                Ok(Document::Route(name, spec)) => wanted.routes.push(RouteEntry {
                    kind: spec.kind(),
                    draft: Arc::new(spec.draft(&name)),
                    name,
                    created,
                    generation,
                }),
                Ok(Document::RateLimitPolicy(name, spec)) => {
                    wanted.rate_limits.push(RateLimitEntry::new(name, &spec));
                }
                Ok(Document::FaultInjection(name, spec)) => {
                    wanted.faults.insert(name, spec.resolve());
                }
                Ok(Document::ReferenceGrant(name, spec)) => wanted.grants.push((name, spec)),
                Err(problems) => {
                    let key = resource.key;
                    tracing::error!(%key, ?problems, "a stored resource is not readable: left out");
                }
            }
        }
        wanted.rate_limits.sort_by(|a, b| a.name.cmp(&b.name));
        policies.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let policies = policies.into_iter().map(|(_, name, spec)| (name, spec));
        wanted.policies = policies.collect();
        wanted
    }
}
