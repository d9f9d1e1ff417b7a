//! Frames by the state of their stream (RFC 9113 section 5.1), and by their order.

use std::num::NonZeroU32;

use super::super::super::frame::{
    write_data_head, write_goaway, write_ping, write_reset_stream, write_settings_ack,
    write_window_update,
};
use super::*;

fn data(raw: &mut Raw, stream: u32, bytes: &[u8], end: bool) {
    write_data_head(id(stream), bytes.len() as u32, end, &mut raw.to);
    raw.to.extend_from_slice(bytes);
}

fn update(raw: &mut Raw, stream: u32, increment: u32) {
    let increment = NonZeroU32::new(increment).unwrap();
    write_window_update(StreamId::new(stream), increment, &mut raw.to);
}

fn server() -> Raw {
    Raw::server(Config::default())
}

/// A request of one stream, which the server has; END_STREAM where `end`.
fn open_at_server(stream: u32, end: bool) -> (Raw, StreamKey) {
    let mut raw = server();
    raw.headers(stream, if end { GET } else { POST }, end);
    match &raw.events().unwrap()[..] {
        [
            Event::Request {
                stream,
                end: is_end,
                ..
            },
        ] => {
            assert_eq!(*is_end, end);
            let stream = *stream;
            (raw, stream)
        }
        events => panic!("{events:?}"),
    }
}

/// Streams of even numbers are the server's, which opens none: below those that are open they are idle
/// all the same, and RST_STREAM on them would be an error of ours.
#[test]
fn section_5_1_1_even_streams_stay_idle() {
    // PRIORITY of 4 bytes, and WINDOW_UPDATE of 0 and of 1.
    let frames: [(&[u8], ErrorCode); 3] = [
        (
            b"\0\0\x04\x02\0\0\0\0\x02\0\0\0\0",
            ErrorCode::FRAME_SIZE_ERROR,
        ),
        (
            b"\0\0\x04\x08\0\0\0\0\x02\0\0\0\0",
            ErrorCode::PROTOCOL_ERROR,
        ),
        (
            b"\0\0\x04\x08\0\0\0\0\x02\0\0\0\x01",
            ErrorCode::PROTOCOL_ERROR,
        ),
    ];
    for (frame, code) in frames {
        let (mut raw, _) = open_at_server(3, false);
        raw.to.extend_from_slice(frame);
        raw.assert_ends(code);
    }
}

