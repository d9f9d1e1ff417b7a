//! Addresses belong to attestations: a sidecar with a valid certificate gets no other's traffic.

use std::time::Duration;

use tonic::Code;
use weft_proto::resource::Kind;

use crate::support::{ControlPlane, Sidecar, wait_until};

/// A neighbour whose calls go on, whatever the hostile sidecar does.
async fn neighbour_is_well(control_plane: &ControlPlane, number: u32) {
    let name = format!("shop/neighbour-{number}");
    let neighbour = control_plane.enrol(&name, &[80]).await;
    let held = neighbour.register(&[80]).await;
    let workloads = control_plane.get("/v1/workloads").await;
    assert!(workloads.to_string().contains(&name), "{workloads}");
    held.leave().await.unwrap();
}

async fn refused(hostile: &Sidecar, addresses: &[&str], code: Code, part: &str) {
    let error = hostile.claim(addresses).await.map(drop).unwrap_err();
    assert_eq!(error.code(), code, "{addresses:?}: {error}");
    assert!(error.message().contains(part), "{addresses:?}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_host_without_a_sidecar() {
    let control_plane = ControlPlane::start().await;
    let hostile = control_plane.enrol_at("shop/hostile", &["10.9.0.66"]).await;
    for addresses in [
        &["10.9.0.1"][..],
        &["10.9.0.66", "10.9.0.1"],
        &["fd00::1"],
        &["192.0.2.1", "10.9.0.66"],
    ] {
        let part = "is not this workload's; allowed: none, since its connection comes from this \
                    machine, 10.9.0.66/32; an operator gives it others with `weft token create";
        refused(&hostile, addresses, Code::PermissionDenied, part).await;
    }
    // Nor is it dialled for its own service there.
    let mut registration = hostile.registration(&[80]);
    registration.ports[0].advertised_address = "10.9.0.1:5432".to_owned();
    let mut stream = hostile.open_registration().await;
    let error = stream.say(registration).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(
        error
            .message()
            .contains("ports.advertised_address: 10.9.0.1 is"),
        "{error}"
    );
    // Callers find nobody there, as before.
    let mut caller = control_plane
        .enrol("shop/caller", &[])
        .await
        .discover()
        .await;
    caller.ask(Kind::Workload, &["10.9.0.1"], &[]).await;
    assert_eq!(caller.taken().await, "-10.9.0.1");
    // What was given to it is its own.
    let _held = hostile.claim(&["10.9.0.66"]).await.unwrap();
    neighbour_is_well(&control_plane, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_owner_who_is_away() {
    let control_plane = ControlPlane::start().await;
    let owner = control_plane.enrol_at("shop/owner", &["10.9.0.1"]).await;
    // An operator was generous: the range has others' addresses in it.
    let hostile = control_plane
        .enrol_at("shop/hostile", &["10.9.0.0/16"])
        .await;
    let held = owner.claim(&["10.9.0.1"]).await.unwrap();
    let part = "10.9.0.1 belongs to workload shop/owner, which is connected";
    refused(&hostile, &["10.9.0.1"], Code::AlreadyExists, part).await;
    drop(held);
    let away = "10.9.0.1 belongs to workload shop/owner, whose sidecar is away";
    wait_until("its stream has ended", async || {
        let error = hostile.claim(&["10.9.0.1"]).await.map(drop).unwrap_err();
        error.message().contains(away)
    })
    .await;
    let both = ["10.9.0.66", "10.9.0.1"];
    refused(&hostile, &both, Code::FailedPrecondition, away).await;
    neighbour_is_well(&control_plane, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let held = owner.claim(&["10.9.0.1"]).await.expect("the owner is back");
    refused(&hostile, &both, Code::AlreadyExists, part).await;

    // Everybody is away after a restart, and everybody's address is kept.
    drop(held);
    let control_plane = control_plane.restart().await;
    refused(&hostile, &["10.9.0.1"], Code::FailedPrecondition, away).await;
    neighbour_is_well(&control_plane, 2).await;
    let held = owner.claim(&["10.9.0.1"]).await.expect("the owner is back");
    // Who leaves gives up what it had.
    held.leave().await.unwrap();
    hostile.claim(&["10.9.0.1"]).await.map(drop).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_is_not_sent_elsewhere() {
    let control_plane = ControlPlane::start().await;
    let sidecar = control_plane.enrol("shop/web", &[80]).await;
    let targets = async |target: &str| {
        let mut registration = sidecar.registration(&[80]);
        registration.metrics_target = target.to_owned();
        let mut stream = sidecar.open_registration().await;
        stream.say(registration).await.unwrap();
        let answer = control_plane.http("/targets").await;
        answer.split("\r\n\r\n").nth(1).unwrap().to_owned()
    };
    let own = targets("http://127.0.0.1:15020/metrics").await;
    assert!(own.contains("127.0.0.1:15020"), "{own}");
    for other in [
        "http://10.9.0.1:15020/metrics",
        "http://127.0.0.1:80/quit?/metrics",
        "http://web/metrics",
    ] {
        let found = targets(other).await;
        assert_eq!(found, "[]", "{other}");
    }
}
