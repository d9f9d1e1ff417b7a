//! From what the control plane said to the snapshot that connections and requests use.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};

use weft_core::locality::{self, Distribution};
use weft_core::model::{self, MeshConfig, Namespace};
use weft_core::name::ServiceName;
use weft_core::policy::TrafficPolicy;
use weft_core::route::{Route, in_force};
use weft_core::server::ServerPolicy;
use weft_proto::resource::Kind;

use super::Mesh;
use super::endpoint::{Endpoint, EndpointKey, Live};
use super::outside::{Named, Outside, unresolved};
use super::port::{PortView, Tiers};
use super::server::Own;
use super::snapshot::{OwnExternals, ServiceView, Snapshot, Target, as_service};
use crate::telemetry::metrics::{Direction, HttpKey};

/// What the discovery client hands over after each change.
#[derive(Debug, Default)]
pub struct World {
    /// Mesh-wide settings.
    pub config: Option<MeshConfig>,
    /// What holds for this sidecar's namespace, if anything.
    pub namespace: Option<Namespace>,
    /// Services with their endpoints, and all names they go by. One that is the same as before is
    /// the same `Arc`.
    pub services: Vec<(Arc<model::Service>, Vec<String>)>,
    /// Workloads with all names they go by.
    pub workloads: Vec<(model::Workload, Vec<String>)>,
    /// Names that the control plane said do not exist.
    pub absent: HashSet<String>,
    /// What the sidecars of services enforce, this one among them.
    pub server: BTreeMap<ServiceName, ServerPolicy>,
    /// Services that there is nothing of the kind for.
    pub server_absent: HashSet<String>,
    /// Policies of services, and workloads, that are known by a rejected answer only: what they ask
    /// for cannot be enforced here.
    pub refused: HashSet<(Kind, String)>,
}

impl Mesh {
    /// Swaps in a new world. Live state of endpoints that stay is carried over, that of the
    /// others is dropped with the last connection that uses it.
    pub fn publish(&self, world: World) {
        let now = crate::clock::now();
        let mut workloads = world.workloads.iter().map(|(workload, _)| workload);
        let followed = self.followed();
        let followed = followed.and_then(|own| workloads.find(|w| w.name.to_string() == own));
        let moved = followed.is_some_and(|own| self.learn_place(&own.place));
        self.server
            .publish(followed.map(Own::of), &self.source, &world, now);
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::with_capacity(live.len());
        let old = self.snapshot.load();
        // A label, as names of services, hosts and addresses never are.
        let is_absent = world.absent.contains(&self.namespace);
        let mut snapshot = Snapshot::of(world.config, world.namespace, is_absent);
        let own_routes = Arc::clone(&snapshot.own_routes);
        for name in world.absent {
            let used = old.absent.get(&name).map(Arc::clone);
            let used = used.unwrap_or_else(|| Arc::new(AtomicU64::new(now.as_nanos())));
            snapshot.absent.insert(name, used);
        }
        for (service, aliases) in world.services {
            let previous = old.services.get(&service.name);
            let name = service.name.clone();
            for alias in aliases {
                let target = Target::Service(name.clone());
                snapshot.aliases.insert(alias, target);
            }
            let own_routes = own_routes.get(&name).map(Vec::as_slice);
            let routes_before = old.own_routes.get(&name).map(Vec::as_slice);
            let same = previous.filter(|view| {
                !moved && view.is_of(&service) && same_routes(own_routes, routes_before)
            });
            let view = match same {
                Some(view) => view.keep(&mut live, &mut next),
                None => {
                    let previous = previous.map(|view| &**view);
                    self.view(service, own_routes, previous, &mut live, &mut next)
                }
            };
            snapshot.services.insert(name, view);
        }
        for (workload, aliases) in world.workloads {
            let previous = old.workloads.get(&workload.name).map(|view| &**view);
            let name = workload.name.clone();
            for alias in aliases {
                let target = Target::Workload(name.clone());
                snapshot.aliases.insert(alias, target);
            }
            if let Some(service) = as_service(workload) {
                let view = self.view(Arc::new(service), None, previous, &mut live, &mut next);
                snapshot.workloads.insert(name, view);
            }
        }
        *live = next;
        self.snapshot.store(Arc::new(snapshot));
        drop(live);
        self.changed.send_modify(|generation| *generation += 1);
    }

