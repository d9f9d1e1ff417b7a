//! Bytes both ways, with half-close, until both sides have ended.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use tokio_util::io::poll_read_buf;
use weft_core::opaque::{OpaqueWatch, Suspicion};

use crate::buffers::{self, Size};
use crate::config::ProxyConfig;
use crate::drain::Ends;

/// What a direction begins with when bytes come: a whole record of TLS.
const SIZE_FIRST: Size = Size::KIB_16;

/// What `0s` stands for; tokio's timers reach no further.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// What went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes from the first to the second.
    pub forward: u64,
    /// Bytes from the second to the first.
    pub backward: u64,
}

/// What a relay keeps to.
#[derive(Debug)]
pub struct Terms<'a> {
    /// The sidecar's own limits.
    pub config: &'a ProxyConfig,
    /// What cuts it. A relay does not read from a side while it cannot write to the other, so the
    /// connections alone would not notice.
    pub ends: &'a Ends<'a>,
    /// How long nothing may move; `None` is `timeouts.tcp_idle`.
    pub idle: Option<Duration>,
    /// What is looked for in bytes before they go on, where the first side is a client and the second
    /// a server that may be one of HTTP.
    pub watch: Option<OpaqueWatch>,
}

/// How a relay ended.
#[derive(Debug)]
pub enum Ended {
    /// Both sides said that they are done.
    Clean,
    /// Nothing moved for the idle time.
    Idle,
    /// One side broke: the other has to see a reset, not an orderly end.
    Broken(io::Error),
    /// What came is not to go on: both sides have to see a reset.
    Suspicious(Suspicion),
    /// It was cut, as [`Terms::ends`] says.
    Cut,
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Suspicion> for Ended {
    fn from(suspicion: Suspicion) -> Self {
        Self::Suspicious(suspicion)
    }
}

/// Copies both ways between `a` and `b`. When one side ends its sending, the other is told and may
/// go on answering. Ends when both have, when one breaks, or as `terms` say.
pub async fn relay<A, B>(a: &mut A, b: &mut B, terms: Terms<'_>) -> (Moved, Ended)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    relay_unless(a, b, terms, pending()).await
}

/// Like [`relay`], which ends also when `broken` tells that a side is: one that has ended its sending, or
/// whose bytes are not taken, is not read, so that it does not tell by itself.
pub async fn relay_unless<A, B>(
    a: &mut A,
    b: &mut B,
    terms: Terms<'_>,
    broken: impl Future<Output = io::Error>,
) -> (Moved, Ended)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let Terms {
        config,
        ends,
        idle,
        mut watch,
    } = terms;
    let idle = match idle.unwrap_or(config.timeouts.tcp_idle) {
        Duration::ZERO => NO_LIMIT,
        idle => idle,
    };
    let size_max = Size::at_most(config.limits.relay_buffer.bytes());
    let mut forward = Direction::new(size_max);
    let mut backward = Direction::new(size_max);
    let (mut seen, mut quiet_since) = (0, Instant::now());
    let mut watchdog = std::pin::pin!(sleep_until(quiet_since + idle));
    let mut cut = std::pin::pin!(ends.cut());
    let mut broken = std::pin::pin!(broken);
    let ended = poll_fn(|cx| {
        loop {
            let directions = (&mut forward, &mut backward);
            match move_on(cx, directions, (&mut *a, &mut *b), &mut watch) {
                Ok(Poll::Ready(())) => return Poll::Ready(Ended::Clean),
                Ok(Poll::Pending) => {}
                Err(ended) => return Poll::Ready(ended),
            }
            if let Poll::Ready(error) = broken.as_mut().poll(cx) {
                return Poll::Ready(error.into());
            }
            if cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ended::Cut);
            }
            let moved = forward.moved + backward.moved;
            if moved != seen {
                // The clock is read for what moves, the timer is set when it has run out.
                seen = moved;
                quiet_since = Instant::now();
            }
            ready!(watchdog.as_mut().poll(cx));
            if quiet_since.elapsed() >= idle {
                return Poll::Ready(Ended::Idle);
            }
            watchdog.as_mut().reset(quiet_since + idle);
        }
    })
    .await;
    let moved = Moved {
        forward: forward.moved,
        backward: backward.moved,
    };
    (moved, ended)
}

