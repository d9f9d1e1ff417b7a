//! Bodies of the admin API, shared by server and client. JSON, in camelCase; times are seconds since
//! the Unix epoch, except where milliseconds are named.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_core::model::{AppProtocol, RegisteredPort, ServicePort};
use weft_core::name::{ServiceName, TrustDomain, WorkloadName};

use crate::model::{Problem, ResourceKey};
use crate::policy::plan::Effect;
use crate::store::Revision;

/// A list; the form of every answer that may grow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Items<T> {
    /// What is in it.
    pub items: Vec<T>,
}

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorView,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// One line for people.
    pub message: String,
    /// Everything that is wrong with documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// Query of `POST /v1/apply` and `/v1/validate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApplyQuery {
    /// Say what would change, and change nothing.
    pub dry_run: bool,
    /// Who asks; for the history.
    pub author: String,
    /// What a body that is YAML is called in problems.
    pub source: String,
    /// Whether references may lead to what does not exist (yet).
    pub allow_missing: bool,
}

/// Body of `POST /v1/explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The calling workload.
    pub from: WorkloadName,
    /// The method.
    pub method: String,
    /// The URL.
    pub url: String,
    /// Fields, names and values.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// Answer to `POST /v1/plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanResult {
    /// What becomes of each resource.
    pub resources: Vec<Applied>,
    /// What callers would notice.
    pub effects: Vec<Effect>,
}

/// The policy that is in force for a port of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveInfo {
    /// The service, NAMESPACE/NAME.
    pub service: String,
    /// The port.
    pub port: u16,
    /// The name of the TrafficPolicy; `None`: the defaults.
    pub policy: Option<String>,
    /// Why this one.
    pub why: String,
    /// Those that are not in force because of it.
    pub beaten: Vec<String>,
    /// Everything that it comes to.
    pub spec: Value,
    /// Limits on the rate of requests, of every RateLimitPolicy that is for it: all hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimitInfo>,
}

/// One limit on the rate of requests to a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimitInfo {
    /// NAME of the RateLimitPolicy.
    pub policy: String,
    /// Its rule, from 0.
    pub rule: u32,
    /// What it comes to.
    pub limit: String,
}

/// Several inputs that are applied together or not at all: the body of `POST /v1/apply` when it is
/// `application/json`. Any other body is one input as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    /// The inputs.
    pub sources: Vec<Source>,
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The file's name, or `-`.
    pub name: String,
    /// YAML or JSON, any number of documents.
    pub text: String,
}

/// What became of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was not there.
    Created,
    /// It was there, otherwise.
    Changed,
    /// It was there just so.
    Unchanged,
    /// It is gone.
    Deleted,
}

impl Action {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

/// A resource and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Which.
    #[serde(flatten)]
    pub key: ResourceKey,
    /// What became of it.
    pub action: Action,
}

/// Answer to whatever changes resources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplyResult {
    /// The revision that has it; the newest one, when nothing changed.
    pub revision: Revision,
    /// Nothing was changed, because only that was asked.
    pub dry_run: bool,
    /// Each resource.
    pub resources: Vec<Applied>,
}

/// Query of `GET /v1/resources` and `/v1/history`; what is not named matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceQuery {
    /// The kind, as in `Service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// At most so many; history only, 50 by default, 1000 at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Who asks; a query.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthorQuery {
    /// For the history.
    pub author: String,
}

/// Body of `POST /v1/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Everything is to be as it was then.
    pub revision: Revision,
}

/// Query of `GET /v1/applied`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedQuery {
    /// Who has this one.
    pub revision: Revision,
}

/// How far a revision has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Sidecars that run with it.
    pub applied: Vec<String>,
    /// Sidecars that have not acknowledged it.
    pub waiting: Vec<String>,
    /// What sidecars rejected.
    pub rejected: Vec<RejectedResource>,
}

/// A resource that a sidecar rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedResource {
    /// The sidecar's workload.
    pub workload: String,
    /// The resource.
    pub resource: String,
    /// What it said.
    pub reason: String,
}

/// A connected sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyInfo {
    /// Its workload; its identity, while it has not registered.
    pub workload: String,
    /// Its instance.
    pub instance: String,
    /// Its identity.
    pub identity: String,
    /// Its version.
    pub version: String,
    /// Connected since, milliseconds.
    pub since: i64,
    /// How many resources it holds.
    pub holds: usize,
    /// It has acknowledged everything up to this revision.
    pub applied_revision: Revision,
    /// It has acknowledged everything that there is.
    pub current: bool,
    /// What it rejected, by name, with the reason.
    pub rejected: BTreeMap<String, String>,
}

