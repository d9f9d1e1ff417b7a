//! Connections to peers: few, long-lived, shared by many requests; one set per worker, but for ports
//! that limit them.

mod limited;
mod outside;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_core::reason::Reason;

pub use limited::Limited;
pub(super) use outside::{OutsideStream, dial as dial_outside};

use crate::config::ProxyConfig;
use crate::http::{ExchangeError, Incoming, ProxyBody, SendError, http2_client, send_http2};
use crate::mesh::{Endpoint, EndpointKey, PortView};
use crate::tls::{ALPN_H2, Material, PeerError, TlsContext, peer_of_client};

/// Why a peer is not reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// No TCP connection.
    #[error("connecting to {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What happened.
        source: Arc<io::Error>,
    },
    /// Too slow.
    #[error("connecting to {address} took longer than {limit:?}")]
    Timeout {
        /// Where.
        address: SocketAddr,
        /// What is allowed, TLS included.
        limit: Duration,
    },
    /// No TLS.
    #[error("TLS with {address}: {source}")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// What happened.
        source: Arc<io::Error>,
    },
    /// Somebody else is there.
    #[error("{address}: {source}")]
    Peer {
        /// Where.
        address: SocketAddr,
        /// Who.
        source: PeerError,
    },
    /// As many stand as may.
    #[error("connecting to {address}: {limit} connections are open")]
    Limited {
        /// Where.
        address: SocketAddr,
        /// How many may.
        limit: u32,
    },
    /// We have no certificate to show.
    #[error("this sidecar has no certificate yet")]
    NoCertificate,
}

impl DialError {
    /// Whether nobody was dialled, for a limit of our own: it says nothing about the endpoint.
    pub const fn is_limited(&self) -> bool {
        matches!(self, Self::Limited { .. })
    }

    /// The reason that callers see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Connect { .. } => Reason::ConnectFailed,
            Self::Timeout { .. } => Reason::ConnectTimeout,
            Self::Tls { source, .. } if names_another(source) => Reason::PeerIdentityMismatch,
            Self::Tls { .. } => Reason::TlsFailed,
            Self::Peer { .. } => Reason::PeerIdentityMismatch,
            Self::Limited { .. } => Reason::ConnectionLimit,
            Self::NoCertificate => Reason::PeerNotAuthenticated,
        }
    }
}

/// Whether a server outside the mesh showed a good certificate, for another name.
fn names_another(error: &io::Error) -> bool {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
    let inner = error.get_ref();
    let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        inner,
        Some(rustls::Error::InvalidCertificate(
            NotValidForName | NotValidForNameContext { .. }
        ))
    )
}

/// Dials a peer's sidecar for `alpn` and makes sure that it is the one meant.
pub(super) async fn dial(
    port: &PortView,
    endpoint: &Endpoint,
    material: &Arc<Material>,
    alpn: &'static [u8],
    limit: Duration,
) -> Result<TlsStream<TcpStream>, DialError> {
    let address = endpoint.key.address;
    let dialling = async {
        let tcp = connect(address).await?;
        let config = endpoint.live.tls_config(material, alpn);
        let name = ServerName::try_from(port.hostname.to_string()).map_err(|_| DialError::Tls {
            address,
            source: Arc::new(io::Error::other("the service's hostname is not a DNS name")),
        })?;
        let stream = TlsConnector::from(config).connect(name, tcp).await;
        let stream = stream.map_err(|source| DialError::Tls {
            address,
            source: Arc::new(source),
        })?;
        let identity = endpoint.model.identity.as_ref();
        let identity = identity.ok_or_else(|| DialError::Tls {
            address,
            source: Arc::new(io::Error::other("nobody is known to have to answer there")),
        })?;
        let peer = peer_of_client(&stream, material).and_then(|p| Ok(p.expect(identity)?));
        peer.map_err(|source| DialError::Peer { address, source })?;
        Ok(stream)
    };
    match timeout(limit, dialling).await {
        Ok(result) => result,
        Err(_elapsed) => Err(DialError::Timeout { address, limit }),
    }
}

/// A plain connection with the settings that every connection has.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, DialError> {
    let failed = |source| DialError::Connect {
        address,
        source: Arc::new(source),
    };
    let tcp = TcpStream::connect(address).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    Ok(tcp)
}

/// What requests are sent with.
#[derive(Debug, Clone)]
pub(crate) enum Sender {
    /// To another sidecar.
    Mesh(SendRequest<ProxyBody>),
    /// To a server outside the mesh.
    Outside(outside::OutsideSender),
}

