//! The history, its bounds, and rollbacks.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;

use super::engine::{Engine, ManualClock, commit, delete, engine, key, put, state, states};
use crate::store::{
    Change, DOCUMENT_MAX, Expect, HISTORY_PAGE_BYTES_MAX, HistoryLimits, HistoryQuery, Revision,
    Store, StoreError, changes_back,
};

pub(super) async fn the_history_tells_every_change_a_page_at_a_time<E: Engine>() {
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

pub(super) async fn a_page_of_the_history_is_bounded_in_bytes<E: Engine>() {
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

pub(super) async fn every_kept_revision_can_be_told<E: Engine>() {
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

pub(super) async fn a_rollback_of_some_touches_no_others_and_expects_what_it_saw<E: Engine>() {
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

pub(super) async fn the_history_is_bounded_in_bytes<E: Engine>() {
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
