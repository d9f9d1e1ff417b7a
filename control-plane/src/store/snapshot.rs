//! The content of a store at one moment, row by row: for backups.

use serde::{Deserialize, Serialize};

use super::{HistoryEntry, Revision, StoredResource};

/// A row of a snapshot. Leases are not in it: nobody holds one in a store that is restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotRow {
    /// Numbers of the store; the first row.
    Meta(SnapshotMeta),
    /// A resource.
    Resource(StoredResource),
    /// An entry of the history, in the order of their positions.
    History {
        /// Its number among the changes of its revision.
        number: u32,
        /// The entry.
        entry: HistoryEntry,
    },
    /// A record.
    Record {
        /// TABLE/KEY.
        row: String,
        /// Its content, base64.
        content: String,
    },
}

/// Numbers of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotMeta {
    /// The newest revision.
    pub revision: Revision,
    /// The oldest revision whose state can be told.
    pub oldest: Revision,
    /// The last fencing number of a lease.
    pub fencing: u64,
}

/// Takes the rows of a snapshot; an error ends it.
pub type SnapshotSink<'a> = dyn FnMut(SnapshotRow) -> Result<(), String> + Send + 'a;
