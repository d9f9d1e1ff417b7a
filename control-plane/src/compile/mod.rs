//! From what exists and what was asked for to what sidecars are told: pure, the same for whoever
//! asks, encoded once.

mod external;
mod routes;
mod server;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_core::model::{
    AppProtocol, Endpoint, EndpointPort, EndpointSlice, MeshConfig, Namespace, Service,
    ServicePort, Transport, TrustBundle, Workload, slices_for,
};
use weft_core::name::ServiceName;
use weft_core::rate::RateLimit;
use weft_core::slices::resource_name;
use weft_proto::resource::{Any, Kind, Resource};

use gateway_api::experimental::referencegrants::ReferenceGrantSpec;
use weft_core::policy::TrafficPolicy;
use weft_core::route::Fault;

use crate::model::{
    Document, NamespaceSpec, ObjectName, ResourceKey, RouteKind, ServiceSpec, TrafficPolicySpec,
};
use crate::registry::Entry;
use crate::sha256_hex;

pub use external::{ExternalEntry, ExternalStatus};
pub use routes::{
    Attached, Dangling, ParentStatus, References, RouteEntry, RouteStatus, attach, check_policy,
    check_target,
};
pub use server::{RateLimitEntry, limits_for};

/// The weight of an endpoint that says nothing.
const WEIGHT: u32 = 100;
/// Indices of virtual addresses: 240.240.0.0/16 without what looks like a network or broadcast
/// address of a /24, which some programs refuse.
const VIRTUAL_MAX: u32 = 0xffff;
/// A virtual address is not given to another name for this long, seconds.
const VIRTUAL_REST: i64 = 30 * 24 * 3600;

/// Everything that decides what sidecars are told.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// Who is there.
    pub entries: &'a [Entry],
    /// Services that were asked for.
    pub services: &'a BTreeMap<ServiceName, ServiceSpec>,
    /// Destinations outside the mesh that were asked for.
    pub externals: &'a [ExternalEntry],
    /// How callers treat them, the oldest first.
    pub policies: &'a [(ObjectName, TrafficPolicySpec)],
    /// How many requests their own sidecars let through, by the policies' names.
    pub rate_limits: &'a [RateLimitEntry],
    /// Where requests to them go.
    pub routes: &'a [RouteEntry],
    /// Faults that routes may name.
    pub faults: &'a BTreeMap<ObjectName, Fault>,
    /// What routes of other namespaces may refer to.
    pub grants: &'a [(ObjectName, ReferenceGrantSpec)],
    /// Their virtual addresses.
    pub addresses: &'a VirtualAddresses,
    /// Mesh-wide settings.
    pub config: &'a MeshConfig,
    /// What is different in single namespaces.
    pub namespaces: &'a BTreeMap<String, NamespaceSpec>,
    /// Whom to believe.
    pub bundle: &'a TrustBundle,
}

/// A resource, ready for the wire.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Its name.
    pub name: String,
    /// The digest of its content: the same content has the same version, also after a restart.
    pub version: String,
    /// Other names it goes by.
    pub aliases: Vec<String>,
    /// Its bytes.
    pub any: Any,
    /// Its domain form, for people.
    pub resource: Resource,
}

/// Everything that sidecars may be told, at one moment.
#[derive(Debug, Default)]
pub struct Compiled {
    /// Grows with every compilation.
    pub generation: u64,
    /// The revision of the store that is in it.
    pub revision: u64,
    by_name: HashMap<(Kind, String), Arc<Encoded>>,
    aliases: HashMap<(Kind, String), String>,
    routes: BTreeMap<(RouteKind, ObjectName), RouteStatus>,
    externals: BTreeMap<ServiceName, ExternalStatus>,
    rate_limits: Vec<RateLimitEntry>,
}

impl Compiled {
    /// A resource by its name or any other name it goes by.
    pub fn find(&self, kind: Kind, name: &str) -> Option<&Arc<Encoded>> {
        let key = (kind, name.to_owned());
        if let Some(found) = self.by_name.get(&key) {
            return Some(found);
        }
        let canonical = self.aliases.get(&key)?;
        self.by_name.get(&(kind, canonical.clone()))
    }

