//! The first bytes of an accepted connection: a sidecar's ClientHello, or something to replay.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustls::server::{Accepted, Acceptor};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{StartHandshake, client, server};
use webpki::KeyUsage;
use weft_core::peer::VerifiedPeer;
use weft_core::protocol::{Verdict, detect};

use super::verify::verify_peer;
use super::{ALPN_H1, ALPN_H2, ALPN_PREFIX, ALPN_TCP, Material, PeerError, in_words};
use crate::abort::Abort;

/// Longest ClientHello that is read; a post-quantum one has about 1.7 KiB.
const CLIENT_HELLO_MAX_BYTES: usize = 64 * 1024;

/// What an accepted connection turned out to be.
#[derive(Debug)]
pub enum Opened {
    /// Another sidecar, with requests as HTTP/2 streams. A stream in TLS is on the heap, since every
    /// future that it goes through holds it.
    MeshH2(Box<server::TlsStream<TcpStream>>, VerifiedPeer),
    /// Another sidecar, with one HTTP/1.1 exchange that may turn into a byte stream.
    MeshH1(Box<server::TlsStream<TcpStream>>, VerifiedPeer),
    /// Another sidecar, with opaque bytes.
    MeshTcp(Box<server::TlsStream<TcpStream>>, VerifiedPeer),
    /// Not mesh traffic: the application's own TLS, plaintext, or silence.
    Outside(Replayed<TcpStream>),
}

/// Why an accepted connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The connection broke.
    #[error("reading the first bytes: {}", in_words(.0))]
    Io(io::Error),
    /// The handshake took too long.
    #[error("the TLS handshake took longer than {0:?}")]
    Timeout(Duration),
    /// The peer is not believed.
    #[error(transparent)]
    Peer(#[from] PeerError),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        match PeerError::of_handshake(&error) {
            Some(peer) => Self::Peer(peer),
            None => Self::Io(error),
        }
    }
}

/// Looks at the first bytes and, when they are a sidecar's ClientHello, completes the handshake within
/// `handshake`.
pub async fn open(
    io: TcpStream,
    first: Bytes,
    material: &Arc<Material>,
    handshake: Duration,
) -> Result<Opened, OpenError> {
    // 0x16 is a TLS handshake record (RFC 8446 section 5.1).
    if first.first() != Some(&0x16) {
        return Ok(Opened::Outside(Replayed::new(first, io)));
    }
    let shake = complete(io, BytesMut::from(&*first), material);
    match timeout(handshake, shake).await {
        Ok(result) => result,
        Err(_elapsed) => Err(OpenError::Timeout(handshake)),
    }
}

async fn complete(
    mut io: TcpStream,
    mut bytes: BytesMut,
    material: &Arc<Material>,
) -> Result<Opened, OpenError> {
    let Some(accepted) = read_hello(&mut io, &mut bytes).await? else {
        return Ok(Opened::Outside(Replayed::new(bytes.freeze(), io)));
    };
    let offers_mesh = accepted
        .client_hello()
        .alpn()
        .is_some_and(|mut names| names.any(|name| name.starts_with(ALPN_PREFIX)));
    if !offers_mesh {
        return Ok(Opened::Outside(Replayed::new(bytes.freeze(), io)));
    }
    let stream = StartHandshake::from_parts(accepted, io)
        .into_stream(Arc::clone(&material.server))
        .await?;
    let connection = stream.get_ref().1;
    let peer = verify_peer(
        connection.peer_certificates(),
        KeyUsage::client_auth(),
        &material.trust,
        UnixTime::now(),
    )?;
    match connection.alpn_protocol() {
        Some(ALPN_H2) => Ok(Opened::MeshH2(Box::new(stream), peer)),
        Some(ALPN_H1) => Ok(Opened::MeshH1(Box::new(stream), peer)),
        Some(ALPN_TCP) => Ok(Opened::MeshTcp(Box::new(stream), peer)),
        // rustls has refused a handshake without a common name; nothing else is configured.
        Some(_) | None => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    }
}

/// What a connection's first bytes say about the host that it is for.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerName {
    /// The ClientHello names this host (RFC 6066 section 3).
    Host(Box<str>),
    /// The ClientHello names no host, or the first bytes are none.
    Unnamed,
    /// The ClientHello was not complete in time: after this long, nothing or not enough had come.
    Late(Duration),
}

