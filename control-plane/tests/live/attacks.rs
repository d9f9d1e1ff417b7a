//! Attacks by those who have a valid certificate and by those who have none, with neighbours beside
//! each of them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request};
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use weft_proto::identity::sign_request::Credential;
use weft_proto::ratelimit::rate_limits_client::RateLimitsClient;
use weft_proto::registry::Observed;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::resource::Kind;
use weft_proto::xds::DeltaDiscoveryRequest;

use crate::neighbours::beside;
use crate::support::{ControlPlane, Sidecar, tcp, wait_until};

/// How long an attack goes on that has no end of its own.
const ATTACK: Duration = Duration::from_secs(5);
/// Addresses of this machine that attackers come from; neighbours come from 127.0.0.1.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

async fn hostile(control_plane: &ControlPlane) -> Sidecar {
    let mut sidecar = control_plane.enrol("evil/evil", &[]).await;
    sidecar.source = ATTACKER;
    sidecar
}

fn gets_through(since: Instant) -> bool {
    since.elapsed() < ATTACK
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_for_comparison() {
    let control_plane = ControlPlane::start().await;
    let nothing = async { tokio::time::sleep(ATTACK).await };
    beside(&control_plane, "nothing", nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_unsubscribing() {
    let control_plane = ControlPlane::start().await;
    let evil = Arc::new(hostile(&control_plane).await);
    let attack = async move {
        let streams = (0..4).map(|stream| {
            let evil = Arc::clone(&evil);
            tokio::spawn(async move {
                let began = Instant::now();
                while gets_through(began) {
                    let Ok(discovery) = evil.try_discover().await else {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    let names: Vec<String> =
                        (0..9_000).map(|n| format!("evil/n{stream}-{n}")).collect();
                    let subscribed: Vec<&str> = names.iter().map(String::as_str).collect();
                    discovery.ask(Kind::Service, &subscribed, &[]).await;
                    let request = DeltaDiscoveryRequest {
                        type_url: Kind::Service.type_url().to_owned(),
                        resource_names_unsubscribe: names.clone(),
                        ..DeltaDiscoveryRequest::default()
                    };
                    while gets_through(began) && discovery.try_send(request.clone()).await {}
                }
            })
        });
        for stream in streams.collect::<Vec<_>>() {
            stream.await.unwrap();
        }
    };
    beside(&control_plane, "floods of unsubscribing", attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_every_kind_on_many_streams() {
    let control_plane = ControlPlane::start().await;
    let evil = Arc::new(hostile(&control_plane).await);
    let attack = async move {
        let streams = (0..16).map(|stream| {
            let evil = Arc::clone(&evil);
            tokio::spawn(async move {
                let began = Instant::now();
                let mut refused = 0;
                while gets_through(began) {
                    let Ok(mut discovery) = evil.try_discover().await else {
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    let names: Vec<String> =
                        (0..20_000).map(|n| format!("evil/n{stream}-{n}")).collect();
                    for kind in [Kind::Service, Kind::Workload] {
                        let request = DeltaDiscoveryRequest {
                            type_url: kind.type_url().to_owned(),
                            resource_names_subscribe: names.clone(),
                            ..DeltaDiscoveryRequest::default()
                        };
                        discovery.try_send(request).await;
                    }
                    while gets_through(began)
                        && let Ok(Some(push)) = discovery.standing().await
                    {
                        let answer = DeltaDiscoveryRequest {
                            type_url: push.type_url,
                            response_nonce: push.nonce,
                            ..DeltaDiscoveryRequest::default()
                        };
                        discovery.try_send(answer).await;
                    }
                    refused += 1;
                }
                refused
            })
        });
        let mut refused = 0;
        for stream in streams.collect::<Vec<_>>() {
            refused += stream.await.unwrap();
        }
        refused
    };
    let refused = beside(
        &control_plane,
        "20,000 names of every kind on 16 streams",
        attack,
    )
    .await;
    assert!(refused > 0, "all of it was taken");
    // Streams that are too many may end before their names are.
    let limits = control_plane.refused("names").await + control_plane.refused("streams").await;
    assert!(limits > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn storms_of_messages() {
    let control_plane = ControlPlane::start().await;
    let evil = hostile(&control_plane).await;
    let channel = evil.connect().await.unwrap();
    let attack = async move {
        let streams = (0..4).map(|_| {
            let mut client = RegistryClient::new(channel.clone());
            tokio::spawn(async move {
                let (told, outgoing) = mpsc::channel(64);
                let began = Instant::now();
                let stream = client.observe(ReceiverStream::new(outgoing)).await.unwrap();
                while gets_through(began) && told.send(Observed::default()).await.is_ok() {}
                drop(stream);
            })
        });
        for stream in streams.collect::<Vec<_>>() {
            stream.await.unwrap();
        }
    };
    beside(&control_plane, "storms of messages", attack).await;
}

/// A sidecar that opens a window of one byte, subscribes and reads nothing. What waits for it is
/// bounded, and it cannot hold on to its connection by not reading why that ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_reads() {
    let control_plane = ControlPlane::start().await;
    let evil = hostile(&control_plane).await;
    let tls = evil.connect_silently().await.unwrap();
    let attack = async move {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1);
        let (client, connection) = builder.handshake::<_, bytes::Bytes>(tls).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let path =
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let (answer, mut send) = client.send_request(grpc(path), false).unwrap();
        let names = (0..2_000).map(|n| format!("evil/nothing-{n}")).collect();
        let asked = [
            (Kind::MeshConfig, Vec::new()),
            (Kind::TrustBundle, Vec::new()),
            (Kind::Service, names),
        ];
        for (kind, names) in asked {
            let request = DeltaDiscoveryRequest {
                type_url: kind.type_url().to_owned(),
                resource_names_subscribe: names,
                ..DeltaDiscoveryRequest::default()
            };
            send.send_data(framed(&request), false).unwrap();
        }
        tokio::time::sleep(ATTACK).await;
        (client, answer, send, connection)
    };
    let what = "a reader that never reads";
    let (_client, _answer, _send, connection) = beside(&control_plane, what, attack).await;
    assert!(!connection.is_finished(), "it stands");
    control_plane.revoke(evil.instance()).await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(5), connection).await;
    let _closed_or_reset = cut.expect("its connection stands although it is revoked");
}

fn grpc(path: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("https://control-plane.weft{path}").parse().unwrap();
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("te", HeaderValue::from_static("trailers"));
    request
}

fn framed(message: &impl prost::Message) -> bytes::Bytes {
    let content = message.encode_to_vec();
    let length = u32::try_from(content.len()).unwrap();
    let frame = [&[0][..], &length.to_be_bytes(), &content].concat();
    frame.into()
}

/// Idle connections without a certificate, from the neighbours' own address and from others: those
/// who come give up their places again.
async fn idle_anonymous(sources: &'static [Ipv4Addr], what: &str) {
    let control_plane = ControlPlane::start().await;
    let nobodies = sources.iter().map(|source| {
        let mut nobody = Sidecar::new(&control_plane);
        nobody.source = *source;
        Arc::new(nobody)
    });
    let nobodies: Vec<_> = nobodies.collect();
    let attack = async move {
        let mut held = Vec::new();
        for batch in 0..64 {
            // An address has a budget of handshakes, too, which its neighbours at the same address
            // have with it: this attack is on places.
            if batch * 128 > 3_000 * nobodies.len() {
                tokio::time::sleep(Duration::from_millis(320)).await;
            }
            let opening = (0..128).map(|n| {
                let nobody = Arc::clone(&nobodies[(batch * 128 + n) % nobodies.len()]);
                tokio::spawn(async move { nobody.connect_silently().await })
            });
            for opened in opening.collect::<Vec<_>>() {
                held.extend(opened.await.unwrap().ok());
            }
        }
        held.len()
    };
    let held = beside(&control_plane, what, attack).await;
    println!("opened {held} of 8,192");
    let metrics = control_plane.http("/metrics").await;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("weft_control_plane_anonymous_connections "));
    println!("{}", line.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_anonymous_connections_from_one_address() {
    idle_anonymous(
        &[Ipv4Addr::LOCALHOST],
        "8,192 idle connections from the same address",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_anonymous_connections_from_several_addresses() {
    const SOURCES: [Ipv4Addr; 4] = [
        Ipv4Addr::new(127, 0, 0, 66),
        Ipv4Addr::new(127, 0, 0, 67),
        Ipv4Addr::new(127, 0, 0, 68),
        Ipv4Addr::new(127, 0, 0, 69),
    ];
    idle_anonymous(&SOURCES, "8,192 idle connections from four addresses").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_handshakes() {
    let control_plane = ControlPlane::start().await;
    let address = control_plane.grpc;
    let attack = async move {
        let mut held = Vec::new();
        for n in 0..4_000_u16 {
            let source = Ipv4Addr::new(127, 0, 1, (n % 16) as u8 + 1);
            if let Ok(mut stream) = tcp(address, source).await {
                let _closed = stream
                    .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                    .await;
                held.push(stream);
            }
        }
        held
    };
    let held = beside(&control_plane, "4,000 half handshakes", attack).await;
    // Every one of them is closed, at the latest when its time for the handshake is over.
    let begun = Instant::now();
    for mut stream in held {
        let mut rest = Vec::new();
        let _reset = stream.read_to_end(&mut rest).await;
    }
    assert!(
        begun.elapsed() < Duration::from_secs(7),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_bad_credentials() {
    let control_plane = ControlPlane::start().await;
    let mut nobody = Sidecar::new(&control_plane);
    nobody.source = ATTACKER;
    let nobody = Arc::new(nobody);
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let csr = csr.der().to_vec();
    let attack = async move {
        let workers = (0..16).map(|_| {
            let (nobody, csr) = (Arc::clone(&nobody), csr.clone());
            tokio::spawn(async move {
                let (began, mut asked) = (Instant::now(), 0);
                while gets_through(began) {
                    let credential = Credential::InstanceKey("i-0123.bad".to_owned());
                    if let Some(error) = nobody.try_sign(credential, csr.clone()).await {
                        assert_ne!(error.code(), Code::Ok);
                        asked += 1;
                    }
                }
                asked
            })
        });
        let mut asked = 0;
        for worker in workers.collect::<Vec<_>>() {
            asked += worker.await.unwrap();
        }
        asked
    };
    let asked = beside(&control_plane, "floods of bad credentials", attack).await;
    println!("asked {asked} times");
}

/// Streams that are opened, of every kind, and left.
#[tokio::test(flavor = "multi_thread")]
async fn streams_opened_and_left() {
    let control_plane = ControlPlane::start().await;
    let evil = hostile(&control_plane).await;
    let attack = async move {
        let (began, mut opened, mut refused, mut connections) = (Instant::now(), 0, 0, 0);
        let mut left: Vec<Box<dyn std::any::Any + Send>> = Vec::new();
        let mut channel = evil.connect().await.unwrap();
        while gets_through(began) {
            let mut registry = RegistryClient::new(channel.clone());
            let mut leases = RateLimitsClient::new(channel.clone());
            let (observed, leased) = tokio::join!(
                registry.observe(tokio_stream::pending()),
                leases.lease(tokio_stream::pending()),
            );
            let errors = [observed.as_ref().err(), leased.as_ref().err()];
            let exhausted = |error: &&tonic::Status| error.code() == Code::ResourceExhausted;
            refused += errors
                .iter()
                .flatten()
                .filter(|error| exhausted(error))
                .count();
            opened += usize::from(observed.is_ok()) + usize::from(leased.is_ok());
            if errors.iter().flatten().any(|error| !exhausted(error)) {
                // Who is refused for too long on one connection loses it.
                connections += 1;
                channel = evil.connect().await.unwrap();
            }
            left.push(Box::new((observed, leased)));
        }
        (opened, refused, connections)
    };
    let (opened, refused, cut) =
        beside(&control_plane, "streams opened and left", Box::pin(attack)).await;
    println!("opened {opened}, refused {refused}, {cut} connections were cut");
    assert!(refused > 0);
}

/// CVE-2023-44487: streams that are opened and reset at once.
#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets() {
    let control_plane = ControlPlane::start().await;
    let evil = Arc::new(hostile(&control_plane).await);
    let attack = async move {
        let (began, mut resets, mut connections) = (Instant::now(), 0, 0);
        while gets_through(began) {
            let Ok(tls) = evil.connect_silently().await else {
                continue;
            };
            connections += 1;
            let (mut reads, mut writes) = tokio::io::split(tls);
            let reading = tokio::spawn(async move {
                let _ended = tokio::io::copy(&mut reads, &mut tokio::io::sink()).await;
            });
            let _closed = writes.write_all(BEGIN).await;
            for first in (1_u32..).step_by(128) {
                let streams = (first..first + 128).step_by(2);
                let frames: Vec<u8> = streams.flat_map(opened_and_reset).collect();
                if !gets_through(began) || writes.write_all(&frames).await.is_err() {
                    break;
                }
                resets += 64;
            }
            reading.abort();
        }
        (resets, connections)
    };
    let (resets, connections) = beside(&control_plane, "rapid resets", attack).await;
    println!("{resets} resets on {connections} connections");
}

/// The preface of HTTP/2, and settings without content.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// HEADERS of a call, and RST_STREAM.
fn opened_and_reset(stream: u32) -> Vec<u8> {
    // `:method: POST`, `:scheme: https`, then literals with indexed names, and `te` with its own.
    let mut fields = vec![0x83, 0x87];
    let path = b"/weft.registry.v1.Registry/Observe";
    for (name, value) in [
        (&[0x04][..], &path[..]),
        (&[0x01], b"control-plane.weft"),
        (&[0x0f, 0x10], b"application/grpc"),
        (b"\x00\x02te", b"trailers"),
    ] {
        fields.extend(name);
        fields.push(u8::try_from(value.len()).unwrap());
        fields.extend(value);
    }
    let length = u8::try_from(fields.len()).unwrap();
    let id = stream.to_be_bytes();
    [
        &[0, 0, length, 1, 4],
        &id[..],
        &fields,
        &[0, 0, 4, 3, 0],
        &id,
        &[0, 0, 0, 8],
    ]
    .concat()
}

/// Headers without an end, of which each byte is a whole field.
#[tokio::test(flavor = "multi_thread")]
async fn header_bombs() {
    let control_plane = ControlPlane::start().await;
    let evil = Arc::new(hostile(&control_plane).await);
    let attack = async move {
        let workers = (0..8).map(|_| {
            let evil = Arc::clone(&evil);
            tokio::spawn(async move {
                let (began, mut sent) = (Instant::now(), 0_usize);
                while gets_through(began) {
                    let Ok(mut tls) = evil.connect_silently().await else {
                        continue;
                    };
                    let _closed = tls.write_all(BEGIN).await;
                    // HEADERS and then CONTINUATION, of 16,384 times `:method: GET`.
                    let fields = [0x82; 16_384];
                    for kind in std::iter::once(1_u8).chain(std::iter::repeat(9)) {
                        let head = [0, 0x40, 0, kind, 0, 0, 0, 0, 1];
                        let frame = [&head[..], &fields].concat();
                        if !gets_through(began) || tls.write_all(&frame).await.is_err() {
                            break;
                        }
                        sent += frame.len();
                    }
                }
                sent
            })
        });
        let mut sent = 0;
        for worker in workers.collect::<Vec<_>>() {
            sent += worker.await.unwrap();
        }
        sent
    };
    let sent = beside(&control_plane, "header bombs", attack).await;
    println!("sent {} KiB", sent / 1024);
}

/// After all of it, everything is free again.
#[tokio::test(flavor = "multi_thread")]
async fn places_are_free_again_after_a_storm() {
    let control_plane = ControlPlane::start().await;
    let evil = hostile(&control_plane).await;
    let connections: Vec<_> = (0..16).map(|_| evil.connect_silently()).collect();
    let connections = futures_util::future::join_all(connections).await;
    wait_until("they have places", async || {
        control_plane
            .http("/metrics")
            .await
            .contains("weft_control_plane_connections 16\n")
    })
    .await;
    drop(connections);
    wait_until("they have none", async || {
        control_plane
            .http("/metrics")
            .await
            .contains("weft_control_plane_connections 0\n")
    })
    .await;
}
