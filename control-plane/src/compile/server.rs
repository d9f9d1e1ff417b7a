//! What the sidecars of a service's own workloads are told to enforce.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_core::name::ServiceName;
use weft_core::server::{ServerPolicy, ServerPort};

use super::{World, ports_to, service_names};
use crate::registry::Entry;

/// One for every service that exists. Also where there is nothing to enforce: a sidecar that comes
/// back without the control plane knows it then.
pub(super) fn policies(world: World<'_>) -> Vec<ServerPolicy> {
    let names = service_names(world.entries, world.services).into_iter();
    names.map(|name| policy(world, name)).collect()
}

fn policy(world: World<'_>, name: &ServiceName) -> ServerPolicy {
    let serving: Vec<&Entry> = world
        .entries
        .iter()
        .filter(|entry| entry.registration.services.contains(name))
        .collect();
    let mut ports: BTreeMap<u16, ServerPort> = BTreeMap::new();
    for (_port, (target, _protocol)) in ports_to(world, name, &serving) {
        // Two ports of the service may lead to the same one of the application.
        let _of_port = ports.entry(target).or_default();
    }
    ports.retain(|_target, of_port| *of_port != ServerPort::default());
    let ports = ports.into_iter();
    ServerPolicy {
        service: name.clone(),
        instances: 1,
        ports: ports.map(|(port, is)| (port, Arc::new(is))).collect(),
    }
}
