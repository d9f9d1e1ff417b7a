//! Whole exchanges between two connections.

use http::HeaderValue;

use super::*;
use crate::headers::WEFT_HTTP1_FORM;

fn text(events: &[Event]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    let mut ended = false;
    for event in events {
        match event {
            Event::Data { payload, end, .. } => {
                body.extend_from_slice(payload);
                ended |= end;
            }
            Event::Trailers { .. } => ended = true,
            _ => {}
        }
    }
    (body, ended)
}

#[test]
fn an_exchange_with_everything() {
    for cut in [1, 7, 100, usize::MAX] {
        let mut pair = Pair::new(Config::default(), Config::default());
        pair.cut = cut;
        let stream = open(&mut pair.client, &Method::POST, false).unwrap();
        assert_eq!(
            send(&mut pair.client, stream, b"question", false),
            (Progress::Done, 8)
        );
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("1"));
        pair.client.send_trailers(stream, &trailers).unwrap();
        let events = pair.deliver_to_server();
        assert_eq!(text(&events), (b"question".to_vec(), true));
        let Event::Request {
            stream: there,
            head,
            end: false,
        } = &events[0]
        else {
            panic!("{events:?}");
        };
        assert_eq!(head.parts.method, Method::POST);
        assert_eq!(head.parts.uri, "http://web/things?a=b");
        assert_eq!(head.parts.headers["x-tenant"], "blue");
        match events.last() {
            Some(Event::Trailers {
                trailers: there, ..
            }) => assert_eq!(*there, trailers),
            last => panic!("{last:?}"),
        }
        let hints = HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_static("</a>"))]);
        pair.server
            .respond(*there, StatusCode::EARLY_HINTS, &hints, false)
            .unwrap();
        ok(&mut pair.server, *there, false);
        send(&mut pair.server, *there, b"answer", false);
        pair.server.send_trailers(*there, &trailers).unwrap();
        let events = pair.deliver_to_client();
        assert_eq!(text(&events), (b"answer".to_vec(), true));
        match &events[..2] {
            [
                Event::Interim { head: interim, .. },
                Event::Response {
                    head, end: false, ..
                },
            ] => {
                assert_eq!(interim.parts.status, 103);
                assert_eq!(interim.parts.headers, hints);
                assert_eq!(head.parts.status, 200);
            }
            events => panic!("{events:?}"),
        }
        // Nobody has taken the data: the streams keep their places.
        assert_eq!(
            (pair.client.open_streams(), pair.server.open_streams()),
            (0, 0)
        );
        assert!(!pair.client.is_unused() && !pair.server.is_unused());
        pair.client.consumed(stream, 6);
        pair.server.consumed(*there, 8);
        assert!(pair.client.is_unused() && pair.server.is_unused());
    }
}

