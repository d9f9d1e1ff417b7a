//! Tables of the file, and reading what is in them.

use std::path::Path;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;

use super::engine;
use crate::model::ResourceKey;
use crate::store::{Revision, StoreError, StoredResource};

/// Resources by the text of their keys, as JSON.
pub(super) const RESOURCES: TableDefinition<'static, &str, &[u8]> =
    TableDefinition::new("resources");
/// Changes by revision and their place in it, as JSON.
pub(super) const HISTORY: TableDefinition<'static, (u64, u32), &[u8]> =
    TableDefinition::new("history");
/// Records by table and key, divided by a slash.
pub(super) const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
/// Numbers of the store itself.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// In [`META`]: the newest revision.
pub(super) const REVISION: &str = "revision";
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

/// A number of the store itself; 0 when it was never written.
pub(super) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, Failure> {
    Ok(meta.get(name)?.map_or(0, |found| found.value()))
}
