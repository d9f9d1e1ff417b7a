//! Services, endpoint slices, pods and nodes come, change and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::name::{ServiceName, WorkloadName};

use super::{
    ClusterService, ClusterSlice, IndexedSlice, Member, Pod, SERVICE_SLICES_MAX, SliceEndpoint,
};
use crate::model::ObjectName;
use crate::world::World;
use crate::world::dirty::Dirty;

impl World {
    pub(in crate::world) fn put_cluster_service(
        &mut self,
        service: Arc<ClusterService>,
        now: i64,
        dirty: &mut Dirty,
    ) {
        let name = service.name.clone();
        let before = self.cluster_services.get(&name).cloned();
        if before.as_ref() == Some(&service) {
            return;
        }
        let first = |service: &ClusterService| service.addresses.first().map(IpAddr::is_ipv4);
        let other_family = before.as_ref().is_none_or(|b| first(b) != first(&service));
        self.change_name(&name, now, dirty, |world, dirty| {
            world.cluster_services.insert_cow(name.clone(), service);
            world.touch_cluster_service(&name, dirty);
        });
        if other_family {
            self.resolve_all_of(&name, dirty);
        }
    }

    pub(in crate::world) fn remove_cluster_service(
        &mut self,
        name: &ServiceName,
        now: i64,
        dirty: &mut Dirty,
    ) {
        if self.cluster_services.get(name).is_none() {
            return;
        }
        self.change_name(name, now, dirty, |world, dirty| {
            world.cluster_services.remove_cow(name);
            world.touch_cluster_service(name, dirty);
        });
        self.resolve_all_of(name, dirty);
    }

    fn touch_cluster_service(&self, name: &ServiceName, dirty: &mut Dirty) {
        dirty.shapes.insert(name.clone());
        dirty.services.insert(name.clone());
        dirty.servers.insert(name.clone());
        // Those that serve it are told of its ports.
        dirty.workloads.extend(self.pods_of(name));
        // Endpoints count only while the service is there.
        dirty.recut.insert(name.clone());
    }

    fn pods_of(&self, name: &ServiceName) -> BTreeSet<WorkloadName> {
        let members = self.members_of_service(name).into_iter();
        let pods = members.filter_map(|member| match member {
            Member::Pod(pod) => Some(pod),
            Member::Address(_) => None,
        });
        pods.collect()
    }

    fn members_of_service(&self, name: &ServiceName) -> BTreeSet<Member> {
        let slices = self.slices_of_service.of(name);
        let slices = slices.filter_map(|slice| self.cluster_slices.get(slice));
        slices
            .flat_map(|slice| slice.members().map(|(member, _)| member.clone()))
            .collect()
    }

    fn resolve_all_of(&mut self, name: &ServiceName, dirty: &mut Dirty) {
        for member in self.members_of_service(name) {
            self.resolve_member(name, &member, dirty);
        }
    }

    pub(in crate::world) fn put_cluster_slice(
        &mut self,
        slice: Arc<ClusterSlice>,
        dirty: &mut Dirty,
    ) {
        let before = self.cluster_slices.get(&slice.name).cloned();
        if before.as_ref().is_some_and(|before| before.slice == slice) {
            return;
        }
        let after = Arc::new(IndexedSlice::new(slice));
        self.change_cluster_slice(before, Some(after), dirty);
    }

    pub(in crate::world) fn remove_cluster_slice(&mut self, name: &ObjectName, dirty: &mut Dirty) {
        if let Some(before) = self.cluster_slices.get(name).cloned() {
            self.change_cluster_slice(Some(before), None, dirty);
        }
    }

    fn change_cluster_slice(
        &mut self,
        before: Option<Arc<IndexedSlice>>,
        after: Option<Arc<IndexedSlice>>,
        dirty: &mut Dirty,
    ) {
        let mut services = BTreeSet::new();
        let mut was_used = false;
        if let Some(before) = &before {
            let name = &before.slice.name;
            was_used = self.index_slice(before, false);
            self.cluster_slices.remove_cow(name);
            self.all_slices_of.remove(&before.slice.service, name);
            services.insert(before.slice.service.clone());
        }
        let mut is_used = false;
        if let Some(after) = &after {
            let (service, name) = (&after.slice.service, after.slice.name.clone());
            self.all_slices_of.insert(service, name.clone());
            self.cluster_slices
                .insert_cow(name.clone(), Arc::clone(after));
            let first = self.all_slices_of.of(service).take(SERVICE_SLICES_MAX);
            is_used = { first }.any(|used| *used == name);
            if is_used {
                self.index_slice(after, true);
            }
            services.insert(service.clone());
        }
        let before = before.filter(|_| was_used);
        let after = after.filter(|_| is_used);
        self.resolve_changed(before.as_deref(), after.as_deref(), dirty);
        for service in services {
            self.use_first_slices(&service, dirty);
        }
    }

    /// Uses the first slices of a service, as many as one may have, after one of them came or went.
    fn use_first_slices(&mut self, service: &ServiceName, dirty: &mut Dirty) {
        let all = self.all_slices_of.of(service).count();
        let used = self.slices_of_service.of(service).count();
        let left_out = all.saturating_sub(SERVICE_SLICES_MAX);
        if used != all - left_out {
            let first = self.all_slices_of.of(service).take(SERVICE_SLICES_MAX);
            let wanted: BTreeSet<ObjectName> = first.cloned().collect();
            let used = self.slices_of_service.of(service).cloned().collect();
            for name in wanted.symmetric_difference(&used) {
                let Some(slice) = self.cluster_slices.get(name).cloned() else {
                    continue;
                };
                let comes = wanted.contains(name);
                self.index_slice(&slice, comes);
                match comes {
                    true => self.resolve_changed(None, Some(&slice), dirty),
                    false => self.resolve_changed(Some(&slice), None, dirty),
                }
            }
        }
        match left_out {
            0 => self.partial.remove_cow(service),
            many => self.partial.insert_cow(service.clone(), many),
        };
    }