    /// Just these resources, with these other names; services that have endpoints in themselves are
    /// divided.
    #[cfg(test)]
    pub(crate) fn of(generation: u64, resources: Vec<(Resource, Vec<String>)>) -> Self {
        let mut compiled = Self {
            generation,
            revision: generation,
            ..Self::default()
        };
        for (resource, aliases) in resources {
            match resource {
                Resource::Service(service) if service.endpoint_slices == 0 => {
                    compiled.add_service(service, &Self::default());
                }
                resource => compiled.add(resource, aliases, &Self::default()),
            }
        }
        compiled
    }

    /// Adds a resource that goes by these other names too; the one from `before` is shared if it
    /// is the same.
    fn add(&mut self, resource: Resource, aliases: Vec<String>, before: &Self) {
        let key = (resource.kind(), resource.name());
        let encoded = match before.by_name.get(&key) {
            Some(same) if same.resource == resource && same.aliases == aliases => Arc::clone(same),
            Some(_) | None => Arc::new(encode(resource, aliases)),
        };
        for alias in &encoded.aliases {
            let alias = (key.0, alias.clone());
            self.aliases.insert(alias, encoded.name.clone());
        }
        self.by_name.insert(key, encoded);
    }

    /// Adds a service and, apart from it, its endpoints.
    fn add_service(&mut self, mut service: Service, before: &Self) {
        let endpoints = std::mem::take(&mut service.endpoints);
        if service.external.is_none() {
            let now = before.own(&service.name.to_string());
            let now = now.map_or(0, |service| service.endpoint_slices);
            service.endpoint_slices = slices_for(endpoints.len(), now);
        }
        for slice in EndpointSlice::divide(&service.name, endpoints, service.endpoint_slices) {
            self.add(Resource::EndpointSlice(slice), Vec::new(), before);
        }
        let resource = Resource::Service(service);
        let aliases = resource.aliases();
        self.add(resource, aliases, before);
    }

    /// What a service says of itself, by any of its names.
    fn own(&self, name: &str) -> Option<&Service> {
        match &self.find(Kind::Service, name)?.resource {
            Resource::Service(service) => Some(service),
            Resource::EndpointSlice(_)
            | Resource::Workload(_)
            | Resource::TrustBundle(_)
            | Resource::MeshConfig(_)
            | Resource::Namespace(_)
            | Resource::ServerPolicy(_) => None,
        }
    }

    /// A service with its endpoints, by its name or any other name it goes by.
    pub fn service(&self, name: &str) -> Option<Service> {
        let service = self.own(name)?;
        let slices = self.slices_of(service);
        let slices = slices.filter_map(|encoded| match &encoded.resource {
            Resource::EndpointSlice(slice) => Some(slice),
            Resource::Service(_)
            | Resource::Workload(_)
            | Resource::TrustBundle(_)
            | Resource::MeshConfig(_)
            | Resource::Namespace(_)
            | Resource::ServerPolicy(_) => None,
        });
        Some(service.with_endpoints(slices))
    }