/// The form of a head is sent by who keeps forms, and believed by who keeps them: it arrives where both do.
#[test]
fn forms_arrive_where_both_sides_keep_them() {
    let keeping = |keeps_form| Config {
        keeps_form,
        ..Config::default()
    };
    let form = HeaderValue::from_static("t\"Fine\"");
    for (client, server) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut pair = Pair::new(keeping(client), keeping(server));
        let expected = (client && server).then_some(&form);
        let request = Request::builder()
            .uri("http://web/")
            .header(WEFT_HTTP1_FORM, &form)
            .header("x-tenant", "blue");
        let request = request.body(()).unwrap();
        let stream = pair.client.open(&request, None, true).unwrap();
        let events = pair.deliver_to_server();
        let [
            Event::Request {
                stream: there,
                head,
                ..
            },
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!(head.parts.headers.get(WEFT_HTTP1_FORM), expected);
        assert_eq!(head.parts.headers["x-tenant"], "blue");
        let headers = HeaderMap::from_iter([(WEFT_HTTP1_FORM, form.clone())]);
        for status in [StatusCode::EARLY_HINTS, StatusCode::OK] {
            let ends = status == StatusCode::OK;
            pair.server.respond(*there, status, &headers, ends).unwrap();
        }
        let events = pair.deliver_to_client();
        let [
            Event::Interim { head: interim, .. },
            Event::Response {
                stream: of, head, ..
            },
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!(*of, stream);
        for headers in [&interim.parts.headers, &head.parts.headers] {
            assert_eq!(headers.get(WEFT_HTTP1_FORM), expected, "{client} {server}");
        }
    }
}

/// A form that comes from who is not believed is dropped, and the rest of the head is not.
#[test]
fn forms_of_others_are_dropped() {
    let mut raw = Raw::server(Config::default());
    let fields = [GET, &[("weft-http1-form", "t"), ("x-tenant", "blue")]].concat();
    raw.headers(1, &fields, true);
    let events = raw.events().unwrap();
    let [Event::Request { head, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(head.parts.headers.len(), 1, "{:?}", head.parts.headers);
    let mut raw = Raw::client(Config::default());
    raw.open(true);
    let fields = [OK, &[("weft-http1-form", "t"), ("x-tenant", "blue")]].concat();
    raw.headers(1, &fields, true);
    let events = raw.events().unwrap();
    let [Event::Response { head, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(head.parts.headers.len(), 1, "{:?}", head.parts.headers);
}

/// What nobody reads is dropped, and given back to the connection alone.
#[test]
fn discarded_bodies() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let stream = open(&mut pair.client, &Method::POST, false).unwrap();
    send(&mut pair.client, stream, &[0; 1_000], false);
    let events = pair.deliver_to_server();
    let [Event::Request { stream: there, .. }, Event::Data { .. }] = &events[..] else {
        panic!("{events:?}");
    };
    pair.server.discard(*there);
    assert_eq!(pair.server.receive_window.held(), 0);
    // No more than the stream's own window.
    let mut sent = 1_000;
    loop {
        let (progress, bytes) = send(&mut pair.client, stream, &[0; 10_000], false);
        sent += bytes;
        assert!(pair.deliver_to_server().is_empty());
        pair.deliver_to_client();
        if progress == Progress::Blocked {
            break;
        }
    }
    assert_eq!(sent, WindowSize::DEFAULT.get() as usize);
    assert!(pair.server.is_receiving(*there));
    let trailers = HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_static("x"))]);
    pair.client.send_trailers(stream, &trailers).unwrap();
    assert!(pair.deliver_to_server().is_empty());
    assert!(!pair.server.is_receiving(*there));
    ok(&mut pair.server, *there, true);
    assert!(pair.server.is_unused());
}

/// An answer may come before the request has ended; then the server may stop it.
#[test]
fn early_answers() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let stream = open(&mut pair.client, &Method::POST, false).unwrap();
    let events = pair.deliver_to_server();
    let [Event::Request { stream: there, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    ok(&mut pair.server, *there, true);
    pair.server.reset(*there, ErrorCode::NO_ERROR);
    let events = pair.deliver_to_client();
    match &events[..] {
        [
            Event::Response { end: true, .. },
            Event::Stopped { code, .. },
        ] => {
            assert_eq!(*code, ErrorCode::NO_ERROR);
        }
        events => panic!("{events:?}"),
    }
    let mut data = Bytes::from_static(b"more");
    let sent = pair.client.send_data(stream, &mut data, true);
    assert_eq!(sent, Err(StreamEnded(stream.id())));
    assert!(pair.client.is_unused() && pair.server.is_unused());
}

/// The content-length of an answer to HEAD, and of 304, is not that of its body.
#[test]
fn answers_without_body() {
    let headers = HeaderMap::from_iter([(http::header::CONTENT_LENGTH, HeaderValue::from(10))]);
    for (method, status) in [(Method::HEAD, 200), (Method::GET, 304)] {
        let mut pair = Pair::new(Config::default(), Config::default());
        let (_, there) = pair.request(method);
        let status = StatusCode::from_u16(status).unwrap();
        pair.server.respond(there, status, &headers, true).unwrap();
        let events = pair.deliver_to_client();
        assert!(
            matches!(&events[..], [Event::Response { end: true, .. }]),
            "{events:?}"
        );
    }
    let mut pair = Pair::new(Config::default(), Config::default());
    let (_, there) = pair.request(Method::GET);
    pair.server
        .respond(there, StatusCode::OK, &headers, true)
        .unwrap();
    let events = pair.deliver_to_client();
    assert!(
        matches!(
            &events[..],
            [Event::Reset {
                cause: ResetCause::Violation(_),
                ..
            }]
        ),
        "{events:?}"
    );
}

/// Calls in a wrong order are refused and write nothing.
#[test]
fn calls_in_a_wrong_order() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let (stream, there) = pair.request(Method::GET);
    let nothing = HeaderMap::new();
    let ended = StreamEnded(there.id());
    let mut data = Bytes::from_static(b"x");
    assert_eq!(pair.server.send_data(there, &mut data, true), Err(ended));
    assert_eq!(
        pair.server.send_trailers(there, &nothing),
        Err(ended.into())
    );
    assert_eq!(pair.client.send_data(stream, &mut data, true), Err(ended));
    assert_eq!(
        pair.client.respond(stream, StatusCode::OK, &nothing, true),
        Err(ended.into())
    );
    ok(&mut pair.server, there, true);
    let again = pair.server.respond(there, StatusCode::OK, &nothing, true);
    assert_eq!(again, Err(ended.into()));
    let opened = open(&mut pair.server, &Method::GET, true);
    assert_eq!(opened, Err(OpenError::Server));
    let (told, _) = pair.settle();
    assert_eq!(told.len(), 1);
}
