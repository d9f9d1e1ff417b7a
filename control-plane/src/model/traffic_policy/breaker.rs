//! `circuitBreaker` of a TrafficPolicy: when something is left out, what counts, and what answers then.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use weft_core::breaker::{BreakerConfig, Window};
use weft_core::name::ServiceName;
use weft_core::policy::{BreakerMode, Failures, Fallback};

use crate::model::time::Time;

/// Buckets of a time window that names none.
const BUCKETS: u32 = 10;

/// When an endpoint is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// What open ones do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<BreakerModeSpec>,
    /// What counts as a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<FailuresSpec>,
    /// Whether a 503 with `Retry-After` opens for that long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heed_retry_after: Option<bool>,
    /// One for the whole port, beside those of its endpoints: with the window, rates and times only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<Self>>,
    /// One for each rule of a route that sends requests here, as `service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Box<Self>>,
    /// What answers where breakers let nothing through, or there is no endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<FallbackSpec>,
}

/// What open breakers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BreakerModeSpec {
    /// They keep requests away.
    Enforce,
    /// They are seen and told of, and nothing else.
    Observe,
    /// No request goes through.
    ForceOpen,
}

impl BreakerModeSpec {
    pub(super) const fn resolve(self) -> BreakerMode {
        match self {
            Self::Enforce => BreakerMode::Enforce,
            Self::Observe => BreakerMode::Observe,
            Self::ForceOpen => BreakerMode::ForceOpen,
        }
    }
}

/// What counts as an endpoint's failure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct FailuresSpec {
    /// Statuses: `5xx`, `500-502` or `429`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statuses: Option<Vec<Statuses>>,
    /// gRPC codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_codes: Option<Vec<u32>>,
    /// No connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<bool>,
    /// A connection or stream that broke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset: Option<bool>,
    /// No answer in the time of an attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<bool>,
}

/// Statuses from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statuses(pub(super) u16, pub(super) u16);

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = serde_json::Value::deserialize(deserializer)?;
        let text = written.as_str().map(ToOwned::to_owned);
        let text = text.unwrap_or_else(|| written.to_string());
        let class = text.strip_suffix("xx").and_then(|class| class.parse().ok());
        let parsed = match (class, text.split_once('-')) {
            (Some(class @ 1..=5), _) => Some(Self(class * 100, class * 100 + 99)),
            (_, Some((from, to))) => from.parse().ok().zip(to.parse().ok()).map(Into::into),
            (_, None) => text.parse().ok().map(|status| Self(status, status)),
        };
        parsed.ok_or_else(|| {
            let error = format!("{text:?}, expected statuses as in 5xx, 500-502 or 429");
            serde::de::Error::custom(error)
        })
    }
}

impl JsonSchema for Statuses {
    fn schema_name() -> Cow<'static, str> {
        "Statuses".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "maxLength": 7 })
    }
}

impl From<(u16, u16)> for Statuses {
    fn from((from, to): (u16, u16)) -> Self {
        Self(from, to)
    }
}

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(from, to) = self;
        serializer.serialize_str(&format!("{from}-{to}"))
    }
}

/// What answers in the place of the endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FallbackSpec {
    /// This.
    Response(FallbackResponseSpec),
    /// Another Service.
    Backend(FallbackBackendSpec),
}

/// A response in the place of the endpoints'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FallbackResponseSpec {
    /// The status.
    pub status: u16,
    /// The body.
    #[serde(default)]
    pub body: String,
    /// What the body is.
    #[serde(default = "plain_text")]
    pub content_type: String,
}

fn plain_text() -> String {
    "text/plain; charset=utf-8".to_owned()
}

/// A Service in the place of the endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FallbackBackendSpec {
    /// Its name.
    pub name: String,
    /// Its namespace; by default the policy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its port.
    pub port: u16,
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
            mode: None,
            failures: None,
            heed_retry_after: None,
            service: None,
            route: None,
            fallback: None,
        }
    }
}

/// Which calls count: the last so many, or those of the last while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum WindowSpec {
    /// The last so many.
    Count(u32),
    /// Those of the last while.
    Time(Time),
}

/// How an endpoint is tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

impl FailuresSpec {
    pub(super) fn resolve(self) -> Failures {
        let defaults = Failures::DEFAULT;
        let statuses = self.statuses.map(|statuses| {
            let ranges = statuses.into_iter().map(|Statuses(from, to)| (from, to));
            ranges.collect::<Vec<_>>()
        });
        Failures {
            statuses: statuses.map_or(defaults.statuses, Cow::Owned),
            grpc_codes: self.grpc_codes.map_or(defaults.grpc_codes, Cow::Owned),
            connect: self.connect.unwrap_or(defaults.connect),
            reset: self.reset.unwrap_or(defaults.reset),
            timeout: self.timeout.unwrap_or(defaults.timeout),
        }
    }
}

impl FallbackSpec {
    /// `None` where the name is none.
    pub(in crate::model) fn resolve(&self, namespace: &str) -> Option<Fallback> {
        Some(match self {
            Self::Response(response) => Fallback::Response {
                status: response.status,
                body: response.body.as_str().into(),
                content_type: response.content_type.as_str().into(),
            },
            Self::Backend(backend) => {
                let namespace = backend.namespace.as_deref().unwrap_or(namespace);
                Fallback::Backend {
                    service: ServiceName::new(namespace, &backend.name).ok()?,
                    port: backend.port,
                }
            }
        })
    }
}

impl CircuitBreakerSpec {
    pub(super) fn resolve(&self) -> BreakerConfig {
        let defaults = BreakerConfig::default();
        let half_open = self.half_open.unwrap_or_default();
        let time = |time: Option<Time>, default: Duration| time.map_or(default, |time| time.0);
        let open = time(self.open_time, defaults.open);
        BreakerConfig {
            by_calls: true,
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
