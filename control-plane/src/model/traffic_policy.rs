//! `TrafficPolicy`: how callers treat a service. What is left out has the default of
//! [`TrafficPolicy`] in core, which also says what is allowed.

mod adaptive;
mod breaker;
mod check;
mod health;
mod hedge;
mod path;
mod spelled;
mod target;

use std::borrow::Cow;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_core::balance::{self, hash::HashOn};
use weft_core::policy::{BudgetConfig, Fallback, TrafficPolicy};
use weft_core::retry::RetryPolicy;

pub use adaptive::{AdaptiveConcurrencySpec, AdaptiveLimitSpec, CriticalSpec, SheddingSpec};
pub use breaker::{
    BreakerModeSpec, CircuitBreakerSpec, FailuresSpec, FallbackBackendSpec, FallbackResponseSpec,
    FallbackSpec, HalfOpenSpec, Statuses, WindowSpec,
};
pub use health::{
    CheckHeaderSpec, GrpcCheckSpec, HealthCheckSpec, HttpCheckSpec, InitialStateSpec, TcpCheckSpec,
};
pub use hedge::HedgeSpec;
pub(crate) use hedge::in_words as hedge_in_words;
pub use path::PathNormalizationSpec;
pub use spelled::spelled_out;
pub use target::{TargetKind, TargetRef};

use super::check::Check;
use super::key::ObjectName;
use super::kind::{API_VERSION, DocumentKind, Reference, Relations};
use super::kinds::Document;
use super::time::Time;

/// `spec` of a TrafficPolicy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// What it is for.
    pub target_ref: TargetRef,
    /// How endpoints are picked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSpec>,
    /// When an endpoint is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreakerSpec>,
    /// What is repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// What is made a second time while the first is slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<HedgeSpec>,
    /// How long things may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSpec>,
    /// How much at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
    /// How endpoints are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheckSpec>,
    /// How much at the same time, as long as answers take no longer than normal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_concurrency: Option<AdaptiveConcurrencySpec>,
    /// What the servers may do with paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_normalization: Option<PathNormalizationSpec>,
}

/// How endpoints are picked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerSpec {
    /// The way.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<LoadBalancerType>,
    /// What requests with the same endpoint share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOnSpec>,
    /// A new endpoint gets more and more of its share over this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Time>,
    /// Whether endpoints in the caller's zone come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer_zone: Option<bool>,
    /// Where a smaller share of the endpoints is well, health and breakers are disregarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<f64>,
}

/// What a request's key is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HashOnSpec {
    /// A field.
    Header(String),
    /// A parameter of the query.
    Query(String),
    /// A cookie.
    Cookie(CookieSpec),
    /// The calling workload.
    Source(SourceSpec),
}

/// The calling workload: there is nothing to say about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceSpec {}

/// A cookie that a request's key is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CookieSpec {
    /// Its name.
    pub name: String,
    /// Whoever has none gets one for this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Time>,
}

/// Ways to pick an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancerType {
    /// The cheaper of two by latency and load.
    PeakEwma,
    /// The less loaded of two.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// By a key, on a ring.
    RingHash,
    /// By a key, in Maglev's table.
    Maglev,
}

/// What is repeated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct RetrySpec {
    /// Attempts after the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Statuses that idempotent requests are repeated on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statuses: Option<Vec<u16>>,
    /// gRPC codes that calls are repeated on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_codes: Option<Vec<u32>>,
    /// Bytes of a body that are kept for another attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u32>,
    /// Waits in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<BackoffSpec>,
    /// At whose expense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetSpec>,
}

/// Waits between attempts, with full jitter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct BackoffSpec {
    /// The first; it doubles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Time>,
    /// The longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Time>,
}

/// Retries in proportion to requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct BudgetSpec {
    /// Retries for each request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Always allowed, per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_per_second: Option<u32>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct TimeoutsSpec {
    /// Connecting to an endpoint, TLS included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Time>,
    /// A request with all its attempts, until its response begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Time>,
    /// One attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Time>,
    /// A connection to an endpoint that carries nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Time>,
    /// A request's stream in which nothing moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_idle: Option<Time>,
}

