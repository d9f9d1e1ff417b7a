//! One attempt of a request, and what is kept for the next.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use tokio::time::timeout;
use weft_core::fault::Fault;
use weft_core::reason::Reason;
use weft_core::retry::{Failure, RetryPolicy, backoff, may_retry};
use weft_core::terms::Terms;
use weft_core::time::Instant;
use weft_core::timeout as deadline;

use super::admitted::Admitted;
use super::connection::Connection;
use super::exchange::reason_of;
use super::failed::Failed;
use super::sending::Sending;
use super::{Avoid, Wish, pick};
use crate::http::{Incoming, ProxyBody, SendError, Upload, describe};
use crate::mesh::{Call, Counted, Endpoint, EndpointKey, PortView};
use crate::pool::DialError;
use crate::telemetry::ledger::Ledger;
use crate::telemetry::spans::{ClientAttempt, Trace};

/// A request on its way through its attempts.
pub(super) struct Trip<'a> {
    pub(super) sending: Sending,
    pub(super) wish: Wish<'a>,
    pub(super) trace: Trace,
    /// Endpoints that were asked and have failed, or are slow.
    pub(super) tried: Vec<EndpointKey>,
    /// Attempts made, without hedges.
    pub(super) made: u32,
    /// Its place among the port's retries, where the attempt under way is one.
    pub(super) retrying: Option<Counted>,
}

impl<'a> Trip<'a> {
    pub(super) fn new(sending: Sending, wish: Wish<'a>) -> Self {
        Self {
            trace: Trace::of(&sending.parts.headers),
            sending,
            wish,
            tried: Vec::new(),
            made: 0,
            retrying: None,
        }
    }
}

/// An attempt that was answered.
pub(super) struct Done {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection,
    /// The call that the response's end decides about; `None` where it is the failure that was told
    /// of already.
    pub(super) call: Option<Call>,
}

impl Done {
    /// The reason that the response names.
    pub(super) fn reason(&self) -> Option<Reason> {
        reason_of(self.response.headers())
    }
}

/// An attempt without an answer.
pub(super) enum Ended {
    /// It failed; there may be another.
    Failed(Attempt),
    /// The time of the whole request is over.
    Over(Failed),
}

