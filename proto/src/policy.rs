//! Traffic policies, wire to domain and back.

use std::time::Duration;

use weft_core::balance;
use weft_core::breaker::{BreakerConfig, Window};
use weft_core::policy::{BudgetConfig, TrafficPolicy};
use weft_core::retry::RetryPolicy;

use crate::convert::Rejection;
use crate::mesh;
use crate::mesh::circuit_breaker::Window as WireWindow;

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
            per_try_timeout: policy.per_try_timeout.map(nanos),
            request_timeout: policy.request_timeout.map(nanos),
            max_requests: policy.max_requests,
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
            breaker: wire
                .circuit_breaker
                .map(BreakerConfig::try_from)
                .transpose()?,
            max_ejected_share: wire.max_ejected_share,
            retry: retry.try_into()?,
            budget,
            per_try_timeout: wire.per_try_timeout.map(Duration::from_nanos),
            request_timeout: wire.request_timeout.map(Duration::from_nanos),
            max_requests: wire.max_requests,
        };
        match policy.validate().into_iter().next() {
            Some(error) => Err(error.into()),
            None => Ok(policy),
        }
    }
}

impl From<&RetryPolicy> for mesh::Retry {
    fn from(retry: &RetryPolicy) -> Self {
        Self {
            attempts: retry.attempts,
            statuses: retry.statuses.iter().map(|s| u32::from(*s)).collect(),
            grpc_codes: retry.grpc_codes.to_vec(),
            backoff: nanos(retry.backoff),
            backoff_max: nanos(retry.backoff_max),
            body_max: retry.body_max,
            budget_ratio: 0.0,
            budget_minimum_per_second: 0,
        }
    }
}

impl TryFrom<mesh::Retry> for RetryPolicy {
    type Error = Rejection;

    fn try_from(wire: mesh::Retry) -> Result<Self, Rejection> {
        let statuses = wire.statuses.iter().map(|status| {
            u16::try_from(*status).map_err(|_large| Rejection::Value {
                field: "retry.statuses",
                found: status.to_string(),
                allowed: "a status",
            })
        });
        let statuses: Vec<u16> = statuses.collect::<Result<_, _>>()?;
        Ok(Self {
            attempts: wire.attempts,
            statuses: statuses.into(),
            grpc_codes: wire.grpc_codes.into(),
            backoff: Duration::from_nanos(wire.backoff),
            backoff_max: Duration::from_nanos(wire.backoff_max),
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
