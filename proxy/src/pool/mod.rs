//! Connections that requests are sent over: to other sidecars, out of the mesh and to the
//! application. Few, kept for reuse and shared where their protocol allows it; one set per worker, but
//! for ports that limit them.

mod carrier;
mod dialling;
mod error;
mod limited;
mod owner;
mod peer;
mod shares;
mod streams;

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use weft_core::dialling::{Bounds, Terms, Want, own_share};
use weft_core::model::AppProtocol;
use weft_core::reason::Reason;
use weft_core::shares::ClientKey;

pub(crate) use carrier::Sender;
pub use carrier::Slot;
pub(crate) use dialling::{OutsideStream, PeerStream, connect, dial, dial_outside};
pub use error::DialError;
pub use limited::Limited;

use carrier::{Made, Place};
use dialling::{MeshTarget, make_application, make_mesh, make_outside};
use limited::PortKey;
use owner::{Dialling, Owner, Process, SharedPeer, Worker};
use peer::{Held, Peer};
use shares::{Share, Shares};

use crate::config::ProxyConfig;
use crate::mesh::{Counted, Endpoint, EndpointKey, Outside, PortView};
use crate::telemetry::metrics::{Metrics, PoolKind};
use crate::tls::TlsContext;

/// Connections to one endpoint that a worker makes at a time.
const DIALS_MAX: u32 = 256;
/// Requests that wait for a connection: of a worker to one endpoint, or of all workers to a port
/// with a limit on connections.
const WAITING_MAX: u32 = 16 * 1024;
/// Connections to one port of the application that a worker makes at a time: as many as an accept
/// queue of any length takes.
const APPLICATION_DIALS_MAX: u32 = 16;
/// Servers close idle connections in HTTP/1.1 when they please: ours out of the mesh are closed
/// before most do.
const HTTP1_IDLE: Duration = Duration::from_secs(15);

/// The connections of one worker to endpoints.
#[derive(Debug)]
pub struct Pool {
    peers: RefCell<HashMap<EndpointKey, Rc<Peer<Worker>>>>,
    /// Those to ports with a limit, of all workers.
    limited: Arc<Limited>,
    /// The ports of them that this worker uses.
    used: RefCell<HashMap<PortKey, SharedPeer>>,
    tls: Arc<TlsContext>,
    config: Arc<ProxyConfig>,
    metrics: Metrics,
}

impl Pool {
    /// No connection yet, but those that all workers share.
    pub fn new(
        limited: Arc<Limited>,
        tls: Arc<TlsContext>,
        config: Arc<ProxyConfig>,
        metrics: Metrics,
    ) -> Self {
        Self {
            peers: RefCell::default(),
            limited,
            used: RefCell::default(),
            tls,
            config,
            metrics,
        }
    }

    /// A place on a connection to `endpoint`, made if there is none with room.
    pub async fn slot(&self, port: &PortView, endpoint: &Endpoint) -> Result<Slot, DialError> {
        if let Some(outside) = port.outside_of(endpoint) {
            return Box::pin(self.outside_slot(port, outside, endpoint)).await;
        }
        if let Some(most) = port.policy.max_connections {
            // On the heap: whoever has no limit needs no room for it.
            return Box::pin(self.limited_slot(port, endpoint, most)).await;
        }
        let material = self.tls.current().ok_or(DialError::NoCertificate)?;
        let terms = self.terms(port, material.generation, Some(false));
        if let Some(peer) = self.peers.borrow().get(&endpoint.key)
            && let Some(held) = peer::take::<Worker>(peer, &(), &terms)
        {
            return Ok(of_worker(held));
        }
        let target = MeshTarget::of(port, endpoint);
        let (config, metrics) = (Arc::clone(&self.config), self.metrics.clone());
        let limit = port.connect_timeout(&self.config);
        let dial = move || -> Dialling<Sender> {
            let (target, material) = (target.clone(), Arc::clone(&material));
            let (config, metrics) = (Arc::clone(&config), metrics.clone());
            Box::pin(async move {
                let made = make_mesh(&target, &material, limit, (&config, &metrics)).await;
                made.map(Made::of_worker)
            })
        };
        let peer = self.peer(&endpoint.key, PoolKind::Mesh);
        let waiting = Box::pin(peer::wait::<Worker>(&peer, &(), terms, Rc::new(dial)));
        waiting.await.map(of_worker)
    }

