//! A client of the admin API and of the join socket, for the command line.

use std::env;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::api::types::{ErrorBody, JoinAnswer, JoinRequest};
use crate::identity::ca::OWN_DNS_NAME;
use crate::identity::operator::OperatorFile;
use crate::model::Problem;
use crate::model::reader;

/// Names the control plane: `unix:DATA-DIR` for one of this machine, `https://HOST:PORT` for one
/// elsewhere.
pub const ADDRESS_VARIABLE: &str = "WEFT_CONTROL_PLANE";
/// Names the operator's file, for a control plane elsewhere.
pub const OPERATOR_VARIABLE: &str = "WEFT_OPERATOR";
/// The operator's socket in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// The workloads' socket in the data directory.
pub const JOIN_SOCKET: &str = "join.sock";

/// A little longer than the server takes to give up.
const CALL_TIMEOUT: Duration = Duration::from_secs(35);
/// An answer, bytes.
const ANSWER_MAX_BYTES: usize = 256 * 1024 * 1024;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The variable makes no sense.
    #[error(
        "WEFT_CONTROL_PLANE: found {0:?}; allowed: unix:DATA-DIR, as in unix:/var/lib/weft, or \
         https://HOST:PORT"
    )]
    Address(String),
    /// The operator's file is not usable.
    #[error("operator file {path}: {reason} (another file is named by WEFT_OPERATOR)")]
    Operator {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What was asked for is for the machine of the control plane only.
    #[error(
        "{at} is a control plane elsewhere: a workload of this machine joins with a token \
         (weft token create there, --join and --token-file here)"
    )]
    NotLocal {
        /// The control plane.
        at: String,
    },
    /// Nobody is there.
    #[error("no control plane answers at {at} ({source}); start one with: weft control-plane")]
    Connect {
        /// Its socket or address.
        at: String,
        /// What connecting came to.
        source: io::Error,
    },
    /// The connection broke off.
    #[error("control plane at {at}: {cause}")]
    Broken {
        /// Its socket or address.
        at: String,
        /// What happened.
        cause: String,
    },
    /// It answered, with a refusal.
    #[error("{message}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        message: String,
        /// What is wrong with documents.
        problems: Vec<Problem>,
    },
}

impl ClientError {
    /// Whether what was asked for is at fault, not the control plane.
    pub fn is_invalid_input(&self) -> bool {
        match self {
            Self::Address(_) | Self::Operator { .. } | Self::NotLocal { .. } => true,
            Self::Refused { status, .. } => matches!(
                *status,
                StatusCode::BAD_REQUEST
                    | StatusCode::UNPROCESSABLE_ENTITY
                    | StatusCode::PAYLOAD_TOO_LARGE
            ),
            Self::Connect { .. } | Self::Broken { .. } => false,
        }
    }
}

/// Where a control plane keeps its state unless it is told otherwise: for root `/var/lib/weft`,
/// else `weft` in the user's state directory.
pub fn default_data_dir() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/weft");
    }
    if let Some(dir) = set("XDG_STATE_HOME") {
        return Path::new(&dir).join("weft");
    }
    let home = set("HOME").map_or_else(env::temp_dir, PathBuf::from);
    home.join(".local/state/weft")
}

/// Speaks with a control plane.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// On this machine: its data directory.
    Here(PathBuf),
    /// Elsewhere.
    There(Remote),
}

/// A control plane elsewhere.
#[derive(Debug, Clone)]
struct Remote {
    /// HOST:PORT.
    address: String,
    tls: Arc<ClientConfig>,
}

impl Client {
    /// Where `WEFT_CONTROL_PLANE` says, else where it is by default.
    pub fn from_env() -> Result<Self, ClientError> {
        let Some(value) = env::var_os(ADDRESS_VARIABLE).filter(|value| !value.is_empty()) else {
            return Ok(Self::at(&default_data_dir()));
        };
        let text = value.to_string_lossy();
        if let Some(dir) = text.strip_prefix("unix:").filter(|dir| !dir.is_empty()) {
            return Ok(Self::at(Path::new(dir)));
        }
        let bad = || ClientError::Address(text.clone().into_owned());
        let address = text.strip_prefix("https://").ok_or_else(bad)?;
        let address: Authority = address.trim_end_matches('/').parse().map_err(|_| bad())?;
        if address.port().is_none() || address.as_str().contains('@') {
            return Err(bad());
        }
        Self::elsewhere(address.as_str(), &operator_file())
    }

