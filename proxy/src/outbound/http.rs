//! Requests of the application to a service.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{EXPECT, HOST, ORIGIN, SET_COOKIE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use tokio::net::TcpStream;
use tokio::time::sleep;
use weft_core::breaker::CallClass;
use weft_core::fault::Fault;
use weft_core::headers::{
    WEFT_APP_PROTOCOL, WEFT_REASON, is_upgrade, remove_hop_by_hop, remove_untrusted,
};
use weft_core::hops::{HOPS_MAX, Hops};
use weft_core::reason::Reason;
use weft_core::retry::{Failure, backoff, may_retry};
use weft_core::route::Decision;
use weft_core::timeout as deadline;

use super::admission;
use super::allowed::{Allowed, while_waited_for};
use super::attempt::{Attempt, Sending, Terms, has_other, keep, send};
use super::hedge::Race;
use super::heed::heed_of;
use super::pool::{Pool, Slot};
use super::route::{self, Next};
use super::{Wish, outside, pick, upgrade};
use crate::http::trace::{Trace, begin_client};
use crate::http::{Activity, Incoming, ProxyBody, Record, Trailers, WithTrailers, answer, is_grpc};
use crate::mesh::{Call, Endpoint, EndpointKey, PortView};
use crate::telemetry::metrics::Direction;
use crate::tls::Replayed;
use crate::worker::Worker;

/// One connection of the application, with what it remembers between requests.
pub(super) struct Conversation {
    pub(super) worker: Rc<Worker>,
    port: RefCell<Arc<PortView>>,
    generation: Cell<u64>,
    /// Where responses go in HTTP/1.1.
    pub(super) trailers: Option<Trailers>,
    /// The last Host, parsed: it is nearly always the same.
    authority: RefCell<Option<(HeaderValue, Authority)>>,
}

/// Serves a connection. `http2` is `None` where the client's first bytes have not been read.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    mut stream: Replayed<TcpStream>,
    port: Arc<PortView>,
    http2: Option<bool>,
) {
    let http2 = match http2 {
        Some(known) => known,
        None => match stream.read_preface().await {
            Ok(http2) => http2,
            Err(error) => {
                tracing::debug!(%error, "the client went away before it said anything");
                return;
            }
        },
    };
    let shared = Arc::clone(&worker.shared);
    let (stream, trailers) = WithTrailers::new(stream);
    let conversation = Rc::new(Conversation {
        worker: Rc::clone(worker),
        trailers: (!http2).then_some(trailers),
        port: RefCell::new(port),
        generation: Cell::new(shared.mesh.generation()),
        authority: RefCell::new(None),
    });
    let handle = move |request| {
        let conversation = Rc::clone(&conversation);
        async move { conversation.handle(request).await }
    };
    crate::http::serve(stream, http2, &shared.config, &shared.drain, handle).await;
}

/// Why no answer came.
pub(crate) struct Failed {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
}

/// Removes what only the mesh may say from the application's request, and counts this sidecar among
/// those that it has passed.
pub(super) fn one_more(headers: &mut HeaderMap) -> Result<(), Failed> {
    let hops = Hops::read(headers);
    remove_untrusted(headers);
    let Some(hops) = hops.next() else {
        return Err(Failed {
            reason: Reason::LoopDetected,
            detail: format!("it has passed {HOPS_MAX} sidecars"),
        });
    };
    hops.write(headers);
    Ok(())
}

impl Conversation {
    /// The port in the configuration of now.
    pub(super) fn port(&self) -> Arc<PortView> {
        let mesh = &self.worker.shared.mesh;
        let generation = mesh.generation();
        if generation != self.generation.get() {
            self.generation.set(generation);
            let now = self.fresh(Arc::clone(&self.port.borrow()));
            *self.port.borrow_mut() = now;
        }
        Arc::clone(&self.port.borrow())
    }

