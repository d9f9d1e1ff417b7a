//! The embedded engine: one file, one writer thread, group commit.

mod rows;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;

use futures_util::future::BoxFuture;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::model::ResourceKey;

use super::events::EventLog;
use super::resource::check_changes;
use super::{
    Change, Events, HistoryEntry, Listing, RecordWrite, Revision, Store, StoreError, StoredResource,
};
use rows::{Failure, HISTORY, META, RECORDS, RESOURCES};
use writer::{Reply, Request, Write, Writer};

/// The file in the data directory.
const FILE: &str = "weft.redb";
/// Writes that wait for the writer thread.
const QUEUE_MAX: usize = 1024;
/// Memory for pages, bytes: the state of a mesh is small.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The database, unless it could not be reopened after an I/O error.
type Shared = Arc<RwLock<Option<Database>>>;

/// A store in one file.
#[derive(Debug)]
pub struct RedbStore {
    path: PathBuf,
    database: Shared,
    writes: mpsc::Sender<Write>,
    events: Arc<EventLog>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

impl RedbStore {
    /// Opens the store in a directory, making both (0700 and 0600) where they are missing.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        let path = dir.join(FILE);
        let database = open(&path)?;
        let (newest, _transaction) =
            rows::newest(&database).map_err(|failure| failure.at(&path))?;
        let database = Arc::new(RwLock::new(Some(database)));
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let events = Arc::new(EventLog::new(newest));
        let writer = Writer::new(path.clone(), Arc::clone(&database), Arc::clone(&events));
        let thread = thread::Builder::new()
            .name("weft-store".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|error| engine(&path, &error))?;
        Ok(Arc::new(Self {
            path,
            database,
            writes,
            events,
            writer: Mutex::new(Some(thread)),
        }))
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(StoreError::Closed)?;
        let result = database
            .begin_read()
            .map_err(Failure::from)
            .and_then(|transaction| read(&transaction));
        result.map_err(|failure| failure.at(&self.path))
    }

    /// Hands a write to the writer thread, now: writes are made in the order of the calls.
    fn send(&self, request: Request) -> impl Future<Output = Result<Reply, StoreError>> + use<> {
        let (done, answer) = oneshot::channel();
        let write = Write { request, done };
        let sent = self.writes.try_send(write).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy { waiting: QUEUE_MAX },
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        });
        async move {
            sent?;
            answer.await.map_err(|_closed| StoreError::Closed)?
        }
    }

    fn entries(&self) -> Result<Vec<HistoryEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(HISTORY)?;
            let mut entries = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let (revision, number) = key.value();
                let key = format!("{revision}.{number}");
                entries.push(rows::decode("history", &key, value.value())?);
            }
            Ok(entries)
        })
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        // The queue ends with its last sender; the writer finishes what is in it.
        let (closed, _nobody) = mpsc::channel(1);
        self.writes = closed;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the end of its queue ends it, so this does not wait for long.
        if let Some(writer) = writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer has panicked");
        }
    }
}

impl Store for RedbStore {
    fn commit(
        &self,
        author: &str,
        changes: Vec<Change>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if let Err(error) = check_changes(&changes) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let author = author.to_owned();
        let sent = self.send(Request::Commit { author, changes });
        Box::pin(async move { Ok(sent.await?.revision) })
    }

    fn get(&self, key: &ResourceKey) -> Result<Option<StoredResource>, StoreError> {
        self.read(|transaction| rows::resource(&transaction.open_table(RESOURCES)?, key))
    }

    fn list(&self) -> Result<Listing, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(RESOURCES)?;
            let mut resources = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                resources.push(rows::decode("resources", key.value(), value.value())?);
            }
            // Rows are in the order of their text, which is not that of the keys.
            resources.sort_by(|a: &StoredResource, b| a.key.cmp(&b.key));
            Ok(Listing {
                revision: rows::revision(transaction)?,
                resources,
            })
        })
    }

    fn events(&self, from: Revision) -> Events {
        self.events.follow(from)
    }

    fn history(
        &self,
        key: Option<&ResourceKey>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let entries = self.entries()?.into_iter().rev();
        let wanted = entries.filter(|entry| key.is_none_or(|key| entry.key == *key));
        Ok(wanted.take(limit).collect())
    }

    fn changes_back_to(&self, revision: Revision) -> Result<Vec<Change>, StoreError> {
        let entries = self.entries()?;
        let bounds = (
            entries.first().map_or(0, |entry| entry.revision),
            entries.last().map_or(0, |entry| entry.revision),
        );
        if revision < bounds.0 || revision > bounds.1 {
            return Err(StoreError::NoRevision {
                found: revision,
                oldest: bounds.0,
                newest: bounds.1,
            });
        }
        let mut then: BTreeMap<&ResourceKey, Option<&Value>> = BTreeMap::new();
        for entry in &entries {
            let later = entry.revision > revision;
            let before = then.entry(&entry.key).or_default();
            if !later {
                *before = entry.document.as_ref();
            }
        }
        let changes = then.into_iter().map(|(key, document)| match document {
            Some(document) => Change::put(key.clone(), document.clone()),
            None => Change::delete(key.clone()),
        });
        Ok(changes.collect())
    }

    fn write(&self, records: Vec<RecordWrite>) -> BoxFuture<'_, Result<(), StoreError>> {
        let sent = self.send(Request::Records(records));
        Box::pin(async move { sent.await.map(|_reply| ()) })
    }

    fn records(&self, table: &'static str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let prefix = format!("{table}/");
        self.read(|transaction| {
            let records = transaction.open_table(RECORDS)?;
            let mut found = Vec::new();
            for row in records.range(prefix.as_str()..)? {
                let (key, value) = row?;
                let Some(key) = key.value().strip_prefix(&prefix) else {
                    break;
                };
                found.push((key.to_owned(), value.value().to_vec()));
            }
            Ok(found)
        })
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.events.watch()
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    if let Some(dir) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| engine(path, &error))?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| engine(path, &error))?;
    let made = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(FileBackend::new(file).map_err(|error| engine(path, &error))?)
        .map_err(|error| engine(path, &error))?;
    // Tables exist from the start, so that reading never meets a missing one.
    let prepare = || -> Result<(), redb::Error> {
        let transaction = made.begin_write()?;
        transaction.open_table(RESOURCES)?;
        transaction.open_table(HISTORY)?;
        transaction.open_table(RECORDS)?;
        transaction.open_table(META)?;
        transaction.commit()?;
        Ok(())
    };
    prepare().map_err(|error| engine(path, &error))?;
    Ok(made)
}

fn engine(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Engine {
        path: path.display().to_string(),
        cause: error.to_string(),
    }
}
