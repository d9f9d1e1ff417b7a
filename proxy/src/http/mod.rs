//! HTTP on both sides: settings shared by every connection, and the answers of the mesh itself.

mod body;
mod record;
pub(crate) mod trace;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};
use hyper::rt::Executor;
use hyper_util::rt::TokioTimer;
use weft_core::headers::WEFT_REASON;
use weft_core::reason::Reason;

pub use body::{BodyGuard, ProxyBody};
pub use record::Record;

/// One stream's window: what a single stalled upload can hold of a shared connection.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Streams on one connection.
pub const STREAMS_MAX: u32 = 256;
/// A connection's window covers every stream's, so that stalled streams stall only themselves.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_MAX;
/// What is buffered for sending, per stream.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Streams that a client cancelled and that are still to be forgotten. Peers are authenticated,
/// and many callers share a connection: a storm of cancellations of one must not end it for all.
const RESETS_MAX: usize = 16 * 1024;
/// A dead peer is noticed within one interval and one timeout.
const PING_INTERVAL: Duration = Duration::from_secs(20);
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

/// A server for HTTP/1.x as every listener uses it.
pub fn http1_server(
    header_read: Duration,
    header_max_bytes: usize,
) -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .auto_date_header(false)
        .half_close(true)
        .pipeline_flush(true)
        .timer(TokioTimer::new())
        .header_read_timeout(header_read)
        // hyper's minimum.
        .max_buf_size(header_max_bytes.max(8192));
    builder
}

/// A server for HTTP/2 as every listener uses it.
pub fn http2_server(header_max_bytes: usize) -> hyper::server::conn::http2::Builder<LocalExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
    builder
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(u32::try_from(header_max_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A client for HTTP/2, towards peers and applications.
pub fn http2_client() -> hyper::client::conn::http2::Builder<LocalExecutor> {
    let mut builder = hyper::client::conn::http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(1024)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A client for HTTP/1.1, towards applications and for upgrades.
pub fn http1_client(header_max_bytes: usize) -> hyper::client::conn::http1::Builder {
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(header_max_bytes.max(8192));
    builder
}

/// Drives a server connection to its end; when the sidecar leaves, it is told to come to one, and
/// cut when the time for that is over.
macro_rules! until_drained {
    ($connection:expr, $drain:expr) => {{
        let mut connection = std::pin::pin!($connection);
        let drain: &$crate::drain::Drain = $drain;
        tokio::select! {
            result = connection.as_mut() => result,
            () = drain.leaving() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = drain.cut() => Ok(()),
                }
            }
        }
    }};
}
pub(crate) use until_drained;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the mesh itself. It says why in `weft-reason`; to gRPC callers as a trailers-only
/// response (gRPC over HTTP/2, "Responses").
pub fn answer<G>(reason: Reason, detail: &str, grpc: bool) -> Response<ProxyBody<G>> {
    let reason_value = HeaderValue::from_static(reason.as_str());
    if grpc {
        let mut response = Response::new(ProxyBody::Empty);
        *response.version_mut() = Version::HTTP_2;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(reason.grpc_code()));
        let message = format!("{}: {detail}", reason.as_str());
        // Visible ASCII only; detail comes from our own error messages.
        if let Ok(message) = HeaderValue::from_str(&message.replace(['\n', '%'], " ")) {
            headers.insert(GRPC_MESSAGE, message);
        }
        headers.insert(WEFT_REASON, reason_value);
        return response;
    }
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

/// Whether a request is gRPC, by its content type.
pub fn is_grpc(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
