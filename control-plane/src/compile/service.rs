//! What callers are told of a service, and its endpoints in slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::model::{
    Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, Transport, Workload,
};
use weft_core::name::ServiceName;
use weft_core::policy::TrafficPolicy;
use weft_core::route::Route;

use super::shape::Shape;
use crate::registry::Entry;
use crate::world::World;
use crate::world::workloads::places_in;

/// The weight of an endpoint that says nothing.
const WEIGHT: u32 = 100;

/// A service with its policies and routes, without its endpoints.
pub(super) fn service(
    world: &World,
    name: &ServiceName,
    shape: &Shape,
    routes: Vec<Arc<Route>>,
    endpoint_slices: u32,
) -> Service {
    let external = shape.external.then(|| world.external(name)).flatten();
    Service {
        name: name.clone(),
        addresses: world.addresses_of(name),
        ports: shape.service_ports(),
        endpoints: Vec::new(),
        endpoint_slices,
        policies: policies_of(world, name, shape),
        routes,
        external: external.map(|entry| Arc::clone(&entry.external)),
    }
}

/// The policies in force for the ports of a service that have one.
fn policies_of(
    world: &World,
    name: &ServiceName,
    shape: &Shape,
) -> BTreeMap<u16, Arc<TrafficPolicy>> {
    let policies = shape.ports.keys().filter_map(|port| {
        let in_force = world.policies_for(name, *port);
        let entry = in_force.first()?;
        Some((*port, Arc::clone(&entry.policy)))
    });
    policies.collect()
}

/// One of `count` slices of a service's endpoints.
pub(super) fn slice(
    world: &World,
    name: &ServiceName,
    shape: &Shape,
    (index, count): (u32, u32),
) -> EndpointSlice {
    let serving = world.endpoints(name, places_in(index, count));
    let mut endpoints: Vec<Endpoint> = serving.filter_map(|entry| endpoint(entry, shape)).collect();
    endpoints.sort_by(|a, b| a.instance.cmp(&b.instance));
    EndpointSlice {
        service: name.clone(),
        index,
        count,
        endpoints,
    }
}

/// Ports that are not ready are no endpoints.
fn endpoint(entry: &Entry, shape: &Shape) -> Option<Endpoint> {
    let registration = &entry.registration;
    let ports = shape.ports.iter().filter_map(|(service_port, shape)| {
        let mut registered = registration.ports.iter();
        let port = registered.find(|port| port.port == shape.target && port.ready)?;
        Some(EndpointPort {
            service_port: *service_port,
            address: port.advertised,
        })
    });
    let ports: Vec<EndpointPort> = ports.collect();
    (!ports.is_empty()).then(|| Endpoint {
        instance: Arc::clone(&entry.instance),
        workload: registration.workload.clone(),
        identity: Some(entry.identity.clone()),
        zone: registration.zone.clone(),
        weight: match registration.weight {
            0 => WEIGHT,
            weight => weight,
        },
        transport: Transport::Mesh,
        ports,
    })
}

/// A workload that is reached by its own addresses, and which of those lead to it.
pub(super) fn workload(world: &World, entry: &Entry) -> Option<(Workload, Vec<String>)> {
    let registration = &entry.registration;
    if registration.addresses.is_empty() {
        return None;
    }
    let is_own = |address: &&IpAddr| world.owner(**address) == Some(&registration.workload);
    let own = registration.addresses.iter().filter(is_own);
    let aliases = own.map(ToString::to_string).collect();
    let ports = registration.ports.iter().map(|port| ServicePort {
        port: port.port,
        protocol: port.protocol,
    });
    let workload = Workload {
        name: registration.workload.clone(),
        instance: Arc::clone(&entry.instance),
        identity: entry.identity.clone(),
        addresses: registration.addresses.clone(),
        ports: ports.collect(),
        transport: Transport::Mesh,
        services: registration.services.clone(),
    };
    Some((workload, aliases))
}
