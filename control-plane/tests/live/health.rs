//! What `/healthz` and `/readyz` say, and when.

use std::time::Duration;

use http::StatusCode;
use weft_proto::resource::Kind;

use crate::support::{ControlPlane, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_works_says_so() {
    let control_plane = ControlPlane::start().await;
    for path in ["/healthz", "/readyz"] {
        wait_until(path, async || {
            let answer = control_plane.http(path).await;
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\nok\n")
        })
        .await;
    }
    let unknown = control_plane.http("/nothing").await;
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    for path in ["/healthz", "/readyz"] {
        let (status, text) = on_admin_socket(&control_plane, path).await;
        assert_eq!((status, &*text), (StatusCode::OK, "ok\n"), "{path}");
    }
}

async fn on_admin_socket(control_plane: &ControlPlane, path: &str) -> (StatusCode, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let socket = control_plane.data_dir().join("admin.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let text = answer.rsplit("\r\n\r\n").next().unwrap();
    (status, text.to_owned())
}

/// Connections to the port that everybody may read are bounded, and idle ones are closed.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_metrics_port_lock_nobody_out() {
    let control_plane = ControlPlane::start().await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(control_plane.metrics_connection().await);
    }
    let begun = std::time::Instant::now();
    wait_until("idle connections are closed", async || {
        let mut stream = control_plane.metrics_connection().await;
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let _closed = stream.write_all(request).await;
        let mut answer = String::new();
        let _closed = stream.read_to_string(&mut answer).await;
        answer.starts_with("HTTP/1.1 200")
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(15));
}

/// A process that may open no file more accepts nobody; its tasks outlive that, the streams that stand
/// go on, and everybody is accepted again as soon as there are descriptors.
#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_nobody_is_accepted_and_nothing_ends() {
    let mut control_plane = ControlPlane::start().await;
    let sidecar = control_plane.enrol("shop/web", &[80]).await;
    let mut discovery = sidecar.discover().await;
    discovery.ask(Kind::Service, &["shop/first"], &[]).await;
    assert_eq!(discovery.taken().await, "-shop/first");
    let before = control_plane.limit_descriptors(3);
    let waiting = tokio::spawn({
        let client = control_plane.client();
        async move { client.get::<serde_json::Value>("/v1/resources").await }
    });
    let joining = tokio::spawn(async move { sidecar.try_discover().await.map(drop) });
    let begun = std::time::Instant::now();
    let used = control_plane.cpu_time();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = control_plane.cpu_time() - used;
    assert!(
        used < begun.elapsed() / 4,
        "it does not wait, but spins: {used:?}"
    );
    assert!(!waiting.is_finished() && !joining.is_finished());
    assert!(!control_plane.has_ended());

    control_plane.limit_descriptors(before);
    waiting.await.unwrap().unwrap();
    joining.await.unwrap().unwrap();
    control_plane
        .apply(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {name: first, namespace: \
             shop}\nspec: {ports: [{port: 80}]}\n",
        )
        .await
        .unwrap();
    assert_eq!(discovery.taken().await, "+shop/first");
    let healthy = control_plane.http("/healthz").await;
    assert!(healthy.starts_with("HTTP/1.1 200"), "{healthy}");
}
