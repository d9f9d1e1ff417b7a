//! Streams and connections that are ended, and what is given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tonic::Code;

use super::*;
use crate::budget::Rate;

const NOT_AFTER: i64 = 1_000;

fn peers() -> Arc<Peers> {
    Peers::new(Limits {
        streams_per_kind: 2,
        connections_per_instance: 2,
        calls_per_instance: 2,
        names_per_instance: 10,
        handshake_rate: Rate::new(1000, 1000),
        anonymous_per_address: 2,
        ..Limits::default()
    })
}

fn stream(peers: &Arc<Peers>, instance: &str, kind: StreamKind) -> LiveStream {
    peers.begin_stream(&Arc::from(instance), NOT_AFTER, kind, None)
}

fn end_of(stream: &LiveStream) -> Option<Code> {
    stream.ended().now_or_never().map(|status| status.code())
}

#[test]
fn the_oldest_of_too_many_streams_of_a_kind_is_ended() {
    let peers = peers();
    let other = stream(&peers, "b", StreamKind::Leases);
    let kind = stream(&peers, "a", StreamKind::Discovery);
    let first = stream(&peers, "a", StreamKind::Leases);
    let second = stream(&peers, "a", StreamKind::Leases);
    assert_eq!(end_of(&first), None);
    let third = stream(&peers, "a", StreamKind::Leases);
    assert_eq!(end_of(&first), Some(Code::ResourceExhausted));
    let rest = [&other, &kind, &second, &third];
    assert!(rest.into_iter().all(|stream| end_of(stream).is_none()));
    drop(second);
    let fourth = stream(&peers, "a", StreamKind::Leases);
    assert_eq!((end_of(&third), end_of(&fourth)), (None, None));
    assert_eq!(peers.refused().map(|(_, count)| count).sum::<u64>(), 1);
}

#[test]
fn revocation_ends_streams_of_every_kind_and_connections() {
    let peers = peers();
    let kinds = [
        StreamKind::Discovery,
        StreamKind::Registration,
        StreamKind::Observation,
        StreamKind::Leases,
    ];
    let streams = kinds.map(|kind| stream(&peers, "a", kind));
    let connection = peers.begin_connection(&Arc::from("a"), NOT_AFTER).unwrap();
    let neighbour = stream(&peers, "b", StreamKind::Discovery);
    peers.revoke("a");
    peers.revoke("nobody");
    for stream in &streams {
        assert_eq!(end_of(stream), Some(Code::Unauthenticated));
    }
    assert!(connection.revoked().is_cancelled());
    assert_eq!(end_of(&neighbour), None);
}

#[test]
fn a_superseded_stream_alone_is_ended() {
    let peers = peers();
    let first = stream(&peers, "a", StreamKind::Registration);
    let second = stream(&peers, "a", StreamKind::Registration);
    peers.supersede("a", StreamKind::Registration, first.number());
    peers.supersede("a", StreamKind::Discovery, second.number());
    assert_eq!(end_of(&first), Some(Code::Aborted));
    assert!(first.is_superseded());
    assert_eq!(end_of(&second), None);
}

#[test]
fn a_stream_outlives_its_certificate_while_a_newer_one_is_proved() {
    let peers = peers();
    let now = Instant::now();
    let a = Arc::from("a");
    let standing = stream(&peers, "a", StreamKind::Discovery);
    let old = peers.begin_connection(&a, NOT_AFTER).unwrap();
    peers.tick(NOT_AFTER - 1, now);
    assert!(!old.drain().is_cancelled());
    let newer = peers.begin_connection(&a, NOT_AFTER + 100).unwrap();
    drop(newer);
    peers.tick(NOT_AFTER + 99, now);
    assert_eq!(end_of(&standing), None, "proved");
    assert!(old.drain().is_cancelled() && !old.revoked().is_cancelled());
    peers.tick(NOT_AFTER + 104, now);
    assert_eq!(end_of(&standing), None, "within the grace");
    peers.tick(NOT_AFTER + 105, now);
    assert_eq!(end_of(&standing), Some(Code::Aborted));
    assert!(old.revoked().is_cancelled());
}

#[test]
fn everything_is_given_back() {
    let peers = peers();
    let (a, now) = (Arc::from("a"), Instant::now());
    for _ in 0..5 {
        let connections = [0, 1].map(|_| peers.begin_connection(&a, NOT_AFTER).unwrap());
        let refused = peers.begin_connection(&a, NOT_AFTER).unwrap_err();
        assert_eq!(refused.reason(), Reason::Connections);
        let calls = connections.each_ref().map(|c| c.begin_call().unwrap());
        assert!(connections[0].begin_call().is_err());
        let streams = [StreamKind::Discovery, StreamKind::Leases].map(|kind| {
            let stream = peers.begin_stream(&a, NOT_AFTER, kind, Some(Arc::clone(&calls[0])));
            stream.add_names(5).unwrap();
            stream.pushed(usize::MAX / 8);
            stream
        });
        assert!(!streams[0].may_push());
        let refused = streams[0].add_names(1).unwrap_err();
        assert_eq!(refused.reason(), Reason::Names);
        streams[0].set_names(3).unwrap();
        streams[1].add_names(2).unwrap();
        streams[0].answered(usize::MAX / 8);
        assert!(streams[0].may_push());
        assert_eq!(peers.totals(), (2, 0, 10));
    }
    assert_eq!(peers.totals(), (0, 0, 0));
    peers.tick(0, now);
    assert_eq!(
        lock(&peers.instances).len(),
        1,
        "its buckets are not full again"
    );
    peers.tick(0, now + Duration::from_secs(60));
    assert!(lock(&peers.instances).is_empty());
}

#[test]
fn a_connection_whose_peer_does_not_read_the_end_of_a_stream_is_cut() {
    let peers = peers();
    let (a, now) = (Arc::from("a"), Instant::now());
    let connection = peers.begin_connection(&a, NOT_AFTER).unwrap();
    let call = connection.begin_call().unwrap();
    let stream = peers.begin_stream(
        &a,
        NOT_AFTER,
        StreamKind::Discovery,
        Some(Arc::clone(&call)),
    );
    peers.tick(0, now + Duration::from_secs(60));
    assert!(!connection.cut().is_cancelled(), "the stream stands");
    drop(stream);
    peers.tick(0, now);
    assert!(!connection.cut().is_cancelled(), "it has time");
    peers.tick(0, now + Duration::from_secs(60));
    assert!(connection.cut().is_cancelled());
}

#[test]
fn the_oldest_anonymous_connection_is_cut_for_a_new_one() {
    let peers = peers();
    let address = "192.0.2.1:1".parse().unwrap();
    let [first, second, third] = [0; 3].map(|_| peers.admit_anonymous(address).unwrap());
    assert!(first.cut().is_cancelled());
    assert!(!second.cut().is_cancelled() && !third.cut().is_cancelled());
    drop(first);
    assert_eq!(peers.totals(), (0, 2, 0));
    drop((second, third));
    assert_eq!(peers.totals(), (0, 0, 0));
}

#[test]
fn what_is_counted_is_logged_once_in_a_while() {
    let (counted, begin) = (Counted::default(), Instant::now());
    assert_eq!(counted.count(begin), Some(1));
    for _ in 0..1_000 {
        assert_eq!(counted.count(begin + LOG_EVERY / 2), None);
    }
    assert_eq!(counted.count(begin + LOG_EVERY), Some(1_002));
}
