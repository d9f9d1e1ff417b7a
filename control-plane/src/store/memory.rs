//! An engine in memory, for tests and benchmarks. Not durable: what it holds ends with it.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::events::EventLog;
use super::history::{PageBuilder, history_entry};
use super::lease::{LeaseBook, LeaseRecord};
use super::resource::{check_changes, decide};
use super::{
    Change, Clock, Event, Events, Fence, HistoryEntry, HistoryLimits, HistoryPage, HistoryPosition,
    HistoryQuery, Lease, Listing, MonotonicClock, RecordWrite, Revision, SnapshotMeta, SnapshotRow,
    SnapshotSink, Store, StoreError, StoredResource,
};
use crate::model::ResourceKey;

/// A store without a disk.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    events: EventLog,
    limits: HistoryLimits,
    clock: Arc<dyn Clock>,
}

/// What another engine would have on its disk, and the leases.
#[derive(Debug, Default)]
struct State {
    revision: Revision,
    resources: BTreeMap<ResourceKey, StoredResource>,
    history: BTreeMap<(Revision, u32), HistoryEntry>,
    /// Bytes of the entries after the oldest revision.
    history_bytes: u64,
    /// The oldest revision whose state can be told.
    oldest: Revision,
    records: BTreeMap<(String, String), Vec<u8>>,
    leases: LeaseBook,
    lease_records: BTreeMap<String, LeaseRecord>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        let clock = Arc::new(MonotonicClock::default());
        Self::with(HistoryLimits::default(), clock)
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn with(limits: HistoryLimits, clock: Arc<dyn Clock>) -> Self {
        Self {
            state: Mutex::default(),
            events: EventLog::new(0),
            limits,
            clock,
        }
    }

    /// What another engine is after a restart.
    #[cfg(test)]
    pub(super) fn reopened(self) -> Self {
        let mut state = self.state.into_inner().unwrap();
        let records = state.lease_records.clone();
        let fencing = state.leases.fencing();
        state.leases = LeaseBook::restore(records, fencing, self.clock.now());
        Self {
            events: EventLog::new(state.revision),
            state: Mutex::new(state),
            ..self
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fenced(&self, state: &State, fence: Option<&Fence>) -> Result<(), StoreError> {
        fence.map_or(Ok(()), |fence| state.leases.check(fence, self.clock.now()))
    }

    fn make(
        &self,
        author: &str,
        changes: Vec<Change>,
        fence: Option<&Fence>,
    ) -> Result<Revision, StoreError> {
        check_changes(&changes)?;
        let time = crate::unix_millis();
        let mut state = self.state();
        self.fenced(&state, fence)?;
        let revision = state.revision + 1;
        let found = changes.iter();
        let found = found.map(|change| state.resources.get(&change.key).cloned());
        let found = found.collect();
        let changes = decide(revision, time, author, changes, found)?;
        if changes.is_empty() {
            return Ok(state.revision);
        }
        state.revision = revision;
        for (number, changed) in (0..).zip(&changes) {
            let entry = history_entry(revision, time, author, changed);
            state.history_bytes += size(&entry) as u64;
            state.history.insert((revision, number), entry);
            match &changed.resource {
                Some(resource) => {
                    let key = changed.key.clone();
                    state.resources.insert(key, resource.clone());
                }
                None => drop(state.resources.remove(&changed.key)),
            }
        }
        state.prune(self.limits);
        // Under the lock, so that events are in the order of revisions.
        self.events.append(Event { revision, changes });
        Ok(revision)
    }

    fn put(&self, records: Vec<RecordWrite>, fence: Option<&Fence>) -> Result<(), StoreError> {
        let mut state = self.state();
        self.fenced(&state, fence)?;
        let place = |record: &RecordWrite| (record.table.to_owned(), record.key.clone());
        for record in &records {
            let found = state.records.get(&place(record)).map(|found| &**found);
            if !record.expect.holds(found) {
                return Err(record.conflict());
            }
        }
        for record in records {
            let place = place(&record);
            match record.value {
                Some(value) => drop(state.records.insert(place, value)),
                None => drop(state.records.remove(&place)),
            }
        }
        Ok(())
    }

    fn take(&self, name: &str, holder: &str, ttl: Duration) -> Result<Lease, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let (lease, record) = state.leases.acquire(name, holder, ttl, now)?;
        for over in state.leases.expire(now) {
            state.lease_records.remove(&over);
        }
        state.lease_records.insert(name.to_owned(), record);
        Ok(lease)
    }
}

impl State {
    /// Simple rather than fast: every revision that goes is looked for in the whole history.
    fn prune(&mut self, limits: HistoryLimits) {
        while limits.exceeded(self.oldest, self.revision, self.history_bytes) {
            self.oldest += 1;
            let oldest = self.history.range((self.oldest, 0)..(self.oldest + 1, 0));
            let oldest: Vec<_> = oldest
                .map(|(place, entry)| (*place, entry.clone()))
                .collect();
            for (place, entry) in oldest {
                self.history_bytes -= size(&entry) as u64;
                let deleted = entry.document.is_none();
                self.history.retain(|other, found| {
                    let superseded = *other < place || (*other == place && deleted);
                    found.key != entry.key || !superseded
                });
            }
        }
    }

