//! What is told of one request when it has ended: to the metrics, the access log and the trace.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use http_body::Body;
use weft_core::breaker::Transition;
use weft_core::reason::Reason;
use weft_core::time::Instant;

use super::access_log::{self, AccessLog};
use super::metrics::{Direction, HttpStats, InFlight, RequestDone, Wire};
use super::tracing::RequestSpan;
use crate::drain::Cutting;

const GRPC_STATUS: &str = "grpc-status";

/// Why a connection gave up a request that was being answered, with the status that its client was
/// told: set by the connection before it drops the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct GivenUp(Arc<OnceLock<(Reason, StatusCode)>>);

impl GivenUp {
    /// The client was told this. Only the first word counts.
    pub(crate) fn tell(&self, reason: Reason, status: StatusCode) {
        let _first = self.0.set((reason, status));
    }

    /// What the client was told; `None` where nothing was.
    pub(crate) fn told(&self) -> Option<(Reason, StatusCode)> {
        self.0.get().copied()
    }
}

/// The account of one request, from its arrival to the end of its response. It is told once: by
/// [`Ledger::close`], or when it is dropped. One that is dropped before it has a status is told as a
/// request without an answer: its connection gave it up, or its caller went away.
#[derive(Debug)]
pub(crate) struct Ledger {
    began: Instant,
    /// Whether the sidecar has cut it.
    cutting: Cutting,
    /// Why its connection gave it up, where it says so.
    given_up: Option<GivenUp>,
    /// Whether the request is a gRPC call, whose status comes in the trailers.
    grpc: bool,
    wire: Wire,
    /// Where it is counted, also as one that runs; `None`: it is not counted.
    stats: Option<InFlight>,
    /// Of the request, or of its last attempt; `None`: it is not sampled.
    span: Option<RequestSpan>,
    line: Option<Box<Line>>,
    status: Option<StatusCode>,
    /// Why the mesh answered or ended it.
    reason: Option<Reason>,
    /// A gRPC status in the head of the response.
    grpc_status: Option<HeaderValue>,
    sent_bytes: u64,
    told: bool,
}

/// A line of the access log until it is handed over.
#[derive(Debug)]
struct Line {
    log: AccessLog,
    record: access_log::Record,
    received: Arc<AtomicU64>,
}

impl Ledger {
    /// A request that arrived at `began`.
    pub(crate) fn new(began: Instant, grpc: bool, cutting: &Cutting) -> Self {
        Self {
            began,
            cutting: cutting.clone(),
            given_up: None,
            grpc,
            wire: Wire::Mtls,
            stats: None,
            span: None,
            line: None,
            status: None,
            reason: None,
            grpc_status: None,
            sent_bytes: 0,
            told: false,
        }
    }

    /// Notes where its connection says why it gives the request up.
    pub(crate) fn watch(&mut self, given_up: Option<GivenUp>) {
        self.given_up = given_up;
    }

    /// When the request arrived.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Whether the request is a gRPC call.
    pub(crate) fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// Counts the request there.
    pub(crate) fn count(&mut self, stats: &Arc<HttpStats>, wire: Wire) {
        self.stats = Some(stats.begin());
        self.wire = wire;
    }

    /// Counts it there, unless it is counted elsewhere already.
    pub(crate) fn count_otherwise(&mut self, stats: impl FnOnce() -> Arc<HttpStats>) {
        self.stats.get_or_insert_with(|| stats().begin());
    }

    /// The span that is told how the request ended; the one before ends here.
    pub(crate) fn set_span(&mut self, span: Option<RequestSpan>) {
        self.span = span;
    }

    /// The span that is told how the request ended, where it is sampled.
    pub(crate) fn span(&self) -> Option<&RequestSpan> {
        self.span.as_ref()
    }

    /// Notes in its span that an attempt has failed: with this answer, or for this reason.
    pub(crate) fn attempt_failed(&self, status: Option<StatusCode>, reason: Option<Reason>) {
        let Some(span) = &self.span else { return };
        if let Some(status) = status {
            span.set_status(status.as_u16());
        }
        if let Some(reason) = reason {
            span.set_reason(reason);
        }
    }

