//! What every engine must do: one suite, run against each.
//!
//! A new engine implements [`Engine`] and adds a line of `contract!` at the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Change, Clock, DOCUMENT_MAX, EVENTS_MAX, EventsError, Expect, HISTORY_PAGE_BYTES_MAX,
    HistoryLimits, HistoryQuery, MemoryStore, Options, RecordExpect, RecordWrite, RedbStore,
    Revision, Store, StoreError, changes_back, read_records,
};
use crate::model::ResourceKey;

/// An engine under test.
trait Engine {
    fn new(limits: HistoryLimits, clock: Arc<dyn Clock>) -> Self;
    fn store(&self) -> &dyn Store;
    /// Closes the store and opens it again, as a restart does.
    fn reopen(&mut self);
}

struct Redb {
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

struct Memory(Option<MemoryStore>);

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

/// A clock that stands still until it is told otherwise.
#[derive(Debug, Default)]
struct ManualClock(AtomicU64);

impl ManualClock {
    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

fn engine<E: Engine>() -> E {
    E::new(HistoryLimits::default(), Arc::<ManualClock>::default())
}

fn key(name: &str) -> ResourceKey {
    ResourceKey {
        kind: "Service".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn put(name: &str, n: u64) -> Change {
    Change::put(key(name), json!({ "n": n }))
}

fn delete(name: &str) -> Change {
    Change::delete(key(name))
}

async fn commit(store: &dyn Store, changes: Vec<Change>) -> Revision {
    store.commit("me", changes).await.unwrap()
}

/// Names, documents and revisions of everything.
fn state(store: &dyn Store) -> Vec<(String, Value, Revision)> {
    let listed = store.list().unwrap().resources.into_iter();
    let state = listed.map(|r| (r.key.name, r.document["n"].clone(), r.revision));
    state.collect()
}

fn states(expected: &[(&str, u64, Revision)]) -> Vec<(String, Value, Revision)> {
    let expected = expected.iter();
    let expected = expected.map(|(name, n, revision)| ((*name).to_owned(), json!(n), *revision));
    expected.collect()
}

fn record(key: &str, value: Option<&[u8]>, expect: RecordExpect) -> RecordWrite {
    RecordWrite {
        table: "token",
        key: key.to_owned(),
        value: value.map(<[u8]>::to_vec),
        expect,
    }
}

async fn commits_change_what_they_say<E: Engine>() {
    let mut engine: E = engine();
    let store = engine.store();
    assert_eq!(store.list().unwrap(), super::Listing::default());
    assert_eq!(commit(store, vec![put("web", 1), put("api", 1)]).await, 1);
    // Equal documents and deletions of nothing change nothing, and use no revision up.
    assert_eq!(commit(store, vec![put("web", 1), delete("none")]).await, 1);
    assert_eq!(commit(store, Vec::new()).await, 1);
    assert_eq!(commit(store, vec![put("web", 2), put("api", 1)]).await, 2);
    assert_eq!(state(store), states(&[("api", 1, 1), ("web", 2, 2)]));
    let web = store.get(&key("web")).unwrap().unwrap();
    assert_eq!((web.generation, &*web.author), (2, "me"));
    assert!(web.created <= web.changed);
    assert_eq!(commit(store, vec![delete("web")]).await, 3);
    assert_eq!(store.get(&key("web")).unwrap(), None);
    // What comes back begins anew.
    assert_eq!(commit(store, vec![put("web", 2)]).await, 4);
    assert_eq!(store.get(&key("web")).unwrap().unwrap().generation, 1);
    let before = store.list().unwrap();
    assert_eq!(before.revision, 4);
    engine.reopen();
    let store = engine.store();
    assert_eq!(store.list().unwrap(), before);
    assert_eq!(*store.watch().borrow(), 4);
    assert_eq!(commit(store, vec![put("web", 3)]).await, 5);
}

async fn a_listing_is_in_the_order_of_keys<E: Engine>() {
    let engine: E = engine();
    let keys = [
        ("A", "b", "c"),
        ("A", "b-c", "a"),
        ("A", "b", "c.d"),
        ("B", "a", "a"),
    ];
    let keys = keys.map(|(kind, namespace, name)| ResourceKey {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    });
    let changes = keys.iter().map(|key| Change::put(key.clone(), json!({})));
    commit(engine.store(), changes.collect()).await;
    let listed = engine.store().list().unwrap().resources.into_iter();
    let listed: Vec<_> = listed.map(|resource| resource.key).collect();
    let mut sorted = keys.to_vec();
    sorted.sort();
    assert_eq!(listed, sorted);
}

async fn a_condition_that_does_not_hold_stops_the_whole_commit<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    commit(store, vec![put("web", 1)]).await;
    commit(store, vec![put("api", 1)]).await;
    let before = state(store);
    let refused = [
        put("web", 2).expecting(Expect::Absent),
        put("web", 2).expecting(Expect::Revision(2)),
        // Also where the document is the same.
        put("web", 1).expecting(Expect::Revision(2)),
        delete("web").expecting(Expect::Revision(2)),
        delete("none").expecting(Expect::Revision(1)),
        put("none", 1).expecting(Expect::Revision(1)),
    ];
    for change in refused {
        let changes = vec![put("new", 1), change.clone(), put("api", 2)];
        let error = store.commit("you", changes).await.unwrap_err();
        let StoreError::Conflict(conflicts) = error else {
            panic!("{error}");
        };
        assert_eq!(conflicts.len(), 1, "{change:?}");
        assert_eq!(conflicts[0].key, change.key);
        assert_eq!(conflicts[0].expected, change.expect);
        assert_eq!(conflicts[0].found, store.get(&change.key).unwrap());
        assert_eq!(state(store), before);
    }
    let made = vec![
        put("web", 2).expecting(Expect::Revision(1)),
        delete("api").expecting(Expect::Revision(2)),
        put("new", 1).expecting(Expect::Absent),
        delete("none").expecting(Expect::Absent),
    ];
    assert_eq!(commit(store, made).await, 3);
    assert_eq!(state(store), states(&[("new", 1, 3), ("web", 2, 3)]));
}

async fn of_two_with_the_same_condition_one_wins<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    let first = commit(store, vec![put("web", 0)]).await;
    let tries = (1..=50).map(|n| {
        let change = put("web", n).expecting(Expect::Revision(first));
        store.commit("me", vec![change])
    });
    let outcomes = futures_util::future::join_all(tries).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert_eq!(store.list().unwrap().revision, first + 1);
}

async fn limits_are_refused<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    let large = json!("x".repeat(DOCUMENT_MAX - 2));
    commit(store, vec![Change::put(key("web"), large)]).await;
    let larger = json!("x".repeat(DOCUMENT_MAX - 1));
    let changes = vec![put("api", 1), Change::put(key("web"), larger)];
    let error = store.commit("me", changes).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    let twice = vec![put("api", 1), delete("api")];
    let error = store.commit("me", twice).await.unwrap_err();
    assert!(matches!(error, StoreError::Twice(_)), "{error}");
    let many = (0..=super::CHANGES_MAX).map(|n| delete(&n.to_string()));
    let error = store.commit("me", many.collect()).await.unwrap_err();
    assert!(matches!(error, StoreError::TooMany { .. }), "{error}");
    assert_eq!(store.list().unwrap().revision, 1);
}

async fn a_listing_and_the_events_after_it_are_every_change_once<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    let writing = async {
        for n in 1..=200 {
            commit(store, vec![put("web", n), put(&format!("s{n}"), n)]).await;
            tokio::task::yield_now().await;
        }
    };
    // Consumers begin at different times, in the middle of commits.
    let reading = async |begin: u64| {
        let mut newest = store.watch();
        newest
            .wait_for(|revision| *revision >= begin)
            .await
            .unwrap();
        let listing = store.list().unwrap();
        let mut events = store.events(listing.revision);
        let resources = listing.resources.into_iter();
        let mut known: std::collections::BTreeMap<_, _> =
            resources.map(|r| (r.key.clone(), r)).collect();
        let mut revision = listing.revision;
        while revision < 200 {
            let event = events.next().await.unwrap();
            assert_eq!(event.revision, revision + 1);
            assert_eq!(event.changes.len(), 2);
            revision = event.revision;
            for changed in &event.changes {
                let resource = changed.resource.clone().unwrap();
                let before = known.insert(changed.key.clone(), resource.clone());
                assert!(before.is_none_or(|before| before.revision < resource.revision));
            }
        }
        let known: Vec<_> = known.into_values().collect();
        assert_eq!(known, store.list().unwrap().resources);
        assert_eq!(events.try_next(), Ok(None));
    };
    let readers = futures_util::future::join_all([0, 1, 50, 199].map(reading));
    tokio::join!(writing, readers);
}

