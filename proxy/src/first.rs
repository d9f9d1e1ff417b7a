//! The first bytes of a connection: who speaks first, and what is spoken.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;
use weft_core::protocol::{DETECT_MAX_BYTES, Verdict, begins_method, detect};

use crate::buffers::{self, Size};
use crate::worker::Worker;

/// Room for what is said first; a larger beginning is read in several steps.
const FIRST_SIZE: Size = Size::SMALLEST;

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
    match timeout(pause, poll_fn(|cx| poll_said(cx, client))).await {
        Ok(said) => said.map(Some),
        Err(_elapsed) => Ok(None),
    }
}

/// What is said next; nothing at the end. While nothing comes, no buffer is held.
fn poll_said<IO>(cx: &mut Context<'_>, io: &mut IO) -> Poll<io::Result<Bytes>>
where
    IO: AsyncRead + Unpin,
{
    let mut buffer = buffers::take(FIRST_SIZE);
    let read = poll_read_buf(Pin::new(io), cx, &mut buffer);
    let said = read.map_ok(|_length| Bytes::copy_from_slice(&buffer));
    buffers::give(buffer, FIRST_SIZE);
    said
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
    let speaking = poll_fn(|cx| {
        if let Poll::Ready(said) = poll_said(cx, client) {
            return Poll::Ready(said.map(First::Client));
        }
        poll_said(cx, server).map_ok(First::Server)
    });
    match timeout(limit, speaking).await {
        Ok(first) => first,
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt as _, duplex};

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
