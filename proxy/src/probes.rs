//! The kubelet's probes of the application, which it sends to the sidecar: under strict mutual TLS it
//! could not reach the application itself.
//!
//! Only probes that are configured can be asked for, at the pod's own address and the ports that they
//! name.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use weft_core::health::grpc;

use crate::config::{HttpProbe, Probe, ProbeAction, ProbeScheme, ProxyConfig};
use crate::tls::provider;

/// An answer of the application holds for this long, for whoever asks: the kubelet asks once a second at
/// most, and others who reach the port must neither load the application nor take the kubelet's place.
const ANSWER_HOLDS: Duration = Duration::from_millis(500);
/// What is passed on of the application's answer, bytes: the kubelet reads no more.
const BODY_BYTES_MAX: usize = 10 * 1024;

/// The application's probes.
#[derive(Debug)]
pub struct Probes {
    probes: BTreeMap<String, Asked>,
    address: IpAddr,
}

/// A probe, with the last answer. It is carried out once at a time, however many ask.
#[derive(Debug)]
struct Asked {
    probe: Probe,
    last: Mutex<Option<(Instant, Answer)>>,
}

/// What the kubelet is answered.
type Answer = (StatusCode, String);

impl Default for Probes {
    /// None.
    fn default() -> Self {
        Self {
            probes: BTreeMap::new(),
            address: Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl Probes {
    /// Those that are configured, of an application that listens at `own` unless another address is
    /// configured for it.
    pub fn new(config: &ProxyConfig, own: IpAddr) -> Self {
        let address = config.application_address.unwrap_or(own);
        Self::at(address, config.kubernetes.probes.clone())
    }

    fn at(address: IpAddr, probes: BTreeMap<String, Probe>) -> Self {
        let probes = probes.into_iter().map(|(path, probe)| {
            let last = Mutex::default();
            (path, Asked { probe, last })
        });
        Self {
            probes: probes.collect(),
            address,
        }
    }

    /// What the kubelet is answered; `None` where no probe has this path.
    pub async fn answer(&self, path: &str) -> Option<Answer> {
        let Asked { probe, last } = self.probes.get(path)?;
        let mut last = last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < ANSWER_HOLDS
        {
            return Some(answer.clone());
        }
        let limit = Duration::from_secs(probe.timeout_seconds.max(1).into());
        let answered = timeout(limit, Box::pin(self.run(probe))).await;
        let answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            Err(_elapsed) => {
                let text = format!("the application has not answered within {limit:?}\n");
                (StatusCode::GATEWAY_TIMEOUT, text)
            }
        };
        *last = Some((Instant::now(), answer.clone()));
        Some(answer)
    }

    async fn run(&self, probe: &Probe) -> Result<(StatusCode, String), Failed> {
        match probe.action() {
            Some(ProbeAction::Http(probe)) => {
                let stream = self.dial(probe.port).await?;
                match probe.scheme {
                    ProbeScheme::Http => self.http(probe, stream).await,
                    ProbeScheme::Https => {
                        let name = ServerName::IpAddress(self.address.into());
                        let tls = TlsConnector::from(Arc::new(unverified()?));
                        let stream = tls.connect(name, stream).await?;
                        self.http(probe, stream).await
                    }
                }
            }
            Some(ProbeAction::Tcp(port)) => {
                let _connected = self.dial(port).await?;
                Ok((StatusCode::OK, "connected\n".to_owned()))
            }
            Some(ProbeAction::Grpc(port, service)) => {
                let stream = self.dial(port).await?;
                self.grpc(stream, port, service).await
            }
            // The configuration was checked.
            None => Err(Failed("the probe does nothing".to_owned())),
        }
    }

    /// A connection to the application that interception lets through.
    async fn dial(&self, port: u16) -> Result<TcpStream, Failed> {
        let address = SocketAddr::new(self.address, port);
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        crate::intercept::mark_inbound(&socket)?;
        let connected = socket.connect(address).await;
        connected.map_err(|error| Failed(format!("{address}: {error}")))
    }

    async fn http(
        &self,
        probe: &HttpProbe,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(StatusCode, String), Failed> {
        let request = self.request(probe)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _driven = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = shown(response.into_body()).await;
        // As the kubelet has it: 200 to 399 is success. A redirection is not followed, and is
        // none of the sidecar's.
        let status = match status.is_redirection() {
            true => StatusCode::OK,
            false => status,
        };
        Ok((status, body))
    }

    fn request(&self, probe: &HttpProbe) -> Result<Request<Full<Bytes>>, Failed> {
        let path = match probe.path.as_str() {
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        let host = SocketAddr::new(self.address, probe.port).to_string();
        let mut request = Request::get(path)
            .header(header::USER_AGENT, "kube-probe/weft")
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close")
            .header(header::HOST, host)
            .body(Full::default())?;
        let headers = request.headers_mut();
        for field in &probe.http_headers {
            let name: header::HeaderName = field.name.parse().map_err(http::Error::from)?;
            let value = HeaderValue::from_str(&field.value).map_err(http::Error::from)?;
            headers.insert(name, value);
        }
        Ok(request)
    }

    async fn grpc(
        &self,
        stream: TcpStream,
        port: u16,
        service: &str,
    ) -> Result<(StatusCode, String), Failed> {
        let host = SocketAddr::new(self.address, port);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{host}{}", grpc::CHECK_PATH))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, "kube-probe/weft")
            .body(Full::new(Bytes::from(grpc::request(service))))?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        let _driven = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, grpc::MAX_ANSWER).collect().await;
        let body = body.map_err(|error| Failed(format!("the answer cannot be read: {error}")))?;
        let trailers = body.trailers().cloned();
        judge(&parts.headers, trailers.as_ref(), &body.to_bytes())
    }
}

/// What the answer of a gRPC server says of its health.
fn judge(
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
    body: &[u8],
) -> Result<(StatusCode, String), Failed> {
    let code = trailers.unwrap_or(headers).get("grpc-status");
    let code = code.and_then(|code| code.to_str().ok());
    if code != Some("0") {
        let code = code.unwrap_or("none");
        return Err(Failed(format!("the call has failed: grpc-status {code}")));
    }
    match grpc::answer(body) {
        Some(grpc::Serving::Serving) => Ok((StatusCode::OK, "SERVING\n".to_owned())),
        Some(serving) => Err(Failed(serving.as_str().to_owned())),
        None => Err(Failed("the answer is no HealthCheckResponse".to_owned())),
    }
}

/// The first bytes of a body, for people.
async fn shown(mut body: Incoming) -> String {
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let room = BODY_BYTES_MAX - text.len();
        text.extend_from_slice(data.get(..room).unwrap_or(&data));
        if text.len() == BODY_BYTES_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Why a probe has failed, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

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
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
        .with_no_client_auth();
    Ok(config)
}

/// Takes every certificate. Nothing is sent over such a connection but a probe's request.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
