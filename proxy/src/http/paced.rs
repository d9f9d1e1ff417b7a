//! How much work one HTTP/2 connection of a client may cause: what is read of it before others have
//! their turn, which of its requests are begun at once, and how many it may reset.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use weft_core::resets::{Excess, ResetBudgets, ResetClient, ResetStanding, TunnelUse};

use super::RESETS_MAX;

/// Bytes that are read of a connection before other connections have their turn: 1,200 requests of
/// the smallest size.
const TURN_BYTES: usize = 32 * 1024;
/// The same for a connection that has not had an answer yet, or whose client has reset requests
/// lately.
const TURN_BYTES_WATCHED: usize = 4 * 1024;
/// Requests of a connection that are under way before the next one is begun only after it is known
/// not to be reset already.
const BEGUN_AT_ONCE: u32 = 32;
/// The stream identifier of a GOAWAY that says nothing about what was processed (RFC 9113 section
/// 6.8).
const ANY_STREAM: [u8; 4] = [0x7f, 0xff, 0xff, 0xff];
/// ENHANCE_YOUR_CALM (RFC 9113 section 7).
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
/// The debug data of that GOAWAY.
const TOO_MANY_RESETS: &[u8] = b"too many requests were reset before they were answered";

/// The reset budgets of all clients, of all workers.
///
/// It is locked when a request is reset or a tunnel given up, while a client that has reset some is read from, and for
/// every client while one owes resets.
#[derive(Debug, Default)]
pub struct Resets {
    budgets: Mutex<ResetBudgets>,
    /// Until when a client owes resets, in nanoseconds of our clock; 0 where none does.
    owed_until: AtomicU64,
}

impl Resets {
    fn on_reset(&self, client: &ResetClient) -> Option<Excess> {
        let now = crate::clock::now();
        let mut budgets = self.lock();
        let excess = budgets.on_reset(client, now)?;
        let until = now + budgets.standing(client, now).debt;
        self.owed_until
            .fetch_max(until.as_nanos(), Ordering::Relaxed);
        Some(excess)
    }

    fn standing(&self, client: &ResetClient) -> ResetStanding {
        self.lock().standing(client, crate::clock::now())
    }

    /// Whether any client owes resets.
    fn is_owed(&self) -> bool {
        let until = self.owed_until.load(Ordering::Relaxed);
        until > 0 && crate::clock::now().as_nanos() < until
    }

    fn lock(&self) -> MutexGuard<'_, ResetBudgets> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose connection is served.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    who: ResetClient,
    resets: Arc<Resets>,
}

impl Client {
    pub(crate) fn new(who: ResetClient, resets: &Arc<Resets>) -> Self {
        let resets = Arc::clone(resets);
        Self { who, resets }
    }

    /// Streams with malformed messages, over a connection's whole life, after which h2 ends it; no
    /// limit where the connection has streams of many callers.
    pub(super) const fn errors_max(&self) -> Option<usize> {
        match self.who {
            ResetClient::Outside(_) => Some(RESETS_MAX),
            ResetClient::Peer(_) | ResetClient::Program => None,
        }
    }

    /// Whether it is probed with PINGs when it is silent. A program on this machine is not: its end
    /// is seen at once, and some count a PING as an offence.
    pub(super) const fn is_probed(&self) -> bool {
        match self.who {
            ResetClient::Outside(_) | ResetClient::Peer(_) => true,
            ResetClient::Program => false,
        }
    }

    /// Whether it is a program of this workload.
    pub(super) const fn is_application(&self) -> bool {
        matches!(self.who, ResetClient::Program)
    }

    /// A tunnel that was a connection of its own has ended. One that was given up is charged.
    pub(crate) fn on_tunnel_end(&self, used: &TunnelUse) {
        if used.is_abandoned() {
            let _it_has_ended = self.resets.on_reset(&self.who);
        }
    }

