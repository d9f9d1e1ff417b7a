//! Connections of others to the application.

mod answered;
mod application;
mod carry;
mod check;
mod http;
mod request;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use weft_core::peer::VerifiedPeer;
use weft_core::reason::Reason;

use crate::config::MtlsMode;
use crate::first::client_first;
use crate::telemetry::metrics::{Direction, HttpKey, Wire};
use crate::tls::{Material, OpenError, Opened, Replayed, open};
use crate::worker::{Worker, is_direct, redirected, reset};

use carry::{Greeting, Takes, Unspoken, carry, greet};

pub use application::{Application, Applications, dial};

/// A connection that interception redirected here: from another sidecar, or from outside.
pub async fn captured(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr) {
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
        return mesh(worker, stream, client, application).await;
    }
    let Some(material) = material(worker, &stream, client) else {
        return;
    };
    let takes = Takes::of(worker, &application).await;
    let Some((stream, greeting)) = greeted(worker, stream, &application, takes).await else {
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
    };
    serve(worker, stream, first, application, known).await;
}

/// A connection to a listener that takes mutual TLS only.
pub async fn mesh(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    client: SocketAddr,
    application: Application,
) {
    let Some(material) = material(worker, &stream, client) else {
        return;
    };
    let limit = worker.shared.config.timeouts.handshake;
    let first = match client_first(&mut stream, limit).await {
        Ok(Some(first)) if !first.is_empty() => first,
        Ok(Some(_ended)) => return,
        Ok(None) => return handshake_failed(worker, client, &OpenError::Timeout(limit)),
        Err(error) => return handshake_failed(worker, client, &error.into()),
    };
    let known = Known {
        greeting: None,
        material,
        client,
    };
    serve(worker, stream, first, application, known).await;
}

/// A connection to a port that was published on the host: from outside the mesh.
pub async fn publish(worker: &Rc<Worker>, stream: TcpStream, application: Application) {
    let metrics = &worker.shared.metrics;
    metrics.connection(Direction::Inbound, Wire::Plaintext);
    let takes = Takes::of(worker, &application).await;
    if let Some((stream, greeting)) = greeted(worker, stream, &application, takes).await {
        carry(worker, stream, application, None, greeting).await;
    }
}

/// What is known of a connection beside its first bytes.
struct Known {
    /// How a connection from outside has begun; `None` where nobody outside may call.
    greeting: Option<Greeting>,
    material: Arc<Material>,
    client: SocketAddr,
}

async fn serve(
    worker: &Rc<Worker>,
    stream: TcpStream,
    first: Bytes,
    application: Application,
    known: Known,
) {
    let Known {
        greeting,
        material,
        client,
    } = known;
    let shared = &worker.shared;
    let handshake = shared.config.timeouts.handshake;
    let from_mesh = |peer| {
        shared.metrics.connection(Direction::Inbound, Wire::Mtls);
        Some(Caller::new(&material, peer))
    };
    match open(stream, first, &material, handshake).await {
        Ok(Opened::MeshH2(stream, peer)) => {
            http::serve(worker, stream, application, from_mesh(peer), true).await;
        }
        Ok(Opened::MeshH1(stream, peer)) => {
            http::serve(worker, stream, application, from_mesh(peer), false).await;
        }
        Ok(Opened::MeshTcp(mut stream, peer)) => {
            let caller = from_mesh(peer);
            let takes = Takes::of(worker, &application).await;
            // The caller's own sidecar has waited for its client: what comes first is there.
            let pause = Duration::ZERO;
            let begun = greet(worker, &mut stream, &application, takes, pause).await;
            match begun {
                Ok(greeting) => carry(worker, stream, application, caller, greeting).await,
                Err(Unspoken::Gone) => {}
                Err(Unspoken::Refused(reason, detail)) => {
                    carry::refuse(worker, &application, caller.as_ref(), reason, &detail);
                    reset(stream.socket());
                }
            }
        }
        Ok(Opened::Outside(stream)) => {
            let (said, stream) = stream.into_parts();
            let Some(greeting) = greeting else {
                refuse(worker, client, Reason::PlaintextRefused);
                return reset(&stream);
            };
            let metrics = &shared.metrics;
            metrics.connection(Direction::Inbound, Wire::Plaintext);
            let greeting = Greeting { said, ..greeting };
            carry(worker, stream, application, None, greeting).await;
        }
        Err(error) => handshake_failed(worker, client, &error),
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
    let pause = worker.shared.config.timeouts.detect;
    match greet(worker, &mut stream, application, takes, pause).await {
        Ok(greeting) => Some((stream, greeting)),
        Err(Unspoken::Gone) => None,
        Err(Unspoken::Refused(reason, detail)) => {
            carry::refuse(worker, application, None, reason, &detail);
            reset(&stream);
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
}

impl Socket for tokio_rustls::server::TlsStream<TcpStream> {
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
