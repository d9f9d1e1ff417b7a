//! The first bytes of a connection: who speaks first, what is spoken, and the watch over what is
//! relayed without being read.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use weft_core::opaque::{OpaqueWatch, Suspicion};
use weft_core::protocol::{DETECT_MAX_BYTES, Verdict, begins_method, detect};

use crate::worker::Worker;

/// Room for what is said first; a larger beginning is read in several steps.
const FIRST_BYTES: usize = 4096;

/// What was said first on two connections that belong together.
#[derive(Debug)]
pub(crate) enum First {
    /// The client's bytes; none where it ended its sending without a word.
    Client(Bytes),
    /// The server's bytes; none where it ended its sending without a word.
    Server(Bytes),
    /// Neither said anything for too long.
    Silence,
}

/// Reads a client's first bytes; `None` where it stays silent for the pause. No bytes are its end.
pub(crate) async fn client_first<IO>(client: &mut IO, pause: Duration) -> io::Result<Option<Bytes>>
where
    IO: AsyncRead + Unpin,
{
    let mut bytes = BytesMut::with_capacity(FIRST_BYTES);
    match timeout(pause, client.read_buf(&mut bytes)).await {
        Ok(read) => read.map(|_length| Some(bytes.freeze())),
        Err(_elapsed) => Ok(None),
    }
}

/// Waits until one of both speaks, for `limit` at most.
pub(crate) async fn first_of<C, S>(
    client: &mut C,
    server: &mut S,
    limit: Duration,
) -> io::Result<First>
where
    C: AsyncRead + Unpin,
    S: AsyncRead + Unpin,
{
    let mut said = BytesMut::with_capacity(FIRST_BYTES);
    let mut answered = BytesMut::with_capacity(FIRST_BYTES);
    let speaking = async {
        tokio::select! {
            biased;
            read = client.read_buf(&mut said) => read.map(|_length| true),
            read = server.read_buf(&mut answered) => read.map(|_length| false),
        }
    };
    match timeout(limit, speaking).await {
        Ok(Ok(true)) => Ok(First::Client(said.freeze())),
        Ok(Ok(false)) => Ok(First::Server(answered.freeze())),
        Ok(Err(error)) => Err(error),
        Err(_elapsed) => Ok(First::Silence),
    }
}

/// Reads just enough after `first` to know the protocol, for `limit` at most; where a request has
/// begun, as long as a handshake may take. What is not known by then is [`Verdict::NeedMore`], and
/// counted.
pub(crate) async fn sniff<IO>(
    worker: &Worker,
    stream: &mut IO,
    first: Bytes,
    limit: Duration,
) -> io::Result<(Verdict, Bytes)>
where
    IO: AsyncRead + Unpin,
{
    let verdict = detect(&first);
    if verdict != Verdict::NeedMore {
        return Ok((verdict, first));
    }
    let mut bytes = BytesMut::from(&*first);
    let config = &worker.shared.config;
    let limit_bytes = config.limits.detect_bytes.bytes().min(DETECT_MAX_BYTES);
    let mut verdict = timeout(limit, decide(stream, &mut bytes, limit_bytes)).await;
    let longer = config.timeouts.handshake.saturating_sub(limit);
    if verdict.is_err() && begins_method(&bytes) && longer > Duration::ZERO {
        verdict = timeout(longer, decide(stream, &mut bytes, limit_bytes)).await;
    }
    let verdict = match verdict {
        Ok(result) => result?,
        Err(_elapsed) => {
            worker.shared.metrics.totals().detection_timeouts.inc();
            Verdict::NeedMore
        }
    };
    Ok((verdict, bytes.freeze()))
}

/// Reads until the bytes are decided, no more of them are looked at, or the stream ends.
async fn decide<IO>(
    stream: &mut IO,
    bytes: &mut BytesMut,
    limit_bytes: usize,
) -> io::Result<Verdict>
where
    IO: AsyncRead + Unpin,
{
    loop {
        let verdict = detect(bytes);
        if verdict != Verdict::NeedMore || bytes.len() >= limit_bytes {
            return Ok(verdict);
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(Verdict::Opaque);
        }
    }
}

