//! Giving up rows that cannot be read, when an operator says so.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::ReadableTable;

use super::rows::{Failure, HISTORY, HISTORY_OF, LEASES, RECORDS, RESOURCES};
use super::{FILE, RedbStore, engine, open};
use crate::store::error::content_digest;
use crate::store::{HistoryPosition, StoreError};

impl RedbStore {
    /// Removes a row, named TABLE/KEY@DIGEST as the error for it names it. Its content is kept in a
    /// file beside the store, whose path is returned. A row with other content is not touched.
    ///
    /// The store must not be open.
    pub fn discard(dir: &Path, row: &str) -> Result<PathBuf, StoreError> {
        let path = dir.join(FILE);
        let named = row.rsplit_once('@');
        let named = named.and_then(|(row, digest)| Some((row.split_once('/')?, digest)));
        let Some(((table, key), digest)) = named else {
            let text = format!("found {row:?}; allowed: TABLE/KEY@DIGEST, as the error names it");
            return Err(StoreError::Discard(text));
        };
        let database = open(&path)?;
        let remove = || -> Result<PathBuf, Failure> {
            let transaction = database.begin_write()?;
            let content = content(&transaction, table, key)?;
            let found = content.as_deref().map(content_digest);
            if found.as_deref() != Some(digest) {
                let found = found.unwrap_or_else(|| "no such row".to_owned());
                let text = format!("{table}/{key}: expected digest {digest}, found {found}");
                return Err(StoreError::Discard(text).into());
            }
            let kept = keep(dir, digest, &content.unwrap_or_default())
                .map_err(|error| Failure::Store(engine(&path, &error)))?;
            delete(&transaction, table, key)?;
            transaction.commit()?;
            Ok(kept)
        };
        remove().map_err(|failure| failure.at(&path))
    }
}

fn content(
    transaction: &redb::WriteTransaction,
    table: &str,
    key: &str,
) -> Result<Option<Vec<u8>>, Failure> {
    Ok(match table {
        "resources" => bytes(&transaction.open_table(RESOURCES)?, key)?,
        "leases" => bytes(&transaction.open_table(LEASES)?, key)?,
        "history" => {
            let HistoryPosition(revision, number) = position(key)?;
            let history = transaction.open_table(HISTORY)?;
            let found = history.get((revision, number))?;
            found.map(|found| found.value().1.to_vec())
        }
        _ => bytes(&transaction.open_table(RECORDS)?, &format!("{table}/{key}"))?,
    })
}

fn bytes(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Vec<u8>>, Failure> {
    Ok(table.get(key)?.map(|found| found.value().to_vec()))
}

fn delete(transaction: &redb::WriteTransaction, table: &str, key: &str) -> Result<(), Failure> {
    match table {
        "resources" => drop(transaction.open_table(RESOURCES)?.remove(key)?),
        "leases" => drop(transaction.open_table(LEASES)?.remove(key)?),
        "history" => {
            let HistoryPosition(revision, number) = position(key)?;
            let mut history = transaction.open_table(HISTORY)?;
            let row = history.remove((revision, number))?;
            let row = row.map(|row| row.value().0.to_owned());
            if let Some(row) = row {
                let mut index = transaction.open_table(HISTORY_OF)?;
                index.remove((row.as_str(), revision, number))?;
            }
        }
        _ => {
            let row = format!("{table}/{key}");
            drop(transaction.open_table(RECORDS)?.remove(row.as_str())?);
        }
    }
    Ok(())
}

fn position(key: &str) -> Result<HistoryPosition, Failure> {
    key.parse()
        .map_err(|error| Failure::Store(StoreError::Discard(error)))
}

fn keep(dir: &Path, digest: &str, content: &[u8]) -> std::io::Result<PathBuf> {
    let path = dir.join(format!("discarded-{digest}"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(path)
}
