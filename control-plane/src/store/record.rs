//! Small records of the control plane's own: tokens, instances, registrations, addresses.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Store, StoreError};

/// A record that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordWrite {
    /// The kind of record.
    pub table: &'static str,
    /// Its key.
    pub key: String,
    /// Its content from now on; `None` removes it.
    pub value: Option<Vec<u8>>,
    /// The condition under which it is written.
    pub expect: RecordExpect,
}

impl RecordWrite {
    /// Makes the write conditional.
    #[must_use]
    pub fn expecting(self, expect: RecordExpect) -> Self {
        Self { expect, ..self }
    }

    /// The name of its row.
    pub(super) fn row(&self) -> String {
        format!("{}/{}", self.table, self.key)
    }

    /// The error when its condition does not hold.
    pub(super) fn conflict(&self) -> StoreError {
        StoreError::RecordConflict {
            table: self.table,
            key: self.key.clone(),
        }
    }
}

/// The condition of a record's write: compare-and-swap on its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RecordExpect {
    /// No condition.
    #[default]
    Any,
    /// There is no such record.
    Absent,
    /// The record has exactly this content.
    Equals(Vec<u8>),
}

impl RecordExpect {
    /// Whether the condition holds for what exists.
    pub fn holds(&self, found: Option<&[u8]>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Equals(expected) => found == Some(expected),
        }
    }
}

/// Every record of a table, read from JSON. A record that cannot be read is an error, never left
/// out: a revocation that is not read would be a revocation that does not hold.
pub fn read_records<T: DeserializeOwned>(
    store: &dyn Store,
    table: &'static str,
) -> Result<Vec<(String, T)>, StoreError> {
    let records = store.records(table)?.into_iter();
    let read = records.map(|(key, content)| match serde_json::from_slice(&content) {
        Ok(value) => Ok((key, value)),
        Err(error) => Err(StoreError::unreadable(table, &key, &content, &error)),
    });
    read.collect()
}

/// The write of a record as JSON, without a condition; `None` removes it.
pub fn record<T: Serialize>(table: &'static str, key: &str, value: Option<&T>) -> RecordWrite {
    RecordWrite {
        table,
        key: key.to_owned(),
        // Plain structures with string keys: their JSON cannot fail.
        value: value.map(|value| serde_json::to_vec(value).unwrap_or_default()),
        expect: RecordExpect::Any,
    }
}
