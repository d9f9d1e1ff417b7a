//! Services, endpoint slices and pods of a Kubernetes cluster come, change and go.
//!
//! A slice names pods and addresses; what stands there follows from the pods. Who serves a service
//! is kept resolved ([`ClusterEndpoint`]), and brought up to date with whatever it was resolved from.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::model::AppProtocol;
use weft_core::name::{ServiceName, SpiffeId, WorkloadName};

use super::dirty::Dirty;
use super::index::Endpoints;
use super::workloads::{announce, code_of, place_of};
use super::{World, protocol_of};
use crate::model::ObjectName;

/// A Service of the cluster that is reached by an address or through its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterService {
    /// Its name.
    pub name: ServiceName,
    /// Its cluster IPs; none where it is headless.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports, ascending, each once.
    pub ports: Vec<ClusterPort>,
}

/// A port of a Service of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPort {
    /// The service's port.
    pub port: u16,
    /// Its name, by which slices refer to it; empty where the only port has none.
    pub name: Arc<str>,
    /// What is spoken there.
    pub protocol: AppProtocol,
    /// The workloads' port where it is a number; named ones are in the slices.
    pub target: Option<u16>,
}

/// An EndpointSlice of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSlice {
    /// Its name.
    pub name: ObjectName,
    /// The service that it is of, in its own namespace.
    pub service: ServiceName,
    /// The names of its ports, and the workloads' ports that they lead to.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Who is in it. Those that serve nothing are too: they belong to the service.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a [`ClusterSlice`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceEndpoint {
    /// Where it is.
    pub address: IpAddr,
    /// The pod of the slice's namespace that stands there, with its UID where the slice has it;
    /// `None` for an address that somebody wrote there.
    pub pod: Option<(Arc<str>, Arc<str>)>,
    /// Where it runs; empty when unknown.
    pub zone: Arc<str>,
    /// Whether it serves.
    pub serving: Serving,
}

/// Whether an endpoint serves, as kube-proxy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Serving {
    /// It does not.
    No,
    /// It terminates, and serves meanwhile: used where nobody is ready.
    Terminating,
    /// It is ready.
    Ready,
}

/// A pod that runs or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: WorkloadName,
    /// Tells it from others of its name over time.
    pub uid: Arc<str>,
    /// Its own addresses, as the cluster's API has them; none of a pod that has ended, or that uses
    /// those of its node.
    pub addresses: Vec<IpAddr>,
    /// Whose certificate its sidecar has; `None` where there is no sidecar.
    pub identity: Option<SpiffeId>,
    /// What it says is spoken on its ports, ascending. What a Service declares beats it.
    pub protocols: Arc<[(u16, AppProtocol)]>,
}

impl Pod {
    /// Its instance: what its sidecar's certificate says.
    pub fn instance(&self) -> Arc<str> {
        instance_of(&self.uid)
    }
}

/// The instance of a pod with this UID.
pub fn instance_of(uid: &str) -> Arc<str> {
    format!("pod-{uid}").into()
}

/// What an endpoint of a slice is: the same one in several slices, of other ports or families.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Member {
    Pod(WorkloadName),
    Address(IpAddr),
}

/// Who serves a service of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterEndpoint {
    /// The instance: `pod-UID`, or `address-IP` where no pod is known.
    pub instance: Arc<str>,
    /// The pod, or a name made of the address.
    pub workload: WorkloadName,
    /// Who has to answer there; `None` where no sidecar stands: it is reached in plaintext.
    pub identity: Option<SpiffeId>,
    /// Where it runs; empty when unknown.
    pub zone: Arc<str>,
    /// Whether it serves; never [`Serving::No`].
    pub serving: Serving,
    /// Where it serves the ports of these names, once per name: in the family that the service has
    /// first.
    pub ports: Vec<(Arc<str>, SocketAddr)>,
    /// What the pod says is spoken on its ports, as it is counted.
    protocols: Vec<(u16, u8)>,
    member: Member,
}

/// A service of the cluster as one of its pods serves it.
#[derive(Debug)]
pub struct ServedBy<'a> {
    /// The service.
    pub service: &'a ClusterService,
    /// Its ports, each with the pod's own port that it leads to.
    pub ports: Vec<(u16, u16)>,
}

/// The endpoints of one service.
#[derive(Debug, Clone, Default)]
pub(super) struct ClusterEndpoints {
    pub(super) all: Endpoints<Arc<ClusterEndpoint>>,
    /// How many of them are ready.
    pub(super) ready: usize,
}

