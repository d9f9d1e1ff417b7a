//! One attempt of a request, and what is kept for the next.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use tokio::time::timeout;
use weft_core::breaker::CallClass;
use weft_core::headers::WEFT_REASON;
use weft_core::hedge::HedgePolicy;
use weft_core::policy::{Failures, TrafficPolicy};
use weft_core::reason::Reason;
use weft_core::retry::{Failure, RetryPolicy};
use weft_core::route::{Mirror, Rule};
use weft_core::time::Instant;

use super::http::{Failed, describe};
use super::pool::{DialError, Slot};
use crate::http::{Incoming, Kept, ProxyBody, Record, SendError};
use crate::mesh::{Call, Endpoint, EndpointKey, PortView};

/// Bytes of a body that are kept for a copy of the request; of a longer one there is none.
const MIRROR_BYTES: usize = 256 * 1024;

/// How attempts are made: the policy's terms, unless the route has its own.
pub(super) struct Terms<'a> {
    pub(super) retry: &'a RetryPolicy,
    pub(super) per_try_timeout: Option<Duration>,
    /// Where this request is hedged.
    pub(super) hedge: Option<&'a HedgePolicy>,
    pub(super) failures: &'a Failures,
    heed_retry_after: bool,
}

impl<'a> Terms<'a> {
    pub(super) fn of(
        policy: &'a TrafficPolicy,
        rule: Option<&'a Rule>,
        parts: &Parts,
        grpc: bool,
    ) -> Self {
        let path = grpc.then(|| parts.uri.path());
        let hedge = policy.hedge.as_ref();
        let hedge = hedge.filter(|hedge| hedge.covers(&parts.method, path));
        let retry = rule.and_then(|rule| rule.retry.as_ref());
        let timeout = rule.and_then(|rule| rule.backend_timeout);
        Self {
            retry: retry.unwrap_or(&policy.retry),
            per_try_timeout: match timeout {
                Some(Duration::ZERO) => None,
                Some(own) => Some(own),
                None => policy.per_try_timeout,
            },
            hedge,
            failures: &policy.failures,
            heed_retry_after: policy.heed_retry_after,
        }
    }
}

