//! Bodies that are received in HTTP/1.1.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use weft_core::h1::Malformed;

use super::client::Response;
use crate::http::BodyError;

/// Why a body that is received in HTTP/1.1 ends early: its sender's doing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Broken {
    /// The framing is broken, or the connection ended within the body.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The connection was reset.
    #[error("the connection was reset within the body: {0}")]
    Reset(std::io::ErrorKind),
    /// The request had been answered before all of it had come.
    #[error("the request had been answered before its body was complete")]
    Answered,
    /// Somebody waited for it, and nothing came.
    #[error("nothing came of the body within {0:?}")]
    Stalled(Duration),
}

/// A body that is received in HTTP/1.1.
#[derive(Debug)]
pub enum Http1Body {
    /// All of it has been received, in one piece.
    Whole(Bytes),
    /// A request's body, which its connection receives while somebody asks for it.
    Request(RequestBody),
    /// A response's body, which reads from its connection.
    Response(Box<Response>),
}

impl Http1Body {
    /// Nothing.
    pub(super) const EMPTY: Self = Self::Whole(Bytes::new());

    /// Why it has broken, where that is known already: nothing is taken, and a request's sender is asked
    /// for nothing.
    pub(in crate::http) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match self {
            Self::Whole(_) => Poll::Pending,
            Self::Request(body) => body.poll_broken(cx),
            Self::Response(body) => body.poll_broken(cx),
        }
    }

    /// The next piece, where that is here already. Where it is not, the reader of a request's body does
    /// not count as one that waits for its client.
    pub(in crate::http) fn poll_here(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Request(body) => body.poll_here(cx),
            Self::Whole(_) | Self::Response(_) => Pin::new(self).poll_frame(cx),
        }
    }
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Request(body) => body.poll_frame(cx),
            Self::Response(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Request(body) => body.is_end_stream(),
            Self::Response(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = match self {
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Request(body) => body.remaining,
            Self::Response(body) => body.remaining(),
        };
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A request's body on its way from the connection that receives it to whoever reads it, who may be
/// another task and, where a connection is shared by all workers, another thread.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Received, and not read yet. At most one piece, so that the reader sets the pace.
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
    end: Option<End>,
    /// The reader has asked for the body.
    asked: bool,
    /// Nothing is asked of the client yet, although the reader asks.
    held: bool,
    /// The reader is gone.
    dropped: bool,
    /// The reader, while it waits.
    reader: Option<Waker>,
    /// The reader, while it only waits to hear that nothing more comes.
    watcher: Option<Waker>,
    /// The connection, while it waits for the reader.
    feeder: Option<Waker>,
}

#[derive(Debug)]
enum End {
    Complete,
    Broken(Broken),
}

/// What the reader wants of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// Nothing yet, or it has not read what came.
    None,
    /// More, and it waits for that.
    Waiting,
    /// More, as soon as it is there.
    Ahead,
    /// Nothing any more.
    Gone,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the reader wants; the connection is told when that changes.
    pub(super) fn demand(&self, cx: &Context<'_>) -> Demand {
        let mut state = self.lock();
        register(&mut state.feeder, cx);
        match &*state {
            State { dropped: true, .. } => Demand::Gone,
            State { asked: false, .. } | State { held: true, .. } | State { data: Some(_), .. } => {
                Demand::None
            }
            State {
                reader: Some(_), ..
            } => Demand::Waiting,
            State { .. } => Demand::Ahead,
        }
    }

    /// Hands over a piece. The reader has taken the one before.
    pub(super) fn put(&self, data: Bytes, cx: &Context<'_>) {
        let mut state = self.lock();
        state.data = Some(data);
        wake(&mut state.reader, cx);
    }

    /// That was all, where that has not been said.
    pub(super) fn end_if_open(&self, cx: &Context<'_>) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(End::Complete);
            wake(&mut state.reader, cx);
        }
    }

    /// That was all.
    pub(super) fn end(&self, trailers: Option<HeaderMap>, cx: &Context<'_>) {
        let mut state = self.lock();
        state.trailers = trailers;
        state.end = Some(End::Complete);
        wake(&mut state.reader, cx);
    }

    /// No more comes.
    pub(super) fn fail(&self, broken: Broken) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(End::Broken(broken));
        }
        let (reader, watcher) = (state.reader.take(), state.watcher.take());
        drop(state);
        [reader, watcher]
            .into_iter()
            .flatten()
            .for_each(Waker::wake);
    }
}

/// A request whose client waits for 100 before it sends the body, as an extension of the request.
#[derive(Debug, Clone)]
pub(crate) struct Expectation(Arc<Slot>);

impl Expectation {
    pub(super) fn new(slot: &Arc<Slot>) -> Self {
        Self(Arc::clone(slot))
    }

    /// Has the client wait, even while the body is asked for, until what is returned is dropped.
    pub(crate) fn hold(&self) -> Held {
        self.0.lock().held = true;
        Held(Arc::clone(&self.0))
    }
}

/// A client is not told to go on yet.
#[derive(Debug)]
pub(crate) struct Held(Arc<Slot>);

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.held = false;
        if let Some(feeder) = state.feeder.take() {
            feeder.wake();
        }
    }
}

/// Who waits in the very task that is running is polled by it.
fn wake(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if let Some(waker) = waker.take()
        && !waker.will_wake(cx.waker())
    {
        waker.wake();
    }
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

/// What the reader of a body gets next, where that is here.
fn next(
    state: &mut State,
    remaining: &mut Option<u64>,
    cx: &Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    state.asked = true;
    if let Some(data) = state.data.take() {
        if let Some(remaining) = remaining {
            *remaining = remaining.saturating_sub(data.len() as u64);
        }
        wake(&mut state.feeder, cx);
        return Poll::Ready(Some(Ok(Frame::data(data))));
    }
    match &state.end {
        None => Poll::Pending,
        Some(End::Complete) => {
            let trailers = state.trailers.take();
            Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
        }
        Some(End::Broken(broken)) => {
            let error = BodyError::of_request(broken.clone());
            state.end = Some(End::Complete);
            Poll::Ready(Some(Err(error)))
        }
    }
}

/// A request's body for its reader.
#[derive(Debug)]
pub struct RequestBody {
    slot: Arc<Slot>,
    /// Bytes to come, where that is known.
    remaining: Option<u64>,
}

impl RequestBody {
    pub(super) fn new(slot: &Arc<Slot>, length: Option<u64>) -> Self {
        Self {
            slot: Arc::clone(slot),
            remaining: length,
        }
    }

    fn poll_broken(&mut self, cx: &Context<'_>) -> Poll<BodyError> {
        let mut state = self.slot.lock();
        let Some(End::Broken(broken)) = &state.end else {
            register(&mut state.watcher, cx);
            return Poll::Pending;
        };
        let error = BodyError::of_request(broken.clone());
        state.data = None;
        state.end = Some(End::Complete);
        Poll::Ready(error)
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.slot.lock();
        let polled = next(&mut state, &mut self.remaining, cx);
        if polled.is_pending() {
            register(&mut state.reader, cx);
            wake(&mut state.feeder, cx);
        }
        polled
    }

    /// What is here already. Where nothing is, the reader does not wait for that, and is not woken.
    fn poll_here(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        next(&mut self.slot.lock(), &mut self.remaining, cx)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.slot.lock();
        let complete = matches!(state.end, Some(End::Complete));
        self.remaining == Some(0) || (complete && state.data.is_none() && state.trailers.is_none())
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        state.dropped = true;
        state.data = None;
        if let Some(feeder) = state.feeder.take() {
            feeder.wake();
        }
    }
}