fn members(slice: &ClusterSlice) -> impl Iterator<Item = (Member, &SliceEndpoint)> {
    slice.endpoints.iter().map(|endpoint| {
        let pod = endpoint.pod.as_ref();
        let pod = pod.and_then(|(pod, _uid)| pod_name(slice, pod));
        let member = pod.map_or(Member::Address(endpoint.address), Member::Pod);
        (member, endpoint)
    })
}

fn pod_name(slice: &ClusterSlice, pod: &str) -> Option<WorkloadName> {
    WorkloadName::new(slice.service.namespace(), pod).ok()
}

impl World {
    pub(super) fn put_cluster_service(
        &mut self,
        service: Arc<ClusterService>,
        now: i64,
        dirty: &mut Dirty,
    ) {
        let name = service.name.clone();
        let before = self.cluster_services.get(&name).cloned();
        if before.as_ref() == Some(&service) {
            return;
        }
        let first = |service: &ClusterService| service.addresses.first().map(IpAddr::is_ipv4);
        let other_family = before.as_ref().is_none_or(|b| first(b) != first(&service));
        self.change_name(&name, now, dirty, |world, dirty| {
            world.cluster_services.insert_cow(name.clone(), service);
            world.touch_cluster_service(&name, dirty);
        });
        if other_family {
            self.resolve_all_of(&name, dirty);
        }
    }

    pub(super) fn remove_cluster_service(
        &mut self,
        name: &ServiceName,
        now: i64,
        dirty: &mut Dirty,
    ) {
        if self.cluster_services.get(name).is_none() {
            return;
        }
        self.change_name(name, now, dirty, |world, dirty| {
            world.cluster_services.remove_cow(name);
            world.touch_cluster_service(name, dirty);
        });
        self.resolve_all_of(name, dirty);
    }

    fn touch_cluster_service(&self, name: &ServiceName, dirty: &mut Dirty) {
        dirty.shapes.insert(name.clone());
        dirty.services.insert(name.clone());
        dirty.servers.insert(name.clone());
        // Those that serve it are told of its ports.
        dirty.workloads.extend(self.pods_of(name));
        // Endpoints count only while the service is there.
        dirty.recut.insert(name.clone());
    }

    fn pods_of(&self, name: &ServiceName) -> BTreeSet<WorkloadName> {
        let members = self.members_of_service(name).into_iter();
        let pods = members.filter_map(|member| match member {
            Member::Pod(pod) => Some(pod),
            Member::Address(_) => None,
        });
        pods.collect()
    }

    fn members_of_service(&self, name: &ServiceName) -> BTreeSet<Member> {
        let slices = self.slices_of_service.of(name);
        let slices = slices.filter_map(|slice| self.cluster_slices.get(slice));
        slices
            .flat_map(|slice| members(slice).map(|(member, _)| member))
            .collect()
    }

    fn resolve_all_of(&mut self, name: &ServiceName, dirty: &mut Dirty) {
        for member in self.members_of_service(name) {
            self.resolve_member(name, &member, dirty);
        }
    }

    pub(super) fn put_cluster_slice(&mut self, slice: Arc<ClusterSlice>, dirty: &mut Dirty) {
        let before = self.cluster_slices.get(&slice.name).cloned();
        if before.as_ref() == Some(&slice) {
            return;
        }
        self.change_cluster_slice(before, Some(slice), dirty);
    }

    pub(super) fn remove_cluster_slice(&mut self, name: &ObjectName, dirty: &mut Dirty) {
        if let Some(before) = self.cluster_slices.get(name).cloned() {
            self.change_cluster_slice(Some(before), None, dirty);
        }
    }

