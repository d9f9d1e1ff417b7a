//! The embedded engine: one writer thread, group commit.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;

use futures_util::future::BoxFuture;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Change, HistoryEntry, RecordWrite, ResourceKey, Revision, Store, StoreError, StoredResource,
    digest,
};

const RESOURCES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("resources");
const HISTORY: TableDefinition<'static, (u64, u32), &[u8]> = TableDefinition::new("history");
const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");

/// The file in the data directory.
const FILE: &str = "weft.redb";
/// Writes that wait for the writer thread.
const QUEUE_MAX: usize = 1024;
/// Writes that share one fsync.
const GROUP_MAX: usize = 256;
/// Largest document, bytes.
const DOCUMENT_MAX: usize = 1024 * 1024;
/// Changes that are kept.
const HISTORY_MAX: u64 = 10_000;
/// Memory for pages, bytes: the state of a mesh is small.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// A store in one file.
#[derive(Debug)]
pub struct RedbStore {
    path: PathBuf,
    database: Arc<RwLock<Option<Database>>>,
    writes: mpsc::Sender<Write>,
    revision: watch::Receiver<Revision>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

enum Write {
    Commit {
        author: String,
        changes: Vec<Change>,
        done: oneshot::Sender<Result<Revision, StoreError>>,
    },
    Records {
        records: Vec<RecordWrite>,
        done: oneshot::Sender<Result<(), StoreError>>,
    },
}

impl RedbStore {
    /// Opens the store in a directory, making both (0700 and 0600) where they are missing.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        let path = dir.join(FILE);
        let database = open(&path)?;
        let newest = newest(&database).map_err(|error| engine(&path, &error))?;
        let database = Arc::new(RwLock::new(Some(database)));
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let (announce, revision) = watch::channel(newest);
        let writer = Writer {
            path: path.clone(),
            database: Arc::clone(&database),
            announce,
        };
        let thread = thread::Builder::new()
            .name("weft-store".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|error| engine(&path, &error))?;
        Ok(Arc::new(Self {
            path,
            database,
            writes,
            revision,
            writer: Mutex::new(Some(thread)),
        }))
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(StoreError::Closed)?;
        let result = database
            .begin_read()
            .map_err(redb::Error::from)
            .and_then(|transaction| read(&transaction));
        result.map_err(|error| engine(&self.path, &error))
    }

    fn send<T>(
        &self,
        write: Write,
        done: oneshot::Receiver<Result<T, StoreError>>,
    ) -> BoxFuture<'_, Result<T, StoreError>>
    where
        T: Send + 'static,
    {
        let sent = self.writes.try_send(write).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy { waiting: QUEUE_MAX },
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        });
        Box::pin(async move {
            sent?;
            done.await.map_err(|_closed| StoreError::Closed)?
        })
    }

    fn entries(&self) -> Result<Vec<HistoryEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(HISTORY)?;
            let mut entries = Vec::new();
            for row in table.iter()? {
                let (_key, value) = row?;
                if let Ok(entry) = serde_json::from_slice(value.value()) {
                    entries.push(entry);
                }
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
        for change in &changes {
            if let Change::Put(key, document) = change {
                let size = document.to_string().len();
                if size > DOCUMENT_MAX {
                    let error = StoreError::TooLarge {
                        key: key.clone(),
                        size,
                        max: DOCUMENT_MAX,
                    };
                    return Box::pin(std::future::ready(Err(error)));
                }
            }
        }
        let (done, answer) = oneshot::channel();
        let author = author.to_owned();
        self.send(
            Write::Commit {
                author,
                changes,
                done,
            },
            answer,
        )
    }

    fn list(&self) -> Result<Vec<StoredResource>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(RESOURCES)?;
            let mut found = Vec::new();
            for row in table.iter()? {
                let (_key, value) = row?;
                if let Ok(resource) = serde_json::from_slice(value.value()) {
                    found.push(resource);
                }
            }
            Ok(found)
        })
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
            Some(document) => Change::Put(key.clone(), document.clone()),
            None => Change::Delete(key.clone()),
        });
        Ok(changes.collect())
    }

    fn write(&self, records: Vec<RecordWrite>) -> BoxFuture<'_, Result<(), StoreError>> {
        let (done, answer) = oneshot::channel();
        self.send(Write::Records { records, done }, answer)
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
        self.revision.clone()
    }
}

