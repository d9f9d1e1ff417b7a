//! Requests of others to the application.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::header::{
    CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use weft_core::adaptive::Rejected;
use weft_core::headers::{
    WEFT_APP_PROTOCOL, WEFT_CHECK, X_FORWARDED_CLIENT_CERT, is_upgrade, remove_hop_by_hop,
    remove_untrusted,
};
use weft_core::hops::Hops;
use weft_core::model::AppProtocol;
use weft_core::rate::RateLimit;
use weft_core::reason::Reason;
use weft_core::retry::is_idempotent;
use weft_core::route::RequestHead;
use weft_core::timeout as deadline;

use super::{Application, Caller, Http1, dial, key};
use crate::http::trace::begin_server;
use crate::http::{
    CHECK_CONNECTION, ExchangeError, Incoming, ProxyBody, Record, SendError, Trailers, Upgrade,
    WithTrailers, answer, is_grpc, send_http2,
};
use crate::mesh::{Rated, ServerSlot};
use crate::outbound::{chunks, describe, finish_upgrade, origin_form, relayed, send_upgrade};
use crate::telemetry::metrics::{Direction, HttpStats, Wire};
use crate::worker::Worker;

const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Of a request that is refused, a body up to this many bytes is read, for so long at most.
const UNREAD_MAX_BYTES: usize = 64 * 1024;
const UNREAD_MAX_TIME: Duration = Duration::from_secs(1);

/// One connection of a caller.
struct Conversation {
    worker: Rc<Worker>,
    application: Application,
    caller: Option<Caller>,
    stats: Arc<HttpStats>,
    /// What is enforced on the application's port.
    server: Arc<ServerSlot>,
    /// Where responses go in HTTP/1.1.
    trailers: Option<Trailers>,
}

/// Serves a connection; `caller` is who the mesh verified, `None` for the outside.
pub(super) async fn serve<IO>(
    worker: &Rc<Worker>,
    io: IO,
    application: Application,
    caller: Option<Caller>,
    http2: bool,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Arc::clone(&worker.shared);
    let key = key(&application, caller.as_ref().map(|caller| &caller.peer));
    let (io, trailers) = WithTrailers::new(io);
    let conversation = Rc::new(Conversation {
        worker: Rc::clone(worker),
        trailers: (!http2).then_some(trailers),
        stats: shared.metrics.http(key),
        server: shared.mesh.server_port(application.port).await,
        application,
        caller,
    });
    let handle = move |request| {
        let conversation = Rc::clone(&conversation);
        async move { conversation.handle(request).await }
    };
    crate::http::serve(io, http2, &shared.config, &shared.drain, handle).await;
}

