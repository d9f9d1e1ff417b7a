//! Whether a request is let through to a port at all: its own breaker, limits and the fallback.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use weft_core::adaptive::Priority;
use weft_core::headers::WEFT_REASON;
use weft_core::policy::{BreakerMode, Fallback};
use weft_core::reason::Reason;
use weft_core::route::Found;

use super::http::Failed;
use super::route::{Next, target};
use crate::http::{BodyEnd, ProxyBody, Record, answer};
use crate::mesh::{Full, PortView};
use crate::worker::Worker;

/// Lets a request through to a port, or to its fallback, or answers it. What has to hear of its end
/// is in the record.
pub(super) async fn admit(
    worker: &Worker,
    port: Arc<PortView>,
    found: Option<&Found<'_>>,
    record: &mut Record,
) -> Result<Next, Failed> {
    let Err((reason, retry_after)) = enter(&port, found, record) else {
        return Ok(Next::Forward(port));
    };
    let response = match &port.policy.fallback {
        None if reason == Reason::NoEndpoints => return Ok(Next::Forward(port)),
        None => {
            let detail = format!("{}:{}", port.service, port.port);
            let mut response = answer(reason, &detail, record.grpc);
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            response
        }
        Some(Fallback::Response {
            status,
            body,
            content_type,
        }) => {
            let text = Bytes::copy_from_slice(body.as_bytes());
            let mut response = Response::new(ProxyBody::text(text));
            *response.status_mut() = StatusCode::from_u16(*status).unwrap_or_default();
            let headers = response.headers_mut();
            if let Ok(value) = HeaderValue::from_str(content_type) {
                headers.insert(CONTENT_TYPE, value);
            }
            headers.insert(WEFT_REASON, HeaderValue::from_static(reason.as_str()));
            response
        }
        Some(Fallback::Backend {
            service,
            port: number,
        }) => {
            // A fallback's own fallback is not asked: that could go round for ever.
            let fallback = target(worker, &port, Some(service), *number).await?;
            enter(&fallback, found, record).map_err(|(reason, _)| Failed {
                reason,
                detail: format!("{service}:{number}, the fallback of {}", port.service),
            })?;
            return Ok(Next::Forward(fallback));
        }
    };
    Ok(Next::Answer(response))
}

/// Asks the breakers of the rule and of the port; says after which time to ask again where one lets
/// nothing through.
fn enter(
    port: &PortView,
    found: Option<&Found<'_>>,
    record: &mut Record,
) -> Result<(), (Reason, Duration)> {
    let policy = &port.policy;
    if policy.breaker_mode == BreakerMode::ForceOpen {
        return Err((Reason::CircuitOpen, Duration::ZERO));
    }
    let now = crate::clock::now();
    let by_rule = found.map_or(Ok(None), |found| port.begin_by(found, now));
    for (call, of_record) in [
        (by_rule, &mut record.rule_call),
        (port.begin(now), &mut record.port_call),
    ] {
        match call {
            Ok(call) => *of_record = call,
            Err(_open) if policy.breaker_mode == BreakerMode::Observe => *of_record = None,
            Err(open) => return Err((Reason::CircuitOpen, open.retry_after)),
        }
    }
    if port.endpoints.is_empty() {
        return Err((Reason::NoEndpoints, Duration::ZERO));
    }
    record.policy = Some(Arc::clone(policy));
    Ok(())
}

/// Waits for a place within the port's limit on requests, and takes one within that which follows
/// how long answers take. `body` tells when all of the request was there.
pub(super) async fn wait(
    port: &PortView,
    body: Option<BodyEnd>,
    record: &mut Record,
) -> Result<(), Failed> {
    let most = |limit: Option<u32>| limit.unwrap_or_default();
    record.admitted = Some(port.admit().await.map_err(|full| match full {
        Full::NoPlace => Failed {
            reason: Reason::ConcurrencyLimit,
            detail: format!("{} requests are under way", most(port.policy.max_requests)),
        },
        Full::NoRoom => Failed {
            reason: Reason::PendingLimit,
            detail: format!("{} requests wait already", most(port.policy.max_pending)),
        },
    })?);
    if let Some(concurrency) = port.concurrency() {
        // Nobody waits here: a queue is what this limit is against.
        let place = concurrency.try_acquire(Priority::Default, body);
        record.concurrency = Some(place.map_err(|rejected| Failed {
            reason: Reason::ConcurrencyLimit,
            detail: rejected.to_string(),
        })?);
    }
    Ok(())
}