    pub(super) fn view(
        &self,
        model: Arc<model::Service>,
        own_routes: Option<&[Arc<Route>]>,
        previous: Option<&ServiceView>,
        old: &mut HashMap<EndpointKey, Arc<Live>>,
        next: &mut HashMap<EndpointKey, Arc<Live>>,
    ) -> Arc<ServiceView> {
        let external = model.external.clone();
        let names = external.as_ref().map(|external| self.names.of(external));
        let (hostname, models) = match external.as_ref().zip(names.as_ref()) {
            Some((external, names)) => {
                let addresses = |name: &str| match names.get(name) {
                    Some(Named::Addresses(addresses)) => &**addresses,
                    Some(Named::Nothing(_)) | None => &[],
                };
                let hostname = external.hosts.first().cloned();
                let hostname = hostname.unwrap_or_else(|| model.name.hostname().into());
                (hostname, external.endpoints(&model.name, addresses))
            }
            None => (model.name.hostname().into(), model.endpoints.clone()),
        };
        let models: Vec<Arc<model::Endpoint>> = models.into_iter().map(Arc::new).collect();
        let mut ports = HashMap::with_capacity(model.ports.len());
        for port in &model.ports {
            let policy = model.policies.get(&port.port).map(Arc::clone);
            let policy: Arc<TrafficPolicy> = policy.unwrap_or_default();
            let mut endpoints = Vec::with_capacity(models.len());
            let (near, tiers) = self.near(model.distribution, &models, port.port);
            for endpoint in near {
                let Some(address) = endpoint.address_for(port.port) else {
                    continue;
                };
                let key = EndpointKey {
                    service: model.name.clone(),
                    port: port.port,
                    instance: Arc::clone(&endpoint.instance),
                    address,
                };
                let live = match old.remove(&key) {
                    Some(live) => {
                        live.follow(&policy);
                        live
                    }
                    None => Arc::new(self.fresh(&key, endpoint, &policy)),
                };
                next.insert(key.clone(), Arc::clone(&live));
                endpoints.push(Arc::new(Endpoint {
                    key,
                    model: Arc::clone(endpoint),
                    live,
                }));
            }
            let routes = in_force(port.port, own_routes, &model.routes);
            let previous = previous.and_then(|view| view.port(port.port));
            let name = (model.name.clone(), Arc::clone(&hostname));
            let mut view = PortView::new(name, port, endpoints, policy, routes, previous);
            view.tiers = tiers;
            if let Some((external, names)) = external.as_ref().zip(names.as_ref()) {
                let before = previous.and_then(|port| port.outside.as_ref());
                let outside = Outside::of(external, port.port, port.protocol, before);
                view.outside = Some(outside);
                view.unresolved = unresolved(external, names).err();
            }
            ports.insert(port.port, Arc::new(view));
        }
        let used = match previous {
            Some(view) => view.used(),
            None => crate::clock::now().as_nanos(),
        };
        Arc::new(ServiceView {
            model,
            hostname,
            ports,
            last_used: AtomicU64::new(used),
        })
    }

    /// Those of a port's endpoints that callers here go to, and how near they are.
    fn near<'m>(
        &self,
        distribution: Distribution,
        models: &'m [Arc<model::Endpoint>],
        port: u16,
    ) -> (Vec<&'m Arc<model::Endpoint>>, Tiers) {
        let serving = models.iter().filter(|one| one.address_for(port).is_some());
        let serving: Vec<&Arc<model::Endpoint>> = serving.collect();
        let all: Vec<&model::Endpoint> = serving.iter().map(|one| &***one).collect();
        let place = self.place();
        let tiers = locality::tiers(distribution, &place, &all);
        let many = serving.len();
        let near = serving.into_iter().zip(tiers);
        let near = near.filter_map(|(one, tier)| Some((one, tier?)));
        let (near, each): (Vec<_>, Vec<u8>) = near.unzip();
        let left_out = (near.len() < many).then(|| (place.node, many - near.len()));
        (near, Tiers::new(each, left_out))
    }

    fn fresh(&self, key: &EndpointKey, endpoint: &model::Endpoint, policy: &TrafficPolicy) -> Live {
        let stats = self.metrics.http(HttpKey {
            direction: Direction::Outbound,
            service: key.service.to_string().into(),
            peer: endpoint.workload.to_string().into(),
        });
        Live::new(stats, policy)
    }
}

impl Snapshot {
    /// What holds for the mesh and for this sidecar's namespace, and nothing else yet; `is_absent` where
    /// nothing holds for the namespace.
    fn of(config: Option<MeshConfig>, namespace: Option<Namespace>, is_absent: bool) -> Self {
        let is_known = namespace.is_some() || is_absent;
        let namespace = namespace.unwrap_or_default();
        let config = config.map(|config| MeshConfig {
            unknown_destinations: namespace
                .unknown_destinations
                .unwrap_or(config.unknown_destinations),
            ..config
        });
        Self {
            config: config.map(Arc::new),
            namespace: is_known,
            own_routes: Arc::new(namespace.routes),
            own_externals: Arc::new(OwnExternals {
                hosts: namespace.external_hosts,
                addresses: namespace.external_addresses,
            }),
            ..Self::default()
        }
    }
}

impl ServiceView {
    /// Whether it is the view of this very service, and says all about it: outside the mesh,
    /// endpoints change without the control plane.
    fn is_of(&self, service: &Arc<model::Service>) -> bool {
        Arc::ptr_eq(&self.model, service) && service.external.is_none()
    }

    /// The same view in the next snapshot, with the live state of its endpoints.
    fn keep(
        self: &Arc<Self>,
        old: &mut HashMap<EndpointKey, Arc<Live>>,
        next: &mut HashMap<EndpointKey, Arc<Live>>,
    ) -> Arc<Self> {
        let endpoints = self.ports().flat_map(|port| &port.endpoints);
        next.extend(endpoints.filter_map(|endpoint| old.remove_entry(&endpoint.key)));
        Arc::clone(self)
    }
}

/// Whether the routes that a sidecar's namespace has for a service are the very same.
fn same_routes(one: Option<&[Arc<Route>]>, other: Option<&[Arc<Route>]>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            let mut pairs = one.iter().zip(other);
            one.len() == other.len() && pairs.all(|(one, other)| Arc::ptr_eq(one, other))
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}
