//! A request's body that is kept while it goes through, so that it can be sent again: to another
//! endpoint after a failure, or as a copy to somebody else.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, oneshot};

use super::body::ProxyBody;
use super::incoming::{BodyError, Incoming};
use super::upload::Upload;
use super::watch::Activity;

/// Who wants to know of a body: of its bytes, of what moves, and of how far it has come.
type Watchers = (
    Option<Arc<AtomicU64>>,
    Option<Arc<Activity>>,
    Option<Upload>,
);

/// What a piece of a body costs in memory beside its bytes: its place in the list and in the allocator.
const PIECE_BYTES: usize = 256;
/// A piece after the first that is shorter is copied: it is a part of the buffer that it was read into,
/// which may be many times as large, and would be kept whole.
const COPIED_BELOW: usize = 4096;

/// Memory that many bodies share for what each of them keeps beyond its own limit, in bytes.
#[derive(Debug, Clone)]
pub struct KeptBudget(Arc<AtomicUsize>);

impl KeptBudget {
    /// So many bytes for all bodies together.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes so many bytes; whether there were as many.
    fn take(&self, bytes: usize) -> bool {
        let left = |left: usize| left.checked_sub(bytes);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
            .is_ok()
    }
}

/// What one body has taken of a shared budget; given back when this is dropped.
#[derive(Debug)]
struct Borrowed {
    budget: KeptBudget,
    bytes: usize,
    /// Bytes of the body up to which it may take more.
    limit: usize,
}

impl Borrowed {
    /// Takes what a piece costs, for a body that has come to `length` bytes with it.
    fn take(&mut self, piece: usize, length: usize) -> bool {
        let cost = piece + PIECE_BYTES;
        let taken = length <= self.limit && self.budget.take(cost);
        self.bytes += if taken { cost } else { 0 };
        taken
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// The kept body. Its attempts share it, and only the last one gets to read on.
#[derive(Debug, Clone)]
pub struct Kept(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when the body has come to its end, or cannot be kept.
    settled: Notify,
}

#[derive(Debug)]
struct State {
    body: Incoming,
    /// Counts the bytes, where somebody wants to know.
    counter: Option<Arc<AtomicU64>>,
    /// Told of what moves, where somebody wants to know.
    activity: Option<Arc<Activity>>,
    /// Told how far it has come.
    upload: Option<Upload>,
    /// What came so far, in its pieces; empty when it is not kept.
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// Whether trailers are passed on.
    with_trailers: bool,
    bytes: usize,
    limit: usize,
    /// Where more than the limit may be kept.
    borrowed: Option<Borrowed>,
    end: End,
    /// The attempt that reads.
    attempt: u32,
    /// How many of the pieces it was given.
    read: usize,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// More may come; all that came is kept.
    Open,
    /// All of it came and is kept.
    Whole,
    /// Not kept: it was too long, broke, or nobody needs it any more.
    Lost,
}

/// The body of one attempt.
#[derive(Debug)]
pub struct KeptBody {
    shared: Arc<Shared>,
    attempt: u32,
    /// How many of the pieces it has given.
    given: usize,
    ended: bool,
    /// Dropped with the body, where somebody wants to know.
    _dropped: Option<oneshot::Sender<Infallible>>,
}

impl Kept {
    /// Keeps up to `limit` bytes of a body.
    pub(super) fn new(body: Incoming, (counter, activity, upload): Watchers, limit: usize) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                body,
                counter,
                activity,
                upload,
                pieces: Vec::new(),
                trailers: None,
                with_trailers: true,
                bytes: 0,
                limit,
                borrowed: None,
                end: End::Open,
                attempt: 0,
                read: 0,
            }),
            settled: Notify::new(),
        }))
    }

    /// Keeps up to `limit` bytes, beyond its own limit only as long as the budget has any left.
    pub fn borrow(&self, budget: &KeptBudget, limit: usize) {
        self.0.state().borrowed = Some(Borrowed {
            budget: budget.clone(),
            bytes: 0,
            limit,
        });
    }

    /// Has the body end without trailers, whatever comes.
    pub fn drop_trailers(&self) {
        self.0.state().with_trailers = false;
    }

    /// Whether everything that came so far can be sent again.
    pub fn is_replayable(&self) -> bool {
        self.0.state().end != End::Lost
    }

    /// Whether all of it came and is kept: attempts may read it side by side.
    pub fn is_whole(&self) -> bool {
        self.0.state().end == End::Whole
    }

    /// The body from its beginning, for another attempt; the one before gets no more of it.
    pub fn body<G>(&self) -> ProxyBody<G> {
        ProxyBody::Kept(self.attempt(None))
    }

    /// Like [`Self::body`]; the receiver ends when the body is dropped.
    pub fn watched_body<G>(&self) -> (ProxyBody<G>, oneshot::Receiver<Infallible>) {
        let (dropped, receiver) = oneshot::channel();
        (ProxyBody::Kept(self.attempt(Some(dropped))), receiver)
    }

    fn attempt(&self, dropped: Option<oneshot::Sender<Infallible>>) -> KeptBody {
        let mut state = self.0.state();
        state.attempt += 1;
        state.read = 0;
        KeptBody {
            shared: Arc::clone(&self.0),
            attempt: state.attempt,
            given: 0,
            ended: false,
            _dropped: dropped,
        }
    }

    /// There is no other attempt, and no copy: what is not read yet only goes through.
    pub fn release(&self) {
        let mut state = self.0.state();
        if state.end == End::Open {
            // The attempt that reads may not have been given all that is kept: it is let go when
            // more of the body comes, which only one that was given all of it asks for.
            state.limit = 0;
            if let Some(borrowed) = &mut state.borrowed {
                borrowed.limit = 0;
                // Others may have it, however long this body stands still.
                if state.read >= state.pieces.len() {
                    self.0.lose(&mut state);
                }
            }
        }
    }

    /// A copy, once all of it came; `None` where it cannot be kept.
    pub async fn copy<G>(&self) -> Option<ProxyBody<G>> {
        loop {
            let settled = self.0.settled.notified();
            let (end, attempt) = {
                let state = self.0.state();
                (state.end, state.attempt)
            };
            match end {
                End::Lost => return None,
                End::Open => settled.await,
                End::Whole => {
                    return Some(ProxyBody::Kept(KeptBody {
                        shared: Arc::clone(&self.0),
                        attempt,
                        given: 0,
                        ended: false,
                        _dropped: None,
                    }));
                }
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, state: &mut State) {
        state.end = End::Lost;
        state.pieces = Vec::new();
        state.borrowed = None;
        self.settled.notify_waiters();
    }
}

impl KeptBody {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.shared.state();
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(piece) = state.pieces.get(self.given) {
            self.given += 1;
            let frame = Frame::data(piece.clone());
            if state.attempt == self.attempt {
                state.read = self.given;
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        if state.end == End::Whole {
            self.ended = true;
            let trailers = state.trailers.clone().map(Frame::trailers);
            return Poll::Ready(trailers.map(Ok));
        }
        if state.attempt != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        let polled = Pin::new(&mut state.body).poll_frame(cx);
        if let Some(upload) = &state.upload {
            upload.note(&polled, &state.body);
        }
        let polled = match &state.activity {
            None => polled,
            Some(activity) => activity.note_upload(cx, polled, state.body.is_end_stream()),
        };
        let frame = ready!(polled);
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.given += usize::from(self.shared.take(&mut state, data));
                    state.read = self.given;
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.ended = true;
                    let kept = state.with_trailers.then(|| trailers.clone());
                    self.shared.end(&mut state, kept);
                    if !state.with_trailers {
                        return Poll::Ready(None);
                    }
                }
            }
            Some(Err(_broken)) => self.shared.lose(&mut state),
            None => {
                self.ended = true;
                self.shared.end(&mut state, None);
            }
        }
        drop(state);
        Poll::Ready(frame)
    }

    /// Why it has broken, where that is known already: nothing is taken.
    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let mut state = self.shared.state();
        if self.ended || state.end == End::Whole {
            return Poll::Pending;
        }
        if state.attempt != self.attempt {
            return Poll::Ready(BodyError::Superseded);
        }
        let Poll::Ready(error) = state.body.poll_broken(cx) else {
            return match &state.activity {
                Some(activity) => activity.poll_cut(cx),
                None => Poll::Pending,
            };
        };
        if let Some(upload) = &state.upload {
            upload.note_broken(&error);
        }
        self.shared.lose(&mut state);
        Poll::Ready(error)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let state = self.shared.state();
        let given = self.given >= state.pieces.len() && state.trailers.is_none();
        self.ended || (given && (state.end == End::Whole || state.body.is_end_stream()))
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let state = self.shared.state();
        let kept = state.pieces.iter().skip(self.given);
        let kept: u64 = kept.map(|piece| piece.len() as u64).sum();
        // The pieces that were lost are given: those of a body that is read on.
        match state.body.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(kept + rest),
            None => SizeHint::default(),
        }
    }
}

