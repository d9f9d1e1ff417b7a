//! Connections and streams that stop being HTTP: `CONNECT`, and what was agreed on with `Upgrade`.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use weft_core::extended_connect::{Handshake, NotSwitched};
use weft_core::resets::TunnelUse;

use super::h2::{Tunnel, TunnelWatch};
use super::tunnel::{Carried, ClientSide};
use crate::abort::Abort;
use crate::tls::Replayed;

/// A connection of any kind.
pub trait Io: AsyncRead + AsyncWrite + Abort + Unpin + Send {}

impl<IO: AsyncRead + AsyncWrite + Abort + Unpin + Send> Io for IO {}

/// A message's connection, once it is no longer HTTP.
#[derive(Debug, Clone)]
pub struct Upgrade {
    handed_over: Arc<Mutex<Option<oneshot::Receiver<Upgraded>>>>,
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

/// The connection is not handed over: it ended before, or the other side did not agree.
#[derive(Debug, thiserror::Error)]
#[error("the connection was not handed over")]
pub struct UpgradeError;

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
        let handed_over = Arc::new(Mutex::new(Some(receiver)));
        let upgrade = Self {
            handed_over,
            client,
        };
        (sender, upgrade)
    }

    /// Of a stream that is handed over already.
    pub(super) fn ready(stream: Tunnel) -> Self {
        let (sender, upgrade) = Self::handed_over(UpgradeClient::Http2Connect);
        let watch = stream.watch();
        let upgraded = Upgraded::new(stream, Bytes::new()).watched(watch);
        let _receiver_is_here = sender.send(upgraded);
        upgrade
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
        extensions.remove::<Self>()
    }

    /// Whether a message's connection can be handed over.
    pub fn is_offered(extensions: &http::Extensions) -> bool {
        extensions.get::<Self>().is_some()
    }

    /// Waits until the connection is handed over.
    pub async fn upgraded(self) -> Result<Upgraded, UpgradeError> {
        let receiver = {
            let handed_over = self.handed_over.lock();
            handed_over.unwrap_or_else(PoisonError::into_inner).take()
        };
        receiver
            .ok_or(UpgradeError)?
            .await
            .map_err(|_dropped| UpgradeError)
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
    /// Tells when it is broken off, where it is a stream in HTTP/2.
    watch: Option<TunnelWatch>,
}

impl Upgraded {
    /// A connection of which these bytes have been read and not used.
    pub fn new(io: impl Io + 'static, first: Bytes) -> Self {
        Self {
            stream: Replayed::new(first, Box::new(io)),
            watch: None,
        }
    }

    /// The same, of a stream.
    fn watched(self, watch: TunnelWatch) -> Self {
        let watch = Some(watch);
        Self { watch, ..self }
    }

    /// A client's stream, and how it was used once it is dropped.
    pub(super) fn of_stream(stream: Tunnel) -> (Self, oneshot::Receiver<TunnelUse>) {
        let watch = stream.watch();
        let (upgraded, used) = Self::of_client(stream, Bytes::new(), Carried::Stream);
        (upgraded.watched(watch), used)
    }

    /// Until the other side breaks it off, also while nothing is read or written. A connection in
    /// HTTP/1.1 tells only when it is.
    pub(crate) fn broken(&mut self) -> impl Future<Output = io::Error> + use<> {
        let watch = self.watch.take();
        async move {
            match watch {
                Some(watch) => watch.await,
                None => std::future::pending().await,
            }
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
