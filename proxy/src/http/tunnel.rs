//! The client's side of a tunnel, which takes note of how it is used and how its client ends it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_core::resets::{ClientEnd, TunnelUse};

use crate::abort::Abort;

/// What a tunnel's client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// HTTP/1.1: the tunnel is the client's connection.
    Connection,
    /// HTTP/2: it is a stream.
    Stream,
}

/// A tunnel's bytes from and to its client. Dropped, it reports.
#[derive(Debug)]
pub(super) struct ClientSide<IO> {
    io: IO,
    carried: Carried,
    opened: Instant,
    seen: TunnelUse,
    report: Option<oneshot::Sender<TunnelUse>>,
}

impl<IO> ClientSide<IO> {
    /// A tunnel that is open now; `sent`: bytes of its client have been read already.
    pub(super) fn open(
        io: IO,
        carried: Carried,
        sent: bool,
    ) -> (Self, oneshot::Receiver<TunnelUse>) {
        let (report, reported) = oneshot::channel();
        let side = Self {
            io,
            carried,
            opened: Instant::now(),
            seen: TunnelUse {
                end: None,
                sent,
                answered: false,
            },
            report: Some(report),
        };
        (side, reported)
    }

    /// Its client has ended it. A reset may follow an end in order.
    fn end(&mut self, end: ClientEnd) {
        match (&self.seen.end, end) {
            (None, _) | (Some((ClientEnd::Finished, _)), ClientEnd::Reset) => {
                self.seen.end = Some((end, self.opened.elapsed()));
            }
            (Some(_), _) => {}
        }
    }

    fn note<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = &polled {
            self.end(ClientEnd::Reset);
        }
        polled
    }
}

impl<IO> Drop for ClientSide<IO> {
    fn drop(&mut self) {
        if let Some(report) = self.report.take() {
            let _nobody_waits = report.send(self.seen);
        }
    }
}

impl<IO: Abort + AsyncWrite + Unpin> Abort for ClientSide<IO> {
    fn abort(&mut self) {
        // It may be its client who has broken it off, behind its own end.
        let _noted = self.poll_reset(&mut Context::from_waker(Waker::noop()));
        self.io.abort();
    }
}

impl<IO: AsyncWrite + Unpin> ClientSide<IO> {
    /// An error where a stream was reset, which behind its end only its sending half tells.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.carried == Carried::Stream
            && let Poll::Ready(Err(error)) = Pin::new(&mut self.io).poll_flush(cx)
            && error.kind() == io::ErrorKind::ConnectionReset
        {
            self.end(ClientEnd::Reset);
            return Err(error);
        }
        Ok(())
    }

    /// The end of what is read. A stream may have been reset behind it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.seen.end.is_none() {
            self.poll_reset(cx)?;
        }
        self.end(ClientEnd::Finished);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientSide<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        ready!(self.note(polled))?;
        if buffer.filled().len() > before {
            self.seen.sent = true;
            return Poll::Ready(Ok(()));
        }
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_end(cx)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ClientSide<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        let written = ready!(self.note(polled))?;
        self.seen.answered |= written > 0;
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        let written = ready!(self.note(polled))?;
        self.seen.answered |= written > 0;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.note(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A server that ends its side because the client did has answered nothing.
        self.seen.answered |= self.seen.end.is_none();
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// What is reported of a tunnel over a connection, after both sides did something.
    async fn used(
        act: impl AsyncFnOnce(&mut tokio::io::DuplexStream, &mut ClientSide<tokio::io::DuplexStream>),
    ) -> TunnelUse {
        let (mut client, io) = duplex(64);
        let (mut side, reported) = ClientSide::open(io, Carried::Connection, false);
        act(&mut client, &mut side).await;
        drop(side);
        reported.await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn how_a_tunnel_was_used_is_reported() {
        let mut read = [0; 8];
        let unused = used(async |client, side| {
            client.shutdown().await.unwrap();
            assert_eq!(side.read(&mut read).await.unwrap(), 0);
            // The server ends as well.
            side.shutdown().await.unwrap();
        });
        assert!(unused.await.is_abandoned());
        let answered = used(async |client, side| {
            client.write_all(b"ask").await.unwrap();
            assert_eq!(side.read(&mut read).await.unwrap(), 3);
            side.write_all(b"answer").await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(side.read(&mut read).await.unwrap(), 0);
        });
        let answered = answered.await;
        assert!(answered.sent && answered.answered && !answered.is_abandoned());
        let ended_by_server = used(async |client, side| {
            side.shutdown().await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(side.read(&mut read).await.unwrap(), 0);
        });
        assert!(!ended_by_server.await.is_abandoned());
        let lived = used(async |client, side| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            client.shutdown().await.unwrap();
            assert_eq!(side.read(&mut read).await.unwrap(), 0);
        });
        assert!(!lived.await.is_abandoned());
        // A reset may follow an end in order, also one that is noticed late.
        let reset = used(async |client, side| {
            client.write_all(b"ask").await.unwrap();
            assert_eq!(side.read(&mut read).await.unwrap(), 3);
            client.shutdown().await.unwrap();
            assert_eq!(side.read(&mut read).await.unwrap(), 0);
            side.end(ClientEnd::Reset);
            side.end(ClientEnd::Finished);
        });
        assert!(reset.await.is_abandoned());
        let cut = used(async |_client, _side| {}).await;
        assert_eq!(cut.end, None);
    }
}
