//! The world: every fact that decides what sidecars are told, by key, with the indices that say
//! what depends on it. Pure; a clone is a snapshot and costs nothing.
//!
//! Sources turn what they see into [`Delta`]s. [`World::apply`] takes one and says in [`Dirty`]
//! what has to be compiled anew.

pub mod addresses;
pub mod cluster;
pub mod dirty;
pub mod facts;
pub mod index;

mod delta;
mod documents;
pub(crate) mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use gateway_api::experimental::referencegrants::ReferenceGrantSpec;
use weft_core::model::{AppProtocol, Cidr, MeshConfig, TrustBundle};
use weft_core::name::{ServiceName, WorkloadName};
use weft_core::rate::RateLimit;
use weft_core::route::Fault;

use crate::model::{MeshConfigSpec, ObjectName, ServiceSpec};
use crate::peer::PeerIdentity;
use crate::registry::Entry;

pub use delta::Delta;

use addresses::{AddressRecord, Assigned, VirtualAddresses};
use cluster::{ClusterEndpoint, ClusterEndpoints, ClusterService, IndexedSlice, Member, Pod};
use dirty::Dirty;
use facts::{ExternalEntry, ExternalScope, PolicyEntry, RateLimitEntry, RouteEntry, RouteKey};
use index::{Endpoints, Index, Map};

/// How many workloads announce each port and protocol.
type PortCounts = BTreeMap<(u16, u8), u32>;

/// Every fact.
#[derive(Debug, Clone)]
pub struct World {
    settings: Arc<MeshConfig>,
    /// The control plane's own namespace, in a cluster.
    system_namespace: Option<Arc<str>>,
    bundle: Arc<TrustBundle>,
    mesh: Arc<MeshConfigSpec>,
    services: Map<ServiceName, Arc<ServiceSpec>>,
    externals: Map<ServiceName, Arc<ExternalEntry>>,
    policies: Map<ObjectName, Arc<PolicyEntry>>,
    rate_limits: Map<ObjectName, Arc<RateLimitEntry>>,
    routes: Map<RouteKey, Arc<RouteEntry>>,
    faults: Map<ObjectName, Arc<Fault>>,
    grants: Map<ObjectName, Arc<ReferenceGrantSpec>>,
    workloads: Map<WorkloadName, Arc<Entry>>,
    cluster_services: Map<ServiceName, Arc<ClusterService>>,
    cluster_slices: Map<ObjectName, Arc<IndexedSlice>>,
    pods: Map<WorkloadName, Arc<Pod>>,
    /// Pods by the instance that their sidecars are.
    pods_by_instance: Map<Arc<str>, WorkloadName>,
    /// The zone of each node.
    nodes: Map<Arc<str>, Arc<str>>,
    addresses: VirtualAddresses,

    endpoints: Map<ServiceName, Endpoints<Arc<Entry>>>,
    /// Who serves each service of the cluster.
    cluster_endpoints: Map<ServiceName, ClusterEndpoints>,
    resolved_members: Map<(ServiceName, Member), Arc<ClusterEndpoint>>,
    all_slices_of: Index<ServiceName, ObjectName>,
    /// Those that are used.
    slices_of_service: Index<ServiceName, ObjectName>,
    /// How many slices of a service are not used, where some are not.
    partial: Map<ServiceName, usize>,
    slices_of_member: Index<(ServiceName, Member), ObjectName>,
    services_of_pod: Index<WorkloadName, ServiceName>,
    /// Pods with a sidecar, by node.
    pods_on: Index<Arc<str>, WorkloadName>,
    /// Members of services by where a slice has them.
    members_at: Index<IpAddr, ((ServiceName, Member), ObjectName)>,
    /// How many workloads of each service announce each port and protocol.
    announced: Map<ServiceName, Arc<PortCounts>>,
    /// The same of what pods of the cluster's services say in their annotations.
    pod_protocols: Map<ServiceName, Arc<PortCounts>>,
    /// Policies of each service, the oldest first.
    policies_of: Index<ServiceName, (i64, ObjectName)>,
    limits_of: Index<ServiceName, ObjectName>,
    /// Routes by their namespace and each service that they are attached to.
    attached: Index<(String, ServiceName), RouteKey>,
    /// Namespaces with routes that are attached to a service.
    attaching: Index<ServiceName, String>,
    /// Services of other namespaces that a namespace has routes for.
    consumed: Index<String, ServiceName>,
    /// Routes that refer to a service, need the grants of a namespace, or name a FaultInjection.
    routes_to: Index<ServiceName, RouteKey>,
    routes_by_grants: Index<String, RouteKey>,
    routes_by_fault: Index<ObjectName, RouteKey>,
    /// Workloads that have an address as one of their own.
    claims: Index<IpAddr, WorkloadName>,
    inhabitants: Map<String, u32>,
}

