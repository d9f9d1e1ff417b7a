//! Resources: what users apply, and what is known about it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::policy::Effect;

/// Counts the changes of what was asked for; each change has its own.
pub type Revision = u64;

/// Names a document of any kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceKey {
    /// Its kind, as in `Service`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// One thing that is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{source_name}: document {document}: {path}: found {found}; allowed: {allowed}")]
pub struct Problem {
    /// The file, or `-`.
    pub source_name: String,
    /// Which document in it, from 1.
    pub document: usize,
    /// The path of the field, as in `spec.ports[1].port`.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
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
    /// Do not compare `metadata.resourceVersion` with what exists.
    pub force: bool,
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
    /// Only entries before this one, [`HistoryPageInfo::next`]; history only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// Who asks; a query.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthorQuery {
    /// For the history.
    pub author: String,
}

/// A change of a resource that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryInfo {
    /// Its revision.
    pub revision: Revision,
    /// When, milliseconds since the Unix epoch.
    pub time: i64,
    /// By whom.
    pub author: String,
    /// What was changed.
    pub key: ResourceKey,
    /// SHA-256 of the document; empty when it was deleted.
    pub digest: String,
    /// The document since then; `None` when it was deleted.
    pub document: Option<Value>,
}

/// Answer to `GET /v1/history`: entries, the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryPageInfo {
    /// The entries.
    pub items: Vec<HistoryInfo>,
    /// Where the next page begins; `None` when there is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Body of `POST /v1/rollback`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RollbackRequest {
    /// Resources are to be as they were then.
    pub revision: Revision,
    /// Only these, KIND/NAMESPACE/NAME; all when there are none.
    #[serde(default)]
    pub resources: Vec<String>,
    /// Say what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Whether references may lead to what does not exist.
    #[serde(default)]
    pub allow_missing: bool,
}

/// Answer to `POST /v1/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RollbackResult {
    /// The new revision; the newest one, when nothing changed.
    pub revision: Revision,
    /// Nothing was changed, because only that was asked.
    pub dry_run: bool,
    /// Each resource that is not as it was.
    pub resources: Vec<Applied>,
    /// What callers notice.
    pub effects: Vec<Effect>,
}

/// A resource that somebody else changed meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConflictInfo {
    /// Which.
    pub key: ResourceKey,
    /// The revision that was expected; `None`: that there is none.
    pub expected: Option<Revision>,
    /// What exists; `None`: nothing does.
    pub found: Option<FoundInfo>,
    /// The document that was not stored, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Value>,
}

/// What exists in place of what was expected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoundInfo {
    /// The revision of its last change.
    pub revision: Revision,
    /// Who changed it last.
    pub author: String,
    /// When, milliseconds since the Unix epoch.
    pub changed: i64,
    /// The document.
    pub document: Value,
}

/// Query of `GET /v1/applied`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppliedQuery {
    /// Who has this one.
    pub revision: Revision,
    /// Answer when every sidecar that it concerns has applied it, or one has rejected it, or after
    /// this time; at once without it. At most 20 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_millis: Option<u64>,
}

/// How far a revision has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The newest revision that sidecars are told.
    pub compiled_revision: Revision,
    /// Whether it is remembered whom the revision concerned. Where it is not, those are waited for
    /// who lack anything up to it, and rejections are not told.
    pub known: bool,
    /// Sidecars that run with it, or whom it does not concern.
    pub applied: Vec<String>,
    /// Sidecars that have not acknowledged it.
    pub waiting: Vec<String>,
    /// Other control planes that have not been heard: of their sidecars nothing is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
    /// Resources that it changed and that sidecars rejected.
    pub rejected: Vec<RejectedResource>,
    /// Documents that it changed and that other control planes refuse: their sidecars do not have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedResource>,
}

/// A document that another control plane refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedResource {
    /// Which control plane.
    pub control_plane: String,
    /// The document, KIND/NAMESPACE/NAME.
    pub resource: String,
    /// Why.
    pub reason: String,
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

/// `metadata` of what is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What it is selected by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free text for people and programs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The revision of its last change: applied with it, the document is refused when somebody
    /// else has changed the resource since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
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
