//! What the sidecars of a service's own workloads are told to enforce.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_core::name::ServiceName;
use weft_core::policy::TrafficPolicy;
use weft_core::rate::{RateLimit, RateScope};
use weft_core::server::{ServerPolicy, ServerPort};

use super::{World, policies_for, ports_to, service_names};
use crate::model::{ObjectName, RateLimitPolicySpec, TargetRef};
use crate::registry::Entry;

/// A RateLimitPolicy that was asked for.
#[derive(Debug, Clone)]
pub struct RateLimitEntry {
    /// Its name.
    pub name: ObjectName,
    /// What it is for.
    pub target: TargetRef,
    /// What it says.
    pub limits: Vec<Arc<RateLimit>>,
}

impl RateLimitEntry {
    /// A policy, read.
    pub fn new(name: ObjectName, spec: &RateLimitPolicySpec) -> Self {
        Self {
            target: spec.target_ref.clone(),
            limits: spec.resolve(&name),
            name,
        }
    }

    fn is_for(&self, service: &ServiceName, port: u16) -> bool {
        self.name.namespace == service.namespace()
            && self.target.name == service.name()
            && self.target.port.is_none_or(|wanted| wanted == port)
    }
}

/// The limits of a service's port, of all policies that are for it.
pub fn limits_for(
    policies: &[RateLimitEntry],
    service: &ServiceName,
    port: u16,
) -> Vec<Arc<RateLimit>> {
    let policies = policies.iter().filter(|entry| entry.is_for(service, port));
    policies.flat_map(|entry| entry.limits.clone()).collect()
}

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
    let mut shared = false;
    for (port, (target, _protocol)) in ports_to(world, name, &serving) {
        // Two ports of the service may lead to the same one of the application.
        let of_port = ports.entry(target).or_default();
        if let Some(policy) = policy_in_force(world, name, port) {
            if of_port.shedding.is_none() {
                of_port.shedding = policy.shedding;
            }
            let paths = of_port.path_normalization;
            of_port.path_normalization = paths.and(policy.path_normalization);
        }
        for limit in limits_for(world.rate_limits, name, port) {
            shared |= limit.scope == RateScope::Global;
            if !of_port.rate_limits.contains(&limit) {
                of_port.rate_limits.push(limit);
            }
        }
    }
    ports.retain(|_target, of_port| !of_port.is_empty());
    let ports = ports.into_iter();
    let instances = u32::try_from(serving.len()).unwrap_or(u32::MAX).max(1);
    ServerPolicy {
        service: name.clone(),
        // Who comes and goes is told only where it matters.
        instances: if shared { instances } else { 1 },
        ports: ports.map(|(port, is)| (port, Arc::new(is))).collect(),
    }
}

/// The policy in force for a port of the service, where there is one.
fn policy_in_force(world: World<'_>, name: &ServiceName, port: u16) -> Option<TrafficPolicy> {
    let in_force = policies_for(world.policies, name, port);
    let (_name, spec) = in_force.first()?;
    Some(spec.resolve(name.namespace()))
}
