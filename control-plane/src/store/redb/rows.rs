//! Tables of the file, and reading what is in them.

use std::path::Path;
use std::time::Duration;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;

use super::engine;
use crate::model::ResourceKey;
use crate::store::lease::LeaseBook;
use crate::store::{Revision, StoreError, StoredResource};

/// Resources by the text of their keys, as JSON.
pub(super) const RESOURCES: TableDefinition<'static, &str, &[u8]> =
    TableDefinition::new("resources");
/// Changes by revision and number, with the text of the resource's key, as JSON.
pub(super) const HISTORY: TableDefinition<'static, (u64, u32), (&str, &[u8])> =
    TableDefinition::new("history");
/// The index of [`HISTORY`] by resource: size of the entry, and whether it is a deletion.
pub(super) const HISTORY_OF: TableDefinition<'static, (&str, u64, u32), (u64, bool)> =
    TableDefinition::new("history-of");
/// Leases by name, as JSON.
pub(super) const LEASES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("leases");
/// Records by table and key, divided by a slash.
pub(super) const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
/// Numbers of the store itself.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// In [`META`]: the newest revision.
pub(super) const REVISION: &str = "revision";
/// In [`META`]: the oldest revision whose state can be told.
pub(super) const OLDEST: &str = "oldest";
/// In [`META`]: bytes of the entries after the oldest revision.
pub(super) const HISTORY_BYTES: &str = "history-bytes";
/// In [`META`]: the last fencing number.
pub(super) const FENCING: &str = "fencing";
/// In [`META`]: counts the transactions.
pub(super) const TRANSACTION: &str = "transaction";

/// Why a transaction failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The engine's error.
    Engine(redb::Error),
    /// What it found.
    Store(StoreError),
}

impl Failure {
    /// The error of the store in a file.
    pub(super) fn at(self, path: &Path) -> StoreError {
        match self {
            Self::Engine(error) => engine(path, &error),
            Self::Store(error) => error,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Engine(error.into())
    }
}

/// A row's content, read from JSON.
pub(super) fn decode<T: DeserializeOwned>(
    table: &str,
    key: &str,
    content: &[u8],
) -> Result<T, Failure> {
    serde_json::from_slice(content)
        .map_err(|error| Failure::Store(StoreError::unreadable(table, key, content, &error)))
}

pub(super) fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    let encoded = serde_json::to_vec(value);
    encoded.map_err(|error| Failure::Engine(redb::Error::Io(std::io::Error::other(error))))
}

/// One resource.
pub(super) fn resource(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &ResourceKey,
) -> Result<Option<StoredResource>, Failure> {
    let row = key.to_string();
    let found = table.get(row.as_str())?;
    found
        .map(|content| decode("resources", &row, content.value()))
        .transpose()
}

/// The newest revision.
pub(super) fn revision(transaction: &ReadTransaction) -> Result<Revision, Failure> {
    number(&transaction.open_table(META)?, REVISION)
}

/// The newest revision and the number of the last transaction.
pub(super) fn newest(database: &Database) -> Result<(Revision, u64), Failure> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok((number(&meta, REVISION)?, number(&meta, TRANSACTION)?))
}

/// The leases, and the last fencing number.
pub(super) fn leases(database: &Database, now: Duration) -> Result<LeaseBook, Failure> {
    let transaction = database.begin_read()?;
    let mut records = Vec::new();
    for row in transaction.open_table(LEASES)?.iter()? {
        let (name, content) = row?;
        let record = decode("leases", name.value(), content.value())?;
        records.push((name.value().to_owned(), record));
    }
    let fencing = number(&transaction.open_table(META)?, FENCING)?;
    Ok(LeaseBook::restore(records, fencing, now))
}

/// A number of the store itself; 0 when it was never written.
pub(super) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, Failure> {
    Ok(meta.get(name)?.map_or(0, |found| found.value()))
}
