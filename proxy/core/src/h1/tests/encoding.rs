//! Heads and bodies as they are sent.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};

use super::super::{
    Encoder, Framing, LengthMismatch, RequestOptions, ResponseOptions, TargetForm, Written,
    encode_request, encode_response, join_cookies,
};
use super::{fields, request, response};

const ORIGIN: RequestOptions = RequestOptions {
    target_form: TargetForm::Origin,
    keep_alive: true,
};

fn text(out: &BytesMut) -> &str {
    str::from_utf8(out).unwrap()
}

#[track_caller]
fn check_request(request: Request<()>, framing: Framing, options: RequestOptions, expected: &str) {
    let mut out = BytesMut::new();
    let parts = request.into_parts().0;
    encode_request(&parts, framing, options, &mut out);
    let expected = expected.replace('\n', "\r\n");
    assert_eq!(text(&out), format!("{expected}\r\n"));
}

#[test]
fn requests() {
    let get = Request::get("http://b:81/c?d")
        .header("x", "1")
        .header("X", "2")
        .body(());
    check_request(
        get.unwrap(),
        Framing::None,
        ORIGIN,
        "GET /c?d HTTP/1.1\nhost: b:81\nx: 1\nx: 2\n",
    );
    let absolute = RequestOptions {
        target_form: TargetForm::Absolute,
        keep_alive: false,
    };
    check_request(
        Request::get("http://b:81/c?d").body(()).unwrap(),
        Framing::None,
        absolute,
        "GET http://b:81/c?d HTTP/1.1\nhost: b:81\nconnection: close\n",
    );
    let own_host = Request::get("/")
        .header("x", "1")
        .header("host", "h")
        .body(());
    check_request(
        own_host.unwrap(),
        Framing::None,
        absolute,
        "GET / HTTP/1.1\nhost: h\nx: 1\nconnection: close\n",
    );
    check_request(
        Request::get("http://b?d").body(()).unwrap(),
        Framing::None,
        ORIGIN,
        "GET /?d HTTP/1.1\nhost: b\n",
    );
    check_request(
        Request::options("*").header("host", "h").body(()).unwrap(),
        Framing::None,
        ORIGIN,
        "OPTIONS * HTTP/1.1\nhost: h\n",
    );
    check_request(
        Request::connect("b:443")
            .header("host", "h")
            .body(())
            .unwrap(),
        Framing::None,
        ORIGIN,
        "CONNECT b:443 HTTP/1.1\nhost: h\n",
    );
    check_request(
        Request::get("/").body(()).unwrap(),
        Framing::None,
        ORIGIN,
        "GET / HTTP/1.1\nhost: \n",
    );
}

