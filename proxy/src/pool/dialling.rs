//! How connections are made: to another sidecar, to a server outside the mesh, to the application.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use weft_core::model::{self, AppProtocol};

use super::carrier::{Far, Line, Made, Sender};
use super::error::DialError;
use super::streams::{Streams, http2};
use crate::config::ProxyConfig;
use crate::connections::{Guarded, keep_alive};
use crate::http::h1::client::{Connection, SharedLine};
use crate::http::h1::limits;
use crate::http::h2::Handle;
use crate::http::{Io, Party, ProxyBody};
use crate::mesh::{ALPN_HTTP2, Endpoint, EndpointKey, Live, Outside, OutsideTls, PortView};
use crate::telemetry::metrics::{Direction, Metrics, Wire};
use crate::tls::{ALPN_H2, Dialled, Material, peer_of_client};

/// A connection to a peer's sidecar. It is cut when its instance is revoked.
pub(crate) type PeerStream = Guarded<TlsStream<TcpStream>>;

/// A connection to a server outside the mesh.
pub(crate) type OutsideStream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Another sidecar, as it is dialled.
#[derive(Debug, Clone)]
pub(super) struct MeshTarget {
    hostname: Arc<str>,
    key: EndpointKey,
    model: Arc<model::Endpoint>,
    live: Arc<Live>,
}

impl MeshTarget {
    pub(super) fn of(port: &PortView, endpoint: &Endpoint) -> Self {
        Self {
            hostname: Arc::clone(&port.hostname),
            key: endpoint.key.clone(),
            model: Arc::clone(&endpoint.model),
            live: Arc::clone(&endpoint.live),
        }
    }

    fn dialled(&self) -> Dialled {
        Dialled {
            service: self.key.service.clone(),
            port: self.key.port,
            instance: Arc::clone(&self.key.instance),
            address: self.key.address,
        }
    }
}

/// Dials a peer's sidecar for `alpn` and makes sure that it is the one meant.
pub(crate) async fn dial(
    port: &PortView,
    endpoint: &Endpoint,
    material: &Arc<Material>,
    alpn: &'static [u8],
    limit: Duration,
    metrics: &Metrics,
) -> Result<PeerStream, DialError> {
    let target = MeshTarget::of(port, endpoint);
    dial_target(&target, material, alpn, limit, metrics).await
}

async fn dial_target(
    target: &MeshTarget,
    material: &Arc<Material>,
    alpn: &'static [u8],
    limit: Duration,
    metrics: &Metrics,
) -> Result<PeerStream, DialError> {
    let address = target.key.address;
    let dialling = async {
        if material.has_ended() {
            return Err(DialError::NoCertificate);
        }
        let tcp = connect(address).await?;
        let config = target.live.tls_config(material, alpn);
        let name =
            ServerName::try_from(target.hostname.to_string()).map_err(|_| DialError::Tls {
                address,
                source: Arc::new(io::Error::other("the service's hostname is not a DNS name")),
            })?;
        let stream = TlsConnector::from(config).connect(name, tcp).await;
        let stream = stream.map_err(|error| DialError::of_handshake(address, error))?;
        let identity = target.model.identity.as_ref();
        let identity = identity.ok_or_else(|| DialError::Tls {
            address,
            source: Arc::new(io::Error::other("nobody is known to have to answer there")),
        })?;
        let peer = peer_of_client(&stream, material)
            .and_then(|peer| Ok(peer.expect(identity)?))
            .and_then(|peer| material.join(&peer, Some(target.dialled())));
        let standing = peer.map_err(|source| DialError::Peer { address, source })?;
        Ok(Guarded::dialled(stream, standing))
    };
    let dialled = timeout(limit, dialling).await;
    let dialled = dialled.unwrap_or_else(|_elapsed| Err(DialError::Timeout { address, limit }));
    count(metrics, &dialled, |_stream| Wire::Mtls);
    dialled
}

/// Counts a connection that was made to the other side, or a handshake that failed.
fn count<S>(metrics: &Metrics, dialled: &Result<S, DialError>, wire: impl FnOnce(&S) -> Wire) {
    match dialled {
        Ok(stream) => metrics.connection(Direction::Outbound, wire(stream)),
        Err(error) => {
            if let Some(reason) = error.handshake() {
                metrics.handshake_failed(Direction::Outbound, reason);
            }
        }
    }
}

/// A plain connection with the settings that every connection has.
pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream, DialError> {
    let failed = |source| DialError::Connect {
        address,
        source: Arc::new(source),
    };
    let tcp = TcpStream::connect(address).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    keep_alive(&tcp);
    Ok(tcp)
}

