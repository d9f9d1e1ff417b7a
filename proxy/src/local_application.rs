//! The application beside the sidecar, asked by the sidecar itself: probes, and its metrics.
//!
//! It is dialled at the pod's own addresses and past interception, at ports that are configured. An
//! application may listen in one family only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use webpki::KeyUsage;

use crate::config::{ProbeScheme, ProxyConfig};
use crate::tls::{Judge, Verifier, provider};

/// Where the application listens.
#[derive(Debug, Clone)]
pub struct LocalApplication {
    /// Tried in this order; never empty.
    addresses: Arc<[IpAddr]>,
}

/// An answer, and the connection that it comes over.
#[derive(Debug)]
pub struct Answered {
    /// Its head and its body.
    pub response: Response<Incoming>,
    _driven: AbortOnDropHandle<Result<(), hyper::Error>>,
}

impl LocalApplication {
    /// At `own` and this host's address of the other family, unless an address is configured for it.
    pub fn new(config: &ProxyConfig, own: IpAddr) -> Self {
        if let Some(address) = config.application_address {
            return Self::at(address);
        }
        let mut addresses = vec![own];
        let others = TOWARDS.into_iter().filter_map(address_towards);
        addresses.extend(others.filter(|other| other.is_ipv4() != own.is_ipv4()));
        let addresses = addresses.into();
        Self { addresses }
    }

    /// At this address.
    pub fn at(address: IpAddr) -> Self {
        let addresses = Arc::from([address]);
        Self { addresses }
    }

    /// A port of it, at its first address.
    pub fn socket_address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses[0], port)
    }

    /// A connection that interception lets through, at the first address that takes it.
    pub async fn dial(&self, port: u16) -> Result<TcpStream, Failed> {
        let mut failed = Vec::new();
        for address in self.addresses.iter() {
            match Self::dial_at(SocketAddr::new(*address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(Failed(reason)) => failed.push(reason),
            }
        }
        Err(Failed(failed.join("; ")))
    }

    async fn dial_at(address: SocketAddr) -> Result<TcpStream, Failed> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        crate::intercept::mark_inbound(&socket)?;
        let connected = socket.connect(address).await;
        connected.map_err(|error| Failed(format!("{address}: {error}")))
    }

    /// Sends a request in HTTP/1.1 over a connection of its own. Over TLS the certificate is not
    /// looked at, as the kubelet does it.
    pub async fn send(
        &self,
        port: u16,
        scheme: ProbeScheme,
        request: Request<Full<Bytes>>,
    ) -> Result<Answered, Failed> {
        let stream = self.dial(port).await?;
        match scheme {
            ProbeScheme::Http => exchange(stream, request).await,
            ProbeScheme::Https => {
                let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
                let tls = TlsConnector::from(Arc::new(unverified()?));
                exchange(tls.connect(name, stream).await?, request).await
            }
        }
    }
}

/// Addresses that lead nowhere (RFC 5737, RFC 3849), one of each family: only a route is asked for.
const TOWARDS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// This host's address on the way to another; none without a route.
fn address_towards(other: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match other {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a UDP socket sends nothing; it only chooses a route.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((other, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answered, Failed> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driven = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await?;
    Ok(Answered {
        response,
        _driven: driven,
    })
}

impl Answered {
    /// The body's first bytes, copied: frames keep more memory than they have bytes.
    pub async fn read(&mut self, max: usize) -> Read {
        let mut bytes = Vec::new();
        loop {
            let data = match self.response.body_mut().frame().await {
                None => return Read::All(bytes),
                Some(Err(error)) => return Read::Broken(bytes, error),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            let room = max - bytes.len();
            if data.len() > room {
                bytes.extend_from_slice(&data[..room]);
                return Read::Cut(bytes);
            }
            bytes.extend_from_slice(&data);
        }
    }
}

/// How a body was read.
#[derive(Debug)]
pub enum Read {
    /// To its end.
    All(Vec<u8>),
    /// There is more than was to be read.
    Cut(Vec<u8>),
    /// The connection broke after these.
    Broken(Vec<u8>, hyper::Error),
}

/// Why the application gave no answer, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<hyper::Error> for Failed {
    fn from(error: hyper::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<http::Error> for Failed {
    fn from(error: http::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustls::Error> for Failed {
    fn from(error: rustls::Error) -> Self {
        Self(error.to_string())
    }
}

/// TLS as the kubelet has it in a probe: the certificate is not looked at.
fn unverified() -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::tls12(AnyCertificate))
        .with_no_client_auth();
    Ok(config)
}

/// Takes every certificate. Nothing is sent over such a connection but a request that is configured.
#[derive(Debug)]
struct AnyCertificate;

impl Judge for AnyCertificate {
    fn judge(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _usage: KeyUsage,
        _now: UnixTime,
    ) -> Result<(), rustls::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_application_of_one_family_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let both: [IpAddr; 2] = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
        let addresses = Arc::from(both);
        let application = LocalApplication { addresses };
        let stream = application.dial(port).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().ip(), both[1]);
        drop(listener);
        let error = application.dial(port).await.unwrap_err().to_string();
        let parts = [format!("[::1]:{port}: "), format!("; 127.0.0.1:{port}: ")];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
