//! Bodies of the admin API, shared by server and clients. JSON, in camelCase; times are seconds since
//! the Unix epoch, except where milliseconds are named.

mod identity;
mod mesh;
mod policy;
mod resource;
mod status;

use serde::{Deserialize, Serialize};

pub use identity::{
    CertInfo, JoinAnswer, JoinRequest, NewOperator, NewToken, OperatorInfo, OperatorRequest,
    RevokeRequest, TokenInfo, TokenRequest,
};
pub use mesh::{
    BreakerInfo, EndpointInfo, ProxyInfo, ProxyList, ServiceInfo, ServiceStatus, Target,
    WorkloadInfo, port_text,
};
pub use policy::{Effect, EffectiveInfo, ExplainRequest, PlanResult, RateLimitInfo, Step};
pub use resource::{
    Action, Applied, AppliedQuery, ApplyQuery, ApplyResult, AuthorQuery, ConditionInfo,
    ConflictInfo, FoundInfo, HistoryInfo, HistoryPageInfo, Metadata, ParentInfo, ParentRefInfo,
    Problem, Progress, RefusedResource, RejectedResource, ResourceInfo, ResourceKey, ResourceQuery,
    ResourceStatus, Revision, RollbackRequest, RollbackResult, Source, Sources,
};
pub use status::{Status, StatusInfo};

/// A list; the form of every answer that may grow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Items<T> {
    /// What is in it.
    pub items: Vec<T>,
}

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorView,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorView {
    /// One line for people.
    pub message: String,
    /// Everything that is wrong with documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Resources that somebody else changed meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<ConflictInfo>,
}
