//! Requests that say that they are health checks of a caller's sidecar.

use http::request::Parts;
use http::{HeaderValue, Method, Response};
use http_body::Body as _;
use weft_core::headers::is_grpc;
use weft_core::health::grpc::CHECK_PATH;

use super::dial;
use super::request::{Answer, Exchange};
use crate::http::{CHECK_CONNECTION, CHECK_REQUEST, ProxyBody};

/// Bytes of a health check's body at most: a longer one is no health check.
const CHECK_BODY_MAX_BYTES: u64 = 4 * 1024;

/// What a request that says that it is a health check is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Checking {
    /// A check that the application answers.
    Request,
    /// A check whether the application accepts a connection.
    Connection,
    /// A check for a connection beyond what one sidecar may make.
    TooMany,
    /// A request like any other.
    Nothing,
}

impl Exchange<'_> {
    /// Judges what says that it is a health check. A workload can say so as well as its sidecar, which
    /// have one certificate: what counts as a check does no more than a check can, and so often as
    /// one sidecar may check ([`weft_core::health::CHECKS_PER_SECOND`]).
    pub(super) fn check(&self, check: &HeaderValue, parts: &Parts, body: &ProxyBody) -> Checking {
        let connection = check == CHECK_CONNECTION;
        let request = check == CHECK_REQUEST && self.upgrade.is_none() && is_check(parts, body);
        let peer = self.peer().filter(|_| connection || request);
        let Some(peer) = peer else {
            return Checking::Nothing;
        };
        let conversation = self.conversation;
        let taken = conversation.server.take_check(peer, crate::clock::now());
        match (taken, connection) {
            (false, true) => return Checking::TooMany,
            (false, false) => return Checking::Nothing,
            (true, _) => {}
        }
        // No traffic: it has a metric of its own.
        let totals = conversation.worker.shared.metrics.totals();
        totals.health_checks_received.inc();
        match connection {
            true => Checking::Connection,
            false => Checking::Request,
        }
    }

    /// Whether the application accepts a connection, for a caller's health check.
    pub(super) async fn check_connection(mut self) -> Box<Answer> {
        let conversation = self.conversation;
        match dial(&conversation.worker.shared, &conversation.application).await {
            Ok(_accepted) => {
                let response = Response::new(ProxyBody::Empty);
                self.ledger.answer(response.status(), None);
                Box::new(response)
            }
            Err((reason, detail)) => self.refuse(reason, &detail),
        }
    }
}

/// Whether a request looks like the checks that sidecars make: a GET without a body, or a call of the
/// gRPC health protocol.
fn is_check(parts: &Parts, body: &ProxyBody) -> bool {
    let short = match body.is_end_stream() {
        true => Some(0),
        false => body.size_hint().upper(),
    };
    let short = short.is_some_and(|bytes| bytes <= CHECK_BODY_MAX_BYTES);
    match parts.method {
        Method::GET => body.is_end_stream(),
        Method::POST => short && is_grpc(&parts.headers) && parts.uri.path() == CHECK_PATH,
        _ => false,
    }
}