impl Admitted<'_> {
    /// Chooses an endpoint for the next attempt, and begins a call on it.
    pub(super) fn choose(&mut self, port: &PortView) -> Result<(Arc<Endpoint>, Call), Failed> {
        let trip = &mut self.trip;
        let unreachable = self.exchange.worker().pool.out_of_reach(port);
        let avoid = Avoid {
            tried: &trip.tried,
            unreachable: &unreachable,
        };
        let picked = pick(port, avoid, trip.wish);
        let (endpoint, mut call) = picked.map_err(|reason| Failed::new(reason, port.nobody()))?;
        trip.made += 1;
        call.on_upload(self.exchange.upload.as_ref());
        let ledger = &mut self.exchange.ledger;
        let wire = port.wire(&endpoint);
        ledger.attempt(endpoint.key.address, &endpoint.live.stats, wire);
        Ok((endpoint, call))
    }

    /// Makes one attempt: a connection, the request, and the head of its response.
    pub(super) async fn attempt(
        &mut self,
        port: &PortView,
        endpoint: &Arc<Endpoint>,
        mut call: Call,
    ) -> Result<Done, Ended> {
        if port.policy.max_connections.is_some() {
            // Within a limit of our own, nobody else is waited for.
            call.on_queued();
        } else {
            self.calls.on_asked(self.exchange.upload.as_ref());
        }
        let began = self.begin_span(port, endpoint);
        let own = self.exchange.upgrade.is_some();
        let acquired = {
            let worker = self.exchange.worker();
            let acquiring = pin!(Connection::acquire(worker, port, endpoint, own));
            self.patience.wait(acquiring).await
        };
        let now = crate::clock::now();
        if let (Some(span), Some(began)) = (self.exchange.ledger.span(), began) {
            let queued = std::mem::take(&mut self.exchange.queued);
            span.set_queued(queued + now.saturating_since(began));
        }
        let mut connection = match acquired {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(self.learn(call, Attempt::not_connected(&error))),
            Err(over) => {
                // Within a limit of our own, nobody else is waited for.
                let asked = port.policy.max_connections.is_none();
                return Err(self.end(call, over, asked));
            }
        };
        call.on_sent(now);
        self.calls.on_asked(self.exchange.upload.as_ref());
        let request = self
            .trip
            .sending
            .request(self.terms.retry.value.attempts > 0);
        let limit = self.terms.attempt.value;
        let upload = self.exchange.upload.as_ref();
        let transmitted = {
            let transmitting = pin!(transmit(request, &mut connection, limit, upload));
            self.patience.wait(transmitting).await
        };
        let response = match transmitted {
            Ok(Ok(response)) => response,
            Ok(Err(failed)) => return Err(self.learn(call, failed)),
            Err(over) => return Err(self.end(call, over, true)),
        };
        heed(&self.terms, &response, &call);
        match judge(response, connection, &self.terms) {
            Ok((response, connection)) => Ok(answered(response, connection, call)),
            Err(failed) => Err(self.learn(call, failed)),
        }
    }

    /// Begins the span of an attempt; when, where the request is sampled.
    fn begin_span(&mut self, port: &PortView, endpoint: &Endpoint) -> Option<Instant> {
        let trip = &mut self.trip;
        let about = ClientAttempt {
            endpoint: Some(endpoint.key.address),
            service: &port.service,
            number: trip.made - 1,
            retries: trip.made - 1,
        };
        let spans = self.exchange.conversation.worker.shared.spans();
        let span = spans.client(&mut trip.trace, &mut trip.sending.parts, about);
        let began = span.is_some().then(crate::clock::now);
        self.exchange.ledger.set_span(span);
        self.exchange.ledger.traced(&trip.sending.parts.headers);
        began
    }

    /// Tells the endpoint's breaker and the balancer of a failed attempt, as far as it is the
    /// endpoint's fault.
    pub(super) fn learn(&self, mut call: Call, attempt: Attempt) -> Ended {
        let progress = self.exchange.progress(true);
        let failures = self.terms.failures;
        call.on_failure(attempt.failure);
        attempt.tell(&self.exchange.ledger);
        if let Some(class) = failures.of_attempt(attempt.failure, attempt.reason, progress) {
            let transition = call.finish(class, crate::clock::now());
            self.exchange.ledger.breaker_changed(transition);
        }
        Ended::Failed(attempt)
    }

    /// The time of the request is over while `call` was waited for; `asked`: the endpoint was.
    pub(super) fn end(&self, call: Call, over: Failed, asked: bool) -> Ended {
        let over = over.after(self.exchange.progress(asked));
        self.learn_timeout(call, &over);
        Ended::Over(over)
    }

    /// Tells the endpoint's breaker and the balancer that an answer took too long, where that is the
    /// endpoint's fault.
    pub(super) fn learn_timeout(&self, mut call: Call, over: &Failed) {
        if over.fault != Fault::Endpoint {
            return;
        }
        call.on_failure(Failure::PerTryTimeout);
        let class = self.terms.failures.of_failure(Failure::PerTryTimeout);
        let transition = call.finish(class, crate::clock::now());
        self.exchange.ledger.breaker_changed(transition);
    }

    /// How long to wait before the next attempt, and takes what it costs; `None`: there is none.
    pub(super) fn repeat(
        &mut self,
        port: &PortView,
        endpoint: &Arc<Endpoint>,
        failure: Failure,
    ) -> Option<Duration> {
        let trip = &mut self.trip;
        // The place of the attempt that failed is another's.
        trip.retrying = None;
        let (retry, sending) = (self.terms.retry.value, &trip.sending);
        let (method, replayable) = (&sending.parts.method, sending.is_replayable());
        if !may_retry(retry, failure, method, replayable, trip.made) {
            return None;
        }
        // One more request is the last thing that an overloaded endpoint needs.
        if failure == Failure::Shed && !has_other(port, endpoint, &trip.tried) {
            return None;
        }
        let now = crate::clock::now();
        let wait = backoff(retry, trip.made, fastrand::u64(..));
        if !deadline::leaves_time_for(sending.deadline, now, wait) {
            return None;
        }
        let place = port.admit_retry()?;
        if !port.budget().try_retry(now) {
            return None;
        }
        trip.retrying = Some(place);
        endpoint.live.stats.retried();
        trip.tried.push(endpoint.key.clone());
        Some(wait)
    }
}

/// The endpoint has answered: the rest is not its latency.
pub(super) fn answered(
    response: Response<Incoming>,
    connection: Connection,
    mut call: Call,
) -> Done {
    call.on_response(crate::clock::now());
    Done {
        response,
        connection,
        call: Some(call),
    }
}

/// Where an answer says for how long to stay away, it is heeded (RFC 9110 section 10.2.3).
pub(super) fn heed(terms: &Terms<'_>, response: &Response<Incoming>, call: &Call) {
    if !terms.heed_retry_after || response.status() != StatusCode::SERVICE_UNAVAILABLE {
        return;
    }
    if reason_of(response.headers()) == Some(Reason::LoadShed) {
        return;
    }
    let seconds = response.headers().get(RETRY_AFTER);
    let seconds = seconds.and_then(|text| text.to_str().ok()?.parse().ok());
    if let Some(seconds) = seconds {
        let wait = Duration::from_secs(seconds);
        call.hold_open(wait, crate::clock::now());
    }
}

