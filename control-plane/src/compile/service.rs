//! What callers are told of a service, and its endpoints in slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::locality::{Distribution, Locality};
use weft_core::model::{
    AppProtocol, Endpoint, EndpointPort, EndpointSlice, Placement, Service, ServicePort, Transport,
    Workload,
};
use weft_core::name::{ServiceName, WorkloadName};
use weft_core::policy::TrafficPolicy;
use weft_core::route::Route;
use weft_proto::resource::Resource;

use super::encoded::Encoded;
use super::shape::Shape;
use crate::registry::Entry;
use crate::world::World;
use crate::world::cluster::{ClusterEndpoint, Pod};
use crate::world::facts::ExternalScope;
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
    let in_cluster = world.cluster_service(name);
    let external = match shape.external {
        true => world.external(name).map(|entry| &entry.external),
        false => in_cluster.and_then(|service| service.external.as_ref()),
    };
    Service {
        name: name.clone(),
        addresses: world.addresses_of(name),
        ports: shape.service_ports(),
        endpoints: Vec::new(),
        endpoint_slices,
        policies: policies_of(world, name, shape),
        routes,
        distribution: in_cluster.map(|s| s.distribution).unwrap_or_default(),
        external: external.map(Arc::clone),
    }
}

/// A service, encoded with the other names that it goes by for everybody. Those outside the mesh that
/// it has for its own namespace only are in that [`Namespace`](weft_core::model::Namespace).
pub(super) fn encoded(world: &World, service: Service) -> Encoded {
    let everybodys = world.external_scope(&service.name) == ExternalScope::Mesh
        && world.cluster_service(&service.name).is_none();
    if service.external.is_none() || everybodys {
        return Encoded::new(Resource::Service(service));
    }
    let addresses = service.addresses.iter().map(ToString::to_string);
    let hostname = std::iter::once(service.name.hostname());
    let aliases = hostname.chain(addresses).collect();
    Encoded::with_aliases(Resource::Service(service), aliases)
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
    let places = places_in(index, count);
    let registered = world.endpoints(name, places.clone());
    let registered = registered.filter_map(|entry| registered_endpoint(entry, shape));
    let cluster = world.cluster_endpoints(name, places);
    let distribution = world.cluster_service(name).map(|s| s.distribution);
    let by_node = distribution.is_some_and(|distribution| match distribution {
        Distribution::PreferNode | Distribution::NodeOnly => true,
        Distribution::Anywhere | Distribution::PreferZone => false,
    });
    let cluster = cluster.filter_map(|found| cluster_endpoint(found, shape, by_node));
    let mut endpoints: Vec<Endpoint> = registered.chain(cluster).collect();
    // A pod may be in a service twice: by its name and by an address that somebody wrote.
    endpoints.sort_by(|a, b| {
        let key = |e: &Endpoint| {
            (
                e.instance.clone(),
                e.ports
                    .iter()
                    .map(|p| (p.service_port, p.address))
                    .collect::<Vec<_>>(),
            )
        };
        key(a).cmp(&key(b))
    });
    endpoints.dedup_by(|a, b| a.instance == b.instance);
    EndpointSlice {
        service: name.clone(),
        index,
        count,
        endpoints,
    }
}

/// Ports that are not ready are no endpoints.
fn registered_endpoint(entry: &Entry, shape: &Shape) -> Option<Endpoint> {
    let registration = &entry.registration;
    let ports = shape.ports.iter().filter_map(|(service_port, shape)| {
        let mut registered = registration.ports.iter();
        let port = registered.find(|port| shape.targets.contains(&port.port) && port.ready)?;
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
        placement: Default::default(),
        weight: match registration.weight {
            0 => WEIGHT,
            weight => weight,
        },
        transport: Transport::Mesh,
        ports,
    })
}

/// Without a sidecar, it is reached in plaintext. Its node is told where callers go by it.
fn cluster_endpoint(found: &ClusterEndpoint, shape: &Shape, by_node: bool) -> Option<Endpoint> {
    let ports = shape.ports.iter().filter_map(|(service_port, shape)| {
        let name = shape.name.as_ref()?;
        let (_, address) = found.ports.iter().find(|(known, _)| known == name)?;
        Some(EndpointPort {
            service_port: *service_port,
            address: *address,
        })
    });
    let ports: Vec<EndpointPort> = ports.collect();
    (!ports.is_empty()).then(|| Endpoint {
        instance: Arc::clone(&found.instance),
        workload: found.workload.clone(),
        identity: found.identity.clone(),
        zone: found.zone.to_string(),
        placement: Placement {
            node: if by_node {
                found.node.to_string()
            } else {
                String::new()
            },
            zone_hints: found.zone_hints.iter().map(ToString::to_string).collect(),
        },
        weight: WEIGHT,
        transport: match found.identity {
            Some(_) => Transport::Mesh,
            None => Transport::Plain,
        },
        ports,
    })
}

/// A pod with a sidecar, and which of its addresses lead to it: its ports are those of the services
/// that it belongs to.
pub(super) fn pod(world: &World, pod: &Pod) -> Option<(Workload, Vec<String>)> {
    let identity = pod.identity.clone()?;
    if pod.addresses.is_empty() {
        return None;
    }
    let mut services = Vec::new();
    let mut ports: BTreeMap<u16, AppProtocol> = BTreeMap::new();
    for served in world.services_of(&pod.name) {
        let service = served.service;
        services.push(service.name.clone());
        for (port, target) in served.ports {
            let mut declared = service.ports.iter();
            let declared = declared.find(|declared| declared.port == port);
            let protocol = declared.map(|port| port.protocol).unwrap_or_default();
            // What one service declares is not undone by another that declares nothing.
            let known = ports.entry(target).or_default();
            if *known == AppProtocol::Detect {
                *known = protocol;
            }
        }
    }
    for (port, protocol) in pod.protocols.iter() {
        let known = ports.entry(*port).or_default();
        if *known == AppProtocol::Detect {
            *known = *protocol;
        }
    }
    let ports = ports.into_iter();
    let ports = ports.map(|(port, protocol)| ServicePort { port, protocol });
    let workload = Workload {
        name: pod.name.clone(),
        instance: pod.instance(),
        identity,
        addresses: pod.addresses.clone(),
        services,
        ports: ports.collect(),
        transport: Transport::Mesh,
        place: Locality {
            node: pod.node.to_string(),
            zone: world.node_zone(&pod.node).to_owned(),
        },
    };
    Some((workload, aliases_of(world, &pod.name, &pod.addresses)))
}

/// Those of a workload's addresses that lead to it.
fn aliases_of(world: &World, name: &WorkloadName, addresses: &[IpAddr]) -> Vec<String> {
    let is_own = |address: &&IpAddr| world.owner(**address) == Some(name);
    let own = addresses.iter().filter(is_own);
    own.map(ToString::to_string).collect()
}

/// A workload that is reached by its own addresses, and which of those lead to it.
pub(super) fn workload(world: &World, entry: &Entry) -> Option<(Workload, Vec<String>)> {
    let registration = &entry.registration;
    if registration.addresses.is_empty() {
        return None;
    }
    let aliases = aliases_of(world, &registration.workload, &registration.addresses);
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
        place: Locality {
            node: String::new(),
            zone: registration.zone.clone(),
        },
    };
    Some((workload, aliases))
}
