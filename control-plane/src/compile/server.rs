//! What the sidecars of a service's own workloads are told to enforce.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_core::name::ServiceName;
use weft_core::server::{ServerPolicy, ServerPort};
use weft_core::shedding::Shedding;

use super::{World, policies_for, ports_to, service_names};
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
    for (port, (target, _protocol)) in ports_to(world, name, &serving) {
        // Two ports of the service may lead to the same one of the application.
        let of_port = ports.entry(target).or_default();
        if of_port.shedding.is_none() {
            of_port.shedding = shedding(world, name, port);
        }
    }
    ports.retain(|_target, of_port| *of_port != ServerPort::default());
    let ports = ports.into_iter();
    ServerPolicy {
        service: name.clone(),
        instances: 1,
        ports: ports.map(|(port, is)| (port, Arc::new(is))).collect(),
    }
}

/// What the policy in force for a port of the service sheds.
fn shedding(world: World<'_>, name: &ServiceName, port: u16) -> Option<Arc<Shedding>> {
    let in_force = policies_for(world.policies, name, port);
    let (_name, spec) = in_force.first()?;
    spec.resolve(name.namespace()).shedding
}
