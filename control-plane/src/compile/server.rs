//! What the sidecars of a service's own workloads are told to enforce.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_core::name::ServiceName;
use weft_core::rate::RateScope;
use weft_core::server::{ServerPolicy, ServerPort};

use super::shape::Shape;
use crate::world::World;

/// There is one for every service of the mesh, also where there is nothing to enforce: a sidecar
/// that comes back without the control plane knows it then.
pub(super) fn policy(world: &World, name: &ServiceName, shape: &Shape) -> ServerPolicy {
    let mut ports: BTreeMap<u16, ServerPort> = BTreeMap::new();
    let mut shared = false;
    for (port, of_port) in &shape.ports {
        // Two ports of the service may lead to the same one of the application.
        for target in &of_port.targets {
            let enforced = ports.entry(*target).or_default();
            if let Some(entry) = world.policies_for(name, *port).first() {
                if enforced.shedding.is_none() {
                    enforced.shedding.clone_from(&entry.policy.shedding);
                }
                let paths = enforced.path_normalization;
                enforced.path_normalization = paths.and(entry.policy.path_normalization);
            }
            for limit in world.limits_for(name, *port) {
                shared |= limit.scope == RateScope::Global;
                if !enforced.rate_limits.contains(&limit) {
                    enforced.rate_limits.push(limit);
                }
            }
        }
    }
    ports.retain(|_target, of_port| !of_port.is_empty());
    let ports = ports.into_iter();
    let instances = u32::try_from(world.endpoints_len(name)).unwrap_or(u32::MAX);
    ServerPolicy {
        service: name.clone(),
        // Who comes and goes is told only where it matters.
        instances: if shared { instances.max(1) } else { 1 },
        ports: ports.map(|(port, is)| (port, Arc::new(is))).collect(),
    }
}