/// Moves what may be in both directions; ready when both have ended.
fn move_on<A, B>(
    cx: &mut Context<'_>,
    (forward, backward): (&mut Direction, &mut Direction),
    (a, b): (&mut A, &mut B),
    watch: &mut Option<OpaqueWatch>,
) -> Result<Poll<()>, Ended>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let client = |bytes: &[u8]| look(watch, OpaqueWatch::client, bytes);
    let there = forward.poll(cx, a, b, client)?;
    let server = |bytes: &[u8]| look(watch, OpaqueWatch::server, bytes);
    let back = backward.poll(cx, b, a, server)?;
    Ok(match there.is_ready() && back.is_ready() {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
}

/// Looks at bytes of one side, as long as anything is looked for.
fn look(
    watch: &mut Option<OpaqueWatch>,
    side: fn(&mut OpaqueWatch, &[u8]) -> Result<(), Suspicion>,
    bytes: &[u8],
) -> Result<(), Suspicion> {
    let Some(looking) = watch else {
        return Ok(());
    };
    side(looking, bytes)?;
    if looking.is_done() {
        *watch = None;
    }
    Ok(())
}

struct Direction {
    /// Holds room only while something is in it.
    buffer: BytesMut,
    /// How much of it has been written.
    written: usize,
    /// How much room the next buffer has.
    size: Size,
    /// A busy one grows to this, so that bulk needs few system calls.
    size_max: Size,
    state: State,
    /// How the source broke behind what is in the buffer: a socket tells an error once, and then an end.
    failed: Option<io::Error>,
    unflushed: bool,
    moved: u64,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Copying,
    /// The source has ended; the rest is written, then the sink is told.
    Ending,
    Done,
}

impl Direction {
    fn new(size_max: Size) -> Self {
        Self {
            buffer: BytesMut::new(),
            written: 0,
            size: SIZE_FIRST.min(size_max),
            size_max,
            state: State::default(),
            failed: None,
            unflushed: false,
            moved: 0,
        }
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut R,
        sink: &mut W,
        mut look: impl FnMut(&[u8]) -> Result<(), Suspicion>,
    ) -> Poll<Result<(), Ended>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.written < self.buffer.len() {
                let rest = &self.buffer[self.written..];
                let written = ready!(Pin::new(&mut *sink).poll_write(cx, rest))?;
                if written == 0 {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
                }
                self.written += written;
                self.moved += written as u64;
                self.unflushed = true;
            }
            match self.state {
                State::Copying => match self.poll_fill(cx, source) {
                    Poll::Ready(Ok(true)) => look(&self.buffer)?,
                    Poll::Ready(Ok(false)) => self.state = State::Ending,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *sink).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
                State::Ending => {
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx))?;
                    self.state = State::Done;
                }
                State::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads what is there into a buffer: true when bytes came, false at the end. When none came, no
    /// buffer is held.
    fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut R,
    ) -> Poll<io::Result<bool>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let size = self.size;
        let mut buffer = match std::mem::take(&mut self.buffer) {
            last if last.capacity() == 0 => buffers::take(size),
            last => self.another(last),
        };
        self.written = 0;
        let polled = fill(cx, source, &mut buffer, self.size.bytes());
        let polled = polled.map_ok(|filled| {
            self.failed = filled.failed;
            filled.any
        });
        match polled {
            Poll::Ready(Ok(true)) => self.buffer = buffer,
            Poll::Ready(_) | Poll::Pending => buffers::give(buffer, self.size),
        }
        polled
    }

    /// The buffer after one that has been written: larger where that was full, since there is more where
    /// that came from, and smaller where little was in it.
    fn another(&mut self, mut last: BytesMut) -> BytesMut {
        let size = self.size;
        if last.len() >= size.bytes() {
            self.size = size.doubled(self.size_max);
        } else if last.len() < size.bytes() / 4 {
            self.size = size.halved(SIZE_FIRST.min(self.size_max));
        }
        if self.size != size {
            buffers::give(last, size);
            return buffers::take(self.size);
        }
        last.clear();
        last
    }
}

