//! Records, which are written together and conditionally.

use super::engine::{Engine, engine, record};
use crate::store::{RecordExpect, RecordWrite, Store, StoreError, read_records};

pub(super) async fn records_are_written_together_or_not_at_all<E: Engine>() {
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

pub(super) async fn a_record_is_redeemed_once<E: Engine>() {
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

pub(super) async fn an_unreadable_record_is_an_error<E: Engine>() {
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

pub(super) async fn writes_are_made_in_the_order_of_the_calls<E: Engine>() {
    let engine: E = engine();
    let store = engine.store();
    let any = |text: &str| vec![record("a", Some(text.as_bytes()), RecordExpect::Any)];
    // Whoever is asked first is written first, whichever is waited for; and is written also when
    // nobody waits.
    drop(store.write(any("first")));
    let second = store.write(any("second"));
    store.write(any("third")).await.unwrap();
    second.await.unwrap();
    assert_eq!(store.records("token").unwrap()[0].1, b"third");
    drop(store.write(any("fourth")));
    let absent = vec![record("b", Some(b"1"), RecordExpect::Absent)];
    store.write(absent).await.unwrap();
    assert_eq!(store.records("token").unwrap()[0].1, b"fourth");
}