    /// Until a tunnel may be asked for: a client that owes resets makes a deposit of one, and waits
    /// until both are paid. A connection that is a tunnel cannot be read slowly for what others before
    /// it did.
    pub(crate) async fn settled(&self) -> Option<Deposit> {
        if !self.resets.is_owed() || self.resets.standing(&self.who).debt.is_zero() {
            return None;
        }
        let paid = self.resets.lock().deposit(&self.who, crate::clock::now());
        let deposit = paid.then(|| Deposit(self.clone()));
        sleep(self.resets.standing(&self.who).debt).await;
        deposit
    }

    /// Whether it is another sidecar.
    pub(crate) const fn is_peer(&self) -> bool {
        matches!(self.who, ResetClient::Peer(_))
    }

    fn excess(&self) -> Excess {
        self.who.policy().excess
    }
}

/// A reset that a client in debt has paid for a tunnel before it is opened. It is given back with the
/// answer to the request: what the client does then is charged as always.
#[derive(Debug)]
pub(crate) struct Deposit(Client);

impl Drop for Deposit {
    fn drop(&mut self) {
        let Client { who, resets } = &self.0;
        resets.lock().refund(who, crate::clock::now());
    }
}

/// What is known of one connection: shared by the connection itself and its requests.
#[derive(Debug)]
pub(super) struct Pace {
    client: Client,
    /// Whether its client was seen to reset requests, until its budget is whole again.
    watched: Cell<bool>,
    /// Whether it has had an answer.
    answered: Cell<bool>,
    /// Bytes read in this turn.
    read: Cell<usize>,
    under_way: Cell<u32>,
    /// Whether it is to be closed for its resets.
    closing: Cell<bool>,
    /// Whether it has ended: that its requests end then is no reset.
    ended: Cell<bool>,
    /// Whether its client has ended it, unasked.
    left: Cell<bool>,
    /// Who waits for something to read.
    reader: RefCell<Option<Waker>>,
}

impl Pace {
    pub(super) fn new(client: Client) -> Rc<Self> {
        Rc::new(Self {
            client,
            watched: Cell::new(false),
            answered: Cell::new(false),
            read: Cell::new(0),
            under_way: Cell::new(0),
            closing: Cell::new(false),
            ended: Cell::new(false),
            left: Cell::new(false),
            reader: RefCell::new(None),
        })
    }

    /// Drives the connection; each time that it is polled is one turn.
    pub(super) async fn in_turns<F: Future>(&self, mut connection: Pin<&mut F>) -> F::Output {
        let done = poll_fn(|cx| {
            self.read.set(0);
            connection.as_mut().poll(cx)
        });
        done.await
    }

    /// The client has ended the connection.
    pub(super) fn left(&self) {
        self.left.set(true);
    }

    /// The connection has ended.
    pub(super) fn end(&self) {
        self.ended.set(true);
    }