    async fn handle(
        self: &Rc<Self>,
        request: Request<Incoming>,
    ) -> Response<ProxyBody<Box<Record>>> {
        let shared = &self.worker.shared;
        let mut record = Box::new(Record::new(crate::clock::now()));
        record.trailers = chunks(&self.trailers, &request);
        let upgrading = is_upgrade(request.method(), request.headers());
        if upgrading && request.version() != Version::HTTP_2 {
            return upgrade::outbound(self, request, record).await;
        }
        let (mut parts, body) = request.into_parts();
        remove_hop_by_hop(&mut parts.headers, false);
        // How long the application waits is its own to say: it can only make it shorter.
        let asked = deadline::allowed(&parts.headers, None);
        let hops = one_more(&mut parts.headers);
        // Answered by ourselves: hyper says 100 when the body is asked for.
        parts.headers.remove(EXPECT);
        record.grpc = is_grpc(&parts.headers);
        let received = record.begin_line(
            &shared.access_log,
            Direction::Outbound,
            &parts,
            &self.port.borrow().hostname,
            None,
        );
        let body = ProxyBody::of_request(body, received);
        let port = self.port();
        let decided = hops
            .and_then(|()| self.address(&mut parts))
            .and_then(|()| route::decide(&port, &parts));
        let (decision, outcome) = match decided {
            Err(failed) => (None, Err(failed)),
            Ok(decision) => {
                let decided = Decided::new(decision, &parts.headers);
                let decision = decided.as_ref().map(|decided| &decided.decision);
                let exchange = self.exchange(&port, decision, parts, (body, asked), &mut record);
                let outcome = exchange.await;
                (decided, outcome)
            }
        };
        let relay = |response, record, slot| relayed(response, record, slot);
        self.settle(&port, decision, outcome, record, relay)
    }

    /// The response, as the route wants it. `relay` makes one of the peer's.
    pub(super) fn settle(
        &self,
        port: &PortView,
        decided: Option<Decided<'_>>,
        outcome: Result<Exchanged, Failed>,
        mut record: Box<Record>,
        relay: impl FnOnce(
            Response<Incoming>,
            Box<Record>,
            Option<Slot>,
        ) -> Response<ProxyBody<Box<Record>>>,
    ) -> Response<ProxyBody<Box<Record>>> {
        let (response, reason) = match outcome {
            Ok(Exchanged::Relayed(response, slot)) => {
                let response = relay(response, record, slot);
                return edited(decided, response);
            }
            Ok(Exchanged::Answered(response)) => {
                let reason = response.headers().get(WEFT_REASON);
                let reason = reason.and_then(|word| word.to_str().ok()?.parse().ok());
                (response, reason)
            }
            Err(Failed { reason, detail }) => {
                record.on_failure(reason);
                let silent = reason == Reason::StreamIdleTimeout;
                // Where the caller has gone silent, nobody else has failed.
                let own = silent && record.is_uploading();
                if reason == Reason::RequestTimeout || (silent && !own) {
                    record.give_up_waiting();
                }
                // One whose time was over in our own queue says nothing about those it was for.
                let queued = reason == Reason::RequestTimeout && !record.is_asked();
                if reason.fault() == Fault::Endpoint && !own && !queued {
                    record.finish_port_calls(CallClass::Failure);
                }
                (answer(reason, &detail, record.grpc), Some(reason))
            }
        };
        record.reason = reason;
        record.status = response.status();
        if record.stats.is_none() {
            record.stats = Some(self.worker.shared.mesh.own_stats(port));
        }
        edited(decided, response)
    }

