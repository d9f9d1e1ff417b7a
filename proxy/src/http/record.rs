//! What is noted of a request: counters, span, access log. Told once, at the end of the stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use weft_core::breaker::{CallClass, Transition};
use weft_core::policy::{Failures, TrafficPolicy};
use weft_core::reason::Reason;
use weft_core::retry::Failure;
use weft_core::time::Instant;

use super::body::BodyGuard;
use super::incoming::BodyError;
use super::trailers::Trailers;
use super::watch::Activity;
use crate::mesh::{Admitted, Call, Counted, PortCall, UnderWay};
use crate::outbound::Slot;
use crate::telemetry::access_log::{self, AccessLog};
use crate::telemetry::metrics::{Direction, HttpStats, RequestDone, Wire};
use crate::telemetry::tracing::RequestSpan;

/// A line of the access log until it is handed over.
#[derive(Debug)]
struct Line {
    log: AccessLog,
    record: access_log::Record,
    received: Arc<AtomicU64>,
}

/// One request from its arrival to the end of its response.
#[derive(Debug)]
pub struct Record {
    /// When it arrived.
    pub began: Instant,
    /// Where it is counted.
    pub stats: Option<Arc<HttpStats>>,
    /// How it travels between the sidecars.
    pub wire: Wire,
    /// The attempt whose response is waited for. Dropped, it was cancelled.
    pub waiting: Option<Call>,
    /// The last attempt, if its end decides about the endpoint.
    pub call: Option<Call>,
    /// What the port's own breaker is told of the request.
    pub port_call: Option<PortCall>,
    /// What the breaker of the rule that it came by is told of the request.
    pub rule_call: Option<PortCall>,
    /// What counts as a failure.
    pub policy: Option<Arc<TrafficPolicy>>,
    /// Its place on a shared connection.
    pub slot: Option<Slot>,
    /// Its place within the port's limit on requests.
    pub admitted: Option<Admitted>,
    /// Its place within the limit that follows how long answers take.
    pub concurrency: Option<UnderWay>,
    /// Its place among the port's retries, where the last attempt is one.
    pub retrying: Option<Counted>,
    /// Its place among the port's connections, where it becomes one.
    pub counted: Option<Counted>,
    /// Whether an endpoint was chosen for it: until then it has only waited for our own limits.
    asked: bool,
    /// The answer's status.
    pub status: StatusCode,
    /// Why the mesh itself answered.
    pub reason: Option<Reason>,
    /// Whether the request was gRPC: its status is in the trailers.
    pub grpc: bool,
    /// The gRPC status, where it came with the head of the response.
    pub grpc_status: Option<HeaderValue>,
    /// The span, where it is sampled.
    pub span: Option<RequestSpan>,
    /// What moves in its stream, where it is cut when nothing does.
    pub activity: Option<Arc<Activity>>,
    /// The line in the access log, where one is kept.
    line: Option<Box<Line>>,
    /// The connection that the response goes to, where trailers in HTTP/1.1 may follow it.
    pub trailers: Option<Trailers>,
    sent_bytes: u64,
    told: bool,
}

impl Record {
    /// A request that has just arrived.
    pub fn new(began: Instant) -> Self {
        Self {
            began,
            stats: None,
            wire: Wire::Mtls,
            waiting: None,
            call: None,
            port_call: None,
            rule_call: None,
            policy: None,
            slot: None,
            admitted: None,
            concurrency: None,
            retrying: None,
            counted: None,
            asked: false,
            status: StatusCode::OK,
            reason: None,
            grpc: false,
            grpc_status: None,
            span: None,
            activity: None,
            line: None,
            trailers: None,
            sent_bytes: 0,
            told: false,
        }
    }

    /// Begins a line for the access log, where one is kept. What is returned counts the bytes of
    /// the request's body.
    pub fn begin_line(
        &mut self,
        log: &AccessLog,
        direction: Direction,
        parts: &Parts,
        service: &Arc<str>,
        peer: Option<&str>,
    ) -> Option<Arc<AtomicU64>> {
        if !log.is_on() {
            return None;
        }
        let record = access_log::Record {
            time: SystemTime::now(),
            direction,
            wire: self.wire,
            protocol: if parts.version == Version::HTTP_2 {
                "HTTP/2"
            } else {
                "HTTP/1.1"
            },
            method: Some(parts.method.clone()),
            path: parts.uri.path().to_owned(),
            status: None,
            grpc_status: None,
            reason: None,
            duration: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
            peer: peer.map(Into::into),
            service: Arc::clone(service),
            endpoint: None,
            attempts: 0,
            hedges: 0,
            trace_id: trace_id(&parts.headers),
        };
        let received = Arc::<AtomicU64>::default();
        self.line = Some(Box::new(Line {
            log: log.clone(),
            record,
            received: Arc::clone(&received),
        }));
        Some(received)
    }

