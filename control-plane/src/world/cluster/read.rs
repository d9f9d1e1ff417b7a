//! What the compiler reads of a cluster.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_core::model::AppProtocol;
use weft_core::name::{ServiceName, WorkloadName};

use super::{ClusterEndpoint, ClusterService, Member, Pod, ServedBy, Serving};
use crate::world::{World, protocol_of};

impl World {
    /// A Service of the cluster.
    pub fn cluster_service(&self, name: &ServiceName) -> Option<&Arc<ClusterService>> {
        self.cluster_services.get(name)
    }

    /// The workloads' ports that slices say a port of a service of the cluster leads to.
    pub fn cluster_targets(&self, name: &ServiceName, port: &str) -> BTreeSet<u16> {
        let slices = self.slices_of_service.of(name);
        let slices = slices.filter_map(|slice| self.cluster_slices.get(slice));
        let ports = slices.flat_map(|slice| &slice.slice.ports);
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
                .flat_map(|slice| &slice.slice.ports)
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

    /// The zone of a node; empty when unknown.
    pub fn node_zone(&self, node: &str) -> &str {
        self.nodes.get(node).map_or("", |zone| zone)
    }

    /// Whether a service of the cluster has more slices than are used.
    pub fn is_partial(&self, name: &ServiceName) -> bool {
        self.partial.get(name).is_some()
    }

    /// Services of the cluster that have more slices than are used, with how many are left out.
    pub fn partial(&self) -> impl Iterator<Item = (&ServiceName, usize)> {
        let all = (&self.partial).into_iter();
        all.map(|(name, many)| (name, *many))
    }
}
