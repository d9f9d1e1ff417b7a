//! Connections to servers outside the mesh: plain, or in TLS of our own making, in HTTP/1.1 one
//! request after the other, in HTTP/2 as many as the server takes.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{Request, Response, Uri};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use weft_core::headers::remove_untrusted;
use weft_core::model::AppProtocol;

use super::{Carrier, DialError, Peer, Pool, Sender, Slot, connect};
use crate::http::h1::client::{ClientError, Connection, SharedLine};
use crate::http::h1::limits;
use crate::http::{Incoming, ProxyBody, SendError, http2_client, send_http2};
use crate::mesh::{ALPN_HTTP2, Endpoint, Outside, OutsideTls, PortView};

/// Servers close idle connections in HTTP/1.1 when they please: ours are closed before most do.
const HTTP1_IDLE: Duration = Duration::from_secs(15);

/// A connection to a server outside the mesh.
pub(in crate::outbound) type OutsideStream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// What requests to a server outside the mesh are sent with.
#[derive(Debug, Clone)]
pub(crate) struct OutsideSender {
    line: Line,
    tls: bool,
    /// What the head of a response may have.
    head_bytes: usize,
}

#[derive(Debug, Clone)]
enum Line {
    Http1(SharedLine),
    Http2(http2::SendRequest<ProxyBody>),
}

