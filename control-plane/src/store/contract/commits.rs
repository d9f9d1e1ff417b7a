//! Commits, their conditions and their limits.

use serde_json::json;

use super::engine::{Engine, commit, delete, engine, key, put, state, states};
use crate::model::ResourceKey;
use crate::store::{CHANGES_MAX, Change, DOCUMENT_MAX, Expect, Listing, StoreError};

pub(super) async fn commits_change_what_they_say<E: Engine>() {
    let mut engine: E = engine();
    let store = engine.store();
    assert_eq!(store.list().unwrap(), Listing::default());
    assert_eq!(commit(store, vec![put("web", 1), put("api", 1)]).await, 1);
    // Equal documents and deletions of nothing change nothing, and use no revision up.
    assert_eq!(commit(store, vec![put("web", 1), delete("none")]).await, 1);
    assert_eq!(commit(store, Vec::new()).await, 1);
    assert_eq!(commit(store, vec![put("web", 2), put("api", 1)]).await, 2);
    assert_eq!(state(store), states(&[("api", 1, 1), ("web", 2, 2)]));
    assert_eq!(store.count().unwrap(), 2);
    let web = store.get(&key("web")).unwrap().unwrap();
    assert_eq!((web.generation, &*web.author), (2, "me"));
    assert!(web.created <= web.changed);
    assert_eq!(commit(store, vec![delete("web")]).await, 3);
    assert_eq!(store.get(&key("web")).unwrap(), None);
    assert_eq!(store.count().unwrap(), 1);
    // What comes back begins anew.
    assert_eq!(commit(store, vec![put("web", 2)]).await, 4);
    assert_eq!(store.get(&key("web")).unwrap().unwrap().generation, 1);
    let before = store.list().unwrap();
    assert_eq!(before.revision, 4);
    engine.reopen();
    let store = engine.store();
    let after = store.list().unwrap();
    if E::KEEPS_REVISIONS {
        assert_eq!(after, before);
    }
    let content = |listing: &Listing| -> Vec<_> {
        let resources = listing.resources.iter();
        let content = resources.map(|r| (r.key.clone(), r.document.clone(), r.generation));
        content.collect()
    };
    assert_eq!(content(&after), content(&before));
    assert_eq!(*store.watch().borrow(), after.revision);
    let next = commit(store, vec![put("web", 3)]).await;
    assert_eq!(next, after.revision + 1);
}

pub(super) async fn a_listing_is_in_the_order_of_keys<E: Engine>() {
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

pub(super) async fn a_condition_that_does_not_hold_stops_the_whole_commit<E: Engine>() {
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

pub(super) async fn of_two_with_the_same_condition_one_wins<E: Engine>() {
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

pub(super) async fn limits_are_refused<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    let large = json!({"x": "x".repeat(DOCUMENT_MAX - 8)});
    commit(store, vec![Change::put(key("web"), large)]).await;
    let larger = json!({"x": "x".repeat(DOCUMENT_MAX - 7)});
    let changes = vec![put("api", 1), Change::put(key("web"), larger)];
    let error = store.commit("me", changes).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    let twice = vec![put("api", 1), delete("api")];
    let error = store.commit("me", twice).await.unwrap_err();
    assert!(matches!(error, StoreError::Twice(_)), "{error}");
    let many = (0..=CHANGES_MAX).map(|n| delete(&n.to_string()));
    let error = store.commit("me", many.collect()).await.unwrap_err();
    assert!(matches!(error, StoreError::TooMany { .. }), "{error}");
    assert_eq!(store.list().unwrap().revision, 1);
}
