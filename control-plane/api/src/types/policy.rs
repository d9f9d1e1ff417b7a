//! What would become of a request, what a change would do, and which policy is in force.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_core::name::WorkloadName;

use super::resource::Applied;

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

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is decided: `service`, `route`, `backend`…
    pub step: String,
    /// What decides it: a document, or `-`.
    pub by: String,
    /// What it comes to.
    pub result: String,
}

/// Answer to `POST /v1/plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanResult {
    /// What becomes of each resource.
    pub resources: Vec<Applied>,
    /// What callers would notice.
    pub effects: Vec<Effect>,
}

/// One difference that callers would notice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Effect {
    /// The service, NAMESPACE/NAME, or `mesh`.
    pub service: String,
    /// Who would notice: every caller, or those of a namespace.
    pub callers: String,
    /// What would be different.
    pub change: String,
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
