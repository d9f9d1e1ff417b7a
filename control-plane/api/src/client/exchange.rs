//! One request and its answer, on a connection of its own.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::ClientError;
use crate::SERVER_NAME;
use crate::operator::OperatorFile;
use crate::reader;
use crate::types::ErrorBody;

/// A little longer than the server takes to give up.
const CALL_TIMEOUT: Duration = Duration::from_secs(35);
/// An answer, bytes.
const ANSWER_MAX_BYTES: usize = 256 * 1024 * 1024;
/// A refusal, bytes.
const REFUSAL_MAX_BYTES: usize = 1024 * 1024;

/// A control plane elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    /// HOST:PORT.
    pub(super) address: String,
    pub(super) tls: Arc<ClientConfig>,
}

/// What a call connects to.
pub(super) enum Endpoint {
    Socket(PathBuf),
    Tls(Remote),
}

/// A connection of either kind.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> Connection for IO {}

impl Endpoint {
    /// One request and its answer on a connection of its own.
    ///
    /// Only this much is generic: the exchange is compiled once for all types of the API.
    pub(super) async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let body = body.map_or_else(|| Ok(Vec::new()), serde_json::to_vec);
        let body = body.map_err(|error| self.broken(error))?;
        let answer = self.call_json(method, path, body).await?;
        let reading = reader::read(&answer);
        reading.value.map_err(|misfit| self.not_understood(misfit))
    }

    async fn call_json(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Value, ClientError> {
        let exchanged = async {
            let stream = self.connect().await.map_err(|source| {
                let at = self.to_string();
                ClientError::Connect { at, source }
            })?;
            let sent = exchange(stream, method, path, body).await;
            sent.map_err(|cause| self.broken(cause))
        };
        let exchanged = tokio::time::timeout(CALL_TIMEOUT, exchanged).await;
        let (status, bytes) = exchanged.unwrap_or_else(|_| {
            let cause = format!("no answer in {} s", CALL_TIMEOUT.as_secs());
            Err(self.broken(cause))
        })?;
        if !status.is_success() {
            return Err(refused(status, &bytes));
        }
        serde_json::from_slice(&bytes).map_err(|error| self.not_understood(error))
    }

    /// Reads an answer piece by piece; each has to come in time.
    pub(super) async fn download(
        &self,
        path: &str,
        output: &mut (dyn Write + Send),
    ) -> Result<u64, ClientError> {
        let late = |_elapsed| self.broken(format!("no answer in {} s", CALL_TIMEOUT.as_secs()));
        let opened = async {
            let stream = self.connect().await.map_err(|source| {
                let at = self.to_string();
                ClientError::Connect { at, source }
            })?;
            let sent = request(stream, Method::GET, path, Vec::new()).await;
            sent.map_err(|cause| self.broken(cause))
        };
        let opened = tokio::time::timeout(CALL_TIMEOUT, opened).await;
        let (response, _connection) = opened.map_err(late)??;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let body = Limited::new(body, REFUSAL_MAX_BYTES).collect().await;
            let body = body.map_err(|error| self.broken(error))?;
            return Err(refused(status, &body.to_bytes()));
        }
        let mut size = 0;
        loop {
            let frame = tokio::time::timeout(CALL_TIMEOUT, body.frame()).await;
            let Some(frame) = frame.map_err(late)? else {
                return Ok(size);
            };
            let frame = frame.map_err(|error| self.broken(error))?;
            if let Ok(data) = frame.into_data() {
                size += data.len() as u64;
                let written = output.write_all(&data);
                written.map_err(|source| ClientError::Output { source })?;
            }
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Self::Tls(remote) => Box::new(connect_tls(remote).await?),
        })
    }

    fn broken(&self, cause: impl ToString) -> ClientError {
        ClientError::Broken {
            at: self.to_string(),
            cause: cause.to_string(),
        }
    }

    fn not_understood(&self, error: impl fmt::Display) -> ClientError {
        self.broken(format!(
            "its answer is not understood: {error}; is it of another version?"
        ))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tls(remote) => write!(f, "https://{}", remote.address),
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(
    stream: Box<dyn Connection>,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), Failure> {
    let (response, _connection) = request(stream, method, path, body).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES);
    let collected = body.collect().await?;
    Ok((status, collected.to_bytes()))
}

/// Sends a request; with the head of its answer comes what drives the connection while it is held.
async fn request(
    stream: Box<dyn Connection>,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(Response<Incoming>, Driven), Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the request: its error is the request's.
    let connection = Driven(tokio::spawn(async move { drop(connection.await) }));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "weft")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    Ok((sender.send_request(request).await?, connection))
}

/// The task of a connection, which ends when this is dropped.
struct Driven(JoinHandle<()>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn refused(status: StatusCode, bytes: &[u8]) -> ClientError {
    let (message, problems) = match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) if !body.error.conflicts.is_empty() => {
            return ClientError::Conflict {
                message: body.error.message,
                conflicts: body.error.conflicts,
            };
        }
        Ok(body) => (body.error.message, body.error.problems),
        Err(_) => {
            let text = String::from_utf8_lossy(bytes);
            let text: String = text.chars().take(500).collect();
            (format!("{status}: {text}"), Vec::new())
        }
    };
    ClientError::Refused {
        status,
        message,
        problems,
    }
}

/// Believes the root in the operator's file and nobody else.
pub(super) fn client_config(operator: OperatorFile) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(operator.root)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(operator.chain, operator.key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn connect_tls(remote: &Remote) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(&remote.address).await?;
    let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::clone(&remote.tls));
    connector.connect(name, tcp).await
}