    fn slices_of<'a>(&'a self, service: &Service) -> impl Iterator<Item = &'a Arc<Encoded>> {
        let (name, count) = (service.name.to_string(), service.endpoint_slices);
        (0..count).filter_map(move |index| {
            let name = resource_name(&name, index, count);
            self.by_name.get(&(Kind::EndpointSlice, name))
        })
    }

    /// The slices of a service, by any of its names.
    pub fn slices(&self, service: &str) -> impl Iterator<Item = &Arc<Encoded>> {
        let service = self.own(service).into_iter();
        service.flat_map(|service| self.slices_of(service))
    }

    /// Every service, without its endpoints.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        let of_kind = self.of_kind(Kind::Service);
        of_kind.filter_map(|encoded| match &encoded.resource {
            Resource::Service(service) => Some(service),
            Resource::EndpointSlice(_)
            | Resource::Workload(_)
            | Resource::TrustBundle(_)
            | Resource::MeshConfig(_)
            | Resource::Namespace(_)
            | Resource::ServerPolicy(_) => None,
        })
    }

    /// What of a document leads nowhere.
    pub fn dangling(&self, document: &Document) -> Vec<Dangling> {
        match document {
            Document::Route(..) => {
                let status = self.route_status(&document.key());
                let status = status.cloned().unwrap_or_default();
                let refused = status.parents.into_iter().filter_map(|p| p.refused);
                refused.chain(status.unresolved).collect()
            }
            Document::TrafficPolicy(name, spec) => {
                let ports = ports_of(self.services());
                let externals = externals_of(self.services());
                check_policy(&ports, &externals, &name.namespace, spec)
            }
            Document::ExternalService(name, _) => {
                let status = self.external_status(name);
                status.map(|s| s.refused.clone()).unwrap_or_default()
            }
            Document::Service(name, _) if self.external_status(name).is_some() => {
                vec![Dangling {
                    path: "metadata.name".to_owned(),
                    reason: "Conflicted",
                    found: format!("{name}, as an ExternalService is called too"),
                    allowed: "a name that no ExternalService has".to_owned(),
                }]
            }
            Document::RateLimitPolicy(name, spec) => {
                let ports = ports_of(self.services());
                let externals = externals_of(self.services());
                check_target(&ports, &externals, &name.namespace, &spec.target_ref)
            }
            Document::Service(..)
            | Document::MeshConfig(_)
            | Document::FaultInjection(..)
            | Document::ReferenceGrant(..) => Vec::new(),
        }
    }

    /// Limits on the requests to a port, as their own sidecars hold them.
    pub fn rate_limits(&self, service: &ServiceName, port: u16) -> Vec<Arc<RateLimit>> {
        limits_for(&self.rate_limits, service, port)
    }

    /// What has been found out about a route; `None` where there is none of that name.
    pub fn route_status(&self, key: &ResourceKey) -> Option<&RouteStatus> {
        let kind = RouteKind::parse(&key.kind)?;
        let name = ObjectName {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        self.routes.get(&(kind, name))
    }

    /// What has been found out about an ExternalService; `None` where there is none of that name.
    pub fn external_status(&self, name: &ServiceName) -> Option<&ExternalStatus> {
        self.externals.get(name)
    }

    /// Every resource of a kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Encoded>> {
        let of_kind = self.by_name.iter().filter(move |((k, _), _)| *k == kind);
        of_kind.map(|(_, encoded)| encoded)
    }
}

/// Compiles the world. What has not changed since `before` keeps its bytes.
pub fn compile(world: World<'_>, before: &Compiled, revision: u64) -> Compiled {
    let mut compiled = Compiled {
        generation: before.generation + 1,
        revision,
        ..Compiled::default()
    };
    let names = service_names(world.entries, world.services);
    let externals = external::admit(world.externals, &names);
    let everybodys = [
        Resource::MeshConfig(externals.config(world.config)),
        Resource::TrustBundle(world.bundle.clone()),
    ];
    for resource in everybodys {
        compiled.add(resource, Vec::new(), before);
    }
    let inside = names.into_iter().map(|name| compile_service(world, name));
    let outside = externals.entries.iter();
    let outside = outside.map(|entry| external::service(world, entry));
    let services: Vec<Service> = inside.chain(outside).collect();
    compiled.externals = externals.statuses;
    let mut attached = attach_routes(world, &services);
    for mut service in services {
        service.routes = attached.producers.remove(&service.name).unwrap_or_default();
        compiled.add_service(service, before);
    }
    // Also where nothing holds: a sidecar that comes back without the control plane knows it then.
    let inhabited = world.entries.iter();
    let inhabited = inhabited.map(|entry| entry.registration.workload.namespace());
    for name in inhabited.chain(world.namespaces.keys().map(|name| &**name)) {
        if !attached.consumers.contains_key(name) {
            attached.consumers.insert(name.to_owned(), BTreeMap::new());
        }
    }
    for (name, routes) in attached.consumers {
        let own = world.namespaces.get(&name);
        let namespace = Resource::Namespace(Namespace {
            name,
            routes,
            unknown_destinations: own.map(|own| own.unknown_destinations),
        });
        compiled.add(namespace, Vec::new(), before);
    }
    compiled.routes = attached.statuses;
    compiled.rate_limits = world.rate_limits.to_vec();
    for policy in server::policies(world) {
        compiled.add(Resource::ServerPolicy(policy), Vec::new(), before);
    }
    // An address that two claim belongs to the one that is connected, then to the first by name.
    let mut claimed: BTreeSet<IpAddr> = BTreeSet::new();
    let mut entries: Vec<&Entry> = world.entries.iter().collect();
    entries.sort_by_key(|entry| (entry.stream.is_none(), &entry.registration.workload));
    for entry in entries {
        let Some(resource) = compile_workload(entry) else {
            continue;
        };
        let own = entry.registration.addresses.iter();
        let own = own.filter(|address| claimed.insert(**address));
        let aliases = own.map(ToString::to_string).collect();
        compiled.add(resource, aliases, before);
    }
    compiled
}

