//! Traffic policies, wire to domain and back.

use std::sync::Arc;
use std::time::Duration;

use weft_core::balance::{self, hash::HashOn};
use weft_core::breaker::{BreakerConfig, Window};
use weft_core::health::HealthCheck;
use weft_core::hedge::HedgePolicy;
use weft_core::path::PathNormalization;
use weft_core::policy::{BreakerMode, BudgetConfig, Failures, Fallback, TrafficPolicy};
use weft_core::retry::RetryPolicy;

use crate::convert::{Rejection, name, port};
use crate::mesh::{self, circuit_breaker::Window as WireWindow, fallback, hash_on};

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl From<&TrafficPolicy> for mesh::TrafficPolicy {
    fn from(policy: &TrafficPolicy) -> Self {
        let balancing = match policy.balancing {
            balance::Policy::PeakEwma => mesh::Balancing::PeakEwma,
            balance::Policy::LeastRequest => mesh::Balancing::LeastRequest,
            balance::Policy::RoundRobin => mesh::Balancing::RoundRobin,
            balance::Policy::Random => mesh::Balancing::Random,
            balance::Policy::RingHash => mesh::Balancing::RingHash,
            balance::Policy::Maglev => mesh::Balancing::Maglev,
        };
        let mode = match policy.breaker_mode {
            BreakerMode::Enforce => mesh::BreakerMode::Enforce,
            BreakerMode::Observe => mesh::BreakerMode::Observe,
            BreakerMode::ForceOpen => mesh::BreakerMode::ForceOpen,
        };
        let (retry, budget) = (&policy.retry, &policy.budget);
        Self {
            balancing: balancing.into(),
            circuit_breaker: policy.breaker.as_ref().map(Into::into),
            max_ejected_share: policy.max_ejected_share,
            retry: Some(mesh::Retry {
                budget_ratio: budget.ratio,
                budget_minimum_per_second: budget.minimum_per_second,
                ..retry.into()
            }),
            connect_timeout: policy.connect_timeout.map(nanos),
            per_try_timeout: policy.per_try_timeout.map(nanos),
            request_timeout: policy.request_timeout.map(nanos),
            hedge: policy.hedge.as_ref().map(Into::into),
            idle_timeout: policy.idle_timeout.map(nanos),
            stream_idle_timeout: policy.stream_idle_timeout.map(nanos),
            max_requests: policy.max_requests,
            hash_on: policy.hash_on.as_ref().map(Into::into),
            slow_start: policy.slow_start.map(nanos),
            prefer_zone: policy.prefer_zone,
            service_breaker: policy.service_breaker.as_ref().map(Into::into),
            route_breaker: policy.route_breaker.as_ref().map(Into::into),
            breaker_mode: mode.into(),
            failures: Some((&policy.failures).into()),
            heed_retry_after: policy.heed_retry_after,
            fallback: policy.fallback.as_ref().map(Into::into),
            max_pending: policy.max_pending,
            max_retries: policy.max_retries,
            max_connections: policy.max_connections,
            requests_per_connection: policy.requests_per_connection,
            health_check: policy.health_check.as_deref().map(Into::into),
            panic_threshold: policy.panic_threshold,
            adaptive_concurrency: policy.adaptive.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<mesh::TrafficPolicy> for TrafficPolicy {
    type Error = Rejection;

    fn try_from(wire: mesh::TrafficPolicy) -> Result<Self, Rejection> {
        let balancing = match mesh::Balancing::try_from(wire.balancing) {
            Ok(mesh::Balancing::PeakEwma) => balance::Policy::PeakEwma,
            Ok(mesh::Balancing::LeastRequest) => balance::Policy::LeastRequest,
            Ok(mesh::Balancing::RoundRobin) => balance::Policy::RoundRobin,
            Ok(mesh::Balancing::Random) => balance::Policy::Random,
            Ok(mesh::Balancing::RingHash) => balance::Policy::RingHash,
            Ok(mesh::Balancing::Maglev) => balance::Policy::Maglev,
            Ok(mesh::Balancing::Unspecified) | Err(_) => {
                return Err(Rejection::Value {
                    field: "policies.policy.balancing",
                    found: wire.balancing.to_string(),
                    allowed: "a known Balancing",
                });
            }
        };
        let retry = wire.retry.ok_or(Rejection::Value {
            field: "policies.policy.retry",
            found: String::new(),
            allowed: "what is retried; 0 attempts for nothing",
        })?;
        let budget = BudgetConfig {
            ratio: retry.budget_ratio,
            minimum_per_second: retry.budget_minimum_per_second,
        };
        let policy = Self {
            balancing,
            breaker: breaker(wire.circuit_breaker)?,
            max_ejected_share: wire.max_ejected_share,
            retry: retry.try_into()?,
            budget,
            connect_timeout: wire.connect_timeout.map(Duration::from_nanos),
            per_try_timeout: wire.per_try_timeout.map(Duration::from_nanos),
            request_timeout: wire.request_timeout.map(Duration::from_nanos),
            hedge: wire.hedge.map(HedgePolicy::try_from).transpose()?,
            idle_timeout: wire.idle_timeout.map(Duration::from_nanos),
            stream_idle_timeout: wire.stream_idle_timeout.map(Duration::from_nanos),
            max_requests: wire.max_requests,
            hash_on: wire.hash_on.map(HashOn::try_from).transpose()?,
            slow_start: wire.slow_start.map(Duration::from_nanos),
            prefer_zone: wire.prefer_zone,
            service_breaker: breaker(wire.service_breaker)?,
            route_breaker: breaker(wire.route_breaker)?,
            breaker_mode: breaker_mode(wire.breaker_mode)?,
            failures: match wire.failures {
                Some(failures) => failures.try_into()?,
                None => Failures::DEFAULT,
            },
            heed_retry_after: wire.heed_retry_after,
            fallback: wire.fallback.map(Fallback::try_from).transpose()?,
            max_pending: wire.max_pending,
            max_retries: wire.max_retries,
            max_connections: wire.max_connections,
            requests_per_connection: wire.requests_per_connection,
            health_check: wire
                .health_check
                .map(|check| HealthCheck::try_from(check).map(Arc::new))
                .transpose()?,
            panic_threshold: wire.panic_threshold,
            adaptive: wire.adaptive_concurrency.map(Into::into),
            // Not the callers' business: it comes to those who serve the port, with ServerPolicy.
            shedding: None,
            path_normalization: PathNormalization::default(),
        };
        match policy.validate().into_iter().next() {
            Some(error) => Err(error.into()),
            None => Ok(policy),
        }
    }
}

fn breaker(wire: Option<mesh::CircuitBreaker>) -> Result<Option<BreakerConfig>, Rejection> {
    wire.map(BreakerConfig::try_from).transpose()
}

fn breaker_mode(wire: i32) -> Result<BreakerMode, Rejection> {
    match mesh::BreakerMode::try_from(wire) {
        Ok(mesh::BreakerMode::Enforce) => Ok(BreakerMode::Enforce),
        Ok(mesh::BreakerMode::Observe) => Ok(BreakerMode::Observe),
        Ok(mesh::BreakerMode::ForceOpen) => Ok(BreakerMode::ForceOpen),
        Ok(mesh::BreakerMode::Unspecified) | Err(_) => Err(Rejection::Value {
            field: "policies.policy.breaker_mode",
            found: wire.to_string(),
            allowed: "a known BreakerMode",
        }),
    }
}

impl From<&HashOn> for mesh::HashOn {
    fn from(hash_on: &HashOn) -> Self {
        let key = match hash_on {
            HashOn::Header(name) => hash_on::Key::Header(name.as_str().to_owned()),
            HashOn::Query(name) => hash_on::Key::Query(name.to_string()),
            HashOn::Cookie { name, issue } => hash_on::Key::Cookie(mesh::Cookie {
                name: name.to_string(),
                issue: issue.map(|life| life.as_secs()),
            }),
            HashOn::Source => hash_on::Key::Source(true),
        };
        Self { key: Some(key) }
    }
}

impl TryFrom<mesh::HashOn> for HashOn {
    type Error = Rejection;

    fn try_from(wire: mesh::HashOn) -> Result<Self, Rejection> {
        let bad = |found: String| Rejection::Value {
            field: "policies.policy.hash_on",
            found,
            allowed: "the name of a field, a parameter or a cookie, or the source",
        };
        match wire.key {
            Some(hash_on::Key::Header(name)) => {
                let parsed = name.parse().map_err(|_invalid| bad(name))?;
                Ok(Self::Header(parsed))
            }
            Some(hash_on::Key::Query(name)) => Ok(Self::Query(name.into())),
            Some(hash_on::Key::Cookie(cookie)) => Ok(Self::Cookie {
                name: cookie.name.into(),
                issue: cookie.issue.map(Duration::from_secs),
            }),
            Some(hash_on::Key::Source(_)) => Ok(Self::Source),
            None => Err(bad(String::new())),
        }
    }
}

impl From<&Failures> for mesh::Failures {
    fn from(failures: &Failures) -> Self {
        let statuses = failures.statuses.iter();
        Self {
            statuses: statuses
                .map(|(from, to)| mesh::StatusRange {
                    from: (*from).into(),
                    to: (*to).into(),
                })
                .collect(),
            grpc_codes: failures.grpc_codes.to_vec(),
            connect: failures.connect,
            reset: failures.reset,
            timeout: failures.timeout,
        }
    }
}

impl TryFrom<mesh::Failures> for Failures {
    type Error = Rejection;

    fn try_from(wire: mesh::Failures) -> Result<Self, Rejection> {
        const FIELD: &str = "policies.policy.failures.statuses";
        let statuses = wire.statuses.iter();
        let statuses =
            statuses.map(|range| Ok((status(FIELD, range.from)?, status(FIELD, range.to)?)));
        let statuses: Vec<(u16, u16)> = statuses.collect::<Result<_, Rejection>>()?;
        Ok(Self {
            statuses: statuses.into(),
            grpc_codes: wire.grpc_codes.into(),
            connect: wire.connect,
            reset: wire.reset,
            timeout: wire.timeout,
        })
    }
}

impl From<&Fallback> for mesh::Fallback {
    fn from(fallback: &Fallback) -> Self {
        let kind = match fallback {
            Fallback::Response {
                status,
                body,
                content_type,
            } => fallback::Kind::Response(mesh::FallbackResponse {
                status: (*status).into(),
                body: body.to_string(),
                content_type: content_type.to_string(),
            }),
            Fallback::Backend { service, port } => fallback::Kind::Backend(mesh::FallbackBackend {
                service: service.to_string(),
                port: (*port).into(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<mesh::Fallback> for Fallback {
    type Error = Rejection;

    fn try_from(wire: mesh::Fallback) -> Result<Self, Rejection> {
        match wire.kind {
            Some(fallback::Kind::Response(response)) => Ok(Self::Response {
                status: status("policies.policy.fallback.status", response.status)?,
                body: response.body.into(),
                content_type: response.content_type.into(),
            }),
            Some(fallback::Kind::Backend(backend)) => Ok(Self::Backend {
                service: name("policies.policy.fallback.service", backend.service.parse())?,
                port: port("policies.policy.fallback.port", backend.port)?,
            }),
            None => Err(Rejection::Value {
                field: "policies.policy.fallback",
                found: String::new(),
                allowed: "a response or a backend",
            }),
        }
    }
}

pub(crate) fn status(field: &'static str, wire: u32) -> Result<u16, Rejection> {
    u16::try_from(wire).map_err(|_large| Rejection::Value {
        field,
        found: wire.to_string(),
        allowed: "a status",
    })
}

impl From<&RetryPolicy> for mesh::Retry {
    fn from(retry: &RetryPolicy) -> Self {
        Self {
            attempts: retry.attempts,
            statuses: retry.statuses.iter().map(|s| u32::from(*s)).collect(),
            grpc_codes: retry.grpc_codes.to_vec(),
            backoff: nanos(retry.backoff),
            backoff_max: nanos(retry.backoff_max),
            backoff_is_minimum: retry.backoff_is_minimum,
            body_max: retry.body_max,
            budget_ratio: 0.0,
            budget_minimum_per_second: 0,
        }
    }
}

impl TryFrom<mesh::Retry> for RetryPolicy {
    type Error = Rejection;

    fn try_from(wire: mesh::Retry) -> Result<Self, Rejection> {
        let statuses = wire.statuses.iter();
        let statuses = statuses.map(|wire| status("retry.statuses", *wire));
        let statuses: Vec<u16> = statuses.collect::<Result<_, _>>()?;
        Ok(Self {
            attempts: wire.attempts,
            statuses: statuses.into(),
            grpc_codes: wire.grpc_codes.into(),
            backoff: Duration::from_nanos(wire.backoff),
            backoff_max: Duration::from_nanos(wire.backoff_max),
            backoff_is_minimum: wire.backoff_is_minimum,
            body_max: wire.body_max,
        })
    }
}

impl From<&BreakerConfig> for mesh::CircuitBreaker {
    fn from(config: &BreakerConfig) -> Self {
        let window = match config.window {
            Window::Count(calls) => WireWindow::Count(calls),
            Window::Time { length, buckets } => WireWindow::Time(mesh::TimeWindow {
                length: nanos(length),
                buckets,
            }),
        };
        Self {
            window: Some(window),
            failure_rate: config.failure_rate,
            slow_call: config.slow_call.map(nanos),
            slow_rate: config.slow_rate,
            consecutive_failures: config.consecutive_failures,
            minimum_calls: config.minimum_calls,
            open: nanos(config.open),
            open_max: nanos(config.open_max),
            open_growth: config.open_growth,
            jitter: config.jitter,
            half_open_permits: config.half_open_permits,
            half_open_successes: config.half_open_successes,
            half_open_max_wait: nanos(config.half_open_max_wait),
            ramp: nanos(config.ramp),
        }
    }
}

impl TryFrom<mesh::CircuitBreaker> for BreakerConfig {
    type Error = Rejection;

    fn try_from(wire: mesh::CircuitBreaker) -> Result<Self, Rejection> {
        let window = match wire.window {
            Some(WireWindow::Count(calls)) => Window::Count(calls),
            Some(WireWindow::Time(time)) => Window::Time {
                length: Duration::from_nanos(time.length),
                buckets: time.buckets,
            },
            None => {
                return Err(Rejection::Value {
                    field: "policies.policy.circuit_breaker.window",
                    found: String::new(),
                    allowed: "count or time",
                });
            }
        };
        Ok(Self {
            by_calls: true,
            window,
            failure_rate: wire.failure_rate,
            slow_call: wire.slow_call.map(Duration::from_nanos),
            slow_rate: wire.slow_rate,
            consecutive_failures: wire.consecutive_failures,
            minimum_calls: wire.minimum_calls,
            open: Duration::from_nanos(wire.open),
            open_max: Duration::from_nanos(wire.open_max),
            open_growth: wire.open_growth,
            jitter: wire.jitter,
            half_open_permits: wire.half_open_permits,
            half_open_successes: wire.half_open_successes,
            half_open_max_wait: Duration::from_nanos(wire.half_open_max_wait),
            ramp: Duration::from_nanos(wire.ramp),
        })
    }
}
