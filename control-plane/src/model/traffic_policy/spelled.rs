//! A policy as users would write it, with nothing left out.

use std::time::Duration;

use serde_json::{Value, json};
use weft_core::balance::hash::HashOn;
use weft_core::breaker::{BreakerConfig, Window};
use weft_core::health::{Check, HealthCheck};
use weft_core::policy::{Fallback, TrafficPolicy};

use super::{hedge, path};
use crate::model::time::Time;

/// A policy with everything that it comes to, as users would write it.
pub fn spelled_out(policy: &TrafficPolicy) -> Value {
    let time = |time: Duration| serde_json::to_value(Time(time)).unwrap_or_default();
    let maybe = |limit: Option<Duration>| limit.map(time);
    let hash_on = policy.hash_on.as_ref().map(spell_key);
    let mut breaker = match &policy.breaker {
        Some(config) => spell_breaker(config),
        None => json!({ "enabled": false }),
    };
    let failures = &policy.failures;
    let statuses = failures.statuses.iter();
    breaker["maxEjectedShare"] = json!(policy.max_ejected_share);
    breaker["mode"] = json!(policy.breaker_mode.as_str());
    breaker["failures"] = json!({
        "statuses": statuses.map(|(from, to)| format!("{from}-{to}")).collect::<Vec<_>>(),
        "grpcCodes": failures.grpc_codes,
        "connect": failures.connect,
        "reset": failures.reset,
        "timeout": failures.timeout,
    });
    breaker["heedRetryAfter"] = json!(policy.heed_retry_after);
    breaker["service"] = json!(policy.service_breaker.as_ref().map(spell_breaker));
    breaker["route"] = json!(policy.route_breaker.as_ref().map(spell_breaker));
    breaker["fallback"] = json!(policy.fallback.as_ref().map(spell_fallback));
    let (retry, budget) = (&policy.retry, &policy.budget);
    let mut value = json!({
        "loadBalancer": {
            "type": policy.balancing.as_str(),
            "hashOn": hash_on,
            "slowStart": maybe(policy.slow_start),
            "preferZone": policy.prefer_zone,
            "panicThreshold": policy.panic_threshold,
        },
        "circuitBreaker": breaker,
        "retry": {
            "attempts": retry.attempts,
            "statuses": retry.statuses,
            "grpcCodes": retry.grpc_codes,
            "maxBodyBytes": retry.body_max,
            "backoff": {"base": time(retry.backoff), "max": time(retry.backoff_max)},
            "budget": {"ratio": budget.ratio, "minimumPerSecond": budget.minimum_per_second},
        },
        "hedge": policy.hedge.as_ref().map(hedge::spell),
        "timeouts": {
            "connect": maybe(policy.connect_timeout),
            "request": maybe(policy.request_timeout),
            "perTry": maybe(policy.per_try_timeout),
            "idle": maybe(policy.idle_timeout),
            "streamIdle": maybe(policy.stream_idle_timeout),
        },
        "limits": {
            "concurrentRequests": policy.max_requests,
            "pendingRequests": policy.max_pending,
            "concurrentRetries": policy.max_retries,
            "connections": policy.max_connections,
            "requestsPerConnection": policy.requests_per_connection,
        },
        "healthCheck": policy.health_check.as_deref().map(spell_check),
        "adaptiveConcurrency": super::adaptive::spell(policy),
        "pathNormalization": path::spell(policy.path_normalization),
    });
    without_nulls(&mut value);
    value
}

fn spell_check(config: &HealthCheck) -> Value {
    let time = |time: Duration| serde_json::to_value(Time(time)).unwrap_or_default();
    let check = match &config.check {
        Check::Http(http) => {
            let statuses = http.statuses.iter();
            let headers = http.headers.iter().map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes());
                json!({"name": name.as_str(), "value": value})
            });
            json!({
                "path": http.path,
                "host": http.host,
                "expectedStatuses":
                    statuses.map(|(from, to)| format!("{from}-{to}")).collect::<Vec<_>>(),
                "headers": headers.collect::<Vec<_>>(),
            })
        }
        Check::Grpc { service } => json!({ "service": service }),
        Check::Tcp => json!({}),
    };
    let mut value = json!({
        "interval": time(config.interval),
        "timeout": time(config.timeout),
        "unhealthyThreshold": config.unhealthy_threshold,
        "healthyThreshold": config.healthy_threshold,
        "jitter": config.jitter,
        "initialState": config.initial.as_str(),
    });
    value[config.check.kind()] = check;
    value
}

fn spell_key(hash_on: &HashOn) -> Value {
    match hash_on {
        HashOn::Header(name) => json!({ "header": name.as_str() }),
        HashOn::Query(name) => json!({ "query": name }),
        HashOn::Cookie { name, issue } => {
            json!({"cookie": {"name": name, "ttl": issue.map(Time)}})
        }
        HashOn::Source => json!({ "source": {} }),
    }
}

fn spell_fallback(fallback: &Fallback) -> Value {
    match fallback {
        Fallback::Response {
            status,
            body,
            content_type,
        } => json!({"response": {"status": status, "body": body, "contentType": content_type}}),
        Fallback::Backend { service, port } => json!({"backend": {
            "name": service.name(),
            "namespace": service.namespace(),
            "port": port,
        }}),
    }
}

fn spell_breaker(config: &BreakerConfig) -> Value {
    let time = |time: Duration| serde_json::to_value(Time(time)).unwrap_or_default();
    json!({
        "enabled": true,
        "window": match config.window {
            Window::Count(calls) => json!({ "count": calls }),
            Window::Time { length, .. } => json!({ "time": time(length) }),
        },
        "failureRate": config.failure_rate,
        "slowCallDuration": config.slow_call.map(time),
        "slowCallRate": config.slow_rate,
        "consecutiveFailures": config.consecutive_failures.unwrap_or(0),
        "minimumCalls": config.minimum_calls,
        "openTime": time(config.open),
        "maxOpenTime": time(config.open_max),
        "openTimeGrowth": config.open_growth,
        "jitter": config.jitter,
        "halfOpen": {
            "probes": config.half_open_permits,
            "successes": config.half_open_successes,
            "maxWait": time(config.half_open_max_wait),
        },
        "ramp": time(config.ramp),
    })
}

fn without_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_name, value| !value.is_null());
        fields.values_mut().for_each(without_nulls);
    }
}
