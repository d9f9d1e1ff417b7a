//! What is on disk: backups, restored elsewhere, and rows that cannot be read.

use std::path::Path;

use redb::{Database, ReadableDatabase, TableDefinition};
use serde_json::Value;
use weft_api::types::{ApplyResult, Source, Sources};
use weft_control_plane::backup::{restore, verify};
use weft_proto::identity::CurrentCertificate;
use weft_proto::identity::sign_request::Credential;
use weft_proto::registry::register_response::Message as Answer;
use weft_proto::resource::Kind;

use crate::support::{ControlPlane, Sidecar, program};

const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");

fn service(name: &str, port: u64) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
    )
}

async fn apply(control_plane: &ControlPlane, text: String) -> ApplyResult {
    let name = "test.yaml".to_owned();
    let sources = vec![Source { name, text }];
    let body = Sources { sources };
    control_plane
        .client()
        .post("/v1/apply", &body)
        .await
        .unwrap()
}

async fn back_up(control_plane: &ControlPlane, file: &Path) {
    let mut output = std::fs::File::create(file).unwrap();
    let client = control_plane.client();
    client.download("/v1/backup", &mut output).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_elsewhere_and_sidecars_come_back() {
    let control_plane = ControlPlane::start().await;
    let sidecar = control_plane.enrol("shop/web", &[80]).await;
    let registering = sidecar.register(&[80]).await;
    let revoked = control_plane.enrol("shop/bad", &[80]).await;
    control_plane.revoke(revoked.instance()).await.unwrap();
    let unredeemed = control_plane.token("shop/new", &["shop/new"], &[80]).await;
    apply(&control_plane, service("first", 1)).await;

    // Two resources at a time are applied meanwhile, and a workload joins: none waits or fails.
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("backup");
    let writing = async {
        for n in 1..=30 {
            apply(&control_plane, service("a", n) + &service("b", n)).await;
        }
        control_plane.enrol("shop/late", &[80]).await;
    };
    let copying = async {
        for _ in 0..3 {
            back_up(&control_plane, &file).await;
        }
    };
    tokio::join!(writing, copying);
    let summary = verify(&file).unwrap();
    assert!(
        summary.revision > 1 && summary.resources == 3,
        "{summary:?}"
    );
    drop(registering);

    let control_plane = control_plane.restored(&file).await;
    let history = control_plane.get("/v1/history?limit=1").await;
    assert_eq!(history[0]["revision"], summary.revision);
    let ports: Vec<Value> = control_plane
        .get("/v1/resources")
        .await
        .as_array()
        .unwrap()
        .iter()
        .filter(|resource| resource["metadata"]["name"] != "first")
        .map(|resource| resource["spec"]["ports"][0]["port"].clone())
        .collect();
    assert_eq!(ports[0], ports[1], "half of one apply is in the backup");

    // The sidecar that was there before comes back with the certificate that it has, is
    // registered, and renews.
    let mut sidecar = sidecar;
    let mut registering = sidecar.open_registration().await;
    let answer = registering.say(sidecar.registration(&[80])).await.unwrap();
    assert!(matches!(answer, Answer::Accepted(_)), "{answer:?}");
    let instance = sidecar.instance().to_owned();
    let current = Credential::CurrentCertificate(CurrentCertificate {});
    let renewed = sidecar.sign(current).await.unwrap();
    assert_eq!(renewed.instance, instance);
    let mut joining = Sidecar::new(&control_plane);
    joining
        .sign(Credential::JoinToken(unredeemed))
        .await
        .unwrap();
    // Who was revoked stays so.
    let mut revoked = revoked;
    let current = Credential::CurrentCertificate(CurrentCertificate {});
    assert!(revoked.sign(current).await.is_err());
    apply(&control_plane, service("after", 1)).await;

    // Into a directory that is in use nothing is restored.
    let refused = restore(&file, &control_plane.data_dir()).unwrap_err();
    assert!(refused.to_string().contains("empty"), "{refused}");
}

/// A backup with any byte changed, or cut off anywhere, is refused, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused() {
    let control_plane = ControlPlane::start().await;
    apply(&control_plane, service("web", 80)).await;
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("backup");
    back_up(&control_plane, &file).await;
    let whole = std::fs::read(&file).unwrap();
    let dir = scratch.path().join("data");
    let refused = |content: &[u8], what: &str| {
        std::fs::write(&file, content).unwrap();
        let error = restore(&file, &dir).unwrap_err();
        assert!(error.to_string().contains("line "), "{what}: {error}");
        assert!(!dir.exists(), "{what}");
    };
    for length in [0, 1, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..length], &format!("cut off at {length}"));
    }
    for place in (0..whole.len() - 1).step_by(whole.len() / 40) {
        let mut changed = whole.clone();
        changed[place] ^= 1;
        refused(&changed, &format!("byte {place} changed"));
    }
    refused(&[&whole[..], b"{}\n"].concat(), "something appended");
    std::fs::write(&file, &whole).unwrap();
    restore(&file, &dir).unwrap();
    assert!(dir.join("ca/root.pem").exists());
}

