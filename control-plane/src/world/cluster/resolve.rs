//! Who stands where slices say that somebody serves a service.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::name::{ServiceName, WorkloadName};

use super::{ClusterEndpoint, Member, Pod, Serving, SliceEndpoint};
use crate::world::World;
use crate::world::dirty::Dirty;
use crate::world::workloads::{announce, code_of, place_of};

impl World {
    /// Brings the endpoint that a member is up to date.
    pub(super) fn resolve_member(
        &mut self,
        service: &ServiceName,
        member: &Member,
        dirty: &mut Dirty,
    ) {
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
            let serving = slice.of(member).filter(|e| e.serving != Serving::No);
            for endpoint in serving {
                let Some(who) = self.who_is_at(service, endpoint, member) else {
                    continue;
                };
                let into = found.get_or_insert(who);
                into.serving = into.serving.max(endpoint.serving);
                for (name, port) in &slice.slice.ports {
                    add_port(&mut into.ports, name, (endpoint.address, *port), v4);
                }
            }
        }
        found.filter(|found| !found.ports.is_empty())
    }

    fn who_is_at(
        &self,
        service: &ServiceName,
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
                let workload = WorkloadName::new(service.namespace(), &name).ok()?;
                (format!("address-{text}").into(), workload, None)
            }
        };
        Some(ClusterEndpoint {
            instance,
            workload,
            identity,
            zone: Arc::clone(&endpoint.zone),
            node: Arc::clone(&endpoint.node),
            zone_hints: Arc::clone(&endpoint.zone_hints),
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
