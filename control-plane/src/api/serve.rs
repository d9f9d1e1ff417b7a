//! One connection of the API, whatever it came over.

use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Connections at the same time; others wait to be accepted.
pub(super) const CONNECTIONS_MAX: usize = 128;
/// A client that does not complete a request's head is dropped.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way at the end have this long.
pub(super) const DRAIN: Duration = Duration::from_secs(5);
/// After accept failed, as when descriptors are used up.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a connection to its end, or until `stop` and the request under way then.
pub(super) async fn serve_connection<IO>(stream: IO, router: Router, stop: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "admin connection");
    }
}