    async fn exchange(
        &self,
        port: &Arc<PortView>,
        decision: Option<&Decision<'_>>,
        mut parts: Parts,
        (mut body, asked): (ProxyBody, Option<Duration>),
        record: &mut Record,
    ) -> Result<Exchanged, Failed> {
        let grpc = record.grpc;
        let next = {
            let following = route::follow(&self.worker, port, decision, &mut parts, grpc);
            while_waited_for(asked, pin!(following)).await?
        };
        let next = match next {
            Next::Forward(target) => {
                let target = outside::resolved(&self.worker, target, asked).await?;
                let found = decision.map(|decision| &decision.found);
                admission::admit(&self.worker, target, found, record).await?
            }
            answer @ Next::Answer(_) => answer,
        };
        let target = match next {
            Next::Answer(response) => return Ok(Exchanged::Answered(response)),
            Next::Forward(target) => target,
        };
        let policy = &target.policy;
        let rule = decision.map(|decision| decision.found.rule);
        let config = &self.worker.shared.config;
        let allowed = Allowed::of(record.began, asked, rule, policy, config);
        let mirrors = decision.map_or(&[][..], |decision| &decision.mirrors);
        let terms = Terms::of(policy, rule, &parts, grpc);
        let activity = policy.stream_idle_timeout.map(Activity::new);
        if let Some(activity) = &activity {
            body.watch(activity);
            record.activity = Some(Arc::clone(activity));
        }
        let adaptive = policy.adaptive.as_ref();
        let ended = adaptive.and_then(|_| body.watch_end());
        let (body, kept) = keep(body, &terms, mirrors);
        if !mirrors.is_empty() {
            route::mirror(&self.worker, port, mirrors, &parts, kept.as_ref());
        }
        let sent = Sending {
            parts,
            body,
            kept,
            mirrored: !mirrors.is_empty(),
            deadline: allowed.deadline,
        };
        let mut wish = Wish::of(&self.worker, &target, &sent.parts);
        let issued = issue(&target, &mut wish);
        let (mut response, slot) = {
            let exchange = async {
                admission::wait(&target, ended, record).await?;
                let trip = Trip::new(terms, sent, wish);
                self.attempts(Arc::clone(&target), trip, record).await
            };
            allowed.bound(activity.as_deref(), pin!(exchange)).await?
        };
        if record.reason == Some(Reason::DeadlineExceeded)
            && let Some(over) = allowed.over()
        {
            // The peer's sidecar was faster by a moment than our own timeout, which set the deadline.
            record.waiting = record.call.take();
            return Err(over);
        }
        if let Some(cookie) = issued {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        Ok(Exchanged::Relayed(response, Some(slot)))
    }

    async fn attempts(
        &self,
        mut port: Arc<PortView>,
        mut trip: Trip<'_>,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Slot), Failed> {
        let mut race = trip.terms.hedge.map(Race::new);
        port.budget().on_request(record.began);
        loop {
            let out_of_reach = out_of_reach(&self.worker.pool, &port);
            let picked = match out_of_reach.as_slice() {
                [] => pick(&port, &trip.tried, trip.wish),
                out => pick(&port, &[out, trip.tried.as_slice()].concat(), trip.wish),
            };
            let (endpoint, call) = picked.map_err(|reason| Failed {
                reason,
                detail: format!("{}:{}", port.service, port.port),
            })?;
            trip.made += 1;
            record.stats = Some(Arc::clone(&endpoint.live.stats));
            record.wire = port.wire();
            record.attempt(endpoint.key.address);
            let outcome = match &mut race {
                None => {
                    self.attempt(&port, (&endpoint, call), &mut trip, record)
                        .await
                }
                Some(race) => {
                    let first = (&endpoint, call);
                    // On the heap: whoever does not hedge needs no room for it.
                    Box::pin(race.run(self, &port, first, &mut trip, record)).await
                }
            };
            let failed = match outcome {
                Ok(done) => {
                    trip.sent.done();
                    return Ok(done);
                }
                Err(failed) => failed,
            };
            let (retry, sent) = (trip.terms.retry, &trip.sent);
            let (method, replayable) = (&sent.parts.method, sent.is_replayable());
            let again = may_retry(retry, failed.failure, method, replayable, trip.made);
            // One more request is the last thing that whoever has enough to do needs.
            let elsewhere =
                failed.failure != Failure::Shed || has_other(&port, &endpoint, &trip.tried);
            if !again || !elsewhere {
                return failed.give_up();
            }
            let now = crate::clock::now();
            let wait = backoff(retry, trip.made, fastrand::u64(..));
            if !deadline::leaves_time_for(sent.deadline, now, wait) {
                return failed.give_up();
            }
            record.retrying = None;
            record.retrying = port.admit_retry();
            if record.retrying.is_none() || !port.budget().try_retry(now) {
                // No retry is made: its place is another's.
                record.retrying = None;
                return failed.give_up();
            }
            endpoint.live.stats.retried();
            trip.tried.push(endpoint.key.clone());
            sleep(wait).await;
            record.repeat(failed.failure);
            port = self.fresh(port);
        }
    }

    /// Makes one attempt.
    async fn attempt(
        &self,
        port: &PortView,
        (endpoint, call): (&Endpoint, Call),
        trip: &mut Trip<'_>,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Slot), Attempt> {
        // Whoever waits for a place within our own limit waits for nobody's answer.
        let limited = port.policy.max_connections.is_some();
        let mut held = Some(call);
        if !limited {
            record.waiting = held.take();
        }
        let slot = match self.worker.pool.slot(port, endpoint).await {
            Ok(slot) => slot,
            Err(error) => {
                let attempt = Attempt::not_connected(&error);
                record.waiting = record.waiting.take().or(held);
                record.note_failure(attempt.failure);
                match attempt.class(trip.terms.failures) {
                    Some(class) => record.finish_waiting(class),
                    None => drop(record.waiting.take()),
                }
                return Err(attempt);
            }
        };
        record.waiting = record.waiting.take().or(held);
        let sent = &mut trip.sent;
        record.span = begin_client(
            &self.worker.shared,
            &mut trip.trace,
            &mut sent.parts,
            endpoint.key.address,
            &port.hostname,
            trip.made - 1,
        );
        record.traced(&sent.parts.headers);
        let request = sent.request(trip.terms.retry.attempts > 0);
        send(request, slot, record, &trip.terms).await
    }

    /// The port in the configuration of now.
    pub(super) fn fresh(&self, port: Arc<PortView>) -> Arc<PortView> {
        let fresh = self.worker.shared.mesh.refresh(&port);
        fresh.unwrap_or_else(|| Arc::new(port.without_endpoints()))
    }

    /// Makes the request one between sidecars: absolute URI, HTTP/2, and the application's own
    /// protocol noted.
    fn address(&self, parts: &mut Parts) -> Result<(), Failed> {
        self.make_absolute(parts)?;
        if parts.version != Version::HTTP_2 {
            let http1 = HeaderValue::from_static("http/1.1");
            parts.headers.insert(WEFT_APP_PROTOCOL, http1);
        }
        parts.version = Version::HTTP_2;
        Ok(())
    }

    /// Gives the URI the host, which is taken from its field.
    pub(super) fn make_absolute(&self, parts: &mut Parts) -> Result<(), Failed> {
        let bad = |detail: &str| Failed {
            reason: Reason::BadRequest,
            detail: detail.to_owned(),
        };
        let authority = match (parts.headers.remove(HOST), parts.uri.authority()) {
            (_, Some(authority)) => authority.clone(),
            (Some(host), None) => self
                .parsed(host)
                .ok_or_else(|| bad("the Host header is not an authority"))?,
            // HTTP/1.0 may leave it out.
            (None, None) => self
                .parsed(
                    HeaderValue::from_str(&self.port.borrow().hostname).map_err(|_| bad("host"))?,
                )
                .ok_or_else(|| bad("host"))?,
        };
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(authority);
        if uri.path_and_query.is_none() {
            uri.path_and_query = Some(PathAndQuery::from_static("/"));
        }
        parts.uri = Uri::from_parts(uri).map_err(|error| bad(&error.to_string()))?;
        Ok(())
    }

    fn parsed(&self, host: HeaderValue) -> Option<Authority> {
        let mut last = self.authority.borrow_mut();
        if let Some((seen, authority)) = &*last
            && *seen == host
        {
            return Some(authority.clone());
        }
        let authority = Authority::try_from(host.as_bytes()).ok()?;
        *last = Some((host, authority.clone()));
        Some(authority)
    }
}

/// Endpoints that the limit on connections leaves no way to. None are left out where nothing else
/// is well: the connections that stand are drained by that, and make room.
fn out_of_reach(pool: &Pool, port: &PortView) -> Vec<EndpointKey> {
    let out = pool.out_of_reach(port);
    if out.is_empty() {
        return out;
    }
    let now = crate::clock::now();
    let heed = heed_of(port, now);
    let well =
        |endpoint: &Arc<Endpoint>| !out.contains(&endpoint.key) && !heed.excludes(endpoint, now);
    match port.endpoints.iter().any(well) {
        true => out,
        false => Vec::new(),
    }
}

/// The cookie that a request without one is given, where that is what its endpoint is picked by.
fn issue(port: &PortView, wish: &mut Wish<'_>) -> Option<HeaderValue> {
    let hash_on = port.policy.hash_on.as_ref();
    let hash_on = hash_on.filter(|_| wish.key.is_none());
    let (key, cookie) = hash_on.and_then(|on| on.issue(fastrand::u64(..)))?;
    wish.key = Some(key);
    Some(cookie)
}

/// A request on its way through its attempts.
pub(super) struct Trip<'a> {
    pub(super) terms: Terms<'a>,
    pub(super) sent: Sending,
    pub(super) wish: Wish<'a>,
    pub(super) trace: Trace,
    /// Endpoints that were asked and have failed, or are slow.
    pub(super) tried: Vec<EndpointKey>,
    /// Attempts made, without hedges.
    pub(super) made: u32,
}

