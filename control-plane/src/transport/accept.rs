//! The accept loop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Connection;
use crate::budget::HANDSHAKE_TIMEOUT;
use crate::peers::{AnonymousPlace, Peers};
use crate::tls::ServerTls;

/// After accept failed, as when descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections may take to end when the listener closes.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Accepts until `stop`, and serves each connection whose handshake succeeds.
pub async fn accept<S, F>(
    listener: TcpListener,
    tls: ServerTls,
    peers: Arc<Peers>,
    stop: CancellationToken,
    serve: S,
) where
    S: Fn(Connection) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A refused connection is closed: nothing can be said to it before TLS.
        let Ok(place) = peers.admit_anonymous(address) else {
            continue;
        };
        let acceptor = TlsAcceptor::from(tls.load_full());
        let (serve, peers) = (serve.clone(), Arc::clone(&peers));
        tasks.spawn(async move {
            if let Some(connection) = shake_hands(tcp, address, acceptor, place, &peers).await {
                serve(connection).await;
            }
        });
    }
    drop(listener);
    tasks.close();
    let _late_ones_are_cut = timeout(STOP_MAX, tasks.wait()).await;
}

/// TLS, for as long as the connection may keep its place.
async fn shake_hands(
    tcp: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    place: AnonymousPlace,
    peers: &Peers,
) -> Option<Connection> {
    let _best_effort = tcp.set_nodelay(true);
    let shaking = tokio::select! {
        shaking = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)) => shaking,
        () = place.cut().cancelled() => return None,
    };
    match shaking {
        Ok(Ok(stream)) => Some(Connection::new(stream, address, place)),
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake failed");
            None
        }
        Err(_elapsed) => {
            peers.note_late(address, "the TLS handshake took too long");
            None
        }
    }
}
