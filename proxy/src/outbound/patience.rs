//! How long a request is waited for: until its time is over, or nothing moves in its stream.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use weft_core::reason::Reason;
use weft_core::terms::{End, Time};

use super::failed::Failed;
use crate::http::Activity;

/// What every wait on a request's way is bounded by.
#[derive(Debug)]
pub(super) struct Patience {
    time: Time,
    until: Option<Instant>,
    /// What moves in the request's stream, where that is watched.
    activity: Option<Arc<Activity>>,
}

impl Patience {
    /// From now on.
    ///
    /// # Errors
    ///
    /// When no time is left.
    pub(super) fn begin(time: Time, activity: Option<Arc<Activity>>) -> Result<Self, Failed> {
        let left = time.left(crate::clock::now());
        // One that lies beyond the clock's end is none.
        let until = left.and_then(|left| Instant::now().checked_add(left));
        let patience = Self {
            time,
            until,
            activity,
        };
        match left {
            Some(Duration::ZERO) => Err(patience.over()),
            Some(_) | None => Ok(patience),
        }
    }

    /// When nobody waits any more, where the caller, the route or the policy says so.
    pub(super) fn deadline(&self) -> Option<weft_core::time::Instant> {
        self.time.deadline
    }

    /// What moves in the request's stream, where that is watched.
    pub(super) fn activity(&self) -> Option<&Arc<Activity>> {
        self.activity.as_ref()
    }

    /// Waits for work until the time is over. It is pinned by the caller, so that it is held once.
    pub(super) async fn wait<T>(
        &self,
        work: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Failed> {
        let moving = async {
            let Some(activity) = &self.activity else {
                return Ok(work.await);
            };
            let done = activity.unless_silent(work).await;
            done.ok_or_else(|| silent(activity.limit()))
        };
        let Some(until) = self.until else {
            return moving.await;
        };
        let done = timeout_at(until, moving).await;
        done.unwrap_or_else(|_elapsed| Err(self.over()))
    }

    /// What to say when a timeout of ours ends the request, and not its caller; `None` where none
    /// does.
    pub(super) fn timed_out(&self) -> Option<Failed> {
        match self.time.end()? {
            (End::Caller, _) => None,
            (End::Timeout, limit) => {
                Some(Failed::new(Reason::RequestTimeout, format!("{limit:?}")))
            }
        }
    }

    fn over(&self) -> Failed {
        let asked = self.time.end().map_or(Duration::ZERO, |(_, after)| after);
        self.timed_out().unwrap_or_else(|| too_late(asked))
    }
}

/// Does the work as long as the caller waits.
pub(super) async fn while_waited_for<T>(
    asked: Option<Duration>,
    work: Pin<&mut impl Future<Output = Result<T, Failed>>>,
) -> Result<T, Failed> {
    match asked {
        None => work.await,
        Some(Duration::ZERO) => Err(too_late(Duration::ZERO)),
        Some(asked) => {
            let done = timeout(asked, work).await;
            done.unwrap_or_else(|_elapsed| Err(too_late(asked)))
        }
    }
}

fn too_late(left: Duration) -> Failed {
    let detail = format!("{left:?} were left when it came");
    Failed::new(Reason::DeadlineExceeded, detail)
}

fn silent(limit: Duration) -> Failed {
    Failed::new(Reason::StreamIdleTimeout, format!("{limit:?}"))
}