/// Section 5.1, "idle": HEADERS and PRIORITY only.
#[test]
fn section_5_1_idle() {
    type Write = fn(&mut Raw);
    let frames: [(Write, ErrorCode); 5] = [
        (|raw| data(raw, 1, b"x", false), ErrorCode::PROTOCOL_ERROR),
        (
            |raw| write_reset_stream(id(1), ErrorCode::CANCEL, &mut raw.to),
            ErrorCode::PROTOCOL_ERROR,
        ),
        (|raw| update(raw, 1, 10), ErrorCode::PROTOCOL_ERROR),
        // WINDOW_UPDATE of 0, and PRIORITY of 4 bytes.
        (
            |raw| {
                raw.to
                    .extend_from_slice(b"\0\0\x04\x08\0\0\0\0\x01\0\0\0\0")
            },
            ErrorCode::PROTOCOL_ERROR,
        ),
        (
            |raw| {
                raw.to
                    .extend_from_slice(b"\0\0\x04\x02\0\0\0\0\x01\0\0\0\0")
            },
            ErrorCode::FRAME_SIZE_ERROR,
        ),
    ];
    for (write, code) in frames {
        let mut raw = server();
        write(&mut raw);
        raw.assert_ends(code);
    }
    let mut raw = server();
    raw.to
        .extend_from_slice(b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\x10");
    raw.assert_ignored();
    // What a server sends on streams that nobody has opened.
    let mut raw = Raw::client(Config::default());
    raw.headers(1, OK, true);
    raw.assert_ends(ErrorCode::PROTOCOL_ERROR);
}

/// Section 5.1, "half-closed (remote)".
#[test]
fn section_5_1_half_closed_remote() {
    let (mut raw, _) = open_at_server(1, true);
    data(&mut raw, 1, b"x", true);
    raw.assert_resets(1, ErrorCode::STREAM_CLOSED);
    let (mut raw, _) = open_at_server(1, true);
    raw.get(1, true);
    raw.assert_resets(1, ErrorCode::STREAM_CLOSED);
    let (mut raw, stream) = open_at_server(1, true);
    update(&mut raw, 1, 10);
    raw.assert_ignored();
    write_reset_stream(id(1), ErrorCode::CANCEL, &mut raw.to);
    match &raw.events().unwrap()[..] {
        [
            Event::Stopped {
                stream: stopped,
                code: ErrorCode::CANCEL,
            },
        ] => assert_eq!(*stopped, stream),
        events => panic!("{events:?}"),
    }
    assert!(raw.frames().is_empty());
    let ended = raw
        .connection
        .respond(stream, StatusCode::OK, &HeaderMap::new(), true);
    assert_eq!(ended, Err(StreamEnded(id(1)).into()));
}

/// Section 5.1, "closed": after END_STREAM of both, after RST_STREAM of the peer, and of ours.
#[test]
fn section_5_1_closed() {
    let ended = || {
        let (mut raw, stream) = open_at_server(1, true);
        ok(&mut raw.connection, stream, true);
        assert_eq!(raw.frames().len(), 1);
        assert!(raw.connection.is_unused());
        raw
    };
    let mut raw = ended();
    data(&mut raw, 1, b"x", true);
    assert!(raw.assert_resets(1, ErrorCode::STREAM_CLOSED).is_empty());
    // It has been told.
    data(&mut raw, 1, b"x", true);
    raw.assert_ignored();
    let mut raw = ended();
    raw.get(1, true);
    raw.assert_ends(ErrorCode::STREAM_CLOSED);
    let mut raw = ended();
    update(&mut raw, 1, 10);
    write_reset_stream(id(1), ErrorCode::CANCEL, &mut raw.to);
    raw.assert_ignored();

    let reset_by_peer = || {
        let (mut raw, _) = open_at_server(1, false);
        write_reset_stream(id(1), ErrorCode::CANCEL, &mut raw.to);
        assert_eq!(raw.events().unwrap().len(), 1);
        raw
    };
    let mut raw = reset_by_peer();
    data(&mut raw, 1, b"x", false);
    raw.assert_resets(1, ErrorCode::STREAM_CLOSED);
    let mut raw = reset_by_peer();
    raw.get(1, true);
    raw.assert_ends(ErrorCode::STREAM_CLOSED);

    let (mut raw, stream) = open_at_server(1, false);
    raw.connection.reset(stream, ErrorCode::CANCEL);
    assert_eq!(raw.frames().len(), 1);
    raw.connection.reset(stream, ErrorCode::CANCEL);
    data(&mut raw, 1, b"x", false);
    update(&mut raw, 1, 10);
    raw.headers(1, &[("x-trailer", "1")], true);
    write_reset_stream(id(1), ErrorCode::NO_ERROR, &mut raw.to);
    raw.assert_ignored();
    assert!(raw.connection.is_unused());
}

/// RFC 7540 section 5.3.1: no stream depends on itself.
#[test]
fn rfc_7540_section_5_3_1() {
    let mut raw = server();
    raw.to
        .extend_from_slice(b"\0\0\x08\x01\x25\0\0\0\x01\0\0\0\x01\x10\x82\x86\x84");
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
    assert!(raw.connection.is_unused());
    let (mut raw, _) = open_at_server(1, false);
    raw.to
        .extend_from_slice(b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\x01\x10");
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
}

/// Section 5.1.1: numbers increase, and streams that are passed over are closed.
#[test]
fn section_5_1_1_numbers() {
    let (mut raw, _) = open_at_server(5, true);
    raw.get(3, true);
    raw.assert_ends(ErrorCode::PROTOCOL_ERROR);
    let mut raw = Raw::client(Config::default());
    for number in [1, 3, 5] {
        assert_eq!(raw.open(true).id(), id(number));
    }
    let open_streams = raw.connection.open_streams();
    assert_eq!(open_streams, 3);
}

/// Section 5.1.1: a client that has used all identifiers opens no more streams, and what is under way goes
/// on.
#[test]
fn section_5_1_1_identifiers_are_used_up() {
    const LAST: u32 = (1 << 31) - 1;
    let mut raw = Raw::client(Config::default());
    raw.connection.highest = Some(id(LAST - 2));
    let last = open(&mut raw.connection, &Method::GET, true).unwrap();
    assert_eq!(last.id(), id(LAST));
    raw.frames();
    let more = open(&mut raw.connection, &Method::GET, true);
    assert_eq!(more, Err(OpenError::Exhausted));
    raw.headers(LAST, OK, true);
    let events = raw.events().unwrap();
    assert!(
        matches!(&events[..], [Event::Response { stream, end: true, .. }] if *stream == last),
        "{events:?}"
    );
    assert!(raw.frames().is_empty(), "it goes on");

    let mut raw = Raw::server(Config::default());
    raw.get(LAST, true);
    assert_eq!(raw.events().unwrap().len(), 1);
    raw.get(LAST - 2, true);
    raw.assert_ends(ErrorCode::PROTOCOL_ERROR);
}

/// Section 5.1.2: one stream more than is allowed is refused, and may be sent again.
#[test]
fn section_5_1_2_concurrency() {
    let config = Config {
        max_streams: 2,
        ..Config::default()
    };
    let mut raw = Raw::server(config);
    for stream in [1, 3, 5] {
        raw.get(stream, true);
    }
    let events = raw.assert_resets(5, ErrorCode::REFUSED_STREAM);
    match &events[..] {
        [
            Event::Request { stream, .. },
            Event::Request { .. },
            Event::Refused {
                stream: refused,
                violation,
            },
        ] => {
            assert_eq!(*refused, id(5));
            assert_eq!(*violation, StreamViolation::TooMany { limit: 2 });
            ok(&mut raw.connection, *stream, true);
        }
        events => panic!("{events:?}"),
    }
    raw.get(7, true);
    assert_eq!(raw.events().unwrap().len(), 1);

    let mut raw = Raw::client(config);
    assert_eq!(raw.connection.max_open_streams(), 2);
    write_settings(&[Setting::MaxConcurrentStreams(1)], &mut raw.to);
    raw.events().unwrap();
    raw.open(true);
    let refused = open(&mut raw.connection, &Method::GET, true);
    assert_eq!(refused, Err(OpenError::TooMany { open: 1, limit: 1 }));
    raw.headers(1, OK, true);
    raw.events().unwrap();
    raw.open(true);
}

/// Sections 8.1 and 8.1.1: messages whose parts do not fit.
#[test]
fn section_8_1_messages() {
    let (mut raw, _) = open_at_server(1, false);
    raw.headers(1, &[("x-trailer", "1")], false);
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
    let (mut raw, _) = open_at_server(1, false);
    raw.headers(1, GET, true);
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);

    let sized = |length: &'static str| {
        let mut raw = server();
        let mut fields = POST.to_vec();
        fields.push(("content-length", length));
        raw.headers(1, &fields, false);
        assert_eq!(raw.events().unwrap().len(), 1);
        raw
    };
    let mut raw = sized("3");
    data(&mut raw, 1, b"abc", true);
    assert_eq!(raw.events().unwrap().len(), 1);
    let mut raw = sized("3");
    data(&mut raw, 1, b"abcd", false);
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
    let mut raw = sized("3");
    data(&mut raw, 1, b"ab", true);
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
    let mut raw = sized("3");
    raw.headers(1, &[("x-trailer", "1")], true);
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
    let mut raw = server();
    raw.headers(1, &[GET, &[("content-length", "1")]].concat(), true);
    let events = raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
    assert!(matches!(&events[..], [Event::Refused { .. }]), "{events:?}");

    // Responses.
    let opened = || {
        let mut raw = Raw::client(Config::default());
        raw.open(true);
        raw
    };
    let mut raw = opened();
    data(&mut raw, 1, b"x", false);
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
    let mut raw = opened();
    raw.headers(1, &[(":status", "103")], true);
    raw.assert_resets(1, ErrorCode::PROTOCOL_ERROR);
    let mut raw = opened();
    raw.headers(1, &[(":status", "103")], false);
    raw.headers(1, OK, false);
    data(&mut raw, 1, b"x", true);
    let events = raw.events().unwrap();
    assert!(
        matches!(
            &events[..],
            [
                Event::Interim { .. },
                Event::Response { end: false, .. },
                Event::Data { end: true, .. }
            ]
        ),
        "{events:?}"
    );
}