/// Services with their ports.
fn ports_of<'a>(
    services: impl Iterator<Item = &'a Service>,
) -> BTreeMap<ServiceName, BTreeSet<u16>> {
    let ports = services.map(|service| {
        let ports = service.ports.iter().map(|port| port.port);
        (service.name.clone(), ports.collect())
    });
    ports.collect()
}

/// Those of them that are outside the mesh.
fn externals_of<'a>(services: impl Iterator<Item = &'a Service>) -> BTreeSet<ServiceName> {
    let outside = services.filter(|service| service.external.is_some());
    outside.map(|service| service.name.clone()).collect()
}

fn attach_routes(world: World<'_>, services: &[Service]) -> Attached {
    let ports = ports_of(services.iter());
    let externals = externals_of(services.iter());
    let references = References {
        services: &ports,
        externals: &externals,
        faults: world.faults,
        grants: world.grants,
    };
    attach(world.routes, references)
}

/// Every service that exists: asked for, or named by a workload.
pub fn service_names<'a>(
    entries: &'a [Entry],
    services: &'a BTreeMap<ServiceName, ServiceSpec>,
) -> BTreeSet<&'a ServiceName> {
    let named = entries.iter().flat_map(|e| &e.registration.services);
    services.keys().chain(named).collect()
}

fn compile_service(world: World<'_>, name: &ServiceName) -> Service {
    let serving: Vec<&Entry> = world
        .entries
        .iter()
        .filter(|entry| entry.registration.services.contains(name))
        .collect();
    let ports = ports_to(world, name, &serving);
    let declared = |target: u16| {
        let ports = serving.iter().flat_map(|entry| &entry.registration.ports);
        let mut of_port = ports.filter(|port| port.port == target);
        of_port.next().map_or(AppProtocol::Detect, |p| p.protocol)
    };
    let service_ports = ports.iter().map(|(port, (target, protocol))| ServicePort {
        port: *port,
        // The service's declaration beats the workload's.
        protocol: if *protocol == AppProtocol::Detect {
            declared(*target)
        } else {
            *protocol
        },
    });
    let mut endpoints: Vec<Endpoint> = serving
        .iter()
        .filter_map(|entry| compile_endpoint(entry, &ports))
        .collect();
    endpoints.sort_by(|a, b| a.instance.cmp(&b.instance));
    Service {
        policies: policies_of(world, name, ports.keys().copied()),
        routes: Vec::new(),
        name: name.clone(),
        addresses: world.addresses.of(name),
        ports: service_ports.collect(),
        endpoints,
        endpoint_slices: 0,
        external: None,
    }
}

/// The policies in force for the ports of a service that have one.
fn policies_of(
    world: World<'_>,
    name: &ServiceName,
    ports: impl Iterator<Item = u16>,
) -> BTreeMap<u16, Arc<TrafficPolicy>> {
    let policies = ports.filter_map(|port| {
        let in_force = policies_for(world.policies, name, port);
        let (_name, spec) = in_force.first()?;
        Some((port, Arc::new(spec.resolve(name.namespace()))))
    });
    policies.collect()
}

/// The ports of a service: what each leads to at its workloads, and what is spoken there.
fn ports_to(
    world: World<'_>,
    name: &ServiceName,
    serving: &[&Entry],
) -> BTreeMap<u16, (u16, AppProtocol)> {
    match world.services.get(name) {
        Some(spec) => spec
            .ports
            .iter()
            .map(|port| {
                let target = port.target_port.unwrap_or(port.port);
                (port.port, (target, port.protocol))
            })
            .collect(),
        None => serving
            .iter()
            .flat_map(|entry| &entry.registration.ports)
            .map(|port| (port.port, (port.port, port.protocol)))
            .collect(),
    }
}