async fn who_is_too_far_behind_is_told<E: Engine>() {
    let mut engine: E = engine();
    let store = engine.store();
    let mut slow = store.events(0);
    let many = EVENTS_MAX as u64 + 1;
    let commits = (1..=many).map(|n| put("web", n));
    // Some at a time: an engine refuses when too many wait.
    let commits: Vec<_> = commits.collect();
    for some in commits.chunks(500) {
        let some = some
            .iter()
            .map(|change| store.commit("me", vec![change.clone()]));
        futures_util::future::try_join_all(some).await.unwrap();
    }
    let behind = EventsError::TooFarBehind {
        position: 0,
        oldest: 1,
    };
    assert_eq!(slow.next().await, Err(behind));
    assert_eq!(store.events(1).next().await.unwrap().revision, 2);
    // After a restart only what comes from then on is known.
    engine.reopen();
    let store = engine.store();
    assert!(store.events(many - 1).try_next().is_err());
    let mut events = store.events(many);
    assert_eq!(events.try_next(), Ok(None));
    commit(store, vec![delete("web")]).await;
    let event = events.next().await.unwrap();
    assert_eq!(event.revision, many + 1);
    assert_eq!(event.changes[0].resource, None);
}

async fn the_history_tells_every_change_a_page_at_a_time<E: Engine>() {
    let mut engine: E = engine();
    let store = engine.store();
    commit(store, vec![put("web", 1), put("api", 1)]).await;
    commit(store, vec![put("web", 2)]).await;
    commit(store, vec![delete("web"), put("new", 1)]).await;
    engine.reopen();
    let store = engine.store();
    let query = |name: Option<&str>, before, limit| HistoryQuery {
        key: name.map(key),
        before,
        limit,
    };
    let page = store.history(query(Some("web"), None, 10)).await.unwrap();
    let found = page.items.iter();
    let found: Vec<_> = found.map(|e| (e.revision, e.document.is_some())).collect();
    assert_eq!(found, [(3, false), (2, true), (1, true)]);
    assert_eq!((page.next, page.items[0].digest.as_str()), (None, ""));
    // Every page size gives the same whole.
    let whole = store.history(query(None, None, 10)).await.unwrap().items;
    assert_eq!(whole.len(), 5);
    for name in [None, Some("web")] {
        let whole = whole
            .iter()
            .filter(|e| name.is_none_or(|n| e.key == key(n)));
        let whole: Vec<_> = whole.cloned().collect();
        for size in 1..=4 {
            let (mut pages, mut before) = (Vec::new(), None);
            loop {
                let page = store.history(query(name, before, size)).await.unwrap();
                assert!(page.items.len() <= size);
                pages.extend(page.items);
                before = page.next;
                if before.is_none() {
                    break;
                }
            }
            assert_eq!(pages, whole);
        }
    }
    let none = store.history(query(Some("none"), None, 10)).await.unwrap();
    assert!(none.items.is_empty());
}

