//! A request of others on its way to the application, from its head to its answer's.
//!
//! It owns what the request needs and what has to be given back, from its arrival to its answer; dropping
//! it cancels the request. What decides borrows it, which stays where it is: moving it costs more than most
//! decisions.
//! Upgrades and `CONNECT` go the same way, with the same limits: only their connection is another,
//! and the answer becomes a stream of bytes.

mod refused;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, TRAILER};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};
use tokio::time::timeout;
use weft_core::adaptive::Rejected;
use weft_core::connections::Exceeded;
use weft_core::h1::TargetForm;
use weft_core::headers::{
    ABSOLUTE, APP_HTTP1_FORM, APP_HTTP2, WEFT_APP_PROTOCOL, WEFT_CHECK, WEFT_HTTP1_FORM,
    WEFT_TARGET_FORM, X_FORWARDED_CLIENT_CERT, is_grpc, is_upgrade, remove_hop_by_hop,
    remove_untrusted,
};
use weft_core::hops::Hops;
use weft_core::model::AppProtocol;
use weft_core::peer::VerifiedPeer;
use weft_core::reason::Reason;
use weft_core::route::RequestHead;
use weft_core::time::Instant;
use weft_core::timeout as deadline;

use super::answered::Answered;
use super::check::Checking;
use super::http::Conversation;
use crate::application::Asked;
use crate::connections::Permit;
use crate::drain::Side;
use crate::http::h1::{Expectation, OnContinue, Refusal};
use crate::http::{Deposit, Incoming, ProxyBody, Upgrade, Upload, relayed};
use crate::mesh::{Rated, UnderWay};
use crate::pool::Slot;
use crate::telemetry::ledger::Ledger;
use crate::telemetry::metrics::{Direction, Wire};
use crate::upgrade::{is_agreed, join};

use refused::{Refused, refused};

/// What a caller is answered with.
pub(super) type Answer = Response<ProxyBody<Box<Answered>>>;

/// The next state, or the answer that comes instead of it.
type Step<T> = Result<T, Box<Answer>>;

/// The whole way of a request.
pub(super) async fn exchange(
    conversation: &Rc<Conversation>,
    request: Request<Incoming>,
) -> Answer {
    let answered = way(conversation, request).await;
    answered.unwrap_or_else(|answer| *answer)
}

/// The answer to a request that was not understood.
pub(super) fn refuse(conversation: &Conversation, refusal: &Refusal) -> Answer {
    let shared = &conversation.worker.shared;
    let caller = conversation.caller.as_ref();
    let cutting = &conversation.cutting;
    let mut ledger = Ledger::new(crate::clock::now(), refusal.grpc, cutting);
    ledger.count(&conversation.stats, wire(conversation));
    let peer = caller.map(|caller| caller.peer.identity().as_str());
    let (log, service) = (&shared.access_log, &conversation.application.service);
    ledger.begin_refused_line(log, Direction::Inbound, service, peer);
    let answer = refusal.answer();
    ledger.answer_itself(&answer, Some(refusal.reason));
    answer
}

fn wire(conversation: &Conversation) -> Wire {
    match conversation.caller {
        Some(_) => Wire::Mtls,
        None => Wire::Plaintext,
    }
}

async fn way(conversation: &Conversation, request: Request<Incoming>) -> Step<Answer> {
    let mut received = Received::new(conversation, request);
    let concurrency = match received.admit().await {
        Ok(concurrency) => concurrency,
        // On the heap: requests that are let through need no room for it.
        Err(refused) => return Err(Box::pin(received.refuse(*refused)).await),
    };
    let asked = received.ask().await;
    let asked = asked.and_then(|asked| received.exchange.translate(asked));
    match asked {
        Ok(asked) => Ok(received.exchange.answer(asked, concurrency)),
        Err(failed) => Err(received.exchange.fail(failed, concurrency)),
    }
}

/// What goes along with a request through all states: where its answer goes, and what is told of it.
pub(super) struct Exchange<'p> {
    pub(super) conversation: &'p Conversation,
    pub(super) ledger: Ledger,
    /// Its body; `None` where it has none.
    upload: Option<Upload>,
    /// The connection that becomes a stream of bytes when the application agrees.
    pub(super) upgrade: Option<Upgrade>,
    /// What limits on the rate of requests say to it, which the answer tells.
    rated: Option<Rated>,
    /// Its place among the connections of its client, where it asks for a stream of bytes in HTTP/2.
    stream: Option<Permit>,
    /// What its client has paid for a stream of bytes, until there is an answer.
    deposit: Option<Deposit>,
    /// Whether the caller's side takes the form of the answer's head.
    keeps_form: bool,
}

