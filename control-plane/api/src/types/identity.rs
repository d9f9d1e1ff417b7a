//! Tokens, certificates and operators.

use serde::{Deserialize, Serialize};
use weft_core::model::Cidr;
use weft_core::name::{ServiceName, TrustDomain, WorkloadName};

/// Body of `POST /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// For whom.
    pub workload: WorkloadName,
    /// Services that it may serve.
    #[serde(default)]
    pub services: Vec<ServiceName>,
    /// Ports that it may serve.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Addresses at which it may say that it is reached, beside the one that its connection comes
    /// from; `ADDRESS` or `ADDRESS/PREFIX`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Cidr>,
    /// For how long it may be redeemed.
    pub ttl_seconds: u64,
    /// The service account in its identity; by default the workload's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// A new token. Its text is shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// Its text, a secret.
    pub token: String,
    /// Names it.
    pub id: String,
    /// When it ends.
    pub expires: i64,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// Names it.
    pub id: String,
    /// For whom.
    pub workload: WorkloadName,
    /// The service account in its identity.
    pub service_account: String,
    /// Services that it may serve.
    pub services: Vec<ServiceName>,
    /// Ports that it may serve.
    pub ports: Vec<u16>,
    /// Addresses at which it may say that it is reached.
    pub addresses: Vec<Cidr>,
    /// When it was made.
    pub created: i64,
    /// When it ends.
    pub expires: i64,
    /// The instance that redeemed it.
    pub redeemed_by: Option<String>,
}

/// Body of `POST /v1/join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Who joins.
    pub workload: WorkloadName,
    /// Services that it will serve.
    #[serde(default)]
    pub services: Vec<ServiceName>,
    /// Ports that it will serve.
    #[serde(default)]
    pub ports: Vec<u16>,
}

/// Everything a sidecar needs to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinAnswer {
    /// A join token, good for a minute.
    pub token: String,
    /// The control plane's HOST:PORT.
    pub address: String,
    /// The trust domain.
    pub trust_domain: TrustDomain,
}

/// An instance that has certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertInfo {
    /// Names it.
    pub instance: String,
    /// Its workload.
    pub workload: WorkloadName,
    /// The service account in its identity.
    pub service_account: String,
    /// When it joined.
    pub created: i64,
    /// When its last certificate was signed.
    pub last_used: i64,
    /// When its last certificate ends.
    pub last_not_after: i64,
    /// When it was revoked.
    pub revoked: Option<i64>,
}

/// Body of `POST /v1/certs/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// Which instance.
    pub instance: String,
}

/// Body of `POST /v1/operators`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperatorRequest {
    /// Who it is for, a DNS label.
    pub name: String,
    /// PKCS #10, DER, in base64.
    pub csr: String,
    /// For how long.
    pub ttl_seconds: u64,
}

/// A new operator's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewOperator {
    /// Names the certificate.
    pub id: String,
    /// Leaf, intermediate and root, PEM.
    pub certificates: String,
    /// When it ends.
    pub not_after: i64,
}

/// An operator's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorInfo {
    /// Names the certificate: `o-…`.
    pub id: String,
    /// Whose it is.
    pub name: String,
    /// When it was signed, seconds since the Unix epoch.
    pub created: i64,
    /// When it ends.
    pub not_after: i64,
    /// When it was revoked.
    pub revoked: Option<i64>,
}
