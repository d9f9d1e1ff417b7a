//! Documents come, change and go; each kind with its indices.

use std::sync::Arc;

use weft_core::name::ServiceName;

use super::World;
use super::dirty::Dirty;
use super::facts::{ExternalEntry, PolicyEntry, RateLimitEntry, RouteEntry, RouteKey, Stated};
use crate::model::{
    Document, DocumentVariant, MeshConfigSpec, ObjectName, Reference, ResourceKey, RouteKind,
};

impl World {
    pub(super) fn put_document(&mut self, stated: Stated, now: i64, dirty: &mut Dirty) {
        let Stated {
            created,
            generation,
            document,
        } = stated;
        match document {
            Document::Service(name, spec) => self.change_name(&name, now, dirty, |world, dirty| {
                world.services.insert_cow(name.clone(), Arc::new(spec));
                dirty.shapes.insert(name.clone());
                dirty.servers.insert(name.clone());
            }),
            Document::ExternalService(name, spec) => {
                let entry = ExternalEntry {
                    name: name.clone(),
                    created,
                    generation,
                    ports: spec.ports(),
                    external: Arc::new(spec.resolve()),
                };
                self.change_name(&name, now, dirty, |world, dirty| {
                    world.externals.insert_cow(name.clone(), Arc::new(entry));
                    dirty.externals = true;
                });
            }
            Document::MeshConfig(spec) => self.set_mesh(spec, dirty),
            Document::TrafficPolicy(name, spec) => {
                self.set_policy(
                    &name,
                    Some(PolicyEntry::new(name.clone(), created, *spec)),
                    dirty,
                );
            }
            Document::RateLimitPolicy(name, spec) => {
                self.set_limits(&name, Some(RateLimitEntry::new(name.clone(), &spec)), dirty);
            }
            Document::Route(name, spec) => {
                let entry = RouteEntry::new(name, created, generation, &spec);
                self.set_route(&entry.key(), Some(entry), dirty);
            }
            Document::FaultInjection(name, spec) => {
                self.faults
                    .insert_cow(name.clone(), Arc::new(spec.resolve()));
                self.touch_fault(&name, dirty);
            }
            Document::ReferenceGrant(name, spec) => {
                self.grants.insert_cow(name.clone(), Arc::new(spec));
                self.touch_grants(&name, dirty);
            }
        }
    }