    fn change_cluster_slice(
        &mut self,
        before: Option<Arc<ClusterSlice>>,
        after: Option<Arc<ClusterSlice>>,
        dirty: &mut Dirty,
    ) {
        let mut concerned = Vec::new();
        let same_ports = match (&before, &after) {
            (Some(before), Some(after)) => {
                before.service == after.service && before.ports == after.ports
            }
            (None, _) | (_, None) => false,
        };
        if let Some(before) = &before {
            self.index_slice(before, false);
            self.cluster_slices.remove_cow(&before.name);
        }
        if let Some(after) = &after {
            self.index_slice(after, true);
            self.cluster_slices
                .insert_cow(after.name.clone(), Arc::clone(after));
        }
        for (slice, other) in [(&before, &after), (&after, &before)] {
            let Some(slice) = slice else {
                continue;
            };
            // The same endpoint with the same ports is resolved to the same.
            let kept = other.iter().filter(|_| same_ports);
            let kept: BTreeSet<&SliceEndpoint> = kept.flat_map(|other| &other.endpoints).collect();
            let changed = members(slice).filter(|(_, endpoint)| !kept.contains(endpoint));
            concerned.extend(changed.map(|(member, _)| (slice.service.clone(), member)));
            if !same_ports {
                dirty.shapes.insert(slice.service.clone());
                dirty.servers.insert(slice.service.clone());
            }
        }
        for (service, member) in concerned {
            self.resolve_member(&service, &member, dirty);
        }
        // A pod is told what it serves, not whether it is ready.
        let pods = |slice: &Option<Arc<ClusterSlice>>| -> BTreeSet<WorkloadName> {
            let slice = slice.iter();
            let pods = slice.flat_map(|slice| {
                members(slice).filter_map(|(member, _)| match member {
                    Member::Pod(pod) => Some(pod),
                    Member::Address(_) => None,
                })
            });
            pods.collect()
        };
        let (old, new) = (pods(&before), pods(&after));
        dirty.workloads.extend(match same_ports {
            true => &old ^ &new,
            false => &old | &new,
        });
    }

    /// Adds a slice to every index, or takes it from all of them. A slice that stays in force in
    /// another form is taken out and added again.
    fn index_slice(&mut self, slice: &ClusterSlice, there: bool) {
        self.slices_of_service
            .set(&slice.service, &slice.name, there);
        for (member, endpoint) in members(slice) {
            let of_member = (slice.service.clone(), member.clone());
            self.slices_of_member.set(&of_member, &slice.name, there);
            let any = self.slices_of_member.has(&of_member);
            if let Member::Pod(pod) = &member {
                self.services_of_pod.set(pod, &slice.service, any);
            }
            let at = (of_member, slice.name.clone());
            self.members_at.set(&endpoint.address, &at, there);
        }
    }

    pub(super) fn put_pod(&mut self, pod: Arc<Pod>, dirty: &mut Dirty) {
        let name = pod.name.clone();
        let before = self.pods.get(&name).cloned();
        if before.as_ref() != Some(&pod) {
            self.change_pod(&name, before.as_deref(), Some(pod), dirty);
        }
    }

    pub(super) fn remove_pod(&mut self, name: &WorkloadName, dirty: &mut Dirty) {
        if let Some(before) = self.pods.get(name).cloned() {
            self.change_pod(name, Some(&before), None, dirty);
        }
    }

    fn change_pod(
        &mut self,
        name: &WorkloadName,
        before: Option<&Pod>,
        after: Option<Arc<Pod>>,
        dirty: &mut Dirty,
    ) {
        let both = before.into_iter().chain(after.as_deref());
        let addresses: BTreeSet<IpAddr> = both.flat_map(|pod| &pod.addresses).copied().collect();
        if let Some(before) = before {
            self.pods_by_instance.remove_cow(&before.instance());
        }
        if let Some(after) = &after {
            self.pods_by_instance
                .insert_cow(after.instance(), name.clone());
        }
        self.change_workload(name, dirty, |world| {
            match after {
                Some(after) => world.pods.insert_cow(name.clone(), after),
                None => world.pods.remove_cow(name),
            };
        });
        let mut concerned: BTreeSet<(ServiceName, Member)> = BTreeSet::new();
        for address in addresses {
            let at = self.members_at.of(&address);
            concerned.extend(at.map(|(of_member, _slice)| of_member.clone()));
        }
        let services = self.services_of_pod.of(name);
        let member = Member::Pod(name.clone());
        concerned.extend(services.map(|service| (service.clone(), member.clone())));
        for (service, member) in concerned {
            self.resolve_member(&service, &member, dirty);
        }
    }