    /// Brings up to date what follows from a slice that is used in another form than before.
    fn resolve_changed(
        &mut self,
        before: Option<&IndexedSlice>,
        after: Option<&IndexedSlice>,
        dirty: &mut Dirty,
    ) {
        let same_ports = match (before, after) {
            (Some(before), Some(after)) => {
                let (before, after) = (&before.slice, &after.slice);
                before.service == after.service && before.ports == after.ports
            }
            (None, _) | (_, None) => false,
        };
        let mut concerned = Vec::new();
        for (slice, other) in [(before, after), (after, before)] {
            let Some(slice) = slice else {
                continue;
            };
            // The same endpoint with the same ports is resolved to the same.
            let kept = other.iter().filter(|_| same_ports);
            let kept = kept.flat_map(|other| &other.slice.endpoints);
            let kept: BTreeSet<&SliceEndpoint> = kept.collect();
            let service = &slice.slice.service;
            let changed = slice.members().filter(|(_, one)| !kept.contains(one));
            concerned.extend(changed.map(|(member, _)| (service.clone(), member.clone())));
            if !same_ports {
                dirty.shapes.insert(service.clone());
                dirty.servers.insert(service.clone());
            }
        }
        for (service, member) in concerned {
            self.resolve_member(&service, &member, dirty);
        }
        // A pod is told what it serves, not whether it is ready.
        let pods = |slice: Option<&IndexedSlice>| slice.map(IndexedSlice::pods).unwrap_or_default();
        let (old, new) = (pods(before), pods(after));
        dirty.workloads.extend(match same_ports {
            true => &old ^ &new,
            false => &old | &new,
        });
    }

    /// Adds a slice to every index, or takes it from all of them; whether it was in them. A slice that
    /// stays in force in another form is taken out and added again.
    fn index_slice(&mut self, indexed: &IndexedSlice, there: bool) -> bool {
        let slice = &indexed.slice;
        let used = self.slices_of_service.of(&slice.service);
        let was = { used }.any(|used| *used == slice.name);
        if was == there {
            return was;
        }
        self.slices_of_service
            .set(&slice.service, &slice.name, there);
        for (member, endpoint) in indexed.members() {
            let of_member = (slice.service.clone(), member.clone());
            self.slices_of_member.set(&of_member, &slice.name, there);
            let any = self.slices_of_member.has(&of_member);
            if let Member::Pod(pod) = member {
                self.services_of_pod.set(pod, &slice.service, any);
            }
            let at = (of_member, slice.name.clone());
            self.members_at.set(&endpoint.address, &at, there);
        }
        was
    }

    pub(in crate::world) fn put_pod(&mut self, pod: Arc<Pod>, dirty: &mut Dirty) {
        let name = pod.name.clone();
        let before = self.pods.get(&name).cloned();
        if before.as_ref() != Some(&pod) {
            self.change_pod(&name, before.as_deref(), Some(pod), dirty);
        }
    }

    pub(in crate::world) fn remove_pod(&mut self, name: &WorkloadName, dirty: &mut Dirty) {
        if let Some(before) = self.pods.get(name).cloned() {
            self.change_pod(name, Some(&before), None, dirty);
        }
    }

    fn change_pod(
        &mut self,
        name: &WorkloadName,
        before: Option<&Pod>,
        after: Option<Arc<Pod>>,
        dirty: &mut Dirty,
    ) {
        let both = before.into_iter().chain(after.as_deref());
        let addresses: BTreeSet<IpAddr> = both.flat_map(|pod| &pod.addresses).copied().collect();
        if let Some(before) = before {
            self.pods_by_instance.remove_cow(&before.instance());
            self.pods_on.remove(&before.node, name);
        }
        if let Some(after) = &after {
            if after.identity.is_some() && !after.node.is_empty() {
                self.pods_on.insert(&after.node, name.clone());
            }
            self.pods_by_instance
                .insert_cow(after.instance(), name.clone());
        }
        self.change_workload(name, dirty, |world| {
            match after {
                Some(after) => world.pods.insert_cow(name.clone(), after),
                None => world.pods.remove_cow(name),
            };
        });
        let mut concerned: BTreeSet<(ServiceName, Member)> = BTreeSet::new();
        for address in addresses {
            let at = self.members_at.of(&address);
            concerned.extend(at.map(|(of_member, _slice)| of_member.clone()));
        }
        let services = self.services_of_pod.of(name);
        let member = Member::Pod(name.clone());
        concerned.extend(services.map(|service| (service.clone(), member.clone())));
        for (service, member) in concerned {
            self.resolve_member(&service, &member, dirty);
        }
    }

    /// A node is there, in a zone.
    pub(in crate::world) fn put_node(&mut self, name: Arc<str>, zone: Arc<str>, dirty: &mut Dirty) {
        if self.node_zone(&name) != &*zone {
            dirty.workloads.extend(self.pods_on.of(&name).cloned());
        }
        self.nodes.insert_cow(name, zone);
    }

    pub(in crate::world) fn remove_node(&mut self, name: &Arc<str>, dirty: &mut Dirty) {
        if self.nodes.remove_cow(name).is_some() {
            dirty.workloads.extend(self.pods_on.of(name).cloned());
        }
    }
}
