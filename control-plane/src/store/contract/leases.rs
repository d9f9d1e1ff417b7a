//! Leases and their fencing.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{Engine, ManualClock, put, record};
use crate::store::{HistoryLimits, RecordExpect, StoreError};

pub(super) async fn a_lease_has_one_holder_at_a_time<E: Engine>() {
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

pub(super) async fn a_write_with_an_old_fence_is_refused<E: Engine>() {
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

pub(super) async fn a_lease_outlives_a_restart<E: Engine>() {
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
    assert!(other.fencing > released.fencing);
    clock.advance(10);
    engine.reopen();
    let store = engine.store();
    clock.advance(10);
    let second = store.lease("writer", "b", ttl).await.unwrap();
    assert!(second.fencing > first.fencing);
}