impl Conversation {
    async fn handle(
        self: &Rc<Self>,
        mut request: Request<Incoming>,
    ) -> Response<ProxyBody<Box<Record>>> {
        let mut record = Box::new(Record::new(crate::clock::now()));
        record.stats = Some(Arc::clone(&self.stats));
        record.trailers = chunks(&self.trailers, &request);
        record.wire = match self.caller {
            Some(_) => Wire::Mtls,
            None => Wire::Plaintext,
        };
        let upgrade = (request.version() != Version::HTTP_2
            && is_upgrade(request.method(), request.headers()))
        .then(|| Upgrade::take(request.extensions_mut()));
        let (mut parts, body) = request.into_parts();
        let check = self.check(&mut record, &mut parts.headers);
        if check
            .as_ref()
            .is_some_and(|check| check == CHECK_CONNECTION)
        {
            return self.check_connection().await;
        }
        let left = deadline::allowed(&parts.headers, None);
        let http1 = self.prepare(&mut parts, upgrade.is_some());
        if let Some(left) = left {
            // The application may pass it on with what it asks of others.
            deadline::write(left, &mut parts.headers);
        }
        record.grpc = is_grpc(&parts.headers);
        // A health check is no traffic: nobody's limit pays for it.
        let (received, rated) = match check {
            Some(_) => (None, None),
            None => (self.note(&mut record, &mut parts), self.rate(&parts)),
        };
        let grpc = record.grpc;
        let mut body = ProxyBody::of_request(body, received);
        let counts = check.is_none() && upgrade.is_none() && left != Some(Duration::ZERO);
        let refused = self.refusal(&parts, &mut body, (rated.as_ref(), counts), &mut record);
        if let Some(refused) = refused {
            read_short(body).await;
            return refused;
        }
        let request = Request::from_parts(parts, body);
        let result = match upgrade {
            Some(client) => match in_time(left, self.upgrade(request)).await {
                Ok(mut response) => {
                    remove_untrusted(response.headers_mut());
                    tell(rated.as_ref(), &mut response);
                    return finish_upgrade(&self.worker, response, client, record);
                }
                Err(failed) => Err(failed),
            },
            None => in_time(left, self.ask(http1, request)).await,
        };
        match result {
            Ok(mut response) => {
                // The application does not speak for the mesh: the caller's sidecar believes that
                // word and would repeat the request.
                remove_untrusted(response.headers_mut());
                tell(rated.as_ref(), &mut response);
                relayed(response, record, None)
            }
            Err((reason, detail)) => {
                record.on_failure(reason);
                record.reason = Some(reason);
                let mut response = answer(reason, &detail, grpc);
                tell(rated.as_ref(), &mut response);
                record.status = response.status();
                response
            }
        }
    }

    /// What a caller's health check is for, where the request is one. Only a sidecar says so: nobody
    /// else's word reaches this.
    fn check(&self, record: &mut Record, headers: &mut HeaderMap) -> Option<HeaderValue> {
        self.caller.as_ref()?;
        let check = headers.remove(WEFT_CHECK)?;
        // No traffic: it has a metric of its own.
        record.stats = None;
        let totals = self.worker.shared.metrics.totals();
        totals.health_checks_received.inc();
        Some(check)
    }

    /// Begins the span and the line of the access log, where there are such; what is returned counts
    /// the bytes of the request's body.
    fn note(&self, record: &mut Record, parts: &mut Parts) -> Option<Arc<AtomicU64>> {
        let peer = self.peer();
        let shared = &self.worker.shared;
        let service = &self.application.service;
        record.span = begin_server(shared, parts, peer, service);
        let direction = Direction::Inbound;
        record.begin_line(&shared.access_log, direction, parts, service, peer)
    }

    /// Who calls, where the mesh verified it.
    fn peer(&self) -> Option<&str> {
        let caller = self.caller.as_ref();
        caller.map(|caller| caller.peer.identity().as_str())
    }

    /// Whether the application accepts a connection, for a caller's health check.
    async fn check_connection(&self) -> Response<ProxyBody<Box<Record>>> {
        match dial(&self.worker.shared, &self.application).await {
            Ok(_accepted) => Response::new(ProxyBody::Empty),
            Err((reason, detail)) => answer(reason, &detail, false),
        }
    }

    /// What limits on the rate of requests say.
    fn rate(&self, parts: &Parts) -> Option<Rated> {
        let view = self.server.load();
        let caller = self.caller.as_ref().map(|caller| &caller.peer);
        view.as_ref()?.rate(&head(parts), caller)
    }

    /// The answer to what is one request too many: in a while, or at a time, where it counts.
    fn refusal(
        &self,
        parts: &Parts,
        body: &mut ProxyBody,
        (rated, counts): (Option<&Rated>, bool),
        record: &mut Record,
    ) -> Option<Response<ProxyBody<Box<Record>>>> {
        if let Some(rated) = rated
            && let Some(limit) = rated.refusal()
        {
            return Some(refused(rated, limit, record));
        }
        let rejected = counts.then(|| self.enter(parts, body, record))?.err()?;
        Some(overloaded(&rejected, rated, record))
    }

