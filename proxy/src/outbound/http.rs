//! Requests of the application to a service.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{EXPECT, HOST};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use weft_core::breaker::CallClass;
use weft_core::headers::{
    WEFT_APP_PROTOCOL, WEFT_REASON, is_upgrade, remove_hop_by_hop, remove_untrusted,
};
use weft_core::policy::TrafficPolicy;
use weft_core::reason::Reason;
use weft_core::retry::{Failure, backoff, may_retry};

use super::pool::{DialError, Slot};
use super::{pick, upgrade};
use crate::http::trace::{Trace, begin_client};
use crate::http::{ProxyBody, Record, Trailers, WithTrailers, answer, is_grpc};
use crate::mesh::{Call, EndpointKey, PortView};
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

impl Conversation {
    /// The port in the configuration of now.
    pub(super) fn port(&self) -> Arc<PortView> {
        let mesh = &self.worker.shared.mesh;
        let generation = mesh.generation();
        if generation != self.generation.get() {
            self.generation.set(generation);
            let fresh = mesh.refresh(&self.port.borrow());
            let now = fresh.unwrap_or_else(|| Arc::new(self.port.borrow().without_endpoints()));
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
        remove_untrusted(&mut parts.headers);
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
        let grpc = record.grpc;
        let port = self.port();
        record.admitted = port.admit();
        if record.admitted.is_none() {
            let limit = port.policy.max_requests.unwrap_or_default();
            record.reason = Some(Reason::ConcurrencyLimit);
            let detail = format!("{limit} requests are under way");
            let response = answer(Reason::ConcurrencyLimit, &detail, grpc);
            record.status = response.status();
            return response;
        }
        let own = port.policy.request_timeout;
        let limit = own.unwrap_or(shared.config.timeouts.request);
        let body = ProxyBody::of_request(body, received);
        let attempts = self.attempts(parts, body, &mut record);
        let outcome = if limit == Duration::ZERO {
            attempts.await
        } else {
            timeout(limit, attempts).await.unwrap_or_else(|_elapsed| {
                Err(Failed {
                    reason: Reason::RequestTimeout,
                    detail: format!("{limit:?}"),
                })
            })
        };
        match outcome {
            Ok((response, slot)) => relayed(response, record, Some(slot)),
            Err(Failed { reason, detail }) => {
                record.reason = Some(reason);
                let response = answer(reason, &detail, grpc);
                record.status = response.status();
                response
            }
        }
    }

    async fn attempts(
        &self,
        mut parts: Parts,
        mut body: ProxyBody,
        record: &mut Record,
    ) -> Result<(Response<Incoming>, Slot), Failed> {
        self.address(&mut parts)?;
        // An empty body can be sent again; another one only as long as nothing took it.
        let repeatable = matches!(body, ProxyBody::Empty);
        let mut tried: Vec<EndpointKey> = Vec::new();
        let mut made = 0;
        let mut trace = Trace::of(&parts.headers);
        loop {
            let port = self.port();
            let policy = &port.policy.retry;
            if made == 0 {
                port.budget().on_request(record.began);
            }
            let (endpoint, call) = pick(&port, &tried).map_err(|reason| Failed {
                reason,
                detail: format!("{}:{}", port.service, port.port),
            })?;
            made += 1;
            record.stats = Some(Arc::clone(&endpoint.live.stats));
            record.attempt(endpoint.key.address);
            let failed = match self.worker.pool.slot(&port, &endpoint).await {
                Err(error) => {
                    call.finish(CallClass::Failure, crate::clock::now());
                    Attempt::not_connected(&error)
                }
                Ok(slot) => {
                    let sending = std::mem::replace(&mut body, ProxyBody::Empty);
                    record.span = begin_client(
                        &self.worker.shared,
                        &mut trace,
                        &mut parts,
                        endpoint.key.address,
                        &port.hostname,
                        made - 1,
                    );
                    record.traced(&parts.headers);
                    let head = if repeatable {
                        parts.clone()
                    } else {
                        take(&mut parts)
                    };
                    let request = Request::from_parts(head, sending);
                    match send(request, slot, call, record, &port.policy).await {
                        Ok(done) => return Ok(done),
                        Err(mut attempt) => {
                            if let Some(unsent) = attempt.unsent.take() {
                                let (head, unsent) = unsent.into_parts();
                                parts = head;
                                body = unsent;
                            }
                            attempt
                        }
                    }
                }
            };
            let replayable = repeatable || failed.body_is_whole;
            let again = may_retry(policy, failed.failure, &parts.method, replayable, made);
            if !again || !port.budget().try_retry(crate::clock::now()) {
                return failed.give_up();
            }
            endpoint.live.stats.retried();
            tried.push(endpoint.key.clone());
            sleep(backoff(policy, made, fastrand::u64(..))).await;
        }
    }

    /// Makes the request one between sidecars: absolute URI, HTTP/2, and the application's own
    /// protocol noted.
    fn address(&self, parts: &mut Parts) -> Result<(), Failed> {
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
        if parts.version != Version::HTTP_2 {
            let http1 = HeaderValue::from_static("http/1.1");
            parts.headers.insert(WEFT_APP_PROTOCOL, http1);
        }
        parts.version = Version::HTTP_2;
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

/// A failed attempt, with what may come of it.
struct Attempt {
    failure: Failure,
    reason: Reason,
    detail: String,
    /// The request, where it was given back without having been sent.
    unsent: Option<Request<ProxyBody>>,
    body_is_whole: bool,
    /// A response that is an answer, if there is to be no further attempt.
    response: Option<(Response<Incoming>, Slot)>,
}

impl Attempt {
    fn not_connected(error: &DialError) -> Self {
        Self {
            failure: Failure::ConnectFailed,
            reason: error.reason(),
            detail: error.to_string(),
            unsent: None,
            body_is_whole: true,
            response: None,
        }
    }

    fn too_slow(limit: Duration) -> Self {
        Self {
            failure: Failure::PerTryTimeout,
            reason: Reason::PerTryTimeout,
            detail: format!("{limit:?}"),
            unsent: None,
            body_is_whole: false,
            response: None,
        }
    }

    fn give_up(self) -> Result<(Response<Incoming>, Slot), Failed> {
        match self.response {
            Some(answer) => Ok(answer),
            None => Err(Failed {
                reason: self.reason,
                detail: self.detail,
            }),
        }
    }
}

async fn send(
    request: Request<ProxyBody>,
    slot: Slot,
    call: Call,
    record: &mut Record,
    policy: &TrafficPolicy,
) -> Result<(Response<Incoming>, Slot), Attempt> {
    let mut sender = slot.sender();
    let sending = sender.try_send_request(request);
    let sent = match policy.per_try_timeout {
        None => sending.await,
        Some(limit) => match timeout(limit, sending).await {
            Ok(sent) => sent,
            Err(_elapsed) => {
                call.finish(CallClass::Failure, crate::clock::now());
                return Err(Attempt::too_slow(limit));
            }
        },
    };
    let now = crate::clock::now();
    match sent {
        Ok(response) => {
            let status = response.status().as_u16();
            let reason = response.headers().get(WEFT_REASON);
            let reason = reason.and_then(|word| word.to_str().ok()?.parse::<Reason>().ok());
            let failure = match reason {
                // Said by the peer's sidecar: the application has not seen the request.
                Some(
                    Reason::ApplicationUnreachable
                    | Reason::ApplicationLoopbackOnly
                    | Reason::Draining,
                ) => Failure::RefusedStream,
                _ if policy.retry.statuses.contains(&status) => Failure::Status(status),
                _ => {
                    record.reason = reason;
                    record.call = Some(call);
                    return Ok((response, slot));
                }
            };
            // What is repeated is not always the endpoint's failure: 429 and the like are answers.
            let class = if response.status().is_server_error() {
                CallClass::Failure
            } else {
                CallClass::Success
            };
            call.finish(class, now);
            Err(Attempt {
                failure,
                reason: reason.unwrap_or(Reason::UpstreamReset),
                detail: format!("status {status}"),
                unsent: None,
                body_is_whole: false,
                response: Some((response, slot)),
            })
        }
        Err(mut error) => {
            let unsent = error.take_message();
            let source = error.into_error();
            call.finish(CallClass::Failure, now);
            let failure = if unsent.is_some() {
                Failure::NotSent
            } else if is_refused(&source) {
                Failure::RefusedStream
            } else {
                Failure::Reset
            };
            Err(Attempt {
                failure,
                reason: Reason::UpstreamReset,
                detail: describe(&source),
                body_is_whole: unsent.is_some(),
                unsent,
                response: None,
            })
        }
    }
}

fn is_refused(error: &hyper::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = error.source();
    }
    false
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

fn take(parts: &mut Parts) -> Parts {
    let (empty, ()) = Request::new(()).into_parts();
    let method = parts.method.clone();
    let taken = std::mem::replace(parts, empty);
    // What decides about a retry is still asked of it.
    parts.method = method;
    taken
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
    let mut body = ProxyBody::guarded(body, record);
    let has_body = ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&parts.status);
    if let Some(trailers) = trailers
        && has_body
    {
        body.frame(&mut parts.headers, trailers);
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
