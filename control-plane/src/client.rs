//! A client of the admin API and of the join socket, for the command line.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::types::{ErrorBody, JoinAnswer, JoinRequest};
use crate::document::Problem;

/// Names the control plane of this machine: `unix:DATA-DIR`.
pub const ADDRESS_VARIABLE: &str = "WEFT_CONTROL_PLANE";
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
    #[error("WEFT_CONTROL_PLANE: found {0:?}; allowed: unix:DATA-DIR, as in unix:/var/lib/weft")]
    Address(String),
    /// Nobody is there.
    #[error("no control plane answers at {path} ({source}); start one with: weft control-plane")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What connecting came to.
        source: io::Error,
    },
    /// The connection broke off.
    #[error("control plane at {socket}: {cause}")]
    Broken {
        /// The socket.
        socket: PathBuf,
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
            Self::Address(_) => true,
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

/// Speaks with the control plane of this machine.
#[derive(Debug, Clone)]
pub struct Client {
    data_dir: PathBuf,
}

impl Client {
    /// Where `WEFT_CONTROL_PLANE` says, else where it is by default.
    pub fn from_env() -> Result<Self, ClientError> {
        let Some(value) = env::var_os(ADDRESS_VARIABLE).filter(|value| !value.is_empty()) else {
            return Ok(Self::at(&default_data_dir()));
        };
        let text = value.to_string_lossy();
        match text.strip_prefix("unix:").filter(|dir| !dir.is_empty()) {
            Some(dir) => Ok(Self::at(Path::new(dir))),
            None => Err(ClientError::Address(text.into_owned())),
        }
    }

    /// The control plane with this data directory.
    pub fn at(data_dir: &Path) -> Self {
        let data_dir = data_dir.to_owned();
        Self { data_dir }
    }

    /// The directory with the sockets.
    pub fn dir(&self) -> &Path {
        &self.data_dir
    }

    /// Calls the admin API. `path` may have a query; see [`query`].
    pub async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        call(&self.data_dir.join(ADMIN_SOCKET), method, path, body).await
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
        let socket = self.data_dir.join(JOIN_SOCKET);
        call(&socket, Method::POST, "/v1/join", Some(request)).await
    }
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

async fn call<B: Serialize, T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<T, ClientError> {
    let exchanged = tokio::time::timeout(CALL_TIMEOUT, exchange(socket, method, path, body)).await;
    let (status, bytes) = exchanged.unwrap_or_else(|_| {
        let cause = format!("no answer in {} s", CALL_TIMEOUT.as_secs());
        Err(broken(socket, cause))
    })?;
    if !status.is_success() {
        return Err(refused(status, &bytes));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        let cause = format!("its answer is not understood: {error}; is it of another version?");
        broken(socket, cause)
    })
}

async fn exchange<B: Serialize>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| {
        let path = socket.to_owned();
        ClientError::Connect { path, source }
    })?;
    let connected = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| broken(socket, error))?;
    // It ends with the request: its error is the request's.
    let connection = tokio::spawn(connection);
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|error| broken(socket, error))?,
        None => Vec::new(),
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "weft")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(socket, error))?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| broken(socket, error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES);
    let collected = body.collect().await;
    let collected = collected.map_err(|error| broken(socket, error))?;
    connection.abort();
    Ok((status, collected.to_bytes()))
}

fn broken(socket: &Path, cause: impl ToString) -> ClientError {
    ClientError::Broken {
        socket: socket.to_owned(),
        cause: cause.to_string(),
    }
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
