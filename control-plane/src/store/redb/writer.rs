//! The thread that writes: everything that waits becomes one transaction with one fsync.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use redb::ReadableTable;
use tokio::sync::{mpsc, oneshot};

use super::file::FileId;
use super::rows::{self, FENCING, Failure, LEASES, META, RECORDS, RESOURCES, TRANSACTION, encode};
use super::{Options, Shared, engine, history, open};
use crate::store::events::EventLog;
use crate::store::history::history_entry;
use crate::store::lease::LeaseBook;
use crate::store::resource::decide;
use crate::store::{
    Change, ChangedResource, Event, Fence, HistoryLimits, RecordExpect, RecordWrite, Revision,
    StoreError,
};

/// Writes that share one fsync.
const GROUP_MAX: usize = 256;

/// A write that waits, with whom to tell.
pub(super) struct Write {
    pub(super) request: Request,
    pub(super) done: oneshot::Sender<Result<Reply, StoreError>>,
}

/// What is to be written.
pub(super) enum Request {
    /// Changes of resources.
    Commit {
        author: String,
        changes: Vec<Change>,
        fence: Option<Fence>,
    },
    /// Records.
    Records {
        records: Vec<RecordWrite>,
        fence: Option<Fence>,
    },
    /// A lease is wanted.
    Lease {
        name: String,
        holder: String,
        ttl: Duration,
    },
    /// A lease is held on to.
    Renew(Fence),
    /// A lease is given up.
    Release(Fence),
}

/// Outcome of a write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    /// The newest revision with it.
    pub(super) revision: Revision,
    /// The fencing number of the lease that was taken.
    pub(super) fencing: u64,
}

/// The writer's own state.
pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) file: FileId,
    pub(super) database: Shared,
    pub(super) events: Arc<EventLog>,
    pub(super) leases: LeaseBook,
    pub(super) options: Options,
}

/// Outcome of a group of writes, before it is durable.
struct Written {
    replies: Vec<Result<Reply, StoreError>>,
    events: Vec<Event>,
    revision: Revision,
    leases: LeaseBook,
    now: Duration,
    /// Whether there is anything to make durable.
    changed: bool,
}

impl Writer {
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Write>) {
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
    fn write(&mut self, group: Vec<Write>) {
        if let Err(error) = self.usable() {
            tracing::error!(%error, "nothing is written");
            for write in group {
                // Whoever has gone does not want to know.
                let _gone = write.done.send(Err(error.clone()));
            }
            return;
        }
        let (requests, done): (Vec<_>, Vec<_>) =
            group.into_iter().map(|w| (w.request, w.done)).unzip();
        let before = self.events.revision();
        let mut written = Written {
            replies: Vec::with_capacity(requests.len()),
            events: Vec::new(),
            revision: before,
            leases: self.leases.clone(),
            now: self.options.clock.now(),
            changed: false,
        };
        let limits = self.options.history;
        let (number, result) = self.transact(|transaction| {
            for request in requests {
                // What is refused has changed nothing; an error of the engine fails the group.
                let reply = match written.one(transaction, request, limits) {
                    Ok(()) => Ok(Reply {
                        revision: written.revision,
                        fencing: written.leases.fencing(),
                    }),
                    Err(Failure::Store(refused)) => Err(refused),
                    Err(engine) => return Err(engine),
                };
                written.replies.push(reply);
            }
            Ok(written.changed)
        });
        match result {
            Ok(()) => {
                self.leases = written.leases;
                for event in written.events {
                    self.events.append(event);
                }
                for (done, reply) in done.into_iter().zip(written.replies) {
                    // Whoever has gone does not want to know.
                    let _gone = done.send(reply);
                }
            }
            Err(failure) => {
                let cause = failure.to_string();
                tracing::error!(path = %self.path.display(), cause, "write failed");
                let held = std::mem::replace(&mut self.leases, written.leases);
                self.leases.undo(held);
                let error = self.reopen(number, before, cause);
                for done in done {
                    let _gone = done.send(Err(error.clone()));
                }
            }
        }
    }

    /// Checks that there is a database, and that it is where the next start finds it.
    fn usable(&self) -> Result<(), StoreError> {
        self.file.check(&self.path)?;
        super::reopen(&self.database, &self.events, (&self.path, self.file))
    }

    /// Makes a change durable, if it says that there is one. Also returns the number of the
    /// transaction, once it has one.
    fn transact(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<bool, Failure>,
    ) -> (Option<u64>, Result<(), Failure>) {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else {
            return (None, Err(redb::Error::PreviousIo.into()));
        };
        let mut number = None;
        let run = || {
            let mut transaction = database.begin_write()?;
            // A crash is then repaired in no time.
            transaction.set_quick_repair(true);
            if !change(&transaction)? {
                transaction.abort()?;
                return Ok(());
            }
            {
                let mut meta = transaction.open_table(META)?;
                let next = rows::number(&meta, TRANSACTION)? + 1;
                meta.insert(TRANSACTION, next)?;
                number = Some(next);
            }
            transaction.commit()?;
            Ok(())
        };
        let result = run();
        (number, result)
    }

    /// After an I/O error redb takes no more writes: what is on disk is opened anew. Returns the
    /// error for those who wait.
    fn reopen(&self, number: Option<u64>, before: Revision, cause: String) -> StoreError {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *database = None;
        let opened = match self.file.check(&self.path).and_then(|()| open(&self.path)) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, "store not reopened");
                return error;
            }
        };
        let found = rows::newest(&opened);
        *database = Some(opened);
        match found {
            // The transaction is in the file after all, although syncing it failed.
            Ok((newest, last)) if number == Some(last) => {
                if newest != before {
                    self.events.reset(newest);
                }
                StoreError::Uncertain {
                    path: self.path.display().to_string(),
                    cause,
                }
            }
            Ok(_) => engine(&self.path, &cause),
            Err(failure) => failure.at(&self.path),
        }
    }
}