/// Reads until the buffer has so many bytes or no more are there: TLS gives one record a read, and what
/// came together goes on with one call.
fn fill<R: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    source: &mut R,
    buffer: &mut BytesMut,
    most: usize,
) -> Poll<io::Result<Filled>> {
    let mut failed = None;
    while buffer.len() < most {
        let rest = most - buffer.len();
        let mut room = (&mut *buffer).limit(rest);
        match poll_read_buf(Pin::new(&mut *source), cx, &mut room) {
            Poll::Ready(Ok(1..)) => {}
            // What came before goes on first. The end is seen again by the next read.
            Poll::Ready(Ok(0)) | Poll::Pending if !buffer.is_empty() => break,
            Poll::Ready(Err(error)) if !buffer.is_empty() => {
                failed = Some(error);
                break;
            }
            Poll::Ready(Ok(_none)) => break,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    }
    let any = !buffer.is_empty();
    Poll::Ready(Ok(Filled { any, failed }))
}

/// What was read.
struct Filled {
    /// Bytes came; it is the end where none did.
    any: bool,
    /// How the source broke behind them.
    failed: Option<io::Error>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::{Drain, Phase, Side};
    use crate::tls::Signal;
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    fn idle(seconds: u64) -> ProxyConfig {
        let mut config = ProxyConfig::default();
        config.timeouts.tcp_idle = Duration::from_secs(seconds);
        config
    }

    /// A relay that nothing cuts.
    async fn relay<A, B>(
        a: &mut A,
        b: &mut B,
        config: &ProxyConfig,
        idle: Option<Duration>,
    ) -> (Moved, Ended)
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let drain = Drain::default();
        let ends = Ends::new(&drain, Side::Outbound, None);
        let terms = Terms {
            config,
            ends: &ends,
            idle,
            watch: None,
        };
        super::relay(a, b, terms).await
    }

    /// One that looks at the bytes of both sides; the client and the server.
    fn watched() -> (DuplexStream, DuplexStream, JoinHandle<(Moved, Ended)>) {
        let ((client, mut a), (mut b, server)) = (duplex(1 << 12), duplex(1 << 12));
        let relaying = tokio::spawn(async move {
            let (drain, config) = (Drain::default(), idle(60));
            let terms = Terms {
                config: &config,
                ends: &Ends::new(&drain, Side::Inbound, None),
                idle: None,
                watch: Some(OpaqueWatch::new()),
            };
            super::relay(&mut a, &mut b, terms).await
        });
        (client, server, relaying)
    }

    #[tokio::test]
    async fn nothing_of_what_is_suspicious_goes_on() {
        let (mut client, mut server, relaying) = watched();
        let begin = b"\x01 /x y\r\nX-Forwarded-Client-Cert";
        client.write_all(begin).await.unwrap();
        let mut read = vec![0; begin.len()];
        server.read_exact(&mut read).await.unwrap();
        client.write_all(b": x\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
        let (moved, ended) = relaying.await.unwrap();
        assert!(
            matches!(ended, Ended::Suspicious(Suspicion::Identity)),
            "{ended:?}"
        );
        assert_eq!(moved.forward, begin.len() as u64);
    }

    #[tokio::test]
    async fn a_server_that_speaks_no_http_ends_the_watch() {
        let (mut client, mut server, relaying) = watched();
        let mut read = [0; 100];
        server.write_all(b"220 mail\r\n").await.unwrap();
        assert_eq!(client.read(&mut read).await.unwrap(), 10);
        client.write_all(b"EHLO a\r\n").await.unwrap();
        assert_eq!(server.read(&mut read).await.unwrap(), 8);
        let field = b"\r\nX-Forwarded-Client-Cert: x\r\n";
        client.write_all(field).await.unwrap();
        drop(client);
        assert_eq!(server.read(&mut read).await.unwrap(), field.len());
        drop(server);
        let (_moved, ended) = relaying.await.unwrap();
        assert!(!matches!(ended, Ended::Suspicious(_)), "{ended:?}");
    }

    #[tokio::test]
    async fn half_close_is_passed_on_and_the_answer_still_comes() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut server) = duplex(64);
        let relaying = tokio::spawn(async move { relay(&mut a, &mut b, &idle(60), None).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        tokio::spawn(async move {
            server.write_all(&[7; 100_000]).await.unwrap();
            server.shutdown().await.unwrap();
        });
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, vec![7; 100_000]);
        let (moved, ended) = relaying.await.unwrap();
        assert!(matches!(ended, Ended::Clean), "{ended:?}");
        assert_eq!(moved.forward, 8);
        assert_eq!(moved.backward, answer.len() as u64);
    }

    /// A socket tells of a reset once, and then of an end: what is reset right behind its bytes must not
    /// look whole.
    #[tokio::test]
    async fn a_reset_right_behind_bytes_is_no_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..50 {
            let address = listener.local_addr().unwrap();
            let mut near = TcpStream::connect(address).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.write_all(&[7; 600]).await.unwrap();
            SockRef::from(&server)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(server);
            // Both are there with the first read.
            near.readable().await.unwrap();
            let (mut client, mut a) = duplex(1 << 12);
            let (config, mut received) = (idle(60), Vec::new());
            let relaying = relay(&mut a, &mut near, &config, None);
            let reading = client.read_to_end(&mut received);
            let ended = tokio::select! {
                (_moved, ended) = relaying => ended,
                _ = reading => panic!("an end behind the bytes"),
            };
            assert!(matches!(ended, Ended::Broken(_)), "{ended:?}");
        }
    }

    #[tokio::test]
    async fn large_transfers_arrive_whole() {
        let (mut client, mut a) = duplex(1 << 16);
        let (mut b, mut server) = duplex(1 << 14);
        tokio::spawn(async move { relay(&mut a, &mut b, &idle(60), None).await });
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let _open = client.read_u8().await;
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
    }

    /// Polls a direction whose two sides take what they can.
    struct Polled {
        direction: Direction,
        client: DuplexStream,
        source: DuplexStream,
        sink: DuplexStream,
        server: DuplexStream,
    }

    impl Polled {
        fn new(relay_buffer: usize, server_takes: usize) -> Self {
            let ((client, source), (sink, server)) = (duplex(1 << 20), duplex(server_takes));
            Self {
                direction: Direction::new(Size::at_most(relay_buffer)),
                client,
                source,
                sink,
                server,
            }
        }

        /// What has been passed on in all after the client has sent so much more.
        fn send(&mut self, bytes: usize) -> u64 {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let sent = Pin::new(&mut self.client).poll_write(&mut cx, &vec![7; bytes]);
            assert!(bytes == 0 || matches!(sent, Poll::Ready(Ok(length)) if length == bytes));
            let Self { source, sink, .. } = self;
            let polled = self.direction.poll(&mut cx, source, sink, |_bytes| Ok(()));
            assert!(polled.is_pending());
            self.direction.moved
        }
    }

    #[test]
    fn an_idle_direction_holds_no_buffer() {
        let mut polled = Polled::new(128 * 1024, 1 << 20);
        for (bytes, moved, size) in [
            (0, 0, 16 << 10),
            (600_000, 600_000, 128 << 10),
            (4, 600_004, 64 << 10),
            (4, 600_008, 32 << 10),
            (4, 600_012, 16 << 10),
            (4, 600_016, 16 << 10),
        ] {
            assert_eq!(polled.send(bytes), moved);
            assert_eq!(polled.direction.buffer.capacity(), 0);
            assert_eq!(polled.direction.size.bytes(), size);
        }
    }

    #[test]
    fn what_waits_to_be_written_is_held() {
        let mut polled = Polled::new(64 * 1024, 100);
        assert_eq!(polled.send(3_000), 100);
        let direction = &polled.direction;
        assert_eq!((direction.buffer.len(), direction.written), (3_000, 100));
    }

    #[test]
    fn what_came_together_goes_on_together() {
        for bytes in [100, 4_097, 12_000, 16_384] {
            let mut polled = Polled::new(128 * 1024, 1 << 20);
            polled.send(bytes);
            let mut room = vec![0; 1 << 20];
            let mut room = tokio::io::ReadBuf::new(&mut room);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let read = Pin::new(&mut polled.server).poll_read(&mut cx, &mut room);
            assert!(read.is_ready());
            assert_eq!(room.filled().len(), bytes);
        }
    }

    /// What one side does not read stays, whatever the other is silent for.
    #[tokio::test(start_paused = true)]
    async fn what_is_not_written_yet_survives_a_silence() {
        let (mut client, mut a) = duplex(1 << 20);
        let (mut b, mut server) = duplex(64);
        tokio::spawn(async move { relay(&mut a, &mut b, &idle(600), None).await });
        let sent: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_secs(50)).await;
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it() {
        let (_client, mut a) = duplex(64);
        let (mut b, _server) = duplex(64);
        let (moved, ended) = relay(&mut a, &mut b, &idle(5), None).await;
        assert!(matches!(ended, Ended::Idle), "{ended:?}");
        assert_eq!(moved, Moved::default());
        // A policy's own time takes the place of the sidecar's.
        for policy in [1, 60] {
            let (began, policy) = (Instant::now(), Duration::from_secs(policy));
            let (_, ended) = relay(&mut a, &mut b, &idle(5), Some(policy)).await;
            assert!(matches!(ended, Ended::Idle), "{ended:?}");
            assert_eq!(began.elapsed().as_secs(), policy.as_secs());
        }
    }

    /// The idle time begins with the last byte, wherever in the time of the watchdog that is.
    #[tokio::test(start_paused = true)]
    async fn the_idle_time_begins_with_the_last_byte() {
        for (limit, pauses) in [
            (Duration::from_secs(1), &[100, 950][..]),
            (Duration::from_secs(60), &[100, 9_000, 15_000, 59_000]),
        ] {
            let ((mut client, mut a), (mut b, mut server)) = (duplex(64), duplex(64));
            let relaying = tokio::spawn(async move {
                let (_, ended) = relay(&mut a, &mut b, &idle(5), Some(limit)).await;
                (ended, Instant::now())
            });
            for pause in pauses {
                tokio::time::sleep(Duration::from_millis(*pause)).await;
                client.write_all(b"x").await.unwrap();
                server.read_u8().await.unwrap();
            }
            let last = Instant::now();
            let (ended, at) = relaying.await.unwrap();
            assert!(matches!(ended, Ended::Idle), "{ended:?}");
            let waited = at - last;
            assert!(
                waited >= limit && waited <= limit + limit / 10,
                "{waited:?}"
            );
        }
    }

    #[tokio::test]
    async fn one_that_waits_for_its_reader_is_cut() {
        for by_peer in [true, false] {
            let (mut client, mut a) = duplex(1 << 16);
            let (mut b, _server_that_does_not_read) = duplex(64);
            let (drain, peer) = (Drain::default(), Signal::default());
            let config = idle(600);
            let ends = Ends::new(&drain, Side::Outbound, Some(&peer));
            client.write_all(&[7; 1000]).await.unwrap();
            let cutting = async {
                tokio::task::yield_now().await;
                match by_peer {
                    true => peer.cut_now(),
                    false => drain.advance(Phase::Cut),
                }
            };
            let terms = Terms {
                config: &config,
                ends: &ends,
                idle: None,
                watch: None,
            };
            let relaying = super::relay(&mut a, &mut b, terms);
            let ((moved, ended), ()) = tokio::join!(relaying, cutting);
            assert!(matches!(ended, Ended::Cut), "{ended:?}");
            assert_eq!((moved.forward, moved.backward), (64, 0));
        }
    }
}