    /// A place among the requests that the application is given at a time, where that is limited.
    fn enter(
        &self,
        parts: &Parts,
        body: &mut ProxyBody,
        record: &mut Record,
    ) -> Result<(), Rejected> {
        let server = self.server.load();
        let shed = server.as_ref().and_then(|view| view.shedding.as_ref());
        let Some(shed) = shed else { return Ok(()) };
        let caller = self.caller.as_ref().map(|caller| &caller.peer);
        let priority = shed.model.priority(caller, &head(parts));
        let place = shed.limit.try_acquire(priority, body.watch_end())?;
        record.concurrency = Some(place);
        Ok(())
    }

    /// What the application is to see; whether it is spoken to in HTTP/1.1.
    fn prepare(&self, parts: &mut Parts, upgrade: bool) -> bool {
        let noted = parts.headers.remove(WEFT_APP_PROTOCOL);
        remove_hop_by_hop(
            &mut parts.headers,
            upgrade && parts.method != Method::CONNECT,
        );
        let hops = Hops::read(&parts.headers);
        remove_untrusted(&mut parts.headers);
        if self.caller.is_some() {
            hops.write(&mut parts.headers);
        }
        // Answered by ourselves: hyper says 100 when the body is asked for.
        parts.headers.remove(EXPECT);
        if let Some(forwarded) = self.caller.as_ref().and_then(|c| c.forwarded.as_ref()) {
            parts
                .headers
                .insert(X_FORWARDED_CLIENT_CERT, forwarded.clone());
        }
        match self.application.protocol {
            AppProtocol::Http => true,
            AppProtocol::Http2 | AppProtocol::Grpc => false,
            AppProtocol::Detect | AppProtocol::Tcp | AppProtocol::Tls => {
                // The application is spoken to in what its caller speaks.
                noted.is_some() || parts.version != Version::HTTP_2
            }
        }
    }

