//! Connections and streams that stop being HTTP: `CONNECT`, and what was agreed on with `Upgrade`.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::Bytes;
use http::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weft_core::extended_connect::{Handshake, NotSwitched};
use weft_core::resets::TunnelUse;

use super::incoming::h2_error;
use super::tunnel::{Carried, ClientSide};
use crate::abort::Abort;
use crate::tls::Replayed;

/// A connection of any kind.
pub trait Io: AsyncRead + AsyncWrite + Abort + Unpin + Send {}

impl<IO: AsyncRead + AsyncWrite + Abort + Unpin + Send> Io for IO {}

/// A stream of bytes in HTTP/2.
pub(super) struct Stream {
    io: TokioIo<hyper::upgrade::Upgraded>,
    end: StreamEnd,
    /// Whether its other side reads no more.
    unread: bool,
}

/// Ends the sending half of a stream of bytes in HTTP/2 without END_STREAM. hyper knows no reset of a
/// stream that was handed over, and ends one in order that is dropped; but the task that sends for it is
/// run by us, and when that is dropped with the rest of the stream, h2 resets it with CANCEL.
#[derive(Debug, Clone, Default)]
pub struct StreamEnd(CancellationToken);

impl StreamEnd {
    /// Runs the task that sends for the stream.
    pub async fn run<F: Future>(self, sending: F) {
        tokio::select! {
            biased;
            () = self.0.cancelled() => {}
            _ended = sending => {}
        }
    }
}

impl Stream {
    /// A stream that was handed over; `end` runs the task that sends for it.
    pub(super) fn new(stream: hyper::upgrade::Upgraded, end: StreamEnd) -> Self {
        let io = TokioIo::new(stream);
        Self {
            io,
            end,
            unread: false,
        }
    }
}