impl<'p> Exchange<'p> {
    /// Who calls, where the mesh verified it.
    pub(super) fn peer(&self) -> Option<&'p VerifiedPeer> {
        let caller = self.conversation.caller.as_ref();
        caller.map(|caller| &caller.peer)
    }

    fn tell_rate(&self, headers: &mut HeaderMap) {
        if let Some(rated) = &self.rated {
            rated.write(headers);
        }
    }
}

/// The request is here, as the application is to see it.
struct Received<'p> {
    exchange: Exchange<'p>,
    parts: Parts,
    body: Body,
    /// How long its caller still waits, where it says so.
    left: Option<Duration>,
    /// What a sidecar's health check is for, where it says that it is one.
    check: Option<HeaderValue>,
}

/// A request's body, with how it goes on.
struct Body {
    body: ProxyBody,
    /// Whether its caller speaks HTTP/1.
    from_http1: bool,
    /// Whether the application is spoken to in HTTP/1.1.
    to_http1: bool,
    /// Whether its caller sends it only when it is asked to (`Expect: 100-continue`).
    is_expected: bool,
}

/// Whether a request holds a connection to the application until it has ended: all do in HTTP/1.1, in
/// HTTP/2 those that announce trailers.
fn holds_connection(to_http1: bool, headers: &HeaderMap) -> bool {
    to_http1 || headers.contains_key(TRAILER)
}

impl<'p> Received<'p> {
    fn new(conversation: &'p Conversation, mut request: Request<Incoming>) -> Self {
        let version = request.version();
        let asks =
            version != Version::HTTP_2 && is_upgrade(version, request.method(), request.headers());
        let upgrade = asks.then(|| Upgrade::take(request.extensions_mut()));
        let (mut parts, mut body) = request.into_parts();
        if conversation.caller.is_none() {
            // Before anything is read of it: none of it is the mesh's word.
            remove_untrusted(&mut parts.headers);
        }
        let left = deadline::allowed(&parts.headers, None);
        let check = parts.headers.remove(WEFT_CHECK);
        let form = parts.headers.get(WEFT_TARGET_FORM);
        if form.is_some_and(|form| form == ABSOLUTE) {
            parts.extensions.insert(TargetForm::Absolute);
        }
        let noted = parts.headers.remove(WEFT_APP_PROTOCOL);
        let takes_form = noted.as_ref().is_some_and(|noted| noted == APP_HTTP1_FORM);
        let upgrade = upgrade.flatten();
        let from_http1 = match noted {
            Some(noted) => noted != APP_HTTP2,
            None => {
                let http2 = upgrade.as_ref().is_some_and(Upgrade::is_http2);
                parts.version != Version::HTTP_2 && !http2
            }
        };
        // In HTTP/1.1 the form is not a field on the wire.
        let keeps_form = takes_form || parts.version != Version::HTTP_2;
        prepare(conversation, &mut parts, asks);
        if let Some(left) = left {
            // The application may pass it on with what it asks of others.
            deadline::write(left, &mut parts.headers);
        }
        // A refusal in gRPC has status 200, which opens a tunnel.
        let grpc = !asks && is_grpc(&parts.headers);
        let cutting = &conversation.cutting;
        let mut ledger = Ledger::new(crate::clock::now(), grpc, cutting);
        ledger.watch(parts.extensions.remove());
        let to_http1 = match conversation.application.protocol {
            AppProtocol::Http => true,
            AppProtocol::Http2 | AppProtocol::Grpc => false,
            // The application is spoken to in what its caller speaks.
            AppProtocol::Detect | AppProtocol::Tcp | AppProtocol::Tls => from_http1,
        };
        let stall = conversation.worker.shared.config.timeouts.client_stall;
        // Programs in the mesh may be silent for as long as they like; what one peer holds is limited.
        let is_bounded = !stall.is_zero() && conversation.caller.is_none();
        if is_bounded && upgrade.is_none() && holds_connection(to_http1, &parts.headers) {
            body.bound_waiting(stall);
        }
        let mut body = ProxyBody::of_request(body, None);
        let is_expected = parts.extensions.get::<Expectation>().is_some()
            || parts.extensions.get::<OnContinue>().is_some();
        let exchange = Exchange {
            conversation,
            ledger,
            upload: body.watch_upload(),
            upgrade,
            rated: None,
            stream: None,
            deposit: None,
            keeps_form,
        };
        Self {
            exchange,
            parts,
            body: Body {
                body,
                from_http1,
                to_http1,
                is_expected,
            },
            left,
            check,
        }
    }

