//! The user-facing model: documents in Kubernetes' form, read strictly. What is wrong is said with
//! file, field path, what was found and what is allowed, for the whole input at once.
//!
//! Each kind of document has a file, where the type of its `spec` implements [`DocumentKind`], and a
//! line in the list in `kinds.rs`. Everything else goes through the trait: a new kind is one new file
//! and one line in that list.

mod check;
mod external_service;
mod fault_injection;
mod gateway;
mod input;
mod key;
mod kind;
mod kinds;
mod mesh_config;
mod metadata;
mod rate_limit;
mod reference_grant;
mod route;
mod schema;
mod service;
mod time;
mod traffic_policy;
mod typed;

pub use check::{Check, Problem};
pub use external_service::{
    ExternalEndpointSpec, ExternalPortSpec, ExternalServiceSpec, ExternalTlsSpec, ResolutionMode,
    TlsMode,
};
pub use fault_injection::{AbortSpec, DelaySpec, FaultInjectionSpec, HeaderMatchType, HeaderSpec};
pub use gateway::{BUNDLE_VERSION, CHANNEL, gateway_kinds, lacking, lacking_in_words};
pub use input::{INPUT_MAX_BYTES, Placed, read};
pub use key::{ObjectName, ResourceKey};
pub use kind::{
    API_GROUP, API_VERSION, Attachment, DocumentKind, GATEWAY_ALPHA, GATEWAY_VERSION, Kind,
    NameRule, Reference, Relations,
};
pub use kinds::{Document, DocumentVariant, KINDS, kind_names, version_of};
pub use mesh_config::{MeshConfigSpec, NamespaceSpec};
pub use metadata::Labels;
pub use rate_limit::{RateKeySpec, RateLimitPolicySpec, RateRuleSpec, RateScopeSpec, limit_text};
pub use route::{GATEWAY_GROUP, Parent, RouteDraft, RouteKind, RouteSpec, RuleDraft};
pub use schema::{crds, crds_yaml};
pub use service::{ServicePortSpec, ServiceSpec};
pub use time::{Time, parse_duration};
pub(crate) use traffic_policy::hedge_in_words;
pub use traffic_policy::{
    AdaptiveConcurrencySpec, AdaptiveLimitSpec, BackoffSpec, BreakerModeSpec, BudgetSpec,
    CheckHeaderSpec, CircuitBreakerSpec, CookieSpec, CriticalSpec, FailuresSpec,
    FallbackBackendSpec, FallbackResponseSpec, FallbackSpec, GrpcCheckSpec, HalfOpenSpec,
    HashOnSpec, HealthCheckSpec, HedgeSpec, HttpCheckSpec, InitialStateSpec, LimitsSpec,
    LoadBalancerSpec, LoadBalancerType, PathNormalizationSpec, RetrySpec, SheddingSpec, SourceSpec,
    Statuses, TargetKind, TargetRef, TcpCheckSpec, TimeoutsSpec, TrafficPolicySpec, WindowSpec,
    spelled_out,
};

#[cfg(test)]
mod tests;
