//! Clients in HTTP/2 that stall: with a request's body that its reader waits for, or by not reading an
//! answer. Both are bounded where the stream holds a connection to the application. In HTTP/1.1 the
//! client's connection itself is timed (`h1/server.rs`); here other streams go on beside a stalled one.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use hyper::rt::Executor;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::h1::{Broken, Timer};
use super::incoming::BodyError;

/// Bounds how long the reader of a request's body waits for more of it.
#[derive(Debug)]
pub(super) struct Awaited {
    limit: Duration,
    /// Since when the reader waits.
    since: Option<Instant>,
    /// Set once the reader has had to wait.
    timer: Timer,
}

impl Awaited {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            timer: Timer::default(),
        }
    }

    /// What the reader is given: what came, or an error where nothing has come for too long.
    pub(super) fn bound(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<Option<Result<Frame<Bytes>, BodyError>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if polled.is_ready() {
            self.since = None;
            return polled;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        self.timer.set(Some(since + self.limit));
        ready!(self.timer.poll(cx));
        let stalled = BodyError::of_request(Broken::Stalled(self.limit));
        Poll::Ready(Some(Err(stalled)))
    }
}

/// How the client of a stream takes its answer.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Whether the client has to take a piece of the answer before more of it is asked for, and a
    /// connection to the application is held meanwhile.
    is_due: Cell<bool>,
    /// Since when.
    since: Cell<Option<Instant>>,
    is_cut: Cell<bool>,
}

impl Reading {
    /// The answer was asked for more. `is_due`: there was some, and a connection is held.
    pub(super) fn on_polled(&self, is_due: bool) {
        self.is_due.set(is_due);
        self.since.set(None);
    }

    /// Whether the stream was ended because its client did not read.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.get()
    }

    /// Since when the client takes nothing of what is there.
    fn unread_since(&self) -> Option<Instant> {
        if !self.is_due.get() {
            return None;
        }
        let since = self.since.get().unwrap_or_else(Instant::now);
        self.since.set(Some(since));
        Some(since)
    }
}

/// Runs the streams of a client's connection on the worker's own thread, and resets those whose
/// client does not read: a stream that waits for its window asks its answer for nothing, so nothing
/// in the answer could end it.
#[derive(Debug, Clone)]
pub(super) struct StreamExecutor {
    /// `None` waits for ever.
    limit: Option<Duration>,
    /// Of the stream that is run next: hyper does so as soon as its service was called.
    next: Rc<RefCell<Option<Rc<Reading>>>>,
}

impl StreamExecutor {
    /// `limit`: how long a client may take nothing; zero is no limit.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit: (!limit.is_zero()).then_some(limit),
            next: Rc::default(),
        }
    }

    /// The service is called for a stream.
    pub(super) fn begin(&self) -> Rc<Reading> {
        let reading = Rc::<Reading>::default();
        if self.limit.is_some() {
            *self.next.borrow_mut() = Some(Rc::clone(&reading));
        }
        reading
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        let next = self.next.borrow_mut().take();
        match self.limit.zip(next) {
            Some((limit, reading)) => spawn_local(while_read(future, reading, limit)),
            None => spawn_local(async move {
                future.await;
            }),
        };
    }
}

/// Runs a stream, unless its client does not read for too long. h2 resets a stream that is dropped.
async fn while_read<F: Future>(stream: F, reading: Rc<Reading>, limit: Duration) {
    let mut stream = pin!(stream);
    let mut timer = Timer::default();
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(since) = reading.unread_since() else {
            return Poll::Pending;
        };
        timer.set(Some(since + limit));
        ready!(timer.poll(cx));
        reading.is_cut.set(true);
        Poll::Ready(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;
    use tokio::time::{sleep, timeout};

    const LIMIT: Duration = Duration::from_secs(50);

    #[tokio::test(start_paused = true)]
    async fn a_body_is_waited_for_since_its_last_piece() {
        let mut awaited = Awaited::new(LIMIT);
        let began = Instant::now();
        for _ in 0..5 {
            let nothing = poll_fn(|cx| awaited.bound(cx, Poll::Pending));
            assert!(timeout(LIMIT * 9 / 10, nothing).await.is_err());
            let piece = || Some(Ok(Frame::data(Bytes::from_static(b"x"))));
            let some = poll_fn(|cx| awaited.bound(cx, Poll::Ready(piece()))).await;
            assert!(matches!(some, Some(Ok(_))));
        }
        let waiting = Instant::now();
        let end = poll_fn(|cx| awaited.bound(cx, Poll::Pending)).await;
        assert!(matches!(end, Some(Err(error)) if error.is_stalled()));
        assert_eq!(waiting.elapsed(), LIMIT);
        assert!(began.elapsed() > LIMIT * 5);
    }

    /// Runs a stream that polls its answer as it is told, and then waits for ever.
    async fn run(polls: &'static [(u64, bool)]) -> (Duration, bool) {
        let local = LocalSet::new();
        let ran = local.run_until(async {
            let executor = StreamExecutor::new(LIMIT);
            let reading = executor.begin();
            let (told, ended) = tokio::sync::oneshot::channel::<()>();
            let answer = Rc::clone(&reading);
            let began = Instant::now();
            executor.execute(async move {
                let _told = told;
                for (after, is_due) in polls {
                    sleep(Duration::from_secs(*after)).await;
                    answer.on_polled(*is_due);
                }
                std::future::pending::<()>().await;
            });
            let _ended = timeout(Duration::from_secs(3600), ended).await;
            (began.elapsed(), reading.is_cut())
        });
        ran.await
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_client_that_does_not_read_is_cut() {
        let never = (Duration::from_secs(3600), false);
        // No answer yet: a long poll.
        assert_eq!(run(&[]).await, never);
        // The answer has nothing to say.
        assert_eq!(run(&[(0, true), (1, false)]).await, never);
        // Nothing of it is taken.
        assert_eq!(run(&[(7, true)]).await, (Duration::from_secs(57), true));
        // Slowly, but it is.
        let slowly = (Duration::from_secs(45 + 45 + 50), true);
        assert_eq!(run(&[(45, true), (45, true)]).await, slowly);
    }
}