    /// Asks everything that a request is let through by, and finds it a place among those that the
    /// application is given at a time, where that is limited.
    async fn admit(&mut self) -> Result<Option<UnderWay>, Box<Refused>> {
        let is_check = self.decide()?;
        let exchange = &mut self.exchange;
        if let Err(exceeded) = exchange.count_stream() {
            let detail = exceeded.to_string();
            return Err(Box::new(Refused::Reason(Reason::ConnectionLimit, detail)));
        }
        if exchange.upgrade.is_some()
            && let Some(client) = &exchange.conversation.client
        {
            let since = self.left.map(|_| crate::clock::now());
            // On the heap: ordinary requests need no room for it.
            exchange.deposit = Box::pin(client.settled()).await;
            let waited = since.map(|since| crate::clock::now().saturating_since(since));
            let waited = waited.unwrap_or_default();
            self.left = self.left.map(|left| left.saturating_sub(waited));
        }
        // Nobody waits for the answer: it costs the application nothing.
        let counts = !is_check && self.left != Some(Duration::ZERO);
        let place = exchange.enter(&self.parts, counts);
        place.map_err(|rejected| Box::new(Refused::Overload(rejected)))
    }

    /// Tells a health check from a request, and asks the limits on the rate of requests. Whether it is a
    /// check that the application answers.
    fn decide(&mut self) -> Result<bool, Box<Refused>> {
        let exchange = &mut self.exchange;
        let check = self.check.take();
        let checking = check.map(|check| exchange.check(&check, &self.parts, &self.body.body));
        let unenforceable = exchange.unenforceable();
        match checking {
            Some(Checking::Request) => {}
            Some(Checking::Connection) if unenforceable.is_none() => {
                return Err(Box::new(Refused::Check));
            }
            Some(Checking::TooMany) => {
                exchange.begin(&mut self.parts, &mut self.body.body);
                let detail = "health checks of one sidecar".to_owned();
                return Err(Box::new(Refused::Reason(Reason::RateLimited, detail)));
            }
            // Where nobody is let in, a check of connections is refused as a request is.
            Some(Checking::Connection | Checking::Nothing) | None => {
                exchange.begin(&mut self.parts, &mut self.body.body);
            }
        }
        if let Err(bad) = exchange.conversation.name_host(&mut self.parts) {
            return Err(Box::new(Refused::Reason(
                Reason::BadRequest,
                bad.to_string(),
            )));
        }
        if let Some(asked) = unenforceable {
            let detail = format!("{asked} asks for what this version of the sidecar does not know");
            return Err(Box::new(Refused::Read(
                Reason::DiscoveryUnavailable,
                detail,
            )));
        }
        let is_check = matches!(checking, Some(Checking::Request));
        if !is_check {
            let server = exchange.conversation.server.load();
            let server = server.as_ref();
            exchange.rated = server.and_then(|view| view.rate(&head(&self.parts), exchange.peer()));
        }
        let refusal = exchange.rated.as_ref().and_then(Rated::refusal);
        match refusal.map(refused) {
            Some((reason, detail)) => Err(Box::new(Refused::Read(reason, detail))),
            None => Ok(is_check),
        }
    }

    /// Asks the application, as long as somebody waits for the answer.
    async fn ask(&mut self) -> Asked {
        let conversation = self.exchange.conversation;
        let (empty, ()) = Request::new(()).into_parts();
        let parts = std::mem::replace(&mut self.parts, empty);
        let body = std::mem::replace(&mut self.body.body, ProxyBody::Empty);
        // On the heap: every future on its way holds it.
        let request = Box::new(Request::from_parts(parts, body));
        let (upgrades, to_http1) = (self.exchange.upgrade.is_some(), self.body.to_http1);
        let asking = async move {
            match upgrades {
                true => Box::pin(conversation.upgrade(to_http1, request)).await,
                false => conversation.ask(to_http1, request).await,
            }
        };
        let late = |left| {
            let detail = format!("{left:?} were left when it came");
            Err((Reason::DeadlineExceeded, detail))
        };
        match self.left {
            None => asking.await,
            Some(Duration::ZERO) => late(Duration::ZERO),
            Some(left) => {
                let since = crate::clock::now();
                match timeout(left, asking).await {
                    Ok(Err((Reason::UpstreamReset, _))) if is_over(since, left) => late(left),
                    Ok(asked) => asked,
                    Err(_elapsed) => late(left),
                }
            }
        }
    }
}

/// Whether the caller does not wait any more, or nearly so: an application that knows how long that is
/// resets the stream when it is over by its own clock (grpc-go), which may be a moment before ours.
fn is_over(since: Instant, left: Duration) -> bool {
    const CLOCKS: Duration = Duration::from_millis(10);
    crate::clock::now().saturating_since(since) + CLOCKS >= left
}

