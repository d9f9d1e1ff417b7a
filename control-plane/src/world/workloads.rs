//! Workloads come, change and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::model::{AppProtocol, slice_of};
use weft_core::name::{ServiceName, WorkloadName};
use weft_core::slices::SLICES_MAX;

use super::dirty::Dirty;
use super::index::Map;
use super::{PortCounts, World};
use crate::registry::Entry;

/// In the order of precedence: what is declared comes before what is not.
pub(super) const PROTOCOLS: [AppProtocol; 6] = [
    AppProtocol::Http,
    AppProtocol::Http2,
    AppProtocol::Grpc,
    AppProtocol::Tcp,
    AppProtocol::Tls,
    AppProtocol::Detect,
];

pub(super) fn code_of(protocol: AppProtocol) -> u8 {
    let mut all = PROTOCOLS.iter();
    let index = all.position(|known| *known == protocol);
    index
        .and_then(|index| u8::try_from(index).ok())
        .unwrap_or(u8::MAX)
}

/// The order by which endpoints are cut into slices. Slices are told apart by the low bits of a
/// hash; in the order of its reversed bits the endpoints of a slice stand side by side.
pub(crate) fn place_of(instance: &str) -> u32 {
    let bits = SLICES_MAX.trailing_zeros();
    slice_of(instance, SLICES_MAX).reverse_bits() >> (u32::BITS - bits)
}

/// The places of the endpoints in one of `count` slices, a power of two.
pub(crate) fn places_in(index: u32, count: u32) -> std::ops::RangeInclusive<u32> {
    let width = SLICES_MAX / count.clamp(1, SLICES_MAX);
    let bits = count.trailing_zeros();
    let position = match bits {
        0 => 0,
        bits => index.reverse_bits() >> (u32::BITS - bits),
    };
    position * width..=position * width + (width - 1)
}

/// What a workload is counted for in the ports of a service.
fn ports_of(entry: &Entry) -> BTreeSet<(u16, u8)> {
    let ports = entry.registration.ports.iter();
    ports
        .map(|port| (port.port, code_of(port.protocol)))
        .collect()
}

impl World {
    pub(super) fn put_workload(&mut self, entry: Arc<Entry>, now: i64, dirty: &mut Dirty) {
        let name = entry.registration.workload.clone();
        let before = self.workloads.get(&name).cloned();
        self.change_workload(&name, dirty, |world| {
            world.workloads.insert_cow(name.clone(), Arc::clone(&entry));
        });
        self.change_services(&name, before.as_deref(), Some(&entry), now, dirty);
    }

    pub(super) fn remove_workload(&mut self, name: &WorkloadName, now: i64, dirty: &mut Dirty) {
        let Some(before) = self.workloads.get(name).cloned() else {
            return;
        };
        self.change_workload(name, dirty, |world| {
            world.workloads.remove_cow(name);
        });
        self.change_services(name, Some(&before), None, now, dirty);
    }

    /// Makes a change to a workload in the mesh, and notes what follows from its existence and its
    /// addresses. A pod with a sidecar and what its sidecar registers are the same workload.
    pub(super) fn change_workload(
        &mut self,
        name: &WorkloadName,
        dirty: &mut Dirty,
        change: impl FnOnce(&mut Self),
    ) {
        let (existed, old) = (self.is_workload(name), self.claimed_by(name));
        change(self);
        let (exists, new) = (self.is_workload(name), self.claimed_by(name));
        if exists != existed {
            self.count_inhabitant(name, exists, dirty);
        }
        for address in old.difference(&new) {
            self.claims.remove(address, name);
        }
        for address in new.difference(&old) {
            self.claims.insert(address, name.clone());
        }
        // Others that claim one of the addresses may have won or lost it.
        for address in old.union(&new) {
            dirty.workloads.extend(self.claims.of(address).cloned());
        }
        dirty.workloads.insert(name.clone());
    }

    fn is_workload(&self, name: &WorkloadName) -> bool {
        self.workloads.get(name).is_some() || self.mesh_pod(name).is_some()
    }