    async fn ask(
        &self,
        http1: bool,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, (Reason, String)> {
        match http1 {
            true => self.http1(request).await,
            false => self.http2(request).await,
        }
    }

    async fn http1(
        &self,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, (Reason, String)> {
        let applications = &self.worker.applications;
        let port = self.application.port;
        let mut request = origin_form(request);
        // A kept connection may be closed by the application in the very moment it is used: what
        // was not sent, or can be repeated without harm, goes over a new one.
        while let Some(mut connection) = applications.idle(port) {
            let again = repeat(&request);
            match connection.send(request).await {
                Ok(response) => {
                    self.keep_when_ready(connection);
                    return Ok(response);
                }
                Err(SendError { unsent, error }) => match (unsent, again) {
                    (Some(unsent), _) => request = *unsent,
                    (None, Some(copy)) => request = copy,
                    (None, None) => return Err(broken(&error)),
                },
            }
        }
        let mut connection = applications.http1(&self.application).await?;
        let response = connection.send(request).await;
        let response = response.map_err(|failed| broken(&failed.error))?;
        self.keep_when_ready(connection);
        Ok(response)
    }

    /// Puts the connection back once the response has been read to its end.
    fn keep_when_ready(&self, mut connection: Http1) {
        let worker = Rc::clone(&self.worker);
        let port = self.application.port;
        if connection.is_ready() {
            return worker.applications.keep(port, connection);
        }
        tokio::task::spawn_local(async move {
            if connection.ready().await {
                worker.applications.keep(port, connection);
            }
        });
    }

    async fn http2(
        &self,
        mut request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, (Reason, String)> {
        let applications = &self.worker.applications;
        *request.version_mut() = Version::HTTP_2;
        for _attempt in 0..2 {
            let mut sender = applications.http2(&self.application).await?;
            match send_http2(&mut sender, request).await {
                Ok(response) => return Ok(response),
                Err(SendError { unsent, error }) => match unsent {
                    Some(unsent) => request = *unsent,
                    None => return Err(broken(&error)),
                },
            }
        }
        Err((
            Reason::UpstreamReset,
            "the application closes every connection".to_owned(),
        ))
    }

    async fn upgrade(
        &self,
        request: Request<ProxyBody>,
    ) -> Result<Response<Incoming>, (Reason, String)> {
        let stream = dial(&self.worker.shared, &self.application).await?;
        let config = &self.worker.shared.config;
        let connect = *request.method() == Method::CONNECT;
        let sent = send_upgrade(TokioIo::new(stream), request, config).await;
        let response = sent.map_err(|failed| (failed.reason, failed.detail))?;
        if connect && response.status().is_success() && has_content(response.headers()) {
            let detail = "the answer to CONNECT has content: no tunnel was opened";
            return Err((Reason::UpgradeFailed, detail.to_owned()));
        }
        Ok(response)
    }
}

/// Whether a response announces content. One to CONNECT that agrees does not (RFC 9110 section 9.3.6):
/// a server that does answers as to any request, and would read the tunnel's bytes as the next one.
fn has_content(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

/// Asks the application, as long as somebody waits for the answer.
async fn in_time(
    left: Option<Duration>,
    asking: impl Future<Output = Result<Response<Incoming>, (Reason, String)>>,
) -> Result<Response<Incoming>, (Reason, String)> {
    let Some(left) = left else {
        return asking.await;
    };
    let late = || {
        let detail = format!("{left:?} were left when it came");
        Err((Reason::DeadlineExceeded, detail))
    };
    if left.is_zero() {
        return late();
    }
    timeout(left, asking)
        .await
        .unwrap_or_else(|_elapsed| late())
}

/// What policies look at.
fn head(parts: &Parts) -> RequestHead<'_> {
    RequestHead {
        method: &parts.method,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
    }
}

/// Reads a short body to its end. An answer in the middle of one costs callers in HTTP/1.1 their
/// connection, which is worth more to both sides than these bytes.
async fn read_short(body: ProxyBody) {
    if body.size_hint().lower() > UNREAD_MAX_BYTES as u64 {
        return;
    }
    let reading = Limited::new(body, UNREAD_MAX_BYTES).collect();
    let _as_far_as_it_came = timeout(UNREAD_MAX_TIME, reading).await;
}

fn tell<B>(rated: Option<&Rated>, response: &mut Response<B>) {
    if let Some(rated) = rated {
        rated.write(response.headers_mut());
    }
}

/// The answer to one request too many.
fn refused(
    rated: &Rated,
    limit: &RateLimit,
    record: &mut Record,
) -> Response<ProxyBody<Box<Record>>> {
    let name = &limit.name;
    let detail = format!("{}/{}, rule {}", name.namespace, name.policy, name.rule);
    record.reason = Some(Reason::RateLimited);
    let mut response = answer(Reason::RateLimited, &detail, record.grpc);
    rated.write(response.headers_mut());
    record.status = response.status();
    response
}

/// The answer to one request at a time too many: when to come back, in HTTP (RFC 9110 section 10.2.3)
/// and for gRPC (gRFC A6, "Server Pushback").
fn overloaded<G>(
    rejected: &Rejected,
    rated: Option<&Rated>,
    record: &mut Record,
) -> Response<ProxyBody<G>> {
    let mut response = answer(Reason::LoadShed, &rejected.to_string(), record.grpc);
    tell(rated, &mut response);
    let headers = response.headers_mut();
    if record.grpc {
        headers.insert(GRPC_PUSHBACK, HeaderValue::from_static("1000"));
    } else {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    record.reason = Some(Reason::LoadShed);
    record.status = response.status();
    response
}

fn repeat(request: &Request<ProxyBody>) -> Option<Request<ProxyBody>> {
    let repeatable = matches!(request.body(), ProxyBody::Empty) && is_idempotent(request.method());
    if !repeatable {
        return None;
    }
    let mut copy = Request::new(ProxyBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn broken(error: &ExchangeError) -> (Reason, String) {
    (error.reason(), describe(error))
}
