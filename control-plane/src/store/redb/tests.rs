//! What the contract suite does not cover: the file itself.

use super::*;
use crate::store::{DOCUMENT_MAX, Expect, RecordExpect};
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
    let put = |name: &str, n: u32| Change::put(key(name), json!({ "n": n }));
    assert_eq!(store.commit("a", vec![put("web", 1)]).await.unwrap(), 1);
    let two = vec![put("web", 2), put("orders", 1)];
    assert_eq!(store.commit("b", two).await.unwrap(), 2);
    // Nothing changes: no revision.
    assert_eq!(store.commit("b", vec![put("web", 2)]).await.unwrap(), 2);
    let delete = vec![Change::delete(key("orders"))];
    assert_eq!(store.commit("c", delete).await.unwrap(), 3);
    let listed = store.list().unwrap().resources;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].generation, listed[0].revision), (2, 2));
    let history = store.history(Some(&key("web")), 10).unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!(history[0].author, "b");
    let back = store.changes_back_to(1).unwrap();
    assert_eq!(store.commit("d", back).await.unwrap(), 4);
    assert_eq!(store.list().unwrap().resources[0].document, json!({"n": 1}));
    assert!(store.changes_back_to(9).is_err());
    drop(store);
    let again = RedbStore::open(dir.path()).unwrap();
    assert_eq!(again.list().unwrap().resources[0].document, json!({"n": 1}));
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
        expect: RecordExpect::Any,
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
    let large = Change::put(key("web"), json!("x".repeat(DOCUMENT_MAX + 1)));
    let error = store.commit("a", vec![large]).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }));
    assert!(store.list().unwrap().resources.is_empty());
}

#[tokio::test]
async fn events_follow_a_listing() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path()).unwrap();
    let put = |name: &str, n: u32| Change::put(key(name), json!({ "n": n }));
    store.commit("a", vec![put("web", 1)]).await.unwrap();
    let listing = store.list().unwrap();
    assert_eq!((listing.revision, listing.resources.len()), (1, 1));
    let mut events = store.events(listing.revision);
    store.commit("b", vec![put("web", 1)]).await.unwrap();
    let both = vec![Change::delete(key("web")), put("orders", 1)];
    store.commit("b", both).await.unwrap();
    let event = events.next().await.unwrap();
    assert_eq!(event.revision, 2);
    let changed = event.changes.iter();
    let changed: Vec<_> = changed
        .map(|c| (&*c.key.name, c.resource.as_ref().map(|r| r.revision)))
        .collect();
    assert_eq!(changed, [("web", None), ("orders", Some(2))]);
    drop(store);
    // One who was away while the process was: what happened before it started is not known.
    let store = RedbStore::open(dir.path()).unwrap();
    assert!(store.events(1).try_next().is_err());
    assert_eq!(store.events(2).try_next(), Ok(None));
}

#[tokio::test]
async fn a_commit_is_refused_where_a_condition_does_not_hold() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path()).unwrap();
    let put = |name: &str, n: u32| Change::put(key(name), json!({ "n": n }));
    store.commit("a", vec![put("web", 1)]).await.unwrap();
    let changes = vec![
        put("new", 1),
        put("web", 2).expecting(Expect::Revision(7)),
        Change::delete(key("none")).expecting(Expect::Revision(1)),
    ];
    let refused = store.commit("b", changes).await.unwrap_err();
    let StoreError::Conflict(conflicts) = refused else {
        panic!("{refused}");
    };
    assert_eq!(conflicts.len(), 2);
    assert_eq!(
        conflicts[0].found.as_ref().unwrap().document,
        json!({"n": 1})
    );
    assert_eq!(conflicts[1].found, None);
    assert_eq!(store.list().unwrap().resources.len(), 1);
}