impl Abort for Stream {
    fn abort(&mut self) {
        self.end.0.cancel();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = &mut *self;
        unless_unread(&mut me.unread, buf.len(), || {
            Pin::new(&mut me.io).poll_write(cx, buf)
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        unless_unread(&mut me.unread, (), || Pin::new(&mut me.io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        unless_unread(&mut me.unread, (), || {
            Pin::new(&mut me.io).poll_shutdown(cx)
        })
    }
}

/// Writes, unless the stream is `unread`: one that was reset with NO_ERROR has not failed, its other
/// side has said everything and reads no more (RFC 9113 section 8.1). What is written to it then goes
/// nowhere. hyper tells the reset once, and fails without a reason after that.
fn unless_unread<T>(
    unread: &mut bool,
    written: T,
    write: impl FnOnce() -> Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    if *unread {
        return Poll::Ready(Ok(written));
    }
    write().map(|result| match result {
        Err(error) if is_unread(&error) => {
            *unread = true;
            Ok(written)
        }
        result => result,
    })
}

fn is_unread(error: &io::Error) -> bool {
    let inner = error.get_ref().map(|inner| inner as &(dyn Error + 'static));
    let reason = inner.and_then(h2_error).and_then(h2::Error::reason);
    reason == Some(h2::Reason::NO_ERROR)
}

/// A message's connection, once it is no longer HTTP.
#[derive(Debug, Clone)]
pub struct Upgrade {
    kind: Kind,
    client: UpgradeClient,
}

/// How the client of an upgrade asked for it.
#[derive(Debug, Clone)]
enum UpgradeClient {
    /// With a request in HTTP/1.1.
    Http1,
    /// With `CONNECT` in HTTP/2.
    Http2Connect,
    /// With an extended `CONNECT` (RFC 8441), which was translated.
    Http2Extended(Arc<Handshake>),
}

#[derive(Debug, Clone)]
enum Kind {
    Hyper(hyper::upgrade::OnUpgrade, StreamEnd),
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
        Self::handed_over(UpgradeClient::Http1)
    }

    /// Of a stream in HTTP/2, which is handed over through the sender; with the handshake of an
    /// extended `CONNECT`.
    pub(super) fn of_stream(handshake: Option<Handshake>) -> (oneshot::Sender<Upgraded>, Self) {
        Self::handed_over(match handshake {
            Some(handshake) => UpgradeClient::Http2Extended(Arc::new(handshake)),
            None => UpgradeClient::Http2Connect,
        })
    }

    fn handed_over(client: UpgradeClient) -> (oneshot::Sender<Upgraded>, Self) {
        let (sender, receiver) = oneshot::channel();
        let kind = Kind::Http1(Arc::new(Mutex::new(Some(receiver))));
        (sender, Self { kind, client })
    }

    /// Whether its client speaks HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        !matches!(self.client, UpgradeClient::Http1)
    }

    /// Makes the server's answer, in HTTP/1.1, what the client is to see.
    pub(crate) fn translate<B>(&self, response: &mut Response<B>) -> Result<(), NotSwitched> {
        match &self.client {
            UpgradeClient::Http1 => Ok(()),
            UpgradeClient::Http2Connect => match response.status() {
                StatusCode::SWITCHING_PROTOCOLS => Err(NotSwitched::Unasked),
                _ => Ok(()),
            },
            UpgradeClient::Http2Extended(handshake) => handshake.end(response),
        }
    }

    /// Takes it from a message, where its connection can be handed over.
    pub fn take(extensions: &mut http::Extensions) -> Option<Self> {
        let own = extensions.remove::<Self>();
        own.or_else(|| {
            let hypers = extensions.remove::<hyper::upgrade::OnUpgrade>()?;
            let end = extensions.remove::<StreamEnd>().unwrap_or_default();
            Some(Self {
                kind: Kind::Hyper(hypers, end),
                client: UpgradeClient::Http1,
            })
        })
    }

    /// Whether a message's connection can be handed over.
    pub fn is_offered(extensions: &http::Extensions) -> bool {
        extensions.get::<Self>().is_some()
            || extensions.get::<hyper::upgrade::OnUpgrade>().is_some()
    }

    /// Waits until the connection is handed over.
    pub async fn upgraded(self) -> Result<Upgraded, UpgradeError> {
        match self.kind {
            Kind::Hyper(upgrade, end) => {
                let stream = Stream::new(upgrade.await?, end);
                // How the server uses it is charged to nobody.
                let (upgraded, _use) = Upgraded::of_client(stream, Bytes::new(), Carried::Stream);
                Ok(upgraded)
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

/// SHA-1, which the handshake of WebSocket is made with (RFC 6455 section 1.3).
pub(crate) fn sha1(bytes: &[u8]) -> [u8; 20] {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes);
    // It has as many bytes.
    digest.as_ref().try_into().unwrap_or_default()
}

/// A connection that was handed over.
pub struct Upgraded {
    stream: Replayed<Box<dyn Io>>,
}

impl Upgraded {
    /// A connection of which these bytes have been read and not used.
    pub fn new(io: impl Io + 'static, first: Bytes) -> Self {
        Self {
            stream: Replayed::new(first, Box::new(io)),
        }
    }

    /// A client's connection, and how it was used once it is dropped.
    pub(super) fn of_client(
        io: impl Io + 'static,
        first: Bytes,
        carried: Carried,
    ) -> (Self, oneshot::Receiver<TunnelUse>) {
        let (side, used) = ClientSide::open(io, carried, !first.is_empty());
        (Self::new(side, first), used)
    }

    /// Makes the end of the connection a reset.
    pub(crate) fn abort(&mut self) {
        self.stream.abort();
    }

    /// The stream: first what had been read of the connection, then itself.
    pub fn stream(&mut self) -> &mut Replayed<Box<dyn Io>> {
        &mut self.stream
    }
}

impl std::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgraded")
            .field("first", &self.stream.first().len())
            .finish_non_exhaustive()
    }
}
