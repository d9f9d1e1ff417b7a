//! What was asked for, durable: resources with their history, and the control plane's own records.
//!
//! Behind a small trait, since other engines follow. A write is durable before it is answered.

mod redb;

use std::fmt;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

pub use redb::RedbStore;

use crate::model::ResourceKey;

/// Counts the changes of the store; each change has its own.
pub type Revision = u64;

/// A resource as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredResource {
    /// What it goes by.
    pub key: ResourceKey,
    /// The revision of its last change.
    pub revision: Revision,
    /// When it was made, milliseconds since the Unix epoch.
    pub created: i64,
    /// When it was changed last.
    pub changed: i64,
    /// Who changed it last.
    pub author: String,
    /// SHA-256 of the document, hexadecimal.
    pub digest: String,
    /// Counts its own changes, from 1.
    pub generation: u64,
    /// The document.
    pub document: Value,
}

/// A change that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// This document is to be there.
    Put(ResourceKey, Value),
    /// Nothing is to be there.
    Delete(ResourceKey),
}

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

/// A small record of the control plane's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordWrite {
    /// Which kind of record.
    pub table: &'static str,
    /// Its key.
    pub key: String,
    /// What it is to be; `None` removes it.
    pub value: Option<Vec<u8>>,
}

/// Why something is not stored, or not read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The engine failed: a full or broken disk, above all.
    #[error(
        "store {path}: {cause}; nothing of this change was kept, what was acknowledged before is; check space and health of the disk"
    )]
    Engine {
        /// The file.
        path: String,
        /// What it said.
        cause: String,
    },
    /// Too many writes wait already.
    #[error("store: {waiting} writes are waiting already; try again later")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// A document is too large.
    #[error("{key}: the document has {size} bytes; allowed are {max}")]
    TooLarge {
        /// Which.
        key: ResourceKey,
        /// Its size.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// The revision is not kept any more, or never was.
    #[error("revision {found} is not in the history; kept are {oldest} to {newest}")]
    NoRevision {
        /// What was asked for.
        found: Revision,
        /// The oldest kept.
        oldest: Revision,
        /// The newest.
        newest: Revision,
    },
    /// It was closed.
    #[error("the store has been closed")]
    Closed,
}

/// An engine.
pub trait Store: fmt::Debug + Send + Sync {
    /// Makes all changes, as one revision, or none. Durable when it answers. Documents equal to
    /// what is there change nothing; when nothing changes, no revision is used up.
    fn commit(
        &self,
        author: &str,
        changes: Vec<Change>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// Every resource.
    fn list(&self) -> Result<Vec<StoredResource>, StoreError>;

    /// Changes, the newest first, `limit` at most; of one resource, if one is named.
    fn history(
        &self,
        key: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, StoreError>;

    /// The changes that bring back everything as it was at a revision.
    fn changes_back_to(&self, revision: Revision) -> Result<Vec<Change>, StoreError>;

    /// Writes records, all or none. Durable when it answers.
    fn write(&self, records: Vec<RecordWrite>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Every record of a table.
    fn records(&self, table: &'static str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// The newest revision, whenever there is a new one.
    fn watch(&self) -> watch::Receiver<Revision>;
}

/// SHA-256 of a document in its canonical form, hexadecimal.
pub fn digest(document: &Value) -> String {
    // serde_json keeps objects sorted by key: equal documents have equal text.
    crate::sha256_hex(document.to_string().as_bytes())
}
