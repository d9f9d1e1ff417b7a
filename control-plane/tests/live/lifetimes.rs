//! How long streams and connections live: for as long as something vouches for their instance, and
//! no shorter.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use weft_proto::identity::CurrentCertificate;
use weft_proto::identity::sign_request::Credential;
use weft_proto::ratelimit::Grants;
use weft_proto::ratelimit::rate_limits_client::RateLimitsClient;
use weft_proto::registry::ObserveEnd;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::resource::Kind;

use crate::support::{ControlPlane, Discovery, Registering, Sidecar};

/// A stream of each kind.
struct Streams {
    registering: Registering,
    discovery: Discovery,
    observing: Streaming<ObserveEnd>,
    leases: Streaming<Grants>,
    /// What would be told; nothing is.
    _told: (
        mpsc::Sender<weft_proto::registry::Observed>,
        mpsc::Sender<weft_proto::ratelimit::Reports>,
    ),
}

impl Streams {
    async fn open(sidecar: &Sidecar) -> Self {
        let registering = sidecar.register(&[]).await;
        let mut discovery = sidecar.discover().await;
        discovery.ask(Kind::MeshConfig, &["*"], &[]).await;
        assert_eq!(discovery.taken().await, "+mesh");
        let channel = sidecar.connect().await.unwrap();
        let (observed, told) = mpsc::channel(1);
        let mut client = RegistryClient::new(channel.clone());
        let observing = client.observe(ReceiverStream::new(told)).await.unwrap();
        let (reports, told) = mpsc::channel(1);
        let mut client = RateLimitsClient::new(channel);
        let leases = client.lease(ReceiverStream::new(told)).await.unwrap();
        Self {
            registering,
            discovery,
            observing: observing.into_inner(),
            leases: leases.into_inner(),
            _told: (observed, reports),
        }
    }

    /// Nothing is said on any of them for so long, their end neither.
    async fn stand(&mut self, time: Duration) {
        let waits = async {
            tokio::select! {
                said = self.observing.message() => format!("observing: {said:?}"),
                said = self.leases.message() => format!("leases: {said:?}"),
                said = self.registering.standing() => format!("registering: {said:?}"),
                said = self.discovery.standing() => format!("discovery: {said:?}"),
            }
        };
        if let Ok(said) = tokio::time::timeout(time, waits).await {
            panic!("{said}");
        }
    }

    /// How each of them ends.
    async fn ends(mut self) -> [Code; 4] {
        fn code<T>(said: Result<T, Status>) -> Code {
            said.err().map_or(Code::Ok, |status| status.code())
        }
        let (registering, discovery, observing, leases) = tokio::join!(
            self.registering.standing(),
            self.discovery.standing(),
            self.observing.message(),
            self.leases.message(),
        );
        [
            code(registering),
            code(discovery),
            code(observing),
            code(leases),
        ]
    }
}

async fn renew(sidecar: &mut Sidecar) {
    let renewal = Credential::CurrentCertificate(CurrentCertificate {});
    sidecar.sign(renewal).await.unwrap();
}

/// A stream has no total time: what is silent stands longer than a call may take.
#[tokio::test(flavor = "multi_thread")]
async fn silent_streams_stand() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    let mut streams = Streams::open(&web).await;
    streams.stand(Duration::from_secs(13)).await;
}

/// What opens a stream has a time: the first message of a registration decides about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_says_nothing_is_given_up() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    let mut client = RegistryClient::new(web.connect().await.unwrap());
    let begun = Instant::now();
    let error = client.register(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(
        (9..13).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_ends_streams_of_every_kind_and_the_connection() {
    let control_plane = ControlPlane::start().await;
    let web = control_plane.enrol("shop/web", &[]).await;
    let streams = Streams::open(&web).await;
    let mut silent = web.connect_silently().await.unwrap();
    // HTTP/2 begins: the preface, and settings without content.
    use tokio::io::AsyncWriteExt;
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    silent.write_all(begin).await.unwrap();
    let begun = Instant::now();
    control_plane.revoke(web.instance()).await.unwrap();
    assert_eq!(streams.ends().await, [Code::Unauthenticated; 4]);
    let mut rest = Vec::new();
    let _closed_or_reset = silent.read_to_end(&mut rest).await;
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}

/// Streams on a connection whose certificate has ended go on while the instance proves newer ones,
/// on any connection, and end when it does so no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_its_certificate_while_a_newer_one_is_proved() {
    let control_plane = ControlPlane::start_with(&["--leaf-ttl", "10s"]).await;
    let mut web = control_plane.enrol("shop/web", &[]).await;
    let mut streams = Streams::open(&web).await;
    let begun = Instant::now();
    for _ in 0..4 {
        streams.stand(Duration::from_secs(5)).await;
        renew(&mut web).await;
        drop(web.connect().await.unwrap());
    }
    let proved = Instant::now();
    assert!(begun.elapsed() > Duration::from_secs(20));
    assert_eq!(streams.ends().await, [Code::Aborted; 4]);
    let elapsed = proved.elapsed();
    assert!(
        (13..19).contains(&elapsed.as_secs()),
        "10 s, and a grace of 5 s: {elapsed:?}"
    );
}
