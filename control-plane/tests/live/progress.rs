//! How far a revision has come: for whom `apply --wait` waits, and whose rejections it tells.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_proto::resource::Kind;
use weft_proto::xds::DeltaDiscoveryResponse;

use crate::support::{ControlPlane, Discovery, wait_until};

/// What `apply --wait` asks for: an answer when a revision is settled, or after 10 s.
async fn settled(control_plane: &ControlPlane, revision: u64) -> Value {
    let path = format!("/v1/applied?revision={revision}&waitMillis=10000");
    control_plane.get(&path).await
}

/// Makes a service, or changes its port.
async fn put(control_plane: &ControlPlane, name: &str, port: u16) -> u64 {
    let text = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    );
    control_plane.apply(&text).await.unwrap().revision
}

/// A stream that was told of two services, `odd` and `web`, and that rejects the first.
async fn rejecting(control_plane: &ControlPlane) -> Discovery {
    put(control_plane, "odd", 80).await;
    put(control_plane, "web", 80).await;
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let mut discovery = caller.discover().await;
    discovery.ask(Kind::Service, &["shop/odd"], &[]).await;
    answer(&mut discovery, Some("shop/odd: too odd")).await;
    wait_until("the rejection is known", async || {
        let proxies = control_plane.get("/v1/proxies").await;
        proxies[0]["rejected"]["Service/shop/odd"] == "too odd"
    })
    .await;
    discovery.ask(Kind::Service, &["shop/web"], &[]).await;
    answer(&mut discovery, None).await;
    discovery
}

async fn answer(discovery: &mut Discovery, error: Option<&str>) -> DeltaDiscoveryResponse {
    let push = discovery.next().await.unwrap();
    discovery.acknowledge(&push, error).await;
    push
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_fails_the_change_that_was_rejected_and_no_other() {
    let control_plane = ControlPlane::start().await;
    let mut discovery = rejecting(&control_plane).await;
    // It rejects something else since long, and takes this.
    let revision = put(&control_plane, "web", 81).await;
    let (progress, push) = tokio::join!(
        settled(&control_plane, revision),
        answer(&mut discovery, None)
    );
    assert_eq!(push.resources[0].name, "shop/web");
    assert_eq!(progress["rejected"], json!([]), "{progress}");
    assert_eq!(progress["waiting"], json!([]), "{progress}");
    assert_eq!(progress["applied"], json!(["shop/caller"]), "{progress}");
    assert_eq!(progress["known"], true);

    let revision = put(&control_plane, "web", 82).await;
    let (progress, _push) = tokio::join!(
        settled(&control_plane, revision),
        answer(&mut discovery, Some("shop/web: odd too"))
    );
    let expected =
        json!([{"workload": "shop/caller", "resource": "Service/shop/web", "reason": "odd too"}]);
    assert_eq!(progress["rejected"], expected, "{progress}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_until_sidecars_have_answered_and_no_longer() {
    let control_plane = ControlPlane::start().await;
    let mut discovery = rejecting(&control_plane).await;
    let revision = put(&control_plane, "web", 81).await;
    let path = format!("/v1/applied?revision={revision}");
    let progress = control_plane.get(&path).await;
    assert_eq!(progress["waiting"], json!(["shop/caller"]), "at once");
    let begun = Instant::now();
    let late = control_plane.get(&format!("{path}&waitMillis=300")).await;
    assert_eq!(late["waiting"], json!(["shop/caller"]));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // The answer comes with the sidecar's.
    let begun = Instant::now();
    let (progress, _push) = tokio::join!(settled(&control_plane, revision), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        answer(&mut discovery, None).await
    });
    assert_eq!(progress["waiting"], json!([]));
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(500), "{elapsed:?}");
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    // Many that wait leave the API to others; they are answered at once.
    let never = format!("/v1/applied?revision={}&waitMillis=3000", revision + 1);
    let client = control_plane.client();
    let begun = Instant::now();
    let waiting = (0..30).map(async |_| {
        client.get::<Value>(&never).await.unwrap();
        begun.elapsed()
    });
    let waited = futures_util::future::join_all(waiting).await;
    let at_once = waited.iter().filter(|w| **w < Duration::from_secs(2));
    assert_eq!(at_once.count(), 30 - 16, "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_again_is_waited_for() {
    let control_plane = ControlPlane::start().await;
    put(&control_plane, "web", 80).await;
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let mut discovery = caller.discover().await;
    discovery.ask(Kind::Service, &["shop/web"], &[]).await;
    answer(&mut discovery, None).await;
    let revision = put(&control_plane, "web", 81).await;
    // It goes without an answer.
    discovery.next().await.unwrap();
    let path = format!("/v1/applied?revision={revision}");
    let waiting = json!(["shop/caller"]);
    assert_eq!(control_plane.get(&path).await["waiting"], waiting);
    drop(discovery);
    let mut again = caller.discover().await;
    again.ask(Kind::Service, &["shop/web"], &[]).await;
    let push = again.next().await.unwrap();
    assert_eq!(control_plane.get(&path).await["waiting"], waiting);
    again.acknowledge(&push, None).await;
    let progress = settled(&control_plane, revision).await;
    assert_eq!(progress["waiting"], json!([]), "{progress}");
    assert_eq!(progress["applied"], waiting, "{progress}");
}
