//! Connections of others to the application.

mod answered;
mod carry;
mod check;
mod http;
mod request;
mod upgrade;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use weft_core::peer::VerifiedPeer;
use weft_core::reason::Reason;

use crate::abort::reset;
use crate::application::{Application, dial};
use crate::config::MtlsMode;
use crate::connections::{Guarded, Permit};
use crate::first::client_first;
use crate::http::Io;
use crate::telemetry::metrics::{Direction, HttpKey, Wire};
use crate::tls::{Material, OpenError, Opened, Replayed, Signal, open};
use crate::worker::{Worker, is_direct, redirected};

use carry::{Greeting, Silence, Takes, carry, greet, unspoken};

/// A connection that interception redirected here: from another sidecar, or from outside.
pub async fn captured(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, permit: Permit) {
    let Some(destination) = redirected(&stream, client) else {
        return;
    };
    let application = worker.applications.at(destination);
    let listeners = &worker.shared.config.listeners;
    if is_direct(&stream, destination) || listeners.has_port(destination.port()) {
        let detail = format!("{destination} is one of this sidecar's own listeners");
        carry::refuse(worker, &application, None, Reason::LoopDetected, &detail);
        return reset(&stream);
    }
    if worker.shared.config.mtls == MtlsMode::Strict {
        return mesh(worker, stream, client, application, permit).await;
    }
    let Some(material) = material(worker, &stream, client) else {
        return;
    };
    let takes = Takes::of(worker, &application).await;
    let evicted = permit.evicted();
    let greeted = tokio::select! {
        greeted = Box::pin(greeted(worker, stream, &application, takes)) => greeted,
        () = evicted.notified() => return,
    };
    let Some((stream, greeting)) = greeted else {
        return;
    };
    let (greeting, first) = (
        Greeting {
            said: Bytes::new(),
            ..greeting
        },
        greeting.said,
    );
    let known = Known {
        greeting: Some(greeting),
        material,
        client,
        permit,
    };
    serve(worker, stream, first, application, known).await;
}

/// A connection to a listener that takes mutual TLS only.
pub async fn mesh(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    client: SocketAddr,
    application: Application,
    permit: Permit,
) {
    let Some(material) = material(worker, &stream, client) else {
        return;
    };
    let limit = worker.shared.config.timeouts.handshake;
    let evicted = permit.evicted();
    let first = tokio::select! {
        first = client_first(&mut stream, limit) => first,
        () = evicted.notified() => return,
    };
    let first = match first {
        Ok(Some(first)) if !first.is_empty() => first,
        Ok(Some(_ended)) => return,
        Ok(None) => return handshake_failed(worker, client, &OpenError::Timeout(limit)),
        Err(error) => return handshake_failed(worker, client, &error.into()),
    };
    let known = Known {
        greeting: None,
        material,
        client,
        permit,
    };
    serve(worker, stream, first, application, known).await;
}

/// A connection to a port that was published on the host: from outside the mesh.
pub async fn publish(
    worker: &Rc<Worker>,
    stream: TcpStream,
    application: Application,
    permit: Permit,
) {
    let metrics = &worker.shared.metrics;
    metrics.connection(Direction::Inbound, Wire::Plaintext);
    let takes = Takes::of(worker, &application).await;
    let greeted = Box::pin(greeted(worker, stream, &application, takes));
    if let Some((stream, greeting)) = greeted.await {
        let stream = Guarded::accepted(stream, permit, None);
        Box::pin(carry(worker, stream, application, None, greeting)).await;
    }
}

/// What is known of a connection beside its first bytes.
struct Known {
    /// How a connection from outside has begun; `None` where nobody outside may call.
    greeting: Option<Greeting>,
    material: Arc<Material>,
    client: SocketAddr,
    permit: Permit,
}

async fn serve(
    worker: &Rc<Worker>,
    stream: TcpStream,
    first: Bytes,
    application: Application,
    mut known: Known,
) {
    let shared = &worker.shared;
    let evicted = known.permit.evicted();
    let handshake = shared.config.timeouts.handshake;
    let opened = tokio::select! {
        opened = Box::pin(open(stream, first, &known.material, handshake)) => opened,
        () = evicted.notified() => return,
    };
    // On the heap, each: a connection needs room for what it turned out to be, and no other.
    match opened {
        Ok(Opened::MeshH2(stream, peer)) => {
            if let Some((stream, caller)) = admit(worker, stream, peer, known) {
                let serving = http::serve(worker, stream, application, Some(caller), true);
                Box::pin(serving).await;
            }
        }
        Ok(Opened::MeshH1(stream, peer)) => {
            if let Some((stream, caller)) = admit(worker, stream, peer, known) {
                let serving = http::serve(worker, stream, application, Some(caller), false);
                Box::pin(serving).await;
            }
        }
        Ok(Opened::MeshTcp(stream, peer)) => {
            if let Some((stream, caller)) = admit(worker, stream, peer, known) {
                Box::pin(bytes_of(worker, stream, caller, application)).await;
            }
        }
        Ok(Opened::Outside(stream)) => {
            let (said, stream) = stream.into_parts();
            let Some(greeting) = known.greeting else {
                refuse(worker, known.client, Reason::PlaintextRefused);
                return reset(&stream);
            };
            if !known.permit.identify(None) {
                return reset(&stream);
            }
            let metrics = &shared.metrics;
            metrics.connection(Direction::Inbound, Wire::Plaintext);
            let greeting = Greeting { said, ..greeting };
            let stream = Guarded::accepted(stream, known.permit, None);
            Box::pin(carry(worker, stream, application, None, greeting)).await;
        }
        Err(error) => handshake_failed(worker, known.client, &error),
    }
}

