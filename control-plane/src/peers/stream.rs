//! A standing stream of an instance.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{sleep_until, timeout};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming};

use super::{CallGuard, Instance, Peers, lock};
use crate::budget::{Reason, Refusal, SEND_TIMEOUT, StreamKind, too_many_streams};
use crate::identity::Identities;
use crate::peer::PeerIdentity;

/// How long the last word on a stream may wait for room.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a stream has to end.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// The instance was revoked.
    Revoked,
    /// Its certificate has ended, and the instance has proved no newer one.
    Certificate,
    /// Another stream of the instance has its place.
    Superseded,
    /// The instance has opened newer ones, and that is too many.
    TooMany(Refusal),
}

impl From<&End> for Status {
    fn from(end: &End) -> Self {
        match end {
            End::Revoked => Self::unauthenticated("the instance was revoked"),
            End::Certificate => Self::aborted(
                "the certificate that opened this stream has ended, and the instance has shown no \
                 newer one: renew it, connect and open the stream anew",
            ),
            End::Superseded => Self::aborted(
                "another stream of this instance is newer; this one is over: open it anew",
            ),
            End::TooMany(refusal) => refusal.clone().into(),
        }
    }
}

/// What others can do to a stream: end it.
#[derive(Debug)]
pub(super) struct Stream {
    not_after: i64,
    end: OnceLock<End>,
    ended: CancellationToken,
}

impl Stream {
    /// When the certificate that opened it ends, seconds since the Unix epoch.
    pub(super) fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Ends it; the first reason stands.
    pub(super) fn end(&self, end: End) {
        let _already_ended = self.end.set(end);
        self.ended.cancel();
    }
}

/// A standing stream, with what it uses of the budget of its instance. All of it is given back when
/// this is dropped.
#[derive(Debug)]
pub struct LiveStream {
    peers: Arc<Peers>,
    instance: Arc<Instance>,
    kind: StreamKind,
    number: u64,
    stream: Arc<Stream>,
    call: Option<Arc<CallGuard>>,
    names: AtomicUsize,
    unanswered: AtomicUsize,
    /// Nothing is read before.
    resume: Mutex<Option<Instant>>,
}

impl Peers {
    /// Begins a standing stream for the peer that makes a request; the error is for the peer.
    pub fn open_stream<T>(
        self: &Arc<Self>,
        identities: &Identities,
        request: &Request<T>,
        kind: StreamKind,
    ) -> Result<(PeerIdentity, LiveStream), Status> {
        let peer = PeerIdentity::of(request)?;
        let call = request.extensions().get::<Arc<CallGuard>>().cloned();
        let live = self.begin_stream(&peer.instance, peer.not_after, kind, call);
        // Looked up when the stream can be ended already: no revocation is missed.
        if identities.is_revoked(&peer.instance) {
            return Err((&End::Revoked).into());
        }
        Ok((peer, live))
    }

    /// Begins a standing stream of an instance, opened with a certificate that ends at `not_after`.
    /// Of too many of one kind, the oldest is ended. `call` is the call that it is the answer of.
    pub fn begin_stream(
        self: &Arc<Self>,
        instance: &Arc<str>,
        not_after: i64,
        kind: StreamKind,
        call: Option<Arc<CallGuard>>,
    ) -> LiveStream {
        let number = self.next_number();
        let instance = self.instance(instance);
        let stream = Arc::new(Stream {
            not_after,
            end: OnceLock::new(),
            ended: CancellationToken::new(),
        });
        let mut standing = lock(&instance.standing);
        // A stream that was told to end counts no more; it has an end of its own.
        let of_kind = standing.streams.range((kind, 0)..=(kind, u64::MAX));
        let live = of_kind.filter(|(_, stream)| stream.end.get().is_none());
        let live: Vec<Arc<Stream>> = live.map(|(_, stream)| Arc::clone(stream)).collect();
        standing.streams.insert((kind, number), Arc::clone(&stream));
        drop(standing);
        let excess = (live.len() + 1).saturating_sub(self.limits.streams_per_kind);
        for oldest in &live[..excess] {
            let refusal = too_many_streams(kind, &self.limits);
            self.note_refused(&instance.name, &refusal);
            oldest.end(End::TooMany(refusal));
        }
        LiveStream {
            peers: Arc::clone(self),
            instance,
            kind,
            number,
            stream,
            call,
            names: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            resume: Mutex::default(),
        }
    }
}

impl LiveStream {
    /// Its number; that of a newer stream is greater.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Waits until the stream has to end; with which status. Cancel safe, and may be called again.
    pub async fn ended(&self) -> Status {
        self.stream.ended.cancelled().await;
        self.status()
    }

    /// Whether it was ended because another stream has its place.
    pub fn is_superseded(&self) -> bool {
        matches!(self.stream.end.get(), Some(End::Superseded))
    }

    fn status(&self) -> Status {
        let end = self.stream.end.get();
        end.map_or_else(|| Status::aborted("the stream is over"), Status::from)
    }