/// Connects to a server, with the TLS that its service asks for.
pub(crate) async fn dial_outside(
    outside: &Outside,
    address: SocketAddr,
    config: fn(&OutsideTls) -> &Arc<ClientConfig>,
    limit: Duration,
    metrics: &Metrics,
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
    let dialled = timeout(limit, dialling).await;
    let dialled = dialled.unwrap_or_else(|_elapsed| Err(DialError::Timeout { address, limit }));
    count(metrics, &dialled, |stream| match stream {
        Either::Left(_plain) => Wire::Plaintext,
        Either::Right(_tls) => Wire::Tls,
    });
    dialled
}

fn unusable(address: SocketAddr, why: &str) -> DialError {
    DialError::Tls {
        address,
        source: Arc::new(io::Error::other(why.to_owned())),
    }
}

fn broken(address: SocketAddr, limit: Duration, error: io::Error) -> DialError {
    if error.kind() == io::ErrorKind::TimedOut {
        return DialError::Timeout { address, limit };
    }
    DialError::Tls {
        address,
        source: Arc::new(error),
    }
}

/// A connection to another sidecar that requests are sent over.
pub(super) async fn make_mesh(
    target: &MeshTarget,
    material: &Arc<Material>,
    limit: Duration,
    (config, metrics): (&ProxyConfig, &Metrics),
) -> Result<Made<Handle<ProxyBody>>, DialError> {
    let stream = dial_target(target, material, ALPN_H2, limit, metrics).await?;
    let signal = stream.signal();
    let made = settled_http2(stream, config, Party::Peer, limit).await;
    let (line, streams) = made.map_err(|error| broken(target.key.address, limit, error))?;
    Ok(Made {
        line,
        generation: material.generation,
        streams: Some(streams),
        signal,
    })
}

/// A connection to a server outside the mesh, in what the server speaks.
pub(super) async fn make_outside(
    outside: &Outside,
    protocol: AppProtocol,
    address: SocketAddr,
    limit: Duration,
    (config, metrics): (&ProxyConfig, &Metrics),
) -> Result<Made<Sender>, DialError> {
    let stream = dial_outside(outside, address, |tls| &tls.requests, limit, metrics).await?;
    let negotiated = match &stream {
        Either::Left(_plain) => None,
        Either::Right(tls) => tls.get_ref().1.alpn_protocol(),
    };
    let with_http2 = match protocol {
        AppProtocol::Http2 | AppProtocol::Grpc => true,
        AppProtocol::Detect | AppProtocol::Http | AppProtocol::Tcp | AppProtocol::Tls => {
            negotiated == Some(ALPN_HTTP2)
        }
    };
    if with_http2 && outside.tls.is_some() && negotiated != Some(ALPN_HTTP2) {
        return Err(unusable(
            address,
            "the server does not speak HTTP/2 (ALPN h2)",
        ));
    }
    let (line, streams) = if with_http2 {
        let made = settled_http2(stream, config, Party::External, limit).await;
        let (line, streams) = made.map_err(|error| broken(address, limit, error))?;
        (Line::Http2(line), Some(streams))
    } else {
        (http1(stream, config), None)
    };
    let tls = outside.tls.is_some();
    Ok(Made {
        line: Sender::new(line, Far::External { tls }),
        generation: outside.id,
        streams,
        signal: None,
    })
}

/// A connection to the application, in HTTP/2 or HTTP/1.1.
pub(super) async fn make_application(
    stream: TcpStream,
    with_http2: bool,
    limit: Duration,
    config: &ProxyConfig,
) -> Result<Made<Sender>, String> {
    let far = Far::Application;
    if !with_http2 {
        return Ok(Made {
            line: Sender::new(http1(stream, config), far),
            generation: 0,
            streams: None,
            signal: None,
        });
    }
    let made = settled_http2(stream, config, Party::Application, limit).await;
    let (line, streams) = made.map_err(|error| error.to_string())?;
    Ok(Made {
        line: Sender::new(Line::Http2(line), far).announced(&streams),
        generation: 0,
        streams: Some(streams),
        signal: None,
    })
}

/// A connection in HTTP/2 whose server has said how many requests it takes at a time.
async fn settled_http2<IO>(
    io: IO,
    config: &ProxyConfig,
    party: Party,
    limit: Duration,
) -> io::Result<(Handle<ProxyBody>, Rc<Streams>)>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (line, streams) = http2(io, config, party);
    settled(&streams, limit).await?;
    Ok((line, streams))
}

/// Until a server has said how many requests it takes at a time: its SETTINGS come first (RFC 9113
/// section 3.4). Requests that were sent before would be refused where they are too many, or wait where
/// nobody sees them.
async fn settled(streams: &Streams, limit: Duration) -> io::Result<()> {
    match timeout(limit, streams.settled()).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::other(
            "the connection ended before the server sent SETTINGS",
        )),
        Err(_elapsed) => {
            let detail = format!("the server sent no SETTINGS within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, detail))
        }
    }
}

/// A connection in HTTP/1.1.
fn http1(stream: impl Io + 'static, config: &ProxyConfig) -> Line {
    Line::Http1(SharedLine::new(Connection::new(stream, limits(config))))
}