/// A peer that has proved its identity: its connection counts under that, and stands as long as
/// something vouches for it. `None` where it was refused.
fn admit<S: Socket>(
    worker: &Worker,
    stream: S,
    peer: VerifiedPeer,
    known: Known,
) -> Option<(Guarded<S>, Caller)> {
    let Known {
        material,
        client,
        mut permit,
        greeting: _,
    } = known;
    if !permit.identify(Some(peer.identity().as_str())) {
        reset(stream.socket());
        return None;
    }
    let standing = match material.join(&peer, None) {
        Ok(standing) => standing,
        Err(error) => {
            handshake_failed(worker, client, &OpenError::Peer(error));
            return None;
        }
    };
    let metrics = &worker.shared.metrics;
    metrics.connection(Direction::Inbound, Wire::Mtls);
    let stream = Guarded::accepted(stream, permit, Some(standing));
    Some((stream, Caller::new(&material, peer)))
}

/// Opaque bytes of a peer. Its own sidecar has waited for its client: what comes first is there.
async fn bytes_of<IO>(worker: &Rc<Worker>, mut stream: IO, caller: Caller, application: Application)
where
    IO: Io + Socket + 'static,
{
    let takes = Takes::of(worker, &application).await;
    let silence = Silence {
        pause: Duration::ZERO,
        request: worker.shared.config.timeouts.client_idle,
    };
    match Box::pin(greet(worker, &mut stream, &application, takes, silence)).await {
        Ok(greeting) => carry(worker, stream, application, Some(caller), greeting).await,
        Err(why) => {
            let stream = stream.socket();
            unspoken(worker, &application, Some(&caller), (why, stream));
        }
    }
}

/// Our own certificate; without one nobody is served.
fn material(worker: &Worker, stream: &TcpStream, client: SocketAddr) -> Option<Arc<Material>> {
    let material = worker.shared.tls.current();
    if material.is_none() {
        refuse(worker, client, Reason::PeerNotAuthenticated);
        reset(stream);
    }
    material
}

/// A connection from which plaintext is taken, with what was said first.
async fn greeted(
    worker: &Worker,
    mut stream: TcpStream,
    application: &Application,
    takes: Takes,
) -> Option<(TcpStream, Greeting)> {
    let timeouts = &worker.shared.config.timeouts;
    let silence = Silence {
        pause: timeouts.detect,
        request: timeouts.client_first,
    };
    match greet(worker, &mut stream, application, takes, silence).await {
        Ok(greeting) => Some((stream, greeting)),
        Err(why) => {
            unspoken(worker, application, None, (why, &stream));
            None
        }
    }
}

fn handshake_failed(worker: &Worker, client: SocketAddr, error: &OpenError) {
    let reason = match error {
        OpenError::Peer(_) => "peer",
        OpenError::Timeout(_) => "timeout",
        OpenError::Io(_) => "tls",
    };
    let metrics = &worker.shared.metrics;
    metrics.handshake_failed(Direction::Inbound, reason);
    tracing::info!(%client, %error, "inbound handshake failed");
}

/// A connection of some kind over a TCP socket.
trait Socket {
    /// The socket under it.
    fn socket(&self) -> &TcpStream;

    /// What ends it, where it is one to an authenticated peer.
    fn signal(&self) -> Option<Arc<Signal>> {
        None
    }
}

impl<S: Socket> Socket for Guarded<S> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().socket()
    }

    fn signal(&self) -> Option<Arc<Signal>> {
        Self::signal(self).or_else(|| self.get_ref().signal())
    }
}

impl Socket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl<IO: Socket> Socket for Replayed<IO> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().socket()
    }

    fn signal(&self) -> Option<Arc<Signal>> {
        self.get_ref().signal()
    }
}

impl Socket for Box<tokio_rustls::server::TlsStream<TcpStream>> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Who calls, with what the application is told of it.
struct Caller {
    peer: VerifiedPeer,
    forwarded: Option<::http::HeaderValue>,
}

impl Caller {
    fn new(material: &Material, peer: VerifiedPeer) -> Self {
        let forwarded = weft_core::headers::forwarded_client_cert(
            &material.identity,
            peer.certificate_hash(),
            peer.identity(),
        );
        Self { peer, forwarded }
    }
}

fn key(application: &Application, peer: Option<&VerifiedPeer>) -> HttpKey {
    let peer = peer.map_or("outside", |peer| peer.identity().as_str());
    HttpKey {
        direction: Direction::Inbound,
        service: Arc::clone(&application.service),
        peer: peer.into(),
    }
}

fn refuse(worker: &Worker, client: SocketAddr, reason: Reason) {
    let reason = reason.as_str();
    tracing::info!(%client, reason, "connection refused");
    let metrics = &worker.shared.metrics;
    metrics.handshake_failed(Direction::Inbound, reason);
}
