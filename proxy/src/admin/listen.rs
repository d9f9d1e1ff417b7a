//! Listeners of the admin server: TCP, and Unix sockets that only their owner can open.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Sleep;

/// Connections that wait in the kernel.
const BACKLOG: i32 = 128;

/// How long a client may leave a response unread.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// A bound socket. A Unix socket's file goes when this is dropped.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: PathBuf,
    },
}

/// Binds `address`; needs a tokio runtime. A socket on `[::]` takes IPv4 too, and is one on
/// `0.0.0.0` where there is no IPv6. The address in an error is part of its message.
pub fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let bound = match bind(address) {
        Err(_) if address.ip() == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) && !has_ipv6() => {
            bind(SocketAddr::new(
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                address.port(),
            ))
        }
        bound => bound,
    };
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    let listener = TcpListener::from_std(bound.map_err(named)?).map_err(named)?;
    Ok(Listener(Kind::Tcp(listener)))
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn has_ipv6() -> bool {
    let loopback = SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 0);
    std::net::TcpListener::bind(loopback).is_ok()
}

/// Binds a Unix socket at `path`, mode 0600; needs a tokio runtime. What a killed predecessor left
/// there is replaced.
pub fn bind_unix(path: &Path) -> io::Result<Listener> {
    let named = |error: io::Error| {
        let message = format!("{}: {error}", path.display());
        io::Error::new(error.kind(), message)
    };
    // Bound under another name and moved, so that nobody meets it with other permissions.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    if fs::symlink_metadata(path).is_ok_and(|there| !is_socket(&there)) {
        let error = io::Error::new(
            io::ErrorKind::AlreadyExists,
            "is there and not a socket; it is not replaced",
        );
        return Err(named(error));
    }
    let listener = UnixListener::bind(&fresh).map_err(named)?;
    let placed = fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = placed {
        fs::remove_file(&fresh).ok();
        return Err(named(error));
    }
    Ok(Listener(Kind::Unix {
        listener,
        path: path.to_owned(),
    }))
}

fn is_socket(metadata: &fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type())
}

impl Listener {
    /// Where it listens; none for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix { .. } => None,
        }
    }

    /// A connection, and its address unless it is over a Unix socket.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        let (socket, address) = match &self.0 {
            Kind::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                (AnyStream::Tcp(stream), Some(address.ip()))
            }
            Kind::Unix { listener, .. } => (AnyStream::Unix(listener.accept().await?.0), None),
        };
        let stream = Stream {
            socket,
            patience: WRITE_STALL,
            stalled: None,
        };
        Ok((stream, address))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix { path, .. } = &self.0 {
            fs::remove_file(path).ok();
        }
    }
}

/// An accepted connection, which fails when its client does not read for so long.
#[derive(Debug)]
pub(super) struct Stream {
    socket: AnyStream,
    patience: Duration,
    /// Runs while a write waits for the client.
    stalled: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum AnyStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            AnyStream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            AnyStream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.socket {
            AnyStream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            AnyStream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        if written.is_ready() {
            this.stalled = None;
            return written;
        }
        let patience = this.patience;
        let stalled = this
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        std::task::ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            AnyStream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            AnyStream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            AnyStream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            AnyStream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut stream = Stream {
            socket: AnyStream::Unix(near),
            patience: Duration::from_millis(20),
            stalled: None,
        };
        let everything = vec![0; 16 << 20];
        let error = stream.write_all(&everything).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