async fn a_page_of_the_history_is_bounded_in_bytes<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    for n in 0..6 {
        let document = json!(format!("{n}{}", "x".repeat(DOCUMENT_MAX - 100)));
        commit(store, vec![Change::put(key("web"), document)]).await;
    }
    let query = |before| HistoryQuery {
        key: None,
        before,
        limit: 100,
    };
    let first = store.history(query(None)).await.unwrap();
    let fit = HISTORY_PAGE_BYTES_MAX / DOCUMENT_MAX;
    assert!((fit - 1..=fit).contains(&first.items.len()));
    let second = store.history(query(first.next)).await.unwrap();
    assert_eq!(first.items.len() + second.items.len(), 6);
    assert_eq!(second.next, None);
}

async fn roll_back(store: &dyn Store, revision: Revision) {
    let then = store.at(revision).await.unwrap();
    let changes = changes_back(then, &store.list().unwrap(), None);
    store.commit("me", changes).await.unwrap();
}

async fn every_kept_revision_can_be_told<E: Engine>() {
    let limits = HistoryLimits {
        revisions: 3,
        bytes: u64::MAX,
    };
    let mut engine = E::new(limits, Arc::<ManualClock>::default());
    let store = engine.store();
    commit(store, vec![put("old", 1), put("aging", 1), put("gone", 1)]).await;
    commit(store, vec![put("aging", 2), delete("gone")]).await;
    for n in 3..=6 {
        commit(store, vec![put("busy", n)]).await;
    }
    commit(store, vec![put("aging", 7), put("new", 7)]).await;
    engine.reopen();
    let store = engine.store();
    let newest = store.list().unwrap().revision;
    for unknown in [0, 3, 8] {
        let error = store.at(unknown).await.unwrap_err();
        let StoreError::NoRevision { oldest, newest, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((oldest, newest), (4, 7));
    }
    let then = store.at(newest - 3).await.unwrap();
    let then: Vec<_> = then.values().map(|e| (&*e.key.name, e.revision)).collect();
    assert_eq!(then, [("aging", 2), ("busy", 4), ("old", 1)]);
    // What lives and is older than the history stays; what is newer goes; what changed comes back.
    roll_back(store, newest - 3).await;
    let expected = [("aging", 2, 8), ("busy", 4, 8), ("old", 1, 1)];
    assert_eq!(state(store), states(&expected));
    // Entries of what was deleted before the oldest revision are not kept.
    let gone = HistoryQuery {
        key: Some(key("gone")),
        before: None,
        limit: 10,
    };
    assert!(store.history(gone).await.unwrap().items.is_empty());
}

async fn a_rollback_of_some_touches_no_others_and_expects_what_it_saw<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    commit(store, vec![put("a", 1), put("b", 1), put("same", 1)]).await;
    commit(store, vec![put("a", 2), put("b", 2), put("new", 2)]).await;
    let then = store.at(1).await.unwrap();
    let only = BTreeSet::from([key("a"), key("new"), key("same"), key("none")]);
    let changes = changes_back(then.clone(), &store.list().unwrap(), Some(&only));
    let expected = [
        put("a", 1).expecting(Expect::Revision(2)),
        delete("new").expecting(Expect::Revision(2)),
    ];
    assert_eq!(changes, expected);
    commit(store, vec![put("a", 3)]).await;
    let error = store.commit("me", changes).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(_)), "{error}");
    // What was deleted meanwhile comes back, and expects that it is not there.
    commit(store, vec![delete("a")]).await;
    let changes = changes_back(then, &store.list().unwrap(), Some(&only));
    assert_eq!(changes[1], put("a", 1).expecting(Expect::Absent));
}

