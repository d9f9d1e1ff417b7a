//! Desired state, durable: resources with their history, and the control plane's own records.
//!
//! [`Store`] is the seam between the control plane and an engine. [`RedbStore`] keeps everything in
//! one file; [`KubernetesStore`] keeps it in the API of a cluster; [`MemoryStore`] keeps nothing beyond
//! the process and is for tests and benchmarks. How the trait maps to engines is said at its methods; `contract.rs` is the suite that every
//! engine passes.

#[cfg(test)]
mod contract;
mod error;
mod events;
#[cfg(test)]
mod faulty;
mod history;
mod kubernetes;
mod lease;
mod memory;
mod position;
mod record;
mod redb;
mod resource;
mod snapshot;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use weft_proto::refusals::Refusals;

use crate::model::ResourceKey;

pub use error::StoreError;
pub use events::{ChangedResource, EVENTS_BYTES_MAX, EVENTS_MAX, Event, Events, EventsError};
#[cfg(test)]
pub(crate) use faulty::{Fault, FaultyStore};
pub use history::{
    HISTORY_BYTES_MAX, HISTORY_PAGE_BYTES_MAX, HISTORY_REVISIONS_MAX, HistoryEntry, HistoryLimits,
    HistoryPage, HistoryPosition, HistoryQuery, changes_back,
};
pub use kubernetes::{
    DefinitionNotes, INVALID, KindApi, KubernetesOptions, KubernetesStore, RefusedDocument,
    StoreLease, Subject, refusal,
};
pub use lease::{
    Clock, Fence, LEASE_NAME_MAX, LEASE_TTL_MAX, LEASE_TTL_MIN, LEASES_MAX, Lease, MonotonicClock,
};
pub use memory::MemoryStore;
#[cfg(test)]
pub(crate) use position::testing;
pub use position::{ChangedVersions, POSITIONS_MAX, Position, SeenVersions};
pub use record::{RecordExpect, RecordWrite, read_records, record};
pub use redb::{FILE as REDB_FILE, Options, RedbStore};
pub use resource::{
    CHANGES_MAX, Change, Conflict, DOCUMENT_MAX, Expect, Listing, StoredResource, digest,
};
pub use snapshot::{SnapshotMeta, SnapshotRow, SnapshotSink};

/// The number of a change of the store: each commit that changes something has the next one.
pub type Revision = u64;

/// An engine.
///
/// What an engine promises: a write is durable before it is answered; a commit is made whole or
/// not at all; revisions ascend in the order in which commits are made; what [`list`](Self::list)
/// returns together with the [`events`](Self::events) from its revision on is every change, once
/// and in order.
///
/// On etcd, one document is one value under its digest, written first, and a commit is one
/// transaction: it compares the key of the newest revision, puts that key, the commit's list of
/// keys and digests, and fails when another commit came first (three operations of 128, a list of
/// thousands of changes in 1.5 MiB); conditions of changes are checked against the revision that it
/// compares. On Kubernetes, resources are custom resources and conditions are their
/// `resourceVersion`; the API server has no transactions, and a commit that is stopped in the middle
/// is [`StoreError::Partial`]. Revisions are those of one process there, and ascend over restarts.
///
/// [`get`](Self::get), [`list`](Self::list) and [`records`](Self::records) are synchronous: an engine
/// over a network (etcd, Kubernetes) answers them from a mirror that its watch feeds, and the mirror
/// has every commit and write of its own before that is answered.
///
/// Leases, fences and [`RecordExpect`] have no user yet but the contract suite.
pub trait Store: fmt::Debug + Send + Sync {
    /// Makes all changes, as one revision, or none. Durable when it answers. Commits and other
    /// writes are made in the order of the calls.
    ///
    /// Conditions are checked first: where one does not hold, nothing changes and
    /// [`StoreError::Conflict`] names every change whose condition does not. Documents equal to
    /// what exists change nothing; when nothing changes, no revision is used up.
    fn commit(
        &self,
        author: &str,
        changes: Vec<Change>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.commit_fenced(author, changes, None)
    }

