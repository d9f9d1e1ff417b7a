//! What is noted of a request: counters, span, access log. Told once, at the end of the stream.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};
use weft_core::breaker::CallClass;
use weft_core::reason::Reason;
use weft_core::time::Instant;

use super::body::BodyGuard;
use crate::mesh::Call;
use crate::outbound::Slot;
use crate::telemetry::metrics::{HttpStats, RequestDone, Wire};
use crate::telemetry::tracing::RequestSpan;

/// One request from its arrival to the end of its response.
#[derive(Debug)]
pub struct Record {
    /// When it arrived.
    pub began: Instant,
    /// Where it is counted.
    pub stats: Option<Arc<HttpStats>>,
    /// How it travels between the sidecars.
    pub wire: Wire,
    /// The last attempt, if its end decides about the endpoint.
    pub call: Option<Call>,
    /// Its place on a shared connection.
    pub slot: Option<Slot>,
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
    told: bool,
}

impl Record {
    /// A request that has just arrived.
    pub fn new(began: Instant) -> Self {
        Self {
            began,
            stats: None,
            wire: Wire::Mtls,
            call: None,
            slot: None,
            status: StatusCode::OK,
            reason: None,
            grpc: false,
            grpc_status: None,
            span: None,
            told: false,
        }
    }

    fn tell(&mut self, class: CallClass, grpc_status: Option<u8>) {
        if self.told {
            return;
        }
        self.told = true;
        let now = crate::clock::now();
        if let Some(span) = self.span.take() {
            span.set_status(self.status.as_u16());
            if let Some(code) = grpc_status {
                span.set_grpc_status(code);
            }
            if let Some(reason) = self.reason {
                span.set_reason(reason);
            }
        }
        if let Some(call) = self.call.take() {
            call.finish(class, now);
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

    /// What the answer says about the endpoint: 5xx is a failure, everything else is not; of gRPC's
    /// codes DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and DATA_LOSS are.
    fn class(&self, grpc_status: Option<u8>) -> CallClass {
        let failed = self.status.is_server_error() || matches!(grpc_status, Some(4 | 13 | 14 | 15));
        if failed {
            CallClass::Failure
        } else {
            CallClass::Success
        }
    }
}

impl BodyGuard for Box<Record> {
    fn on_end(mut self, trailers: Option<&HeaderMap>) {
        let grpc_status = self.grpc_status(trailers);
        let class = self.class(grpc_status);
        self.tell(class, grpc_status);
    }

    fn on_error(mut self, _error: &hyper::Error) {
        self.reason = self.reason.or(Some(Reason::UpstreamReset));
        self.tell(CallClass::Failure, None);
    }

    fn on_data(&mut self, _bytes: usize) {}
}

impl Drop for Record {
    fn drop(&mut self) {
        // Cut by the client, or answered by ourselves: neither says anything about the endpoint.
        self.tell(CallClass::Neutral, None);
    }
}
