//! `TrafficPolicy`: how callers treat a service. What is left out has the default of
//! [`TrafficPolicy`] in core, which also says what is allowed.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use weft_core::balance;
use weft_core::breaker::{BreakerConfig, Window};
use weft_core::policy::{BudgetConfig, TrafficPolicy};
use weft_core::retry::RetryPolicy;

use crate::app::parse_duration;

/// Buckets of a time window that names none.
const BUCKETS: u32 = 10;

/// A time as people write it: `250ms`, `10s`, `1m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(Self).map_err(|_error| {
            serde::de::Error::custom(format!("{text:?}, expected a time as in 250ms, 10s or 1m"))
        })
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanos = self.0.as_nanos();
        let text = match nanos {
            n if n % 1_000_000_000 == 0 => format!("{}s", n / 1_000_000_000),
            n if n % 1_000_000 == 0 => format!("{}ms", n / 1_000_000),
            n => format!("{n}ns"),
        };
        serializer.serialize_str(&text)
    }
}

/// `spec` of a TrafficPolicy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// How long things may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSpec>,
    /// How much at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
}

/// The Service that a policy is for, in the policy's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRef {
    /// `Service`.
    pub kind: TargetKind,
    /// Its name.
    pub name: String,
    /// One of its ports; a policy for a port beats one for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What a policy may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetKind {
    /// A service.
    Service,
}

/// How endpoints are picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancerSpec {
    /// The way.
    #[serde(rename = "type")]
    pub kind: LoadBalancerType,
}

/// Ways to pick an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// When an endpoint is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CircuitBreakerSpec {
    /// Whether there is one at all.
    pub enabled: bool,
    /// Which calls count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowSpec>,
    /// Share of failures that opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<f64>,
    /// From when on a call is slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_call_duration: Option<Time>,
    /// Share of slow calls that opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_call_rate: Option<f64>,
    /// Failures in a row that open; 0 for any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// Fewer calls decide nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_calls: Option<u32>,
    /// For how long it opens first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_time: Option<Time>,
    /// For how long at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_open_time: Option<Time>,
    /// How many times longer each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_time_growth: Option<f64>,
    /// Share of the open time that is random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
    /// How it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open: Option<HalfOpenSpec>,
    /// Traffic grows over this time after it has closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ramp: Option<Time>,
    /// Most of the endpoints that are left out at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejected_share: Option<f64>,
}

impl Default for CircuitBreakerSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            window: None,
            failure_rate: None,
            slow_call_duration: None,
            slow_call_rate: None,
            consecutive_failures: None,
            minimum_calls: None,
            open_time: None,
            max_open_time: None,
            open_time_growth: None,
            jitter: None,
            half_open: None,
            ramp: None,
            max_ejected_share: None,
        }
    }
}

/// Which calls count: the last so many, or those of the last while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WindowSpec {
    /// The last so many.
    Count(u32),
    /// Those of the last while.
    Time(Time),
}

/// How an endpoint is tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HalfOpenSpec {
    /// Probes at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
    /// Successes that close.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub successes: Option<u32>,
    /// A probe that takes longer is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<Time>,
}

/// What is repeated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TimeoutsSpec {
    /// A request with all its attempts, until its response begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Time>,
    /// One attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Time>,
}

/// How much at the same time, for each sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LimitsSpec {
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
}

impl TrafficPolicySpec {
    /// What it comes to, with defaults for what it leaves out; not validated.
    pub fn resolve(&self) -> TrafficPolicy {
        let defaults = TrafficPolicy::default();
        let breaker = self.circuit_breaker.clone().unwrap_or_default();
        let retry = self.retry.clone().unwrap_or_default();
        let timeouts = self.timeouts.unwrap_or_default();
        let (policy, budget) = (defaults.retry, retry.budget.unwrap_or_default());
        let backoff = retry.backoff.unwrap_or_default();
        TrafficPolicy {
            balancing: self.load_balancer.map_or(defaults.balancing, |balancer| {
                match balancer.kind {
                    LoadBalancerType::PeakEwma => balance::Policy::PeakEwma,
                    LoadBalancerType::LeastRequest => balance::Policy::LeastRequest,
                    LoadBalancerType::RoundRobin => balance::Policy::RoundRobin,
                    LoadBalancerType::Random => balance::Policy::Random,
                }
            }),
            breaker: breaker.enabled.then(|| breaker.resolve()),
            max_ejected_share: breaker
                .max_ejected_share
                .unwrap_or(defaults.max_ejected_share),
            retry: RetryPolicy {
                attempts: retry.attempts.unwrap_or(policy.attempts),
                statuses: retry.statuses.map_or(policy.statuses, Cow::Owned),
                grpc_codes: retry.grpc_codes.map_or(policy.grpc_codes, Cow::Owned),
                body_max: retry.max_body_bytes.unwrap_or(policy.body_max),
                backoff: backoff.base.map_or(policy.backoff, |time| time.0),
                backoff_max: backoff.max.map_or(policy.backoff_max, |time| time.0),
            },
            budget: BudgetConfig {
                ratio: budget.ratio.unwrap_or(defaults.budget.ratio),
                minimum_per_second: budget
                    .minimum_per_second
                    .unwrap_or(defaults.budget.minimum_per_second),
            },
            per_try_timeout: timeouts.per_try.map(|time| time.0),
            request_timeout: timeouts.request.map(|time| time.0),
            max_requests: self.limits.and_then(|limits| limits.concurrent_requests),
        }
    }
}

impl CircuitBreakerSpec {
    fn resolve(&self) -> BreakerConfig {
        let defaults = BreakerConfig::default();
        let half_open = self.half_open.unwrap_or_default();
        let time = |time: Option<Time>, default: Duration| time.map_or(default, |time| time.0);
        let open = time(self.open_time, defaults.open);
        BreakerConfig {
            window: match self.window {
                Some(WindowSpec::Count(calls)) => Window::Count(calls),
                Some(WindowSpec::Time(Time(length))) => Window::Time {
                    length,
                    buckets: BUCKETS,
                },
                None => defaults.window,
            },
            failure_rate: self.failure_rate.unwrap_or(defaults.failure_rate),
            slow_call: self.slow_call_duration.map(|time| time.0),
            slow_rate: self.slow_call_rate.unwrap_or(defaults.slow_rate),
            consecutive_failures: match self.consecutive_failures {
                Some(0) => None,
                Some(limit) => Some(limit),
                None => defaults.consecutive_failures,
            },
            minimum_calls: self.minimum_calls.unwrap_or(defaults.minimum_calls),
            open,
            // Who asks for a longer first time than the default maximum means it.
            open_max: time(self.max_open_time, defaults.open_max.max(open)),
            open_growth: self.open_time_growth.unwrap_or(defaults.open_growth),
            jitter: self.jitter.unwrap_or(defaults.jitter),
            half_open_permits: half_open.probes.unwrap_or(defaults.half_open_permits),
            half_open_successes: half_open.successes.unwrap_or(defaults.half_open_successes),
            half_open_max_wait: time(half_open.max_wait, defaults.half_open_max_wait),
            ramp: time(self.ramp, defaults.ramp),
        }
    }
}