/// How much at the same time, for each sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
    /// Requests that wait for their turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_requests: Option<u32>,
    /// Retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_retries: Option<u32>,
    /// Connections to all endpoints together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Requests that a connection to an endpoint carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_connection: Option<u32>,
}

impl DocumentKind for TrafficPolicySpec {
    const NAME: &'static str = "TrafficPolicy";
    const PLURAL: &'static str = "trafficpolicies";
    const VERSION: &'static str = API_VERSION;

    fn validate(&self, check: &mut Check<'_>, own: &ObjectName) {
        check::check_policy(check, &own.namespace, self);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        Some(Document::TrafficPolicy(own, Box::new(self)))
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        let breaker = self.circuit_breaker.as_ref();
        let fallback = breaker.and_then(|breaker| breaker.fallback.as_ref());
        let references = match fallback.and_then(|fallback| fallback.resolve(&own.namespace)) {
            Some(Fallback::Backend { service, port }) => {
                vec![Reference::Service { service, port }]
            }
            Some(Fallback::Response { .. }) | None => Vec::new(),
        };
        Relations {
            attachments: self.target_ref.attachments(&own.namespace),
            references,
        }
    }
}

impl TrafficPolicySpec {
    /// What it comes to in a namespace, with defaults for what it leaves out; not validated.
    pub fn resolve(&self, namespace: &str) -> TrafficPolicy {
        let defaults = TrafficPolicy::default();
        let breaker = self.circuit_breaker.clone().unwrap_or_default();
        let retry = self.retry.clone().unwrap_or_default();
        let timeouts = self.timeouts.unwrap_or_default();
        let limits = self.limits.unwrap_or_default();
        let balancer = self.load_balancer.as_ref();
        let budget = retry.budget.unwrap_or_default();
        let of_port = |spec: &Option<Box<CircuitBreakerSpec>>| {
            let spec = spec.as_deref().filter(|spec| spec.enabled);
            spec.map(CircuitBreakerSpec::resolve)
        };
        let failures = breaker.failures.clone().unwrap_or_default();
        let fallback = breaker.fallback.as_ref();
        let adaptive = self.adaptive_concurrency.as_ref();
        TrafficPolicy {
            balancing: balancer
                .and_then(|balancer| balancer.kind)
                .map_or(defaults.balancing, LoadBalancerType::resolve),
            hash_on: balancer
                .and_then(|balancer| balancer.hash_on.as_ref())
                .and_then(HashOnSpec::resolve),
            slow_start: balancer.and_then(|b| b.slow_start).map(|time| time.0),
            prefer_zone: balancer
                .and_then(|balancer| balancer.prefer_zone)
                .unwrap_or(defaults.prefer_zone),
            breaker: breaker.enabled.then(|| breaker.resolve()),
            service_breaker: of_port(&breaker.service),
            route_breaker: of_port(&breaker.route),
            breaker_mode: breaker
                .mode
                .map_or(defaults.breaker_mode, BreakerModeSpec::resolve),
            failures: failures.resolve(),
            heed_retry_after: breaker
                .heed_retry_after
                .unwrap_or(defaults.heed_retry_after),
            fallback: fallback.and_then(|fallback| fallback.resolve(namespace)),
            max_ejected_share: breaker
                .max_ejected_share
                .unwrap_or(defaults.max_ejected_share),
            budget: BudgetConfig {
                ratio: budget.ratio.unwrap_or(defaults.budget.ratio),
                minimum_per_second: budget
                    .minimum_per_second
                    .unwrap_or(defaults.budget.minimum_per_second),
            },
            retry: retry.resolve(),
            hedge: self.hedge.as_ref().and_then(HedgeSpec::resolve),
            connect_timeout: timeouts.connect.map(|time| time.0),
            per_try_timeout: timeouts.per_try.map(|time| time.0),
            request_timeout: timeouts.request.map(|time| time.0),
            idle_timeout: timeouts.idle.map(|time| time.0),
            stream_idle_timeout: timeouts.stream_idle.map(|time| time.0),
            max_requests: limits.concurrent_requests,
            max_pending: limits.pending_requests,
            max_retries: limits.concurrent_retries,
            max_connections: limits.connections,
            requests_per_connection: limits.requests_per_connection,
            health_check: self
                .health_check
                .as_ref()
                .and_then(|check| check.resolve().map(Arc::new)),
            panic_threshold: balancer
                .and_then(|balancer| balancer.panic_threshold)
                .unwrap_or(defaults.panic_threshold),
            adaptive: adaptive.and_then(AdaptiveConcurrencySpec::client),
            shedding: adaptive.and_then(AdaptiveConcurrencySpec::server),
            path_normalization: self.path_normalization.unwrap_or_default().resolve(),
        }
    }

