//! Connections and streams that end so that the other side sees that they broke.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::{client, server};
use tokio_util::either::Either;

/// A connection that can end otherwise than in order.
pub trait Abort {
    /// Makes what follows when it is dropped a reset: RST of the TCP connection, RST_STREAM of an HTTP/2
    /// stream. An orderly end would make what was cut short look whole.
    fn abort(&mut self);
}

/// Makes the peer see a reset rather than an orderly end.
pub fn reset(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "SO_LINGER not set");
    }
}

impl Abort for TcpStream {
    fn abort(&mut self) {
        reset(self);
    }
}

impl<IO: Abort> Abort for client::TlsStream<IO> {
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}

impl<IO: Abort> Abort for server::TlsStream<IO> {
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}

impl<A: Abort, B: Abort> Abort for Either<A, B> {
    fn abort(&mut self) {
        match self {
            Self::Left(io) => io.abort(),
            Self::Right(io) => io.abort(),
        }
    }
}

impl<IO: Abort + ?Sized> Abort for Box<IO> {
    fn abort(&mut self) {
        (**self).abort();
    }
}

#[cfg(test)]
impl Abort for tokio::io::DuplexStream {
    fn abort(&mut self) {}
}
