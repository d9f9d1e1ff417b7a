//! The other end of the API: how the command line and `weft run` reach the control plane of this
//! machine.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::types::{ErrorBody, JoinAnswer, JoinRequest};
use crate::document::Problem;

/// The environment variable that says where the control plane is.
pub const ADDRESS_VARIABLE: &str = "WEFT_CONTROL_PLANE";

/// Why the control plane gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not one.
    #[error("{ADDRESS_VARIABLE}: found {0:?}; allowed: unix:DATA-DIR")]
    Address(String),
    /// Nobody is there.
    #[error(
        "no control plane at {}: {source} (start one with `weft control-plane`, or say where it is with {ADDRESS_VARIABLE}=unix:DATA-DIR)", path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The connection broke.
    #[error("control plane: {0}")]
    Http(#[from] hyper::Error),
    /// It refused.
    #[error("{message}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// Why.
        message: String,
        /// What is wrong with the documents.
        problems: Vec<Problem>,
    },
    /// Its answer is not what was expected.
    #[error("control plane: unexpected answer: {0}")]
    Answer(String),
}

/// Where the data is unless somebody says otherwise.
pub fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/weft");
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        home.join(".local/state")
    };
    state.unwrap_or_else(home).join("weft")
}

/// A control plane on this machine.
#[derive(Debug, Clone)]
pub struct Client {
    dir: PathBuf,
}

impl Client {
    /// The one that the environment names, else the default.
    pub fn from_env() -> Result<Self, ClientError> {
        let dir = match std::env::var(ADDRESS_VARIABLE) {
            Ok(address) => match address.strip_prefix("unix:") {
                Some(dir) if !dir.is_empty() => PathBuf::from(dir),
                Some(_) | None => return Err(ClientError::Address(address)),
            },
            Err(_unset) => default_data_dir(),
        };
        Ok(Self::at(&dir))
    }

    /// The one with this data directory.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Its data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Bytes::new(), "").await
    }

    /// Deletes something.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, Bytes::new(), "").await
    }

    /// Sends documents as they are.
    pub async fn post_text<T: DeserializeOwned>(
        &self,
        path: &str,
        text: String,
    ) -> Result<T, ClientError> {
        let body = Bytes::from(text);
        self.call(Method::POST, path, body, "text/plain; charset=utf-8")
            .await
    }

    /// Asks for something.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let body = encode(body)?;
        self.call(Method::POST, path, body, "application/json")
            .await
    }

    /// Gets a join token for a program on this machine.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, ClientError> {
        let body = encode(request)?;
        let socket = self.dir.join("join.sock");
        exchange(&socket, Method::POST, "/v1/join", body, "application/json").await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        content_type: &str,
    ) -> Result<T, ClientError> {
        let socket = self.dir.join("admin.sock");
        exchange(&socket, method, path, body, content_type).await
    }
}

fn encode<B: Serialize>(body: &B) -> Result<Bytes, ClientError> {
    let bytes = serde_json::to_vec(body);
    Ok(bytes
        .map_err(|error| ClientError::Answer(error.to_string()))?
        .into())
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
    content_type: &str,
) -> Result<T, ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ClientError::Connect {
            path: socket.to_owned(),
            source,
        })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "weft");
    if !content_type.is_empty() {
        request = request.header(http::header::CONTENT_TYPE, content_type);
    }
    let request = request
        .body(Full::new(body))
        .map_err(|error| ClientError::Answer(error.to_string()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::Answer(error.to_string()));
    }
    match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => Err(ClientError::Refused {
            status,
            message: body.error.message,
            problems: body.error.problems,
        }),
        Err(_not_ours) => Err(ClientError::Refused {
            status,
            message: format!("{status}: {}", String::from_utf8_lossy(&bytes)),
            problems: Vec::new(),
        }),
    }
}
