//! Whether a request is let through to a port at all: its own breaker, limits and the fallback.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use weft_core::adaptive::Priority;
use weft_core::breaker::{CallClass, Rejected};
use weft_core::headers::WEFT_REASON;
use weft_core::policy::{BreakerMode, Fallback};
use weft_core::reason::Reason;
use weft_core::route::Found;
use weft_core::time::Instant;

use super::exchange::Answer;
use super::failed::Failed;
use super::route::target;
use crate::http::{ProxyBody, Upload, answer};
use crate::mesh::{Admitted, Full, PortCall, PortView, UnderWay};
use crate::telemetry::ledger::Ledger;
use crate::worker::Worker;

/// The breakers of the rule and of the port that a request came by: they wait to hear how it ends.
/// Dropped, it is cancelled.
#[derive(Debug, Default)]
pub(super) struct PortCalls {
    rule: Option<PortCall>,
    port: Option<PortCall>,
}

/// Whether a request may go on.
pub(super) enum Admission {
    /// It may, to this port: the one that it was for, or its fallback.
    Open(Arc<PortView>, PortCalls),
    /// It is answered at once.
    Answer(Answer),
}

impl PortCalls {
    /// An endpoint is asked from now on.
    pub(super) fn on_asked(&mut self, upload: Option<&Upload>) {
        let calls = [&mut self.rule, &mut self.port];
        for call in calls.into_iter().flatten() {
            call.on_asked(upload, crate::clock::now());
        }
    }

    /// The response has begun: the rest is not its latency.
    pub(super) fn on_response(&mut self, now: Instant) {
        let calls = [&mut self.rule, &mut self.port];
        for call in calls.into_iter().flatten() {
            call.on_response(now);
        }
    }

    /// Tells the breakers what the request came to.
    pub(super) fn finish(self, class: CallClass, ledger: &Ledger) {
        for call in [self.rule, self.port].into_iter().flatten() {
            ledger.breaker_changed(call.finish(class, crate::clock::now()));
        }
    }
}

/// Lets a request through to a port, or to its fallback, or answers it.
pub(super) async fn admit(
    worker: &Worker,
    port: Arc<PortView>,
    found: Option<&Found<'_>>,
    grpc: bool,
) -> Result<Admission, Failed> {
    let (reason, retry_after) = match begin(&port, found) {
        Ok(calls) => return Ok(Admission::Open(port, calls)),
        Err(closed) => closed,
    };
    let response = match &port.policy.fallback {
        None if reason == Reason::NoEndpoints => {
            return Ok(Admission::Open(port, PortCalls::default()));
        }
        None => {
            let detail = format!("{}:{}", port.service, port.port);
            let mut response = answer(reason, &detail, grpc);
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
            let calls = begin(&fallback, found).map_err(|(reason, _)| {
                let detail = format!("{service}:{number}, the fallback of {}", port.service);
                Failed::new(reason, detail)
            })?;
            return Ok(Admission::Open(fallback, calls));
        }
    };
    Ok(Admission::Answer(response))
}

/// Asks the breakers of the rule and of the port; the error says after which time to ask again.
fn begin(port: &PortView, found: Option<&Found<'_>>) -> Result<PortCalls, (Reason, Duration)> {
    let mode = port.policy.breaker_mode;
    if mode == BreakerMode::ForceOpen {
        return Err((Reason::CircuitOpen, Duration::ZERO));
    }
    let now = crate::clock::now();
    let open = |call: Result<Option<PortCall>, Rejected>| match call {
        Ok(call) => Ok(call),
        Err(_open) if mode == BreakerMode::Observe => Ok(None),
        Err(open) => Err((Reason::CircuitOpen, open.retry_after)),
    };
    let calls = PortCalls {
        rule: open(found.map_or(Ok(None), |found| port.begin_by(found, now)))?,
        port: open(port.begin(now))?,
    };
    match port.endpoints.is_empty() {
        true => Err((Reason::NoEndpoints, Duration::ZERO)),
        false => Ok(calls),
    }
}

/// Waits for a place within the port's limit on requests, and takes one within that which follows
/// how long answers take.
pub(super) async fn enter(
    port: &PortView,
    upload: Option<&Upload>,
) -> Result<(Admitted, Option<UnderWay>), Failed> {
    let most = |limit: Option<u32>| limit.unwrap_or_default();
    let admitted = port.admit().await.map_err(|full| match full {
        Full::NoPlace => Failed::new(
            Reason::ConcurrencyLimit,
            format!("{} requests are under way", most(port.policy.max_requests)),
        ),
        Full::NoRoom => Failed::new(
            Reason::PendingLimit,
            format!("{} requests wait already", most(port.policy.max_pending)),
        ),
    })?;
    let Some(concurrency) = port.concurrency() else {
        return Ok((admitted, None));
    };
    // Nobody waits here: a queue is what this limit is against.
    let place = concurrency.try_acquire(Priority::Default, upload.cloned());
    let place =
        place.map_err(|rejected| Failed::new(Reason::ConcurrencyLimit, rejected.to_string()))?;
    Ok((admitted, Some(place)))
}