/// A breaker of a sidecar that has opened at least once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerInfo {
    /// The calling workload; its identity, while it has not registered.
    pub caller: String,
    /// Its instance.
    pub instance: String,
    /// The service that it calls, NAMESPACE/NAME.
    pub service: String,
    /// At which port.
    pub port: u16,
    /// The endpoint's workload; empty for the breaker of the whole port.
    pub workload: String,
    /// Where it is dialled; empty for the breaker of the whole port.
    pub address: String,
    /// The rule of a route that it is for, NAMESPACE/ROUTE/RULE; empty where it is for all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub route: String,
    /// closed, open or half-open.
    pub state: String,
    /// Since when, milliseconds since the Unix epoch.
    pub since: i64,
    /// Why it opened the last time.
    pub cause: String,
    /// While open: when the next probe may be made, milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_probe: Option<i64>,
}

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

/// `metadata` of what is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// A document with what is known about it, in the form in which it can be applied again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceInfo<S = ResourceStatus> {
    /// The group and version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// What it goes by.
    pub metadata: Metadata,
    /// What was asked for.
    pub spec: Value,
    /// What is known; ignored when applied.
    pub status: S,
}

/// What is known about a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceStatus {
    /// The revision of its last change.
    pub revision: Revision,
    /// Counts its own changes, from 1.
    pub generation: u64,
    /// When it was made, milliseconds.
    pub created: i64,
    /// When it was changed last, milliseconds.
    pub changed: i64,
    /// Who changed it last.
    pub author: String,
    /// How a route stands to what it is attached to (Gateway API, `RouteParentStatus`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ParentInfo>,
    /// Whether it is in force: `Accepted` of an ExternalService.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<ConditionInfo>,
    /// The virtual addresses of an ExternalService.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// How a route stands to one of its parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentInfo {
    /// The parent.
    pub parent_ref: ParentRefInfo,
    /// Who says so.
    pub controller_name: String,
    /// `Accepted` and `ResolvedRefs`.
    pub conditions: Vec<ConditionInfo>,
}

/// What a route is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRefInfo {
    /// The group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The port, where it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A condition (Kubernetes API conventions).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionInfo {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True` or `False`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// The change of the resource that it is about.
    pub observed_generation: u64,
}

/// A service as sidecars see it; without a document, `spec` is what its workloads declare.
pub type ServiceInfo = ResourceInfo<ServiceStatus>;

/// What is known about a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What programs call it.
    pub hostname: String,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports, with the protocols that are in force.
    pub ports: Vec<ServicePort>,
    /// Who serves it.
    pub endpoints: Vec<EndpointInfo>,
    /// Its document, where there is one.
    pub document: Option<ResourceStatus>,
}

/// An endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// The instance.
    pub instance: String,
    /// Its workload.
    pub workload: WorkloadName,
    /// Its identity.
    pub identity: String,
    /// Where it runs; empty when unknown.
    pub zone: String,
    /// Its share in balancing.
    pub weight: u32,
    /// Where callers' sidecars dial.
    pub addresses: Vec<SocketAddr>,
}

/// A registered workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadInfo {
    /// Its name, NAMESPACE/NAME.
    pub name: WorkloadName,
    /// The instance that runs.
    pub instance: String,
    /// Its identity.
    pub identity: String,
    /// Its sidecar is connected; otherwise its grace runs.
    pub connected: bool,
    /// Services that it serves.
    pub services: Vec<ServiceName>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<RegisteredPort>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Where it runs; empty when unknown.
    pub zone: String,
    /// Its sidecar's version.
    pub version: String,
    /// Where its sidecar serves metrics; empty when nowhere.
    pub metrics_target: String,
}

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

/// One entry of Prometheus' HTTP service discovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// HOST:PORT, one.
    pub targets: Vec<String>,
    /// Labels, `__metrics_path__` among them.
    pub labels: BTreeMap<String, String>,
}

/// A protocol as people read it: what is not declared shows as `detect`.
pub fn port_text(port: u16, protocol: AppProtocol) -> String {
    format!("{port}/{}", protocol.as_str())
}