impl Terms<'_> {
    /// Where an answer says for how long to stay away, it is heeded (RFC 9110 section 10.2.3).
    pub(super) fn heed(&self, response: &Response<Incoming>, call: Option<&Call>) {
        if !self.heed_retry_after || response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return;
        }
        if said(response) == Some(Reason::LoadShed) {
            return;
        }
        let seconds = response.headers().get(RETRY_AFTER);
        let seconds = seconds.and_then(|text| text.to_str().ok()?.parse().ok());
        if let (Some(seconds), Some(call)) = (seconds, call) {
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
    let again = terms.retry.attempts > 0 || terms.hedge.is_some();
    let wanted = again && limit > 0;
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

    /// Whether all of the body is here, so that attempts may send it side by side.
    pub(super) fn is_whole(&self) -> bool {
        match &self.kept {
            Some(kept) => kept.is_whole(),
            None => matches!(self.body, Some(ProxyBody::Empty)),
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
            failure: if error.is_limited() {
                Failure::Limited
            } else {
                Failure::ConnectFailed
            },
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

    /// The reason that its response names.
    pub(super) fn said(&self) -> Option<Reason> {
        self.response.as_ref().and_then(|answer| said(&answer.0))
    }

    /// What it says about the endpoint; `None`: nothing, neither that it fails nor how fast it is.
    pub(super) fn class(&self, failures: &Failures) -> Option<CallClass> {
        match (self.failure, self.reason) {
            (Failure::Shed | Failure::Limited, _) => None,
            // The caller broke its own request off.
            (_, Reason::ClientGone) => None,
            // Nobody was dialled: we have no certificate to show.
            (Failure::ConnectFailed, Reason::PeerNotAuthenticated) => None,
            // Whoever asks too much says nothing about the endpoint.
            (_, Reason::RateLimited) => Some(CallClass::Neutral),
            (failure, _) => Some(failures.of_failure(failure)),
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

/// Makes an attempt. Its call is in the record, so that it is known when the time of the whole
/// request is over meanwhile.
pub(super) async fn send(
    request: Request<ProxyBody>,
    slot: Slot,
    record: &mut Record,
    terms: &Terms<'_>,
) -> Result<(Response<Incoming>, Slot), Attempt> {
    let sent = transmit(request, &slot, terms.per_try_timeout).await;
    let judged = sent.and_then(|response| {
        terms.heed(&response, record.waiting.as_ref());
        judge(response, slot, terms)
    });
    match judged {
        Ok((done, reason)) => {
            record.reason = reason;
            record.call = record.waiting.take();
            record.on_response(crate::clock::now());
            Ok(done)
        }
        Err(attempt) => {
            // Whose answer it is, also where it is the last of several.
            record.reason = attempt.said();
            record.note_failure(attempt.failure);
            match attempt.class(terms.failures) {
                Some(class) => record.finish_waiting(class),
                None => drop(record.waiting.take()),
            }
            Err(attempt)
        }
    }
}

/// Sends a request and waits for the head of its response.
pub(super) async fn transmit(
    request: Request<ProxyBody>,
    slot: &Slot,
    per_try_timeout: Option<Duration>,
) -> Result<Response<Incoming>, Attempt> {
    let mut sender = slot.sender();
    let sending = sender.try_send_request(request);
    let sent = match per_try_timeout {
        None => sending.await,
        Some(limit) => match timeout(limit, sending).await {
            Ok(sent) => sent,
            Err(_elapsed) => return Err(Attempt::too_slow(limit)),
        },
    };
    sent.map_err(|SendError { unsent, error }| {
        let failure = if unsent.is_some() {
            Failure::NotSent
        } else if error.is_refused() {
            Failure::RefusedStream
        } else {
            Failure::Reset
        };
        Attempt {
            failure,
            reason: error.reason(),
            detail: describe(&error),
            response: None,
        }
    })
}

/// A response that is the answer, with the reason that it names.
type Answer = ((Response<Incoming>, Slot), Option<Reason>);

/// Whether a response is the answer, or a failure that may be repeated.
pub(super) fn judge(
    response: Response<Incoming>,
    slot: Slot,
    terms: &Terms<'_>,
) -> Result<Answer, Attempt> {
    let status = response.status().as_u16();
    let reason = said(&response);
    let failure = match reason {
        Some(Reason::LoadShed) => Failure::Shed,
        // Said by the peer's sidecar: the application has not seen the request.
        Some(
            Reason::ApplicationUnreachable | Reason::ApplicationLoopbackOnly | Reason::Draining,
        ) => Failure::RefusedStream,
        // Nobody waits for another attempt.
        Some(Reason::DeadlineExceeded) => return Ok(((response, slot), reason)),
        _ if terms.retry.statuses.contains(&status) => Failure::Status(status),
        _ if let Some(code) = grpc_code(&response, terms.retry) => Failure::GrpcStatus(code),
        _ => return Ok(((response, slot), reason)),
    };
    Err(Attempt {
        failure,
        reason: reason.unwrap_or(Reason::UpstreamReset),
        detail: format!("status {status}"),
        response: Some(Box::new((response, slot))),
    })
}

/// The reason that a response names.
fn said(response: &Response<Incoming>) -> Option<Reason> {
    let word = response.headers().get(WEFT_REASON)?;
    word.to_str().ok()?.parse().ok()
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

fn take(parts: &mut Parts) -> Parts {
    let (empty, ()) = Request::new(()).into_parts();
    let method = parts.method.clone();
    let taken = std::mem::replace(parts, empty);
    // What decides about a retry is still asked of it.
    parts.method = method;
    taken
}
