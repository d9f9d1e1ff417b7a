//! A deadline that moves with every message and is met seldom.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// What stands for no limit; tokio's timers reach no further.
pub(super) const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A deadline. Moving it later costs nothing: the timer below it goes off early and is set again.
#[derive(Debug, Default)]
pub(in crate::http) struct Timer {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Sets the deadline, or takes it away.
    pub(in crate::http) fn set(&mut self, at: Option<Instant>) {
        self.at = at;
    }

    /// Ready once the deadline is over.
    pub(in crate::http) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else {
            return Poll::Pending;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= at {
                self.at = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}
