//! A control plane that follows a real API server, and a sidecar that asks for what is there.

use std::time::Duration;

use weft_core::model::{EndpointSlice, Transport};
use weft_proto::resource::{Kind, Resource};

use crate::support::{ControlPlane, Discovery, wait_until};
use crate::testing::ApiServer;

const SERVICE: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.77.7, ports: [{name: http, port: 80, targetPort: 8080}]}
";

/// A slice of shop/web with the last numbers of its ready addresses, and of those that are not.
fn slice(ready: &[u8], unready: &[u8]) -> String {
    let endpoint = |last: &u8, ready| {
        format!("{{addresses: [192.0.2.{last}], conditions: {{ready: {ready}}}}}")
    };
    let ready = ready.iter().map(|last| endpoint(last, true));
    let unready = unready.iter().map(|last| endpoint(last, false));
    let endpoints: Vec<String> = ready.chain(unready).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

fn run(server: &ApiServer, args: &[&str], input: &str) {
    let (done, said) = server.kubectl(args, input);
    assert!(done, "{args:?}: {said}");
}

/// Takes responses until there is a slice with these addresses.
async fn until(watching: &mut Discovery, expected: &[u8]) {
    let expected: Vec<String> = expected
        .iter()
        .map(|n| format!("192.0.2.{n}:8080"))
        .collect();
    loop {
        let push = watching.next().await.unwrap();
        watching.acknowledge(&push, None).await;
        let found = push.resources.iter().any(|envelope| {
            let resource = Resource::decode(envelope.resource.as_ref().unwrap()).unwrap();
            let Resource::EndpointSlice(slice) = resource else {
                return false;
            };
            addresses(&slice) == expected
        });
        if found {
            return;
        }
    }
}

fn addresses(slice: &EndpointSlice) -> Vec<String> {
    let endpoints = slice.endpoints.iter();
    let ports = endpoints.flat_map(|endpoint| {
        assert_eq!(endpoint.transport, Transport::Plain);
        assert_eq!(endpoint.identity, None);
        &endpoint.ports
    });
    ports.map(|port| port.address.to_string()).collect()
}

/// What is applied with kubectl reaches whoever asked; a label reaches nobody; the API server may go
/// and come back.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_says_reaches_a_sidecar() {
    let Some(mut server) = ApiServer::start().await else {
        return;
    };
    let control_plane = ControlPlane::start_in_cluster(&server.kubeconfig()).await;
    let caller = control_plane.enrol("shop/caller", &[81]).await;
    let _registered = caller.register(&[81]).await;
    let mut watching = caller.discover().await;
    watching.open_slices().await;
    watching.ask(Kind::Service, &["10.96.77.7"], &[]).await;
    assert_eq!(watching.taken().await, "-10.96.77.7");
    run(&server, &["apply", "-f", "-"], SERVICE);
    watching.until("+shop/web").await;
    run(&server, &["apply", "-f", "-"], &slice(&[1, 2], &[3]));
    until(&mut watching, &[1, 2]).await;
    run(
        &server,
        &[
            "label",
            "-n",
            "shop",
            "svc/web",
            "endpointslice/web-1",
            "a=b",
        ],
        "",
    );
    assert!(watching.quiet().await, "a label is told to nobody");
    run(&server, &["apply", "-f", "-"], &slice(&[1, 3], &[2]));
    until(&mut watching, &[1, 3]).await;

    // Away, and back with something else.
    server.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(watching.quiet().await, "what is known stays");
    let ready = control_plane.http("/readyz").await;
    assert!(ready.contains("200"), "{ready}");
    let metrics = control_plane.http("/metrics").await;
    let stale = metrics
        .lines()
        .find(|line| line.starts_with("weft_kubernetes_stale_seconds{kind=\"services\"}"));
    assert!(stale.is_some_and(|line| !line.ends_with(" 0")), "{stale:?}");
    server.restart().await;
    run(&server, &["apply", "-f", "-"], &slice(&[9], &[]));
    until(&mut watching, &[9]).await;
    run(&server, &["delete", "-n", "shop", "svc/web"], "");
    loop {
        let push = watching.next().await.unwrap();
        watching.acknowledge(&push, None).await;
        if push.removed_resources.iter().any(|name| name == "shop/web") {
            break;
        }
    }
}

/// Before everything was listed once, nobody is told anything: what is not known yet would look like
/// what is not there.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_before_everything_was_listed() {
    let Some(mut server) = ApiServer::start().await else {
        return;
    };
    run(&server, &["apply", "-f", "-"], SERVICE);
    run(&server, &["apply", "-f", "-"], &slice(&[1], &[]));
    let control_plane = ControlPlane::start_in_cluster(&server.kubeconfig()).await;
    let caller = control_plane.enrol("shop/caller", &[81]).await;
    let _registered = caller.register(&[81]).await;
    server.kill();
    // What was known before it was restarted is gone, and the API server is away: it waits.
    let (control_plane, ()) = tokio::join!(control_plane.restart(), async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.restart().await;
    });
    wait_until("it has everything", async || {
        control_plane.http("/readyz").await.contains("200")
    })
    .await;
    let caller = control_plane.enrol("shop/other", &[81]).await;
    let _registered = caller.register(&[81]).await;
    let mut watching = caller.discover().await;
    watching.open_slices().await;
    watching.ask(Kind::Service, &["web.shop.mesh"], &[]).await;
    assert_eq!(watching.taken().await, "+shop/web/0-1(80@8080)");
    assert_eq!(watching.taken().await, "+shop/web");
}