    /// Fields that say something which nothing listens to, and what is there instead.
    pub(super) fn idle_fields(&self) -> Vec<(String, &'static str)> {
        const OUTER: &str = "nothing: circuitBreaker has it, for all breakers of the port";
        let breaker = self.circuit_breaker.as_ref();
        let inner = [
            ("service", breaker.and_then(|b| b.service.as_deref())),
            ("route", breaker.and_then(|b| b.route.as_deref())),
        ];
        let mut idle = Vec::new();
        for (whose, inner) in inner {
            let Some(inner) = inner else { continue };
            let fields = [
                ("mode", inner.mode.is_some()),
                ("failures", inner.failures.is_some()),
                ("heedRetryAfter", inner.heed_retry_after.is_some()),
                ("maxEjectedShare", inner.max_ejected_share.is_some()),
                ("fallback", inner.fallback.is_some()),
                ("service", inner.service.is_some()),
                ("route", inner.route.is_some()),
            ];
            let there = fields.into_iter().filter(|(_, there)| *there);
            idle.extend(there.map(|(field, _)| (format!("circuitBreaker.{whose}.{field}"), OUTER)));
        }
        idle
    }
}

impl LoadBalancerType {
    const fn resolve(self) -> balance::Policy {
        match self {
            Self::PeakEwma => balance::Policy::PeakEwma,
            Self::LeastRequest => balance::Policy::LeastRequest,
            Self::RoundRobin => balance::Policy::RoundRobin,
            Self::Random => balance::Policy::Random,
            Self::RingHash => balance::Policy::RingHash,
            Self::Maglev => balance::Policy::Maglev,
        }
    }
}

impl HashOnSpec {
    /// `None` where the name is none.
    pub(super) fn resolve(&self) -> Option<HashOn> {
        Some(match self {
            Self::Header(name) => HashOn::Header(name.parse().ok()?),
            Self::Query(name) => HashOn::Query(name.as_str().into()),
            Self::Cookie(cookie) => HashOn::Cookie {
                name: cookie.name.as_str().into(),
                issue: cookie.ttl.map(|time| time.0),
            },
            Self::Source(_) => HashOn::Source,
        })
    }
}

impl RetrySpec {
    fn resolve(self) -> RetryPolicy {
        let defaults = RetryPolicy::default();
        let backoff = self.backoff.unwrap_or_default();
        RetryPolicy {
            attempts: self.attempts.unwrap_or(defaults.attempts),
            statuses: self.statuses.map_or(defaults.statuses, Cow::Owned),
            grpc_codes: self.grpc_codes.map_or(defaults.grpc_codes, Cow::Owned),
            backoff: backoff.base.map_or(defaults.backoff, |time| time.0),
            backoff_max: backoff.max.map_or(defaults.backoff_max, |time| time.0),
            backoff_is_minimum: defaults.backoff_is_minimum,
            body_max: self.max_body_bytes.unwrap_or(defaults.body_max),
        }
    }
}