    /// Begins a line of the access log, where one is kept. The counter that is returned is to be
    /// given the bytes of the request's body.
    pub(crate) fn begin_line(
        &mut self,
        log: &AccessLog,
        direction: Direction,
        parts: &Parts,
        service: &dyn fmt::Display,
        peer: Option<&str>,
    ) -> Option<Arc<AtomicU64>> {
        if !log.is_on() {
            return None;
        }
        let record = access_log::Record {
            time: SystemTime::now(),
            direction,
            wire: self.wire,
            protocol: match parts.version {
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
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
            service: service.to_string().into(),
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

    /// Begins a line of the access log, where one is kept, of a request that was not understood.
    pub(crate) fn begin_refused_line(
        &mut self,
        log: &AccessLog,
        direction: Direction,
        service: &Arc<str>,
        peer: Option<&str>,
    ) {
        let (parts, ()) = http::Request::new(()).into_parts();
        let counter = self.begin_line(log, direction, &parts, service, peer);
        if counter.is_some()
            && let Some(line) = &mut self.line
        {
            line.record.method = None;
            line.record.path = "-".to_owned();
        }
    }

    /// Notes an attempt at an endpoint, where it is counted from now on.
    pub(crate) fn attempt(&mut self, endpoint: SocketAddr, stats: &Arc<HttpStats>, wire: Wire) {
        self.count(stats, wire);
        if let Some(line) = &mut self.line {
            line.record.endpoint = Some(endpoint);
            line.record.attempts += 1;
        }
    }

    /// Notes an attempt beside another one.
    pub(crate) fn hedge(&mut self) {
        if let Some(line) = &mut self.line {
            line.record.attempts += 1;
            line.record.hedges += 1;
        }
    }

    /// Notes which of several attempts was answered.
    pub(crate) fn answered_by(&mut self, endpoint: SocketAddr, stats: &Arc<HttpStats>) {
        self.stats = Some(stats.begin());
        if let Some(line) = &mut self.line {
            line.record.endpoint = Some(endpoint);
        }
    }

    /// Notes the trace that the request is in.
    pub(crate) fn traced_in(&mut self, trace_id: Option<[u8; 16]>) {
        if let Some(line) = &mut self.line {
            line.record.trace_id = trace_id;
        }
    }

    /// Notes the trace that the request is in, as its fields say after ours were written.
    pub(crate) fn traced(&mut self, headers: &HeaderMap) {
        if self.line.is_some() {
            self.traced_in(trace_id(headers));
        }
    }

    /// Notes that a breaker has changed by what became of the request.
    pub(crate) fn breaker_changed(&self, transition: Option<Transition>) {
        if let (Some(transition), Some(span)) = (transition, &self.span) {
            span.breaker_changed(&transition);
        }
    }

    /// The response begins, with this status and, where the mesh made it, with this reason.
    pub(crate) fn answer(&mut self, status: StatusCode, reason: Option<Reason>) {
        self.status = Some(status);
        self.reason = reason;
    }

    /// The mesh answers itself, with this response and for this reason.
    pub(crate) fn answer_itself<B: Body>(
        &mut self,
        response: &Response<B>,
        reason: Option<Reason>,
    ) {
        self.answer(response.status(), reason);
        self.note_head(response.headers());
        let method = self
            .line
            .as_ref()
            .and_then(|line| line.record.method.as_ref());
        // HEAD is answered without the text.
        if method != Some(&Method::HEAD) {
            let bytes = response.body().size_hint().exact();
            self.on_data(usize::try_from(bytes.unwrap_or_default()).unwrap_or_default());
        }
    }

    /// Notes a gRPC status in the head of the response.
    pub(crate) fn note_head(&mut self, headers: &HeaderMap) {
        if self.grpc {
            self.grpc_status = headers.get(GRPC_STATUS).cloned();
        }
    }

    /// Notes why the response ended early, unless it had a reason before.
    pub(crate) fn end_early(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }

    /// Notes why the request ends although nobody has ended it, where that is known.
    pub(crate) fn interrupt(&mut self) {
        let given_up = self.given_up.as_ref().and_then(GivenUp::told);
        if let Some(reason) = self.cutting.reason() {
            self.end_early(reason);
        } else if self.status.is_none()
            && let Some((reason, status)) = given_up
        {
            self.answer(status, Some(reason));
            self.grpc_status = self.grpc.then(|| reason.grpc_code().into());
        }
    }

    /// Bytes of the response's body went through.
    pub(crate) fn on_data(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
    }

    /// A stream of bytes has ended, after so many from the client and to it.
    pub(crate) fn on_stream(&mut self, received: u64, sent: u64) {
        self.sent_bytes += sent;
        if let Some(line) = &self.line {
            line.received.fetch_add(received, Ordering::Relaxed);
        }
    }

    /// The status that the caller was given.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Why the mesh answered or ended it.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// The code of a gRPC call that ended with these trailers; `None` for anything else.
    pub(crate) fn grpc_code(&self, trailers: Option<&HeaderMap>) -> Option<u8> {
        if !self.grpc {
            return None;
        }
        let value = trailers.and_then(|trailers| trailers.get(GRPC_STATUS));
        let value = value.or(self.grpc_status.as_ref())?;
        value.to_str().ok()?.parse().ok()
    }

    /// Whether the answer took as long as the application's good answers take: those that fail do so
    /// sooner or later, those of the mesh at once.
    pub(crate) fn is_good(&self, grpc_code: Option<u8>) -> bool {
        let good = |status: StatusCode| status.is_success() || status.is_redirection();
        let status = self.status.is_some_and(good);
        status && self.reason.is_none() && (!self.grpc || grpc_code == Some(0))
    }

    /// Tells how the request ended, once.
    pub(crate) fn close(&mut self, grpc_code: Option<u8>) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        if self.reason == Some(Reason::ClientGone)
            && let Some(reason) = self.cutting.reason()
        {
            // Its client did not leave: the sidecar has cut the connection.
            self.reason = Some(reason);
        }
        let duration = crate::clock::now().saturating_since(self.began);
        let status = self.status.map(|status| status.as_u16());
        if let Some(span) = self.span.take() {
            if let Some(status) = status {
                span.set_status(status);
            }
            if let Some(code) = grpc_code {
                span.set_grpc_status(code);
            }
            if let Some(reason) = self.reason {
                span.set_reason(reason);
            }
        }
        if let Some(line) = self.line.take() {
            let mut record = line.record;
            record.wire = self.wire;
            record.status = status;
            record.grpc_status = grpc_code;
            record.reason = self.reason;
            record.duration = duration;
            record.bytes_in = line.received.load(Ordering::Relaxed);
            record.bytes_out = self.sent_bytes;
            line.log.log(record);
        }
        if let Some(stats) = &self.stats {
            stats.record(&RequestDone {
                wire: self.wire,
                status,
                reason: self.reason.map(Reason::as_str),
                grpc_status: grpc_code,
                duration,
            });
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        self.interrupt();
        // Nobody answered it any more: its caller was gone before.
        if self.status.is_none() {
            self.end_early(Reason::ClientGone);
        }
        let code = self.grpc_code(None);
        self.close(code);
    }
}

fn trace_id(headers: &HeaderMap) -> Option<[u8; 16]> {
    let parent = weft_core::trace::Incoming::of(headers).parent?;
    Some(parent.trace_id)
}