impl OutsideSender {
    /// Sends a request that is absolute. Nothing that is the mesh's own leaves it, and nothing that
    /// comes back speaks for it.
    pub(super) async fn send(
        &mut self,
        mut request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, SendError> {
        remove_untrusted(request.headers_mut());
        let mut response = match &mut self.line {
            Line::Http1(line) => {
                let Some((connection, home)) = line.take() else {
                    return Err(SendError {
                        unsent: Some(Box::new(request)),
                        error: ClientError::Closed.into(),
                    });
                };
                connection.send(request, home).await?
            }
            Line::Http2(sender) => {
                if self.tls {
                    secure(request.uri_mut());
                }
                send_http2(sender, request, self.head_bytes).await?
            }
        };
        remove_untrusted(response.headers_mut());
        Ok(response)
    }

    pub(super) fn is_closed(&self) -> bool {
        match &self.line {
            Line::Http1(line) => line.is_closed(),
            Line::Http2(sender) => sender.is_closed(),
        }
    }

    /// Whether one request at a time is all that it takes.
    pub(super) fn is_exclusive(&self) -> bool {
        matches!(self.line, Line::Http1(..))
    }

    /// Whether it takes a request at once.
    pub(super) fn is_ready(&self) -> bool {
        match &self.line {
            Line::Http1(line) => line.is_ready(),
            Line::Http2(_) => true,
        }
    }
}

/// What the program asks for in the clear is asked for in TLS.
fn secure(uri: &mut Uri) {
    let mut parts = std::mem::take(uri).into_parts();
    if parts.scheme.is_some() {
        parts.scheme = Some(Scheme::HTTPS);
    }
    // Only the scheme is another one.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

/// Connects to a server, with the TLS that its service asks for.
pub(in crate::outbound) async fn dial(
    outside: &Outside,
    address: SocketAddr,
    config: fn(&OutsideTls) -> &Arc<ClientConfig>,
    limit: Duration,
) -> Result<OutsideStream, DialError> {
    let dialling = async {
        let tls = match &outside.tls {
            None => return Ok(Either::Left(connect(address).await?)),
            Some(Err(why)) => return Err(unusable(address, why)),
            Some(Ok(tls)) => tls,
        };
        let tcp = connect(address).await?;
        let connector = TlsConnector::from(Arc::clone(config(tls)));
        let stream = connector.connect(tls.name.clone(), tcp).await;
        let stream = stream.map_err(|source| DialError::Tls {
            address,
            source: Arc::new(source),
        })?;
        Ok(Either::Right(Box::new(stream)))
    };
    match timeout(limit, dialling).await {
        Ok(result) => result,
        Err(_elapsed) => Err(DialError::Timeout { address, limit }),
    }
}

fn unusable(address: SocketAddr, why: &str) -> DialError {
    DialError::Tls {
        address,
        source: Arc::new(io::Error::other(why.to_owned())),
    }
}

impl Peer {
    /// A place on a connection that there is.
    fn place(&self, generation: u64, streams: u32) -> Option<Slot> {
        let fits =
            |carrier: &&Rc<Carrier>| carrier.generation == generation && carrier.has_room(streams);
        self.carriers.iter().find(fits).map(Slot::new)
    }
}

impl Pool {
    /// A place on a connection to a server outside the mesh, made if there is none with room.
    pub(super) async fn outside_slot(
        &self,
        port: &PortView,
        outside: &Outside,
        endpoint: &Endpoint,
    ) -> Result<Slot, DialError> {
        let streams = self.config.limits.max_concurrent_streams;
        let most = port.policy.requests_per_connection.unwrap_or(u32::MAX);
        // Without TLS nothing is negotiated.
        let known = outside.tls.is_none() && port.protocol == AppProtocol::Http;
        loop {
            let connecting = {
                let mut peers = self.peers.borrow_mut();
                let peer = peers.entry(endpoint.key.clone()).or_default();
                peer.drop_spent(port.policy.requests_per_connection);
                if let Some(slot) = peer.place(outside.id, streams) {
                    return Ok(slot);
                }
                let alone = known || peer.exclusive;
                (!alone).then(|| peer.connecting.get_or_insert_default().clone())
            };
            let Some(connecting) = connecting else {
                let carrier = self.connect_outside(port, outside, endpoint).await?;
                let slot = Slot::new(&carrier);
                self.keep(endpoint, carrier);
                return Ok(slot);
            };
            // Whether requests can share a connection is known when one stands: until then they
            // wait for it together.
            let made = connecting.made.get_or_init(|| async {
                let made = self.connect_outside(port, outside, endpoint).await;
                let mut peers = self.peers.borrow_mut();
                let peer = peers.entry(endpoint.key.clone()).or_default();
                peer.connecting = None;
                if let Ok(carrier) = &made {
                    peer.exclusive = carrier.sender.is_exclusive();
                    peer.carriers.retain(|c| c.generation == outside.id);
                    peer.carriers.push(Rc::clone(carrier));
                }
                made
            });
            let carrier = made.await.clone()?;
            // One that has just been made takes a request although it has not asked for one yet.
            let fresh = carrier.carried.get() == 0;
            if (fresh || carrier.has_room(streams)) && carrier.carried.get() < most {
                return Ok(Slot::new(&carrier));
            }
        }
    }

    fn keep(&self, endpoint: &Endpoint, carrier: Rc<Carrier>) {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(endpoint.key.clone()).or_default();
        peer.carriers.retain(|c| c.generation == carrier.generation);
        peer.exclusive = carrier.sender.is_exclusive();
        peer.carriers.push(carrier);
    }

    async fn connect_outside(
        &self,
        port: &PortView,
        outside: &Outside,
        endpoint: &Endpoint,
    ) -> Result<Rc<Carrier>, DialError> {
        let address = endpoint.key.address;
        let limit = port.connect_timeout(&self.config);
        let stream = dial(outside, address, |tls| &tls.requests, limit).await?;
        let negotiated = match &stream {
            Either::Left(_plain) => None,
            Either::Right(tls) => tls.get_ref().1.alpn_protocol(),
        };
        let http2 = match port.protocol {
            AppProtocol::Http2 | AppProtocol::Grpc => true,
            AppProtocol::Detect | AppProtocol::Http | AppProtocol::Tcp | AppProtocol::Tls => {
                negotiated == Some(ALPN_HTTP2)
            }
        };
        if http2 && outside.tls.is_some() && negotiated != Some(ALPN_HTTP2) {
            return Err(unusable(
                address,
                "the server does not speak HTTP/2 (ALPN h2)",
            ));
        }
        let failed = |error: hyper::Error| DialError::Tls {
            address,
            source: Arc::new(io::Error::other(error)),
        };
        let line = if http2 {
            let made = http2_client(&self.config).handshake(TokioIo::new(stream));
            let (sender, connection) = made.await.map_err(failed)?;
            spawn(connection);
            Line::Http2(sender)
        } else {
            let connection = Connection::new(stream, limits(&self.config));
            Line::Http1(SharedLine::new(connection))
        };
        let tls = outside.tls.is_some();
        Ok(Rc::new(Carrier {
            sender: Sender::Outside(OutsideSender {
                line,
                tls,
                head_bytes: self.config.limits.max_header_bytes.bytes(),
            }),
            in_flight: Cell::new(0),
            carried: Cell::new(0),
            generation: outside.id,
            last_used: Cell::new(Instant::now()),
        }))
    }
}

/// Drives a connection to its end.
fn spawn(connection: impl Future<Output = hyper::Result<()>> + 'static) {
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the outside ended");
        }
    });
}

/// How long a connection may be idle: those in HTTP/1.1 not for long.
pub(super) fn idle_of(sender: &Sender, idle: Duration) -> Duration {
    match sender.is_exclusive() {
        true => idle.min(HTTP1_IDLE),
        false => idle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_scheme_changes() {
        let mut uri: Uri = "http://api.example.com:8080/a?b=c".parse().unwrap();
        secure(&mut uri);
        assert_eq!(uri, "https://api.example.com:8080/a?b=c");
    }
}
