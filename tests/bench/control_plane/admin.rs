//! The admin API on its socket, as far as the benchmark asks it.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// Documents applied at once.
const DOCUMENTS_AT_ONCE: usize = 500;

/// Asks a control plane of this machine.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    socket: PathBuf,
}

impl Admin {
    /// Of the control plane with this data directory.
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self {
            socket: data_dir.join("admin.sock"),
        }
    }

    /// Reads something.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, String> {
        self.call("GET", path, "application/json", Bytes::new())
            .await
    }

    /// Applies documents in YAML, many at once.
    pub(crate) async fn apply(&self, documents: &[String]) -> Result<(), String> {
        for some in documents.chunks(DOCUMENTS_AT_ONCE) {
            let body = some.join("---\n").into();
            self.call("POST", "/v1/apply", "application/yaml", body)
                .await?;
        }
        Ok(())
    }

    /// A join token for a workload that serves one service on one port.
    pub(crate) async fn token(
        &self,
        workload: &str,
        service: &str,
        port: u16,
    ) -> Result<String, String> {
        let request = json!({
            "workload": workload, "services": [service], "ports": [port], "ttlSeconds": 3600,
        });
        let body = request.to_string().into();
        let answer = self
            .call("POST", "/v1/tokens", "application/json", body)
            .await?;
        let token = answer["token"].as_str();
        token.map(str::to_owned).ok_or_else(|| answer.to_string())
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Value, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{method} {path}: {error}");
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| failed(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "control-plane")
            .header(http::header::CONTENT_TYPE, content_type)
            .body(Full::new(body))
            .map_err(|error| failed(&error))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| failed(&error))?;
        let status = answer.status();
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| failed(&error))?.to_bytes();
        if !status.is_success() {
            return Err(failed(&format!(
                "{status}: {}",
                String::from_utf8_lossy(&body)
            )));
        }
        serde_json::from_slice(&body).map_err(|error| failed(&error))
    }
}
