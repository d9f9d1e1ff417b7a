//! What this sidecar knows of the mesh: an immutable snapshot, swapped in whole, and the demand
//! for what it does not know yet.

mod concurrency;
mod endpoint;
mod gate;
mod outside;
mod port;
mod publish;
mod rate;
mod recent;
mod server;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use weft_core::locality::Locality;
use weft_core::model::{AppProtocol, UnknownDestinations};
use weft_core::name::{CLUSTER_DOMAIN, ServiceName, WorkloadName};
use weft_core::rate::RuleName;
use weft_core::rate::lease::{Grant, Report};
use weft_core::reason::Reason;
use weft_core::time::Instant;
use weft_proto::resource::Kind;

pub use concurrency::{Concurrency, UnderWay};
pub use endpoint::{Call, Endpoint, EndpointKey, Live};
pub use gate::{Admitted, Full};
pub use outside::{ALPN_HTTP1, ALPN_HTTP2, Named, Outside, OutsideTls};
pub use port::{ConnectionLimit, Counted, PortCall, PortView, Tiers};
pub use publish::World;
pub use rate::{RateRefusal, Rated};
pub use server::{ServerSlot, ServerView, Shed};
pub use snapshot::{ServiceView, Snapshot};

use outside::Names;
use server::{Own, Server};

use crate::config::ProxyConfig;
use crate::telemetry::metrics::{Direction, HttpKey, HttpStats, Metrics, RateSample};

/// Names asked for at the same time that the control plane has not answered yet.
const DEMAND_MAX: usize = 4096;

/// A name that some connection waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Demand {
    /// What it may be.
    pub kind: Kind,
    /// Hostname, address, or NAMESPACE/NAME.
    pub name: String,
}

/// Where a destination leads.
#[derive(Debug, Clone)]
pub enum Destination {
    /// To a port of a service, or of a workload dialled directly.
    Mesh(Arc<PortView>),
    /// Out of the mesh, declared to be so.
    Outside,
}

/// The shared, current knowledge of the mesh.
#[derive(Debug)]
pub struct Mesh {
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
    demand: mpsc::Sender<Demand>,
    live: Mutex<HashMap<EndpointKey, Arc<Live>>>,
    names: Names,
    server: Server,
    metrics: Metrics,
    wait: Duration,
    /// This sidecar's own.
    namespace: String,
    /// The domain of the names in the cluster's DNS, in lower case.
    cluster_domain: String,
    /// Where the workload runs as it was configured, and as the control plane says: a pod never moves.
    place: Locality,
    node_told: OnceLock<String>,
    zone_told: OnceLock<String>,
    /// Who calls, `NAMESPACE/NAME`: a key to balance by.
    source: String,
    /// Whether the control plane says what the workload serves.
    in_pod: bool,
}

impl Mesh {
    /// Nothing known yet. `wait` is how long a connection waits for the control plane's answer.
    /// The receiver is for the discovery client.
    pub fn new(metrics: Metrics, config: &ProxyConfig) -> (Arc<Self>, mpsc::Receiver<Demand>) {
        let (demand, demanded) = mpsc::channel(config.limits.max_destinations.clamp(1, DEMAND_MAX));
        let mesh = Self {
            snapshot: ArcSwap::default(),
            changed: watch::Sender::new(0),
            demand,
            live: Mutex::default(),
            names: Names::default(),
            server: Server::new(own(config), config.timeouts.discovery_wait),
            metrics,
            wait: config.timeouts.discovery_wait,
            namespace: config.workload.namespace.clone(),
            cluster_domain: cluster_domain(config),
            place: Locality {
                node: String::new(),
                zone: config.workload.zone.clone(),
            },
            node_told: OnceLock::new(),
            zone_told: OnceLock::new(),
            source: format!("{}/{}", config.workload.namespace, config.workload.name),
            in_pod: config.is_in_pod(),
        };
        (Arc::new(mesh), demanded)
    }

