//! What one peer may use: whoever exceeds it is told what was found, what is allowed and what to do.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use weft_proto::registry::Observed;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::resource::Kind;

use crate::support::{ControlPlane, Discovery, Sidecar, wait_until};

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("shop/{prefix}-{n}")).collect()
}

async fn subscribe(discovery: &mut Discovery, kind: Kind, names: &[String]) -> Result<(), Status> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    discovery.ask(kind, &names, &[]).await;
    loop {
        let push = discovery.next().await?;
        discovery.acknowledge(&push, None).await;
        if push.removed_resources.iter().any(|name| name == names[0]) {
            return Ok(());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_count_over_all_streams_of_an_instance() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    let mut first = web.discover().await;
    let mut second = web.discover().await;
    let service = names("service", 12_000);
    let held = subscribe(&mut first, Kind::Service, &service).await;
    held.unwrap();
    let held = subscribe(&mut first, Kind::Workload, &names("workload", 12_000)).await;
    held.unwrap();
    let held = subscribe(&mut second, Kind::Service, &service).await;
    held.unwrap();
    let error = subscribe(&mut second, Kind::Workload, &names("more", 12_000)).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    // How many were found is up to how much of the message was taken at once.
    let (begin, text) = ("names: found 4", "; allowed: 40000 per instance");
    assert!(error.message().starts_with(begin), "{error}");
    assert!(error.message().contains(text), "{error}");
    assert!(control_plane.refused("names").await >= 1);
    // What the ended stream held is free again.
    let mut third = web.discover().await;
    subscribe(&mut third, Kind::Service, &names("third", 12_000))
        .await
        .unwrap();
}

/// A sidecar that holds too much is told so with a code of its own, forgets it, and is served anew.
#[tokio::test(flavor = "multi_thread")]
async fn who_holds_too_much_from_before_begins_without_it() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    let held = names("held", 40_001);
    let open = async |held: &[String], asked: &[String]| {
        let mut discovery = web.discover().await;
        let held: Vec<_> = held.iter().map(|name| (name.as_str(), "1")).collect();
        discovery.ask(Kind::EndpointSlice, &[], &held).await;
        let asked = subscribe(&mut discovery, Kind::Service, asked).await;
        asked.map(|()| discovery)
    };
    let few = names("service", 3);
    let error = open(&held, &few).await.map(drop).unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    let text = "40001 resources of kind EndpointSlice held from before, allowed are 40000";
    assert!(error.message().contains(text), "{error}");
    assert_eq!(control_plane.refused("names").await, 1);
    // What it holds and asks for is too much together.
    let many = names("service", 12_000);
    let error = open(&held[..39_000], &many).await.map(drop).unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    // Begun without versions, it is served.
    open(&[], &many).await.unwrap();
}

/// More names of one kind than a stream may ask for are counted as what was refused.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_one_kind_are_bounded() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    let mut discovery = web.discover().await;
    let many = names("service", 20_001);
    let error = subscribe(&mut discovery, Kind::Service, &many).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.message().contains("allowed are 20000"), "{error}");
    assert_eq!(control_plane.refused("names").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_kind_on_demand_is_not_to_be_had() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    for kind in [Kind::Service, Kind::Workload] {
        let mut discovery = web.discover().await;
        discovery.ask(kind, &["*"], &[]).await;
        let error = discovery.next().await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_so_and_places_are_given_back() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    let mut connections = Vec::new();
    for _ in 0..16 {
        let channel = web.connect().await.unwrap();
        connections.push(client_of(channel).await.unwrap());
    }
    let error = client_of(web.connect().await.unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let text = "connections: found 17; allowed: 16 per instance";
    assert!(error.message().contains(text), "{error}");
    let other = control_plane.enrol("shop/other", &[]).await;
    client_of(other.connect().await.unwrap()).await.unwrap();
    connections.clear();
    wait_until("places are free again", async || {
        client_of(web.connect().await.unwrap()).await.is_ok()
    })
    .await;
}

/// Opens a stream, and keeps the connection with it.
async fn client_of(
    channel: tonic::transport::Channel,
) -> Result<
    (
        RegistryClient<tonic::transport::Channel>,
        mpsc::Sender<Observed>,
    ),
    Status,
> {
    let mut client = RegistryClient::new(channel);
    let (told, outgoing) = mpsc::channel(1);
    client.observe(ReceiverStream::new(outgoing)).await?;
    Ok((client, told))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_only_certificates_are_to_be_had() {
    let control_plane = ControlPlane::start().await;
    let nobody = Sidecar::new(&control_plane);
    let channel = nobody.connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let watched = health.watch(HealthCheckRequest::default()).await;
    let error = watched.map(drop).unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    assert!(
        error.message().contains("may only ask for a certificate"),
        "{error}"
    );
}

/// Slowed down first; who goes on all the same is refused, and nobody else is.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_messages_is_slowed_down_and_then_refused() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    let mut client = RegistryClient::new(web.connect().await.unwrap());
    let (told, outgoing) = mpsc::channel(64);
    let stream = client.observe(ReceiverStream::new(outgoing)).await;
    let mut end = stream.unwrap().into_inner();
    let storm = tokio::spawn(async move {
        let mut sent = 0_u32;
        while told.send(Observed::default()).await.is_ok() {
            sent += 1;
        }
        sent
    });
    let ended = tokio::time::timeout(Duration::from_secs(60), end.message()).await;
    let error = ended.expect("never refused").unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(
        error.message().starts_with("messages: found more than 200"),
        "{error}"
    );
    let sent = storm.await.unwrap();
    // A burst of 2,000, and 200 a second until it was refused; the rest is what buffers hold.
    println!("sent {sent}");
    assert!(control_plane.refused("messages").await == 1);
}
