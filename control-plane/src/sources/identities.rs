//! The trust bundle, from the identities.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Batch, Source};
use crate::identity::Identities;
use crate::store::StoreError;
use crate::world::Delta;

/// Pods that go within this time are told together.
const TOGETHER: Duration = Duration::from_millis(500);
/// So much longer for each pod that sidecars are told of: every sidecar is told of all of them each
/// time, so that what it is sent stays below 10 kB a second however many pods come and go.
const FOR_EACH: Duration = Duration::from_millis(5);

/// Follows revocations: those that somebody asked for at once, those of pods that are gone together.
#[derive(Debug)]
pub struct IdentitySource {
    identities: Arc<Identities>,
    revoked: watch::Receiver<u64>,
    departed: watch::Receiver<usize>,
    /// When pods that are gone are told.
    due: Option<Instant>,
}

impl IdentitySource {
    /// Of these identities.
    pub fn new(identities: Arc<Identities>) -> Self {
        Self {
            revoked: identities.watch_revoked(),
            departed: identities.watch_departed(),
            identities,
            due: None,
        }
    }

    fn batch(&mut self) -> Batch {
        self.due = None;
        self.departed.mark_unchanged();
        let bundle = Arc::new(self.identities.bundle());
        Batch {
            deltas: vec![Delta::Bundle(bundle)],
            ..Batch::default()
        }
    }
}

/// How long pods that are gone wait for others, of so many that are told.
fn pause(departed: usize) -> Duration {
    let all = FOR_EACH.saturating_mul(u32::try_from(departed).unwrap_or(u32::MAX));
    TOGETHER.max(all)
}

impl Source for IdentitySource {
    fn start(&mut self) -> Result<Batch, StoreError> {
        Ok(self.batch())
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>> {
        Box::pin(async {
            loop {
                let due = self.due;
                // They end with the identities, which the source holds.
                tokio::select! {
                    revoked = self.revoked.changed() => {
                        revoked.map_err(|_ended| StoreError::Closed)?;
                        return Ok(self.batch());
                    }
                    departed = self.departed.changed(), if due.is_none() => {
                        departed.map_err(|_ended| StoreError::Closed)?;
                        let departed = *self.departed.borrow_and_update();
                        self.due = Some(Instant::now() + pause(departed));
                    }
                    () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        return Ok(self.batch());
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pods_that_go_are_told_less_often() {
        for (departed, expected) in [(0, 500), (1, 500), (100, 500), (1000, 5000), (4096, 20480)] {
            assert_eq!(
                pause(departed),
                Duration::from_millis(expected),
                "{departed}"
            );
        }
    }
}