    /// Notes an attempt at an endpoint.
    pub fn attempt(&mut self, endpoint: SocketAddr) {
        self.asked = true;
        if let Some(line) = &mut self.line {
            line.record.endpoint = Some(endpoint);
            line.record.attempts += 1;
        }
    }

    /// Notes an attempt beside another one.
    pub fn hedge(&mut self) {
        if let Some(line) = &mut self.line {
            line.record.attempts += 1;
            line.record.hedges += 1;
        }
    }

    /// Notes which of several attempts was answered.
    pub fn answered_by(&mut self, endpoint: SocketAddr, stats: &Arc<HttpStats>) {
        self.stats = Some(Arc::clone(stats));
        if let Some(line) = &mut self.line {
            line.record.endpoint = Some(endpoint);
        }
    }

    /// Whether the caller has not said all that it has to say: a silence is its own doing.
    pub fn is_uploading(&self) -> bool {
        let activity = self.activity.as_ref();
        activity.is_some_and(|activity| !activity.is_uploaded())
    }

    /// Notes the trace that the request is in, as its headers say after ours were written.
    pub fn traced(&mut self, headers: &HeaderMap) {
        if let Some(line) = &mut self.line {
            line.record.trace_id = trace_id(headers);
        }
    }

    /// The response has begun: the rest is not the endpoint's latency.
    pub fn on_response(&mut self, now: Instant) {
        if let Some(call) = &mut self.call {
            call.on_response(now);
        }
        let calls = [&mut self.rule_call, &mut self.port_call];
        for call in calls.into_iter().flatten() {
            call.on_response(now);
        }
    }

    /// Ends the attempt whose response was waited for: it took too long.
    pub fn give_up_waiting(&mut self) {
        let failures = self.policy.as_ref().map(|policy| &policy.failures);
        let failures = failures.unwrap_or(&Failures::DEFAULT);
        let class = failures.of_failure(Failure::PerTryTimeout);
        self.note_failure(Failure::PerTryTimeout);
        self.finish_waiting(class);
    }

    /// What the failure of the attempt was whose response was waited for.
    pub fn note_failure(&mut self, failure: Failure) {
        if let Some(call) = &mut self.waiting {
            call.on_failure(failure);
        }
    }

    /// Ends the attempt whose response was waited for with what came of it.
    pub fn finish_waiting(&mut self, class: CallClass) {
        if let Some(call) = self.waiting.take() {
            self.note_breaker(call.finish(class, crate::clock::now()));
        }
    }

    /// Whether anybody has been asked for an answer.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// Tells the breakers of the rule and of the port what came of the request.
    pub fn finish_port_calls(&mut self, class: CallClass) {
        let calls = [self.rule_call.take(), self.port_call.take()];
        for call in calls.into_iter().flatten() {
            self.note_breaker(call.finish(class, crate::clock::now()));
        }
    }

    fn note_breaker(&self, transition: Option<Transition>) {
        if let (Some(transition), Some(span)) = (transition, &self.span) {
            span.breaker_changed(&transition);
        }
    }

    /// The peer's answer begins, with these fields.
    pub fn on_answer(&mut self, headers: &HeaderMap) {
        if let Some(concurrency) = &mut self.concurrency {
            concurrency.on_answer(headers);
        }
    }

    /// Another attempt begins after one that failed so. One that took too long has shown how long
    /// answers take; the time that others took says nothing of that.
    pub fn repeat(&mut self, failure: Failure) {
        if let Some(concurrency) = &mut self.concurrency
            && failure != Failure::PerTryTimeout
        {
            concurrency.restart();
        }
    }

    /// There is no answer, and the mesh gives its own.
    pub fn on_failure(&mut self, reason: Reason) {
        let late = [
            Reason::RequestTimeout,
            Reason::PerTryTimeout,
            Reason::DeadlineExceeded,
        ];
        if let Some(concurrency) = self.concurrency.take() {
            // Whoever waited too long has seen that it is slow.
            match late.contains(&reason) {
                true => drop(concurrency),
                false => concurrency.failed(),
            }
        }
    }

