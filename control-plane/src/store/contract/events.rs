//! What is told of commits to those who follow.

use super::engine::{Engine, commit, delete, engine, put};
use crate::store::{EVENTS_MAX, EventsError};

pub(super) async fn a_listing_and_the_events_after_it_are_every_change_once<E: Engine>() {
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

pub(super) async fn who_is_too_far_behind_is_told<E: Engine>() {
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
    let now = store.list().unwrap().revision;
    assert!(store.events(now - 1).try_next().is_err());
    let mut events = store.events(now);
    assert_eq!(events.try_next(), Ok(None));
    commit(store, vec![delete("web")]).await;
    let event = events.next().await.unwrap();
    assert_eq!(event.revision, now + 1);
    assert_eq!(event.changes[0].resource, None);
}