/// The policies for a port, the one in force first: one for the port beats one for the whole
/// service, and between two for the same the older wins. Policies are given the oldest first.
pub fn policies_for<'a>(
    policies: &'a [(ObjectName, TrafficPolicySpec)],
    service: &ServiceName,
    port: u16,
) -> Vec<&'a (ObjectName, TrafficPolicySpec)> {
    let of_target = |wanted: Option<u16>| {
        policies.iter().filter(move |(name, spec)| {
            name.namespace == service.namespace()
                && spec.target_ref.name == service.name()
                && spec.target_ref.port == wanted
        })
    };
    of_target(Some(port)).chain(of_target(None)).collect()
}

/// Ports that are not ready are no endpoints.
fn compile_endpoint(entry: &Entry, ports: &BTreeMap<u16, (u16, AppProtocol)>) -> Option<Endpoint> {
    let registration = &entry.registration;
    let ports: Vec<EndpointPort> = ports
        .iter()
        .filter_map(|(service_port, (target, _))| {
            let mut registered = registration.ports.iter();
            let port = registered.find(|port| port.port == *target && port.ready)?;
            Some(EndpointPort {
                service_port: *service_port,
                address: port.advertised,
            })
        })
        .collect();
    (!ports.is_empty()).then(|| Endpoint {
        instance: Arc::clone(&entry.instance),
        workload: registration.workload.clone(),
        identity: Some(entry.identity.clone()),
        zone: registration.zone.clone(),
        weight: if registration.weight == 0 {
            WEIGHT
        } else {
            registration.weight
        },
        transport: Transport::Mesh,
        ports,
    })
}

fn compile_workload(entry: &Entry) -> Option<Resource> {
    let registration = &entry.registration;
    if registration.addresses.is_empty() {
        return None;
    }
    Some(Resource::Workload(Workload {
        name: registration.workload.clone(),
        instance: Arc::clone(&entry.instance),
        identity: entry.identity.clone(),
        addresses: registration.addresses.clone(),
        ports: registration
            .ports
            .iter()
            .map(|port| ServicePort {
                port: port.port,
                protocol: port.protocol,
            })
            .collect(),
        transport: Transport::Mesh,
    }))
}

fn encode(resource: Resource, aliases: Vec<String>) -> Encoded {
    let any = resource.encode();
    let mut content = any.value.clone();
    for alias in &aliases {
        content.push(b'\n');
        content.extend_from_slice(alias.as_bytes());
    }
    let mut version = sha256_hex(&content);
    version.truncate(16);
    Encoded {
        name: resource.name(),
        version,
        aliases,
        any,
        resource,
    }
}

/// Which name has which virtual address. Durable, and not given to another name for 30 days.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VirtualAddresses {
    by_name: BTreeMap<ServiceName, Assigned>,
    taken: BTreeMap<u32, ServiceName>,
}

/// An address on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Its index in the range.
    pub index: u32,
    /// When the service ceased to exist, seconds; `None` while it does.
    pub released: Option<i64>,
}

impl VirtualAddresses {
    /// Takes up what was on record.
    pub fn restore(records: impl IntoIterator<Item = (ServiceName, Assigned)>) -> Self {
        let mut all = Self::default();
        for (name, assigned) in records {
            all.taken.insert(assigned.index, name.clone());
            all.by_name.insert(name, assigned);
        }
        all
    }

