//! The requests that are open on one client's connection: whether it has been used, and since when it
//! is idle.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use weft_core::h2::frame::ErrorCode;
use weft_core::reason::Reason;

use super::body::{BodyGuard, ProxyBody};
use super::h2::{Outbound, Stop};
use super::incoming::BodyError;
use crate::drain::Ends;

/// When the sidecar leaves, a connection that has carried no request yet may still bring one within
/// this time: the client made it before it could know.
pub(crate) const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(1);

/// Until a connection that has brought nothing yet is not waited for any more, because it should come
/// to an end.
pub(crate) async fn none_came(ends: &Ends<'_>) {
    ends.leaving().await;
    sleep(FIRST_REQUEST_WAIT).await;
}

/// The open requests of a connection.
#[derive(Debug)]
pub(super) struct OpenRequests {
    count: Cell<usize>,
    /// Whether there has been any.
    used: Cell<bool>,
    /// When the connection began or its last request ended.
    since: Cell<Instant>,
    begun: Notify,
}

impl OpenRequests {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            count: Cell::new(0),
            used: Cell::new(false),
            since: Cell::new(Instant::now()),
            begun: Notify::new(),
        })
    }

    /// A request begins; it is open until what is returned is dropped.
    pub(super) fn begin(self: &Rc<Self>) -> Held {
        self.count.set(self.count.get() + 1);
        self.used.set(true);
        self.begun.notify_one();
        Held(Rc::clone(self))
    }

    /// Until the client has to be told that the connection comes to an end.
    pub(super) async fn leave(&self, ends: &Ends<'_>) {
        ends.leaving().await;
        if !self.used.get() {
            let _none_came = timeout(FIRST_REQUEST_WAIT, self.begun.notified()).await;
        }
    }

    /// Until no request was open for `limit`; zero is no limit.
    pub(super) async fn idle_for(&self, limit: Duration) {
        if limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            if self.count.get() > 0 {
                sleep(limit).await;
                continue;
            }
            let due = self.since.get() + limit;
            if Instant::now() >= due {
                return;
            }
            sleep_until(due).await;
        }
    }
}

/// A request that is open.
#[derive(Debug)]
pub(super) struct Held(Rc<OpenRequests>);

impl Held {
    /// The request is open until its response has ended.
    pub(super) fn until_end<G: BodyGuard>(self, body: ProxyBody<G>) -> HeldBody<G> {
        HeldBody { body, _held: self }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.since.set(Instant::now());
    }
}

/// The body of a response whose request is open until it has ended.
#[derive(Debug)]
pub(super) struct HeldBody<G: BodyGuard> {
    body: ProxyBody<G>,
    _held: Held,
}

impl<G: BodyGuard> Body for HeldBody<G> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<G: BodyGuard> Outbound for HeldBody<G> {
    fn reset_code(error: &BodyError) -> ErrorCode {
        ProxyBody::<G>::reset_code(error)
    }

    fn request_reason(error: &BodyError) -> Reason {
        ProxyBody::<G>::request_reason(error)
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.body.poll_broken(cx)
    }

    fn is_bounded(&self) -> bool {
        self.body.is_bounded()
    }

    fn on_stalled(&mut self) {
        self.body.on_stalled();
    }

    fn on_stopped(&mut self, stop: Stop) {
        self.body.on_stopped(stop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::{Drain, Phase, Side};

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_may_still_bring_its_request() {
        let drain = Drain::default();
        drain.advance(Phase::Closing);
        let ends = Ends::new(&drain, Side::Inbound, None);
        let open = OpenRequests::new();
        let began = Instant::now();
        open.leave(&ends).await;
        assert_eq!(began.elapsed(), FIRST_REQUEST_WAIT);
        let began = Instant::now();
        tokio::join!(open.leave(&ends), async {
            sleep(Duration::from_millis(10)).await;
            drop(open.begin());
        });
        assert_eq!(began.elapsed(), Duration::from_millis(10));
        // One that has been used is told at once; the program's own only when the program is gone.
        open.leave(&ends).await;
        assert_eq!(began.elapsed(), Duration::from_millis(10));
        let outbound = Ends::new(&drain, Side::Outbound, None);
        let told = timeout(Duration::from_secs(60), open.leave(&outbound)).await;
        assert!(told.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_counted_from_the_end_of_the_last_request() {
        let open = OpenRequests::new();
        let began = Instant::now();
        let held = open.begin();
        tokio::join!(open.idle_for(Duration::from_secs(5)), async {
            sleep(Duration::from_secs(8)).await;
            drop(held);
        });
        // Looked at every five seconds while a request is open.
        let idle = began.elapsed();
        assert!((13..=15).contains(&idle.as_secs()), "{idle:?}");
    }
}
