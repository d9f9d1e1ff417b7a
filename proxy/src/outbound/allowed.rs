//! How long a request may take until its response begins: what its caller, the policy and the route
//! allow.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::timeout;
use weft_core::policy::TrafficPolicy;
use weft_core::reason::Reason;
use weft_core::route::Rule;
use weft_core::time::Instant;

use super::http::Failed;
use crate::config::ProxyConfig;
use crate::http::Activity;

/// How long a request may still take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    /// What is left of what the caller asked for.
    asked: Option<Duration>,
    /// The timeout of the request, and what is left of it.
    limit: Option<(Duration, Duration)>,
    /// When nobody waits any more, where the caller or the policy says so.
    pub(super) deadline: Option<Instant>,
}

impl Allowed {
    /// From now on, for a request that arrived at `began`, whose caller then waited for `asked`.
    pub(super) fn of(
        began: Instant,
        asked: Option<Duration>,
        rule: Option<&Rule>,
        policy: &TrafficPolicy,
        config: &ProxyConfig,
    ) -> Self {
        let passed = crate::clock::now().saturating_since(began);
        let own = rule.and_then(|rule| rule.request_timeout);
        let own = own.or(policy.request_timeout);
        let limit = own.unwrap_or(config.timeouts.request);
        let limit = (limit > Duration::ZERO).then_some(limit);
        let own = own.filter(|own| !own.is_zero());
        let deadline = asked.into_iter().chain(own).min();
        Self {
            asked: asked.map(|asked| asked.saturating_sub(passed)),
            limit: limit.map(|limit| (limit, limit.saturating_sub(passed))),
            deadline: deadline.map(|time| began + time),
        }
    }

    /// What is left until nobody waits any more.
    pub(super) fn left(&self) -> Option<Duration> {
        let deadline = self.deadline?;
        Some(deadline.saturating_since(crate::clock::now()))
    }

    /// Does the work in this time, and as long as something moves.
    pub(super) async fn bound<T>(
        self,
        activity: Option<&Activity>,
        work: Pin<&mut impl Future<Output = Result<T, Failed>>>,
    ) -> Result<T, Failed> {
        let limit = self.limit.map(|(_, left)| left);
        let time = self.asked.into_iter().chain(limit).min();
        if time == Some(Duration::ZERO) {
            return Err(self.over().unwrap_or_else(|| too_late(Duration::ZERO)));
        }
        let work = async {
            let Some(activity) = activity else {
                return work.await;
            };
            let done = activity.unless_silent(work).await;
            done.unwrap_or_else(|| Err(silent(activity.limit())))
        };
        let Some(time) = time else {
            return work.await;
        };
        let done = timeout(time, work).await;
        done.unwrap_or_else(|_elapsed| Err(self.over().unwrap_or_else(|| too_late(time))))
    }

    /// What to say when the time is over that the policy allows; `None` where it is the caller's
    /// own.
    pub(super) fn over(self) -> Option<Failed> {
        let (limit, left) = self.limit?;
        let first = self.asked.is_none_or(|asked| left <= asked);
        first.then(|| Failed {
            reason: Reason::RequestTimeout,
            detail: format!("{limit:?}"),
        })
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
    Failed {
        reason: Reason::DeadlineExceeded,
        detail: format!("{left:?} were left when it came"),
    }
}

fn silent(limit: Duration) -> Failed {
    Failed {
        reason: Reason::StreamIdleTimeout,
        detail: format!("{limit:?}"),
    }
}