    /// The namespace of this sidecar's workload.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The domain of the names in the cluster's DNS, in lower case.
    pub fn cluster_domain(&self) -> &str {
        &self.cluster_domain
    }

    /// The services that this sidecar's workload serves.
    pub fn services(&self) -> Vec<ServiceName> {
        self.server.own().services.clone()
    }

    /// What is declared to be spoken on a port of the application, where the control plane says so.
    pub fn own_protocol(&self, port: u16) -> Option<AppProtocol> {
        self.server.own().protocols.get(&port).copied()
    }

    /// The workload's own resource, which the control plane says what it serves with: in a pod.
    pub fn followed(&self) -> Option<&str> {
        self.in_pod.then_some(&*self.source)
    }

    /// The service of this workload that a request to `authority` is for: the one that goes by that
    /// name, else the first. `None` where the workload serves none.
    pub fn called_service(&self, authority: &str) -> Option<ServiceName> {
        let named = ServiceName::from_host(authority, &self.namespace, &self.cluster_domain);
        let own = self.server.own();
        let services = &own.services;
        let called = services
            .iter()
            .find(|service| named.as_ref() == Some(service));
        called.or_else(|| services.first()).cloned()
    }

    /// What the control plane asks for and this sidecar cannot enforce, with nothing before it to hold
    /// to: nobody is let in.
    pub fn unenforceable(&self) -> Option<Arc<String>> {
        self.server.unenforceable()
    }

    /// What this sidecar enforces on a port of its application; waits for the control plane's
    /// answer, though not for long.
    pub async fn server_port(&self, port: u16) -> Arc<ServerSlot> {
        self.server.port(port).await
    }

    /// Every limit on the rate of requests here, as a scrape sees it.
    pub fn rate_samples(&self) -> Vec<RateSample> {
        self.server.rules.samples()
    }

    /// Limits on the rate that are shared with other sidecars.
    pub fn shared_rates(&self) -> BTreeSet<RuleName> {
        self.server.rules.shared()
    }

    /// What is held of every limit that is shared, with what it was asked for since the last time,
    /// if that is to be told.
    pub fn rate_reports(&self, demand: bool) -> Vec<Report> {
        let now = demand.then(crate::clock::now);
        self.server.rules.reports(now)
    }

    /// Leases come on a new stream from now on.
    pub fn begin_leases(&self) {
        self.server.rules.begin_stream();
    }

    /// The control plane can be asked for leases, or cannot: then those that it gave end after a
    /// while.
    pub fn leases_in_touch(&self, in_touch: bool) {
        let now = crate::clock::now();
        match in_touch {
            true => self.server.rules.regain_touch(now),
            false => self.server.rules.lose_touch(now),
        }
    }

    /// Takes a lease of a limit that is shared.
    pub fn take_lease(&self, grant: Grant) {
        self.server.rules.lease(grant, crate::clock::now());
    }

    /// The limits on requests to the application, by its port, where there are any.
    pub fn server_limits(&self) -> Vec<(u16, Arc<Concurrency>)> {
        self.server.limits()
    }

    /// Where this sidecar runs; empty when unknown.
    pub fn zone(&self) -> &str {
        match self.place.zone.as_str() {
            "" => self.zone_told.get().map_or("", String::as_str),
            configured => configured,
        }
    }

    /// Where this sidecar runs.
    pub fn place(&self) -> Locality {
        Locality {
            node: self.node_told.get().cloned().unwrap_or_default(),
            zone: self.zone().to_owned(),
        }
    }

    /// Takes what the control plane says of where this sidecar runs; whether that is news.
    fn learn_place(&self, place: &Locality) -> bool {
        let learn = |told: &OnceLock<String>, text: &String| {
            !text.is_empty() && told.set(text.clone()).is_ok()
        };
        let node = learn(&self.node_told, &place.node);
        let zone = learn(&self.zone_told, &place.zone);
        node || zone
    }