struct Writer {
    path: PathBuf,
    database: Arc<RwLock<Option<Database>>>,
    announce: watch::Sender<Revision>,
}

type Answer = Box<dyn FnOnce(Result<Revision, StoreError>)>;

impl Writer {
    fn run(self, mut queue: mpsc::Receiver<Write>) {
        let mut group = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            group.push(first);
            while group.len() < GROUP_MAX
                && let Ok(more) = queue.try_recv()
            {
                group.push(more);
            }
            self.write(std::mem::take(&mut group));
        }
    }

    /// One transaction and one fsync for the whole group.
    fn write(&self, group: Vec<Write>) {
        let mut answers: Vec<(Answer, Revision)> = Vec::with_capacity(group.len());
        let mut newest = *self.announce.borrow();
        let result = self.transact(|transaction| {
            for write in group {
                match write {
                    Write::Commit {
                        author,
                        changes,
                        done,
                    } => {
                        newest = commit(transaction, newest, &author, changes)?;
                        let answer: Answer = Box::new(move |result| drop(done.send(result)));
                        answers.push((answer, newest));
                    }
                    Write::Records { records, done } => {
                        put_records(transaction, records)?;
                        let answer: Answer =
                            Box::new(move |result| drop(done.send(result.map(|_revision| ()))));
                        answers.push((answer, newest));
                    }
                }
            }
            Ok(())
        });
        match result {
            Ok(()) => {
                self.announce.send_if_modified(|revision| {
                    let newer = newest > *revision;
                    *revision = newest;
                    newer
                });
                for (answer, revision) in answers {
                    answer(Ok(revision));
                }
            }
            Err(error) => {
                let error = engine(&self.path, &error);
                tracing::error!(%error, "write failed");
                self.reopen();
                for (answer, _revision) in answers {
                    answer(Err(error.clone()));
                }
            }
        }
    }

    fn transact(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else {
            return Err(redb::Error::PreviousIo);
        };
        let mut transaction = database.begin_write()?;
        // A crash is then repaired in no time.
        transaction.set_quick_repair(true);
        change(&transaction)?;
        transaction.commit()?;
        Ok(())
    }

    /// After an I/O error redb takes no more writes: what is on disk is opened anew.
    fn reopen(&self) {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *database = None;
        match open(&self.path) {
            Ok(opened) => *database = Some(opened),
            Err(error) => tracing::error!(%error, "store not reopened"),
        }
    }
}

fn commit(
    transaction: &redb::WriteTransaction,
    newest: Revision,
    author: &str,
    changes: Vec<Change>,
) -> Result<Revision, redb::Error> {
    let revision = newest + 1;
    let time = crate::unix_millis();
    let mut resources = transaction.open_table(RESOURCES)?;
    let mut history = transaction.open_table(HISTORY)?;
    let mut number = 0;
    for change in changes {
        let (key, document) = match change {
            Change::Put(key, document) => (key, Some(document)),
            Change::Delete(key) => (key, None),
        };
        let row = key.to_string();
        let before: Option<StoredResource> = resources
            .get(row.as_str())?
            .and_then(|value| serde_json::from_slice(value.value()).ok());
        let new_digest = document.as_ref().map(digest).unwrap_or_default();
        let old_digest = before.as_ref().map_or("", |before| before.digest.as_str());
        if new_digest == old_digest {
            continue;
        }
        let entry = HistoryEntry {
            revision,
            time,
            author: author.to_owned(),
            key: key.clone(),
            digest: new_digest.clone(),
            document: document.clone(),
        };
        history.insert((revision, number), encode(&entry)?.as_slice())?;
        number += 1;
        match document {
            Some(document) => {
                let stored = StoredResource {
                    key,
                    revision,
                    created: before.as_ref().map_or(time, |before| before.created),
                    changed: time,
                    author: author.to_owned(),
                    digest: new_digest,
                    generation: before.map_or(1, |before| before.generation + 1),
                    document,
                };
                resources.insert(row.as_str(), encode(&stored)?.as_slice())?;
            }
            None => {
                resources.remove(row.as_str())?;
            }
        }
    }
    if number == 0 {
        return Ok(newest);
    }
    prune(&mut history, revision)?;
    Ok(revision)
}