impl World {
    /// A world in which nobody is.
    pub fn new(settings: MeshConfig, bundle: TrustBundle, addresses: VirtualAddresses) -> Self {
        Self {
            settings: Arc::new(settings),
            system_namespace: None,
            bundle: Arc::new(bundle),
            mesh: Arc::default(),
            services: Map::new(),
            externals: Map::new(),
            policies: Map::new(),
            rate_limits: Map::new(),
            routes: Map::new(),
            faults: Map::new(),
            grants: Map::new(),
            workloads: Map::new(),
            cluster_services: Map::new(),
            cluster_slices: Map::new(),
            pods: Map::new(),
            pods_by_instance: Map::new(),
            nodes: Map::new(),
            addresses,
            endpoints: Map::new(),
            cluster_endpoints: Map::new(),
            resolved_members: Map::new(),
            all_slices_of: Index::default(),
            slices_of_service: Index::default(),
            partial: Map::new(),
            slices_of_member: Index::default(),
            services_of_pod: Index::default(),
            pods_on: Index::default(),
            members_at: Index::default(),
            announced: Map::new(),
            pod_protocols: Map::new(),
            policies_of: Index::default(),
            limits_of: Index::default(),
            attached: Index::default(),
            attaching: Index::default(),
            consumed: Index::default(),
            routes_to: Index::default(),
            routes_by_grants: Index::default(),
            routes_by_fault: Index::default(),
            claims: Index::default(),
            inhabitants: Map::new(),
        }
    }

    /// The same in a cluster, whose namespaces are different people's: what one of them says of the
    /// outside holds for itself, and for everybody only in this namespace, the control plane's.
    #[must_use]
    pub fn in_cluster(self, system_namespace: &str) -> Self {
        Self {
            system_namespace: Some(system_namespace.into()),
            ..self
        }
    }

