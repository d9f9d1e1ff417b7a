//! The last state of a request of the application: its response is on its way back.

use std::sync::Arc;

use http::HeaderMap;
use weft_core::breaker::CallClass;
use weft_core::policy::TrafficPolicy;
use weft_core::reason::Reason;
use weft_core::retry::Failure;

use super::admission::PortCalls;
use super::connection::Connection;
use crate::connections::Permit;
use crate::http::{BodyError, BodyGuard, Upload};
use crate::mesh::{Admitted, Call, Counted, UnderWay};
use crate::telemetry::ledger::Ledger;

/// What is told when the response has come to its end, and given back. Dropped before that, the
/// caller went away.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(super) ledger: Ledger,
    /// The call that its end decides about; `None` where it is the failure that was told of already.
    pub(super) call: Option<Call>,
    pub(super) calls: PortCalls,
    /// What counts as a failure.
    pub(super) policy: Arc<TrafficPolicy>,
    pub(super) upload: Option<Upload>,
    /// Its place within the limit that follows how long answers take.
    pub(super) concurrency: Option<UnderWay>,
    pub(super) held: Held,
}

/// Places that a request holds until its stream has ended.
#[derive(Debug)]
pub(super) struct Held {
    /// Within the port's limit on requests.
    pub(super) _request: Admitted,
    /// Among the port's retries, where the last attempt is one.
    pub(super) _retry: Option<Counted>,
    /// On a connection.
    pub(super) connection: Connection,
    /// Among the connections of the application, where it is a stream of bytes in HTTP/2.
    pub(super) _stream: Option<Permit>,
}

impl Answered {
    /// Tells everybody what the response came to: `None` says nothing of the endpoint.
    fn end(&mut self, learned: Option<CallClass>, grpc_code: Option<u8>) {
        let now = crate::clock::now();
        if let Some(concurrency) = self.concurrency.take()
            && learned == Some(CallClass::Success)
            && self.ledger.is_good(grpc_code)
        {
            concurrency.succeeded(now);
        }
        if let Some(mut call) = self.call.take()
            && let Some(class) = learned
        {
            let status = self.ledger.status().map_or(0, |status| status.as_u16());
            call.on_failure(match grpc_code {
                _ if ended_early(self.ledger.reason()) => Failure::Reset,
                Some(code) if code > 0 => Failure::GrpcStatus(code.into()),
                Some(_) | None => Failure::Status(status),
            });
            self.ledger.breaker_changed(call.finish(class, now));
        }
        let calls = std::mem::take(&mut self.calls);
        if let Some(class) = learned {
            calls.finish(class, &self.ledger);
        }
        self.ledger.close(grpc_code);
    }

    /// Why the connection between the sidecars was cut, where it was: that says nothing of the
    /// endpoint.
    fn cut_reason(&self) -> Option<Reason> {
        self.held.connection.cut_reason()
    }
}

/// Whether a response with this reason did not come to its end.
fn ended_early(reason: Option<Reason>) -> bool {
    matches!(
        reason,
        Some(Reason::UpstreamReset | Reason::HeadersTooLarge)
    )
}

impl BodyGuard for Box<Answered> {
    fn on_end(mut self, trailers: Option<&HeaderMap>) {
        let code = self.ledger.grpc_code(trailers);
        let status = self.ledger.status().map_or(0, |status| status.as_u16());
        let reason = self.ledger.reason();
        let failures = &self.policy.failures;
        let class = failures.of_response(reason, status, code.map(Into::into));
        self.end(Some(class), code);
    }

    fn on_error(mut self, error: &BodyError) {
        if let Some(reason) = self.cut_reason() {
            self.ledger.end_early(reason);
            return self.end(Some(CallClass::Neutral), None);
        }
        if let Some(reason) = self.upload.as_ref().and_then(Upload::broken) {
            // The endpoint could not go on either.
            self.ledger.end_early(reason);
            return self.end(None, None);
        }
        self.ledger.end_early(error.response_reason());
        let class = self.policy.failures.of_failure(Failure::Reset);
        self.end(Some(class), None);
    }

    fn on_silence(mut self) {
        self.ledger.end_early(Reason::StreamIdleTimeout);
        // A stream may have nothing to say: that the policy ends it says nothing about the endpoint.
        self.end(Some(CallClass::Neutral), None);
    }

    fn on_data(&mut self, bytes: usize) {
        self.ledger.on_data(bytes);
    }

    fn on_stream(&mut self, received: u64, sent: u64) {
        self.ledger.on_stream(received, sent);
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        // The caller went away while the response came, or the sidecar cut it: the endpoint had
        // answered.
        if let Some(reason) = self.cut_reason() {
            self.ledger.end_early(reason);
        }
        self.ledger.interrupt();
        self.end(Some(CallClass::Neutral), None);
    }
}
