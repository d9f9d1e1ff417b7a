//! One attempt of a request, and what is kept for the next.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::timeout;
use weft_core::breaker::CallClass;
use weft_core::headers::WEFT_REASON;
use weft_core::policy::{Failures, TrafficPolicy};
use weft_core::reason::Reason;
use weft_core::retry::{Failure, RetryPolicy};
use weft_core::route::{Mirror, Rule};
use weft_core::time::Instant;

use super::http::{Failed, describe};
use super::pool::{DialError, Slot};
use crate::http::{Kept, ProxyBody, Record};
use crate::mesh::{Call, Endpoint, EndpointKey, PortView};

/// Bytes of a body that are kept for a copy of the request; of a longer one there is none.
const MIRROR_BYTES: usize = 256 * 1024;

/// How attempts are made: the policy's terms, unless the route has its own.
pub(super) struct Terms<'a> {
    pub(super) retry: &'a RetryPolicy,
    per_try_timeout: Option<Duration>,
    pub(super) failures: &'a Failures,
    heed_retry_after: bool,
}

impl<'a> Terms<'a> {
    pub(super) fn of(policy: &'a TrafficPolicy, rule: Option<&'a Rule>) -> Self {
        let retry = rule.and_then(|rule| rule.retry.as_ref());
        let timeout = rule.and_then(|rule| rule.backend_timeout);
        Self {
            retry: retry.unwrap_or(&policy.retry),
            per_try_timeout: match timeout {
                Some(Duration::ZERO) => None,
                Some(own) => Some(own),
                None => policy.per_try_timeout,
            },
            failures: &policy.failures,
            heed_retry_after: policy.heed_retry_after,
        }
    }
}

impl Terms<'_> {
    /// Where an answer says for how long to stay away, it is heeded (RFC 9110 section 10.2.3).
    fn heed(&self, response: &Response<Incoming>, record: &Record) {
        if !self.heed_retry_after || response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return;
        }
        let seconds = response.headers().get(RETRY_AFTER);
        let seconds = seconds.and_then(|text| text.to_str().ok()?.parse().ok());
        if let (Some(seconds), Some(call)) = (seconds, &record.waiting) {
            let wait = Duration::from_secs(seconds);
            call.live().hold_open(wait, crate::clock::now());
        }
    }
}

/// Keeps a request's body where there may be another attempt or a copy.
pub(super) fn keep(
    body: ProxyBody,
    terms: &Terms<'_>,
    mirrors: &[&Mirror],
) -> (Option<ProxyBody>, Option<Kept>) {
    let limit = terms.retry.body_max as usize;
    let wanted = terms.retry.attempts > 0 && limit > 0;
    if !wanted && mirrors.is_empty() {
        return (Some(body), None);
    }
    let limit = match mirrors {
        [] => limit,
        _ => limit.max(MIRROR_BYTES),
    };
    match body.keep(limit) {
        Ok(kept) => (None, Some(kept)),
        Err(body) => (Some(body), None),
    }
}

/// A request until it has been answered.
pub(super) struct Sending {
    pub(super) parts: Parts,
    /// The body, where it is not kept and not gone yet.
    pub(super) body: Option<ProxyBody>,
    pub(super) kept: Option<Kept>,
    /// When the caller stops waiting, where it or the policy says so.
    pub(super) deadline: Option<Instant>,
    /// Whether somebody waits for a copy of the body.
    pub(super) mirrored: bool,
}

impl Sending {
    /// The request for the next attempt; the head is copied only where there may be another.
    pub(super) fn request(&mut self, again: bool) -> Request<ProxyBody> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_since(crate::clock::now());
            weft_core::timeout::write(left, &mut self.parts.headers);
        }
        let head = if again {
            self.parts.clone()
        } else {
            take(&mut self.parts)
        };
        let body = match (&self.kept, &self.body) {
            (Some(kept), _) => kept.body(),
            // Nothing can be sent any number of times.
            (None, Some(ProxyBody::Empty) | None) => ProxyBody::Empty,
            (None, Some(_)) => self.body.take().unwrap_or(ProxyBody::Empty),
        };
        Request::from_parts(head, body)
    }

    pub(super) fn is_replayable(&self) -> bool {
        match &self.kept {
            Some(kept) => kept.is_replayable(),
            None => self.body.is_some(),
        }
    }

    /// There is no other attempt.
    pub(super) fn done(&self) {
        if let Some(kept) = &self.kept
            && !self.mirrored
        {
            kept.release();
        }
    }
}

/// A failed attempt, with what may come of it.
pub(super) struct Attempt {
    pub(super) failure: Failure,
    reason: Reason,
    detail: String,
    /// A response that is an answer, if there is to be no further attempt.
    response: Option<Box<(Response<Incoming>, Slot)>>,
}

