//! What the contract suite does not cover: the file itself.

use serde_json::json;

use super::*;
use crate::store::record;

fn key(name: &str) -> ResourceKey {
    ResourceKey {
        kind: "Service".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

/// Overwrites a row of the resources behind the store's back.
fn damage(dir: &Path, key: &ResourceKey, content: &[u8]) {
    let database = open(&dir.join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut table = transaction.open_table(RESOURCES).unwrap();
    table.insert(key.to_string().as_str(), content).unwrap();
    drop(table);
    transaction.commit().unwrap();
}

#[tokio::test]
async fn an_unreadable_resource_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path()).unwrap();
    let put = |name: &str| Change::put(key(name), json!({}));
    store
        .commit("a", vec![put("web"), put("api")])
        .await
        .unwrap();
    drop(store);
    damage(dir.path(), &key("web"), b"{\"key\":");
    let store = RedbStore::open(dir.path()).unwrap();
    let error = store.list().unwrap_err().to_string();
    for part in ["resources/Service/shop/web", "cannot be read", "EOF"] {
        assert!(error.contains(part), "{error}");
    }
    // A commit that meets it is refused; others go on.
    let error = store.commit("a", vec![put("web")]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreadable { .. }), "{error}");
    let other = Change::put(key("api"), json!({"n": 1}));
    assert_eq!(store.commit("a", vec![other]).await.unwrap(), 2);
    drop(store);
    // Given up only as the error names it, and kept aside.
    let row = error_row(dir.path());
    for wrong in [
        "web",
        "resources/Service/shop/web",
        "resources/Service/shop/web@0",
    ] {
        let error = RedbStore::discard(dir.path(), wrong).unwrap_err();
        assert!(matches!(error, StoreError::Discard(_)), "{error}");
    }
    let kept = RedbStore::discard(dir.path(), &row).unwrap();
    assert_eq!(std::fs::read(kept).unwrap(), b"{\"key\":");
    let store = RedbStore::open(dir.path()).unwrap();
    assert_eq!(store.list().unwrap().resources.len(), 1);
    drop(store);
    assert!(RedbStore::discard(dir.path(), &row).is_err());
}

/// What the error for the unreadable resource says is to be discarded.
fn error_row(dir: &Path) -> String {
    let store = RedbStore::open(dir).unwrap();
    let error = store.list().unwrap_err().to_string();
    let (_before, row) = error.split_once("--discard-unreadable ").unwrap();
    row.to_owned()
}

/// A file that was cut off, or in which the disk changed something, is refused, or has everything
/// that was written: never something else.
#[tokio::test]
async fn a_torn_file_is_refused_or_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path()).unwrap();
    for n in 0..50 {
        let changes = (0..4).map(|i| {
            let document = json!({ "n": n, "text": "x".repeat(300) });
            Change::put(key(&format!("s{}", n * 4 + i)), document)
        });
        store.commit("a", changes.collect()).await.unwrap();
    }
    let record = record("token", "a", Some(&"y".repeat(1000)));
    store.write(vec![record]).await.unwrap();
    let (resources, records) = (store.list().unwrap(), store.records("token").unwrap());
    drop(store);
    let whole = std::fs::read(dir.path().join(FILE)).unwrap();
    let torn = tempfile::tempdir().unwrap();
    let mut refused = 0;
    let mut check = |content: &[u8], what: &str| {
        std::fs::write(torn.path().join(FILE), content).unwrap();
        let opened = caught(|| {
            let store = RedbStore::open(torn.path())?;
            Ok::<_, StoreError>((store.list()?, store.records("token")?))
        });
        match opened.expect(what) {
            Ok(found) => assert!(found == (resources.clone(), records.clone()), "{what}"),
            Err(_error) => refused += 1,
        }
    };
    for part in 1..8 {
        let length = whole.len() * part / 8;
        check(&whole[..length], &format!("cut off at {length}"));
    }
    for place in (0..whole.len()).step_by(whole.len() / 60) {
        let mut changed = whole.clone();
        changed[place] ^= 0x10;
        check(&changed, &format!("byte {place}"));
        let end = (place + 4096).min(whole.len());
        changed[place..end].fill(0);
        check(&changed, &format!("page at {place}"));
    }
    check(&whole, "as it was");
    assert!(refused > 10, "{refused}");
}
