//! Connections that stop being HTTP: `CONNECT`, and what was agreed on with `Upgrade`.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// A connection of any kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> Io for IO {}

/// A message's connection, once it is no longer HTTP.
#[derive(Debug, Clone)]
pub struct Upgrade(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Hyper(hyper::upgrade::OnUpgrade),
    Http1(Arc<Mutex<Option<oneshot::Receiver<Upgraded>>>>),
}

/// The connection is not handed over.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It ended before, or the other side did not agree.
    #[error("the connection was not handed over")]
    NotAgreed,
    /// hyper has it, and its connection failed.
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
}

impl Upgrade {
    /// Of a connection in HTTP/1.1, which is handed over through the sender.
    pub fn pending() -> (oneshot::Sender<Upgraded>, Self) {
        let (sender, receiver) = oneshot::channel();
        let kind = Kind::Http1(Arc::new(Mutex::new(Some(receiver))));
        (sender, Self(kind))
    }

    /// Takes it from a message, where its connection can be handed over.
    pub fn take(extensions: &mut http::Extensions) -> Option<Self> {
        let own = extensions.remove::<Self>();
        own.or_else(|| {
            let hypers = extensions.remove::<hyper::upgrade::OnUpgrade>()?;
            Some(Self(Kind::Hyper(hypers)))
        })
    }

    /// Whether a message's connection can be handed over.
    pub fn is_offered(extensions: &http::Extensions) -> bool {
        extensions.get::<Self>().is_some()
            || extensions.get::<hyper::upgrade::OnUpgrade>().is_some()
    }

    /// Waits until the connection is handed over.
    pub async fn upgraded(self) -> Result<Upgraded, UpgradeError> {
        match self.0 {
            Kind::Hyper(upgrade) => {
                let stream = upgrade.await?;
                Ok(Upgraded::new(TokioIo::new(stream), Bytes::new()))
            }
            Kind::Http1(receiver) => {
                let receiver = {
                    let mut receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
                    receiver.take()
                };
                let receiver = receiver.ok_or(UpgradeError::NotAgreed)?;
                receiver.await.map_err(|_dropped| UpgradeError::NotAgreed)
            }
        }
    }
}

/// A connection that was handed over: first what had been read of it, then itself.
pub struct Upgraded {
    first: Bytes,
    io: Box<dyn Io>,
    /// Dropped with it, where somebody waits for its end.
    _alive: Option<oneshot::Sender<Infallible>>,
}

impl Upgraded {
    /// A connection of which these bytes have been read and not used.
    pub fn new(io: impl Io + 'static, first: Bytes) -> Self {
        Self {
            first,
            io: Box::new(io),
            _alive: None,
        }
    }

    /// The same, and what ends when it is dropped.
    pub fn watched(io: impl Io + 'static, first: Bytes) -> (Self, oneshot::Receiver<Infallible>) {
        let (alive, ended) = oneshot::channel();
        let mut stream = Self::new(io, first);
        stream._alive = Some(alive);
        (stream, ended)
    }
}

impl std::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgraded")
            .field("first", &self.first.len())
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
