//! The ports of services: what everything else that refers to a service depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_core::model::{AppProtocol, ServicePort};
use weft_core::name::ServiceName;

use super::external::Admitted;
use crate::world::World;

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortShape {
    /// The ports of the workloads that it leads to: more than one only in a service of the cluster,
    /// where each pod says which of its ports has the name.
    pub targets: BTreeSet<u16>,
    /// Its name, in a service of the cluster.
    pub name: Option<Arc<str>>,
    /// What is spoken there.
    pub protocol: AppProtocol,
}

/// What a service is to those who refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its ports.
    pub ports: BTreeMap<u16, PortShape>,
    /// Whether it is referred to as an ExternalService.
    pub external: bool,
    /// Whether it is outside the mesh: an ExternalService, or a Service of the cluster that is a name
    /// for something there.
    pub outside: bool,
}

impl PortShape {
    fn new(target: u16, protocol: AppProtocol) -> Self {
        Self {
            targets: BTreeSet::from([target]),
            name: None,
            protocol,
        }
    }
}

impl Shape {
    /// Its ports as sidecars are told.
    pub fn service_ports(&self) -> Vec<ServicePort> {
        let ports = self.ports.iter().map(|(port, shape)| ServicePort {
            port: *port,
            protocol: shape.protocol,
        });
        ports.collect()
    }
}

/// The shape of a service that exists and is in force.
pub(super) fn shape_of(world: &World, admitted: &Admitted, name: &ServiceName) -> Option<Shape> {
    if !world.is_inside(name) {
        let entry = admitted.in_force.get(name)?;
        let ports = entry
            .ports
            .iter()
            .map(|port| (port.port, PortShape::new(port.port, port.protocol)));
        return Some(Shape {
            ports: ports.collect(),
            external: true,
            outside: true,
        });
    }
    let announced: BTreeMap<u16, AppProtocol> = world.announced(name).collect();
    let announced_at = |target| announced.get(&target).copied().unwrap_or_default();
    if let Some(service) = world.cluster_service(name) {
        let ports = service.ports.iter().map(|port| {
            let mut targets = world.cluster_targets(name, &port.name);
            // Processes that serve it, too, have no names for their ports.
            targets.insert(port.target.unwrap_or(port.port));
            let mut protocol = port.protocol;
            if protocol == AppProtocol::Detect {
                let mut said = targets.iter();
                let said = said.find_map(|target| world.announced_at(name, *target));
                protocol = said.unwrap_or_default();
            }
            let shape = PortShape {
                targets,
                name: Some(Arc::clone(&port.name)),
                protocol,
            };
            (port.port, shape)
        });
        return Some(Shape {
            ports: ports.collect(),
            external: false,
            outside: service.external.is_some(),
        });
    }
    let ports = match world.service(name) {
        Some(spec) => spec
            .ports
            .iter()
            .map(|port| {
                let target = port.target_port.unwrap_or(port.port);
                // The service's declaration beats the workload's.
                let protocol = if port.protocol == AppProtocol::Detect {
                    announced_at(target)
                } else {
                    port.protocol
                };
                (port.port, PortShape::new(target, protocol))
            })
            .collect(),
        None => announced
            .iter()
            .map(|(port, protocol)| (*port, PortShape::new(*port, *protocol)))
            .collect(),
    };
    Some(Shape {
        ports,
        external: false,
        outside: false,
    })
}
