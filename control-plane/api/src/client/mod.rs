//! A client of the admin API and of the join socket.

mod error;
mod exchange;
mod place;
mod query;

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Method;
use http::uri::Authority;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::operator::OperatorFile;
use crate::types::{JoinAnswer, JoinRequest};

use exchange::{Endpoint, Remote, client_config};

pub use error::ClientError;
pub use place::{
    ADDRESS_VARIABLE, ADMIN_SOCKET, JOIN_SOCKET, OPERATOR_FILE, OPERATOR_VARIABLE, USER_DATA_DIR,
    default_data_dir, operator_file,
};
pub use query::{encode, query};

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
        self.endpoint().call(method, path, body).await
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

    /// Reads from the admin API what is no JSON, into `output`; its size in bytes.
    pub async fn download(
        &self,
        path: &str,
        output: &mut (dyn Write + Send),
    ) -> Result<u64, ClientError> {
        self.endpoint().download(path, output).await
    }

    fn endpoint(&self) -> Endpoint {
        match &self.place {
            Place::Here(dir) => Endpoint::Socket(dir.join(ADMIN_SOCKET)),
            Place::There(remote) => Endpoint::Tls(remote.clone()),
        }
    }

    /// Asks for what a workload of this machine needs to join.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, ClientError> {
        let endpoint = Endpoint::Socket(self.dir()?.join(JOIN_SOCKET));
        endpoint.call(Method::POST, "/v1/join", Some(request)).await
    }
}
