//! The application itself: how it is dialled, and connections to it that are kept for reuse.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::TRAILER;
use http::{Request, Response};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use weft_core::connections::Client;
use weft_core::dialling::Want;
use weft_core::model::AppProtocol;
use weft_core::peer::VerifiedPeer;
use weft_core::reason::Reason;
use weft_core::retry::is_idempotent;
use weft_core::shares::{ClientKey, ClientKind};

use crate::connections::keep_alive;
use crate::http::h1::OnContinue;
use crate::http::{ExchangeError, Incoming, Kept, KeptBudget, ProxyBody, describe};
use crate::pool::{ApplicationDial, ApplicationPeer, DialError, Slot};
use crate::shared::Shared;

/// Bytes of a request's body in HTTP/2 that are kept until its answer begins, to ask again where the
/// application has not processed it. Of a longer one the caller's sidecar decides.
const REPLAY_BODY_BYTES: usize = 64 * 1024;
/// Bytes that are kept of a longer one while the worker's budget lasts. One application ends a connection
/// for the sake of one request (Go, where a handler says `Connection: close`) while others send theirs. A
/// stream that is not processed gets no WINDOW_UPDATE, so no more was sent than the initial window: this
/// is that of Go, and a piece.
const REPLAY_BODY_BYTES_MAX: usize = 1024 * 1024 + 64 * 1024;
/// Bytes of all longer bodies that a worker keeps.
const REPLAY_BUDGET_BYTES: usize = 16 * 1024 * 1024;
/// How often an application that has not processed a request in HTTP/2 is asked again.
const REPEATS_MAX: u32 = 3;

/// How long a connection in HTTP/1.1 may have been idle for a request that cannot be sent twice, because
/// it has a body or is not idempotent. Servers close idle connections when they please (Node after 5 s,
/// gunicorn after 2 s), and one that does so in the moment of such a request loses it; a new connection to
/// the application next to us costs little.
const UNREPEATABLE_IDLE_MAX: Duration = Duration::from_secs(1);

/// One port of the application.
#[derive(Debug, Clone)]
pub struct Application {
    /// What it is counted under.
    pub service: Arc<str>,
    /// The port.
    pub port: u16,
    /// What is spoken there.
    pub protocol: AppProtocol,
    /// Where it is dialled, in this order: the workload's own addresses, never 127.0.0.1 unless
    /// the port was declared to be on loopback.
    pub addresses: Arc<[IpAddr]>,
    /// Whether the operator declared it to listen on loopback only.
    pub loopback: bool,
}

/// Connections to the application kept by one worker.
#[derive(Debug)]
pub struct Applications {
    shared: Arc<Shared>,
    /// By port, and whether they are in HTTP/2.
    peers: RefCell<HashMap<(u16, bool), Rc<ApplicationPeer>>>,
    /// Makes keys of clients.
    keys: RandomState,
    /// For what bodies keep beyond [`REPLAY_BODY_BYTES`].
    replay: KeptBudget,
}

/// An answer, with the place on a connection that its body needs.
pub(crate) type Asked = Result<(Response<Incoming>, Slot), (Reason, String)>;

