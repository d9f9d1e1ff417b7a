//! The end of a connection (RFC 9113 section 6.8).

use super::super::super::frame::write_goaway;
use super::*;

fn pair() -> Pair {
    Pair::new(Config::default(), Config::default())
}

/// A server takes what was under way when it said that it ends, and nothing after that.
#[test]
fn servers_take_what_is_under_way() {
    let mut pair = pair();
    let (first, first_there) = pair.request(Method::GET);
    pair.server.shut_down();
    pair.server.shut_down();
    // The client has not heard of it.
    let second = open(&mut pair.client, &Method::GET, true).unwrap();
    let events = pair.deliver_to_server();
    let [
        Event::Request {
            stream: second_there,
            ..
        },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    let (told, _) = pair.settle();
    assert!(
        matches!(&told[..], [Event::GoAway { .. }, Event::GoAway { .. }]),
        "{told:?}"
    );
    let refused = open(&mut pair.client, &Method::GET, true);
    assert_eq!(refused, Err(OpenError::GoingAway));
    assert!(!pair.server.is_finished() && !pair.client.is_finished());
    ok(&mut pair.server, first_there, true);
    ok(&mut pair.server, *second_there, true);
    assert!(pair.server.is_finished());
    let (told, _) = pair.settle();
    let streams: Vec<StreamKey> = told
        .iter()
        .map(|event| match event {
            Event::Response {
                stream, end: true, ..
            } => *stream,
            event => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(streams, [first, second]);
    assert!(pair.client.is_finished());
}

/// What comes after the last stream is not processed, and the dynamic table follows it all the same.
#[test]
fn servers_ignore_what_comes_too_late() {
    let mut raw = Raw::server(Config::default());
    raw.encoder = Encoder::with_table(4096);
    raw.get(1, true);
    let events = raw.events().unwrap();
    let [Event::Request { stream, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    raw.connection.shut_down();
    let frames = raw.frames();
    let [
        Frame::GoAway {
            last_stream: Some(StreamId::MAX),
            ..
        },
        Frame::Ping { payload },
    ] = &frames[..]
    else {
        panic!("{frames:?}");
    };
    raw.to.extend_from_slice(b"\0\0\x08\x06\x01\0\0\0\0");
    raw.to.extend_from_slice(payload);
    assert!(raw.events().unwrap().is_empty());
    let frames = raw.frames();
    let [Frame::GoAway { last_stream, .. }] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!(*last_stream, Some(id(1)));
    raw.headers(3, &[POST, &[("x-new", "1")]].concat(), false);
    raw.assert_ignored();
    ok(&mut raw.connection, *stream, true);
    assert!(raw.connection.is_finished());
    // The last stream never increases.
    raw.frames();
    raw.connection.abort(ErrorCode::INTERNAL_ERROR, "it breaks");
    let frames = raw.frames();
    let [Frame::GoAway { last_stream, .. }] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!(*last_stream, Some(id(1)));
}

/// A client that does not answer is not waited for.
#[test]
fn servers_stop_waiting() {
    let mut raw = Raw::server(Config::default());
    raw.connection.stop_waiting();
    assert!(raw.frames().is_empty());
    raw.connection.shut_down();
    raw.frames();
    raw.connection.stop_waiting();
    raw.connection.stop_waiting();
    let frames = raw.frames();
    assert!(
        matches!(
            &frames[..],
            [Frame::GoAway {
                last_stream: None,
                ..
            }]
        ),
        "{frames:?}"
    );
    assert!(raw.connection.is_finished());
}

/// A client gives up what the server has not processed, and may send it elsewhere.
#[test]
fn clients_hear_what_was_not_processed() {
    let mut raw = Raw::client(Config::default());
    let streams: Vec<StreamKey> = (0..3).map(|_| raw.open(true)).collect();
    write_goaway(Some(id(3)), ErrorCode::NO_ERROR, b"", &mut raw.to);
    // It may not increase.
    write_goaway(Some(id(5)), ErrorCode::NO_ERROR, b"", &mut raw.to);
    let events = raw.events().unwrap();
    match &events[..] {
        [
            Event::GoAway { .. },
            Event::Reset { stream, cause },
            Event::GoAway { .. },
        ] => {
            assert_eq!((stream, cause), (&streams[2], &ResetCause::Unprocessed));
        }
        events => panic!("{events:?}"),
    }
    assert!(raw.frames().is_empty());
    raw.headers(1, OK, true);
    raw.headers(3, OK, true);
    assert_eq!(raw.events().unwrap().len(), 2);
    assert!(raw.connection.is_finished());
}

/// A client that ends says so, and waits for its answers.
#[test]
fn clients_end() {
    let mut pair = pair();
    let (_, there) = pair.request(Method::GET);
    pair.client.shut_down();
    assert!(!pair.client.is_finished());
    let (_, told) = pair.settle();
    assert!(matches!(&told[..], [Event::GoAway { .. }]), "{told:?}");
    ok(&mut pair.server, there, true);
    pair.settle();
    assert!(pair.client.is_finished() && pair.server.is_finished());
}