/// What the application is to see of a request's head.
fn prepare(conversation: &Conversation, parts: &mut Parts, upgrade: bool) {
    let headers = &mut parts.headers;
    remove_hop_by_hop(headers, upgrade && parts.method != Method::CONNECT);
    if conversation.caller.is_some() {
        let hops = Hops::read(headers);
        remove_untrusted(headers);
        hops.write(headers);
    }
    let caller = conversation.caller.as_ref();
    if let Some(forwarded) = caller.and_then(|caller| caller.forwarded.as_ref()) {
        headers.insert(X_FORWARDED_CLIENT_CERT, forwarded.clone());
    }
}

/// What policies look at.
fn head(parts: &Parts) -> RequestHead<'_> {
    RequestHead::new(&parts.method, &parts.uri, &parts.headers)
}

impl Exchange<'_> {
    /// Begins the metrics, the span and the line of the access log of a request.
    fn begin(&mut self, parts: &mut Parts, body: &mut ProxyBody) {
        let conversation = self.conversation;
        self.ledger.count(&conversation.stats, wire(conversation));
        let peer = self.peer().map(|peer| peer.identity().as_str());
        let shared = &conversation.worker.shared;
        let service = &conversation.application.service;
        let span = shared.spans().server(parts, peer, |authority| {
            let called = shared.mesh.called_service(authority);
            called.map_or_else(|| service.to_string(), |called| called.to_string())
        });
        self.ledger.set_span(span);
        let log = &shared.access_log;
        let received = self
            .ledger
            .begin_line(log, Direction::Inbound, parts, service, peer);
        if let Some(received) = received {
            body.count(received);
        }
    }
}

impl Exchange<'_> {
    /// Finds a stream of bytes in HTTP/2 its place among the connections of its client.
    fn count_stream(&mut self) -> Result<(), Exceeded> {
        if self.upgrade.as_ref().is_some_and(Upgrade::is_http2) {
            let conversation = self.conversation;
            let identity = self.peer().map(|peer| peer.identity().as_str());
            let address = conversation.address;
            let worker = &conversation.worker;
            let connections = &worker.shared.connections;
            let permit = connections.admit_stream(identity, address, &worker.serving)?;
            self.stream = Some(permit);
        }
        Ok(())
    }

    /// What nobody is let in for.
    fn unenforceable(&self) -> Option<Arc<String>> {
        let worker = &self.conversation.worker;
        worker.shared.mesh.unenforceable()
    }

    fn enter(&self, parts: &Parts, counts: bool) -> Result<Option<UnderWay>, Rejected> {
        let server = self.conversation.server.load();
        let server = server.as_ref().filter(|_| counts);
        let Some((server, shed)) = server.and_then(|view| Some((view, view.shedding.as_ref()?)))
        else {
            return Ok(None);
        };
        let paths = server.path_normalization;
        let priority = shed.model.priority(self.peer(), &head(parts), paths);
        let place = shed.limit.try_acquire(priority, self.upload.clone())?;
        Ok(Some(place))
    }
}

impl Exchange<'_> {
    /// The answer as a client in HTTP/2 that asked for a stream of bytes is to see it.
    fn translate(&self, (mut response, slot): (Response<Incoming>, Slot)) -> Asked {
        if let Some(upgrade) = &self.upgrade
            && let Err(not_switched) = upgrade.translate(&mut response)
        {
            return Err((Reason::UpgradeFailed, not_switched.to_string()));
        }
        Ok((response, slot))
    }

    /// Hands the application's response on. What is held is given back with its end.
    fn answer(
        mut self,
        (mut response, slot): (Response<Incoming>, Slot),
        mut concurrency: Option<UnderWay>,
    ) -> Answer {
        // The application does not speak for the mesh: the caller's sidecar believes that word and
        // would repeat the request.
        remove_untrusted(response.headers_mut());
        if !self.keeps_form {
            response.headers_mut().remove(WEFT_HTTP1_FORM);
        }
        self.tell_rate(response.headers_mut());
        if let Some(concurrency) = &mut concurrency {
            concurrency.on_answer(response.headers());
        }
        self.ledger.answer(response.status(), None);
        self.ledger.note_head(response.headers());
        let guard = Box::new(Answered {
            ledger: self.ledger,
            concurrency,
            upload: self.upload,
            slot,
            _stream: self.stream,
        });
        match self.upgrade {
            Some(client) if is_agreed(&response) => {
                let conversation = self.conversation;
                let shared = &conversation.worker.shared;
                let ends = (Side::Inbound, conversation.signal.clone());
                join(shared, ends, None, response, client, guard)
            }
            Some(_) | None => relayed(response, guard, None),
        }
    }
}