impl<'a> Trip<'a> {
    fn new(terms: Terms<'a>, sent: Sending, wish: Wish<'a>) -> Self {
        Self {
            trace: Trace::of(&sent.parts.headers),
            terms,
            sent,
            wish,
            tried: Vec::new(),
            made: 0,
        }
    }
}

/// A decision of the route, with what the response has to be told of the request.
pub(super) struct Decided<'a> {
    pub(super) decision: Decision<'a>,
    origin: Option<HeaderValue>,
}

impl<'a> Decided<'a> {
    pub(super) fn new(decision: Option<Decision<'a>>, request: &HeaderMap) -> Option<Self> {
        let decision = decision?;
        let origin = decision
            .needs_origin()
            .then(|| request.get(ORIGIN).cloned());
        Some(Self {
            decision,
            origin: origin.flatten(),
        })
    }
}

/// The response, changed as the route's filters say.
fn edited<B>(decided: Option<Decided<'_>>, mut response: Response<B>) -> Response<B> {
    if let Some(Decided { decision, origin }) = decided {
        decision.edit_response(origin.as_ref(), response.headers_mut());
    }
    response
}

/// What came of a request.
pub(super) enum Exchanged {
    /// The peer's response, with its place on a shared connection.
    Relayed(Response<Incoming>, Option<Slot>),
    /// An answer of the mesh itself.
    Answered(Response<ProxyBody<Box<Record>>>),
}

