//! Whether anything still moves in a request's stream. Where the policy has a time for that, both
//! bodies note what goes through them, and a watchdog cuts the stream when nothing did for so long,
//! even while one side does not take what is there.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;
use weft_core::time::Instant;

use super::body::{BodyGuard, Relayed};
use super::incoming::BodyError;

/// What both directions of one stream note.
#[derive(Debug)]
pub struct Activity {
    limit: Duration,
    /// When something last moved, in nanoseconds of our clock.
    last: AtomicU64,
    /// The whole request came.
    uploaded: AtomicBool,
    /// The stream was cut.
    cut: AtomicBool,
    /// Who waits for more of the request.
    reader: Mutex<Option<Waker>>,
}

impl Activity {
    /// A stream in which something may not move for so long.
    pub fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self {
            limit,
            last: AtomicU64::new(crate::clock::now().as_nanos()),
            uploaded: AtomicBool::new(true),
            cut: AtomicBool::new(false),
            reader: Mutex::default(),
        })
    }

    /// For how long nothing may move.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether the caller has said all it had to say.
    pub fn is_uploaded(&self) -> bool {
        self.uploaded.load(Ordering::Relaxed)
    }

    /// There is a body, which is still to come.
    pub(super) fn expect_upload(&self) {
        self.uploaded.store(false, Ordering::Relaxed);
    }

    /// Does the work, unless nothing moves for too long: then `None`.
    pub async fn unless_silent<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.silence() => None,
        }
    }

    /// Until nothing has moved for so long.
    async fn silence(&self) {
        loop {
            let last = Instant::from_nanos(self.last.load(Ordering::Relaxed));
            let passed = crate::clock::now().saturating_since(last);
            match self.limit.checked_sub(passed) {
                None | Some(Duration::ZERO) => return,
                Some(left) => sleep(left).await,
            }
        }
    }

    fn touch(&self) {
        let now = crate::clock::now().as_nanos();
        self.last.store(now, Ordering::Relaxed);
    }

    fn reader(&self) -> MutexGuard<'_, Option<Waker>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the request's body too.
    fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
        if let Some(waker) = self.reader().take() {
            waker.wake();
        }
    }

    /// Told when the request's body is to end because the stream was cut.
    pub(super) fn poll_cut(&self, cx: &Context<'_>) -> Poll<BodyError> {
        *self.reader() = Some(cx.waker().clone());
        match self.cut.load(Ordering::Relaxed) {
            true => Poll::Ready(BodyError::Silent),
            false => Poll::Pending,
        }
    }

    /// Notes what came of asking for more of the request's body; `ended`: that was all of it.
    pub(super) fn note_upload(
        &self,
        cx: &Context<'_>,
        polled: Poll<Option<Result<Frame<Bytes>, BodyError>>>,
        ended: bool,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &polled {
            Poll::Pending => {
                if let Poll::Ready(error) = self.poll_cut(cx) {
                    return Poll::Ready(Some(Err(error)));
                }
            }
            Poll::Ready(frame) => {
                self.touch();
                if ended || frame.is_none() {
                    self.uploaded.store(true, Ordering::Relaxed);
                }
            }
        }
        polled
    }
}

/// A response's body that is cut when nothing moves in its stream.
#[derive(Debug)]
pub struct Watched<G> {
    shared: Arc<Mutex<Shared<G>>>,
    activity: Arc<Activity>,
    watchdog: AbortHandle,
}

#[derive(Debug)]
struct Shared<G> {
    /// `None` when it was cut.
    body: Option<Relayed<G>>,
    /// Who waits for more of it.
    reader: Option<Waker>,
    /// Whether the reader knows that it was cut.
    told: bool,
}

impl<G: BodyGuard + 'static> Watched<G> {
    pub(super) fn new(body: Relayed<G>, activity: Arc<Activity>) -> Self {
        // The head of the response has just come.
        activity.touch();
        let shared = Arc::new(Mutex::new(Shared {
            body: Some(body),
            reader: None,
            told: false,
        }));
        let task = watch(Arc::downgrade(&shared), Arc::clone(&activity));
        Self {
            shared,
            activity,
            watchdog: spawn_local(task).abort_handle(),
        }
    }
}

impl<G: BodyGuard> Watched<G> {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = lock(&self.shared);
        let Some(body) = &mut shared.body else {
            let first = !std::mem::replace(&mut shared.told, true);
            return Poll::Ready(first.then_some(Err(BodyError::Silent)));
        };
        let polled = body.poll_frame(cx);
        match &polled {
            Poll::Ready(_) => self.activity.touch(),
            Poll::Pending => shared.reader = Some(cx.waker().clone()),
        }
        polled
    }

    /// Why it has broken, where that is known already: nothing is taken.
    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let mut shared = lock(&self.shared);
        let Some(body) = &mut shared.body else {
            return match std::mem::replace(&mut shared.told, true) {
                true => Poll::Pending,
                false => Poll::Ready(BodyError::Silent),
            };
        };
        let polled = body.poll_broken(cx);
        if polled.is_pending() {
            shared.reader = Some(cx.waker().clone());
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        let body = shared.body.as_ref();
        body.map_or(shared.told, Relayed::is_end_stream)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.shared);
        shared
            .body
            .as_ref()
            .map_or_else(SizeHint::default, Relayed::size_hint)
    }
}

impl<G> Drop for Watched<G> {
    fn drop(&mut self) {
        self.watchdog.abort();
    }
}

async fn watch<G: BodyGuard>(shared: Weak<Mutex<Shared<G>>>, activity: Arc<Activity>) {
    activity.silence().await;
    let Some(shared) = shared.upgrade() else {
        return;
    };
    let (body, reader) = {
        let mut shared = lock(&shared);
        (shared.body.take(), shared.reader.take())
    };
    // Dropping it resets the peer's stream.
    if let Some(body) = body {
        body.cut();
    }
    activity.cut();
    if let Some(reader) = reader {
        reader.wake();
    }
}

fn lock<G>(shared: &Mutex<Shared<G>>) -> MutexGuard<'_, Shared<G>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const LIMIT: Duration = Duration::from_millis(60);

    #[tokio::test]
    async fn work_that_moves_nothing_is_given_up() {
        let activity = Activity::new(LIMIT);
        assert_eq!(activity.unless_silent(async { 7 }).await, Some(7));
        let began = crate::clock::now();
        let never = activity.unless_silent(std::future::pending::<()>()).await;
        assert_eq!(never, None);
        let passed = crate::clock::now().saturating_since(began);
        assert!(passed < LIMIT * 5, "{passed:?}");
    }

    #[tokio::test]
    async fn what_moves_keeps_it_alive() {
        let activity = Activity::new(LIMIT);
        let moving = async {
            for _ in 0..8 {
                sleep(LIMIT / 3).await;
                activity.touch();
            }
        };
        assert_eq!(activity.unless_silent(moving).await, Some(()));
    }

    #[tokio::test]
    async fn the_upload_ends_with_the_cut() {
        let activity = Activity::new(LIMIT);
        activity.expect_upload();
        let reading = poll_fn(|cx| activity.note_upload(cx, Poll::Pending, false));
        let cutting = async {
            tokio::task::yield_now().await;
            activity.cut();
        };
        let (read, ()) = tokio::join!(reading, cutting);
        assert!(matches!(read, Some(Err(BodyError::Silent))), "{read:?}");
        assert!(!activity.is_uploaded());
        let end = poll_fn(|cx| activity.note_upload(cx, Poll::Ready(None), false)).await;
        assert!(end.is_none() && activity.is_uploaded());
    }
}
