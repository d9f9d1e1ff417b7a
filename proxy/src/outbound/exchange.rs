//! What goes along with a request of the application through all of its states, and the answers that
//! the mesh gives itself.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use weft_core::headers::{WEFT_REASON, rare};
use weft_core::outcome::Progress;
use weft_core::reason::Reason;
use weft_core::route::Decision;

use super::admission;
use super::answered::Answered;
use super::failed::Failed;
use super::http::Conversation;
use super::patience::Patience;
use crate::connections::Permit;
use crate::http::{Deposit, ProxyBody, Upgrade, Upload, answer};
use crate::mesh::{self, PortView, UnderWay};
use crate::telemetry::ledger::Ledger;
use crate::telemetry::spans::ClientAttempt;
use crate::worker::Worker;

/// What the application is answered with.
pub(super) type Answer = Response<ProxyBody<Box<Answered>>>;

/// What goes along with a request through all states: where its answer goes, and what is told of it.
pub(super) struct Exchange<'p> {
    pub(super) conversation: &'p Conversation,
    /// The port that the application asked for.
    pub(super) port: &'p Arc<PortView>,
    pub(super) ledger: Ledger,
    /// Its body; `None` where it has none.
    pub(super) upload: Option<Upload>,
    /// The connection that becomes a stream of bytes when the server agrees.
    pub(super) upgrade: Option<Upgrade>,
    pub(super) routed: Option<Routed<'p>>,
    /// How long it waited for its places within the port's limits, until a span says so; measured
    /// where requests are traced.
    pub(super) queued: Duration,
    /// Its place among the connections of the application, where it asks for a stream of bytes in
    /// HTTP/2.
    pub(super) stream: Option<Permit>,
    /// What its client has paid for a stream of bytes, until there is an answer.
    pub(super) deposit: Option<Deposit>,
}

/// A decision of a route, with what its response has to be told of the request.
pub(super) struct Routed<'p> {
    pub(super) decision: Decision<'p>,
    pub(super) origin: Option<HeaderValue>,
}

impl<'p> Exchange<'p> {
    pub(super) fn worker(&self) -> &'p Rc<Worker> {
        &self.conversation.worker
    }

    pub(super) fn decision(&self) -> Option<&Decision<'p>> {
        self.routed.as_ref().map(|routed| &routed.decision)
    }

    /// How far the request has come; `asked`: an endpoint was chosen for it.
    pub(super) fn progress(&self, asked: bool) -> Progress {
        Progress {
            asked,
            uploading: self.upload.as_ref().is_some_and(Upload::is_awaited),
            grpc: self.ledger.is_grpc(),
        }
    }

    /// Answers a request that was not sent with the reason for that.
    pub(super) fn refuse_unsent(mut self, parts: &Parts, failed: &Failed) -> Box<Answer> {
        self.begin_span(parts);
        self.refuse(failed)
    }

    /// Answers with the reason of a failure.
    pub(super) fn refuse(self, failed: &Failed) -> Box<Answer> {
        let grpc = self.ledger.is_grpc();
        let mut response = answer(failed.reason, &failed.detail, grpc);
        let broken = self.upload.as_ref().is_some_and(Upload::is_broken);
        if failed.reason == Reason::HeadersTooLarge && !grpc && !broken {
            // The server's head, not the caller's.
            *response.status_mut() = StatusCode::BAD_GATEWAY;
        }
        self.respond(response)
    }

    /// Begins the span of a request that is answered before there was an attempt.
    pub(super) fn begin_span(&mut self, parts: &Parts) {
        let spans = self.conversation.worker.shared.spans();
        if spans.tracer.is_none() {
            return;
        }
        let about = ClientAttempt {
            endpoint: None,
            service: &self.port.service,
            number: 0,
            retries: 0,
        };
        if let Some((span, trace_id)) = spans.unsent(parts, about) {
            if !self.queued.is_zero() {
                span.set_queued(std::mem::take(&mut self.queued));
            }
            self.ledger.set_span(Some(span));
            self.ledger.traced_in(Some(trace_id));
        }
    }

    /// Waits for its places within the limits of a port; how long is noted where spans say so.
    pub(super) async fn enter(
        &mut self,
        port: &PortView,
        patience: &Patience,
    ) -> Result<(mesh::Admitted, Option<UnderWay>), Failed> {
        let mut entering = pin!(admission::enter(port, self.upload.as_ref()));
        let at_once = poll_fn(|context| Poll::Ready(entering.as_mut().poll(context)));
        if let Poll::Ready(entered) = at_once.await {
            return entered;
        }
        let traced = self.worker().shared.tracer.is_some();
        let since = traced.then(crate::clock::now);
        let entered = patience.wait(entering).await.flatten();
        let waited = since.map(|since| crate::clock::now().saturating_since(since));
        self.queued = waited.unwrap_or_default();
        entered
    }

    /// Answers with a response of the mesh itself.
    pub(super) fn respond(mut self, response: Answer) -> Box<Answer> {
        let reason = reason_of(response.headers());
        self.ledger.answer_itself(&response, reason);
        let mesh = &self.conversation.worker.shared.mesh;
        self.ledger.count_otherwise(|| mesh.own_stats(self.port));
        Box::new(edited(self.routed, response))
    }
}

/// The response, changed as the route's filters say.
pub(super) fn edited<B>(routed: Option<Routed<'_>>, mut response: Response<B>) -> Response<B> {
    if let Some(Routed { decision, origin }) = routed {
        decision.edit_response(origin.as_ref(), response.headers_mut());
    }
    response
}

/// The reason that a response names.
pub(super) fn reason_of(headers: &HeaderMap) -> Option<Reason> {
    rare(headers, &WEFT_REASON)?.to_str().ok()?.parse().ok()
}
