//! Snapshots of the file, and making a file of one.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use super::rows::{
    self, FENCING, Failure, HISTORY, HISTORY_BYTES, HISTORY_OF, META, OLDEST, RECORDS, RESOURCES,
    REVISION, decode, encode,
};
use super::{FILE, RedbStore, open};
use crate::store::{
    HistoryPosition, SnapshotMeta, SnapshotRow, SnapshotSink, StoreError, StoredResource,
};

/// Gives every row to `sink`. One that cannot be read is an error: a backup has everything.
pub(super) fn write(
    transaction: &ReadTransaction,
    sink: &mut SnapshotSink<'_>,
) -> Result<(), Failure> {
    let mut give = |row| sink(row).map_err(|cause| Failure::Store(StoreError::Snapshot(cause)));
    let meta = transaction.open_table(META)?;
    give(SnapshotRow::Meta(SnapshotMeta {
        revision: rows::number(&meta, REVISION)?,
        oldest: rows::number(&meta, OLDEST)?,
        fencing: rows::number(&meta, FENCING)?,
    }))?;
    for row in transaction.open_table(RESOURCES)?.iter()? {
        let (key, content) = row?;
        let resource: StoredResource = decode("resources", key.value(), content.value())?;
        give(SnapshotRow::Resource(resource))?;
    }
    for row in transaction.open_table(HISTORY)?.iter()? {
        let (key, content) = row?;
        let (revision, number) = key.value();
        let place = HistoryPosition(revision, number).to_string();
        let entry = decode("history", &place, content.value().1)?;
        give(SnapshotRow::History { number, entry })?;
    }
    for row in transaction.open_table(RECORDS)?.iter()? {
        let (key, content) = row?;
        give(SnapshotRow::Record {
            row: key.value().to_owned(),
            content: STANDARD.encode(content.value()),
        })?;
    }
    Ok(())
}

impl RedbStore {
    /// Makes a store of a snapshot in a directory that has none.
    pub fn restore(
        dir: &Path,
        rows: impl Iterator<Item = Result<SnapshotRow, String>>,
    ) -> Result<(), StoreError> {
        let path = dir.join(FILE);
        if path.exists() {
            let text = format!("{} exists already", path.display());
            return Err(StoreError::Snapshot(text));
        }
        let database = open(&path)?;
        let restore = || {
            let transaction = database.begin_write()?;
            let mut meta = SnapshotMeta::default();
            let mut bytes = 0;
            for row in rows {
                let row = row.map_err(StoreError::Snapshot)?;
                put(&transaction, row, &mut meta, &mut bytes)?;
            }
            {
                let mut table = transaction.open_table(META)?;
                table.insert(REVISION, meta.revision)?;
                table.insert(OLDEST, meta.oldest)?;
                table.insert(FENCING, meta.fencing)?;
                table.insert(HISTORY_BYTES, bytes)?;
            }
            transaction.commit()?;
            Ok(())
        };
        restore().map_err(|failure: Failure| failure.at(&path))
    }
}

fn put(
    transaction: &WriteTransaction,
    row: SnapshotRow,
    meta: &mut SnapshotMeta,
    bytes: &mut u64,
) -> Result<(), Failure> {
    match row {
        SnapshotRow::Meta(found) => *meta = found,
        SnapshotRow::Resource(resource) => {
            let row = resource.key.to_string();
            let content = encode(&resource)?;
            let mut table = transaction.open_table(RESOURCES)?;
            table.insert(row.as_str(), content.as_slice())?;
        }
        SnapshotRow::History { number, entry } => {
            let row = entry.key.to_string();
            let content = encode(&entry)?;
            let size = content.len() as u64;
            if entry.revision > meta.oldest {
                *bytes += size;
            }
            let mut history = transaction.open_table(HISTORY)?;
            let place = (entry.revision, number);
            history.insert(place, (row.as_str(), content.as_slice()))?;
            let mut index = transaction.open_table(HISTORY_OF)?;
            let place = (row.as_str(), entry.revision, number);
            index.insert(place, (size, entry.document.is_none()))?;
        }
        SnapshotRow::Record { row, content } => {
            let content = STANDARD.decode(content);
            let content = content.map_err(|error| StoreError::Snapshot(error.to_string()))?;
            let mut table = transaction.open_table(RECORDS)?;
            table.insert(row.as_str(), content.as_slice())?;
        }
    }
    Ok(())
}
