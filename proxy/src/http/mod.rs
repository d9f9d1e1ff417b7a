//! HTTP on both sides: settings shared by every connection, and the answers of the mesh itself.

mod body;
mod extended;
pub mod h1;
pub mod h2;
mod head;
mod http2_body;
mod incoming;
mod kept;
mod mesh;
mod open;
mod paced;
mod relayed;
mod stall;
mod tunnel;
mod upgrade;
mod upload;
mod watch;

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::headers::{WEFT_REASON, is_grpc};
use weft_core::reason::Reason;

use crate::config::ProxyConfig;
use crate::connections::Patience;
use crate::drain::Ends;
use extended::Tunnel;
pub(crate) use open::{FIRST_REQUEST_WAIT, none_came};
use open::{Held, OpenRequests};

pub use body::{BodyGuard, ProxyBody, Relayed};
use h1::Refusal;
use head::check_head;
pub use head::{Exceeded, HeadLimits};
use http2_body::Http2Body;
pub use incoming::{BodyError, BodyFault, ExchangeError, Incoming, SendError};
pub use kept::{Kept, KeptBody, KeptBudget};
pub(crate) use mesh::{client as mesh_client, probing as mesh_probing, serve as serve_mesh};
pub use paced::Resets;
pub(crate) use paced::{Client, Deposit};
use paced::{Pace, Paced};
pub(crate) use relayed::{describe, relayed};
use stall::StreamExecutor;
pub(crate) use upgrade::sha1;
pub use upgrade::{Io, StreamEnd, Upgrade, UpgradeError, Upgraded};
pub use upload::Upload;
pub use watch::{Activity, Watched};

/// What is buffered for sending, per stream.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Streams of one connection that were reset before they were taken note of, and are still to be
/// forgotten; of a client outside the mesh also those that have ended with an error of their own.
/// What a client may reset is limited by [`weft_core::resets`]: that is reached first, and does not
/// end the connection of a peer, which many callers share.
const RESETS_MAX: usize = 16 * 1024;
/// The client connection preface and the head of the SETTINGS frame that has to follow (RFC 9113
/// section 3.4).
const HTTP2_FIRST_BYTES: usize = 24 + 9;
/// How long the answer to a probe may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs hyper's tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Runs hyper's tasks of a connection from a client. The one that sends for a tunnel is the first that
/// hyper runs after the answer that opens it, in the same turn.
#[derive(Debug, Clone)]
struct ClientTasks {
    executor: StreamExecutor,
    opening: Rc<RefCell<Option<StreamEnd>>>,
}

impl ClientTasks {
    fn over(executor: StreamExecutor) -> Self {
        Self {
            executor,
            opening: Rc::default(),
        }
    }

    /// The tunnel that is opened by the answer that is given next.
    fn opens(&self) -> StreamEnd {
        let end = StreamEnd::default();
        *self.opening.borrow_mut() = Some(end.clone());
        end
    }
}

impl<F> Executor<F> for ClientTasks
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        match self.opening.take() {
            Some(end) => self.executor.execute(end.run(future)),
            None => self.executor.execute(future),
        }
    }
}

/// Whom requests are sent to in HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    /// The application beside this sidecar.
    Application,
    /// A server outside the mesh.
    External,
    /// Another sidecar.
    Peer,
}

/// A server for HTTP/2 as every listener uses it.
fn http2_server(
    config: &ProxyConfig,
    client: &Client,
    tasks: ClientTasks,
) -> hyper::server::conn::http2::Builder<ClientTasks> {
    let limits = &config.limits;
    let mut builder = hyper::server::conn::http2::Builder::new(tasks);
    builder
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window.window())
        .initial_connection_window_size(limits.connection_window.window())
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(header_list(config, client.is_application()))
        .enable_connect_protocol()
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(client.errors_max())
        .keep_alive_interval(ping(config).filter(|_| client.is_probed()))
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A client for HTTP/2. Only peers are probed with PINGs: servers of gRPC end the connection of
/// whoever sends them more than they like (gRFC A8).
pub(crate) fn http2_client<E: Clone>(
    executor: E,
    config: &ProxyConfig,
    server: Server,
) -> hyper::client::conn::http2::Builder<E> {
    let limits = &config.limits;
    let mut builder = hyper::client::conn::http2::Builder::new(executor);
    builder
        // None before the server has said how many it takes.
        .initial_max_send_streams(0)
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window.window())
        .initial_connection_window_size(limits.connection_window.window())
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(header_list(config, server == Server::Application))
        .max_concurrent_reset_streams(1024)
        .max_pending_accept_reset_streams(RESETS_MAX)
        // Counted over a connection's whole life, on which the streams of many callers are.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(ping(config).filter(|_| server == Server::Peer))
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Sends a request in HTTP/2; the error gives it back where nothing of it was sent. A response with
/// a head above `limits` is refused.
pub async fn send_http2(
    sender: &mut hyper::client::conn::http2::SendRequest<ProxyBody>,
    request: Request<ProxyBody>,
    limits: HeadLimits,
) -> Result<Response<Incoming>, SendError> {
    let response = sender.try_send_request(request).await?;
    if let Some(exceeded) = limits.exceeded_by(response.headers(), 0) {
        return Err(SendError {
            unsent: None,
            error: ExchangeError::HeadTooLarge(exceeded),
        });
    }
    let grpc = is_grpc(response.headers());
    Ok(response.map(|body| Incoming::http2(Http2Body::response(body, limits, grpc))))
}

