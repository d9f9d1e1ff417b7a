//! Documents, from the store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Batch, Source};
use crate::model::{Document, ResourceKey};
use crate::store::{Event, Events, EventsError, Store, StoreError, StoredResource};
use crate::world::Delta;
use crate::world::facts::Stated;

/// How long after documents could not be listed it is tried again.
const LIST_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Events that are compiled together, at most.
const EVENTS_TOGETHER: usize = 256;

/// Follows the store's events; lists again when it is too far behind.
#[derive(Debug)]
pub struct StoreSource {
    store: Arc<dyn Store>,
    /// Documents that were told of: what a new listing does not have is gone.
    known: BTreeSet<ResourceKey>,
    events: Option<Events>,
    /// When documents may be listed again, after that failed. Kept here because [`Source::next`] is
    /// called anew whenever another source has something.
    list_again_at: Option<Instant>,
}

impl StoreSource {
    /// Of this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            known: BTreeSet::new(),
            events: None,
            list_again_at: None,
        }
    }

    fn list(&mut self) -> Result<Batch, StoreError> {
        let listing = self.store.list()?;
        self.events = Some(self.store.events(listing.revision));
        let mut gone = std::mem::take(&mut self.known);
        let mut deltas = Vec::new();
        for resource in listing.resources {
            gone.remove(&resource.key);
            self.known.insert(resource.key.clone());
            deltas.extend(delta(resource));
        }
        deltas.extend(gone.into_iter().map(Delta::DocumentGone));
        Ok(Batch {
            deltas,
            revision: Some(listing.revision),
            registered: None,
        })
    }

    async fn follow(&mut self) -> Result<Batch, StoreError> {
        loop {
            let Some(events) = &mut self.events else {
                if let Some(at) = self.list_again_at {
                    tokio::time::sleep_until(at).await;
                }
                match self.list() {
                    Ok(batch) => {
                        self.list_again_at = None;
                        return Ok(batch);
                    }
                    // A full disk, for instance: what is known stays in force.
                    Err(error) => tracing::error!(%error, "documents not listed; tried again"),
                }
                self.list_again_at = Some(Instant::now() + LIST_AGAIN_AFTER);
                continue;
            };
            match events.next().await {
                Ok(first) => return Ok(self.gather(first)),
                Err(error @ EventsError::TooFarBehind { .. }) => {
                    tracing::warn!(%error, "documents are listed again");
                    self.events = None;
                }
                Err(EventsError::Closed) => return Err(StoreError::Closed),
            }
        }
    }

    /// The changes of an event, and of those that are there already.
    fn gather(&mut self, first: Arc<Event>) -> Batch {
        let mut gathered = vec![first];
        // What is there already is compiled together.
        while gathered.len() < EVENTS_TOGETHER
            && let Some(Ok(Some(event))) = self.events.as_mut().map(Events::try_next)
        {
            gathered.push(event);
        }
        let revision = gathered.last().map(|event| event.revision);
        let mut deltas = Vec::new();
        for change in gathered.iter().flat_map(|event| &event.changes) {
            match &change.resource {
                Some(resource) => {
                    self.known.insert(change.key.clone());
                    deltas.extend(delta(resource.clone()));
                }
                None => {
                    self.known.remove(&change.key);
                    deltas.push(Delta::DocumentGone(change.key.clone()));
                }
            }
        }
        Batch {
            deltas,
            revision,
            registered: None,
        }
    }
}

impl Source for StoreSource {
    fn start(&mut self) -> Result<Batch, StoreError> {
        self.list()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>> {
        Box::pin(self.follow())
    }
}

/// A document of the store as a fact. One that this version does not understand keeps what was
/// known of it before, and is told loudly.
fn delta(resource: StoredResource) -> Option<Delta> {
    match Document::from_value(resource.document) {
        Ok(document) => Some(Delta::Document(Box::new(Stated {
            created: resource.created,
            generation: resource.generation,
            document,
        }))),
        Err(problems) => {
            let key = resource.key;
            tracing::error!(%key, ?problems, "a stored document is not understood: left out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::store::{Fault, FaultyStore};

    /// The pause holds although the caller gives up and asks anew, as it does whenever another
    /// source has something.
    #[tokio::test(start_paused = true)]
    async fn a_listing_that_failed_is_not_repeated_at_once() {
        let store = FaultyStore::new();
        store.set(Fault::DiskFull);
        let mut source = StoreSource::new(Arc::<FaultyStore>::clone(&store));
        for _ in 0..200 {
            let next = tokio::time::timeout(LIST_AGAIN_AFTER / 100, source.next());
            assert!(next.await.is_err());
        }
        let listed = store.listed.load(Ordering::Relaxed);
        assert!((2..=4).contains(&listed), "{listed}");
        store.set(Fault::None);
        let next = tokio::time::timeout(2 * LIST_AGAIN_AFTER, source.next());
        next.await.unwrap().unwrap();
    }
}
