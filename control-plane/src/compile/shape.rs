//! The ports of services: what everything else that refers to a service depends on.

use std::collections::BTreeMap;

use weft_core::model::{AppProtocol, ServicePort};
use weft_core::name::ServiceName;

use super::external::Admitted;
use crate::world::World;

/// A port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortShape {
    /// The port of the workloads that it leads to.
    pub target: u16,
    /// What is spoken there.
    pub protocol: AppProtocol,
}

/// What a service is to those who refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its ports.
    pub ports: BTreeMap<u16, PortShape>,
    /// Whether it is outside the mesh: an ExternalService.
    pub external: bool,
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
        let ports = entry.ports.iter().map(|port| {
            let (target, protocol) = (port.port, port.protocol);
            (port.port, PortShape { target, protocol })
        });
        return Some(Shape {
            ports: ports.collect(),
            external: true,
        });
    }
    let announced: BTreeMap<u16, AppProtocol> = world.announced(name).collect();
    let announced_at = |target| announced.get(&target).copied().unwrap_or_default();
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
                (port.port, PortShape { target, protocol })
            })
            .collect(),
        None => announced
            .iter()
            .map(|(port, protocol)| {
                let (target, protocol) = (*port, *protocol);
                (*port, PortShape { target, protocol })
            })
            .collect(),
    };
    Some(Shape {
        ports,
        external: false,
    })
}