async fn the_history_is_bounded_in_bytes<E: Engine>() {
    let limits = HistoryLimits {
        revisions: 1000,
        bytes: 20_000,
    };
    let engine = E::new(limits, Arc::<ManualClock>::default());
    let store = engine.store();
    // What is older than the history is kept at any size.
    let large = json!({"n": 0, "x": "x".repeat(50_000)});
    commit(store, vec![Change::put(key("old"), large)]).await;
    for n in 1..=100 {
        let document = json!({"n": n, "x": "x".repeat(900)});
        commit(store, vec![Change::put(key("busy"), document)]).await;
    }
    let all = HistoryQuery {
        key: None,
        before: None,
        limit: 1000,
    };
    let entries = store.history(all).await.unwrap().items;
    assert!((15..=22).contains(&entries.len()), "{}", entries.len());
    let error = store.at(1).await.unwrap_err();
    let StoreError::NoRevision { oldest, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(store.at(oldest).await.unwrap().len(), 2);
    roll_back(store, oldest).await;
    let expected = [("busy", oldest - 1, 102), ("old", 0, 1)];
    assert_eq!(state(store), states(&expected));
}

async fn records_are_written_together_or_not_at_all<E: Engine>() {
    let mut engine: E = engine();
    let store = engine.store();
    let any = RecordExpect::Any;
    let other = RecordWrite {
        table: "tokens",
        ..record("a", Some(b"other"), any.clone())
    };
    let two = vec![record("a", Some(b"1"), any.clone()), other];
    store.write(two).await.unwrap();
    let found = |store: &dyn Store| store.records("token").unwrap();
    let one = [("a".to_owned(), b"1".to_vec())];
    assert_eq!(found(store), one);
    let refused = [
        RecordExpect::Absent,
        RecordExpect::Equals(b"2".to_vec()),
        RecordExpect::Equals(Vec::new()),
    ];
    for expect in refused {
        let records = vec![
            record("b", Some(b"1"), any.clone()),
            record("a", Some(b"2"), expect),
        ];
        let error = store.write(records).await.unwrap_err();
        assert!(
            matches!(error, StoreError::RecordConflict { .. }),
            "{error}"
        );
        assert_eq!(found(store), one);
    }
    let absent = record("none", None, RecordExpect::Equals(b"1".to_vec()));
    assert!(store.write(vec![absent]).await.is_err());
    engine.reopen();
    let store = engine.store();
    assert_eq!(found(store), one);
    let equals = RecordExpect::Equals(b"1".to_vec());
    let made = vec![
        record("a", None, equals),
        record("b", Some(b""), RecordExpect::Absent),
    ];
    store.write(made).await.unwrap();
    assert_eq!(found(store), [("b".to_owned(), Vec::new())]);
    // Records use no revision up.
    assert_eq!(store.list().unwrap().revision, 0);
}

async fn a_record_is_redeemed_once<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    let fresh = record("t", Some(b"fresh"), RecordExpect::Absent);
    store.write(vec![fresh]).await.unwrap();
    let tries = (0..50).map(|n| {
        let expect = RecordExpect::Equals(b"fresh".to_vec());
        let text = format!("redeemed by {n}");
        store.write(vec![record("t", Some(text.as_bytes()), expect)])
    });
    let outcomes = futures_util::future::join_all(tries).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

async fn an_unreadable_record_is_an_error<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    let any = RecordExpect::Any;
    let records = vec![
        record("a", Some(b"[1]"), any.clone()),
        record("b", Some(b"[1"), any),
    ];
    store.write(records).await.unwrap();
    let error = read_records::<Vec<u32>>(store, "token").unwrap_err();
    let StoreError::Unreadable { table, key, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((&**table, &**key), ("token", "b"));
}

async fn a_lease_has_one_holder_at_a_time<E: Engine>() {
    let clock = Arc::new(ManualClock::default());
    let engine = E::new(HistoryLimits::default(), Arc::clone(&clock) as _);
    let store = engine.store();
    let ttl = Duration::from_secs(10);
    let first = store.lease("writer", "a", ttl).await.unwrap();
    let error = store.lease("writer", "b", ttl).await.unwrap_err();
    let StoreError::LeaseHeld {
        holder, remaining, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((&*holder, remaining), ("a", ttl));
    // Another name is another lease.
    store.lease("janitor", "b", ttl).await.unwrap();
    clock.advance(9);
    store.renew(&first).await.unwrap();
    clock.advance(9);
    assert!(store.lease("writer", "b", ttl).await.is_err());
    clock.advance(1);
    let second = store.lease("writer", "b", ttl).await.unwrap();
    assert!(second.fencing > first.fencing);
    let error = store.renew(&first).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost { .. }), "{error}");
    // It is not the first one's to release any more.
    store.release(&first).await.unwrap();
    assert!(store.lease("writer", "a", ttl).await.is_err());
    store.release(&second).await.unwrap();
    let third = store.lease("writer", "a", ttl).await.unwrap();
    assert!(third.fencing > second.fencing);
    // The same holder gets it anew; what it held counts no more.
    let fourth = store.lease("writer", "a", ttl).await.unwrap();
    assert!(store.renew(&third).await.is_err());
    store.renew(&fourth).await.unwrap();
    // One that is over is not renewed, even when nobody else has it.
    clock.advance(10);
    assert!(store.renew(&fourth).await.is_err());
    for ttl in [Duration::from_millis(999), Duration::from_secs(3601)] {
        let error = store.lease("x", "a", ttl).await.unwrap_err();
        assert!(matches!(error, StoreError::Lease(_)), "{error}");
    }
    assert!(store.lease("", "a", ttl).await.is_err());
}