    pub(super) fn remove_document(&mut self, key: &ResourceKey, now: i64, dirty: &mut Dirty) {
        let name = ObjectName {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        let service = ServiceName::new(&key.namespace, &key.name);
        let Some(variant) = DocumentVariant::of(&key.kind) else {
            // Nothing of any other kind was ever taken up.
            return;
        };
        match (variant, service) {
            (DocumentVariant::Service, Ok(name)) => {
                self.change_name(&name, now, dirty, |world, dirty| {
                    world.services.remove_cow(&name);
                    dirty.shapes.insert(name.clone());
                    dirty.servers.insert(name.clone());
                });
            }
            (DocumentVariant::ExternalService, Ok(name)) => {
                self.change_name(&name, now, dirty, |world, dirty| {
                    world.externals.remove_cow(&name);
                    dirty.externals = true;
                });
            }
            // Nothing with a name that no service can have was ever taken up.
            (DocumentVariant::Service | DocumentVariant::ExternalService, Err(_)) => {}
            (DocumentVariant::MeshConfig, _) => self.set_mesh(MeshConfigSpec::default(), dirty),
            (DocumentVariant::TrafficPolicy, _) => self.set_policy(&name, None, dirty),
            (DocumentVariant::RateLimitPolicy, _) => self.set_limits(&name, None, dirty),
            (DocumentVariant::Route, _) => {
                if let Some(kind) = RouteKind::parse(&key.kind) {
                    self.set_route(&(kind, name), None, dirty);
                }
            }
            (DocumentVariant::FaultInjection, _) => {
                self.faults.remove_cow(&name);
                self.touch_fault(&name, dirty);
            }
            (DocumentVariant::ReferenceGrant, _) => {
                self.grants.remove_cow(&name);
                self.touch_grants(&name, dirty);
            }
        }
    }

    fn set_mesh(&mut self, spec: MeshConfigSpec, dirty: &mut Dirty) {
        let namespaces = self.mesh.namespaces.keys().chain(spec.namespaces.keys());
        dirty.namespaces.extend(namespaces.cloned());
        dirty.config = true;
        self.mesh = Arc::new(spec);
    }

    fn set_policy(&mut self, name: &ObjectName, entry: Option<PolicyEntry>, dirty: &mut Dirty) {
        if let Some(before) = self.policies.get(name).cloned() {
            self.index_policy(&before, false, dirty);
        }
        let Some(entry) = entry else {
            self.policies.remove_cow(name);
            return;
        };
        self.index_policy(&entry, true, dirty);
        self.policies.insert_cow(name.clone(), Arc::new(entry));
    }

    fn index_policy(&mut self, entry: &PolicyEntry, there: bool, dirty: &mut Dirty) {
        let key = (entry.created, entry.name.clone());
        for service in entry.relations.attached() {
            self.policies_of.set(service, &key, there);
            dirty.services.insert(service.clone());
            dirty.servers.insert(service.clone());
        }
    }

    fn set_limits(&mut self, name: &ObjectName, entry: Option<RateLimitEntry>, dirty: &mut Dirty) {
        if let Some(before) = self.rate_limits.get(name).cloned() {
            self.index_limits(&before, false, dirty);
        }
        let Some(entry) = entry else {
            self.rate_limits.remove_cow(name);
            return;
        };
        self.index_limits(&entry, true, dirty);
        self.rate_limits.insert_cow(name.clone(), Arc::new(entry));
    }

    fn index_limits(&mut self, entry: &RateLimitEntry, there: bool, dirty: &mut Dirty) {
        for service in entry.relations.attached() {
            self.limits_of.set(service, &entry.name, there);
            dirty.servers.insert(service.clone());
        }
    }

    fn set_route(&mut self, key: &RouteKey, entry: Option<RouteEntry>, dirty: &mut Dirty) {
        if let Some(before) = self.routes.get(key).cloned() {
            self.index_route(&before, false, dirty);
        }
        dirty.routes.insert(key.clone());
        let Some(entry) = entry else {
            self.routes.remove_cow(key);
            return;
        };
        self.index_route(&entry, true, dirty);
        self.routes.insert_cow(key.clone(), Arc::new(entry));
    }

    /// Adds a route to every index, or takes it from all of them.
    fn index_route(&mut self, entry: &RouteEntry, there: bool, dirty: &mut Dirty) {
        let key = entry.key();
        let namespace = &entry.name.namespace;
        // A service may be both a parent and named in the rules.
        let mut services = entry.relations.attached();
        for service in &services {
            let group = (namespace.clone(), (*service).clone());
            self.attached.set(&group, &key, there);
            let any = self.attached.has(&group);
            self.attaching.set(service, namespace, any);
            if service.namespace() != namespace {
                self.consumed.set(namespace, service, any);
                dirty.namespaces.insert(namespace.clone());
            }
            dirty.groups.insert(group);
        }
        for reference in &entry.relations.references {
            match reference {
                Reference::Service { service, .. } => {
                    services.insert(service);
                }
                Reference::Fault(fault) => self.routes_by_fault.set(fault, &key, there),
                Reference::Grants(namespace) => self.routes_by_grants.set(namespace, &key, there),
            }
        }
        for service in services {
            self.routes_to.set(service, &key, there);
        }
    }

    fn touch_fault(&self, name: &ObjectName, dirty: &mut Dirty) {
        let routes = self.routes_by_fault.of(name);
        dirty.routes.extend(routes.cloned());
    }

    fn touch_grants(&self, grant: &ObjectName, dirty: &mut Dirty) {
        let routes = self.routes_by_grants.of(&grant.namespace);
        dirty.routes.extend(routes.cloned());
    }

    /// Every document again. For a comparison with compiling everything anew.
    #[cfg(test)]
    pub(crate) fn touch_all(&self, dirty: &mut Dirty) {
        use super::index::Map;
        fn keys<K: Ord + Clone, V: Clone>(map: &Map<K, V>) -> impl Iterator<Item = K> {
            map.into_iter().map(|(key, _)| key.clone())
        }
        dirty.shapes.extend(self.names());
        dirty.services.extend(self.names());
        dirty.servers.extend(self.names());
        dirty.routes.extend(keys(&self.routes));
        dirty.namespaces.extend(keys(&self.inhabitants));
        dirty
            .namespaces
            .extend(self.mesh.namespaces.keys().cloned());
        for (_, route) in &self.routes {
            for service in route.relations.attached() {
                let group = (route.name.namespace.clone(), service.clone());
                dirty.namespaces.insert(group.0.clone());
                dirty.groups.insert(group);
            }
        }
        dirty.workloads.extend(keys(&self.workloads));
        dirty.workloads.extend(keys(&self.pods));
        dirty.externals = true;
        dirty.config = true;
        dirty.bundle = true;
    }
}
