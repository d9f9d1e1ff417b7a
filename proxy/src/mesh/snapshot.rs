//! Everything known of the mesh at one moment: immutable, swapped in whole.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use weft_core::model::{self, MeshConfig, Transport};
use weft_core::name::{ServiceName, WorkloadName};
use weft_core::route::Route;

use super::endpoint::{Endpoint, EndpointKey};
use super::port::PortView;

/// A service as the data path uses it.
#[derive(Debug)]
pub struct ServiceView {
    /// What the control plane said.
    pub model: Arc<model::Service>,
    /// SNI towards its endpoints.
    pub hostname: Arc<str>,
    pub(super) ports: HashMap<u16, Arc<PortView>>,
    pub(super) last_used: AtomicU64,
}

impl ServiceView {
    /// Its ports.
    pub fn ports(&self) -> impl Iterator<Item = &Arc<PortView>> {
        self.ports.values()
    }

    /// One of its ports, if it has it.
    pub fn port(&self, port: u16) -> Option<&Arc<PortView>> {
        self.ports.get(&port)
    }
}

/// Everything known at one moment.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// Mesh-wide settings; `None` until they came.
    pub config: Option<Arc<MeshConfig>>,
    /// Whether the control plane has said what holds for this sidecar's namespace.
    pub(super) namespace: bool,
    /// The services held.
    pub services: HashMap<ServiceName, Arc<ServiceView>>,
    /// The workloads held, for being dialled by their own address.
    pub workloads: HashMap<WorkloadName, Arc<ServiceView>>,
    /// What hostnames and addresses stand for.
    pub(super) aliases: HashMap<String, Target>,
    /// Names that the control plane said do not exist, with the time of their last use.
    pub(super) absent: HashMap<String, Arc<AtomicU64>>,
    /// Routes of this sidecar's namespace.
    pub(super) own_routes: Arc<BTreeMap<ServiceName, Vec<Arc<Route>>>>,
    /// What leads to services outside the mesh for this sidecar's namespace only.
    pub(super) own_externals: Arc<OwnExternals>,
}

/// Names and addresses of services outside the mesh that one namespace has.
#[derive(Debug, Default)]
pub(super) struct OwnExternals {
    pub(super) hosts: BTreeMap<Arc<str>, ServiceName>,
    pub(super) addresses: BTreeMap<SocketAddr, ServiceName>,
}

#[derive(Debug, Clone)]
pub(super) enum Target {
    Service(ServiceName),
    Workload(WorkloadName),
}

impl Snapshot {
    /// Every port that is held, of services and of workloads.
    pub fn ports(&self) -> impl Iterator<Item = &Arc<PortView>> {
        let views = self.services.values().chain(self.workloads.values());
        views.flat_map(|view| view.ports())
    }

    /// Whether an endpoint is still there.
    pub fn holds(&self, key: &EndpointKey) -> bool {
        self.endpoint(key).is_some()
    }

    /// The port that an endpoint serves, or served.
    pub fn port_of(&self, key: &EndpointKey) -> Option<&Arc<PortView>> {
        let workload = || WorkloadName::new(key.service.namespace(), key.service.name()).ok();
        let view = self.services.get(&key.service);
        let view = view.or_else(|| self.workloads.get(&workload()?));
        view?.port(key.port)
    }

    /// An endpoint with its port, if it is still there. This is no use of the service.
    pub fn endpoint(&self, key: &EndpointKey) -> Option<(&Arc<PortView>, &Arc<Endpoint>)> {
        let port = self.port_of(key)?;
        let endpoint = port
            .endpoints
            .iter()
            .find(|endpoint| endpoint.key == *key)?;
        Some((port, endpoint))
    }

    /// `None`: unanswered. `Some(None)`: there is none.
    pub(super) fn lookup(&self, name: &str) -> Option<Option<Arc<ServiceView>>> {
        if let Ok(service) = name.parse::<ServiceName>()
            && let Some(view) = self.services.get(&service)
        {
            return Some(Some(Arc::clone(view)));
        }
        match self.aliases.get(name) {
            Some(Target::Service(name)) => Some(self.services.get(name).cloned()),
            Some(Target::Workload(name)) => Some(self.workloads.get(name).cloned()),
            None => {
                let used = self.absent.get(name)?;
                used.store(crate::clock::now().as_nanos(), Ordering::Relaxed);
                Some(None)
            }
        }
    }
}

impl ServiceView {
    pub(super) fn touch(&self) {
        self.last_used
            .store(crate::clock::now().as_nanos(), Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// Its virtual addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.model.addresses
    }
}

/// A workload dialled by its own address is a service with one endpoint: itself.
pub(super) fn as_service(workload: model::Workload) -> Option<model::Service> {
    let address = *workload.addresses.first()?;
    let name = ServiceName::new(workload.name.namespace(), workload.name.name()).ok()?;
    let endpoint = model::Endpoint {
        instance: workload.instance,
        workload: workload.name,
        identity: Some(workload.identity),
        zone: workload.place.zone,
        placement: Default::default(),
        weight: 100,
        transport: match workload.transport {
            Transport::Mesh => Transport::Mesh,
            Transport::Plain => Transport::Plain,
        },
        ports: workload
            .ports
            .iter()
            .map(|port| model::EndpointPort {
                service_port: port.port,
                address: SocketAddr::new(address, port.port),
            })
            .collect(),
    };
    Some(model::Service {
        name,
        addresses: workload.addresses,
        ports: workload.ports,
        endpoints: vec![endpoint],
        endpoint_slices: 0,
        distribution: Default::default(),
        policies: BTreeMap::new(),
        routes: Vec::new(),
        external: None,
    })
}
