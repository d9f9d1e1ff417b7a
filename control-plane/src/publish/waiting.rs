//! Waiting until those whom a change concerns have applied it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::{Publisher, StreamId};

/// Counts the streams that have not applied a change yet.
#[derive(Debug, Default)]
pub(super) struct Waiter {
    missing: AtomicUsize,
    all: Notify,
}

impl Waiter {
    /// One of the streams has applied it, or has ended.
    pub(super) fn arrive(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.notify_one();
        }
    }

    /// Whether nobody waits any more.
    pub(super) fn is_abandoned(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }
}

impl Publisher {
    /// Waits until these streams have applied a compilation, answered it with a rejection, or have
    /// ended.
    pub async fn applied(&self, streams: &BTreeSet<StreamId>, generation: u64) {
        let waiter = Arc::new(Waiter::default());
        {
            let mut state = self.state();
            for stream in streams {
                if let Some(subscriber) = state.streams.get_mut(stream)
                    && !subscriber.has_applied(generation)
                {
                    waiter.missing.fetch_add(1, Ordering::AcqRel);
                    subscriber
                        .waiters
                        .retain(|(_, other)| !other.is_abandoned());
                    subscriber.waiters.push((generation, Arc::clone(&waiter)));
                }
            }
        }
        while waiter.missing.load(Ordering::Acquire) > 0 {
            waiter.all.notified().await;
        }
    }
}