/// `OPTIONS http://b` is asked of a server as `*`, and of a proxy as it came.
#[test]
fn options_of_a_server() {
    let head = request("OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut out = BytesMut::new();
    encode_request(&head.parts, Framing::None, ORIGIN, &mut out);
    assert_eq!(text(&out), "OPTIONS * HTTP/1.1\r\nhost: b\r\n\r\n");
    let options = RequestOptions {
        target_form: TargetForm::Absolute,
        keep_alive: true,
    };
    out.clear();
    encode_request(&head.parts, Framing::None, options, &mut out);
    assert_eq!(text(&out), "OPTIONS http://b HTTP/1.1\r\nhost: b\r\n\r\n");
}

/// What was said of framing and connection on the other hop is never copied.
#[test]
fn requests_of_another_hop() {
    let post = |method: &str| {
        Request::builder()
            .method(method)
            .uri("/")
            .header("host", "h")
            .header("content-length", "9")
            .header("transfer-encoding", "gzip")
            .header("connection", "close, x")
            .header("keep-alive", "5")
            .header("proxy-connection", "close")
            .body(())
            .unwrap()
    };
    let cases = [
        ("POST", Framing::None, "content-length: 0\n"),
        ("GET", Framing::None, ""),
        ("GET", Framing::Length(0), "content-length: 0\n"),
        (
            "PUT",
            Framing::Length(u64::MAX),
            "content-length: 18446744073709551615\n",
        ),
        ("PUT", Framing::Length(120), "content-length: 120\n"),
        ("DELETE", Framing::Chunked, "transfer-encoding: chunked\n"),
        (
            "DELETE",
            Framing::UntilClose,
            "transfer-encoding: chunked\n",
        ),
    ];
    for (method, framing, lines) in cases {
        let expected = format!("{method} / HTTP/1.1\nhost: h\n{lines}");
        check_request(post(method), framing, ORIGIN, &expected);
    }
    // That there is none is said as it came.
    let said = Request::get("/").header("host", "h");
    let said = said.header("content-length", "0").body(()).unwrap();
    let expected = "GET / HTTP/1.1\nhost: h\ncontent-length: 0\n";
    check_request(said, Framing::None, ORIGIN, expected);
    check_request(
        Request::get("/")
            .header("host", "h")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("te", "trailers")
            .body(())
            .unwrap(),
        Framing::None,
        RequestOptions {
            keep_alive: false,
            ..ORIGIN
        },
        "GET / HTTP/1.1\nhost: h\nupgrade: websocket\nte: trailers\nconnection: close, upgrade, te\n",
    );
}

#[test]
fn cookies_are_joined() {
    let get = Request::get("/")
        .header("host", "h")
        .header("cookie", "a=b")
        .header("x", "1")
        .header("cookie", "c=d")
        .header("cookie", "e=f")
        .body(())
        .unwrap();
    let mut headers = get.headers().clone();
    join_cookies(&mut headers);
    assert_eq!(
        fields(&headers),
        ["host: h", "cookie: a=b; c=d; e=f", "x: 1"]
    );
    check_request(
        get,
        Framing::None,
        ORIGIN,
        "GET / HTTP/1.1\nhost: h\ncookie: a=b; c=d; e=f\nx: 1\n",
    );
    let mut headers = HeaderMap::from_iter([(http::header::COOKIE, "a".parse().unwrap())]);
    join_cookies(&mut headers);
    assert_eq!(fields(&headers), ["cookie: a"]);
}

struct Answer {
    method: &'static str,
    version: Version,
    status: u16,
    fields: &'static [(&'static str, &'static str)],
    framing: Framing,
    keep_alive: bool,
}

const ANSWER: Answer = Answer {
    method: "GET",
    version: Version::HTTP_11,
    status: 200,
    fields: &[],
    framing: Framing::None,
    keep_alive: true,
};

#[track_caller]
fn check_response(answer: &Answer, expected: &str, framing: Framing, keep_alive: bool) {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.fields {
        response = response.header(*name, *value);
    }
    let parts = response.body(()).unwrap().into_parts().0;
    let method = Method::from_bytes(answer.method.as_bytes()).unwrap();
    let options = ResponseOptions {
        request_method: &method,
        client_version: answer.version,
        keep_alive: answer.keep_alive,
        date: None,
    };
    let mut out = BytesMut::new();
    let written = encode_response(&parts, answer.framing, options, &mut out);
    let expected = expected.replace('\n', "\r\n");
    assert_eq!(text(&out), expected);
    assert_eq!(
        written,
        Written {
            framing,
            keep_alive
        },
        "{expected:?}"
    );
}

#[test]
fn responses() {
    use Framing::{Chunked, Length, None, UntilClose};
    let answer = |framing| Answer { framing, ..ANSWER };
    const OK: &str = "HTTP/1.1 200 OK\n";
    check_response(
        &answer(None),
        &format!("{OK}content-length: 0\n\n"),
        Length(0),
        true,
    );
    check_response(
        &answer(Length(7)),
        &format!("{OK}content-length: 7\n\n"),
        Length(7),
        true,
    );
    let chunked = format!("{OK}transfer-encoding: chunked\n\n");
    check_response(&answer(Chunked), &chunked, Chunked, true);
    check_response(&answer(UntilClose), &chunked, Chunked, true);
    let closing = Answer {
        keep_alive: false,
        fields: &[
            ("connection", "keep-alive"),
            ("content-length", "9"),
            ("a", "b"),
        ],
        ..answer(Length(7))
    };
    let expected = format!("{OK}content-length: 7\na: b\nconnection: close\n\n");
    check_response(&closing, &expected, Length(7), false);
}

#[test]
fn responses_to_old_clients() {
    use Framing::{Chunked, Length, None, UntilClose};
    let answer = |framing, keep_alive| Answer {
        version: Version::HTTP_10,
        framing,
        keep_alive,
        ..ANSWER
    };
    const OK: &str = "HTTP/1.1 200 OK\n";
    let closing = format!("{OK}connection: close\n\n");
    check_response(&answer(Chunked, true), &closing, UntilClose, false);
    check_response(&answer(Chunked, false), &closing, UntilClose, false);
    let kept = format!("{OK}content-length: 7\nconnection: keep-alive\n\n");
    check_response(&answer(Length(7), true), &kept, Length(7), true);
    let closing = format!("{OK}content-length: 7\nconnection: close\n\n");
    check_response(&answer(Length(7), false), &closing, Length(7), false);
    let interim = Answer {
        status: 103,
        ..answer(None, true)
    };
    check_response(&interim, "", None, true);
    let head = Answer {
        method: "HEAD",
        ..answer(Chunked, true)
    };
    check_response(
        &head,
        &format!("{OK}connection: keep-alive\n\n"),
        None,
        true,
    );
}

#[test]
fn responses_without_a_body() {
    use Framing::{Chunked, Length, None};
    const LENGTH: &[(&str, &str)] = &[("content-length", "9"), ("transfer-encoding", "chunked")];
    let answer = |method, status, framing| Answer {
        method,
        status,
        framing,
        fields: LENGTH,
        ..ANSWER
    };
    let cases = [
        ("HEAD", 200, None, "HTTP/1.1 200 OK\ncontent-length: 9\n\n"),
        (
            "HEAD",
            200,
            Length(0),
            "HTTP/1.1 200 OK\ncontent-length: 9\n\n",
        ),
        (
            "HEAD",
            200,
            Chunked,
            "HTTP/1.1 200 OK\ncontent-length: 9\n\n",
        ),
        ("HEAD", 204, None, "HTTP/1.1 204 No Content\n\n"),
        (
            "GET",
            304,
            None,
            "HTTP/1.1 304 Not Modified\ncontent-length: 9\n\n",
        ),
        (
            "GET",
            304,
            Length(9),
            "HTTP/1.1 304 Not Modified\ncontent-length: 9\n\n",
        ),
        ("GET", 204, Length(9), "HTTP/1.1 204 No Content\n\n"),
        ("GET", 204, Chunked, "HTTP/1.1 204 No Content\n\n"),
        ("GET", 100, None, "HTTP/1.1 100 Continue\n\n"),
        ("GET", 103, Length(9), "HTTP/1.1 103 Early Hints\n\n"),
    ];
    for (method, status, framing, expected) in cases {
        check_response(&answer(method, status, framing), expected, None, true);
    }
    let connect = answer("CONNECT", 200, Chunked);
    check_response(&connect, "HTTP/1.1 200 OK\n\n", None, false);
    let refused = answer("CONNECT", 403, Length(2));
    let expected = "HTTP/1.1 403 Forbidden\ncontent-length: 2\n\n";
    check_response(&refused, expected, Length(2), true);
    let upgrade = Answer {
        status: 101,
        fields: &[("upgrade", "websocket"), ("connection", "upgrade")],
        ..ANSWER
    };
    let expected = "HTTP/1.1 101 Switching Protocols\nupgrade: websocket\nconnection: upgrade\n\n";
    check_response(&upgrade, expected, None, false);
    // An offer to upgrade (RFC 9110 section 15.5.22) is no upgrade.
    let offer = Answer {
        status: 426,
        fields: &[("upgrade", "TLS/1.2")],
        ..ANSWER
    };
    let expected = "HTTP/1.1 426 Upgrade Required\nupgrade: TLS/1.2\ncontent-length: 0\nconnection: upgrade\n\n";
    check_response(&offer, expected, Length(0), true);
}

#[test]
fn phrases_and_dates() {
    let date = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
    let options = ResponseOptions {
        request_method: &Method::GET,
        client_version: Version::HTTP_11,
        keep_alive: true,
        date: Some(&date),
    };
    let encode = |status: u16, form: Option<&[u8]>, own_date: bool| {
        let mut response = Response::builder().status(status);
        if own_date {
            response = response.header("date", "x");
        }
        let mut parts = response.body(()).unwrap().into_parts().0;
        let form = form.map(|form| HeaderValue::from_bytes(form).unwrap());
        crate::http1_form::put(form, &mut parts.headers);
        let mut out = BytesMut::new();
        encode_response(&parts, Framing::Length(1), options, &mut out);
        text(&out).replace("\r\n", "|")
    };
    let date = "date: Sun, 06 Nov 1994 08:49:37 GMT|";
    assert_eq!(
        encode(200, Some(b"l\"Fine\""), true),
        "HTTP/1.1 200 Fine|date: x|content-length: 1||"
    );
    assert_eq!(
        encode(299, None, false),
        format!("HTTP/1.1 299 |{date}content-length: 1||")
    );
    assert_eq!(
        encode(200, Some(b"l\"\""), true),
        "HTTP/1.1 200 |date: x|content-length: 1||"
    );
    assert_eq!(
        encode(200, Some(b"l\"a"), true),
        "HTTP/1.1 200 OK|date: x|content-length: 1||"
    );
    assert_eq!(encode(100, None, false), "HTTP/1.1 100 Continue||");
}

#[test]
fn bodies() {
    let write = |framing, pieces: &[&[u8]], trailers: Option<&HeaderMap>| {
        let mut encoder = Encoder::new(framing);
        let mut out = BytesMut::new();
        for piece in pieces {
            let frame = encoder.data(piece.len())?;
            out.extend_from_slice(&frame.before);
            out.extend_from_slice(piece);
            out.extend_from_slice(frame.after);
        }
        encoder.end(trailers, &mut out)?;
        Ok(text(&out).to_owned())
    };
    let trailers: HeaderMap = [
        "content-length",
        "host",
        "x-sum",
        "authorization",
        "weft-reason",
        "x-forwarded-client-cert",
        "transfer-encoding",
        "grpc-status",
    ]
    .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")))
    .into_iter()
    .collect();
    let pieces: [&[u8]; 3] = [b"ab", b"", b"0123456789abcdefg"];
    let chunks = "2\r\nab\r\n11\r\n0123456789abcdefg\r\n0\r\n";
    for (framing, trailers, expected) in [
        (Framing::Chunked, None, format!("{chunks}\r\n")),
        (
            Framing::Chunked,
            Some(&trailers),
            format!("{chunks}x-sum: 1\r\ngrpc-status: 1\r\n\r\n"),
        ),
        (Framing::Length(19), None, "ab0123456789abcdefg".into()),
        (
            Framing::Length(19),
            Some(&trailers),
            "ab0123456789abcdefg".into(),
        ),
        (
            Framing::UntilClose,
            Some(&trailers),
            "ab0123456789abcdefg".into(),
        ),
    ] {
        assert_eq!(
            write(framing, &pieces, trailers),
            Ok(expected),
            "{framing:?}"
        );
    }
    let too_long = |excess| Err(LengthMismatch::TooLong { excess });
    assert_eq!(write(Framing::Length(18), &pieces, None), too_long(1));
    assert_eq!(write(Framing::None, &[b"a"], None), too_long(1));
    assert_eq!(
        write(Framing::Length(20), &pieces, None),
        Err(LengthMismatch::TooShort { missing: 1 })
    );
    assert_eq!(write(Framing::None, &[b""], None), Ok(String::new()));
    let mut encoder = Encoder::new(Framing::Chunked);
    let frame = encoder.data(usize::MAX).unwrap();
    assert_eq!(&frame.before[..], b"ffffffffffffffff\r\n");
    assert!(!encoder.is_complete() && encoder.remaining().is_none());
}

/// What is written is read as it was meant.
#[test]
fn round_trips() {
    let input = b"PATCH /a?b HTTP/1.1\r\nhost: h\r\nx: \xff\r\nx: 2\r\ncontent-length: 3\r\n\r\n";
    let head = request(input).unwrap();
    let mut out = BytesMut::new();
    encode_request(&head.parts, head.framing, ORIGIN, &mut out);
    assert_eq!(&out[..], input);
    let input = b"HTTP/1.1 418 Short and stout\r\nx: \xff\r\ntransfer-encoding: chunked\r\n\r\n";
    let head = response(&Method::GET, input).unwrap();
    let options = ResponseOptions {
        request_method: &Method::GET,
        client_version: Version::HTTP_11,
        keep_alive: head.keep_alive,
        date: None,
    };
    out.clear();
    let mut head = head;
    crate::http1_form::put(head.form.take(), &mut head.parts.headers);
    encode_response(&head.parts, head.framing, options, &mut out);
    assert_eq!(&out[..], input);
}
