//! The last state of a request of others: the application's response is on its way back.

use http::HeaderMap;
use weft_core::reason::Reason;

use crate::connections::Permit;
use crate::http::{BodyError, BodyGuard, Upload};
use crate::mesh::UnderWay;
use crate::pool::Slot;
use crate::telemetry::ledger::Ledger;

/// What is told when the response has come to its end, and given back. Dropped before its end, the caller went away.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(super) ledger: Ledger,
    /// Its place among the requests that the application is given at a time.
    pub(super) concurrency: Option<UnderWay>,
    pub(super) upload: Option<Upload>,
    /// Its place on a connection to the application, until all of the response has come, or the stream
    /// of bytes that the connection has become has ended.
    pub(super) slot: Slot,
    /// Its place among the connections of its client, where it is a stream of bytes in HTTP/2.
    pub(super) _stream: Option<Permit>,
}

impl BodyGuard for Box<Answered> {
    fn on_end(mut self, trailers: Option<&HeaderMap>) {
        let code = self.ledger.grpc_code(trailers);
        if let Some(concurrency) = self.concurrency.take()
            && self.ledger.is_good(code)
        {
            concurrency.succeeded(crate::clock::now());
        }
        self.ledger.close(code);
    }

    fn on_error(mut self, error: &BodyError) {
        let broken = self.upload.as_ref().and_then(Upload::broken);
        let reason = broken.unwrap_or_else(|| error.response_reason());
        self.ledger.end_early(reason);
        self.ledger.close(None);
    }

    fn on_silence(mut self) {
        self.ledger.end_early(Reason::StreamIdleTimeout);
        self.ledger.close(None);
    }

    fn on_stall(mut self) {
        self.ledger.end_early(Reason::ClientTimeout);
        self.ledger.close(None);
    }

    fn holds_connection(&self) -> bool {
        self.slot.holds_connection()
    }

    fn on_data(&mut self, bytes: usize) {
        self.ledger.on_data(bytes);
    }

    fn on_stream(&mut self, received: u64, sent: u64) {
        self.ledger.on_stream(received, sent);
    }
}
