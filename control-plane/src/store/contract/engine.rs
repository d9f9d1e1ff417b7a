//! The engines under test, a clock for them, and what their cases are written with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::model::ResourceKey;
use crate::store::{
    Change, Clock, HistoryLimits, MemoryStore, Options, RecordExpect, RecordWrite, RedbStore,
    Revision, Store,
};

/// An engine under test.
pub(super) trait Engine {
    fn new(limits: HistoryLimits, clock: Arc<dyn Clock>) -> Self;
    fn store(&self) -> &dyn Store;
    /// Closes the store and opens it again, as a restart does.
    fn reopen(&mut self);
    /// Whether revisions go on after a restart, and a revision can be told apart from another
    /// process's.
    const KEEPS_REVISIONS: bool = true;
    /// Whether a group of cases is for this engine, on this machine.
    fn runs(_group: &str) -> bool {
        true
    }
}

pub(super) struct Redb {
    dir: tempfile::TempDir,
    options: Options,
    store: Option<Arc<RedbStore>>,
}

impl Engine for Redb {
    fn new(history: HistoryLimits, clock: Arc<dyn Clock>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { history, clock };
        let store = RedbStore::open_with(dir.path(), options.clone()).unwrap();
        Self {
            dir,
            options,
            store: Some(store),
        }
    }

    fn store(&self) -> &dyn Store {
        self.store.as_deref().unwrap()
    }

    fn reopen(&mut self) {
        self.store = None;
        let opened = RedbStore::open_with(self.dir.path(), self.options.clone());
        self.store = Some(opened.unwrap());
    }
}

pub(super) struct Memory(Option<MemoryStore>);

impl Engine for Memory {
    fn new(limits: HistoryLimits, clock: Arc<dyn Clock>) -> Self {
        Self(Some(MemoryStore::with(limits, clock)))
    }

    fn store(&self) -> &dyn Store {
        self.0.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.0 = self.0.take().map(MemoryStore::reopened);
    }
}

pub(super) use crate::store::kubernetes::tests::Cluster;

impl Engine for Cluster {
    const KEEPS_REVISIONS: bool = false;

    fn new(_history: HistoryLimits, clock: Arc<dyn Clock>) -> Self {
        Self::start(clock)
    }

    fn store(&self) -> &dyn Store {
        &**self.opened()
    }

    fn reopen(&mut self) {
        self.open();
    }

    /// The history is what users' Git keeps, and backups are those of etcd.
    fn runs(group: &str) -> bool {
        !matches!(group, "history" | "snapshots") && crate::kubernetes::testing::assets().is_some()
    }
}

/// A clock that stands still until it is told otherwise.
#[derive(Debug, Default)]
pub(super) struct ManualClock(AtomicU64);

impl ManualClock {
    pub(super) fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

pub(super) fn engine<E: Engine>() -> E {
    E::new(HistoryLimits::default(), Arc::<ManualClock>::default())
}

pub(super) fn key(name: &str) -> ResourceKey {
    ResourceKey {
        kind: "Service".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

pub(super) fn put(name: &str, n: u64) -> Change {
    Change::put(key(name), json!({ "n": n }))
}

pub(super) fn delete(name: &str) -> Change {
    Change::delete(key(name))
}

pub(super) async fn commit(store: &dyn Store, changes: Vec<Change>) -> Revision {
    store.commit("me", changes).await.unwrap()
}

/// Names, documents and revisions of everything.
pub(super) fn state(store: &dyn Store) -> Vec<(String, Value, Revision)> {
    let listed = store.list().unwrap().resources.into_iter();
    let state = listed.map(|r| (r.key.name, r.document["n"].clone(), r.revision));
    state.collect()
}

pub(super) fn states(expected: &[(&str, u64, Revision)]) -> Vec<(String, Value, Revision)> {
    let expected = expected.iter();
    let expected = expected.map(|(name, n, revision)| ((*name).to_owned(), json!(n), *revision));
    expected.collect()
}

pub(super) fn record(key: &str, value: Option<&[u8]>, expect: RecordExpect) -> RecordWrite {
    RecordWrite {
        table: "token",
        key: key.to_owned(),
        value: value.map(<[u8]>::to_vec),
        expect,
    }
}