/// Section 4.3: a block is decoded whatever becomes of its stream.
#[test]
fn section_4_3_blocks_are_always_decoded() {
    let config = Config {
        max_streams: 1,
        ..Config::default()
    };
    let mut raw = Raw::server(config);
    raw.encoder = Encoder::with_table(4096);
    let with = |value: &'static str| [GET, &[("x-tenant", value)]].concat();
    raw.headers(1, &with("a"), true);
    let events = raw.events().unwrap();
    let [Event::Request { stream, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    // Refused, on a stream that was reset, and malformed.
    raw.headers(3, &with("b"), true);
    raw.assert_resets(3, ErrorCode::REFUSED_STREAM);
    raw.connection.reset(*stream, ErrorCode::CANCEL);
    raw.headers(1, &[("x-tenant", "c")], true);
    raw.headers(5, &[("x-tenant", "d")], true);
    raw.events().unwrap();
    for (number, value) in [(7, "b"), (9, "c"), (11, "d")] {
        raw.headers(number, &with(value), true);
        let events = raw.events().unwrap();
        let [Event::Request { stream, head, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(head.parts.headers["x-tenant"], value);
        ok(&mut raw.connection, *stream, true);
    }
}

/// Sections 6.5 and 6.9: settings and windows.
#[test]
fn section_6_5_settings() {
    let mut raw = server();
    write_settings_ack(&mut raw.to);
    raw.assert_ignored();
    write_settings_ack(&mut raw.to);
    raw.assert_ends(ErrorCode::PROTOCOL_ERROR);

    let (mut raw, stream) = open_at_server(1, true);
    ok(&mut raw.connection, stream, false);
    // The stream's window has 10 bytes: the rest waits for it.
    write_settings(&[Setting::InitialWindowSize(window(10))], &mut raw.to);
    raw.events().unwrap();
    assert_eq!(
        send(&mut raw.connection, stream, &[7; 25], true),
        (Progress::Blocked, 10)
    );
    assert_eq!(raw.connection.next_writable(), None);
    update(&mut raw, 1, 5);
    raw.events().unwrap();
    assert_eq!(raw.connection.next_writable(), Some(stream));
    assert_eq!(
        send(&mut raw.connection, stream, &[7; 15], true),
        (Progress::Blocked, 5)
    );
    // Smaller than what was sent, and larger again.
    for (size, writable) in [(0, false), (10, false), (16, true)] {
        write_settings(&[Setting::InitialWindowSize(window(size))], &mut raw.to);
        raw.events().unwrap();
        assert_eq!(raw.connection.next_writable().is_some(), writable, "{size}");
    }
    assert_eq!(
        send(&mut raw.connection, stream, &[7; 10], true),
        (Progress::Blocked, 6)
    );
    update(&mut raw, 1, i32::MAX as u32);
    raw.events().unwrap();
    update(&mut raw, 1, 1);
    raw.assert_resets(1, ErrorCode::FLOW_CONTROL_ERROR);
    update(&mut raw, 0, i32::MAX as u32);
    raw.assert_ends(ErrorCode::FLOW_CONTROL_ERROR);

    // Of all streams together, and so that one of them overflows.
    let (mut raw, stream) = open_at_server(1, true);
    ok(&mut raw.connection, stream, false);
    update(&mut raw, 1, 1);
    write_settings(&[Setting::InitialWindowSize(WindowSize::MAX)], &mut raw.to);
    raw.assert_ends(ErrorCode::FLOW_CONTROL_ERROR);
}

/// Section 6.9: more than was allowed.
#[test]
fn section_6_9_windows_are_enforced() {
    let config = Config {
        stream_window: window(70_000),
        ..Config::default()
    };
    let mut raw = Raw::server(config);
    raw.headers(1, POST, false);
    raw.events().unwrap();
    for _ in 0..7 {
        data(&mut raw, 1, &[0; 10_000], false);
    }
    assert_eq!(raw.events().unwrap().len(), 7);
    data(&mut raw, 1, b"x", false);
    raw.assert_resets(1, ErrorCode::FLOW_CONTROL_ERROR);

    let config = Config {
        stream_window: WindowSize::MAX,
        connection_window: window(70_000),
        ..Config::default()
    };
    let mut raw = Raw::server(config);
    raw.headers(1, POST, false);
    for _ in 0..7 {
        data(&mut raw, 1, &[0; 10_000], false);
    }
    let events = raw.events().unwrap();
    assert!(raw.frames().is_empty(), "nobody has taken anything");
    let [Event::Request { stream, .. }, ..] = &events[..] else {
        panic!("{events:?}");
    };
    raw.connection.consumed(*stream, 40_000);
    let frames = raw.frames();
    let increment = NonZeroU32::new(40_000).unwrap();
    assert_eq!(
        frames,
        [Frame::WindowUpdate {
            stream: None,
            increment
        }]
    );
    for _ in 0..4 {
        data(&mut raw, 1, &[0; 10_000], false);
    }
    raw.events().unwrap();
    data(&mut raw, 1, b"x", false);
    raw.assert_ends(ErrorCode::FLOW_CONTROL_ERROR);

    // Before the peer has acknowledged a smaller window it may use the usual one.
    let config = Config {
        stream_window: window(10),
        ..Config::default()
    };
    let mut raw = Raw::server(config);
    raw.headers(1, POST, false);
    data(&mut raw, 1, &[0; 1_000], false);
    raw.events().unwrap();
    write_settings_ack(&mut raw.to);
    raw.assert_ignored();
    data(&mut raw, 1, b"x", false);
    raw.assert_resets(1, ErrorCode::FLOW_CONTROL_ERROR);
}

/// Padding counts in both windows, and is given back at once.
#[test]
fn section_6_1_padding() {
    let mut raw = server();
    raw.headers(1, POST, false);
    raw.events().unwrap();
    for _ in 0..2_000 {
        // One byte, and 255 of padding.
        raw.to.extend_from_slice(b"\0\x01\x01\0\x08\0\0\0\x01\xffx");
        raw.to.extend_from_slice(&[0; 255]);
        for event in raw.events().unwrap() {
            match event {
                Event::Data {
                    payload,
                    end: false,
                    ..
                } => assert_eq!(&payload[..], b"x"),
                event => panic!("{event:?}"),
            }
        }
        raw.frames();
    }
}

/// PING is answered, and ours is told; GOAWAY is told.
#[test]
fn sections_6_7_and_6_8() {
    let mut raw = server();
    write_ping(*b"12345678", &mut raw.to);
    assert!(raw.events().unwrap().is_empty());
    assert_eq!(
        raw.frames(),
        [Frame::PingAck {
            payload: *b"12345678"
        }]
    );
    raw.connection.ping(*b"abcdefgh");
    assert_eq!(
        raw.frames(),
        [Frame::Ping {
            payload: *b"abcdefgh"
        }]
    );
    raw.to
        .extend_from_slice(b"\0\0\x08\x06\x01\0\0\0\0abcdefgh");
    let events = raw.events().unwrap();
    assert!(
        matches!(&events[..], [Event::PingAnswered { payload }] if payload == b"abcdefgh"),
        "{events:?}"
    );
    write_goaway(None, ErrorCode::NO_ERROR, b"bye", &mut raw.to);
    let events = raw.events().unwrap();
    assert!(
        matches!(&events[..], [Event::GoAway { debug, .. }] if &debug[..] == b"bye"),
        "{events:?}"
    );
    assert!(raw.connection.is_going_away() && raw.connection.is_finished());
}

/// RFC 8441 section 3: what was allowed stays allowed.
#[test]
fn rfc_8441_section_3() {
    let mut raw = Raw::client(Config::default());
    assert!(!raw.connection.takes_extended_connect());
    write_settings(&[Setting::EnableConnectProtocol(true)], &mut raw.to);
    raw.events().unwrap();
    assert!(raw.connection.takes_extended_connect());
    write_settings(&[Setting::EnableConnectProtocol(false)], &mut raw.to);
    raw.assert_ends(ErrorCode::PROTOCOL_ERROR);
}

/// Section 4.3: a head that is too large ends its stream alone, as long as its block is no longer than
/// the list that was announced.
#[test]
fn section_4_3_large_heads() {
    let config = Config::default();
    let large = "v".repeat(16_200);
    let fields: Vec<(&str, &str)> = ["a", "b", "c", "d", "e"]
        .iter()
        .map(|name| (*name, large.as_str()))
        .collect();
    let mut raw = Raw::server(config);
    raw.headers(1, &[GET, &fields].concat(), true);
    match &raw.events().unwrap()[..] {
        [Event::BadRequest { end: true, .. }] => {}
        events => panic!("{events:?}"),
    }
    // What the peer does not take is not sent to it.
    let mut raw = Raw::client(config);
    write_settings(&[Setting::MaxHeaderListSize(200)], &mut raw.to);
    raw.events().unwrap();
    raw.frames();
    let refused = open(&mut raw.connection, &Method::GET, true);
    assert!(
        matches!(refused, Err(OpenError::TooLarge(_))),
        "{refused:?}"
    );
    assert!(raw.frames().is_empty());
    let (mut raw, stream) = open_at_server(1, true);
    write_settings(&[Setting::MaxHeaderListSize(100)], &mut raw.to);
    raw.events().unwrap();
    raw.frames();
    let long = http::HeaderValue::from_static("0123456789012345678901234567890123456789");
    let headers = HeaderMap::from_iter([(http::header::LINK, long)]);
    let refused = raw
        .connection
        .respond(stream, StatusCode::OK, &headers, false);
    assert!(
        matches!(refused, Err(RespondError::TooLarge(_))),
        "{refused:?}"
    );
    ok(&mut raw.connection, stream, false);
    let mut headers = headers;
    headers.append(http::header::LINK, http::HeaderValue::from_static("more"));
    let refused = raw.connection.send_trailers(stream, &headers);
    assert!(
        matches!(refused, Err(TrailersError::TooLarge(_))),
        "{refused:?}"
    );
}

/// Section 8.1: RST_STREAM after a whole message leaves it whole.
#[test]
fn section_8_1_early_answers_stay_whole() {
    let mut raw = Raw::client(Config::default());
    let stream = raw.open(false);
    raw.headers(1, OK, false);
    data(&mut raw, 1, b"answer", true);
    write_reset_stream(id(1), ErrorCode::NO_ERROR, &mut raw.to);
    match &raw.events().unwrap()[..] {
        [
            Event::Response { .. },
            Event::Data { end: true, .. },
            Event::Stopped { .. },
        ] => {}
        events => panic!("{events:?}"),
    }
    assert_eq!(raw.connection.receive_window.held(), 6);
    assert!(!raw.connection.is_unused());
    let sent = raw
        .connection
        .send_data(stream, &mut Bytes::from_static(b"x"), true);
    assert_eq!(sent, Err(StreamEnded(id(1))));
    // Neither do frames of a stream that is over.
    data(&mut raw, 1, b"x", true);
    assert!(raw.assert_resets(1, ErrorCode::STREAM_CLOSED).is_empty());
    // Nor a window that was almost full.
    write_settings(&[Setting::InitialWindowSize(WindowSize::MAX)], &mut raw.to);
    raw.events().unwrap();
    raw.connection.consumed(stream, 6);
    assert!(raw.connection.is_unused());
}

/// Nothing follows a GOAWAY that ends the connection.
#[test]
fn nothing_follows_the_end() {
    let (mut raw, stream) = open_at_server(1, false);
    ok(&mut raw.connection, stream, false);
    raw.connection
        .abort(ErrorCode::ENHANCE_YOUR_CALM, "too much");
    let frames = raw.frames();
    assert!(
        matches!(frames.last(), Some(Frame::GoAway { .. })),
        "{frames:?}"
    );
    raw.get(3, true);
    let violation = raw.events().unwrap_err();
    assert_eq!(violation.code(), ErrorCode::ENHANCE_YOUR_CALM);
    raw.connection.ping([0; 8]);
    raw.connection.reset(stream, ErrorCode::CANCEL);
    raw.connection.shut_down();
    let sent = raw
        .connection
        .send_data(stream, &mut Bytes::from_static(b"x"), true);
    assert_eq!(sent, Err(StreamEnded(id(1))));
    assert!(raw.frames().is_empty());
}

/// Trailers that are too large break their message, which may still be answered; nothing is reset.
#[test]
fn trailers_that_are_too_large_end_their_message() {
    let heads = HeadLimits {
        bytes: 200,
        fields: 8,
    };
    let config = Config {
        heads,
        ..Config::default()
    };
    let mut raw = Raw::server(config);
    let large = "x".repeat(300);
    raw.headers(1, POST, false);
    raw.headers(1, &[("x-large", &large)], true);
    let stream = match &raw.events().unwrap()[..] {
        [
            Event::Request {
                stream, end: false, ..
            },
            Event::BadTrailers { malformed, .. },
        ] => {
            assert_eq!(malformed.status(), 431);
            *stream
        }
        events => panic!("{events:?}"),
    };
    ok(&mut raw.connection, stream, true);
    let frames = raw.frames();
    assert!(
        matches!(
            &frames[..],
            [Frame::Headers {
                end_stream: true,
                ..
            }]
        ),
        "{frames:?}"
    );
    // Behind which the stream goes on, they are malformed all the same.
    raw.headers(3, POST, false);
    raw.headers(3, &[("x-large", &large)], false);
    raw.assert_resets(3, ErrorCode::PROTOCOL_ERROR);
}