/// Drops what is older than the history is long, except the last state of each resource, which a
/// rollback needs.
fn prune(
    history: &mut redb::Table<'_, (u64, u32), &'static [u8]>,
    newest: Revision,
) -> Result<(), redb::Error> {
    let Some(limit) = newest.checked_sub(HISTORY_MAX) else {
        return Ok(());
    };
    history.retain_in((0, 0)..(limit, 0), |_key, _value| false)?;
    Ok(())
}

fn put_records(
    transaction: &redb::WriteTransaction,
    records: Vec<RecordWrite>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(RECORDS)?;
    for RecordWrite {
        table: kind,
        key,
        value,
    } in records
    {
        let key = format!("{kind}/{key}");
        match value {
            Some(value) => {
                table.insert(key.as_str(), value.as_slice())?;
            }
            None => {
                table.remove(key.as_str())?;
            }
        }
    }
    Ok(())
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Io(std::io::Error::other(error)))
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
        transaction.commit()?;
        Ok(())
    };
    prepare().map_err(|error| engine(path, &error))?;
    Ok(made)
}

fn newest(database: &Database) -> Result<Revision, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(HISTORY)?;
    let last = table.last()?;
    Ok(last.map_or(0, |(key, _value)| key.value().0))
}

fn engine(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Engine {
        path: path.display().to_string(),
        cause: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(name: &str) -> ResourceKey {
        ResourceKey {
            kind: "Service".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    #[tokio::test]
    async fn changes_are_kept_with_their_history() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path()).unwrap();
        let put = |name: &str, n: u32| Change::Put(key(name), json!({ "n": n }));
        assert_eq!(store.commit("a", vec![put("web", 1)]).await.unwrap(), 1);
        let two = vec![put("web", 2), put("orders", 1)];
        assert_eq!(store.commit("b", two).await.unwrap(), 2);
        // Nothing changes: no revision.
        assert_eq!(store.commit("b", vec![put("web", 2)]).await.unwrap(), 2);
        let delete = vec![Change::Delete(key("orders"))];
        assert_eq!(store.commit("c", delete).await.unwrap(), 3);
        let listed = store.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].generation, listed[0].revision), (2, 2));
        let history = store.history(Some(&key("web")), 10).unwrap();
        assert_eq!(history.len(), 2);
        assert_eq!(history[0].author, "b");
        let back = store.changes_back_to(1).unwrap();
        assert_eq!(store.commit("d", back).await.unwrap(), 4);
        assert_eq!(store.list().unwrap()[0].document, json!({"n": 1}));
        assert!(store.changes_back_to(9).is_err());
        drop(store);
        let again = RedbStore::open(dir.path()).unwrap();
        assert_eq!(again.list().unwrap()[0].document, json!({"n": 1}));
        assert_eq!(*again.watch().borrow(), 4);
    }

    #[tokio::test]
    async fn records_by_table() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path()).unwrap();
        let record = |table, key: &str, value: Option<&[u8]>| RecordWrite {
            table,
            key: key.to_owned(),
            value: value.map(<[u8]>::to_vec),
        };
        let both = vec![record("a", "1", Some(b"x")), record("ab", "2", Some(b"y"))];
        store.write(both).await.unwrap();
        assert_eq!(
            store.records("a").unwrap(),
            [("1".to_owned(), b"x".to_vec())]
        );
        store.write(vec![record("a", "1", None)]).await.unwrap();
        assert!(store.records("a").unwrap().is_empty());
        assert_eq!(store.records("ab").unwrap().len(), 1);
    }

    #[tokio::test]
    async fn too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path()).unwrap();
        let large = Change::Put(key("web"), json!("x".repeat(DOCUMENT_MAX + 1)));
        let error = store.commit("a", vec![large]).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }));
        assert!(store.list().unwrap().is_empty());
    }
}
