//! Services, endpoint slices, pods and nodes of a Kubernetes cluster.
//!
//! A slice names pods and addresses; what stands there follows from the pods. Who serves a service
//! is kept resolved ([`ClusterEndpoint`]), and brought up to date with whatever it was resolved from.

mod changes;
mod read;
mod resolve;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::external::External;
use weft_core::locality::Distribution;
use weft_core::model::AppProtocol;
use weft_core::name::{ServiceName, SpiffeId, WorkloadName};

use super::index::Endpoints;
use crate::model::ObjectName;

/// Slices of one service that are used, the first by name. The cluster's controller puts 100
/// endpoints into one: those of 50,000 then.
pub const SERVICE_SLICES_MAX: usize = 500;

/// A Service of the cluster that is reached by an address or through its pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterService {
    /// Its name.
    pub name: ServiceName,
    /// Its cluster IPs; none where it is headless.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports, ascending, each once.
    pub ports: Vec<ClusterPort>,
    /// How far its callers go for an endpoint.
    pub distribution: Distribution,
    /// Where it leads, if it is a name for something outside the mesh (`type: ExternalName`): then it
    /// has virtual addresses and no endpoints.
    pub external: Option<Arc<External>>,
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
    /// The node that it runs on; empty when unknown.
    pub node: Arc<str>,
    /// Zones whose callers are to go to it, ascending; none where that is not said.
    pub zone_hints: Arc<[Arc<str>]>,
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
    /// The node that it runs on; empty before it has one.
    pub node: Arc<str>,
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
    /// The node that it runs on; empty when unknown.
    pub node: Arc<str>,
    /// Zones whose callers are to go to it; none where that is not said.
    pub zone_hints: Arc<[Arc<str>]>,
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

/// A slice with its members in order, so that those of one are found without looking at all.
#[derive(Debug)]
pub(super) struct IndexedSlice {
    slice: Arc<ClusterSlice>,
    /// Each endpoint's member with its place in the slice, ascending.
    members: Vec<(Member, usize)>,
}

impl IndexedSlice {
    fn new(slice: Arc<ClusterSlice>) -> Self {
        let endpoints = slice.endpoints.iter().enumerate();
        let members = endpoints.map(|(place, endpoint)| {
            let pod = endpoint.pod.as_ref();
            let pod =
                pod.and_then(|(pod, _uid)| WorkloadName::new(slice.service.namespace(), pod).ok());
            (
                pod.map_or(Member::Address(endpoint.address), Member::Pod),
                place,
            )
        });
        let mut members: Vec<_> = members.collect();
        members.sort();
        Self { slice, members }
    }

    /// Every endpoint with what it is.
    fn members(&self) -> impl Iterator<Item = (&Member, &SliceEndpoint)> {
        let all = self.members.iter();
        all.filter_map(|(member, place)| Some((member, self.slice.endpoints.get(*place)?)))
    }

    /// The endpoints that are one member.
    fn of(&self, member: &Member) -> impl Iterator<Item = &SliceEndpoint> {
        let first = self.members.partition_point(|(one, _)| one < member);
        let rest = self.members[first..].iter();
        let own = rest.take_while(move |(one, _)| one == member);
        own.filter_map(|(_, place)| self.slice.endpoints.get(*place))
    }

    fn pods(&self) -> BTreeSet<WorkloadName> {
        let pods = self.members.iter().filter_map(|(member, _)| match member {
            Member::Pod(pod) => Some(pod.clone()),
            Member::Address(_) => None,
        });
        pods.collect()
    }
}