impl Applications {
    /// No connection yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            peers: RefCell::default(),
            keys: RandomState::new(),
            replay: KeptBudget::new(REPLAY_BUDGET_BYTES),
        }
    }

    /// Whom a request is counted for: the caller's instance, or its address outside the mesh.
    pub(crate) fn client(&self, peer: Option<&VerifiedPeer>, address: IpAddr) -> ClientKey {
        match peer {
            Some(peer) => ClientKey {
                kind: ClientKind::Peer,
                id: self.keys.hash_one(peer.instance()),
            },
            None => ClientKey {
                kind: ClientKind::Outside,
                id: self.keys.hash_one(Client::at(address)),
            },
        }
    }

    /// The application behind a redirected connection.
    pub fn at(&self, destination: SocketAddr) -> Application {
        let config = &self.shared.config;
        let port = destination.port();
        let declared = config.workload.ports.iter().find(|p| p.port == port);
        let address = config
            .application_address
            .unwrap_or_else(|| destination.ip().to_canonical());
        Application {
            service: format!("{}/{}", config.workload.namespace, config.workload.name).into(),
            port,
            protocol: declared
                .map(|port| port.protocol)
                .or_else(|| self.shared.mesh.own_protocol(port))
                .unwrap_or_default(),
            addresses: [address].into(),
            loopback: declared.is_some_and(|port| port.loopback),
        }
    }

    /// Asks the application for a client, in HTTP/1.1 or HTTP/2.
    pub(crate) async fn ask(
        &self,
        application: &Application,
        client: ClientKey,
        http1: bool,
        request: Box<Request<ProxyBody>>,
    ) -> Asked {
        let peer = self.peer(application.port, !http1);
        match http1 {
            true => self.ask_http1(application, (&peer, client), request).await,
            false => self.ask_http2(application, (&peer, client), request).await,
        }
    }

    async fn ask_http1(
        &self,
        application: &Application,
        (peer, client): (&ApplicationPeer, ClientKey),
        request: Box<Request<ProxyBody>>,
    ) -> Asked {
        let is_repeatable = is_repeatable(&request);
        let want = match is_repeatable {
            true => Want::Any,
            false => Want::UsedSince(crate::clock::now() - UNREPEATABLE_IDLE_MAX),
        };
        let slot = peer.slot(client, want, || self.dial(application)).await;
        let slot = slot.map_err(unconnected)?;
        // A kept connection may be closed by the application in the very moment it is used: what
        // was not sent, or can be repeated without harm, is sent again, over a new connection and
        // no other: a request that ends the application's worker must not meet the next one.
        let is_kept = slot.is_reused() || slot.unused_for() >= UNREPEATABLE_IDLE_MAX;
        let sent = slot.sender().try_send_request(request).await;
        let failed = match sent {
            Ok(response) => return Ok((response, slot)),
            Err(failed) => failed,
        };
        drop(slot);
        let repeated = failed.sent.filter(|_sent| is_kept && is_repeatable);
        let request = match (failed.unsent, repeated) {
            (Some(unsent), _) => unsent,
            (None, Some(sent)) if failed.error.is_closed() => sent,
            (None, _) => return Err(broken(&failed.error)),
        };
        peer.replayed();
        let want = Want::MadeSince(crate::clock::now());
        let slot = peer.slot(client, want, || self.dial(application)).await;
        let slot = slot.map_err(unconnected)?;
        match slot.sender().try_send_request(request).await {
            Ok(response) => Ok((response, slot)),
            Err(failed) => Err(broken(&failed.error)),
        }
    }

    async fn ask_http2(
        &self,
        application: &Application,
        (peer, client): (&ApplicationPeer, ClientKey),
        request: Box<Request<ProxyBody>>,
    ) -> Asked {
        let (mut parts, body) = request.into_parts();
        if let Some(told) = parts.extensions.remove::<OnContinue>() {
            told.0.notify_one();
        }
        // Texts of our own are no requests: what is not kept is nothing.
        let kept = body.keep(REPLAY_BODY_BYTES).ok();
        if let Some(kept) = &kept {
            kept.borrow(&self.replay, REPLAY_BODY_BYTES_MAX);
        }
        // nginx 1.22 ends a connection on which a request has trailers, with all that is under way
        // there: those that are announced go over a connection of their own, others are dropped
        // (RFC 9110 section 6.5.2 lets no sender rely on them).
        let trailers = kept.is_some() && parts.headers.contains_key(TRAILER);
        if let Some(kept) = kept.as_ref().filter(|_kept| !trailers) {
            kept.drop_trailers();
        }
        for repeats in 0.. {
            let slot = match trailers {
                true => peer.own(client, self.dial(application)).await,
                false => {
                    peer.slot(client, Want::Any, || self.dial(application))
                        .await
                }
            };
            let slot = slot.map_err(unconnected)?;
            let body = match &kept {
                None => ProxyBody::Empty,
                Some(kept) if trailers => {
                    let (body, sent) = kept.watched_body();
                    slot.keep_until_sent(sent);
                    body
                }
                Some(kept) => kept.body(),
            };
            let request = Box::new(Request::from_parts(parts.clone(), body));
            let failed = match slot.sender().try_send_request(request).await {
                Ok(response) => {
                    if let Some(kept) = &kept {
                        kept.release();
                    }
                    return Ok((response, slot));
                }
                Err(failed) => failed,
            };
            if failed.error.is_unsendable() {
                return Err(broken(&failed.error));
            } else if failed.unsent.is_some() || failed.error.is_going_away() {
                slot.retire();
            } else if !failed.error.is_refused() {
                return Err(broken(&failed.error));
            }
            let whole = kept.as_ref().is_none_or(Kept::is_replayable);
            if repeats == REPEATS_MAX || !whole {
                return Err((Reason::ApplicationRefused, describe(&failed.error)));
            }
            peer.replayed();
        }
        // There is no last number.
        Err((Reason::ApplicationRefused, String::new()))
    }

    /// A connection for a request that may become a stream of bytes. It counts among those to the
    /// application until the slot is dropped.
    pub(crate) async fn own(
        &self,
        application: &Application,
        client: ClientKey,
        http1: bool,
    ) -> Result<Slot, (Reason, String)> {
        let peer = self.peer(application.port, !http1);
        let slot = peer.own(client, self.dial(application)).await;
        slot.map_err(unconnected)
    }

    fn peer(&self, port: u16, http2: bool) -> Rc<ApplicationPeer> {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry((port, http2)).or_insert_with(|| {
            let Shared {
                config, metrics, ..
            } = &*self.shared;
            Rc::new(ApplicationPeer::new(config, metrics, http2))
        });
        Rc::clone(peer)
    }

    fn dial(&self, application: &Application) -> ApplicationDial {
        let (shared, application) = (Arc::clone(&self.shared), application.clone());
        Rc::new(move || {
            let (shared, application) = (Arc::clone(&shared), application.clone());
            Box::pin(async move { dial(&shared, &application).await })
        })
    }

    /// Ends connections that nobody used for `idle`, before the application does.
    pub fn sweep(&self, idle: Duration) {
        let mut peers = self.peers.borrow_mut();
        peers.retain(|_port, peer| peer.sweep(idle));
    }
}