/// An error with everything behind it, on one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The peer's answer on its way to the application; the record ends with the body.
pub(crate) fn relayed(
    response: Response<Incoming>,
    mut record: Box<Record>,
    slot: Option<Slot>,
) -> Response<ProxyBody<Box<Record>>> {
    use http_body::Body as _;
    let (mut parts, body) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers, false);
    record.status = parts.status;
    record.slot = slot;
    record.on_answer(&parts.headers);
    if record.grpc
        && let Some(status) = parts.headers.get("grpc-status")
    {
        record.grpc_status = Some(status.clone());
    }
    if body.is_end_stream() {
        crate::http::BodyGuard::on_end(record, None);
        return Response::from_parts(parts, ProxyBody::Empty);
    }
    let trailers = record.trailers.take();
    let activity = record.activity.take();
    let mut body = ProxyBody::guarded(body, record);
    let has_body = ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&parts.status);
    if let Some(trailers) = trailers
        && has_body
    {
        body.frame(&mut parts.headers, trailers);
    }
    if let Some(activity) = activity {
        body = body.watched(activity);
    }
    Response::from_parts(parts, body)
}

/// The connection that the response goes to, where it may be in chunks: whoever asks in HTTP/1.0
/// does not know them, and the answer to `HEAD` has no body (RFC 9112 section 6.1).
pub(crate) fn chunks<B>(connection: &Option<Trailers>, request: &Request<B>) -> Option<Trailers> {
    let connection = connection.as_ref()?;
    let takes_chunks = request.version() == Version::HTTP_11;
    let has_body = *request.method() != Method::HEAD && *request.method() != Method::CONNECT;
    (takes_chunks && has_body).then(|| connection.clone())
}