    /// The control plane of this machine with this data directory.
    pub fn at(data_dir: &Path) -> Self {
        let place = Place::Here(data_dir.to_owned());
        Self { place }
    }

    /// The control plane at HOST:PORT, for the operator with this file.
    pub fn elsewhere(address: &str, file: &Path) -> Result<Self, ClientError> {
        let bad = |reason: String| ClientError::Operator {
            path: file.to_owned(),
            reason,
        };
        let operator = OperatorFile::read(file).map_err(bad)?;
        let tls = client_config(operator).map_err(|error| bad(error.to_string()))?;
        let place = Place::There(Remote {
            address: address.to_owned(),
            tls: Arc::new(tls),
        });
        Ok(Self { place })
    }

    /// The directory with the sockets, of a control plane of this machine.
    pub fn dir(&self) -> Result<&Path, ClientError> {
        match &self.place {
            Place::Here(dir) => Ok(dir),
            Place::There(Remote { address, .. }) => Err(ClientError::NotLocal {
                at: format!("https://{address}"),
            }),
        }
    }

    /// Calls the admin API. `path` may have a query; see [`query`].
    pub async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let endpoint = match &self.place {
            Place::Here(dir) => Endpoint::Socket(dir.join(ADMIN_SOCKET)),
            Place::There(remote) => Endpoint::Tls(remote.clone()),
        };
        endpoint.call(method, path, body).await
    }

    /// Reads from the admin API.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call::<(), T>(Method::GET, path, None).await
    }

    /// Asks the admin API for something.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Asks for what a workload of this machine needs to join.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, ClientError> {
        let endpoint = Endpoint::Socket(self.dir()?.join(JOIN_SOCKET));
        endpoint.call(Method::POST, "/v1/join", Some(request)).await
    }
}

/// Where an operator's file is looked for: where `WEFT_OPERATOR` says, else `weft/operator.pem` in
/// the user's configuration.
pub fn operator_file() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(named) = set(OPERATOR_VARIABLE) {
        return PathBuf::from(named);
    }
    let config = set("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = || set("HOME").map_or_else(env::temp_dir, PathBuf::from);
    config
        .unwrap_or_else(|| home().join(".config"))
        .join("weft/operator.pem")
}

/// Believes the root in the operator's file and nobody else.
fn client_config(operator: OperatorFile) -> Result<ClientConfig, rustls::Error> {
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
    let name = ServerName::try_from(OWN_DNS_NAME).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::clone(&remote.tls));
    connector.connect(name, tcp).await
}

/// A path with a query; what is empty is left out.
pub fn query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut whole = path.to_owned();
    let mut separator = '?';
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        whole.push(separator);
        whole.push_str(name);
        whole.push('=');
        whole.push_str(&encode(value));
        separator = '&';
    }
    whole
}

/// Percent-encodes everything but unreserved characters (RFC 3986 section 2.3).
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push_str(&crate::hex(&[byte]).to_ascii_uppercase());
        }
    }
    encoded
}

/// What a call connects to.
enum Endpoint {
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
    async fn call<B: Serialize, T: DeserializeOwned>(
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

async fn exchange(
    stream: Box<dyn Connection>,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the request: its error is the request's.
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "weft")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES);
    let collected = body.collect().await?;
    connection.abort();
    Ok((status, collected.to_bytes()))
}

fn refused(status: StatusCode, bytes: &[u8]) -> ClientError {
    let (message, problems) = match serde_json::from_slice::<ErrorBody>(bytes) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let pairs = [("author", "a b&c"), ("empty", ""), ("source", "x/é")];
        let expected = "/v1/apply?author=a%20b%26c&source=x%2F%C3%A9";
        assert_eq!(query("/v1/apply", &pairs), expected);
        assert_eq!(query("/v1/apply", &[("a", "")]), "/v1/apply");
    }
}