async fn a_write_with_an_old_fence_is_refused<E: Engine>() {
    let clock = Arc::new(ManualClock::default());
    let engine = E::new(HistoryLimits::default(), Arc::clone(&clock) as _);
    let store = engine.store();
    let ttl = Duration::from_secs(10);
    let write = async |fence, text: &str| {
        let records = vec![record("a", Some(text.as_bytes()), RecordExpect::Any)];
        store.write_fenced(records, Some(fence)).await
    };
    let first = store.lease("writer", "a", ttl).await.unwrap();
    write(first.fence(), "first").await.unwrap();
    clock.advance(10);
    assert!(write(first.fence(), "late").await.is_err());
    let second = store.lease("writer", "b", ttl).await.unwrap();
    let error = write(first.fence(), "later").await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost { .. }), "{error}");
    let commit = store.commit_fenced("a", vec![put("web", 1)], Some(first.fence()));
    assert!(commit.await.is_err());
    assert_eq!(store.records("token").unwrap()[0].1, b"first");
    assert!(store.list().unwrap().resources.is_empty());
    write(second.fence(), "second").await.unwrap();
    let commit = store.commit_fenced("b", vec![put("web", 1)], Some(second.fence()));
    assert_eq!(commit.await.unwrap(), 1);
}

async fn a_snapshot_is_the_whole_store<E: Engine>() {
    let limits = HistoryLimits {
        revisions: 2,
        bytes: u64::MAX,
    };
    let engine = E::new(limits, Arc::<ManualClock>::default());
    let store = engine.store();
    commit(store, vec![put("old", 1), put("aging", 1)]).await;
    for n in 2..=4 {
        commit(store, vec![put("busy", n), put("aging", n)]).await;
    }
    let content = b"\xff\x00".as_slice();
    let write = store.write(vec![record("a", Some(content), RecordExpect::Any)]);
    write.await.unwrap();
    let ttl = Duration::from_secs(10);
    let held = store.lease("writer", "a", ttl).await.unwrap();
    let mut rows = Vec::new();
    let taken = store.snapshot(&mut |row| {
        rows.push(row);
        Ok(())
    });
    taken.unwrap();
    let dir = tempfile::tempdir().unwrap();
    RedbStore::restore(dir.path(), rows.into_iter().map(Ok)).unwrap();
    let restored = RedbStore::open(dir.path()).unwrap();
    assert_eq!(restored.list().unwrap(), store.list().unwrap());
    assert_eq!(restored.records("token").unwrap()[0].1, content);
    for revision in 2..=4 {
        let expected = store.at(revision).await.unwrap();
        assert_eq!(restored.at(revision).await.unwrap(), expected);
    }
    assert!(restored.at(1).await.is_err());
    let query = || HistoryQuery {
        key: None,
        before: None,
        limit: 100,
    };
    let expected = store.history(query()).await.unwrap();
    assert_eq!(restored.history(query()).await.unwrap(), expected);
    assert_eq!(commit(&*restored, vec![delete("old")]).await, 5);
    // Nobody holds a lease, and numbers go on.
    let next = restored.lease("writer", "b", ttl).await.unwrap();
    assert!(next.fencing > held.fencing);
    let again = RedbStore::restore(dir.path(), std::iter::empty());
    assert!(again.unwrap_err().to_string().contains("exists already"));
}