    /// Brings the endpoint that a member is up to date.
    fn resolve_member(&mut self, service: &ServiceName, member: &Member, dirty: &mut Dirty) {
        let after = self.resolve(service, member).map(Arc::new);
        let key = (service.clone(), member.clone());
        let before = self.resolved_members.get(&key).cloned();
        if before == after {
            return;
        }
        let endpoints = self.cluster_endpoints.get_or_default_cow(service.clone());
        let any_ready = endpoints.ready > 0;
        let len = endpoints.all.len();
        let changed = dirty.endpoints.entry(service.clone()).or_default();
        if let Some(before) = &before {
            let place = place_of(&before.instance);
            endpoints.all.remove(place, |one| one.member == *member);
            endpoints.ready -= usize::from(before.serving == Serving::Ready);
            changed.insert(place);
        }
        if let Some(after) = &after {
            let place = place_of(&after.instance);
            endpoints.all.insert(place, Arc::clone(after));
            endpoints.ready += usize::from(after.serving == Serving::Ready);
            changed.insert(place);
        }
        if (endpoints.ready > 0) != any_ready {
            dirty.recut.insert(service.clone());
        }
        if endpoints.all.len() != len {
            // A limit that is shared depends on how many share it.
            dirty.servers.insert(service.clone());
        }
        if endpoints.all.is_empty() {
            self.cluster_endpoints.remove_cow(service);
        }
        let declared = |endpoint: &Option<Arc<ClusterEndpoint>>| {
            let endpoint = endpoint.iter();
            endpoint
                .flat_map(|endpoint| endpoint.protocols.iter().copied())
                .collect()
        };
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = (declared(&before), declared(&after));
        if old != new {
            announce(&mut self.pod_protocols, service, &old, &new);
            dirty.shapes.insert(service.clone());
            dirty.servers.insert(service.clone());
        }
        match after {
            Some(after) => self.resolved_members.insert_cow(key, after),
            None => self.resolved_members.remove_cow(&key),
        };
    }

    /// Who stands where the slices of a service have a member; `None` where nobody serves, or where
    /// it is not known yet whether a sidecar stands there: unanswered is not absent, and nothing goes
    /// out in plaintext meanwhile.
    fn resolve(&self, service: &ServiceName, member: &Member) -> Option<ClusterEndpoint> {
        let key = (service.clone(), member.clone());
        let of_service = self.cluster_services.get(service);
        let v4 = of_service
            .and_then(|service| service.addresses.first())
            .is_none_or(IpAddr::is_ipv4);
        let mut found: Option<ClusterEndpoint> = None;
        for slice in self.slices_of_member.of(&key) {
            let Some(slice) = self.cluster_slices.get(slice) else {
                continue;
            };
            let of_member = members(slice).filter(|(one, _)| one == member);
            for (_, endpoint) in of_member.filter(|(_, e)| e.serving != Serving::No) {
                let Some(who) = self.who_is_at(slice, endpoint, member) else {
                    continue;
                };
                let into = found.get_or_insert(who);
                into.serving = into.serving.max(endpoint.serving);
                for (name, port) in &slice.ports {
                    add_port(&mut into.ports, name, (endpoint.address, *port), v4);
                }
            }
        }
        found.filter(|found| !found.ports.is_empty())
    }

    fn who_is_at(
        &self,
        slice: &ClusterSlice,
        endpoint: &SliceEndpoint,
        member: &Member,
    ) -> Option<ClusterEndpoint> {
        // Whatever a slice says: a pod with a sidecar is never spoken to in plaintext.
        let owner = self.mesh_pod_at(endpoint.address);
        let pod = match (&endpoint.pod, member) {
            (Some((_, uid)), Member::Pod(name)) => {
                let pod = self.pods.get(name)?;
                if !uid.is_empty() && *uid != pod.uid {
                    return None;
                }
                if pod.identity.is_none() && owner.is_some_and(|owner| owner.name != *name) {
                    return None;
                }
                Some(pod)
            }
            (None | Some(_), Member::Pod(_) | Member::Address(_)) => owner,
        };
        let protocols = pod.filter(|pod| pod.identity.is_some());
        let protocols = protocols.into_iter().flat_map(|pod| pod.protocols.iter());
        let protocols = protocols.map(|(port, protocol)| (*port, code_of(*protocol)));
        let (instance, workload, identity) = match pod {
            Some(pod) => (pod.instance(), pod.name.clone(), pod.identity.clone()),
            None => {
                let text = endpoint.address.to_string();
                let label = text.replace([':', '.'], "-");
                let name = format!("address-{}", label.trim_matches('-'));
                let workload = WorkloadName::new(slice.service.namespace(), &name).ok()?;
                (format!("address-{text}").into(), workload, None)
            }
        };
        Some(ClusterEndpoint {
            instance,
            workload,
            identity,
            zone: Arc::clone(&endpoint.zone),
            serving: endpoint.serving,
            ports: Vec::new(),
            protocols: protocols.collect(),
            member: member.clone(),
        })
    }