    /// A request has come. It is begun at once where there are few, and some were answered before;
    /// else whatever the client has sent with it is taken note of first, so that one that is reset
    /// already is never begun.
    pub(super) async fn begin(self: &Rc<Self>) -> Unanswered {
        let unanswered = self.begin_at_once();
        let at_once = match self.answered.get() {
            true => BEGUN_AT_ONCE,
            false => 1,
        };
        if self.watched.get() || self.under_way.get() > at_once {
            let mut first = true;
            poll_fn(|cx| {
                if std::mem::take(&mut first) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
        }
        unanswered
    }

    /// A request has come, which is begun at once: whatever the client has sent with it was taken note
    /// of before.
    pub(super) fn begin_at_once(self: &Rc<Self>) -> Unanswered {
        self.under_way.set(self.under_way.get() + 1);
        Unanswered {
            pace: Rc::clone(self),
            answered: false,
        }
    }

    /// A tunnel has ended. One that its client gave up is charged, also where it did so by ending the
    /// connection, as in HTTP/1.1, or has had the connection closed for its resets.
    pub(super) fn on_tunnel_end(&self, used: &TunnelUse) {
        if self.left.get() || self.closing.get() {
            self.client.on_tunnel_end(used);
        } else if used.is_abandoned() {
            self.on_reset();
        }
    }

    /// Its client has reset a request, or given up a tunnel.
    pub(super) fn on_reset(&self) {
        if self.ended.get() || self.closing.get() {
            return;
        }
        self.watched.set(true);
        if self.client.resets.on_reset(&self.client.who) != Some(Excess::Close) {
            // What it owes is asked for before more is read.
            return;
        }
        self.closing.set(true);
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.wake();
        }
    }

    /// Bytes that may be read in a turn.
    ///
    /// # Errors
    ///
    /// How long nothing may be read, while the client owes resets.
    pub(super) fn turn(&self) -> Result<usize, Duration> {
        let is_watched = self.watched.get();
        let standing = match is_watched || self.client.resets.is_owed() {
            true => self.client.resets.standing(&self.client.who),
            false => ResetStanding::default(),
        };
        if is_watched {
            self.watched.set(standing.is_touched);
            // A connection on which nothing was reset may carry somebody else's requests.
            if standing.debt > Duration::ZERO && self.client.excess() == Excess::Slow {
                return Err(standing.debt);
            }
        }
        Ok(match standing.is_touched || !self.answered.get() {
            true => TURN_BYTES_WATCHED,
            false => TURN_BYTES,
        })
    }
}

/// A request that has not been answered. Dropped so, its client has reset it.
#[derive(Debug)]
pub(super) struct Unanswered {
    pace: Rc<Pace>,
    answered: bool,
}

impl Unanswered {
    /// There is an answer.
    pub(super) fn answered(mut self) {
        self.answered = true;
        self.pace.answered.set(true);
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let under_way = &self.pace.under_way;
        under_way.set(under_way.get() - 1);
        if !self.answered {
            self.pace.on_reset();
        }
    }
}

/// A client's connection in HTTP/2, read at its pace.
#[derive(Debug)]
pub(super) struct Paced<IO> {
    io: IO,
    pace: Rc<Pace>,
    pause: Option<Pin<Box<Sleep>>>,
    /// Where the frames that are written end; where a connection may be closed for its resets.
    frames: Option<Frames>,
}

impl<IO> Paced<IO> {
    pub(super) fn new(io: IO, pace: Rc<Pace>) -> Self {
        let closes = pace.client.excess() == Excess::Close;
        Self {
            io,
            pace,
            pause: None,
            frames: closes.then(Frames::default),
        }
    }
}

impl<IO: AsyncWrite + Unpin> Paced<IO> {
    /// Says why the connection is closed, unless a frame of which a part is written stands in the
    /// way or nothing can be written at once, and closes it.
    fn refuse(&mut self, cx: &mut Context<'_>) -> io::Error {
        if self.frames.as_ref().is_some_and(Frames::is_between) {
            let frame = go_away();
            let written = Pin::new(&mut self.io).poll_write(cx, &frame);
            if matches!(written, Poll::Ready(Ok(_))) {
                let _as_far_as_it_goes = Pin::new(&mut self.io).poll_flush(cx);
            }
        }
        tracing::info!("a client's connection is closed: too many requests were reset");
        io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "closed: too many requests were reset",
        )
    }
}