/// A failed attempt, with what may come of it.
pub(super) struct Attempt {
    pub(super) failure: Failure,
    pub(super) reason: Reason,
    detail: String,
    /// A response that is an answer, if there is to be no further attempt.
    response: Option<Box<(Response<Incoming>, Connection)>>,
}

impl Attempt {
    fn new(failure: Failure, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            failure,
            reason,
            detail: detail.into(),
            response: None,
        }
    }

    pub(super) fn not_connected(error: &DialError) -> Self {
        let failure = match error.is_limited() {
            true => Failure::Limited,
            false => Failure::ConnectFailed,
        };
        Self::new(failure, error.reason(), error.to_string())
    }

    /// Tells its span of the failure.
    fn tell(&self, ledger: &Ledger) {
        match self.response.as_deref() {
            Some((response, _)) => {
                ledger.attempt_failed(Some(response.status()), reason_of(response.headers()));
            }
            None => ledger.attempt_failed(None, Some(self.reason)),
        }
    }

    /// Whether the time that it took says nothing of how long answers take.
    pub(super) fn shows_no_latency(&self) -> bool {
        self.failure != Failure::PerTryTimeout
    }

    /// There is no further attempt: its response is the answer, or its reason.
    pub(super) fn give_up(self) -> Result<Done, Failed> {
        match self.response {
            Some(answer) => {
                let (response, connection) = *answer;
                Ok(Done {
                    response,
                    connection,
                    call: None,
                })
            }
            None => {
                let mut failed = Failed::new(self.reason, self.detail);
                let fault = self.failure.fault();
                if fault != Fault::Endpoint {
                    failed.fault = fault;
                }
                Err(failed)
            }
        }
    }
}

/// Sends a request and waits for the head of its response.
pub(super) async fn transmit(
    request: Box<Request<ProxyBody>>,
    connection: &mut Connection,
    per_try_timeout: Option<Duration>,
    upload: Option<&Upload>,
) -> Result<Response<Incoming>, Attempt> {
    let sending = connection.send(request);
    let sent = match per_try_timeout {
        None => sending.await,
        Some(limit) => match timeout(limit, sending).await {
            Ok(sent) => sent,
            Err(_elapsed) => {
                let detail = format!("{limit:?}");
                return Err(Attempt::new(
                    Failure::PerTryTimeout,
                    Reason::PerTryTimeout,
                    detail,
                ));
            }
        },
    };
    sent.map_err(|SendError { unsent, error, .. }| {
        let detail = describe(&error);
        let broken = upload.and_then(Upload::broken);
        if error.is_upload_broken() || error.is_unsendable() || broken.is_some() {
            let reason = broken.unwrap_or_else(|| error.reason());
            return Attempt::new(Failure::UploadBroken, reason, detail);
        }
        let failure = if unsent.is_some() {
            Failure::NotSent
        } else if error.is_refused() {
            Failure::RefusedStream
        } else {
            Failure::Reset
        };
        let reason = connection.cut_reason();
        let reason = reason.unwrap_or_else(|| error.reason());
        Attempt::new(failure, reason, detail)
    })
}

/// Whether a response is the answer, or a failure that may be repeated.
pub(super) fn judge(
    response: Response<Incoming>,
    connection: Connection,
    terms: &Terms<'_>,
) -> Result<(Response<Incoming>, Connection), Attempt> {
    let retry = terms.retry.value;
    let status = response.status().as_u16();
    let reason = reason_of(response.headers());
    let failure = match reason {
        Some(Reason::LoadShed | Reason::PendingLimit) => Failure::Shed,
        // Said by the peer's sidecar: the application has not seen the request.
        Some(
            Reason::ApplicationUnreachable
            | Reason::ApplicationRefused
            | Reason::ApplicationLoopbackOnly
            | Reason::DiscoveryUnavailable,
        ) => Failure::RefusedStream,
        // Nobody waits for another attempt, or the request is not whole.
        Some(Reason::DeadlineExceeded | Reason::ClientGone | Reason::ClientTimeout) => {
            return Ok((response, connection));
        }
        _ if retry.statuses.contains(&status) => Failure::Status(status),
        _ if let Some(code) = grpc_code(&response, retry) => Failure::GrpcStatus(code),
        _ => return Ok((response, connection)),
    };
    Err(Attempt {
        failure,
        reason: reason.unwrap_or(Reason::UpstreamReset),
        detail: format!("status {status}"),
        response: Some(Box::new((response, connection))),
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
fn has_other(port: &PortView, last: &Endpoint, tried: &[EndpointKey]) -> bool {
    let mut others = port.endpoints.iter();
    others.any(|other| other.key != last.key && !tried.contains(&other.key))
}
