//! One connection: its bytes, counted, and its place.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::budget::ANONYMOUS_RECEIVED_MAX_BYTES;
use crate::peer::PeerIdentity;
use crate::peers::{AnonymousPlace, PeerConnection};
use crate::tls::peer_of;

/// In whose budget a connection is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// In that of its source address.
    Anonymous(Arc<AnonymousPlace>),
    /// In that of its instance, or of its operator.
    Peer(Arc<PeerConnection>),
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    address: SocketAddr,
    place: Place,
    /// Bytes received without having proved who it is.
    anonymous_received: u64,
    /// Nothing is read before.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        place: AnonymousPlace,
    ) -> Self {
        Self {
            stream,
            address,
            place: Place::Anonymous(Arc::new(place)),
            anonymous_received: 0,
            pause: None,
        }
    }

    /// The certificate that the client showed, verified in this connection's handshake.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.stream.get_ref().1.peer_certificates()?.first()
    }

    /// Which instance it is, by that certificate.
    pub fn peer(&self) -> Option<PeerIdentity> {
        self.certificate().and_then(peer_of)
    }

    /// Where it comes from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Fires when it has to give up its place to another one that has not proved who it is either.
    pub fn anonymous_cut(&self) -> CancellationToken {
        match &self.place {
            Place::Anonymous(place) => place.cut().clone(),
            Place::Peer(_) => CancellationToken::new(),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// From now on it counts as one of an instance, or of an operator.
    pub fn belongs_to(&mut self, connection: Arc<PeerConnection>) {
        self.place = Place::Peer(connection);
    }

    /// Charges bytes that were read; how long nothing more is read.
    fn charge(&mut self, bytes: usize) -> io::Result<Duration> {
        let bytes = bytes as u64;
        match &self.place {
            Place::Peer(peer) => Ok(peer.charge_received(bytes)),
            Place::Anonymous(_) => {
                self.anonymous_received += bytes;
                if self.anonymous_received > ANONYMOUS_RECEIVED_MAX_BYTES {
                    let text = format!(
                        "more than {ANONYMOUS_RECEIVED_MAX_BYTES} bytes without a certificate"
                    );
                    return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
                }
                Ok(Duration::ZERO)
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let wait = self.charge(buf.filled().len() - before)?;
        if !wait.is_zero() {
            self.pause = Some(Box::pin(tokio::time::sleep(wait)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
