//! One HTTP/2 connection, as calls of gRPC use it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tonic::body::Body;
use tower::Service;

/// The name under which every control plane is asked.
pub(super) const HOST: &str = "control-plane.weft";
/// A dead control plane is noticed after one interval and one timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The call that a new connection is proved with; every answer to it will do.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// One gRPC message without fields.
const EMPTY_MESSAGE: &[u8] = &[0; 5];
/// How long it may take.
const PROVED_TIMEOUT: Duration = Duration::from_secs(5);
/// What one stream, and all together, may have sent that was not read yet, bytes. The connection
/// has room for every stream of a sidecar, so that one that is not read does not stop the others.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;

/// A handle of a connection. The connection ends with the last one and the streams on it; a handle
/// of a connection that has ended refuses calls.
#[derive(Debug, Clone)]
pub struct Line {
    sender: SendRequest<Body>,
}

/// Begins HTTP/2. With the handle comes what has to be driven; it returns, with the reason, when no
/// stream can be opened any more, while those that are open may go on.
pub(super) async fn open<S>(
    stream: S,
) -> Result<(Line, impl Future<Output = String> + Send + use<S>), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let standing = async move {
        match connection.await {
            Ok(()) => "the connection has ended".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    Ok((Line { sender }, standing))
}

impl Line {
    /// Waits until the other side has answered a call on this connection; `Err` says why it has not.
    pub(super) async fn proved(&self) -> Result<(), String> {
        let mut request = Request::new(Body::new(Full::new(Bytes::from_static(EMPTY_MESSAGE))));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(HEALTH_CHECK);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let mut line = self.clone();
        let answer = async {
            poll_fn(|context| line.poll_ready(context)).await?;
            line.call(request).await
        };
        match timeout(PROVED_TIMEOUT, answer).await {
            Ok(Ok(_any)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err(format!("no answer within {PROVED_TIMEOUT:?}")),
        }
    }
}

impl Service<Request<Body>> for Line {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // A generated client knows the path only.
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(Authority::from_static(HOST));
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        Box::pin(self.sender.send_request(request))
    }
}

#[cfg(test)]
mod tests;
