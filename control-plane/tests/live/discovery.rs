//! Discovery: on demand, by any name, only the difference, and what sidecars say about it.

use std::time::Duration;

use tonic::Code;
use weft_proto::resource::Kind;
use weft_proto::xds::DeltaDiscoveryRequest;
use weft_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

use crate::support::{ControlPlane, Sidecar, wait_until};

async fn published(control_plane: &ControlPlane, service: &str) -> bool {
    let services = control_plane.get("/v1/services").await;
    let mut services = services.as_array().unwrap().iter();
    services.any(|s| {
        let of = |field: &str| s["metadata"][field].as_str().unwrap_or_default();
        format!("{}/{}", of("namespace"), of("name")) == service
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn by_name_hostname_and_address() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let _registered = web.register(&[80]).await;
    let mut discovery = web.discover().await;
    discovery.ask(Kind::MeshConfig, &["*"], &[]).await;
    assert_eq!(discovery.taken().await, "+mesh");
    wait_until("it is published", async || {
        published(&control_plane, "shop/web").await
    })
    .await;
    discovery.ask(Kind::Service, &[], &[]).await;
    assert!(discovery.quiet().await, "nothing was asked for");
    let service = &control_plane.get("/v1/services").await[0];
    let address = |n: usize| {
        service["status"]["addresses"][n]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let aliases = ["web.shop.mesh".to_owned(), address(0), address(1)];
    for name in aliases.iter().map(String::as_str).chain(["shop/web"]) {
        discovery.ask(Kind::Service, &[name], &[]).await;
        let push = discovery.next().await.unwrap();
        discovery.acknowledge(&push, None).await;
        assert_eq!(push.resources[0].name, "shop/web", "{name}");
        assert_eq!(push.resources[0].aliases, aliases);
    }
    discovery
        .ask(Kind::Service, &["nobody.shop.mesh"], &[])
        .await;
    assert_eq!(discovery.taken().await, "-nobody.shop.mesh");
    let nobody = control_plane.enrol("shop/nobody", &[81]).await;
    let _registered = nobody.register(&[81]).await;
    assert_eq!(discovery.taken().await, "+shop/nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_makes_the_endpoint() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let mut registering = web.open_registration().await;
    let mut registration = web.registration(&[80]);
    registration.ports[0].ready = false;
    registering.say(registration.clone()).await.unwrap();
    let mut discovery = web.discover().await;
    discovery.open_slices().await;
    discovery.ask(Kind::Service, &["shop/web"], &[]).await;
    discovery.until("+shop/web").await;
    registration.ports[0].ready = true;
    registering.say(registration).await.unwrap();
    assert_eq!(discovery.taken().await, "+shop/web/0-1(80@20080)");
    assert!(discovery.quiet().await, "the service is the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_shows_nobody_an_empty_service() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let registered = web.register(&[80]).await;
    wait_until("it is published", async || {
        published(&control_plane, "shop/web").await
    })
    .await;
    let mut discovery = caller.discover().await;
    discovery.ask(Kind::Service, &["web.shop.mesh"], &[]).await;
    let push = discovery.next().await.unwrap();
    let version = push.resources[0].version.clone();
    discovery.acknowledge(&push, None).await;

    let control_plane = control_plane.restart().await;
    drop(registered);
    let mut discovery = caller.discover().await;
    let held = [("shop/web", version.as_str()), ("shop/gone", "1")];
    discovery
        .ask(Kind::Service, &["web.shop.mesh"], &held)
        .await;
    assert_eq!(discovery.taken().await, "-shop/gone", "only the difference");

    // Its sidecar does not return: it is gone after the grace.
    let begun = std::time::Instant::now();
    assert_eq!(discovery.taken().await, "-shop/web -web.shop.mesh");
    assert!(begun.elapsed() > Duration::from_secs(4), "within the grace");
    assert_eq!(
        control_plane.get("/v1/workloads").await,
        serde_json::json!([])
    );

    // It does: with the same address.
    let _registered = web.register(&[80]).await;
    let push = discovery.next().await.unwrap();
    assert_eq!(push.resources[0].version, version, "the same as ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_is_visible() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let _registered = web.register(&[80]).await;
    wait_until("it is published", async || {
        published(&control_plane, "shop/web").await
    })
    .await;
    let mut discovery = web.discover().await;
    discovery.ask(Kind::Service, &["shop/web"], &[]).await;
    let push = discovery.next().await.unwrap();
    let reason = Some("shop/web: ports.port: too odd");
    discovery.acknowledge(&push, reason).await;
    wait_until("the rejection is known", async || {
        let proxies = control_plane.get("/v1/proxies").await;
        proxies[0]["rejected"]["Service/shop/web"] == "ports.port: too odd"
    })
    .await;
    assert!(discovery.quiet().await, "the same is not sent again");
    let metrics = control_plane.http("/metrics").await;
    assert!(
        metrics.contains("weft_discovery_nacks_total 1"),
        "{metrics}"
    );
}

/// However often and at whatever length a sidecar rejects what it is sent: its stream goes on, what
/// is kept and shown of it is bounded, and so is the log.
#[tokio::test(flavor = "multi_thread")]
async fn reasons_of_rejections_are_bounded() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let _registered = web.register(&[80]).await;
    let services: String = (0..300)
        .map(|n| {
            format!(
                "---\napiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: s{n}, \
                 namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n"
            )
        })
        .collect();
    control_plane.apply(&services).await.unwrap();
    let mut discovery = web.discover().await;
    discovery.ask(Kind::Service, &["shop/s299"], &[]).await;
    discovery.until("+shop/s299").await;
    let names: Vec<String> = (0..299).map(|n| format!("shop/s{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    discovery.ask(Kind::Service, &names, &[]).await;
    let push = discovery.next().await.unwrap();
    assert_eq!(push.resources.len(), names.len());
    let reasons: String = names
        .iter()
        .map(|name| format!("{name}: {}\n", "ä".repeat(2_000)))
        .collect();
    discovery.acknowledge(&push, Some(&reasons)).await;
    wait_until("the rejections are known", async || {
        let proxies = control_plane.get("/v1/proxies").await;
        let rejected = proxies[0]["rejected"].as_object().unwrap();
        let bytes = |reason: &serde_json::Value| reason.as_str().unwrap().len();
        let total: usize = rejected.values().map(bytes).sum();
        assert!(total < 100_000, "{total} bytes");
        rejected.len() == names.len()
    })
    .await;
    discovery.ask(Kind::Service, &["shop/web"], &[]).await;
    discovery.until("+shop/web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_is_gathered() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let mut registering = web.register(&[80]).await;
    let mut discovery = web.discover().await;
    discovery.open_slices().await;
    discovery.ask(Kind::Service, &["shop/web"], &[]).await;
    discovery.until("+shop/web").await;
    let begun = std::time::Instant::now();
    let mut registration = web.registration(&[80]);
    let counting = tokio::spawn(async move {
        let mut pushes = 0;
        loop {
            let push = discovery.next().await.unwrap();
            discovery.acknowledge(&push, None).await;
            pushes += 1;
            let envelope = push.resources[0].resource.as_ref().unwrap();
            let resource = weft_proto::resource::Resource::decode(envelope).unwrap();
            let weft_proto::resource::Resource::EndpointSlice(slice) = resource else {
                panic!("not a slice");
            };
            if slice.endpoints[0].weight == 300 {
                return pushes;
            }
        }
    });
    for weight in 101..=300 {
        registration.weight = weight;
        registering.say(registration.clone()).await.unwrap();
    }
    let pushes = counting.await.unwrap();
    let allowed = 2 + begun.elapsed().as_millis() / 20;
    assert!(pushes <= allowed, "{pushes} pushes, allowed are {allowed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_and_asked_for_again() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let _registered = web.register(&[80]).await;
    let mut discovery = web.discover().await;
    let name = "web.shop.mesh";
    discovery.open_slices().await;
    discovery.ask(Kind::Service, &[name], &[]).await;
    discovery.until("+shop/web").await;
    // As a sidecar does after a time unused, and when it is dialled again.
    discovery
        .send(DeltaDiscoveryRequest {
            type_url: Kind::Service.type_url().to_owned(),
            resource_names_unsubscribe: vec![name.to_owned()],
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    assert_eq!(discovery.taken().await, "-shop/web/0-1");
    assert!(discovery.quiet().await, "it drops the service by itself");
    discovery.ask(Kind::Service, &[name], &[]).await;
    let again = [discovery.taken().await, discovery.taken().await];
    assert_eq!(again, ["+shop/web/0-1(80@20080)", "+shop/web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn not_spoken_here() {
    let control_plane = ControlPlane::start().await;
    let nobody = Sidecar::new(&control_plane);
    let mut client = AggregatedDiscoveryServiceClient::new(nobody.connect().await.unwrap());
    let error = client
        .delta_aggregated_resources(tokio_stream::empty())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    let web = control_plane.enrol("shop/web", &[]).await;
    let mut client = AggregatedDiscoveryServiceClient::new(web.connect().await.unwrap());
    let error = client
        .stream_aggregated_resources(tokio_stream::empty())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    let mut discovery = web.discover().await;
    discovery
        .send(DeltaDiscoveryRequest {
            type_url: "type.googleapis.com/x".to_owned(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    let error = discovery.next().await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}