    /// A place on a connection to a port that has a limit on them.
    async fn limited_slot(
        &self,
        port: &PortView,
        endpoint: &Endpoint,
        most: u32,
    ) -> Result<Slot, DialError> {
        let material = self.tls.current().ok_or(DialError::NoCertificate)?;
        let mut terms = self.terms(port, material.generation, Some(false));
        terms.bounds.connections = most;
        let peer = self.shared(port);
        if let Some(held) = peer::take::<Process>(&peer, &endpoint.key, &terms) {
            return Ok(of_process(held));
        }
        let target = MeshTarget::of(port, endpoint);
        let (config, metrics) = (Arc::clone(&self.config), self.metrics.clone());
        let limit = port.connect_timeout(&self.config);
        let dial: <Process as Owner>::Dial = Arc::new(move || {
            let (target, material) = (target.clone(), Arc::clone(&material));
            let (config, metrics) = (Arc::clone(&config), metrics.clone());
            Box::pin(async move { make_mesh(&target, &material, limit, (&config, &metrics)).await })
        });
        let waiting = peer::wait::<Process>(&peer, &endpoint.key, terms, dial);
        waiting.await.map(of_process)
    }

    /// A place on a connection to a server outside the mesh, made if there is none with room.
    async fn outside_slot(
        &self,
        port: &PortView,
        outside: &Arc<Outside>,
        endpoint: &Endpoint,
    ) -> Result<Slot, DialError> {
        // Without TLS nothing is negotiated.
        let exclusive = match port.protocol {
            AppProtocol::Http if outside.tls.is_none() => Some(true),
            AppProtocol::Http2 | AppProtocol::Grpc => Some(false),
            AppProtocol::Http | AppProtocol::Detect | AppProtocol::Tcp | AppProtocol::Tls => None,
        };
        let terms = self.terms(port, outside.id, exclusive);
        let peer = self.peer(&endpoint.key, PoolKind::External);
        if let Some(held) = peer::take::<Worker>(&peer, &(), &terms) {
            return Ok(of_worker(held));
        }
        let (protocol, address) = (port.protocol, endpoint.key.address);
        let limit = port.connect_timeout(&self.config);
        let (outside, config) = (Arc::clone(outside), Arc::clone(&self.config));
        let metrics = self.metrics.clone();
        let dial = move || -> Dialling<Sender> {
            let (outside, config) = (Arc::clone(&outside), Arc::clone(&config));
            let metrics = metrics.clone();
            Box::pin(async move {
                let about = (&*config, &metrics);
                make_outside(&outside, protocol, address, limit, about).await
            })
        };
        let waiting = peer::wait::<Worker>(&peer, &(), terms, Rc::new(dial));
        waiting.await.map(of_worker)
    }

    fn peer(&self, key: &EndpointKey, kind: PoolKind) -> Rc<Peer<Worker>> {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(key.clone());
        Rc::clone(peer.or_insert_with(|| Peer::of_worker(kind, &self.metrics)))
    }

    /// The connections of all workers to a port with a limit.
    fn shared(&self, port: &PortView) -> SharedPeer {
        let mut used = self.used.borrow_mut();
        let peer = used.entry((port.service.clone(), port.port));
        let peer = peer.or_insert_with(|| self.limited.peer(port, &self.metrics));
        if !peer.limit().is_of(port) {
            *peer = self.limited.peer(port, &self.metrics);
        }
        Arc::clone(peer)
    }