impl Written {
    /// One write of a group.
    fn one(
        &mut self,
        transaction: &redb::WriteTransaction,
        request: Request,
        limits: HistoryLimits,
    ) -> Result<(), Failure> {
        match request {
            Request::Commit {
                author,
                changes,
                fence,
            } => {
                self.check(fence.as_ref())?;
                let next = self.revision + 1;
                if let Some(event) = commit(transaction, next, &author, changes, limits)? {
                    self.revision = event.revision;
                    self.events.push(event);
                    self.changed = true;
                }
            }
            Request::Records { records, fence } => {
                self.check(fence.as_ref())?;
                put_records(transaction, records)?;
                self.changed = true;
            }
            Request::Lease { name, holder, ttl } => {
                self.lease(transaction, &name, &holder, ttl)?;
            }
            // Its time is known in this process only: there is nothing to make durable.
            Request::Renew(fence) => self.leases.renew(&fence, self.now)?,
            Request::Release(fence) => {
                if self.leases.release(&fence) {
                    transaction.open_table(LEASES)?.remove(&*fence.lease)?;
                    self.changed = true;
                }
            }
        }
        Ok(())
    }

    fn check(&self, fence: Option<&Fence>) -> Result<(), StoreError> {
        fence.map_or(Ok(()), |fence| self.leases.check(fence, self.now))
    }

    fn lease(
        &mut self,
        transaction: &redb::WriteTransaction,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<(), Failure> {
        let (_lease, record) = self.leases.acquire(name, holder, ttl, self.now)?;
        let mut table = transaction.open_table(LEASES)?;
        for over in self.leases.expire(self.now) {
            table.remove(over.as_str())?;
        }
        table.insert(name, encode(&record)?.as_slice())?;
        let fencing = self.leases.fencing();
        transaction.open_table(META)?.insert(FENCING, fencing)?;
        self.changed = true;
        Ok(())
    }
}

/// Checks all conditions, then makes all changes; `None` when nothing changes.
fn commit(
    transaction: &redb::WriteTransaction,
    revision: Revision,
    author: &str,
    changes: Vec<Change>,
    limits: HistoryLimits,
) -> Result<Option<Event>, Failure> {
    let time = crate::unix_millis();
    let mut resources = transaction.open_table(RESOURCES)?;
    let mut found = Vec::with_capacity(changes.len());
    for change in &changes {
        found.push(rows::resource(&resources, &change.key)?);
    }
    let changed = decide(revision, time, author, changes, found)?;
    if changed.is_empty() {
        return Ok(None);
    }
    for ChangedResource { key, resource } in &changed {
        let row = key.to_string();
        match resource {
            Some(resource) => resources.insert(row.as_str(), encode(resource)?.as_slice())?,
            None => resources.remove(row.as_str())?,
        };
    }
    let entries = changed.iter();
    let entries = entries.map(|changed| history_entry(revision, time, author, changed));
    let entries: Vec<_> = entries.collect();
    history::append(transaction, revision, &entries, limits)?;
    Ok(Some(Event {
        revision,
        changes: changed,
    }))
}

/// Checks all conditions, then writes all records.
fn put_records(
    transaction: &redb::WriteTransaction,
    records: Vec<RecordWrite>,
) -> Result<(), Failure> {
    let mut table = transaction.open_table(RECORDS)?;
    for record in records.iter().filter(|r| r.expect != RecordExpect::Any) {
        let found = table.get(record.row().as_str())?;
        if !record
            .expect
            .holds(found.as_ref().map(|found| found.value()))
        {
            return Err(record.conflict().into());
        }
    }
    for record in records {
        let row = record.row();
        match record.value {
            Some(value) => table.insert(row.as_str(), value.as_slice())?,
            None => table.remove(row.as_str())?,
        };
    }
    Ok(())
}
