//! What goes over the API, both ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weft_core::name::{ServiceName, SpiffeId, TrustDomain, WorkloadName};

use crate::document::Problem;
use crate::store::{ResourceKey, Revision};

/// The control plane itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// SHA-256 of its root certificate.
    pub root_digest: String,
    /// Where everything is kept.
    pub data_dir: String,
    /// Where sidecars connect.
    pub address: String,
    /// What sidecars are told to connect to.
    pub advertised: String,
    /// Where Prometheus reads.
    pub metrics_address: String,
}

/// Something went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What.
    pub error: ErrorText,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorText {
    /// In one sentence.
    pub message: String,
    /// What is wrong with the documents, if that is what it is about.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// What became of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was not there.
    Created,
    /// It was different.
    Changed,
    /// It was just so.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// One resource of a change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Changed {
    /// Which.
    #[serde(flatten)]
    pub key: ResourceKey,
    /// What became of it.
    pub action: Action,
}

/// A change that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApplyAnswer {
    /// Its revision.
    pub revision: Revision,
    /// Its resources.
    pub resources: Vec<Changed>,
}

/// Back to a revision.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// Which.
    pub revision: Revision,
    /// By whom.
    #[serde(default)]
    pub author: String,
}

/// A connected sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyAnswer {
    /// Its workload, if it registered one.
    pub workload: Option<WorkloadName>,
    /// Its instance.
    pub instance: String,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its version.
    pub version: String,
    /// Milliseconds since the Unix epoch.
    pub connected_since: i64,
    /// Resources that it holds.
    pub holds: usize,
    /// The store's revision up to which it has acknowledged everything.
    pub applied_revision: Revision,
    /// Resources that it rejected, with the reason.
    pub rejected: BTreeMap<String, String>,
}

/// Who has a revision.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Applied {
    /// Instances that have it.
    pub applied: Vec<String>,
    /// Instances that don't yet.
    pub waiting: Vec<String>,
    /// What was rejected, by whom, and why.
    pub rejected: Vec<String>,
}

/// A join token is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// For which workload.
    pub workload: WorkloadName,
    /// In whose name; by default the workload's.
    #[serde(default)]
    pub service_account: Option<String>,
    /// Services that it may register.
    #[serde(default)]
    pub services: Vec<ServiceName>,
    /// Ports that it may register.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// For how long.
    pub ttl_seconds: u64,
}

/// A join token; its text is shown once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// The text.
    pub token: String,
    /// Names it.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub expires: i64,
}

/// A join token that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenView {
    /// Names it.
    pub id: String,
    /// For which workload.
    pub workload: WorkloadName,
    /// Services that it may register.
    pub services: Vec<ServiceName>,
    /// Ports that it may register.
    pub ports: Vec<u16>,
    /// Seconds since the Unix epoch.
    pub expires: i64,
    /// The instance that redeemed it.
    pub redeemed_by: Option<String>,
}

/// An instance that was attested.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// Names it.
    pub instance: String,
    /// Of which workload.
    pub workload: WorkloadName,
    /// When it was last, seconds since the Unix epoch.
    pub attested: i64,
    /// When its last certificate ends.
    pub not_after: i64,
    /// When it was revoked.
    pub revoked: Option<i64>,
}

/// An instance is to be revoked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RevokeRequest {
    /// Which.
    pub instance: String,
}

/// A program on this machine wants to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// As which workload.
    pub workload: WorkloadName,
    /// Services that it will serve.
    pub services: Vec<ServiceName>,
    /// Ports that it will serve them on.
    pub ports: Vec<u16>,
}

/// How it joins.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinAnswer {
    /// With this token.
    pub token: String,
    /// Here.
    pub address: String,
    /// In this trust domain.
    pub trust_domain: TrustDomain,
}