    fn claimed_by(&self, name: &WorkloadName) -> BTreeSet<IpAddr> {
        let registered = self.workloads.get(name).into_iter();
        let registered = registered.flat_map(|entry| &entry.registration.addresses);
        let pods = self.mesh_pod(name).into_iter();
        let pods = pods.flat_map(|pod| &pod.addresses);
        registered.chain(pods).copied().collect()
    }

    fn count_inhabitant(&mut self, name: &WorkloadName, comes: bool, dirty: &mut Dirty) {
        let namespace = name.namespace().to_owned();
        let many = self.inhabitants.get(&namespace).copied().unwrap_or(0);
        let now = if comes {
            many + 1
        } else {
            many.saturating_sub(1)
        };
        if now == 0 {
            self.inhabitants.remove_cow(&namespace);
        } else {
            self.inhabitants.insert_cow(namespace.clone(), now);
        }
        if (many == 0) != (now == 0) {
            dirty.namespaces.insert(namespace);
        }
    }

    fn change_services(
        &mut self,
        name: &WorkloadName,
        before: Option<&Entry>,
        after: Option<&Arc<Entry>>,
        now: i64,
        dirty: &mut Dirty,
    ) {
        let old = before.into_iter().flat_map(|e| &e.registration.services);
        let new = after.into_iter().flat_map(|e| &e.registration.services);
        let services: BTreeSet<ServiceName> = old.chain(new).cloned().collect();
        for service in services {
            let serves = |entry: &&Entry| entry.registration.services.contains(&service);
            let before = before.filter(serves);
            let after = after.filter(|entry| serves(&&***entry));
            self.change_name(&service, now, dirty, |world, dirty| {
                world.change_endpoint(&service, name, before, after, dirty);
            });
        }
    }

    fn change_endpoint(
        &mut self,
        service: &ServiceName,
        name: &WorkloadName,
        before: Option<&Entry>,
        after: Option<&Arc<Entry>>,
        dirty: &mut Dirty,
    ) {
        let changed = dirty.endpoints.entry(service.clone()).or_default();
        let endpoints = self.endpoints.get_or_default_cow(service.clone());
        if let Some(before) = before {
            let place = place_of(&before.instance);
            endpoints.remove(place, |one| one.registration.workload == *name);
            changed.insert(place);
        }
        if let Some(after) = after {
            let place = place_of(&after.instance);
            endpoints.insert(place, Arc::clone(after));
            changed.insert(place);
        }
        if endpoints.is_empty() {
            self.endpoints.remove_cow(service);
        }
        if before.is_some() != after.is_some() {
            // A limit that is shared depends on how many share it.
            dirty.servers.insert(service.clone());
        }
        let old = before.map(ports_of).unwrap_or_default();
        let new = after.map(|entry| ports_of(entry)).unwrap_or_default();
        if old != new {
            announce(&mut self.announced, service, &old, &new);
            dirty.shapes.insert(service.clone());
            dirty.servers.insert(service.clone());
        }
    }
}

/// Counts what one of those who serve a service says of its ports, and no more what it said.
pub(super) fn announce(
    of: &mut Map<ServiceName, Arc<PortCounts>>,
    service: &ServiceName,
    old: &BTreeSet<(u16, u8)>,
    new: &BTreeSet<(u16, u8)>,
) {
    let announced = of.get_or_default_cow(service.clone());
    let counts = Arc::make_mut(announced);
    for port in new.difference(old) {
        *counts.entry(*port).or_default() += 1;
    }
    for port in old.difference(new) {
        if let Some(many) = counts.get_mut(port) {
            *many -= 1;
        }
    }
    counts.retain(|_, many| *many > 0);
    if counts.is_empty() {
        of.remove_cow(service);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_endpoints_of_a_slice_stand_side_by_side(instance in "[a-z0-9-]{1,20}", bits in 0u32..=12) {
            let count = 1 << bits;
            let index = slice_of(&instance, count);
            let place = place_of(&instance);
            for other in 0..count.min(64) {
                prop_assert_eq!(places_in(other, count).contains(&place), other == index);
            }
            prop_assert!(places_in(index, count).contains(&place));
        }
    }
}
