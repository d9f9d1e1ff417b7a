//! A control plane that is killed at any moment, and data directories of which a part is missing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weft_api::client::Client;
use weft_api::types::{ApplyResult, Source, Sources};

use crate::support::{ControlPlane, program};

/// Those who apply at the same time.
const WRITERS: usize = 4;

/// Applies one service after the other until it is refused or told to stop; the names of those that
/// were acknowledged.
async fn apply_until(client: Client, prefix: String, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let name = format!("{prefix}-{}", acknowledged.len());
        let text = format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: {name}, \
             namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n"
        );
        let source = Source {
            name: "test.yaml".to_owned(),
            text,
        };
        let sources = Sources {
            sources: vec![source],
        };
        let applied: Result<ApplyResult, _> = client.post("/v1/apply", &sources).await;
        if applied.is_err() {
            break;
        }
        acknowledged.push(name);
    }
    acknowledged
}

/// Five SIGKILLs, or a hundred with `WEFT_TEST_LONG=1`.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_every_sigkill() {
    let is_long = std::env::var("WEFT_TEST_LONG").is_ok_and(|value| value == "1");
    let kills = if is_long { 100 } else { 5 };
    let mut control_plane = ControlPlane::start().await;
    let mut acknowledged = BTreeSet::new();
    for kill in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let writing = (0..WRITERS).map(|writer| {
            let client = control_plane.client();
            let prefix = format!("s{kill}-{writer}");
            tokio::spawn(apply_until(client, prefix, Arc::clone(&stop)))
        });
        let writing: Vec<_> = writing.collect();
        // Another moment each time, of writes that go on all the while.
        tokio::time::sleep(Duration::from_millis(50 + kill * 37 % 101)).await;
        let directory = control_plane.stop();
        stop.store(true, Ordering::Relaxed);
        let before = acknowledged.len();
        for writer in writing {
            acknowledged.extend(writer.await.unwrap());
        }
        assert!(acknowledged.len() > before, "nothing was written meanwhile");
        control_plane = ControlPlane::started_again(directory, &[]).await;
        let listed = control_plane.get("/v1/resources").await;
        let listed = listed.as_array().unwrap().iter();
        let names = listed.map(|resource| resource["metadata"]["name"].as_str().unwrap());
        let found: BTreeSet<String> = names.map(str::to_owned).collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "after {kill} kills: {lost:?}");
    }
    println!(
        "{kills} kills, {} acknowledged, none lost",
        acknowledged.len()
    );
}

/// What a start on a data directory says that is refused.
fn refusal(data_dir: &Path) -> String {
    let output = program(data_dir).args(["--listen", "127.0.0.1:0"]).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    said
}

/// A new store would know of no revocation, and a new authority would be believed by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_part_of_the_data_directory_is_not_made_anew() {
    let control_plane = ControlPlane::start().await;
    control_plane.enrol("shop/web", &[80]).await;
    let directory = control_plane.stop();
    let data = directory.path().join("data");
    let away = directory.path().join("away");
    for (missing, named) in [
        ("weft.redb", "weft.redb is missing"),
        ("ca", "ca is missing"),
        ("ca/root.pem", "root.pem is missing"),
        ("ca/root.key", "root.key"),
    ] {
        std::fs::rename(data.join(missing), &away).unwrap();
        let said = refusal(&data);
        assert!(said.contains(named), "{missing}: {said}");
        assert!(!data.join(missing).exists(), "{missing} was made");
        std::fs::rename(&away, data.join(missing)).unwrap();
    }
    let control_plane = ControlPlane::started_again(directory, &[]).await;
    assert_eq!(
        control_plane
            .get("/v1/certs")
            .await
            .as_array()
            .unwrap()
            .len(),
        1
    );
}
