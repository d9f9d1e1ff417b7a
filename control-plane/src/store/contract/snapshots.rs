//! Snapshots of the whole store.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{Engine, ManualClock, commit, delete, put, record};
use crate::store::{HistoryLimits, HistoryQuery, RecordExpect, RedbStore, Store};

pub(super) async fn a_snapshot_is_the_whole_store<E: Engine>() {
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