    /// The same, under the condition that a lease is held.
    fn commit_fenced(
        &self,
        author: &str,
        changes: Vec<Change>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// One resource.
    fn get(&self, key: &ResourceKey) -> Result<Option<StoredResource>, StoreError>;

    /// Every resource, and the revision of the whole. An unreadable one is an error.
    fn list(&self) -> Result<Listing, StoreError>;

    /// How many resources there are; none is read.
    fn count(&self) -> Result<usize, StoreError>;

    /// The commits after a revision, each once and in order.
    ///
    /// A consumer lists, applies the listing, and follows from [`Listing::revision`]. When it is
    /// told [`EventsError::TooFarBehind`] it begins again with a listing. On etcd and Kubernetes
    /// this is a watch from a revision, and "too far behind" is `ErrCompacted` and `410 Gone`.
    fn events(&self, from: Revision) -> Events;

    /// Entries of the history, the newest first, a page at a time.
    fn history(&self, query: HistoryQuery) -> BoxFuture<'_, Result<HistoryPage, StoreError>>;

    /// The entry in force at a revision, of every resource that existed then.
    fn at(
        &self,
        revision: Revision,
    ) -> BoxFuture<'_, Result<BTreeMap<ResourceKey, HistoryEntry>, StoreError>>;

    /// Writes records, all or none. Durable when it answers. Where a condition does not hold,
    /// nothing is written and [`StoreError::RecordConflict`] names the record.
    ///
    /// On etcd one transaction (a condition is a comparison of the value); on Kubernetes one
    /// `ConfigMap` or `Secret` for a record, written one at a time.
    fn write(&self, records: Vec<RecordWrite>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write_fenced(records, None)
    }

    /// The same, under the condition that a lease is held.
    fn write_fenced(
        &self,
        records: Vec<RecordWrite>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Every record of a table; [`read_records`] reads them.
    fn records(&self, table: &'static str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Takes a lease, or says who has it. Its fencing number is higher than any given before, also
    /// before a restart. A holder that asks for what it holds gets it anew, with a new number.
    ///
    /// On etcd a lease of its own and a key that is created under it, whose revision of creation is
    /// the fencing number; a fenced write compares that revision in its transaction. On Kubernetes
    /// a `coordination.k8s.io` Lease, with `leaseTransitions` as the fencing number; a fenced write
    /// reads it before it writes, because the API server cannot compare two objects at once.
    fn lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Lease, StoreError>>;

    /// Gives a lease its whole time again. [`StoreError::LeaseLost`] when it has ended.
    fn renew(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends a lease before its time. One that has ended or moved on already is not touched.
    fn release(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Gives every row as of one moment, and so does not wait for writes. Blocks. An unreadable row
    /// is an error.
    ///
    /// On Kubernetes and etcd backups are those of etcd.
    fn snapshot(&self, sink: &mut SnapshotSink<'_>) -> Result<(), StoreError>;

    /// Waits until the engine cannot take writes any more, because what does them has died; for ever
    /// where that cannot be.
    fn died(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// The newest revisions with what changed and what was seen at them, the oldest first, by which
    /// processes that share the store compare what they have seen; none of an engine of one process.
    fn positions(&self) -> Vec<Arc<Position>> {
        Vec::new()
    }

    /// Documents that have changed last in a revision, with their generations, where other processes that
    /// share the store may refuse them; none of an engine of one process.
    fn changed_in(&self, _revision: Revision) -> Vec<(ResourceKey, u64)> {
        Vec::new()
    }

    /// Documents that are not in force as they are in the store, for other processes that share it. To be
    /// read after [`positions`](Self::positions): what is refused of what was seen by then is in it.
    fn refusals(&self) -> Arc<Refusals> {
        Arc::default()
    }

    /// Changes whenever another process has written records; closed for an engine of one process.
    fn watch_records(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    /// The newest revision, whenever there is a new one.
    fn watch(&self) -> watch::Receiver<Revision>;
}