    /// The same with the virtual addresses that another one has.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_addresses(self, other: &Self) -> Self {
        Self {
            addresses: other.addresses.clone(),
            ..self
        }
    }

    /// A world in which nobody is, of a trust domain that means nothing.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Self {
        use weft_core::model::UnknownDestinations;
        let trust_domain = "weft.test".parse::<weft_core::name::TrustDomain>().unwrap();
        let settings = MeshConfig {
            trust_domain: trust_domain.clone(),
            virtual_ranges: Vec::new(),
            workload_ranges: Vec::new(),
            unknown_destinations: UnknownDestinations::default(),
            external_hosts: Vec::new(),
            external_addresses: Vec::new(),
        };
        let bundle = TrustBundle {
            trust_domain,
            roots: Vec::new(),
            revoked_instances: BTreeSet::new(),
        };
        Self::new(settings, bundle, VirtualAddresses::default())
    }

    /// Takes a change. `now` is in seconds since the Unix epoch: virtual addresses rest by it.
    pub fn apply(&mut self, delta: Delta, now: i64, dirty: &mut Dirty) {
        match delta {
            Delta::Document(stated) => self.put_document(*stated, now, dirty),
            Delta::DocumentGone(key) => self.remove_document(&key, now, dirty),
            Delta::Workload(entry) => self.put_workload(entry, now, dirty),
            Delta::WorkloadGone(name) => self.remove_workload(&name, now, dirty),
            Delta::ClusterService(service) => self.put_cluster_service(service, now, dirty),
            Delta::ClusterServiceGone(name) => self.remove_cluster_service(&name, now, dirty),
            Delta::ClusterSlice(slice) => self.put_cluster_slice(slice, dirty),
            Delta::ClusterSliceGone(name) => self.remove_cluster_slice(&name, dirty),
            Delta::Pod(pod) => self.put_pod(pod, dirty),
            Delta::PodGone(name) => self.remove_pod(&name, dirty),
            Delta::Addresses(theirs) => {
                for name in self.addresses.adopt(theirs, now, &mut dirty.addresses) {
                    // Of no service that exists nothing is told.
                    if self.has_virtual_address(&name) {
                        dirty.externals |= self.externals.get(&name).is_some();
                        dirty.servers.insert(name.clone());
                        // Its address is in it, and not in its shape.
                        dirty.services.insert(name.clone());
                        dirty.shapes.insert(name);
                    }
                }
            }
            Delta::Node(name, zone) => self.put_node(name, zone, dirty),
            Delta::NodeGone(name) => self.remove_node(&name, dirty),
            Delta::Bundle(bundle) => {
                dirty.bundle |= bundle != self.bundle;
                self.bundle = bundle;
            }
        }
    }

    /// Lets the addresses of names rest that do not exist. For when everything that was on record
    /// has been taken up.
    pub fn release_unused(&mut self, now: i64, dirty: &mut Dirty) {
        let unused: Vec<ServiceName> = self
            .addresses
            .assigned()
            .filter(|name| !self.has_virtual_address(name))
            .cloned()
            .collect();
        for name in unused {
            self.addresses.release(&name, now, &mut dirty.addresses);
        }
    }

    fn exists_inside(&self, name: &ServiceName) -> bool {
        self.services.get(name).is_some()
            || self.endpoints.get(name).is_some()
            || self.cluster_services.get(name).is_some()
    }

    /// A service of the cluster has addresses of its own, unless it is a name for something else.
    fn has_virtual_address(&self, name: &ServiceName) -> bool {
        let in_cluster = self.cluster_services.get(name);
        self.exists(name) && in_cluster.is_none_or(|service| service.external.is_some())
    }

    /// Whether a service or an ExternalService of this name was asked for or is served.
    pub fn exists(&self, name: &ServiceName) -> bool {
        self.exists_inside(name) || self.externals.get(name).is_some()
    }

    /// Makes a change to what a name stands for, and notes what follows from its existence.
    fn change_name(
        &mut self,
        name: &ServiceName,
        now: i64,
        dirty: &mut Dirty,
        change: impl FnOnce(&mut Self, &mut Dirty),
    ) {
        let (inside, before) = (self.exists_inside(name), self.has_virtual_address(name));
        change(self, dirty);
        let after = self.has_virtual_address(name);
        if after && !before {
            self.addresses.assign(name, now, &mut dirty.addresses);
        }
        if before && !after {
            self.addresses.release(name, now, &mut dirty.addresses);
        }
        if self.exists_inside(name) != inside {
            dirty.shapes.insert(name.clone());
            dirty.servers.insert(name.clone());
            dirty.externals |= self.externals.get(name).is_some();
        }
    }

    // --- What the compiler reads.

    /// The mesh's settings without what of the outside is in force.
    pub fn config(&self) -> MeshConfig {
        let more = self.mesh.workload_ranges.iter();
        let more = more.filter_map(|text| Cidr::parse(text));
        let mut config = MeshConfig::clone(&self.settings);
        config.workload_ranges.extend(more);
        config.unknown_destinations = self.mesh.unknown_destinations;
        config
    }

    /// What the document MeshConfig says.
    pub fn mesh(&self) -> &MeshConfigSpec {
        &self.mesh
    }

    /// Trust bundle: roots and revoked instances.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// What has to be on record of a service's virtual address.
    pub fn address_record(&self, name: &ServiceName) -> Option<Assigned> {
        self.addresses.record_of(name)
    }

    /// The addresses of a service: its cluster IPs, or else its virtual ones.
    pub fn addresses_of(&self, name: &ServiceName) -> Vec<IpAddr> {
        match self.cluster_services.get(name) {
            Some(service) if service.external.is_none() => service.addresses.clone(),
            Some(_) | None => self.addresses.of(name),
        }
    }

    /// How many slices the endpoints of a service were in last; 0 where that is not known.
    pub fn slices_of(&self, name: &ServiceName) -> u32 {
        self.addresses.slices_of(name)
    }

    /// Notes in how many slices the endpoints of a service are; what is to be written down is
    /// appended.
    pub fn set_slices(
        &mut self,
        name: &ServiceName,
        slices: u32,
        records: &mut Vec<AddressRecord>,
    ) {
        self.addresses.set_slices(name, slices, records);
    }

    /// What was asked for of a service.
    pub fn service(&self, name: &ServiceName) -> Option<&ServiceSpec> {
        self.services.get(name).map(|spec| &**spec)
    }

    /// Whether a service exists within the mesh: asked for, or served by a workload.
    pub fn is_inside(&self, name: &ServiceName) -> bool {
        self.exists_inside(name)
    }

    /// Every ExternalService that was asked for.
    pub fn externals(&self) -> impl Iterator<Item = &Arc<ExternalEntry>> {
        (&self.externals).into_iter().map(|(_, entry)| entry)
    }

    /// Whose callers reach an ExternalService by its hosts and own addresses.
    pub fn external_scope<'a>(&self, name: &'a ServiceName) -> ExternalScope<'a> {
        match self.system_namespace.as_deref() {
            Some(system) if name.namespace() != system => {
                ExternalScope::Namespace(name.namespace())
            }
            Some(_) | None => ExternalScope::Mesh,
        }
    }

    /// An ExternalService that was asked for.
    pub fn external(&self, name: &ServiceName) -> Option<&Arc<ExternalEntry>> {
        self.externals.get(name)
    }

    /// How many serve a service.
    pub fn endpoints_len(&self, name: &ServiceName) -> usize {
        let registered = self.endpoints.get(name).map_or(0, Endpoints::len);
        let cluster = self.cluster_services.get(name);
        let cluster = cluster.and_then(|_| self.cluster_endpoints.get(name));
        registered + cluster.map_or(0, |cluster| cluster.all.len())
    }

    /// Workloads that serve a service and whose places are in a range.
    pub fn endpoints(
        &self,
        name: &ServiceName,
        places: std::ops::RangeInclusive<u32>,
    ) -> impl Iterator<Item = &Arc<Entry>> {
        let all = self.endpoints.get(name).into_iter();
        all.flat_map(move |all| all.range(places.clone()))
    }

    /// The ports that workloads of a service announce, ascending, each with its protocol: of
    /// several that which is declared, and of those the first in the order of [`AppProtocol`].
    pub fn announced(&self, name: &ServiceName) -> impl Iterator<Item = (u16, AppProtocol)> {
        let all = self.announced.get(name).into_iter();
        let all = all.flat_map(|all| all.iter());
        let mut last = None;
        all.filter_map(move |((port, protocol), _)| {
            let first = last.replace(*port) != Some(*port);
            first.then(|| (*port, protocol_of(*protocol)))
        })
    }

    /// The policies for a port, the one in force first: one for the port beats one for the whole
    /// service, and between two for the same the older wins.
    pub fn policies_for(&self, service: &ServiceName, port: u16) -> Vec<&Arc<PolicyEntry>> {
        let all = self.policies_of.of(service);
        let all: Vec<_> = all
            .filter_map(|(_, name)| self.policies.get(name))
            .collect();
        let of_target = |wanted: Option<u16>| {
            let all = all.iter().copied();
            all.filter(move |entry| entry.relations.attaches(service, wanted))
        };
        of_target(Some(port)).chain(of_target(None)).collect()
    }

    /// The limits on the rate of requests to a service's port, of all policies that are for it.
    pub fn limits_for(&self, service: &ServiceName, port: u16) -> Vec<Arc<RateLimit>> {
        let all = self.limits_of.of(service);
        let all = all.filter_map(|name| self.rate_limits.get(name));
        let meant = all.filter(|entry| {
            let relations = &entry.relations;
            relations.attaches(service, None) || relations.attaches(service, Some(port))
        });
        meant.flat_map(|entry| entry.limits.clone()).collect()
    }

    /// A route that was asked for.
    pub fn route(&self, key: &RouteKey) -> Option<&Arc<RouteEntry>> {
        self.routes.get(key)
    }

    /// Routes of a namespace that are attached to a service, in the order of their kinds and names.
    pub fn attached(
        &self,
        group: &(String, ServiceName),
    ) -> impl DoubleEndedIterator<Item = &Arc<RouteEntry>> {
        let keys: Vec<&RouteKey> = self.attached.of(group).collect();
        keys.into_iter().filter_map(|key| self.routes.get(key))
    }

    /// Namespaces with routes that are attached to a service.
    pub fn attaching(&self, service: &ServiceName) -> impl Iterator<Item = &String> {
        self.attaching.of(service)
    }

    /// Services of other namespaces that a namespace has routes for.
    pub fn consumed(&self, namespace: &str) -> impl Iterator<Item = &ServiceName> {
        self.consumed.of(namespace)
    }

    /// Routes that refer to a service.
    pub fn routes_to(&self, service: &ServiceName) -> impl Iterator<Item = &RouteKey> {
        self.routes_to.of(service)
    }

    /// A fault that routes may name.
    pub fn fault(&self, name: &ObjectName) -> Option<&Fault> {
        self.faults.get(name).map(|fault| &**fault)
    }

    /// What a namespace lets routes of others refer to.
    pub fn grants(&self, namespace: &str) -> impl Iterator<Item = &ReferenceGrantSpec> {
        let from = ObjectName {
            namespace: namespace.to_owned(),
            name: String::new(),
        };
        let all = self.grants.range::<ObjectName, _>(from..);
        let namespace = namespace.to_owned();
        all.take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, grant)| &**grant)
    }

    /// Whether any workload lives in a namespace.
    pub fn is_inhabited(&self, namespace: &str) -> bool {
        self.inhabitants.get(namespace).is_some()
    }

    /// A workload.
    pub fn workload(&self, name: &WorkloadName) -> Option<&Arc<Entry>> {
        self.workloads.get(name)
    }

    /// The pod whose sidecar a peer is: its instance and its identity are the pod's.
    pub fn pod_of(&self, peer: &PeerIdentity) -> Option<&WorkloadName> {
        let pod = self.pods.get(self.pods_by_instance.get(&peer.instance)?)?;
        (pod.identity.as_ref() == Some(&peer.identity)).then_some(&pod.name)
    }

    /// Who is reached at an address: of several a pod, whose addresses are the cluster's word, then the
    /// one that is connected, then the first by name.
    pub fn owner(&self, address: IpAddr) -> Option<&WorkloadName> {
        let claims = self.claims.of(&address);
        claims.min_by_key(|name| {
            let entry = self.workloads.get(*name);
            let connected = entry.is_some_and(|entry| entry.stream.is_some());
            (self.mesh_pod(name).is_none(), !connected, *name)
        })
    }

    /// Every service and ExternalService that exists.
    pub fn names(&self) -> BTreeSet<ServiceName> {
        let services = (&self.services).into_iter().map(|(name, _)| name);
        let served = (&self.endpoints).into_iter().map(|(name, _)| name);
        let externals = (&self.externals).into_iter().map(|(name, _)| name);
        let cluster = (&self.cluster_services).into_iter().map(|(name, _)| name);
        let all = services.chain(served).chain(externals).chain(cluster);
        all.cloned().collect()
    }
}

fn protocol_of(code: u8) -> AppProtocol {
    let all = workloads::PROTOCOLS.get(usize::from(code));
    all.copied().unwrap_or_default()
}