/// One side of a relay whose bytes are looked at before they go on, where anything is looked for:
/// reading it fails with the [`Suspicion`].
#[derive(Debug)]
pub(crate) struct Guarded<IO> {
    io: IO,
    side: Side,
    watch: Option<Rc<RefCell<OpaqueWatch>>>,
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Server,
}

/// Both sides of a relay, watched or not.
pub(crate) fn guarded<C, S>(client: C, server: S, watched: bool) -> (Guarded<C>, Guarded<S>) {
    let watch = watched.then(|| Rc::new(RefCell::new(OpaqueWatch::new())));
    let client = Guarded {
        io: client,
        side: Side::Client,
        watch: watch.clone(),
    };
    let server = Guarded {
        io: server,
        side: Side::Server,
        watch,
    };
    (client, server)
}

/// The suspicion that a relay broke for, where it was one.
pub(crate) fn suspicion(error: &io::Error) -> Option<Suspicion> {
    error.get_ref()?.downcast_ref::<Suspicion>().copied()
}

impl<IO> Guarded<IO> {
    /// The connection itself.
    pub(crate) fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let (side, Some(watch)) = (self.side, &self.watch) else {
            return polled;
        };
        let (looked, done) = {
            let mut watch = watch.borrow_mut();
            let read = &buf.filled()[before..];
            let looked = match side {
                Side::Client => watch.client(read),
                Side::Server => watch.server(read),
            };
            (looked, watch.is_done())
        };
        if let Err(suspicion) = looked {
            buf.set_filled(before);
            return Poll::Ready(Err(io::Error::other(suspicion)));
        }
        if done {
            self.watch = None;
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn nothing_of_what_is_suspicious_goes_on() {
        let (mut far, near) = duplex(1 << 12);
        let (mut client, _server) = guarded(near, tokio::io::empty(), true);
        far.write_all(b"\x01 /x y\r\nX-Forwarded-Client-Cert")
            .await
            .unwrap();
        let mut read = vec![0; 100];
        assert_eq!(client.read(&mut read).await.unwrap(), 31);
        far.write_all(b": x\r\n\r\n").await.unwrap();
        for _again in 0..2 {
            let error = client.read(&mut read).await.unwrap_err();
            assert_eq!(suspicion(&error), Some(Suspicion::Identity));
        }
    }

    #[tokio::test]
    async fn a_server_that_speaks_no_http_ends_the_watch() {
        let ((mut far_client, client), (mut far_server, server)) = (duplex(64), duplex(64));
        let (mut client, mut server) = guarded(client, server, true);
        let mut read = [0; 100];
        far_server.write_all(b"220 mail\r\n").await.unwrap();
        assert_eq!(server.read(&mut read).await.unwrap(), 10);
        far_client.write_all(b"EHLO a\r\n").await.unwrap();
        assert_eq!(client.read(&mut read).await.unwrap(), 8);
        assert!(client.watch.is_none());
        far_client
            .write_all(b"\r\nX-Forwarded-Client-Cert: x\r\n")
            .await
            .unwrap();
        assert_eq!(client.read(&mut read).await.unwrap(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn who_speaks_first() {
        let ((mut far_client, mut client), (mut far_server, mut server)) = (duplex(64), duplex(64));
        let limit = Duration::from_secs(1);
        assert!(client_first(&mut client, limit).await.unwrap().is_none());
        let first = first_of(&mut client, &mut server, limit).await.unwrap();
        assert!(matches!(first, First::Silence), "{first:?}");
        far_server.write_all(b"a").await.unwrap();
        let first = first_of(&mut client, &mut server, limit).await.unwrap();
        assert!(
            matches!(&first, First::Server(said) if &**said == b"a"),
            "{first:?}"
        );
        far_client.write_all(b"b").await.unwrap();
        let first = first_of(&mut client, &mut server, limit).await.unwrap();
        assert!(
            matches!(&first, First::Client(said) if &**said == b"b"),
            "{first:?}"
        );
        far_client.shutdown().await.unwrap();
        let first = client_first(&mut client, limit).await.unwrap();
        assert!(first.is_some_and(|said| said.is_empty()));
    }
}
