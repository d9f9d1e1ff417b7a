//! The thread that writes: everything that waits becomes one transaction with one fsync.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use redb::ReadableTable;
use tokio::sync::{mpsc, oneshot};

use super::rows::{
    self, Failure, HISTORY, META, RECORDS, RESOURCES, REVISION, TRANSACTION, encode,
};
use super::{Shared, open};
use crate::store::events::EventLog;
use crate::store::resource::{decide, history_entry};
use crate::store::{Change, Event, RecordExpect, RecordWrite, Revision, StoreError};

/// Writes that share one fsync.
const GROUP_MAX: usize = 256;
/// Changes that are kept.
const HISTORY_MAX: u64 = 10_000;

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
    },
    /// Records.
    Records(Vec<RecordWrite>),
}

/// What a write has come to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    /// The newest revision with it.
    pub(super) revision: Revision,
}

/// The writer's own state.
pub(super) struct Writer {
    path: PathBuf,
    database: Shared,
    events: Arc<EventLog>,
}

/// What a group of writes has come to, before it is durable.
struct Written {
    replies: Vec<Result<Reply, StoreError>>,
    events: Vec<Event>,
    revision: Revision,
}

impl Writer {
    pub(super) fn new(path: PathBuf, database: Shared, events: Arc<EventLog>) -> Self {
        Self {
            path,
            database,
            events,
        }
    }

    pub(super) fn run(self, mut queue: mpsc::Receiver<Write>) {
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
        let (requests, done): (Vec<_>, Vec<_>) =
            group.into_iter().map(|w| (w.request, w.done)).unzip();
        let before = self.events.revision();
        let mut written = Written {
            replies: Vec::with_capacity(requests.len()),
            events: Vec::new(),
            revision: before,
        };
        let (number, result) = self.transact(|transaction| {
            for request in requests {
                // What is refused has changed nothing; an error of the engine fails the group.
                let reply = match one(transaction, request, &mut written) {
                    Ok(()) => Ok(Reply {
                        revision: written.revision,
                    }),
                    Err(Failure::Store(refused)) => Err(refused),
                    Err(engine) => return Err(engine),
                };
                written.replies.push(reply);
            }
            Ok(())
        });
        match result {
            Ok(()) => {
                for event in written.events {
                    self.events.append(event);
                }
                for (done, reply) in done.into_iter().zip(written.replies) {
                    // Whoever has gone does not want to know.
                    let _gone = done.send(reply);
                }
            }
            Err(failure) => {
                let error = failure.at(&self.path);
                tracing::error!(%error, "write failed");
                let error = self.reopen(number, before, error);
                for done in done {
                    let _gone = done.send(Err(error.clone()));
                }
            }
        }
    }

    /// Makes a change durable. Also returns the number of the transaction, once it has one.
    fn transact(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), Failure>,
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
            change(&transaction)?;
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
    fn reopen(&self, number: Option<u64>, before: Revision, error: StoreError) -> StoreError {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *database = None;
        let opened = match open(&self.path) {
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
                if let StoreError::Engine { path, cause } = error {
                    StoreError::Uncertain { path, cause }
                } else {
                    error
                }
            }
            Ok(_) => error,
            Err(failure) => failure.at(&self.path),
        }
    }
}

/// One write of a group.
fn one(
    transaction: &redb::WriteTransaction,
    request: Request,
    written: &mut Written,
) -> Result<(), Failure> {
    match request {
        Request::Commit { author, changes } => {
            let next = written.revision + 1;
            if let Some(event) = commit(transaction, next, &author, changes)? {
                written.revision = event.revision;
                written.events.push(event);
            }
            Ok(())
        }
        Request::Records(records) => put_records(transaction, records),
    }
}

/// Checks all conditions, then makes all changes; `None` when nothing changes.
fn commit(
    transaction: &redb::WriteTransaction,
    revision: Revision,
    author: &str,
    changes: Vec<Change>,
) -> Result<Option<Event>, Failure> {
    let time = crate::unix_millis();
    let mut resources = transaction.open_table(RESOURCES)?;
    let mut found = Vec::with_capacity(changes.len());
    for change in &changes {
        found.push(rows::resource(&resources, &change.key)?);
    }
    let changed = decide(revision, time, author, changes, found).map_err(Failure::Store)?;
    if changed.is_empty() {
        return Ok(None);
    }
    let mut history = transaction.open_table(HISTORY)?;
    for (number, changed) in (0..).zip(&changed) {
        let row = changed.key.to_string();
        let entry = history_entry(revision, time, author, changed);
        history.insert((revision, number), encode(&entry)?.as_slice())?;
        match &changed.resource {
            Some(resource) => resources.insert(row.as_str(), encode(resource)?.as_slice())?,
            None => resources.remove(row.as_str())?,
        };
    }
    prune(&mut history, revision)?;
    transaction.open_table(META)?.insert(REVISION, revision)?;
    Ok(Some(Event {
        revision,
        changes: changed,
    }))
}

/// Drops what is older than the history is long.
fn prune(
    history: &mut redb::Table<'_, (u64, u32), &'static [u8]>,
    newest: Revision,
) -> Result<(), Failure> {
    let Some(limit) = newest.checked_sub(HISTORY_MAX) else {
        return Ok(());
    };
    history.retain_in((0, 0)..(limit, 0), |_key, _value| false)?;
    Ok(())
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
            return Err(Failure::Store(record.conflict()));
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