impl Attempt {
    pub(super) fn not_connected(error: &DialError) -> Self {
        Self {
            failure: Failure::ConnectFailed,
            reason: error.reason(),
            detail: error.to_string(),
            response: None,
        }
    }

    fn too_slow(limit: Duration) -> Self {
        Self {
            failure: Failure::PerTryTimeout,
            reason: Reason::PerTryTimeout,
            detail: format!("{limit:?}"),
            response: None,
        }
    }

    pub(super) fn give_up(self) -> Result<(Response<Incoming>, Slot), Failed> {
        match self.response {
            Some(answer) => Ok(*answer),
            None => Err(Failed {
                reason: self.reason,
                detail: self.detail,
            }),
        }
    }
}

pub(super) async fn send(
    request: Request<ProxyBody>,
    slot: Slot,
    call: Call,
    record: &mut Record,
    terms: &Terms<'_>,
) -> Result<(Response<Incoming>, Slot), Attempt> {
    let mut sender = slot.sender();
    // Kept there, it is known when the time of the whole request is over meanwhile.
    record.waiting = Some(call);
    let sending = sender.try_send_request(request);
    let sent = match terms.per_try_timeout {
        None => sending.await,
        Some(limit) => match timeout(limit, sending).await {
            Ok(sent) => sent,
            Err(_elapsed) => {
                record.give_up_waiting();
                return Err(Attempt::too_slow(limit));
            }
        },
    };
    match sent {
        Ok(response) => judge(response, slot, record, terms),
        Err(mut error) => {
            let unsent = error.take_message().is_some();
            let source = error.into_error();
            let failure = if unsent {
                Failure::NotSent
            } else if is_refused(&source) {
                Failure::RefusedStream
            } else {
                Failure::Reset
            };
            record.note_failure(failure);
            record.finish_waiting(terms.failures.of_failure(failure));
            Err(Attempt {
                failure,
                reason: Reason::UpstreamReset,
                detail: describe(&source),
                response: None,
            })
        }
    }
}

/// Whether a response is the answer, or a failure that may be repeated.
fn judge(
    response: Response<Incoming>,
    slot: Slot,
    record: &mut Record,
    terms: &Terms<'_>,
) -> Result<(Response<Incoming>, Slot), Attempt> {
    let status = response.status().as_u16();
    let reason = response.headers().get(WEFT_REASON);
    let reason = reason.and_then(|word| word.to_str().ok()?.parse::<Reason>().ok());
    // Whose answer it is, also where it is the last of several.
    record.reason = reason;
    let failure = match reason {
        Some(Reason::LoadShed) => {
            // It says nothing about the endpoint, neither that it fails nor how fast it is.
            drop(record.waiting.take());
            Failure::Shed
        }
        // Said by the peer's sidecar: the application has not seen the request.
        Some(
            Reason::ApplicationUnreachable | Reason::ApplicationLoopbackOnly | Reason::Draining,
        ) => Failure::RefusedStream,
        _ if terms.retry.statuses.contains(&status) => Failure::Status(status),
        _ if let Some(code) = grpc_code(&response, terms.retry) => Failure::GrpcStatus(code),
        _ => {
            terms.heed(&response, record);
            record.call = record.waiting.take();
            record.on_response(crate::clock::now());
            return Ok((response, slot));
        }
    };
    record.note_failure(failure);
    terms.heed(&response, record);
    record.finish_waiting(match reason {
        // Whoever asks too much says nothing about the endpoint.
        Some(Reason::RateLimited) => CallClass::Neutral,
        _ => terms.failures.of_failure(failure),
    });
    Err(Attempt {
        failure,
        reason: reason.unwrap_or(Reason::UpstreamReset),
        detail: format!("status {status}"),
        response: Some(Box::new((response, slot))),
    })
}

/// The code of a call that failed before it had an answer, if it is one to repeat on.
fn grpc_code(response: &Response<Incoming>, retry: &RetryPolicy) -> Option<u32> {
    if retry.grpc_codes.is_empty() {
        return None;
    }
    let code = response.headers().get("grpc-status")?;
    let code = code.to_str().ok()?.parse().ok()?;
    retry.grpc_codes.contains(&code).then_some(code)
}

/// Whether the port has an endpoint that was not asked yet.
pub(super) fn has_other(port: &PortView, last: &Endpoint, tried: &[EndpointKey]) -> bool {
    let mut others = port.endpoints.iter();
    others.any(|other| other.key != last.key && !tried.contains(&other.key))
}

fn is_refused(error: &hyper::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = error.source();
    }
    false
}

fn take(parts: &mut Parts) -> Parts {
    let (empty, ()) = Request::new(()).into_parts();
    let method = parts.method.clone();
    let taken = std::mem::replace(parts, empty);
    // What decides about a retry is still asked of it.
    parts.method = method;
    taken
}