/// Gives a request in HTTP/1.1 what HTTP/2 has in the place of `Host` (RFC 9113 section 8.3.1).
pub(crate) fn make_absolute<B>(request: &mut Request<B>) {
    let host = request.headers_mut().remove(HOST);
    if request.uri().authority().is_some() {
        return;
    }
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if authority.is_some() && parts.path_and_query.is_some() {
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = authority;
    }
    // All parts are there, or the path alone.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// So many times what is accepted of a head is decoded in HTTP/2, and announced
/// (SETTINGS_MAX_HEADER_LIST_SIZE). Trailers that nobody reads stay in memory with their stream, so
/// it is little where the other side is not the workload's own application.
const DECODED_HEADS: usize = 4;
/// The same for the workload's own application, which loses nobody's memory but its own sidecar's.
const DECODED_HEADS_APPLICATION: usize = 16;

/// What is decoded of a head or of trailers in HTTP/2. Much larger than what is accepted ([`HeadLimits`]),
/// so that those that are too large are answered with their reason; h2 itself refuses what is beyond.
fn header_list(config: &ProxyConfig, application: bool) -> u32 {
    let bytes = config.limits.max_header_bytes.bytes();
    let times = match application {
        true => DECODED_HEADS_APPLICATION,
        false => DECODED_HEADS,
    };
    u32::try_from(bytes.saturating_mul(times)).unwrap_or(u32::MAX)
}

/// How long a silent connection waits until it is probed; never where that is switched off.
fn ping(config: &ProxyConfig) -> Option<Duration> {
    let interval = config.timeouts.peer_keepalive;
    (interval > Duration::ZERO).then_some(interval)
}

/// What brings a connection to its end from outside of it.
enum End {
    /// The client is told that it comes to an end.
    Told,
    /// It is over.
    Cut,
}

impl End {
    /// Until the connection has to come to its end.
    async fn of(open: &OpenRequests, config: &ProxyConfig, ends: &Ends<'_>) -> Self {
        tokio::select! {
            () = open.leave(ends) => Self::Told,
            () = open.idle_for(config.timeouts.client_idle) => Self::Told,
            () = ends.cut() => Self::Cut,
        }
    }
}

/// What bounds a client's connection in HTTP/2 below HTTP. The client has to send its preface and a
/// frame's head in the time of a handshake, and to read something while there is something to
/// read: one whose stream stalls still reads its connection, and streams are bounded by themselves
/// (`stall.rs`). HTTP/1 has timeouts of its own.
pub(crate) fn patience(config: &ProxyConfig, http2: bool) -> Patience {
    match http2 {
        true => Patience {
            first: Some((HTTP2_FIRST_BYTES, config.timeouts.handshake)),
            write: config.timeouts.client_stall,
        },
        false => Patience::ENDLESS,
    }
}

/// Serves a client's connection in HTTP/2 to its end. When it has to come to one, the client is
/// told, and cut when the time for that is over.
pub(crate) async fn serve_http2<IO, H, F, R, G>(
    io: IO,
    client: &Client,
    (config, ends): (&ProxyConfig, &Ends<'_>),
    handle: H,
    refuse: R,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ProxyBody<G>>> + 'static,
    R: Fn(Refusal) -> Response<ProxyBody<G>> + 'static,
    G: BodyGuard + 'static,
{
    let limits = HeadLimits::of(config, client.is_peer());
    let pace = Pace::new(client.clone());
    let open = OpenRequests::new();
    // What a peer does not read, its program may read yet.
    let stall = match client.is_peer() {
        true => Duration::ZERO,
        false => config.timeouts.client_stall,
    };
    let executor = StreamExecutor::new(stall);
    let io = TokioIo::new(Paced::new(io, Rc::clone(&pace)));
    let (of_requests, of_service) = (Rc::clone(&pace), Rc::clone(&open));
    let streams = executor.clone();
    let tasks = ClientTasks::over(executor);
    let of_tunnels = tasks.clone();
    let handlers = Rc::new((handle, refuse));
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (pace, held) = (Rc::clone(&of_requests), of_service.begin());
        let reading = streams.begin();
        let handlers = Rc::clone(&handlers);
        let (open, tasks) = (Rc::clone(&of_service), of_tunnels.clone());
        async move {
            let unanswered = pace.begin().await;
            let (handle, refuse) = &*handlers;
            let (response, tunnel) = match received(request, limits, || open.begin()) {
                // On the heap: the task that it becomes part of is moved several times, and one that
                // is reset before it is begun needs no room for it.
                Ok((request, tunnel)) => (Box::pin(handle(request)).await, tunnel),
                Err(refusal) => (refuse(refusal), None),
            };
            unanswered.answered();
            if let Some(tunnel) = tunnel
                && response.status().is_success()
            {
                tunnel.open(pace, tasks.opens());
            }
            Ok::<_, Infallible>(response.map(|body| held.until_end(body, Some(reading))))
        }
    });
    // Looked at only when something of it happens, not with every byte of the connection.
    let mut watch = FuturesUnordered::from_iter([End::of(&open, config, ends)]);
    let connection = http2_server(config, client, tasks).serve_connection(io, service);
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = pace.in_turns(connection.as_mut()) => {
            pace.left();
            result
        }
        Some(end) = watch.next() => match end {
            End::Told => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = pace.in_turns(connection.as_mut()) => result,
                    () = ends.cut() => Ok(()),
                }
            }
            End::Cut => Ok(()),
        }
    };
    pace.end();
    if let Err(error) = result {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// A request of a client in HTTP/2, as the edges in HTTP/1.1 know it, and its stream where it asks
/// for one of bytes. `hold` keeps it open beyond its answer.
fn received(
    mut request: Request<hyper::body::Incoming>,
    limits: HeadLimits,
    hold: impl FnOnce() -> Held,
) -> Result<(Request<Incoming>, Option<Tunnel>), Refusal> {
    check_head(&request, limits)?;
    let tunnel = match *request.method() == Method::CONNECT {
        true => Tunnel::take(&mut request, hold())?,
        false => None,
    };
    let request = request.map(|body| Incoming::http2(Http2Body::request(body, limits)));
    Ok((request, tunnel))
}

/// What [`weft_core::headers::WEFT_CHECK`] says of a check that is for the application.
pub(crate) const CHECK_REQUEST: &str = "request";
/// What it says of one that asks its sidecar whether the application accepts a connection.
pub(crate) const CHECK_CONNECTION: &str = "connection";

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the mesh itself. It says why in `weft-reason`; to gRPC callers as a trailers-only
/// response (gRPC over HTTP/2, "Responses").
pub fn answer<G>(reason: Reason, detail: &str, grpc: bool) -> Response<ProxyBody<G>> {
    if grpc {
        return grpc_answer(reason.grpc_code(), reason, detail);
    }
    let reason_value = HeaderValue::from_static(reason.as_str());
    let text = if detail.is_empty() {
        format!("{}: {}\n", reason.as_str(), reason.description())
    } else {
        format!("{}: {} ({detail})\n", reason.as_str(), reason.description())
    };
    let mut response = Response::new(ProxyBody::text(Bytes::from(text)));
    *response.status_mut() =
        StatusCode::from_u16(reason.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(WEFT_REASON, reason_value);
    response
}

/// A gRPC answer of the mesh itself, with a code of its own.
pub(crate) fn grpc_answer<G>(code: u32, reason: Reason, detail: &str) -> Response<ProxyBody<G>> {
    let mut response = Response::new(ProxyBody::Empty);
    *response.version_mut() = Version::HTTP_2;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    grpc_fields(headers, code, reason, detail);
    headers.insert(WEFT_REASON, HeaderValue::from_static(reason.as_str()));
    response
}

/// The status of a gRPC call, and what it says to people.
fn grpc_fields(headers: &mut http::HeaderMap, code: u32, reason: Reason, detail: &str) {
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    let message = format!("{}: {detail}", reason.as_str());
    // Visible ASCII only; detail comes from our own error messages.
    if let Ok(message) = HeaderValue::from_str(&message.replace(['\n', '%'], " ")) {
        headers.insert(GRPC_MESSAGE, message);
    }
}