    /// The endpoints of a port that cannot be reached while as many connections stand as may.
    pub(crate) fn out_of_reach(&self, port: &PortView) -> Vec<EndpointKey> {
        if port.policy.max_connections.is_none() || port.connections().has_room() {
            return Vec::new();
        }
        self.shared(port).look(|set| {
            if set.has_idle() {
                return Vec::new();
            }
            let keys = port.endpoints.iter().map(|endpoint| &endpoint.key);
            keys.filter(|key| !set.leads_to(key)).cloned().collect()
        })
    }

    /// A place among the port's connections for one that requests do not share, where need be in
    /// the place of one that carries nothing.
    pub(crate) fn admit_connection(&self, port: &PortView) -> Option<Counted> {
        let limit = port.connections();
        limit.admit().or_else(|| {
            self.shared(port).evict_idle();
            limit.admit()
        })
    }

    fn terms(&self, port: &PortView, generation: u64, exclusive: Option<bool>) -> Terms {
        Terms {
            want: Want::Any,
            generation,
            requests: port.policy.requests_per_connection.unwrap_or(u32::MAX),
            streams: self.config.limits.max_concurrent_streams,
            exclusive,
            bounds: Bounds {
                connections: u32::MAX,
                dials: DIALS_MAX,
                waiting: WAITING_MAX,
            },
            // Whoever comes while one is made may need the next one.
            patience: port.connect_timeout(&self.config) * 2,
        }
    }

    /// Drops connections to endpoints that are gone, which have no time to be idle, and those that
    /// were idle for longer than theirs; requests under way finish.
    pub fn sweep(&self, kept: impl Fn(&EndpointKey) -> Kept) {
        // One that is used no longer is given back before it is asked who has it.
        self.used
            .borrow_mut()
            .retain(|_port, peer| peer.look(|set| !set.is_unused()));
        self.limited.sweep(|key| kept(key).idle);
        let spare = self.config.limits.max_idle_per_endpoint;
        self.peers.borrow_mut().retain(|key, peer| {
            let idle = match kept(key) {
                Kept {
                    idle: Some(idle),
                    is_limited: false,
                } => idle,
                Kept { .. } => {
                    peer.close();
                    return false;
                }
            };
            let of = |_: &(), is_exclusive| match is_exclusive {
                true => idle.min(HTTP1_IDLE),
                false => idle,
            };
            peer.sweep(of, spare)
        });
    }
}

/// Which connections to an endpoint are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// How long they may carry nothing; `None` where the endpoint is gone.
    pub idle: Option<Duration>,
    /// Whether its port has a limit on connections: then workers have none of their own.
    pub is_limited: bool,
}

fn of_worker(held: Held<Worker>) -> Slot {
    Slot(Place::Worker(held))
}

fn of_process(held: Held<Process>) -> Slot {
    Slot(Place::Process(held))
}

/// Makes a TCP connection to the application.
pub(crate) type ApplicationDial = Rc<dyn Fn() -> ApplicationDialling>;
/// One that is being made.
pub(crate) type ApplicationDialling =
    Pin<Box<dyn Future<Output = Result<TcpStream, (Reason, String)>>>>;

/// The connections of one worker to one port of the application, in one version of HTTP.
#[derive(Debug)]
pub(crate) struct ApplicationPeer {
    peer: Rc<Peer<Worker>>,
    /// Of requests that hold a connection each.
    shares: Shares,
    /// Of those of them that want a connection of their own.
    own_shares: Shares,
    config: Arc<ProxyConfig>,
    with_http2: bool,
}

impl ApplicationPeer {
    pub(crate) fn new(config: &Arc<ProxyConfig>, metrics: &Metrics, with_http2: bool) -> Self {
        let limits = &config.limits;
        Self {
            peer: Peer::of_worker(PoolKind::Application, metrics),
            shares: Shares::new(
                limits.max_application_connections,
                limits.max_application_pending,
            ),
            own_shares: Shares::new(
                own_share(limits.max_application_connections),
                own_share(limits.max_application_pending),
            ),
            config: Arc::clone(config),
            with_http2,
        }
    }