    /// Whether the answer took as long as the application's good answers take: those that fail do so
    /// sooner or later, those of the mesh at once.
    fn is_good(&self, grpc_status: Option<u8>) -> bool {
        let status = self.status.is_success() || self.status.is_redirection();
        status && self.reason.is_none() && (!self.grpc || grpc_status == Some(0))
    }

    fn tell(&mut self, class: CallClass, grpc_status: Option<u8>) {
        if self.told {
            return;
        }
        self.told = true;
        let now = crate::clock::now();
        if let Some(concurrency) = self.concurrency.take()
            && class == CallClass::Success
            && self.is_good(grpc_status)
        {
            concurrency.succeeded(now);
        }
        if let Some(mut call) = self.call.take() {
            call.on_failure(match grpc_status {
                _ if self.reason == Some(Reason::UpstreamReset) => Failure::Reset,
                Some(code) if code > 0 => Failure::GrpcStatus(code.into()),
                Some(_) | None => Failure::Status(self.status.as_u16()),
            });
            self.note_breaker(call.finish(class, now));
        }
        self.finish_port_calls(class);
        if let Some(span) = self.span.take() {
            span.set_status(self.status.as_u16());
            if let Some(code) = grpc_status {
                span.set_grpc_status(code);
            }
            if let Some(reason) = self.reason {
                span.set_reason(reason);
            }
        }
        if let Some(line) = self.line.take() {
            let mut record = line.record;
            record.wire = self.wire;
            record.status = Some(self.status.as_u16());
            record.grpc_status = grpc_status;
            record.reason = self.reason;
            record.duration = now.saturating_since(self.began);
            record.bytes_in = line.received.load(Ordering::Relaxed);
            record.bytes_out = self.sent_bytes;
            line.log.log(record);
        }
        if let Some(stats) = &self.stats {
            stats.record(&RequestDone {
                wire: self.wire,
                status: Some(self.status.as_u16()),
                reason: self.reason.map(Reason::as_str),
                grpc_status,
                duration: now.saturating_since(self.began),
            });
        }
    }

    fn grpc_status(&self, trailers: Option<&HeaderMap>) -> Option<u8> {
        if !self.grpc {
            return None;
        }
        let value = trailers
            .and_then(|trailers| trailers.get("grpc-status"))
            .or(self.grpc_status.as_ref())?;
        value.to_str().ok()?.parse().ok()
    }

    /// What the answer says about the endpoint.
    fn class(&self, grpc_status: Option<u8>) -> CallClass {
        // Said by the peer's sidecar: refused before it was seen, or its caller's own time was over,
        // and nobody was slow.
        if matches!(
            self.reason,
            Some(Reason::RateLimited | Reason::LoadShed | Reason::DeadlineExceeded)
        ) {
            return CallClass::Neutral;
        }
        let failures = self.policy.as_ref().map(|policy| &policy.failures);
        let failures = failures.unwrap_or(&Failures::DEFAULT);
        failures.of_answer(self.status.as_u16(), grpc_status.map(Into::into))
    }
}

impl BodyGuard for Box<Record> {
    fn on_end(mut self, trailers: Option<&HeaderMap>) {
        let grpc_status = self.grpc_status(trailers);
        let class = self.class(grpc_status);
        self.tell(class, grpc_status);
    }

    fn on_error(mut self, _error: &BodyError) {
        self.reason = self.reason.or(Some(Reason::UpstreamReset));
        let failures = self.policy.as_ref().map(|policy| &policy.failures);
        let class = failures.map(|failures| failures.of_failure(Failure::Reset));
        self.tell(class.unwrap_or(CallClass::Failure), None);
    }

    fn on_silence(mut self) {
        self.reason = self.reason.or(Some(Reason::StreamIdleTimeout));
        // A stream may have nothing to say: that the policy ends it says nothing about the endpoint.
        self.tell(CallClass::Neutral, None);
    }

    fn on_data(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Cut by the client, or answered by ourselves: neither says anything about the endpoint.
        self.tell(CallClass::Neutral, None);
    }
}

fn trace_id(headers: &HeaderMap) -> Option<[u8; 16]> {
    let parent = weft_core::trace::Incoming::of(headers).parent?;
    Some(parent.trace_id)
}