async fn a_lease_outlives_a_restart<E: Engine>() {
    let clock = Arc::new(ManualClock::default());
    let mut engine = E::new(HistoryLimits::default(), Arc::clone(&clock) as _);
    let ttl = Duration::from_secs(10);
    let released = engine.store().lease("other", "a", ttl).await.unwrap();
    let first = engine.store().lease("writer", "a", ttl).await.unwrap();
    engine.store().release(&released).await.unwrap();
    clock.advance(9);
    engine.reopen();
    let store = engine.store();
    // Nobody knows how long the restart took: its whole time begins again.
    clock.advance(9);
    assert!(store.lease("writer", "b", ttl).await.is_err());
    store.renew(&first).await.unwrap();
    let other = store.lease("other", "b", ttl).await.unwrap();
    assert!(other.fencing > first.fencing);
    clock.advance(10);
    engine.reopen();
    let store = engine.store();
    clock.advance(10);
    let second = store.lease("writer", "b", ttl).await.unwrap();
    assert!(second.fencing > other.fencing);
}

macro_rules! contract {
    ($module:ident, $engine:ty: $($case:ident),+ $(,)?) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case::<$engine>().await;
                }
            )+
        }
    };
    ($($module:ident: $engine:ty),+ $(,)?) => {
        $(contract! {
            $module, $engine:
            commits_change_what_they_say,
            a_listing_is_in_the_order_of_keys,
            a_condition_that_does_not_hold_stops_the_whole_commit,
            of_two_with_the_same_condition_one_wins,
            limits_are_refused,
            a_listing_and_the_events_after_it_are_every_change_once,
            who_is_too_far_behind_is_told,
            the_history_tells_every_change_a_page_at_a_time,
            a_page_of_the_history_is_bounded_in_bytes,
            every_kept_revision_can_be_told,
            a_rollback_of_some_touches_no_others_and_expects_what_it_saw,
            the_history_is_bounded_in_bytes,
            records_are_written_together_or_not_at_all,
            a_record_is_redeemed_once,
            an_unreadable_record_is_an_error,
            a_lease_has_one_holder_at_a_time,
            a_write_with_an_old_fence_is_refused,
            a_snapshot_is_the_whole_store,
            a_lease_outlives_a_restart,
        })+
    };
}

contract! {
    redb: Redb,
    memory: Memory,
}