impl Sender {
    /// Sends a request; the error gives it back where nothing of it was sent.
    pub(crate) async fn try_send_request(
        &mut self,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, SendError> {
        match self {
            // What its application may send is the peer's own to say.
            Self::Mesh(sender) => send_http2(sender, request, usize::MAX).await,
            Self::Outside(sender) => Box::pin(sender.send(request)).await,
        }
    }

    /// Sends a request.
    pub(crate) async fn send_request(
        &mut self,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let sent = self.try_send_request(request).await;
        sent.map_err(|failed| failed.error)
    }

    /// Whether it leads to another sidecar.
    pub(crate) fn is_mesh(&self) -> bool {
        matches!(self, Self::Mesh(_))
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Mesh(sender) => sender.is_closed(),
            Self::Outside(sender) => sender.is_closed(),
        }
    }

    fn is_exclusive(&self) -> bool {
        match self {
            Self::Mesh(_) => false,
            Self::Outside(sender) => sender.is_exclusive(),
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::Mesh(_) => true,
            Self::Outside(sender) => sender.is_ready(),
        }
    }
}

/// One connection to a peer, shared where its protocol allows that.
#[derive(Debug)]
struct Carrier {
    sender: Sender,
    in_flight: Cell<u32>,
    /// Requests that it has been given.
    carried: Cell<u32>,
    generation: u64,
    last_used: Cell<Instant>,
}

impl Carrier {
    /// Whether it takes one more request, of at most so many at a time.
    fn has_room(&self, streams: u32) -> bool {
        let most = if self.sender.is_exclusive() {
            1
        } else {
            streams
        };
        self.in_flight.get() < most && self.sender.is_ready()
    }
}

/// A place on a connection for one request.
#[derive(Debug)]
pub struct Slot(Place);

/// Whose connection it is.
#[derive(Debug)]
enum Place {
    /// The worker's own.
    Own(Rc<Carrier>),
    /// One of all workers.
    Common(Arc<limited::Common>),
}

impl Slot {
    fn new(carrier: &Rc<Carrier>) -> Self {
        carrier.carried.set(carrier.carried.get().saturating_add(1));
        Self::promised(carrier)
    }

    /// The place that a request was promised while the connection was being made.
    fn promised(carrier: &Rc<Carrier>) -> Self {
        carrier.in_flight.set(carrier.in_flight.get() + 1);
        Self(Place::Own(Rc::clone(carrier)))
    }

    /// What requests are sent with.
    pub(crate) fn sender(&self) -> Sender {
        match &self.0 {
            Place::Own(carrier) => carrier.sender.clone(),
            Place::Common(common) => Sender::Mesh(common.sender.clone()),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match &self.0 {
            Place::Own(carrier) => {
                carrier.in_flight.set(carrier.in_flight.get() - 1);
                carrier.last_used.set(Instant::now());
            }
            Place::Common(common) => common.leave(),
        }
    }
}

/// A connection that is being made.
#[derive(Debug, Clone, Default)]
struct Connecting {
    made: Rc<OnceCell<Result<Rc<Carrier>, DialError>>>,
    /// How many requests wait for a place on it.
    promised: Rc<Cell<u32>>,
}

#[derive(Debug, Default)]
struct Peer {
    carriers: Vec<Rc<Carrier>>,
    connecting: Option<Connecting>,
    /// Whether its connections take one request at a time, as far as is known.
    exclusive: bool,
}

impl Peer {
    /// Forgets connections that are closed, and those that have carried all that they may: what is
    /// under way on them finishes.
    fn drop_spent(&mut self, most: Option<u32>) {
        self.carriers.retain(|carrier| !carrier.sender.is_closed());
        let most = most.unwrap_or(u32::MAX);
        self.carriers
            .retain(|carrier| carrier.carried.get() < most || most == u32::MAX);
    }
}

/// The carriers of one worker.
#[derive(Debug)]
pub struct Pool {
    peers: RefCell<HashMap<EndpointKey, Peer>>,
    /// Those to ports with a limit, of all workers.
    limited: Arc<Limited>,
    tls: Arc<TlsContext>,
    config: Arc<ProxyConfig>,
}

impl Pool {
    /// No connection yet, but those that all workers share.
    pub fn new(limited: Arc<Limited>, tls: Arc<TlsContext>, config: Arc<ProxyConfig>) -> Self {
        Self {
            peers: RefCell::default(),
            limited,
            tls,
            config,
        }
    }