/// Whether the repetition of a request does no harm.
fn is_repeatable(request: &Request<ProxyBody>) -> bool {
    matches!(request.body(), ProxyBody::Empty) && is_idempotent(request.method())
}

fn unconnected(error: DialError) -> (Reason, String) {
    (error.reason(), error.to_string())
}

fn broken(error: &ExchangeError) -> (Reason, String) {
    (error.reason(), describe(error))
}

/// Dials the application at the workload's own address. When it is not there but on loopback, the
/// reason says exactly that.
pub async fn dial(
    shared: &Shared,
    application: &Application,
) -> Result<TcpStream, (Reason, String)> {
    let limit = shared.config.timeouts.connect;
    let mut last = (Reason::ApplicationUnreachable, String::new());
    let loopback = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let own: &[IpAddr] = if application.loopback {
        &loopback
    } else {
        &application.addresses
    };
    for address in own {
        let address = SocketAddr::new(*address, application.port);
        match timeout(limit, connect(shared, address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last.1 = format!("{address}: {error}"),
            Err(_elapsed) => last.1 = format!("{address}: no answer in {limit:?}"),
        }
    }
    if !application.loopback {
        for address in loopback {
            let address = SocketAddr::new(address, application.port);
            if let Ok(Ok(_there)) = timeout(limit, connect(shared, address)).await {
                return Err((Reason::ApplicationLoopbackOnly, address.to_string()));
            }
        }
    }
    Err(last)
}

async fn connect(shared: &Shared, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match &shared.nest {
        Some(nest) => TcpSocket::from_std_stream(nest.take(address.is_ipv6()).await?.into()),
        None => {
            let socket = if address.is_ipv6() {
                TcpSocket::new_v6()?
            } else {
                TcpSocket::new_v4()?
            };
            // Tells interception that this comes from inbound and is not to come back to it.
            crate::intercept::mark_inbound(&socket)?;
            socket
        }
    };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    keep_alive(&stream);
    Ok(stream)
}