/// The disk is full: what does not fit is refused with the reason, everything else goes on, and what
/// was acknowledged is there after a restart, no more and no less.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_loses_nothing() {
    let control_plane = ControlPlane::start_on_a_small_disk(8 * 1024 * 1024).await;
    let mut sidecar = control_plane.enrol("shop/web", &[80]).await;
    let mut acknowledged = Vec::new();
    let refused = loop {
        let name = format!("large{}", acknowledged.len());
        let input = "test.yaml".to_owned();
        let text = large_document(&name);
        let sources = vec![Source { name: input, text }];
        let body = Sources { sources };
        let client = control_plane.client();
        let applied = client.post::<_, ApplyResult>("/v1/apply?allowMissing=true", &body);
        match applied.await {
            Ok(_) => acknowledged.push(name),
            Err(error) => break error.to_string(),
        }
        assert!(acknowledged.len() < 200, "the disk is never full");
    };
    assert!(refused.contains("check space"), "{refused}");
    assert!(!acknowledged.is_empty());
    assert_eq!(names(&control_plane).await, acknowledged);
    // Renewals only note times: they do not need the disk.
    let current = Credential::CurrentCertificate(CurrentCertificate {});
    sidecar.sign(current).await.unwrap();
    let stopped = control_plane.stop();
    let control_plane = ControlPlane::started_again(stopped, &[]).await;
    assert_eq!(names(&control_plane).await, acknowledged);
    apply(&control_plane, service("after", 1)).await;
}

/// The store's file is removed, or another one is put in its place, while the control plane runs: what
/// would be lost is not acknowledged, and what was acknowledged is still there for a backup.
#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_written_to_a_file_that_was_removed_is_refused() {
    let control_plane = ControlPlane::start().await;
    let mut sidecar = control_plane.enrol("shop/web", &[80]).await;
    let mut discovery = sidecar.discover().await;
    discovery.ask(Kind::Service, &["shop/first"], &[]).await;
    assert_eq!(discovery.taken().await, "-shop/first");
    control_plane.apply(&service("first", 1)).await.unwrap();
    assert_eq!(discovery.taken().await, "+shop/first");
    let (file, away) = ["weft.redb", "away"]
        .map(|name| control_plane.data_dir().join(name))
        .into();
    std::fs::rename(&file, &away).unwrap();
    let refused = async || {
        let applied = control_plane.apply(&service("second", 1)).await;
        applied.unwrap_err().to_string()
    };
    let said = refused().await;
    for part in ["weft.redb", "removed or replaced", "weft backup"] {
        assert!(said.contains(part), "{said}");
    }
    std::fs::write(&file, "another").unwrap();
    let said = refused().await;
    assert!(said.contains("another file is in its place"), "{said}");
    // Who asks only is answered, and certificates are renewed.
    assert_eq!(names(&control_plane).await, ["first"]);
    let current = Credential::CurrentCertificate(CurrentCertificate {});
    sidecar.sign(current).await.unwrap();
    assert!(discovery.quiet().await, "nothing has changed");
    let scratch = tempfile::tempdir().unwrap();
    let backup = scratch.path().join("backup");
    back_up(&control_plane, &backup).await;

    // The file comes back: everything goes on.
    std::fs::rename(&away, &file).unwrap();
    control_plane.apply(&service("third", 1)).await.unwrap();
    let control_plane = control_plane.restart().await;
    assert_eq!(names(&control_plane).await, ["first", "third"]);
    let control_plane = control_plane.restored(&backup).await;
    assert_eq!(names(&control_plane).await, ["first"]);
}

/// Names of all resources, in the order in which they were made.
async fn names(control_plane: &ControlPlane) -> Vec<String> {
    let listed = control_plane.get("/v1/resources").await;
    let listed = listed.as_array().unwrap().iter();
    let names = listed.map(|r| r["metadata"]["name"].as_str().unwrap().to_owned());
    let mut names: Vec<String> = names.collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

/// A document of some 200 kB.
fn large_document(name: &str) -> String {
    let text = "x".repeat(200_000);
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: \
         shop, annotations: {{note: {text}}}}}\nspec: {{ports: [{{port: 80}}]}}\n"
    )
}

/// An instance was revoked, and its record is damaged: the control plane does not start as if the
/// revocation had never been, and says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_record_stops_the_start() {
    let control_plane = ControlPlane::start().await;
    let revoked = control_plane.enrol("shop/bad", &[80]).await;
    let other = control_plane.enrol("shop/web", &[80]).await;
    control_plane.revoke(revoked.instance()).await.unwrap();
    let row = format!("instance/{}", revoked.instance());
    let stopped = control_plane.stop();
    let data_dir = stopped.path().join("data");
    let file = data_dir.join("weft.redb");
    let content = {
        let database = Database::open(&file).unwrap();
        let read = database.begin_read().unwrap().open_table(RECORDS).unwrap();
        let content = read.get(row.as_str()).unwrap().unwrap().value().to_vec();
        let write = database.begin_write().unwrap();
        let mut table = write.open_table(RECORDS).unwrap();
        table.insert(row.as_str(), &content[..20]).unwrap();
        drop(table);
        write.commit().unwrap();
        content[..20].to_vec()
    };
    let start = || {
        let mut command = program(&data_dir);
        command.args(["--listen", "127.0.0.1:0"]);
        command
    };
    let output = start().output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains(&row) && said.contains("weft restore"),
        "{said}"
    );
    let named = said.split("--discard-unreadable ").nth(1).unwrap();
    let named = named.split_whitespace().next().unwrap();
    // Another row, or other content of this one, is not given up.
    let wrong = format!("{row}@0000000000000000");
    let output = start().args(["--discard-unreadable", &wrong]).output();
    let said = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(said.contains("nothing was discarded"), "{said}");
    let more = ["--discard-unreadable", named];
    let control_plane = ControlPlane::started_again(stopped, &more).await;
    let certs = control_plane.get("/v1/certs").await;
    let names: Vec<&str> = certs.as_array().unwrap().iter().map(name_of).collect();
    assert_eq!(names, [other.instance()]);
    let (_, digest) = named.rsplit_once('@').unwrap();
    let kept = control_plane.data_dir().join(format!("discarded-{digest}"));
    assert_eq!(std::fs::read(kept).unwrap(), content);
}

fn name_of(cert: &Value) -> &str {
    cert["instance"].as_str().unwrap()
}
