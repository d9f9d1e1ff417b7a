//! Errors of the store.

use std::time::Duration;

use super::{Conflict, Revision};
use crate::model::ResourceKey;

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
        /// The engine's error.
        cause: String,
    },
    /// The engine failed at the last step of a write.
    #[error(
        "store {path}: {cause}; whether this change was kept is open (see `weft history`), what was acknowledged before is kept; check space and health of the disk"
    )]
    Uncertain {
        /// The file.
        path: String,
        /// The engine's error.
        cause: String,
    },
    /// The file is not what was written.
    #[error("store {path} is damaged: {cause}; restore a backup (`weft restore`)")]
    Damaged {
        /// The file.
        path: String,
        /// What was found.
        cause: String,
    },
    /// A row on disk is not what it should be.
    #[error(
        "store: {table}/{key} cannot be read: {cause}; restore a backup (`weft restore`), or give this row up, which may be a revocation, with --discard-unreadable {table}/{key}@{digest}"
    )]
    Unreadable {
        /// The table.
        table: String,
        /// The key of the row.
        key: String,
        /// What is wrong with the content.
        cause: String,
        /// SHA-256 of the content, the first 16 hexadecimal digits.
        digest: String,
    },
    /// Too many writes wait already.
    #[error("store: {waiting} writes are waiting already; try again later")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// Conditions of changes do not hold; nothing was changed.
    #[error("changed by somebody else meanwhile: {}", list(.0))]
    Conflict(Vec<Conflict>),
    /// The condition of a record's write does not hold; nothing was written.
    #[error("{table}/{key} was changed by another write meanwhile; try again")]
    RecordConflict {
        /// The table.
        table: &'static str,
        /// The key of the record.
        key: String,
    },
    /// A document is too large.
    #[error("{key}: the document has {size} bytes; allowed are {max}")]
    TooLarge {
        /// The resource.
        key: ResourceKey,
        /// Size of its document, bytes.
        size: usize,
        /// The limit, bytes.
        max: usize,
    },
    /// A commit has too many changes.
    #[error("{found} changes at once; allowed are {max}")]
    TooMany {
        /// How many.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// A commit names a resource more than once.
    #[error("{0} is named twice; allowed: each resource once")]
    Twice(ResourceKey),
    /// The revision is not in the history.
    #[error("revision {found} is not in the history; kept are {oldest} to {newest}")]
    NoRevision {
        /// What was asked for.
        found: Revision,
        /// The oldest kept.
        oldest: Revision,
        /// The newest.
        newest: Revision,
    },
    /// Somebody else holds the lease.
    #[error("lease {name:?} is held by {holder:?} for another {remaining:?}")]
    LeaseHeld {
        /// What it is for.
        name: String,
        /// Who has it.
        holder: String,
        /// How long, unless it is renewed or released.
        remaining: Duration,
    },
    /// The lease has ended or somebody else has it; nothing was written.
    #[error(
        "lease {name:?} with fencing number {fencing} is not held any more; nothing was written"
    )]
    LeaseLost {
        /// What it is for.
        name: String,
        /// The number of the write or of the renewal.
        fencing: u64,
    },
    /// The lease that is asked for is not possible.
    #[error("lease: {0}")]
    Lease(String),
    /// A snapshot cannot be written or read.
    #[error("snapshot: {0}")]
    Snapshot(String),
    /// A row is not given up.
    #[error("--discard-unreadable: {0}; nothing was discarded")]
    Discard(String),
    /// The cluster's API does not do what it was asked.
    #[error("the cluster's API: {cause}; nothing was changed")]
    Cluster {
        /// What it says.
        cause: String,
    },
    /// The cluster's API has not answered.
    #[error(
        "the cluster's API: {cause}; whether this change was made is open: look before you repeat it"
    )]
    ClusterUncertain {
        /// What happened.
        cause: String,
    },
    /// The cluster's API does not take a document.
    #[error("{key}: the cluster's API refuses it: {cause}; it was not changed")]
    Refused {
        /// The document.
        key: ResourceKey,
        /// What it says.
        cause: String,
    },
    /// The cluster does not have this kind of documents.
    #[error(
        "{key}: the cluster has no such kind: `weft crds | kubectl apply -f -` for those of weft-mesh.io, the Gateway API's own definitions for routes; a Service is made with `kubectl`"
    )]
    NoSuchKind {
        /// The document.
        key: ResourceKey,
    },
    /// A commit or write was stopped in the middle, in an engine without transactions.
    #[error("{} was made, and then: {cause}", .written.join(", "))]
    Partial {
        /// What was made.
        written: Vec<String>,
        /// What stopped it.
        cause: Box<Self>,
    },
    /// The engine does not do this.
    #[error("{0}")]
    Unsupported(&'static str),
    /// It was closed.
    #[error("the store has been closed")]
    Closed,
}

impl StoreError {
    /// The error for a row whose content cannot be read.
    pub(crate) fn unreadable(table: &str, key: &str, content: &[u8], cause: &dyn ToString) -> Self {
        Self::Unreadable {
            table: table.to_owned(),
            key: key.to_owned(),
            cause: cause.to_string(),
            digest: content_digest(content),
        }
    }
}

/// The digest by which an operator names the content of a row.
pub(crate) fn content_digest(content: &[u8]) -> String {
    let mut digest = crate::sha256_hex(content);
    digest.truncate(16);
    digest
}

fn list(conflicts: &[Conflict]) -> String {
    let texts: Vec<String> = conflicts.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
