//! A connection together with what bounds it, whoever holds the connection by now: an upgraded
//! stream has left the HTTP connection that it began as, and still counts.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::Permit;
use crate::abort::Abort;
use crate::tls::{Signal, StandingPeer};

/// How long a connection is waited for in ways that no request has a timeout for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The first so many bytes from the client have to come within the time: a connection that says
    /// nothing costs memory and a place.
    pub first: Option<(usize, Duration)>,
    /// For a client to read anything of what waits to be written; zero is no limit.
    pub write: Duration,
}

impl Patience {
    /// Nothing is bounded here.
    pub const ENDLESS: Self = Self {
        first: None,
        write: Duration::ZERO,
    };
}

/// A connection that is counted while it is open, and ends when its peer is not vouched for any
/// more.
#[derive(Debug)]
pub struct Guarded<IO> {
    io: IO,
    /// Bytes that have to come, until when.
    first: Option<(usize, Pin<Box<Sleep>>)>,
    write: Duration,
    /// Running while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    standing: Option<StandingPeer>,
    _permit: Option<Permit>,
}

impl<IO> Guarded<IO> {
    /// An accepted connection; `standing` is of one to an authenticated peer.
    pub fn accepted(io: IO, permit: Permit, standing: Option<StandingPeer>) -> Self {
        Self {
            standing,
            _permit: Some(permit),
            ..Self::patient(io, Patience::ENDLESS)
        }
    }

    /// A connection that we made to a peer.
    pub fn dialled(io: IO, standing: StandingPeer) -> Self {
        Self {
            standing: Some(standing),
            ..Self::patient(io, Patience::ENDLESS)
        }
    }

    /// A connection whose client is waited for no longer than that.
    pub fn patient(io: IO, patience: Patience) -> Self {
        let first = patience.first;
        Self {
            io,
            first: first.map(|(bytes, limit)| (bytes, Box::pin(sleep(limit)))),
            write: patience.write,
            stalled: None,
            standing: None,
            _permit: None,
        }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// What ends it, where it is one to an authenticated peer.
    pub fn signal(&self) -> Option<Arc<Signal>> {
        let standing = self.standing.as_ref()?;
        Some(Arc::clone(standing.signal()))
    }

    fn is_cut(&self) -> bool {
        let standing = self.standing.as_ref();
        standing.is_some_and(|standing| standing.signal().is_cut())
    }

    /// Whether the connection is cut while nothing comes or goes.
    fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.standing {
            Some(standing) => standing.signal().poll_cut(cx),
            None => Poll::Pending,
        }
    }

    /// What a write came to: one that waits may do so only for a while.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        if self.poll_cut(cx).is_ready() {
            return Poll::Ready(Err(cut()));
        }
        if self.write.is_zero() {
            return Poll::Pending;
        }
        let limit = self.write;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(late("reads nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<IO: Abort> Abort for Guarded<IO> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_cut() {
            return Poll::Ready(Err(cut()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(read) => {
                if let Some((missing, _)) = &mut this.first {
                    *missing = missing.saturating_sub(buf.filled().len() - before);
                    if *missing == 0 {
                        this.first = None;
                    }
                }
                Poll::Ready(read)
            }
            Poll::Pending => {
                if this.poll_cut(cx).is_ready() {
                    return Poll::Ready(Err(cut()));
                }
                let Some((_, deadline)) = &mut this.first else {
                    return Poll::Pending;
                };
                match deadline.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(late("does not begin"))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut() {
            return Poll::Ready(Err(cut()));
        }
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut() {
            return Poll::Ready(Err(cut()));
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.io).poll_shutdown(cx);
        self.bounded(cx, closed)
    }
}

fn cut() -> io::Error {
    let text = "nothing vouches for the peer any more: its instance was revoked or has expired";
    io::Error::new(io::ErrorKind::ConnectionReset, text)
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the client {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;
    use weft_core::connections::{ConnectionKind, ConnectionLimits};

    use crate::connections::Connections;
    use crate::telemetry::metrics::Metrics;

    fn guarded<IO>(io: IO, patience: Patience) -> (Guarded<Guarded<IO>>, Arc<Connections>) {
        let limits = ConnectionLimits {
            total: 10,
            unidentified: 10,
            plaintext: 10,
            plaintext_per_client: 10,
            per_peer: 10,
        };
        let connections = Connections::new(limits, Metrics::new(1));
        let serving = Arc::<AtomicUsize>::default();
        let kind = ConnectionKind::Application;
        let permit = connections.admit(kind, [10, 0, 0, 1].into(), &serving);
        let open = Guarded::accepted(io, permit.unwrap(), None);
        (Guarded::patient(open, patience), connections)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_begin_is_not_waited_for() {
        let (mut client, server) = duplex(64);
        let patience = Patience {
            first: Some((24, Duration::from_secs(5))),
            write: Duration::ZERO,
        };
        let (mut server, connections) = guarded(server, patience);
        let began = Instant::now();
        client.write_all(b"PRI * HTTP/2").await.unwrap();
        let mut read = [0; 64];
        assert_eq!(server.read(&mut read).await.unwrap(), 12);
        let error = server.read(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        drop(server);
        assert_eq!(connections.outbound(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_begun_may_be_silent() {
        let (mut client, server) = duplex(64);
        let patience = Patience {
            first: Some((3, Duration::from_secs(5))),
            write: Duration::ZERO,
        };
        let (mut server, _connections) = guarded(server, patience);
        client.write_all(b"GET").await.unwrap();
        let mut read = [0; 3];
        server.read_exact(&mut read).await.unwrap();
        let silent = tokio::time::timeout(Duration::from_secs(3600), server.read(&mut read)).await;
        assert!(silent.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_is_not_waited_for() {
        let (mut client, server) = duplex(64);
        let patience = Patience {
            first: None,
            write: Duration::from_secs(30),
        };
        let (mut server, _connections) = guarded(server, patience);
        let began = Instant::now();
        let reading = async {
            // Slow is allowed.
            let mut read = [0; 64];
            sleep(Duration::from_secs(20)).await;
            client.read_exact(&mut read).await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            written = server.write_all(&[7; 200]) => {
                assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
            }
            () = reading => {}
        }
        assert_eq!(began.elapsed(), Duration::from_secs(50));
    }
}