impl Shared {
    /// Takes note of a piece; whether it is kept.
    fn take(&self, state: &mut State, data: &Bytes) -> bool {
        if let Some(counter) = &state.counter {
            counter.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        if state.end != End::Open {
            return false;
        }
        state.bytes += data.len();
        let (length, borrowed) = (state.bytes, state.borrowed.as_mut());
        let is_kept = length <= state.limit
            || borrowed.is_some_and(|borrowed| borrowed.take(data.len(), length));
        if !is_kept {
            self.lose(state);
            return false;
        }
        let piece = match state.pieces.is_empty() || data.len() >= COPIED_BELOW {
            true => data.clone(),
            false => Bytes::copy_from_slice(data),
        };
        state.pieces.push(piece);
        // Nobody polls past a piece that completes the length.
        if state.body.is_end_stream() {
            self.end(state, None);
        }
        true
    }

    fn end(&self, state: &mut State, trailers: Option<HeaderMap>) {
        if state.end == End::Open {
            state.end = End::Whole;
            state.trailers = trailers;
            self.settled.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_shared_and_given_back() {
        let budget = KeptBudget::new(1000);
        let body = || Borrowed {
            budget: budget.clone(),
            bytes: 0,
            limit: 700,
        };
        let (mut one, mut other) = (body(), body());
        assert!(one.take(300, 300), "556 of 1000");
        assert!(!other.take(300, 300), "556 more");
        assert!(other.take(100, 100), "356 more");
        drop(one);
        assert!(other.take(300, 400));
        assert!(!other.take(1, 701), "a body's own limit");
        drop(other);
        assert_eq!(budget.0.load(Ordering::Relaxed), 1000);
    }
}