    fn at(&self, revision: Revision) -> Result<BTreeMap<ResourceKey, HistoryEntry>, StoreError> {
        let oldest = self.oldest.max(1);
        if !(oldest..=self.revision).contains(&revision) {
            return Err(StoreError::NoRevision {
                found: revision,
                oldest,
                newest: self.revision,
            });
        }
        let mut entries = BTreeMap::new();
        for entry in self
            .history
            .range(..(revision + 1, 0))
            .map(|(_, entry)| entry)
        {
            match entry.document {
                Some(_) => drop(entries.insert(entry.key.clone(), entry.clone())),
                None => drop(entries.remove(&entry.key)),
            }
        }
        Ok(entries)
    }

    fn page(&self, query: &HistoryQuery) -> HistoryPage {
        let HistoryPosition(revision, number) =
            query.before.unwrap_or(HistoryPosition(u64::MAX, u32::MAX));
        let mut page = PageBuilder::new(query.limit);
        for (place, entry) in self.history.range(..(revision, number)).rev() {
            if query.key.as_ref().is_some_and(|key| *key != entry.key) {
                continue;
            }
            let size = size(entry);
            if !page.has_room(size) {
                break;
            }
            page.push(HistoryPosition(place.0, place.1), size, entry.clone());
        }
        page.finish()
    }
}

/// Size of an entry, bytes of JSON text.
fn size(entry: &HistoryEntry) -> usize {
    serde_json::to_string(entry).map_or(0, |text| text.len())
}

impl Store for MemoryStore {
    fn commit_fenced(
        &self,
        author: &str,
        changes: Vec<Change>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(ready(self.make(author, changes, fence.as_ref())))
    }

    fn get(&self, key: &ResourceKey) -> Result<Option<StoredResource>, StoreError> {
        Ok(self.state().resources.get(key).cloned())
    }

    fn list(&self) -> Result<Listing, StoreError> {
        let state = self.state();
        Ok(Listing {
            revision: state.revision,
            resources: state.resources.values().cloned().collect(),
        })
    }

    fn count(&self) -> Result<usize, StoreError> {
        Ok(self.state().resources.len())
    }

    fn events(&self, from: Revision) -> Events {
        self.events.follow(from)
    }

    fn history(&self, query: HistoryQuery) -> BoxFuture<'_, Result<HistoryPage, StoreError>> {
        Box::pin(ready(Ok(self.state().page(&query))))
    }

    fn at(
        &self,
        revision: Revision,
    ) -> BoxFuture<'_, Result<BTreeMap<ResourceKey, HistoryEntry>, StoreError>> {
        Box::pin(ready(self.state().at(revision)))
    }

    fn write_fenced(
        &self,
        records: Vec<RecordWrite>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ready(self.put(records, fence.as_ref())))
    }

    fn records(&self, table: &'static str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let state = self.state();
        let found = state.records.iter().filter(|((t, _), _)| t == table);
        let found = found.map(|((_, key), value)| (key.clone(), value.clone()));
        Ok(found.collect())
    }

    fn lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Lease, StoreError>> {
        Box::pin(ready(self.take(name, holder, ttl)))
    }

    fn renew(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>> {
        let now = self.clock.now();
        Box::pin(ready(self.state().leases.renew(&lease.fence(), now)))
    }

    fn release(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut state = self.state();
        if state.leases.release(&lease.fence()) {
            state.lease_records.remove(&lease.name);
        }
        Box::pin(ready(Ok(())))
    }

    fn snapshot(&self, sink: &mut SnapshotSink<'_>) -> Result<(), StoreError> {
        let state = self.state();
        let mut give = |row| sink(row).map_err(StoreError::Snapshot);
        give(SnapshotRow::Meta(SnapshotMeta {
            revision: state.revision,
            oldest: state.oldest,
            fencing: state.leases.fencing(),
        }))?;
        for resource in state.resources.values() {
            give(SnapshotRow::Resource(resource.clone()))?;
        }
        for ((_revision, number), entry) in &state.history {
            give(SnapshotRow::History {
                number: *number,
                entry: entry.clone(),
            })?;
        }
        for ((table, key), content) in &state.records {
            give(SnapshotRow::Record {
                row: format!("{table}/{key}"),
                content: STANDARD.encode(content),
            })?;
        }
        Ok(())
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.events.watch()
    }
}
