//! Registration: what is allowed, who wins, and how long it lasts.

use tonic::Code;
use weft_proto::registry::Observed;
use weft_proto::registry::register_response::Message as Answer;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::resource::Kind;
use weft_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

use crate::neighbours;
use crate::support::{ControlPlane, Sidecar, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_what_the_token_binds() {
    let control_plane = ControlPlane::start().await;
    let sidecar = control_plane.enrol("shop/web", &[80]).await;
    type Change = fn(&mut weft_proto::registry::Registration);
    let cases: [(Change, Code, &str); 5] = [
        (
            |r| r.workload = "shop/db".to_owned(),
            Code::PermissionDenied,
            "workload: shop/db is not what this credential is good for; allowed: shop/web",
        ),
        (
            |r| r.services.push("bank/vault".to_owned()),
            Code::PermissionDenied,
            "services: bank/vault",
        ),
        (
            |r| r.ports[0].port = 81,
            Code::PermissionDenied,
            "ports: 81",
        ),
        (|r| r.ports[0].port = 0, Code::InvalidArgument, "ports.port"),
        (
            |r| r.workload = "web".to_owned(),
            Code::InvalidArgument,
            "NAMESPACE/NAME",
        ),
    ];
    for (change, code, expected) in cases {
        let mut registration = sidecar.registration(&[80]);
        change(&mut registration);
        let mut stream = sidecar.open_registration().await;
        let error = stream.say(registration).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
    assert_eq!(
        control_plane.get("/v1/workloads").await,
        serde_json::json!([])
    );
}

/// A zone goes to everybody who calls the service: none is so long that it fills their messages.
#[tokio::test(flavor = "multi_thread")]
async fn long_texts_are_refused_while_neighbours_go_on() {
    let control_plane = ControlPlane::start().await;
    let sidecar = control_plane.enrol("shop/web", &[80]).await;
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let mut registering = sidecar.register(&[80]).await;
    let mut discovery = caller.discover().await;
    discovery.open_slices().await;
    discovery.ask(Kind::Service, &["shop/web"], &[]).await;
    discovery.until("+shop/web").await;
    type Change = fn(&mut weft_proto::registry::Registration);
    let cases: [(Change, &str); 4] = [
        (
            |r| r.zone = "z".repeat(900_000),
            "registration: zone: found 900000 bytes; allowed: 63 bytes at most",
        ),
        (
            |r| r.version = "v".repeat(900_000),
            "registration: version: found 900000 bytes; allowed: 64 bytes at most",
        ),
        (
            |r| r.labels = [("k".to_owned(), "v".repeat(900_000))].into(),
            "registration: labels.k: found \"vvv",
        ),
        (
            |r| r.workload = "w".repeat(900_000),
            "registration: workload: \"www",
        ),
    ];
    let attack = async move {
        for (change, expected) in cases {
            let mut registration = sidecar.registration(&[80]);
            change(&mut registration);
            let mut other = sidecar.open_registration().await;
            let first = other.say(registration.clone()).await.unwrap_err();
            let later = registering.say(registration).await.unwrap_err();
            for error in [first, later] {
                assert_eq!(error.code(), Code::InvalidArgument, "{error}");
                assert!(error.message().starts_with(expected), "{error}");
            }
            registering = sidecar.register(&[80]).await;
        }
        (sidecar, registering)
    };
    let (sidecar, mut registering) =
        neighbours::beside(&control_plane, "long registrations", Box::pin(attack)).await;
    // What it may say is told as before, with its zone.
    let mut registration = sidecar.registration(&[80]);
    registration.zone = "z".repeat(63);
    registering.say(registration).await.unwrap();
    discovery.until("+shop/web/0-1(80@20080)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate() {
    let control_plane = ControlPlane::start().await;
    let sidecar = Sidecar::new(&control_plane);
    let mut client = RegistryClient::new(sidecar.connect().await.unwrap());
    let error = client.register(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_and_supersession() {
    let control_plane = ControlPlane::start().await;
    let first = control_plane.enrol("shop/web", &[80]).await;
    let second = control_plane.enrol("shop/web", &[80]).await;
    let stream = first.register(&[80]).await;

    let mut other = second.open_registration().await;
    let error = other.say(second.registration(&[80])).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains(first.instance()), "{error}");

    let again = first.register(&[80]).await;
    // The goodbye of a stream that was taken over takes nobody out.
    stream.leave().await.unwrap();
    let workloads = control_plane.get("/v1/workloads").await;
    assert_eq!(workloads.as_array().unwrap().len(), 1, "{workloads}");

    // Without a live stream the name is free for another instance, even within the grace.
    drop(again);
    wait_until("the other instance takes over", async || {
        let mut stream = second.open_registration().await;
        stream.say(second.registration(&[80])).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_place_is_taken_is_told_so() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let mut held = web.register(&[80]).await;
    // A connection that the sidecar has given up: its message comes late, and then its end.
    let late = web.register(&[80]).await;
    drop(late);
    let error = held.answer().await.unwrap_err();
    assert_eq!(error.code(), Code::Aborted, "{error}");
    // Registered anew within the grace, it stays.
    let _anew = web.register(&[80]).await;
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    let workloads = control_plane.get("/v1/workloads").await;
    assert_eq!(workloads.as_array().unwrap().len(), 1, "{workloads}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_has_four_streams_of_observations() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let mut client = RegistryClient::new(web.connect().await.unwrap());
    let mut streams = Vec::new();
    for _ in 0..5 {
        let told = tokio_stream::pending::<Observed>();
        streams.push(client.observe(told).await.unwrap().into_inner());
    }
    let error = streams[0].message().await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    for stream in &mut streams[1..] {
        let quiet = std::time::Duration::from_millis(300);
        let said = tokio::time::timeout(quiet, stream.message()).await;
        assert!(said.is_err(), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_waits_for_the_others() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let registering = web.register(&[80]).await;
    let mut discovery = caller.discover().await;
    discovery.ask(Kind::Service, &["web.shop.mesh"], &[]).await;
    discovery.until("+shop/web").await;

    let leaving = tokio::spawn(registering.leave());
    let push = discovery.next().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!leaving.is_finished(), "not acknowledged yet");
    discovery.acknowledge(&push, None).await;
    let Ok(Answer::Released(released)) = leaving.await.unwrap() else {
        panic!("not released");
    };
    assert!(released.acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_does_not_wait_for_ever() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let registering = web.register(&[80]).await;
    let mut discovery = caller.discover().await;
    discovery.ask(Kind::Service, &["shop/web"], &[]).await;
    discovery.until("+shop/web").await;
    let begun = std::time::Instant::now();
    let Ok(Answer::Released(released)) = registering.leave().await else {
        panic!("not released");
    };
    assert!(!released.acknowledged, "nobody acknowledged");
    assert!(begun.elapsed() < std::time::Duration::from_secs(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[80]).await;
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let mut registering = web.register(&[80]).await;
    let mut watching = caller.discover().await;
    watching.ask(Kind::TrustBundle, &["*"], &[]).await;
    assert_eq!(watching.taken().await, "+weft.local(0)");
    watching.ask(Kind::Service, &["shop/web"], &[]).await;
    watching.until("+shop/web").await;
    let mut own = web.discover().await;
    let standing = web.connect().await.unwrap();

    control_plane.revoke(web.instance()).await.unwrap();
    let end = registering.answer().await.unwrap_err();
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
    let end = own.next().await.unwrap_err();
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
    let mut client = RegistryClient::new(standing);
    let observing = client.observe(tokio_stream::pending());
    let refused = observing.await.expect_err("nothing begins any more");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let heard = [watching.taken().await, watching.taken().await];
    assert!(heard.contains(&"+weft.local(1)".to_owned()), "{heard:?}");
    assert!(heard.contains(&"-shop/web".to_owned()), "{heard:?}");
    // In TLS 1.3 a client hears only with its first bytes that its certificate was refused.
    if let Ok(channel) = web.connect().await {
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let refused = client.delta_aggregated_resources(tokio_stream::empty());
        refused.await.expect_err("its certificate is refused");
    }
    assert!(control_plane.revoke("nobody").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_on_a_connection_whose_certificate_has_ended() {
    let control_plane = ControlPlane::start_with(&["--leaf-ttl", "10s"]).await;
    let sidecar = control_plane.enrol("shop/web", &[80]).await;
    let channel = sidecar.connect().await.unwrap();
    let open = async || {
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
        let opening = client.delta_aggregated_resources(tokio_stream::empty());
        opening.await.map(drop).map_err(|status| status.code())
    };
    assert_eq!(open().await, Ok(()));
    wait_until("the certificate ends", async || open().await.is_err()).await;
    // A moment later the connection itself is over.
    wait_until("the connection ends", async || {
        !matches!(open().await, Ok(()) | Err(Code::Unauthenticated))
    })
    .await;
}