    /// A place on a connection to `endpoint`, made if there is none with room. Requests that come
    /// while one is being made wait for it together, as many as it may carry.
    pub async fn slot(&self, port: &PortView, endpoint: &Endpoint) -> Result<Slot, DialError> {
        if let Some(outside) = &port.outside {
            return Box::pin(self.outside_slot(port, outside, endpoint)).await;
        }
        if let Some(most) = port.policy.max_connections {
            // On the heap: whoever has no limit needs no room for it.
            return Box::pin(self.limited_slot(port, endpoint, most)).await;
        }
        let material = self.tls.current().ok_or(DialError::NoCertificate)?;
        let generation = material.generation;
        let connecting = {
            let mut peers = self.peers.borrow_mut();
            if let Some(peer) = peers.get_mut(&endpoint.key) {
                peer.drop_spent(port.policy.requests_per_connection);
                let fit = |carrier: &&Rc<Carrier>| {
                    carrier.generation == generation
                        && carrier.in_flight.get() < self.config.limits.max_concurrent_streams
                };
                if let Some(carrier) = peer.carriers.iter().find(fit) {
                    return Ok(Slot::new(carrier));
                }
            }
            let peer = peers.entry(endpoint.key.clone()).or_default();
            let streams = self.config.limits.max_concurrent_streams;
            let room = port.policy.requests_per_connection.unwrap_or(streams);
            let room = room.min(streams);
            let connecting = peer.connecting.take();
            let connecting = connecting.filter(|pending| pending.promised.get() < room);
            let connecting = peer.connecting.insert(connecting.unwrap_or_default());
            connecting.promised.set(connecting.promised.get() + 1);
            connecting.clone()
        };
        let made = connecting
            .made
            .get_or_init(|| async {
                let made = self.connect(port, endpoint, material).await;
                let mut peers = self.peers.borrow_mut();
                let peer = peers.entry(endpoint.key.clone()).or_default();
                let newest = peer.connecting.take();
                peer.connecting = newest.filter(|one| !Rc::ptr_eq(&one.made, &connecting.made));
                if let Ok(carrier) = &made {
                    carrier.carried.set(connecting.promised.get());
                    // Those made under older certificates finish what they carry.
                    peer.carriers
                        .retain(|carrier| carrier.generation == generation);
                    peer.carriers.push(Rc::clone(carrier));
                }
                made
            })
            .await;
        made.clone().map(|carrier| Slot::promised(&carrier))
    }

    async fn connect(
        &self,
        port: &PortView,
        endpoint: &Endpoint,
        material: Arc<Material>,
    ) -> Result<Rc<Carrier>, DialError> {
        let sender = self.handshake(port, endpoint, &material).await?;
        Ok(Rc::new(Carrier {
            sender: Sender::Mesh(sender),
            in_flight: Cell::new(0),
            carried: Cell::new(0),
            generation: material.generation,
            last_used: Cell::new(Instant::now()),
        }))
    }

    /// A connection to a peer's sidecar, which this worker drives.
    async fn handshake(
        &self,
        port: &PortView,
        endpoint: &Endpoint,
        material: &Arc<Material>,
    ) -> Result<SendRequest<ProxyBody>, DialError> {
        let limit = port.connect_timeout(&self.config);
        let stream = dial(port, endpoint, material, ALPN_H2, limit).await?;
        let made = http2_client(&self.config)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = made.map_err(|error| DialError::Tls {
            address: endpoint.key.address,
            source: Arc::new(io::Error::other(error)),
        })?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "carrier ended");
            }
        });
        Ok(sender)
    }

    /// Drops connections to endpoints that are gone, which have no time to be idle, and those that
    /// were idle for longer than theirs; requests under way finish.
    pub fn sweep(&self, idle: impl Fn(&EndpointKey) -> Option<Duration>) {
        self.limited.sweep(&idle);
        let now = Instant::now();
        self.peers.borrow_mut().retain(|key, peer| {
            let Some(idle) = idle(key) else {
                return false;
            };
            let mut spare = self.config.limits.max_idle_per_endpoint;
            peer.carriers.retain(|carrier| {
                let idle = outside::idle_of(&carrier.sender, idle);
                if carrier.sender.is_exclusive() && carrier.in_flight.get() == 0 {
                    if spare == 0 {
                        return false;
                    }
                    spare -= 1;
                }
                let used = carrier.in_flight.get() > 0
                    || now.duration_since(carrier.last_used.get()) < idle;
                used && !carrier.sender.is_closed()
            });
            !peer.carriers.is_empty() || peer.connecting.is_some()
        });
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        let peers = self.peers.borrow();
        peers.values().map(|peer| peer.carriers.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
