//! Upgrades (WebSocket) and CONNECT: one exchange on a connection of its own, after which the
//! connections of client and server become one stream of bytes.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tokio::task::spawn_local;
use weft_core::headers::remove_hop_by_hop;

use crate::config::ProxyConfig;
use crate::drain::{Ends, Side};
use crate::http::h1::client::{ClientError, Connection, Home};
use crate::http::{BodyGuard, Incoming, Io, ProxyBody, SendError, Upgrade, h1};
use crate::relay::{Ended, Terms, relay_unless};
use crate::shared::Shared;
use crate::tls::Signal;

/// One exchange in HTTP/1.1 on a connection that may then be taken over.
#[derive(Debug)]
pub(crate) struct SingleExchange(Option<Box<Connection>>);

impl SingleExchange {
    /// Takes a fresh connection.
    pub(crate) fn begin(io: impl Io + 'static, config: &ProxyConfig) -> Self {
        Self(Some(Connection::new(io, h1::limits(config))))
    }

    /// Takes a fresh connection to another sidecar.
    pub(crate) fn begin_with_peer(io: impl Io + 'static, config: &ProxyConfig) -> Self {
        Self(Some(Connection::new(io, h1::peer_limits(config))))
    }

    /// Sends the request.
    pub(crate) async fn send(
        &mut self,
        request: Box<Request<ProxyBody>>,
    ) -> Result<Response<Incoming>, SendError> {
        match self.0.take() {
            Some(connection) => connection.send(request, Home::None).await,
            None => Err(SendError {
                unsent: Some(request),
                sent: None,
                error: ClientError::Closed.into(),
            }),
        }
    }
}

/// Whether the server agrees to go on in another protocol than HTTP. The response to a CONNECT is
/// marked by an upgrade to wait for.
pub(crate) fn is_agreed(response: &Response<Incoming>) -> bool {
    let connected = response.status().is_success() && Upgrade::is_offered(response.extensions());
    response.status() == StatusCode::SWITCHING_PROTOCOLS || connected
}

/// Makes one stream of bytes of the client's connection and the server's. The guard is told when it
/// ends: the stream is one request. `signal` is that of the connection to another sidecar, where one
/// of both is.
pub(crate) fn join<G: BodyGuard + 'static>(
    shared: &Arc<Shared>,
    (side, signal): (Side, Option<Arc<Signal>>),
    idle: Option<Duration>,
    mut response: Response<Incoming>,
    client: Upgrade,
    mut guard: G,
) -> Response<ProxyBody<G>> {
    let server = Upgrade::take(response.extensions_mut());
    let status = response.status();
    let (mut parts, _no_body) = response.into_parts();
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    remove_hop_by_hop(&mut parts.headers, switching);
    let shared = Arc::clone(shared);
    spawn_local(async move {
        let Some(server) = server else { return };
        let both = tokio::try_join!(client.upgraded(), server.upgraded());
        let (mut client, mut server) = match both {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "upgrade not completed");
                return;
            }
        };
        let ends = Ends::new(&shared.drain, side, signal.as_deref());
        let terms = Terms {
            config: &shared.config,
            ends: &ends,
            idle,
            watch: None,
        };
        let (gone, lost) = (client.broken(), server.broken());
        let broken = async {
            tokio::select! {
                error = gone => error,
                error = lost => error,
            }
        };
        let (client_side, server_side) = (client.stream(), server.stream());
        let (moved, ended) = relay_unless(client_side, server_side, terms, broken).await;
        tracing::debug!(?moved, ?ended, "upgraded stream ended");
        guard.on_stream(moved.forward, moved.backward);
        if !matches!(ended, Ended::Clean) {
            // Either side would take an orderly end for the whole.
            client.abort();
            server.abort();
        }
        // Its places are given back when the connections have gone.
        drop((client, server));
        match ended {
            Ended::Idle => guard.on_silence(),
            Ended::Clean => guard.on_end(None),
            // It sees by itself why. One that is cut is broken to whoever reads from it.
            Ended::Cut => drop(guard),
            Ended::Broken(_) if ends.cut_reason().is_some() => drop(guard),
            Ended::Broken(_) | Ended::Suspicious(_) => guard.on_end(None),
        }
    });
    Response::from_parts(parts, ProxyBody::Empty)
}