    /// Who calls, `NAMESPACE/NAME`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Everything known now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Counts the snapshots; changes whenever one is swapped in.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Which snapshot is in force, cheaply.
    pub fn generation(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Where a connection to `destination` leads; waits for the control plane's answer where
    /// there is none yet. Unanswered is not absent: that fails, it never goes out in plaintext.
    pub async fn resolve(&self, destination: SocketAddr) -> Result<Destination, Reason> {
        let ip = destination.ip().to_canonical();
        let at = SocketAddr::new(ip, destination.port());
        let found = self.wait_for(|snapshot| {
            let Some(config) = &snapshot.config else {
                return Lookup::Unanswered(None);
            };
            if !snapshot.namespace {
                return Lookup::Unanswered(None);
            }
            let external = snapshot.external_name(config, at);
            let kind = if config.is_virtual(ip) {
                Kind::Service
            } else if config.is_workload(ip) {
                Kind::Workload
            } else if let Some(name) = external {
                return snapshot.external_at(at, name);
            } else {
                return Lookup::Found(match config.unknown_destinations {
                    UnknownDestinations::Passthrough => Ok(Destination::Outside),
                    UnknownDestinations::Refuse => Err(Reason::DestinationRefused),
                });
            };
            let name = ip.to_string();
            match snapshot.lookup(&name) {
                Some(Some(view)) => Lookup::Found(port_of(&view, destination.port())),
                // Nobody declares the address of a workload of the mesh to be outside of it. One in a
                // workload range that belongs to nobody is declared outside.
                Some(None) if kind == Kind::Workload => match external {
                    Some(name) => snapshot.external_at(at, name),
                    None => Lookup::Found(Ok(Destination::Outside)),
                },
                Some(None) => Lookup::Found(Err(Reason::ServiceNotFound)),
                None => Lookup::Unanswered(Some(Demand { kind, name })),
            }
        });
        found.await?
    }

    /// The service at an address, where it is known already.
    pub fn service_at(&self, address: IpAddr) -> Option<ServiceName> {
        let name = address.to_canonical().to_string();
        let view = self.snapshot.load().lookup(&name)??;
        Some(view.model.name.clone())
    }

    /// A port of a service by name; waits for the control plane's answer.
    pub async fn resolve_service(
        &self,
        service: &ServiceName,
        port: u16,
    ) -> Result<Arc<PortView>, Reason> {
        let name = service.to_string();
        let view = self.service(&name).await?.ok_or(Reason::ServiceNotFound)?;
        view.touch();
        view.port(port).cloned().ok_or(Reason::PortNotDeclared)
    }

    /// The service that goes by `name`: a hostname, an address or NAMESPACE/NAME; `None` when the
    /// control plane said that there is none.
    pub async fn service(&self, name: &str) -> Result<Option<Arc<ServiceView>>, Reason> {
        let found = self.wait_for(|snapshot| match snapshot.lookup(name) {
            _ if !snapshot.namespace => Lookup::Unanswered(None),
            Some(found) => Lookup::Found(found),
            None => Lookup::Unanswered(Some(Demand {
                kind: Kind::Service,
                name: name.to_owned(),
            })),
        });
        found.await
    }

    /// A port of a service that is known already, without waiting.
    pub fn known(&self, service: &ServiceName, port: u16) -> Option<Arc<PortView>> {
        let snapshot = self.snapshot.load();
        let view = snapshot.services.get(service)?;
        view.touch();
        view.port(port).cloned()
    }

    /// What the mesh itself answered on a port.
    pub fn own_stats(&self, port: &PortView) -> Arc<HttpStats> {
        self.metrics.http(HttpKey {
            direction: Direction::Outbound,
            service: port.service.to_string().into(),
            peer: "".into(),
        })
    }

    /// The same port in the snapshot of now; `None` when it is gone.
    pub fn refresh(&self, port: &PortView) -> Option<Arc<PortView>> {
        let snapshot = self.snapshot.load();
        let view = snapshot.services.get(&port.service).or_else(|| {
            let name = WorkloadName::new(port.service.namespace(), port.service.name()).ok()?;
            snapshot.workloads.get(&name)
        })?;
        view.touch();
        view.port(port.port).cloned()
    }

    async fn wait_for<T>(&self, look: impl Fn(&Snapshot) -> Lookup<T>) -> Result<T, Reason> {
        let mut changes = self.changed.subscribe();
        let mut asked = None;
        let waiting = async {
            loop {
                changes.mark_unchanged();
                match look(&self.snapshot.load()) {
                    Lookup::Found(found) => return Ok(found),
                    Lookup::Unanswered(demand) => {
                        if demand.is_some() && asked != demand {
                            if let Some(demand) = demand.clone() {
                                self.demand(demand)?;
                            }
                            asked = demand;
                        }
                    }
                }
                if changes.changed().await.is_err() {
                    return Err(Reason::Draining);
                }
            }
        };
        match timeout(self.wait, waiting).await {
            Ok(result) => result,
            Err(_elapsed) => Err(Reason::DiscoveryUnavailable),
        }
    }

    fn demand(&self, demand: Demand) -> Result<(), Reason> {
        // A full queue means that thousands of names wait already: the answer is the same as when
        // the control plane does not answer in time.
        self.demand
            .try_send(demand)
            .map_err(|_full| Reason::DiscoveryUnavailable)
    }

    /// When a name that does not exist was last asked for; `None` where it is not known to be absent.
    pub fn absent_used(&self, name: &str) -> Option<Instant> {
        let snapshot = self.snapshot.load();
        let used = snapshot.absent.get(name)?;
        Some(Instant::from_nanos(used.load(Ordering::Relaxed)))
    }

    /// Names of services and workloads that nobody has used for `idle`, and that no connection has.
    pub fn unused_since(&self, idle: Duration) -> Vec<Demand> {
        let limit = (crate::clock::now() - idle).as_nanos();
        let snapshot = self.snapshot.load();
        let services = snapshot.services.iter().map(|(name, view)| {
            let name = name.to_string();
            (Kind::Service, name, view)
        });
        let workloads = snapshot.workloads.iter().map(|(name, view)| {
            let name = name.to_string();
            (Kind::Workload, name, view)
        });
        services
            .chain(workloads)
            .filter(|(kind, name, _)| {
                let own = *kind == Kind::Workload && self.followed() == Some(name.as_str());
                !own
            })
            .filter(|(_, _, view)| {
                if view.ports.values().any(PortView::is_held) {
                    view.touch();
                }
                view.used() < limit
            })
            .map(|(kind, name, _)| Demand { kind, name })
            .collect()
    }
}

/// What the workload serves, where that is not for the control plane to say; a name that is none is told of where the workload is registered.
fn own(config: &ProxyConfig) -> Option<Own> {
    let workload = &config.workload;
    let services = workload.services.iter();
    let services = services.filter_map(|service| service.resolve(&workload.namespace).ok());
    (!config.is_in_pod()).then(|| Own {
        services: services.collect(),
        protocols: BTreeMap::new(),
    })
}

enum Lookup<T> {
    Found(T),
    Unanswered(Option<Demand>),
}

fn port_of(view: &ServiceView, port: u16) -> Result<Destination, Reason> {
    view.touch();
    let port = view.port(port).ok_or(Reason::PortNotDeclared)?;
    Ok(Destination::Mesh(Arc::clone(port)))
}

fn cluster_domain(config: &ProxyConfig) -> String {
    let domain = config.kubernetes.cluster_domain.as_deref();
    let domain = domain.unwrap_or(CLUSTER_DOMAIN).trim_matches('.');
    domain.to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