    /// The next message, charged to the instance. Waits while the instance sends faster than its
    /// rate, so that HTTP/2 holds it back; an error when it goes on for too long. Cancel safe.
    pub async fn receive<T>(&self, messages: &mut Streaming<T>) -> Option<Result<T, Status>> {
        let resume = *lock(&self.resume);
        if let Some(resume) = resume {
            sleep_until(resume.into()).await;
            *lock(&self.resume) = None;
        }
        match messages.next().await? {
            Ok(message) => Some(self.charge().map(|()| message).map_err(Status::from)),
            Err(status) => Some(Err(status)),
        }
    }

    fn charge(&self) -> Result<(), Refusal> {
        let now = Instant::now();
        let charged = lock(&self.instance.account).charge_message(&self.peers.limits, now);
        let wait = charged.inspect_err(|refusal| self.note_refused(refusal))?;
        if !wait.is_zero() {
            *lock(&self.resume) = Some(now + wait);
        }
        Ok(())
    }

    /// The stream is to hold so many names, instead of those before; nothing changes where that is
    /// refused.
    pub fn set_names(&self, names: usize) -> Result<(), Refusal> {
        let before = self.names.load(Ordering::Relaxed);
        if names == before {
            return Ok(());
        }
        let mut all = lock(&self.peers.accounts);
        let mut account = lock(&self.instance.account);
        let set = account.set_names(before, names, &mut all, &self.peers.limits);
        drop((account, all));
        set.inspect_err(|refusal| self.note_refused(refusal))?;
        self.names.store(names, Ordering::Relaxed);
        Ok(())
    }

    /// The stream is to hold so many names more.
    pub fn add_names(&self, names: usize) -> Result<(), Refusal> {
        self.set_names(self.names.load(Ordering::Relaxed).saturating_add(names))
    }

    /// Whether the stream would hold more names than an instance may, with so many more, whatever
    /// the other streams of the instance hold.
    pub fn exceeds_alone(&self, more: usize) -> bool {
        let of_stream = self.names.load(Ordering::Relaxed).saturating_add(more);
        of_stream > self.peers.limits.names_per_instance
    }

    /// Whether the instance has room for another push. One on a stream with nothing unanswered
    /// always has.
    pub fn may_push(&self) -> bool {
        let of_stream = self.unanswered.load(Ordering::Relaxed);
        lock(&self.instance.account).may_push(of_stream, &self.peers.limits)
    }

    /// A push of so many bytes goes out.
    pub fn pushed(&self, bytes: usize) {
        let before = self.unanswered.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.instance.account).set_unanswered(before, before + bytes);
    }

    /// A push of so many bytes was acknowledged or rejected.
    pub fn answered(&self, bytes: usize) {
        let before = self.unanswered.load(Ordering::Relaxed);
        let after = before.saturating_sub(bytes);
        self.unanswered.store(after, Ordering::Relaxed);
        lock(&self.instance.account).set_unanswered(before, after);
    }

    /// Sends a message; an error is the status to end the stream with, when it has to end or when
    /// the peer takes nothing for [`SEND_TIMEOUT`].
    pub async fn send<T>(
        &self,
        answers: &mpsc::Sender<Result<T, Status>>,
        message: T,
    ) -> Result<(), Status> {
        // What there is room for is also told to one that has to end: its own goodbye, above all.
        let message = match answers.try_send(Ok(message)) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(message) | TrySendError::Closed(message)) => message,
        };
        let permit = tokio::select! {
            // What there is room for goes out, even on a stream that has to end.
            biased;
            permit = timeout(SEND_TIMEOUT, answers.reserve()) => permit,
            () = self.stream.ended.cancelled() => return Err(self.status()),
        };
        match permit {
            Ok(Ok(permit)) => {
                permit.send(message);
                Ok(())
            }
            Ok(Err(_closed)) => Err(Status::cancelled("the stream has ended")),
            Err(_elapsed) => {
                let refusal = Refusal::count(
                    Reason::Unread,
                    format_args!("nothing read for {} s", SEND_TIMEOUT.as_secs()),
                    format_args!("{} s", SEND_TIMEOUT.as_secs()),
                    "read what is sent, or end the stream",
                );
                self.note_refused(&refusal);
                Err(refusal.into())
            }
        }
    }

    /// Says why the stream ends, where the peer has room for it.
    pub async fn finish<T>(&self, answers: &mpsc::Sender<Result<T, Status>>, status: Status) {
        let _best_effort = timeout(FINISH_TIMEOUT, answers.send(Err(status))).await;
    }

    /// Logs what the instance did not take of what it was sent, once in a while.
    pub fn note_rejection(&self, what: &str) {
        self.peers.note_rejection(&self.instance.name, what);
    }

    /// Counts something that the instance was refused, and logs it once in a while.
    pub fn note(&self, reason: Reason, what: &dyn std::fmt::Display) {
        self.peers.count(reason, &self.instance.name, what);
    }

    fn note_refused(&self, refusal: &Refusal) {
        self.peers.note_refused(&self.instance.name, refusal);
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        let _fewer_are_never_refused = self.set_names(0);
        self.answered(usize::MAX);
        let mut standing = lock(&self.instance.standing);
        standing.streams.remove(&(self.kind, self.number));
        drop(standing);
        if let Some(call) = &self.call {
            call.finishing();
        }
    }
}
