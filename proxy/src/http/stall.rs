//! Clients in HTTP/2 that stall with a request's body that its reader waits for. In HTTP/1.1 the client's
//! connection itself is timed (`h1/server.rs`); here other streams go on beside a stalled one. Those that
//! do not read an answer are seen where that is sent (`h2/server.rs`).

use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

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
}