    /// A place on a connection that the client's request may use, made if there is none with room.
    pub(crate) async fn slot(
        &self,
        client: ClientKey,
        want: Want,
        connect: impl FnOnce() -> ApplicationDial,
    ) -> Result<Slot, DialError> {
        let share = match self.with_http2 {
            true => None,
            false => Some(self.share(&self.shares, client).await?),
        };
        let terms = self.terms(want);
        let mut held = match peer::take::<Worker>(&self.peer, &(), &terms) {
            Some(held) => held,
            None => {
                let dial = self.dial(connect());
                Box::pin(peer::wait::<Worker>(&self.peer, &(), terms, dial)).await?
            }
        };
        if let Some(share) = share {
            held.charge(share);
        }
        Ok(of_worker(held))
    }

    /// A place among those of the client.
    async fn share(&self, shares: &Shares, client: ClientKey) -> Result<Share, DialError> {
        match shares.take(client) {
            Some(share) => Ok(share),
            None => {
                let patience = self.config.timeouts.application_pending;
                let stats = self.peer.stats();
                Box::pin(shares.wait(client, patience, stats)).await
            }
        }
    }

    /// A new connection that no other request is given a place on, within [`own_share`] of those that
    /// may stand, which clients share as well. It is counted until the slot is dropped and the request
    /// has been sent ([`Slot::keep_until_sent`]).
    pub(crate) async fn own(
        &self,
        client: ClientKey,
        connect: ApplicationDial,
    ) -> Result<Slot, DialError> {
        let own = self.share(&self.own_shares, client).await?;
        let share = self.share(&self.shares, client.tunnels()).await?;
        let terms = self.terms(Want::Own(crate::clock::now()));
        let dial = self.dial(connect);
        let waiting = Box::pin(peer::wait::<Worker>(&self.peer, &(), terms, dial));
        let mut held = waiting.await?;
        held.charge(share.and(own));
        Ok(Slot(Place::Own(Rc::new(held))))
    }

    /// A request is sent again.
    pub(crate) fn replayed(&self) {
        self.peer.stats().replayed.inc();
    }

    /// Ends connections that nobody used for `idle`; whether there is anything left.
    pub(crate) fn sweep(&self, idle: Duration) -> bool {
        let spare = self.config.limits.max_idle_per_endpoint;
        let used = !self.shares.is_unused() || !self.own_shares.is_unused();
        self.peer.sweep(|(), _| idle, spare) || used
    }

    fn terms(&self, want: Want) -> Terms {
        let limits = &self.config.limits;
        Terms {
            want,
            generation: 0,
            requests: u32::MAX,
            streams: u32::MAX,
            exclusive: Some(!self.with_http2),
            bounds: Bounds {
                connections: limits.max_application_connections,
                dials: APPLICATION_DIALS_MAX,
                waiting: limits.max_application_pending,
            },
            patience: self.config.timeouts.application_pending,
        }
    }

    fn dial(&self, connect: ApplicationDial) -> <Worker as Owner>::Dial {
        let (config, with_http2) = (Arc::clone(&self.config), self.with_http2);
        let limit = config.timeouts.connect;
        Rc::new(move || {
            let connecting = connect();
            let config = Arc::clone(&config);
            Box::pin(async move {
                let failed = |(reason, detail): (Reason, String)| DialError::Application {
                    reason,
                    detail: detail.into(),
                };
                let stream = connecting.await.map_err(failed)?;
                let made = make_application(stream, with_http2, limit, &config).await;
                made.map_err(|detail| failed((Reason::UpstreamProtocolError, detail)))
            })
        })
    }
}

#[cfg(test)]
mod tests;