    /// The pod with a sidecar that an address belongs to.
    fn mesh_pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        let claims = self.claims.of(&address);
        let mut pods = claims.filter_map(|name| self.pods.get(name));
        pods.find(|pod| pod.identity.is_some() && pod.addresses.contains(&address))
    }

    // --- What the compiler reads.

    /// A Service of the cluster.
    pub fn cluster_service(&self, name: &ServiceName) -> Option<&Arc<ClusterService>> {
        self.cluster_services.get(name)
    }

    /// The workloads' ports that slices say a port of a service of the cluster leads to.
    pub fn cluster_targets(&self, name: &ServiceName, port: &str) -> BTreeSet<u16> {
        let slices = self.slices_of_service.of(name);
        let slices = slices.filter_map(|slice| self.cluster_slices.get(slice));
        let ports = slices.flat_map(|slice| &slice.ports);
        ports
            .filter(|(name, _)| **name == *port)
            .map(|(_, target)| *target)
            .collect()
    }

    /// What is spoken on a port of those who serve a service of the cluster, as they say it: pods by
    /// their annotation, processes by their registration.
    pub fn announced_at(&self, name: &ServiceName, port: u16) -> Option<AppProtocol> {
        let of_pods = self.pod_protocols.get(name).into_iter();
        let of_pods = of_pods.flat_map(|counts| counts.keys());
        let mut of_pods = of_pods.filter(|(of, _)| *of == port);
        let of_pods = of_pods.next().map(|(_, code)| protocol_of(*code));
        let mut of_processes = self.announced(name).filter(|(of, _)| *of == port);
        of_pods.or_else(|| of_processes.next().map(|(_, protocol)| protocol))
    }

    /// Those who serve a service of the cluster and whose places are in a range: the ready ones, or
    /// where none is, those that terminate and still serve.
    pub fn cluster_endpoints(
        &self,
        name: &ServiceName,
        places: std::ops::RangeInclusive<u32>,
    ) -> impl Iterator<Item = &Arc<ClusterEndpoint>> {
        let here = self.cluster_services.get(name);
        let of_service = here.and_then(|_| self.cluster_endpoints.get(name));
        of_service.into_iter().flat_map(move |of_service| {
            let any_ready = of_service.ready > 0;
            let all = of_service.all.range(places.clone());
            all.filter(move |one| !any_ready || one.serving == Serving::Ready)
        })
    }

    /// A pod with a sidecar.
    pub fn mesh_pod(&self, name: &WorkloadName) -> Option<&Arc<Pod>> {
        self.pods.get(name).filter(|pod| pod.identity.is_some())
    }

    /// The services of the cluster that a pod belongs to, each with the workloads' ports that its
    /// ports lead to there.
    pub fn services_of(&self, pod: &WorkloadName) -> Vec<ServedBy<'_>> {
        let services = self.services_of_pod.of(pod);
        let services = services.filter_map(|name| {
            let service = self.cluster_services.get(name)?;
            let key = (name.clone(), Member::Pod(pod.clone()));
            let slices = self.slices_of_member.of(&key);
            let slices = slices.filter_map(|slice| self.cluster_slices.get(slice));
            let targets: BTreeSet<(&str, u16)> = slices
                .flat_map(|slice| &slice.ports)
                .map(|(name, target)| (&**name, *target))
                .collect();
            let ports = service.ports.iter().flat_map(|port| {
                let of_port = targets.iter().filter(|(name, _)| *name == &*port.name);
                of_port.map(|(_, target)| (port.port, *target))
            });
            Some(ServedBy {
                service,
                ports: ports.collect(),
            })
        });
        services.collect()
    }
}

/// One address per port: of several that of the preferred family, then the first.
fn add_port(
    ports: &mut Vec<(Arc<str>, SocketAddr)>,
    name: &Arc<str>,
    (address, port): (IpAddr, u16),
    v4: bool,
) {
    let new = SocketAddr::new(address, port);
    match ports.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => {
            let rank = |at: &SocketAddr| (at.is_ipv4() != v4, *at);
            if rank(&new) < rank(known) {
                *known = new;
            }
        }
        None => {
            ports.push((Arc::clone(name), new));
            ports.sort();
        }
    }
}
