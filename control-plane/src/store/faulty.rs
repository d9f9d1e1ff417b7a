//! An engine for tests that does not take writes, or does not answer them, when it is told so.

use std::collections::BTreeMap;
use std::future::{pending, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{
    Change, Events, Fence, HistoryEntry, HistoryPage, HistoryQuery, Lease, Listing, MemoryStore,
    RecordWrite, Revision, SnapshotSink, Store, StoreError, StoredResource,
};
use crate::model::ResourceKey;

/// What becomes of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They are made.
    None,
    /// The queue of the writer is full: they are refused at once.
    QueueFull,
    /// The writer stands still: they are never answered.
    StandsStill,
    /// The disk is full: they fail, and so does a listing.
    DiskFull,
}

/// A store in memory with a [`Fault`].
#[derive(Debug)]
pub(crate) struct FaultyStore {
    inner: MemoryStore,
    fault: Mutex<Fault>,
    /// How often documents were listed.
    pub(crate) listed: AtomicUsize,
}

impl FaultyStore {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::default(),
            fault: Mutex::new(Fault::None),
            listed: AtomicUsize::new(0),
        })
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// The answer to a write that is not made.
    fn refused<T: Send + 'static>(&self) -> Option<BoxFuture<'static, Result<T, StoreError>>> {
        match *self.fault.lock().unwrap() {
            Fault::None => None,
            Fault::QueueFull => Some(Box::pin(ready(Err(StoreError::Busy { waiting: 1 })))),
            Fault::StandsStill => Some(Box::pin(pending())),
            Fault::DiskFull => Some(Box::pin(ready(Err(disk_full())))),
        }
    }
}

fn disk_full() -> StoreError {
    StoreError::Engine {
        path: "faulty".to_owned(),
        cause: "no space left on device".to_owned(),
    }
}

impl Store for FaultyStore {
    fn commit_fenced(
        &self,
        author: &str,
        changes: Vec<Change>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let refused = self.refused();
        refused.unwrap_or_else(|| self.inner.commit_fenced(author, changes, fence))
    }

    fn get(&self, key: &ResourceKey) -> Result<Option<StoredResource>, StoreError> {
        self.inner.get(key)
    }

    fn list(&self) -> Result<Listing, StoreError> {
        self.listed.fetch_add(1, Ordering::Relaxed);
        match *self.fault.lock().unwrap() {
            Fault::DiskFull => Err(disk_full()),
            Fault::None | Fault::QueueFull | Fault::StandsStill => self.inner.list(),
        }
    }

    fn count(&self) -> Result<usize, StoreError> {
        self.inner.count()
    }

    fn events(&self, from: Revision) -> Events {
        self.inner.events(from)
    }

    fn history(&self, query: HistoryQuery) -> BoxFuture<'_, Result<HistoryPage, StoreError>> {
        self.inner.history(query)
    }

    fn at(
        &self,
        revision: Revision,
    ) -> BoxFuture<'_, Result<BTreeMap<ResourceKey, HistoryEntry>, StoreError>> {
        self.inner.at(revision)
    }

    fn write_fenced(
        &self,
        records: Vec<RecordWrite>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let refused = self.refused();
        refused.unwrap_or_else(|| self.inner.write_fenced(records, fence))
    }

    fn records(&self, table: &'static str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.inner.records(table)
    }

    fn lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Lease, StoreError>> {
        let refused = self.refused();
        refused.unwrap_or_else(|| self.inner.lease(name, holder, ttl))
    }

    fn renew(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>> {
        let refused = self.refused();
        refused.unwrap_or_else(|| self.inner.renew(lease))
    }

    fn release(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>> {
        let refused = self.refused();
        refused.unwrap_or_else(|| self.inner.release(lease))
    }

    fn snapshot(&self, sink: &mut SnapshotSink<'_>) -> Result<(), StoreError> {
        self.inner.snapshot(sink)
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.inner.watch()
    }
}
