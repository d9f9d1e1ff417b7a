//! Connections to control planes that tests make.

use tokio::io::{DuplexStream, duplex};
use tokio::sync::watch;
use tonic::transport::server::Router;

use super::{Line, Lines, line};

/// A connection to a server in this process.
pub(crate) async fn line(server: Router) -> Line {
    let (ours, theirs) = duplex(64 * 1024);
    let incoming = tokio_stream::once(Ok::<DuplexStream, std::io::Error>(theirs));
    tokio::spawn(server.serve_with_incoming(incoming));
    let (line, standing) = line::open(ours).await.unwrap();
    tokio::spawn(standing);
    line
}

/// The connection that stands, as a test says.
pub(crate) fn lines() -> (watch::Sender<Option<Line>>, Lines) {
    let (sender, current) = watch::channel(None);
    (sender, Lines::of(current))
}

/// A connection to a server that says nothing.
pub(crate) async fn silent_line() -> Line {
    let (ours, theirs) = duplex(64 * 1024);
    let (line, standing) = line::open(ours).await.unwrap();
    tokio::spawn(async move {
        let _reason = standing.await;
        drop(theirs);
    });
    line
}