fn go_away() -> Vec<u8> {
    let length = u32::try_from(8 + TOO_MANY_RESETS.len()).unwrap_or_default();
    let mut frame = length.to_be_bytes()[1..].to_vec();
    // Type GOAWAY, no flags, stream 0.
    frame.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&ANY_STREAM);
    frame.extend_from_slice(&ENHANCE_YOUR_CALM);
    frame.extend_from_slice(TOO_MANY_RESETS);
    frame
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Paced<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if me.pace.closing.get() {
            return Poll::Ready(Err(me.refuse(cx)));
        }
        let turn = loop {
            if let Some(pause) = &mut me.pause {
                ready!(pause.as_mut().poll(cx));
                me.pause = None;
            }
            match me.pace.turn() {
                Ok(turn) => break turn,
                Err(owed) => me.pause = Some(Box::pin(sleep(owed))),
            }
        };
        if me.pace.read.get() >= turn {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut me.io).poll_read(cx, buffer);
        match &polled {
            Poll::Ready(_) => {
                let read = buffer.filled().len() - before;
                me.pace.read.set(me.pace.read.get() + read);
            }
            Poll::Pending => {
                let mut reader = me.pace.reader.borrow_mut();
                match &mut *reader {
                    Some(known) => known.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
            }
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Paced<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        if let Some(frames) = &mut self.frames {
            frames.on_written(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        if let Some(frames) = &mut self.frames {
            let mut left = written;
            for slice in slices {
                let part = left.min(slice.len());
                frames.on_written(&slice[..part]);
                left -= part;
            }
        }
        Poll::Ready(Ok(written))
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

/// Where frames end in the bytes that are written (RFC 9113 section 4.1).
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of the next frame's head that were written.
    head: u8,
    length: u32,
    /// Bytes of the frame's payload that are still to come.
    left: u32,
}

/// Bytes of a frame's head.
const HEAD_BYTES: u8 = 9;

impl Frames {
    /// Whether the next byte begins a frame.
    fn is_between(&self) -> bool {
        self.head == 0 && self.left == 0
    }

    fn on_written(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let part = bytes.len().min(self.left as usize);
                self.left -= u32::try_from(part).unwrap_or(self.left);
                bytes = &bytes[part..];
                continue;
            }
            if self.head < 3 {
                self.length = (self.length << 8) | u32::from(*first);
            }
            self.head += 1;
            bytes = rest;
            if self.head == HEAD_BYTES {
                self.left = self.length;
                self.length = 0;
                self.head = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::resets::{ClientEnd, ResetPolicy};

    #[test]
    fn frames_are_found_wherever_they_are_cut() {
        let frames = [go_away(), vec![0, 0, 0, 4, 1, 0, 0, 0, 0], go_away()];
        let ends: Vec<usize> = frames
            .iter()
            .scan(0, |end, frame| {
                *end += frame.len();
                Some(*end)
            })
            .collect();
        let bytes = frames.concat();
        for cut in 0..=bytes.len() {
            let mut seen = Frames::default();
            seen.on_written(&bytes[..cut]);
            assert_eq!(seen.is_between(), cut == 0 || ends.contains(&cut), "{cut}");
            seen.on_written(&bytes[cut..]);
            assert!(seen.is_between());
        }
    }

    fn client(who: ResetClient, resets: &Arc<Resets>) -> Client {
        Client::new(who, resets)
    }

    #[tokio::test]
    async fn requests_that_are_reset_are_counted_and_answered_ones_are_not() {
        let resets = Arc::<Resets>::default();
        let pace = Pace::new(client(ResetClient::Program, &resets));
        for _ in 0..10 {
            pace.begin().await.answered();
        }
        assert!(!pace.watched.get());
        for _ in 0..ResetPolicy::PROGRAM.burst {
            drop(pace.begin().await);
        }
        assert!(pace.watched.get() && pace.turn() == Ok(TURN_BYTES_WATCHED));
        for _ in 0..ResetPolicy::PROGRAM.per_second {
            drop(pace.begin().await);
        }
        assert!(
            pace.turn()
                .is_err_and(|owed| owed > Duration::from_millis(500))
        );
        assert_eq!(pace.under_way.get(), 0);
    }

    /// However many connections a client has, they share what it may reset, also those that it makes
    /// later; another client notices nothing.
    #[tokio::test]
    async fn connections_of_one_client_share_a_budget() {
        let resets = Arc::<Resets>::default();
        let bad = || client(ResetClient::Peer("bad".into()), &resets);
        let paces: Vec<_> = (0..50).map(|_| Pace::new(bad())).collect();
        for _ in 0..=ResetPolicy::PEER.burst / 25 {
            for pace in &paces {
                drop(pace.begin().await);
            }
        }
        assert!(paces.iter().all(|pace| pace.turn().is_err()));
        let later = Pace::new(bad());
        later.begin().await.answered();
        assert_eq!(later.turn(), Ok(TURN_BYTES_WATCHED));
        drop(later.begin().await);
        assert!(later.turn().is_err());
        let other = Pace::new(client(ResetClient::Peer("good".into()), &resets));
        drop(other.begin().await);
        assert_eq!(other.turn(), Ok(TURN_BYTES_WATCHED));
        assert!(!other.closing.get());
    }

    /// A tunnel that is given up counts like a request that is reset; where it was a connection of its
    /// own, the next one waits until the debt is paid.
    #[tokio::test]
    async fn tunnels_that_are_given_up_are_charged() {
        let given_up = TunnelUse {
            end: Some((ClientEnd::Reset, Duration::ZERO)),
            sent: true,
            answered: false,
        };
        let used = TunnelUse {
            answered: true,
            ..given_up
        };
        let resets = Arc::<Resets>::default();
        for who in [
            ResetClient::outside([10, 0, 0, 1].into()),
            ResetClient::Peer("one".into()),
            ResetClient::Program,
        ] {
            let policy = who.policy();
            let client = client(who, &resets);
            let is_settled = async || {
                let settled = tokio::time::timeout(Duration::ZERO, client.settled());
                settled.await.is_ok()
            };
            for _ in 0..policy.burst * 2 {
                client.on_tunnel_end(&used);
            }
            assert!(is_settled().await, "{client:?}");
            for _ in 0..policy.burst {
                client.on_tunnel_end(&given_up);
            }
            assert!(is_settled().await, "{client:?}");
            for _ in 0..policy.per_second {
                client.on_tunnel_end(&given_up);
            }
            assert!(!is_settled().await, "{client:?}");
            let waited = tokio::time::timeout(Duration::from_secs(3), client.settled());
            assert!(waited.await.is_ok(), "{client:?}");
        }
    }

    /// A client that ends its connection gives up the tunnels on it; when we end it, nobody does.
    #[tokio::test]
    async fn tunnels_that_end_with_their_connection_are_charged_to_who_ended_it() {
        for (by_client, charged) in [(true, true), (false, false)] {
            let resets = Arc::<Resets>::default();
            let pace = Pace::new(client(ResetClient::Program, &resets));
            if by_client {
                pace.left();
            }
            pace.end();
            pace.on_tunnel_end(&TunnelUse::UNOPENED);
            assert_eq!(resets.standing(&pace.client.who).is_touched, charged);
        }
    }

    #[tokio::test]
    async fn what_ends_with_its_connection_was_not_reset() {
        let pace = Pace::new(client(ResetClient::Program, &Arc::default()));
        let request = pace.begin().await;
        pace.end();
        drop(request);
        assert!(!pace.watched.get());
    }

    /// What is sent beyond a turn is read in the next one, so that others have theirs between.
    #[tokio::test]
    async fn a_turn_ends() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        tokio::io::AsyncWriteExt::write_all(&mut far, &[0; 200_000])
            .await
            .unwrap();
        let pace = Pace::new(client(ResetClient::Peer("one".into()), &Arc::default()));
        assert_eq!(pace.turn(), Ok(TURN_BYTES_WATCHED));
        pace.begin().await.answered();
        let mut paced = Paced::new(near, Rc::clone(&pace));
        let mut turns = Vec::new();
        let reading = poll_fn(|cx| {
            let mut read = 0;
            loop {
                let mut space = [0; 8192];
                let mut buffer = ReadBuf::new(&mut space);
                match Pin::new(&mut paced).poll_read(cx, &mut buffer) {
                    Poll::Ready(result) => {
                        result.unwrap();
                        read += buffer.filled().len();
                    }
                    Poll::Pending => break,
                }
            }
            turns.push(read);
            match turns.iter().sum::<usize>() {
                200_000 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        });
        pace.in_turns(std::pin::pin!(reading)).await;
        assert!(turns.len() > 5, "{turns:?}");
        assert!(
            turns.iter().all(|read| *read <= TURN_BYTES + 8192),
            "{turns:?}"
        );
    }
}
