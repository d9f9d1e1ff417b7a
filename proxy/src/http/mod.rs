//! HTTP on both sides: settings shared by every connection, and the answers of the mesh itself.

mod body;
mod incoming;
mod kept;
mod relayed;
mod trailers;
mod upgrade;
mod upload;
mod watch;

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::headers::WEFT_REASON;
use weft_core::reason::Reason;

use crate::config::ProxyConfig;
use crate::drain::Drain;

pub use body::{BodyGuard, ProxyBody, Relayed};
pub use incoming::{BodyError, BodyFault, ExchangeError, Incoming, SendError};
pub use kept::{Kept, KeptBody};
pub(crate) use relayed::{chunks, describe, origin_form, relayed};
pub use trailers::{Trailers, WithTrailers};
pub use upgrade::{Io, Upgrade, UpgradeError, Upgraded};
pub use upload::Upload;
pub use watch::{Activity, Watched};

/// What is buffered for sending, per stream.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Streams that a client cancelled and that are still to be forgotten. Peers are authenticated,
/// and many callers share a connection: a storm of cancellations of one must not end it for all.
const RESETS_MAX: usize = 16 * 1024;
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

/// Both kinds of server connections have these methods, and no trait that says so.
macro_rules! until_drained {
    ($connection:expr, $drain:expr) => {{
        let mut connection = std::pin::pin!($connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = $drain.leaving() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = $drain.cut() => Ok(()),
                }
            }
        }
    }};
}

/// A server for HTTP/1.x as every listener uses it. Without `pipeline_flush`: with it hyper takes
/// all of a response into memory while the client does not read.
fn http1_server(config: &ProxyConfig) -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .auto_date_header(false)
        .half_close(true)
        .timer(TokioTimer::new())
        .max_headers(config.limits.max_headers)
        .max_buf_size(header_buffer(config));
    if config.timeouts.client_idle > Duration::ZERO {
        // hyper counts it from when a head may begin: idle connections end with it as well.
        builder.header_read_timeout(config.timeouts.client_idle);
    }
    builder
}

/// A server for HTTP/2 as every listener uses it.
fn http2_server(config: &ProxyConfig) -> hyper::server::conn::http2::Builder<LocalExecutor> {
    let limits = &config.limits;
    let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
    builder
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window.window())
        .initial_connection_window_size(limits.connection_window.window())
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(limits.max_header_bytes.window())
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(ping(config))
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A client for HTTP/2, towards peers and applications.
pub fn http2_client(config: &ProxyConfig) -> hyper::client::conn::http2::Builder<LocalExecutor> {
    let limits = &config.limits;
    let mut builder = hyper::client::conn::http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window.window())
        .initial_connection_window_size(limits.connection_window.window())
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(1024)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(ping(config))
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Sends a request in HTTP/2; the error gives it back where nothing of it was sent.
pub async fn send_http2(
    sender: &mut hyper::client::conn::http2::SendRequest<ProxyBody>,
    request: Request<ProxyBody>,
) -> Result<Response<Incoming>, SendError> {
    let response = sender.try_send_request(request).await?;
    Ok(response.map(Incoming::from))
}

/// A client for HTTP/1.1, towards applications and for upgrades.
pub fn http1_client(config: &ProxyConfig) -> hyper::client::conn::http1::Builder {
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder
        .max_headers(config.limits.max_headers)
        .max_buf_size(header_buffer(config));
    builder
}

fn header_buffer(config: &ProxyConfig) -> usize {
    // hyper's minimum.
    config.limits.max_header_bytes.bytes().max(8192)
}

/// How long a silent connection waits until it is probed; never where that is switched off.
fn ping(config: &ProxyConfig) -> Option<Duration> {
    let interval = config.timeouts.peer_keepalive;
    (interval > Duration::ZERO).then_some(interval)
}

/// Serves a client's connection to its end. When the sidecar leaves, the connection is told to come
/// to one, and cut when the time for that is over.
pub(crate) async fn serve<IO, H, F, G>(
    io: IO,
    http2: bool,
    config: &ProxyConfig,
    drain: &Drain,
    handle: H,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ProxyBody<G>>> + 'static,
    G: BodyGuard + 'static,
{
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = handle(request.map(Incoming::from));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(io);
    let result = if http2 {
        until_drained!(http2_server(config).serve_connection(io, service), drain)
    } else {
        let connection = http1_server(config).serve_connection(io, service);
        until_drained!(connection.with_upgrades(), drain)
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client's connection ended");
    }
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
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    let message = format!("{}: {detail}", reason.as_str());
    // Visible ASCII only; detail comes from our own error messages.
    if let Ok(message) = HeaderValue::from_str(&message.replace(['\n', '%'], " ")) {
        headers.insert(GRPC_MESSAGE, message);
    }
    headers.insert(WEFT_REASON, HeaderValue::from_static(reason.as_str()));
    response
}