/// Reads a connection's ClientHello: its first byte is waited for `first` at most, the rest then for
/// `rest`. What was read stays to be read.
pub async fn read_server_name<IO: AsyncRead + Unpin>(
    mut io: IO,
    first: Duration,
    rest: Duration,
) -> io::Result<(Replayed<IO>, ServerName)> {
    let mut bytes = BytesMut::with_capacity(4096);
    let name = match timeout(first, io.read_buf(&mut bytes)).await {
        Err(_elapsed) => ServerName::Late(first),
        Ok(Err(error)) => return Err(error),
        Ok(Ok(0)) => ServerName::Unnamed,
        Ok(Ok(_length)) => match timeout(rest, read_hello(&mut io, &mut bytes)).await {
            Err(_elapsed) => ServerName::Late(rest),
            Ok(hello) => {
                let name = hello?.and_then(|it| Some(it.client_hello().server_name()?.into()));
                name.map_or(ServerName::Unnamed, ServerName::Host)
            }
        },
    };
    Ok((Replayed::new(bytes.freeze(), io), name))
}

/// Reads until a ClientHello is complete; `None` where these bytes begin none. Everything read is
/// in `bytes`.
async fn read_hello<IO: AsyncRead + Unpin>(
    io: &mut IO,
    bytes: &mut BytesMut,
) -> io::Result<Option<Accepted>> {
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        let mut rest = Cursor::new(&bytes[fed..]);
        while rest.has_remaining() {
            acceptor.read_tls(&mut rest)?;
        }
        fed = bytes.len();
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Some(accepted)),
            Ok(None) if bytes.len() < CLIENT_HELLO_MAX_BYTES => {
                if io.read_buf(bytes).await? == 0 {
                    return Ok(None);
                }
            }
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

/// Who answered on a client connection; to be called after every handshake.
pub fn peer_of_client(
    stream: &client::TlsStream<TcpStream>,
    material: &Material,
) -> Result<VerifiedPeer, PeerError> {
    verify_peer(
        stream.get_ref().1.peer_certificates(),
        KeyUsage::server_auth(),
        &material.trust,
        UnixTime::now(),
    )
}

/// A connection whose first bytes have been read already.
#[derive(Debug)]
pub struct Replayed<IO> {
    first: Bytes,
    io: IO,
}

impl<IO> Replayed<IO> {
    /// `first` comes before whatever `io` has yet to give.
    pub fn new(first: Bytes, io: IO) -> Self {
        Self { first, io }
    }

    /// What has been read already.
    pub fn first(&self) -> &Bytes {
        &self.first
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// Both parts.
    pub fn into_parts(self) -> (Bytes, IO) {
        (self.first, self.io)
    }
}

impl<IO: AsyncRead + Unpin> Replayed<IO> {
    /// Reads until it is clear whether this is HTTP/2 with prior knowledge; what was read stays to
    /// be read.
    pub async fn read_preface(&mut self) -> io::Result<bool> {
        let mut bytes = BytesMut::from(&*self.first);
        loop {
            let verdict = detect(&bytes);
            let prefix = &bytes[..bytes.len().min(6)];
            if verdict != Verdict::NeedMore || !b"PRI * ".starts_with(prefix) {
                self.first = bytes.freeze();
                return Ok(verdict == Verdict::Http2);
            }
            if self.io.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<IO: Abort> Abort for Replayed<IO> {
    fn abort(&mut self) {
        self.io.abort();
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Replayed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Replayed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};
    use tokio::time::sleep;

    use super::*;

    const FIRST: Duration = Duration::from_secs(50);
    const REST: Duration = Duration::from_secs(5);

    /// A ClientHello of rustls for a host.
    fn hello(host: &'static str) -> Vec<u8> {
        let config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = host.try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// What is read of a client that sends these pieces, each after a pause.
    async fn read(pieces: Vec<(Duration, Vec<u8>)>) -> (Vec<u8>, ServerName) {
        let (mut client, server) = duplex(1 << 16);
        let client = tokio::spawn(async move {
            for (pause, piece) in pieces {
                sleep(pause).await;
                client.write_all(&piece).await.unwrap();
            }
            sleep(FIRST * 2).await;
        });
        let (replayed, name) = read_server_name(server, FIRST, REST).await.unwrap();
        client.abort();
        (replayed.first().to_vec(), name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_hello_may_be_late_and_in_pieces() {
        let whole = hello("shop.example.com");
        let named = || ServerName::Host("shop.example.com".into());
        let (begin, end) = whole.split_at(100);
        let seconds = Duration::from_secs;
        for pieces in [
            vec![(seconds(0), whole.clone())],
            vec![(seconds(49), whole.clone())],
            vec![(seconds(49), begin.to_vec()), (seconds(4), end.to_vec())],
        ] {
            assert_eq!(read(pieces).await, (whole.clone(), named()));
        }
        let late = read(vec![(seconds(1), begin.to_vec())]).await;
        assert_eq!(late, (begin.to_vec(), ServerName::Late(REST)));
        assert_eq!(read(vec![]).await, (vec![], ServerName::Late(FIRST)));
        let other = read(vec![(seconds(1), b"GET / HTTP/1.1\r\n\r\n".to_vec())]).await;
        assert_eq!(other.1, ServerName::Unnamed);
    }
}
