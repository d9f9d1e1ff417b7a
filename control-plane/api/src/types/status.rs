//! The control plane itself.

use serde::{Deserialize, Serialize};

use super::resource::Revision;

/// What the control plane was started as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// SHA-256 of the root certificate, hexadecimal.
    pub root_digest: String,
    /// Where its state is.
    pub data_dir: String,
    /// Where it listens for sidecars.
    pub address: String,
    /// What sidecars are told to connect to, HOST:PORT.
    pub advertised: String,
    /// Where its metrics are.
    pub metrics_address: String,
    /// Where operators reach the admin API over TLS, where they do.
    pub admin_address: Option<String>,
}

/// Answer to `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusInfo {
    /// What it was started as.
    #[serde(flatten)]
    pub status: Status,
    /// When it started.
    pub started: i64,
    /// The newest revision of resources.
    pub revision: Revision,
    /// The revision that sidecars are told.
    pub compiled_revision: Revision,
    /// Resources on record.
    pub resources: usize,
    /// Services that exist.
    pub services: usize,
    /// Workloads that are registered.
    pub workloads: usize,
    /// Sidecars that are connected.
    pub proxies: usize,
}
