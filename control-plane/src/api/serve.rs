//! One connection of the API, whatever it came over.

use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at the same time; others wait to be accepted.
pub(super) const CONNECTIONS_MAX: usize = 128;
/// A client that does not complete a request's head is dropped.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are closed at once are logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// Requests under way at the end have this long.
pub(super) const DRAIN: Duration = Duration::from_secs(5);
/// After accept failed, as when descriptors are used up.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves a router on a port until `stop`, without TLS and without authentication.
/// Connections above [`CONNECTIONS_MAX`] are closed at once.
pub(crate) async fn serve_tcp(router: Router, listener: TcpListener, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let (mut closed, mut logged) = (0_u64, None);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if tasks.len() < CONNECTIONS_MAX => {
                tasks.spawn(serve_connection(stream, router.clone(), stop.clone()));
            }
            Ok((_, address)) => {
                closed += 1;
                if logged.is_none_or(|at: Instant| at.elapsed() >= LOG_EVERY) {
                    logged = Some(Instant::now());
                    let limit = CONNECTIONS_MAX;
                    tracing::warn!(%address, limit, closed, "too many connections: closed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tasks.close();
    let _late_ones_are_cut = tokio::time::timeout(DRAIN, tasks.wait()).await;
}

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
