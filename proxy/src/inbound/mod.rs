//! Connections of others to the application.

mod application;
mod http;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use weft_core::model::AppProtocol;
use weft_core::protocol::Verdict;
use weft_core::reason::Reason;

use crate::config::MtlsMode;
use crate::outbound::sniff;
use crate::relay::{Ended, relay};
use crate::telemetry::metrics::{Direction, HttpKey, Wire};
use crate::tls::{Material, OpenError, Opened, Replayed, VerifiedPeer, open};
use crate::worker::{Worker, redirected, reset};

pub use application::{Application, Applications, Http1, dial};

/// A connection that interception redirected here: from another sidecar, or from outside.
pub async fn captured(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr) {
    let Some(destination) = redirected(&stream, client) else {
        return;
    };
    let application = worker.applications.at(destination);
    serve(worker, stream, client, application, false).await;
}

/// A connection to a listener that takes mutual TLS only.
pub async fn mesh(
    worker: &Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    application: Application,
) {
    serve(worker, stream, client, application, true).await;
}

/// A connection to a port that was published on the host: from outside the mesh.
pub async fn publish(worker: &Rc<Worker>, stream: TcpStream, application: Application) {
    let metrics = &worker.shared.metrics;
    metrics.connection(Direction::Inbound, Wire::Plaintext);
    let unread = Replayed::new(bytes::Bytes::new(), stream);
    outside(worker, unread, application).await;
}

async fn serve(
    worker: &Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    application: Application,
    mesh_only: bool,
) {
    let shared = &worker.shared;
    let Some(material) = shared.tls.current() else {
        refuse(worker, client, Reason::PeerNotAuthenticated);
        return reset(&stream);
    };
    let timeouts = &shared.config.timeouts;
    // Server-first: a silent client is waited for only as long as detection may take.
    let silence = if mesh_only {
        timeouts.handshake
    } else {
        timeouts.detect
    };
    match open(stream, &material, silence, timeouts.handshake).await {
        Ok(Opened::MeshH2(stream, peer)) => {
            shared.metrics.connection(Direction::Inbound, Wire::Mtls);
            let caller = Some(Caller::new(&material, peer));
            http::serve(worker, stream, application, caller, true).await;
        }
        Ok(Opened::MeshH1(stream, peer)) => {
            shared.metrics.connection(Direction::Inbound, Wire::Mtls);
            let caller = Some(Caller::new(&material, peer));
            http::serve(worker, stream, application, caller, false).await;
        }
        Ok(Opened::MeshTcp(stream, peer)) => {
            shared.metrics.connection(Direction::Inbound, Wire::Mtls);
            opaque(worker, stream, application, Some(&peer)).await;
        }
        Ok(Opened::Outside(stream)) => {
            if mesh_only || shared.config.mtls == MtlsMode::Strict {
                refuse(worker, client, Reason::PlaintextRefused);
                return reset(stream.get_ref());
            }
            let metrics = &shared.metrics;
            metrics.connection(Direction::Inbound, Wire::Plaintext);
            outside(worker, stream, application).await;
        }
        Err(error) => {
            let reason = match error {
                OpenError::Peer(_) => "peer",
                OpenError::Timeout(_) => "timeout",
                OpenError::Io(_) => "tls",
            };
            shared.metrics.handshake_failed(Direction::Inbound, reason);
            tracing::info!(%client, %error, "inbound handshake failed");
        }
    }
}

/// Plaintext, or the application's own TLS. HTTP is read, so that nobody outside can claim to be
/// a caller whom the mesh has verified.
async fn outside(worker: &Rc<Worker>, stream: Replayed<TcpStream>, application: Application) {
    let (first, mut io) = stream.into_parts();
    let opaque_port = matches!(application.protocol, AppProtocol::Tcp | AppProtocol::Tls);
    // A silent client waits for the server to speak.
    let (verdict, first) = if opaque_port {
        (Verdict::Opaque, first)
    } else {
        match sniff(worker, &mut io, first).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "the client went away");
                return;
            }
        }
    };
    let stream = Replayed::new(first, io);
    match verdict {
        Verdict::Http1 => http::serve(worker, stream, application, None, false).await,
        Verdict::Http2 => http::serve(worker, stream, application, None, true).await,
        Verdict::Tls | Verdict::Opaque | Verdict::NeedMore => {
            opaque(worker, stream, application, None).await;
        }
    }
}

/// Opaque bytes to the application.
async fn opaque<IO>(
    worker: &Rc<Worker>,
    mut client: IO,
    application: Application,
    peer: Option<&VerifiedPeer>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Socket,
{
    let shared = &worker.shared;
    let mut server = match dial(shared, &application).await {
        Ok(server) => server,
        Err((reason, detail)) => {
            tracing::info!(reason = reason.as_str(), detail, "connection refused");
            return reset(client.socket());
        }
    };
    let stats = shared.metrics.tcp(key(&application, peer));
    let opened = stats.open(peer.map_or(Wire::Plaintext, |_peer| Wire::Mtls));
    let (moved, ended) = tokio::select! {
        done = relay(&mut client, &mut server, &shared.config, None) => done,
        () = shared.drain.cut() => {
            reset(&server);
            return reset(client.socket());
        }
    };
    opened.received(moved.forward);
    opened.sent(moved.backward);
    if !matches!(ended, Ended::Clean) {
        tracing::debug!(?ended, port = application.port, "TCP relay ended");
        reset(&server);
        reset(client.socket());
    }
}

/// A connection of some kind over a TCP socket.
trait Socket {
    /// The socket under it.
    fn socket(&self) -> &TcpStream;
}

impl Socket for Replayed<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref()
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