    /// The addresses of a service; none when it has not been given any.
    pub fn of(&self, name: &ServiceName) -> Vec<IpAddr> {
        let Some(assigned) = self.by_name.get(name) else {
            return Vec::new();
        };
        let [_, _, high, low] = assigned.index.to_be_bytes();
        let v4 = Ipv4Addr::new(240, 240, high, low);
        let v6 = Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 1, 0, 0, 0, assigned.index as u16);
        vec![v4.into(), v6.into()]
    }

    /// Gives addresses to exactly these services, and lets those of others rest. What changed is
    /// to be kept.
    pub fn assign<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a ServiceName>,
        now: i64,
    ) -> Vec<(ServiceName, Assigned)> {
        let wanted: BTreeSet<&ServiceName> = names.into_iter().collect();
        let mut changed = Vec::new();
        for (name, assigned) in &mut self.by_name {
            let released = match (wanted.contains(name), assigned.released) {
                (true, _) => None,
                (false, released @ Some(_)) => released,
                (false, None) => Some(now),
            };
            if released != assigned.released {
                assigned.released = released;
                changed.push((name.clone(), *assigned));
            }
        }
        for name in wanted {
            if self.by_name.contains_key(name) {
                continue;
            }
            let Some(index) = self.free(name, now) else {
                tracing::error!(%name, "no virtual address left: 240.240.0.0/16 is full");
                continue;
            };
            let assigned = Assigned {
                index,
                released: None,
            };
            if let Some(previous) = self.taken.insert(index, name.clone()) {
                self.by_name.remove(&previous);
            }
            self.by_name.insert(name.clone(), assigned);
            changed.push((name.clone(), assigned));
        }
        changed
    }

    /// Beginning at the name's own hash, so that a mesh made anew gives the same addresses.
    fn free(&self, name: &ServiceName, now: i64) -> Option<u32> {
        let digest = sha256_hex(name.to_string().as_bytes());
        let start = u32::from_str_radix(&digest[..8], 16).unwrap_or(0) % VIRTUAL_MAX;
        let candidates = (start..VIRTUAL_MAX).chain(0..start);
        candidates
            .filter(|index| !matches!(index & 0xff, 0 | 255))
            .find(|index| match self.taken.get(index) {
                None => true,
                Some(holder) => self.by_name.get(holder).is_none_or(|assigned| {
                    assigned
                        .released
                        .is_some_and(|released| now - released > VIRTUAL_REST)
                }),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(n: u32) -> ServiceName {
        format!("shop/s{n}").parse().unwrap()
    }

    #[test]
    fn the_most_specific_policy_wins_then_the_oldest() {
        let policy = |namespace: &str, own: &str, name: &str, port: Option<u16>| {
            let target = serde_json::json!({"kind": "Service", "name": name, "port": port});
            let spec = serde_json::json!({ "targetRef": target });
            let own = ObjectName {
                namespace: namespace.to_owned(),
                name: own.to_owned(),
            };
            (own, serde_json::from_value(spec).unwrap())
        };
        let policies = [
            policy("other", "elsewhere", "web", Some(80)),
            policy("shop", "whole", "web", None),
            policy("shop", "younger", "web", None),
            policy("shop", "port", "web", Some(80)),
        ];
        let won = |service: &str, port| {
            let service: ServiceName = service.parse().unwrap();
            let names = policies_for(&policies, &service, port).into_iter();
            names.map(|(name, _)| &*name.name).collect::<Vec<_>>()
        };
        assert_eq!(won("shop/web", 80), ["port", "whole", "younger"]);
        assert_eq!(won("shop/web", 81), ["whole", "younger"]);
        assert!(won("shop/orders", 80).is_empty());
        assert!(won("other/web", 81).is_empty());
    }

    #[test]
    fn addresses_are_stable_and_rest() {
        let mut addresses = VirtualAddresses::default();
        let web = name(1);
        assert_eq!(addresses.assign([&web], 0).len(), 1);
        let first = addresses.of(&web);
        assert!(addresses.assign([&web], 1).is_empty());
        assert_eq!(addresses.assign([], 2).len(), 1);
        assert_eq!(addresses.assign([&web], 3).len(), 1);
        assert_eq!(addresses.of(&web), first);
        let records = addresses.by_name.clone();
        assert_eq!(VirtualAddresses::restore(records), addresses);
    }

    proptest! {
        #[test]
        fn no_two_services_share_an_address(steps in proptest::collection::vec(proptest::collection::btree_set(0u32..40, 0..20), 1..20)) {
            let mut addresses = VirtualAddresses::default();
            let mut ever: HashMap<Vec<IpAddr>, ServiceName> = HashMap::new();
            for (now, step) in steps.iter().enumerate() {
                let names: Vec<ServiceName> = step.iter().map(|n| name(*n)).collect();
                addresses.assign(&names, now as i64);
                for name in &names {
                    let given = addresses.of(name);
                    prop_assert_eq!(given.len(), 2);
                    let owner = ever.entry(given).or_insert_with(|| name.clone());
                    prop_assert_eq!(&*owner, name);
                }
            }
        }
    }
}
