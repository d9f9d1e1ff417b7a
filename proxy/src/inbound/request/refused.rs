//! Requests that the application is not given: what they are answered with, and why.

use std::time::Duration;

use http::header::{HeaderValue, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;
use weft_core::adaptive::Rejected;
use weft_core::reason::Reason;

use super::{Answer, Body, Exchange, Received};
use crate::http::{Upload, answer};
use crate::mesh::{RateRefusal, UnderWay};
use crate::telemetry::ledger::Ledger;

const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Of a request in HTTP/1.1 that is refused, a body up to this many bytes is read, for so long at
/// most.
const UNREAD_MAX_BYTES: usize = 64 * 1024;
const UNREAD_MAX_TIME: Duration = Duration::from_secs(1);

/// Why a request is not given to the application.
pub(super) enum Refused {
    /// For a reason, with its detail.
    Reason(Reason, String),
    /// The same, once a short body has been read.
    Read(Reason, String),
    /// As one at a time too many.
    Overload(Rejected),
    /// It is a check of the connection, and is answered.
    Check,
}

impl Received<'_> {
    /// Answers a request that the application is not given.
    pub(super) async fn refuse(self, refused: Refused) -> Box<Answer> {
        let Self { exchange, body, .. } = self;
        match refused {
            Refused::Reason(reason, detail) => exchange.refuse(reason, &detail),
            Refused::Read(reason, detail) => {
                body.read_short(&exchange.ledger).await;
                exchange.refuse(reason, &detail)
            }
            Refused::Overload(rejected) => {
                body.read_short(&exchange.ledger).await;
                overloaded(exchange, &rejected)
            }
            Refused::Check => exchange.check_connection().await,
        }
    }
}

impl Exchange<'_> {
    /// Answers with a reason.
    pub(in crate::inbound) fn refuse(self, reason: Reason, detail: &str) -> Box<Answer> {
        let grpc = self.ledger.is_grpc();
        let mut response = answer(reason, detail, grpc);
        let broken = self.upload.as_ref().is_some_and(Upload::is_broken);
        if reason == Reason::HeadersTooLarge && !grpc && !broken {
            // The application's head, not the caller's.
            *response.status_mut() = StatusCode::BAD_GATEWAY;
        }
        self.respond(response, reason)
    }

    /// The application got no request, or not the whole of it, or has not answered.
    pub(super) fn fail(
        self,
        (reason, detail): (Reason, String),
        concurrency: Option<UnderWay>,
    ) -> Box<Answer> {
        let broken = self.upload.as_ref().and_then(Upload::broken);
        let reason = broken.unwrap_or(reason);
        if let Some(concurrency) = concurrency
            && reason != Reason::DeadlineExceeded
        {
            // One that waited too long has seen that it is slow, any other has seen nothing.
            concurrency.failed();
        }
        self.refuse(reason, &detail)
    }

    /// Answers with a response of the mesh itself.
    fn respond(mut self, mut response: Answer, reason: Reason) -> Box<Answer> {
        self.tell_rate(response.headers_mut());
        self.ledger.answer_itself(&response, Some(reason));
        Box::new(response)
    }
}

/// Why limits refuse a request, and the detail.
pub(super) fn refused(refusal: RateRefusal<'_>) -> (Reason, String) {
    match refusal {
        RateRefusal::Exceeded(limit) => {
            let name = &limit.name;
            let detail = format!("{}/{}, rule {}", name.namespace, name.policy, name.rule);
            (Reason::RateLimited, detail)
        }
        RateRefusal::Ambiguous(ambiguity) => (Reason::PathAmbiguous, ambiguity.to_string()),
    }
}

/// The answer to one request at a time too many: when to come back, in HTTP (RFC 9110 section 10.2.3)
/// and for gRPC (gRFC A6, "Server Pushback").
fn overloaded(exchange: Exchange<'_>, rejected: &Rejected) -> Box<Answer> {
    let grpc = exchange.ledger.is_grpc();
    let mut response = exchange.refuse(Reason::LoadShed, &rejected.to_string());
    let headers = response.headers_mut();
    if grpc {
        headers.insert(GRPC_PUSHBACK, HeaderValue::from_static("1000"));
    } else {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

impl Body {
    /// Reads a short body of a request that is refused to its end, where its caller speaks HTTP/1: an
    /// answer in the middle of it would cost the connection, which is worth more to both sides than
    /// these bytes. In HTTP/2 the stream alone ends, and a gRPC call may go on for hours. A caller that
    /// waits for 100 is answered instead: to read would be to ask for the body.
    async fn read_short(self, ledger: &Ledger) {
        let body = self.body;
        if !self.from_http1 || self.is_expected || ledger.is_grpc() {
            return;
        }
        if body.size_hint().lower() > UNREAD_MAX_BYTES as u64 {
            return;
        }
        let reading = Limited::new(body, UNREAD_MAX_BYTES).collect();
        let _as_far_as_it_came = timeout(UNREAD_MAX_TIME, reading).await;
    }
}
