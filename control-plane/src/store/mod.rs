//! Desired state, durable: resources with their history, and the control plane's own records.
//!
//! [`Store`] is the seam between the control plane and an engine. [`RedbStore`] keeps everything in
//! one file. How the trait maps to other engines is said at its methods.

mod error;
mod events;
mod record;
mod redb;
mod resource;

use std::fmt;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::model::ResourceKey;

pub use error::StoreError;
pub use events::{ChangedResource, EVENTS_BYTES_MAX, EVENTS_MAX, Event, Events, EventsError};
pub use record::{RecordExpect, RecordWrite, read_records, record};
pub use redb::RedbStore;
pub use resource::{
    CHANGES_MAX, Change, Conflict, DOCUMENT_MAX, Expect, Listing, StoredResource, digest,
};

/// The number of a change of the store: each commit that changes something has the next one.
pub type Revision = u64;

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Its revision.
    pub revision: Revision,
    /// When, milliseconds since the Unix epoch.
    pub time: i64,
    /// By whom.
    pub author: String,
    /// What was changed.
    pub key: ResourceKey,
    /// SHA-256 of the document; empty when it was deleted.
    pub digest: String,
    /// The document since then; `None` when it was deleted.
    pub document: Option<Value>,
}

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
/// compares. On Kubernetes, resources are custom resources, whose `resourceVersion` is the
/// revision; one commit is one object there, because the API server has no larger transactions.
pub trait Store: fmt::Debug + Send + Sync {
    /// Makes all changes, as one revision, or none. Durable when it answers.
    ///
    /// Conditions are checked first: where one does not hold, nothing changes and
    /// [`StoreError::Conflict`] names every change whose condition does not. Documents equal to
    /// what exists change nothing; when nothing changes, no revision is used up.
    fn commit(
        &self,
        author: &str,
        changes: Vec<Change>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// One resource.
    fn get(&self, key: &ResourceKey) -> Result<Option<StoredResource>, StoreError>;

    /// Every resource, and the revision of the whole. An unreadable one is an error.
    fn list(&self) -> Result<Listing, StoreError>;

    /// The commits after a revision, each once and in order.
    ///
    /// A consumer lists, applies the listing, and follows from [`Listing::revision`]. When it is
    /// told [`EventsError::TooFarBehind`] it begins again with a listing. On etcd and Kubernetes
    /// this is a watch from a revision, and "too far behind" is `ErrCompacted` and `410 Gone`.
    fn events(&self, from: Revision) -> Events;

    /// Changes, the newest first, `limit` at most; of one resource, if one is named.
    fn history(
        &self,
        key: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, StoreError>;

    /// The changes that bring back everything as it was at a revision.
    fn changes_back_to(&self, revision: Revision) -> Result<Vec<Change>, StoreError>;

    /// Writes records, all or none. Durable when it answers. Where a condition does not hold,
    /// nothing is written and [`StoreError::RecordConflict`] names the record.
    ///
    /// On etcd one transaction (a condition is a comparison of the value); on Kubernetes one
    /// `ConfigMap` or `Secret` for a record, written one at a time.
    fn write(&self, records: Vec<RecordWrite>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Every record of a table; [`read_records`] reads them.
    fn records(&self, table: &'static str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// The newest revision, whenever there is a new one.
    fn watch(&self) -> watch::Receiver<Revision>;
}
