//! Whether the other side is still there.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// When a connection on which nothing comes is probed with PING (RFC 9113 section 6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probing {
    /// After so long.
    pub interval: Duration,
    /// How long the answer may take.
    pub timeout: Duration,
    /// Whether also where there is no stream.
    pub while_unused: bool,
}

/// The payload of a probe.
pub(super) const PROBE: [u8; 8] = *b"weft-ask";

/// The probes of one connection.
#[derive(Debug)]
pub(super) struct Probe {
    terms: Probing,
    last_read: Instant,
    /// When an answer is due that was asked for.
    answer_due: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probed {
    /// Nothing: this is looked at again when the task is woken.
    Nothing,
    /// PING is sent.
    Ask,
    /// There was no answer.
    Silent,
}

impl Probe {
    pub(super) fn new(terms: Probing) -> Self {
        let now = Instant::now();
        Self {
            terms,
            last_read: now,
            answer_due: None,
            timer: Box::pin(sleep_until(now + terms.interval)),
        }
    }

    /// Something came.
    pub(super) fn on_read(&mut self) {
        self.last_read = Instant::now();
        self.answer_due = None;
    }

    /// The timer is set again only when it has run out, not with every read.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, is_unused: bool) -> Probed {
        loop {
            if self.timer.as_mut().poll(cx).is_pending() {
                return Probed::Nothing;
            }
            let now = Instant::now();
            if self.answer_due.is_some_and(|due| due <= now) {
                return Probed::Silent;
            }
            let due = self.last_read + self.terms.interval;
            if let Some(due) = self.answer_due {
                self.timer.as_mut().reset(due);
            } else if now < due {
                self.timer.as_mut().reset(due);
            } else if is_unused && !self.terms.while_unused {
                self.timer.as_mut().reset(now + self.terms.interval);
            } else {
                let due = now + self.terms.timeout;
                self.answer_due = Some(due);
                self.timer.as_mut().reset(due);
                // It wakes nobody before it was polled.
                if self.timer.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                return Probed::Ask;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn next(probe: &mut Probe, is_unused: bool) -> Probed {
        poll_fn(|cx| match probe.poll(cx, is_unused) {
            Probed::Nothing => Poll::Pending,
            probed @ (Probed::Ask | Probed::Silent) => Poll::Ready(probed),
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_come_is_noticed_though_nothing_else_happens() {
        let terms = Probing {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(3),
            while_unused: true,
        };
        let began = Instant::now();
        let mut probe = Probe::new(terms);
        let silent = poll_fn(|cx| match probe.poll(cx, false) {
            Probed::Nothing | Probed::Ask => Poll::Pending,
            Probed::Silent => Poll::Ready(()),
        });
        let noticed = tokio::time::timeout(Duration::from_secs(100), silent);
        assert!(noticed.await.is_ok());
        assert_eq!(began.elapsed().as_secs(), 13);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_probed() {
        let terms = Probing {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(3),
            while_unused: false,
        };
        let began = Instant::now();
        let mut probe = Probe::new(terms);
        tokio::time::sleep(Duration::from_secs(4)).await;
        probe.on_read();
        assert_eq!(next(&mut probe, false).await, Probed::Ask);
        assert_eq!(began.elapsed().as_secs(), 14);
        probe.on_read();
        assert_eq!(next(&mut probe, false).await, Probed::Ask);
        assert_eq!(began.elapsed().as_secs(), 24);
        assert_eq!(next(&mut probe, false).await, Probed::Silent);
        assert_eq!(began.elapsed().as_secs(), 27);
        let mut unused = Probe::new(terms);
        let waiting = tokio::time::timeout(Duration::from_secs(100), next(&mut unused, true));
        assert!(waiting.await.is_err());
    }
}
