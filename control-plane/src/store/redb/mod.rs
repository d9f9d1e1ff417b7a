//! The embedded engine: one file, one writer thread, group commit.

mod discard;
mod file;
mod history;
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata};
use tokio::sync::{mpsc, oneshot, watch};

use crate::model::ResourceKey;
use crate::panics::caught;

use super::events::EventLog;
use super::lease::LeaseBook;
use super::resource::check_changes;
use super::{
    Change, Clock, Events, Fence, HistoryEntry, HistoryLimits, HistoryPage, HistoryQuery, Lease,
    Listing, MonotonicClock, RecordWrite, Revision, SnapshotSink, Store, StoreError,
    StoredResource,
};
use file::FileId;
use rows::{Failure, HISTORY, HISTORY_OF, LEASES, META, RECORDS, RESOURCES};
use writer::{Reply, Request, Write, Writer};

/// The file in the data directory.
pub const FILE: &str = "weft.redb";
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
    file: FileId,
    database: Shared,
    writes: mpsc::Sender<Write>,
    events: Arc<EventLog>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

/// How the store works.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much history is kept.
    pub history: HistoryLimits,
    /// By what leases end.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history: HistoryLimits::default(),
            clock: Arc::new(MonotonicClock::default()),
        }
    }
}

impl RedbStore {
    /// Opens the store in a directory, making both (0700 and 0600) where they are missing.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        Self::open_with(dir, Options::default())
    }

    /// The same, with other limits or another clock.
    pub fn open_with(dir: &Path, options: Options) -> Result<Arc<Self>, StoreError> {
        let path = dir.join(FILE);
        let (database, newest, leases) = open_checked(&path, options.clock.now())?;
        let file = FileId::of(&path).map_err(|error| engine(&path, &error))?;
        let database = Arc::new(RwLock::new(Some(database)));
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let events = Arc::new(EventLog::new(newest));
        let writer = Writer {
            path: path.clone(),
            file,
            database: Arc::clone(&database),
            events: Arc::clone(&events),
            leases,
            options,
        };
        let thread = thread::Builder::new()
            .name("weft-store".to_owned())
            // Its end is told by the store, and ends the process with the reason.
            .spawn(move || {
                let _run_or_panicked = caught(|| writer.run(queue));
            })
            .map_err(|error| engine(&path, &error))?;
        Ok(Arc::new(Self {
            path,
            file,
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
        read_from(&self.database, &self.events, (&self.path, self.file), read)
    }

    /// Reads what may be much, on a thread that may wait.
    fn read_aside<T: Send + 'static>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, Failure> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let (database, path, file) = (Arc::clone(&self.database), self.path.clone(), self.file);
        let events = Arc::clone(&self.events);
        let reading =
            tokio::task::spawn_blocking(move || read_from(&database, &events, (&path, file), read));
        // The runtime ends before it has begun: as if the store had been closed.
        Box::pin(async move { reading.await.unwrap_or(Err(StoreError::Closed)) })
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
    fn commit_fenced(
        &self,
        author: &str,
        changes: Vec<Change>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if let Err(error) = check_changes(&changes) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let author = author.to_owned();
        let sent = self.send(Request::Commit {
            author,
            changes,
            fence,
        });
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

    fn count(&self) -> Result<usize, StoreError> {
        self.read(|transaction| {
            let count = transaction.open_table(RESOURCES)?.len()?;
            Ok(usize::try_from(count).unwrap_or(usize::MAX))
        })
    }

    fn events(&self, from: Revision) -> Events {
        self.events.follow(from)
    }

    fn history(&self, query: HistoryQuery) -> BoxFuture<'_, Result<HistoryPage, StoreError>> {
        self.read_aside(move |transaction| history::page(transaction, &query))
    }

    fn at(
        &self,
        revision: Revision,
    ) -> BoxFuture<'_, Result<BTreeMap<ResourceKey, HistoryEntry>, StoreError>> {
        self.read_aside(move |transaction| history::at(transaction, revision))
    }

    fn write_fenced(
        &self,
        records: Vec<RecordWrite>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let sent = self.send(Request::Records { records, fence });
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

    fn lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Lease, StoreError>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        let sent = self.send(Request::Lease {
            name: name.clone(),
            holder: holder.clone(),
            ttl,
        });
        Box::pin(async move {
            let fencing = sent.await?.fencing;
            Ok(Lease {
                name,
                holder,
                fencing,
            })
        })
    }

    fn renew(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>> {
        let sent = self.send(Request::Renew(lease.fence()));
        Box::pin(async move { sent.await.map(|_reply| ()) })
    }

    fn release(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>> {
        let sent = self.send(Request::Release(lease.fence()));
        Box::pin(async move { sent.await.map(|_reply| ()) })
    }

    fn snapshot(&self, sink: &mut SnapshotSink<'_>) -> Result<(), StoreError> {
        self.read(|transaction| snapshot::write(transaction, sink))
    }

    fn died(&self) -> BoxFuture<'_, ()> {
        // The writer thread holds the other end for as long as it lives.
        Box::pin(self.writes.closed())
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.events.watch()
    }
}

/// Reads. The engine panics over some kinds of damage, which may come while the file is open: that is
/// an error too.
fn read_from<T>(
    shared: &RwLock<Option<Database>>,
    events: &EventLog,
    (path, file): (&Path, FileId),
    read: impl FnOnce(&redb::ReadTransaction) -> Result<T, Failure>,
) -> Result<T, StoreError> {
    let mut database = shared.read().unwrap_or_else(PoisonError::into_inner);
    if database.is_none() {
        drop(database);
        reopen(shared, events, (path, file))?;
        database = shared.read().unwrap_or_else(PoisonError::into_inner);
    }
    let database = database.as_ref().ok_or(StoreError::Closed)?;
    let reading = || {
        let result = database
            .begin_read()
            .map_err(Failure::from)
            .and_then(|transaction| read(&transaction));
        result.map_err(|failure| failure.at(path))
    };
    caught(reading).unwrap_or_else(|| Err(torn(path)))
}

/// Opens the file anew that a failed write has closed and that could not be opened then: when a disk
/// is full, above all.
fn reopen(
    shared: &RwLock<Option<Database>>,
    events: &EventLog,
    (path, file): (&Path, FileId),
) -> Result<(), StoreError> {
    let mut database = shared.write().unwrap_or_else(PoisonError::into_inner);
    if database.is_some() {
        return Ok(());
    }
    file.check(path)?;
    let opened = open(path)?;
    let (newest, _transaction) = rows::newest(&opened).map_err(|failure| failure.at(path))?;
    // The write that failed may be in the file after all.
    if newest != events.revision() {
        events.reset(newest);
    }
    *database = Some(opened);
    Ok(())
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
        transaction.open_table(HISTORY_OF)?;
        transaction.open_table(LEASES)?;
        transaction.open_table(META)?;
        transaction.commit()?;
        Ok(())
    };
    prepare().map_err(|error| engine(path, &error))?;
    Ok(made)
}

/// Opens the file and what is needed of it. The engine panics over some kinds of damage: that is an
/// error too.
fn open_checked(path: &Path, now: Duration) -> Result<(Database, Revision, LeaseBook), StoreError> {
    let opening = caught(|| {
        let mut database = open(path)?;
        check(&mut database, path)?;
        let read = rows::newest(&database).and_then(|(newest, _transaction)| {
            let leases = rows::leases(&database, now)?;
            Ok((newest, leases))
        });
        let (newest, leases) = read.map_err(|failure| failure.at(path))?;
        Ok((database, newest, leases))
    });
    opening.unwrap_or_else(|| Err(torn(path)))
}

fn torn(path: &Path) -> StoreError {
    StoreError::Damaged {
        path: path.display().to_string(),
        cause: "its pages do not belong together".to_owned(),
    }
}

/// Compares every page with its checksum: what the disk has changed is not taken for what was
/// written.
fn check(database: &mut Database, path: &Path) -> Result<(), StoreError> {
    let damaged = |cause: String| StoreError::Damaged {
        path: path.display().to_string(),
        cause,
    };
    match database.check_integrity() {
        Ok(true) => Ok(()),
        Ok(false) => Err(damaged(
            "checksums are not those of what was written".to_owned(),
        )),
        Err(error) => Err(damaged(error.to_string())),
    }
}

fn engine(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Engine {
        path: path.display().to_string(),
        cause: error.to_string(),
    }
}
