//! Heads of requests.

use bytes::BytesMut;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use proptest::prelude::*;

use super::super::{
    BadHost, ConnectionOptions, Framing, HOST_BYTES, HeadScan, Limits, Message, TargetForm,
    check_authority, check_target, is_host_missing, parse_request,
};
use super::{check_refusal, fields, request};
use crate::fault::Fault;

#[test]
fn heads_are_read() {
    let head = request(
        b"POST /a//b%2Fc?d=e HTTP/1.1\r\nHost: web:8080\r\nX-Request-Id: 7\r\nX-Odd:  v\xe9 \t\r\n\
          X-Odd:\r\nContent-Length: 5\r\nAccept: */*\r\n\r\nhello",
    )
    .unwrap();
    assert_eq!(head.parts.method, Method::POST);
    assert_eq!(head.parts.uri, "/a//b%2Fc?d=e");
    assert_eq!(head.parts.version, Version::HTTP_11);
    assert_eq!(head.target_form, TargetForm::Origin);
    assert_eq!(head.framing, Framing::Length(5));
    assert!(head.keep_alive && !head.expect_continue);
    assert_eq!(
        fields(&head.parts.headers),
        [
            "x-request-id: 7",
            r"x-odd: v\xe9",
            "x-odd: ",
            "content-length: 5",
            "accept: */*",
            "host: web:8080",
        ]
    );
}

#[test]
fn what_follows_a_head_stays() {
    let mut buffer = BytesMut::from("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nPUT ");
    let mut scan = HeadScan::default();
    let head = parse_request(&mut buffer, &mut scan, &Limits::default()).unwrap();
    assert_eq!(head.unwrap().parts.method, Method::GET);
    assert_eq!(&buffer[..], b"PUT ");
    assert!(
        parse_request(&mut buffer, &mut scan, &Limits::default())
            .unwrap()
            .is_none()
    );
    assert!(!scan.is_idle(&buffer));
    assert_eq!(
        scan.on_eof(&buffer, Message::Request).unwrap_err().fault(),
        Fault::Caller
    );
    buffer.clear();
    let scan = HeadScan::default();
    assert!(scan.is_idle(&buffer) && scan.on_eof(&buffer, Message::Request).is_ok());
}

#[test]
fn methods_are_tokens() {
    for method in [
        "get",
        "GET",
        "M-SEARCH",
        "!#$%&'*+-.^_`|~09aZ",
        "PRI",
        &"X".repeat(64),
    ] {
        let head = request(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        assert_eq!(head.parts.method.as_str(), method);
    }
}

#[test]
fn targets() {
    use TargetForm::{Absolute, Asterisk, Authority, Origin};
    // Method, target, its form, the URI and `Host` (which was `h`).
    let cases = [
        ("GET", "/", Origin, "/", "h"),
        ("GET", "//a/../b;c?d?e", Origin, "//a/../b;c?d?e", "h"),
        ("GET", "/http://b/", Origin, "/http://b/", "h"),
        ("GET", "/%00%zz", Origin, "/%00%zz", "h"),
        ("GET", "http://b/c?d", Absolute, "http://b/c?d", "b"),
        ("GET", "http://h", Absolute, "http://h/", "h"),
        ("GET", "HTTPS://B:81?d", Absolute, "https://B:81/?d", "B:81"),
        (
            "GET",
            "http://[::1]:80/",
            Absolute,
            "http://[::1]:80/",
            "[::1]:80",
        ),
        ("GET", "ftp://b/c", Absolute, "ftp://b/c", "b"),
        ("OPTIONS", "*", Asterisk, "*", "h"),
        ("OPTIONS", "http://b", Absolute, "http://b*", "b"),
        ("OPTIONS", "http://b/", Absolute, "http://b/", "b"),
        ("CONNECT", "b:443", Authority, "b:443", "h"),
        ("CONNECT", "[::1]:443", Authority, "[::1]:443", "h"),
    ];
    for (method, target, form, uri, host) in cases {
        let input = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        let head = request(&input).unwrap_or_else(|malformed| panic!("{input:?}: {malformed}"));
        assert_eq!(head.target_form, form, "{input:?}");
        let found = &head.parts.uri;
        if uri.ends_with("b*") {
            assert_eq!((found.path(), found.host()), ("*", Some("b")));
        } else {
            assert_eq!(found.to_string(), uri, "{input:?}");
        }
        assert_eq!(head.parts.headers["host"], host, "{input:?}");
    }
}

#[test]
fn targets_that_are_refused() {
    let cases = [
        ("GET", "*"),
        ("CONNECT", "*"),
        ("CONNECT", "/"),
        ("CONNECT", "b"),
        ("CONNECT", "b:"),
        ("CONNECT", "b:0"),
        ("CONNECT", ":1"),
        ("CONNECT", "b:70000"),
        ("CONNECT", "http://b:1/"),
        ("CONNECT", "u@b:1"),
        ("GET", "b:443"),
        ("GET", "b"),
        ("GET", "b/c"),
        ("GET", "?d"),
        ("GET", "http:///c"),
        ("GET", "http://u:p@b/"),
        ("GET", "http://b:x/"),
        ("GET", "http://:80/"),
        ("GET", "/a#b"),
        ("GET", "http://b/#c"),
        ("GET", "/a\\#"),
    ];
    for (method, target) in cases {
        let input = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        check_refusal(
            request(&input),
            &(400, "bad-request", "target"),
            input.as_bytes(),
        );
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(65_534));
    let mut buffer = BytesMut::from(&long[..]);
    let limits = Limits::with_head_bytes(100_000);
    let found = parse_request(&mut buffer, &mut HeadScan::default(), &limits);
    check_refusal(
        found,
        &(414, "headers-too-large", "65534"),
        b"a long target",
    );
}

#[test]
fn hosts() {
    let accepted = [
        "a",
        "a:80",
        "a:",
        "A.b-c_d",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:80",
        "a%20b",
        "",
        "a.",
    ];
    for host in accepted {
        let input = format!("GET / HTTP/1.1\r\nhOST: {host}\r\n\r\n");
        assert_eq!(request(input).unwrap().parts.headers["host"], host);
    }
    let refused = [
        "a b", "a/b", "a:b", "a:80:80", "a:70000", "u@a", "[::1", "[g]", "::1", "a, b", "a\u{e9}",
        "a%2", "http://a", "a?b", "a#b", "[::1]x", "\"a\"",
    ];
    for host in refused {
        let input = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        check_refusal(
            request(&input),
            &(400, "bad-request", "Host is"),
            input.as_bytes(),
        );
    }
    for (input, text) in [
        ("GET / HTTP/1.1\r\n\r\n", "no Host"),
        ("GET http://a/ HTTP/1.1\r\n\r\n", "no Host"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "more than one Host",
        ),
        (
            "GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n",
            "more than one Host",
        ),
        ("GET http://b/ HTTP/1.1\r\nHost: a/\r\n\r\n", "Host is"),
    ] {
        check_refusal(
            request(input),
            &(400, "bad-request", text),
            input.as_bytes(),
        );
    }
    let old = request("GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(old.parts.headers.is_empty());
    let old = request("GET http://a:1/ HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(old.parts.headers["host"], "a:1");
}

#[test]
fn framing() {
    use Framing::{Chunked, Length, None};
    let cases: [(&str, Framing); 13] = [
        ("", None),
        ("Content-Length: 0\r\n", Length(0)),
        ("Content-Length: 5\r\n", Length(5)),
        ("Content-Length: 005\r\n", Length(5)),
        ("Content-Length: 5\r\nContent-length:5\r\n", Length(5)),
        (
            "Content-Length: 00000000000000000000\r\ncontent-length: 0\r\n",
            Length(0),
        ),
        ("Content-Length: 0000000000000000000003\r\n", Length(3)),
        (
            "Content-Length: 9999999999999999999\r\n",
            Length(9_999_999_999_999_999_999),
        ),
        ("Transfer-Encoding: chunked\r\n", Chunked),
        ("transfer-encoding: CHUNKED\r\n", Chunked),
        ("Trailer: content-length\r\n", None),
        ("X-Content-Length: 7\r\n", None),
        (
            "Connection: content-length\r\nContent-Length: 7\r\n",
            Length(7),
        ),
    ];
    for (lines, framing) in cases {
        let input = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let head = request(&input).unwrap_or_else(|malformed| panic!("{lines:?}: {malformed}"));
        assert_eq!(head.framing, framing, "{lines:?}");
        let lengths: Vec<_> = head
            .parts
            .headers
            .get_all("content-length")
            .iter()
            .collect();
        match framing {
            // As h2 takes it.
            Length(length) => assert_eq!(lengths, [&length.to_string()], "{lines:?}"),
            None | Chunked | Framing::UntilClose => assert!(lengths.is_empty(), "{lines:?}"),
        }
    }
}

/// Fields of framing, the status of the refusal, and words of its text.
const REFUSED_FRAMING: [(&str, u16, &str); 27] = [
    (
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        400,
        "two values",
    ),
    ("Content-Length: 5, 5\r\n", 400, "Content-Length is"),
    ("Content-Length: +5\r\n", 400, "Content-Length is"),
    ("Content-Length: -5\r\n", 400, "Content-Length is"),
    ("Content-Length: 5 5\r\n", 400, "Content-Length is"),
    ("Content-Length: 0x5\r\n", 400, "Content-Length is"),
    ("Content-Length: 5.0\r\n", 400, "Content-Length is"),
    ("Content-Length:\r\n", 400, "Content-Length is"),
    (
        "Content-Length: 10000000000000000000\r\n",
        400,
        "Content-Length is",
    ),
    (
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        400,
        "both",
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        400,
        "both",
    ),
    (
        "Transfer-Encoding:\r\nContent-Length: 3\r\n",
        400,
        "empty element",
    ),
    ("Transfer-Encoding: chunked,\r\n", 400, "empty element"),
    ("Transfer-Encoding: , chunked\r\n", 400, "empty element"),
    (
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n",
        400,
        "empty element",
    ),
    ("Transfer-Encoding: gzip\r\n", 501, "only chunked"),
    ("Transfer-Encoding: gzip, chunked\r\n", 501, "only chunked"),
    ("Transfer-Encoding: identity\r\n", 501, "only chunked"),
    ("Transfer-Encoding: xchunked\r\n", 501, "only chunked"),
    ("Transfer-Encoding: chunked;a=b\r\n", 501, "only chunked"),
    ("Transfer-Encoding: \"chunked\"\r\n", 501, "only chunked"),
    (
        "Transfer-Encoding: \x0bchunked\r\n",
        400,
        "control characters",
    ),
    (
        "Transfer-Encoding: chunked, chunked\r\n",
        400,
        "once and last",
    ),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        400,
        "once and last",
    ),
    ("Transfer-Encoding: chunked, gzip\r\n", 400, "once and last"),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        400,
        "once and last",
    ),
    ("Transfer-Encoding: ,\r\n", 400, "empty"),
];

#[test]
fn framing_that_is_refused() {
    for (lines, status, text) in REFUSED_FRAMING {
        let input = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        check_refusal(
            request(&input),
            &(status, "bad-request", text),
            input.as_bytes(),
        );
    }
    for (input, text) in [
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0",
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
            "CONNECT",
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "CONNECT",
        ),
    ] {
        check_refusal(
            request(input),
            &(400, "bad-request", text),
            input.as_bytes(),
        );
    }
}

/// Version, fields, whether it is kept, and `Connection`'s close, keep-alive and upgrade.
const CONNECTIONS: [(&str, &str, bool, [bool; 3]); 12] = [
    ("1.1", "", true, [false, false, false]),
    ("1.1", "Connection: close\r\n", false, [true, false, false]),
    (
        "1.1",
        "Connection: x, CLOSE\r\n",
        false,
        [true, false, false],
    ),
    ("1.1", "Connection: closed\r\n", true, [false, false, false]),
    (
        "1.1",
        "Connection: x\r\nConnection: close\r\n",
        false,
        [true, false, false],
    ),
    (
        "1.1",
        "Connection: keep-alive, Upgrade\r\n",
        true,
        [false, true, true],
    ),
    (
        "1.1",
        "Connection: keep-alive, close\r\n",
        false,
        [true, true, false],
    ),
    ("1.0", "", false, [false, false, false]),
    (
        "1.0",
        "Connection: Keep-Alive\r\n",
        true,
        [false, true, false],
    ),
    (
        "1.0",
        "Connection: keep-alive, close\r\n",
        false,
        [true, true, false],
    ),
    (
        "1.0",
        "Connection: upgrade\r\n",
        false,
        [false, false, false],
    ),
    (
        "1.0",
        "Proxy-Connection: keep-alive\r\n",
        false,
        [false, false, false],
    ),
];

#[test]
fn connections() {
    for (version, lines, kept, options) in CONNECTIONS {
        let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        let head = request(&input).unwrap();
        let [close, keep_alive, upgrade] = options;
        let expected = ConnectionOptions {
            close,
            keep_alive,
            upgrade,
        };
        assert_eq!(
            (head.keep_alive, head.connection),
            (kept, expected),
            "{input:?}"
        );
    }
}

#[test]
fn expectations() {
    for (version, value, expected) in [
        ("1.1", "100-continue", true),
        ("1.1", "100-Continue", true),
        ("1.0", "100-continue", false),
        ("1.1", "200-ok", false),
    ] {
        let input = format!("PUT / HTTP/{version}\r\nHost: a\r\nExpect: {value}\r\n\r\n");
        let head = request(&input).unwrap();
        assert_eq!(head.expect_continue, expected, "{input:?}");
        assert_eq!(head.parts.headers["expect"], value);
    }
}

#[test]
fn first_lines_that_are_refused() {
    let cases: [(&[u8], u16, &str); 20] = [
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            505,
            "preface of HTTP/2",
        ),
        (b"GET / HTTP/2.0\r\n", 505, "version"),
        (b"GET / HTTP/1.2\r\n", 505, "version"),
        (b"GET / HTTP/0.9\r\n", 505, "version"),
        (b"GET / HTTP/11\r\n", 505, "version"),
        (b"GET /\r\n", 400, "no version"),
        (b"GET x\r\n", 400, "no version"),
        (b"GET  / HTTP/1.1\r\n", 400, "request line"),
        (b"GET / HTTP/1.1 \r\n", 400, "request line"),
        (b"GET /  HTTP/1.1\r\n", 400, "request line"),
        (b"GET / x HTTP/1.1\r\n", 400, "request line"),
        (b"GET /\t HTTP/1.1\r\n", 400, "request line"),
        (b"GET / http/1.1\r\n", 400, "request line"),
        (b"GET / HTTPS/1.1\r\n", 400, "request line"),
        (b"GET /\0 HTTP/1.1\r\n", 400, "request line"),
        (b"GET\r\n", 400, "begins with"),
        (b" GET / HTTP/1.1\r\n", 400, "begins with"),
        (b"G(T / HTTP/1.1\r\n", 400, "begins with"),
        (b"\x16\x03\x01", 400, r"\x16\x03"),
        (b"GET / HTTP/1.1\n", 400, "bare line feed"),
    ];
    for (input, status, text) in cases {
        check_refusal(request(input), &(status, "bad-request", text), input);
    }
    let long = format!("{} / HTTP/1.1\r\n", "X".repeat(65));
    check_refusal(
        request(&long),
        &(400, "bad-request", "begins with"),
        long.as_bytes(),
    );
}

#[test]
fn fields_that_are_refused() {
    let cases: [(&[u8], &str); 17] = [
        (b"X: a\n\r\n", "bare line feed"),
        (b"X: a\r\n\n", "bare line feed"),
        (b"X: a\rb\r\n\r\n", "carriage return"),
        (b"X: a\r\r\n\r\n", "carriage return"),
        (b"X: a\0b\r\n\r\n", "NUL"),
        (b"X: a\x01b\r\n\r\n", "control characters"),
        (b"X: a\x7fb\r\n\r\n", "control characters"),
        (b"X: a\r\n b\r\n\r\n", "continues a field"),
        (b"X: a\r\n\tb\r\n\r\n", "continues a field"),
        (b"X : a\r\n\r\n", "white space between"),
        (b"X\t: a\r\n\r\n", "white space between"),
        (b"Content-Length : 5\r\n\r\n", "white space between"),
        (b": a\r\n\r\n", "is no field"),
        (b"X\r\n\r\n", "is no field"),
        (b"X(: a\r\n\r\n", "is no field"),
        (b"X\xe9: a\r\n\r\n", "is no field"),
        (b"X y: a\r\n\r\n", "is no field"),
    ];
    for (lines, text) in cases {
        for before in ["GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.0\r\n"] {
            let input = [before.as_bytes(), lines].concat();
            check_refusal(request(&input), &(400, "bad-request", text), &input);
        }
    }
    // A fold of the request line: it would be a first field.
    let input = "GET / HTTP/1.1\r\n Host: a\r\n\r\n";
    check_refusal(
        request(input),
        &(400, "bad-request", "continues"),
        input.as_bytes(),
    );
}

#[test]
fn limits() {
    let begin = "GET / HTTP/1.1\r\nHost: a\r\n";
    let limits = Limits {
        head_bytes: 1000,
        fields: 100,
        empty_lines: 2,
        ..Limits::default()
    };
    let parse = |input: &str| {
        let mut buffer = BytesMut::from(input);
        parse_request(&mut buffer, &mut HeadScan::default(), &limits)
    };
    let padded = |bytes: usize| {
        let padding = bytes - begin.len() - "X: \r\n\r\n".len();
        format!("{begin}X: {}\r\n\r\n", "a".repeat(padding))
    };
    assert!(parse(&padded(1000)).unwrap().is_some());
    let too_large = (431, "headers-too-large", "larger than 1000 bytes");
    check_refusal(parse(&padded(1001)), &too_large, b"1001");
    assert!(parse(&padded(2000)[..1000]).unwrap().is_none());
    check_refusal(parse(&padded(2000)[..1001]), &too_large, b"2000");

    let lines = |count: usize| format!("{begin}{}\r\n", "x:\r\n".repeat(count));
    let head = parse(&lines(99)).unwrap().unwrap();
    assert_eq!(head.parts.headers.len(), 100);
    let too_many = (431, "headers-too-large", "more than 100 fields");
    check_refusal(parse(&lines(100)), &too_many, b"101 fields");

    assert!(parse(&format!("\r\n\r\n{begin}\r\n")).unwrap().is_some());
    let input = format!("\r\n\r\n\r\n{begin}");
    check_refusal(
        parse(&input),
        &(400, "bad-request", "2 empty lines"),
        b"empty lines",
    );
}

/// More fields than have room on the stack.
#[test]
fn many_fields() {
    let lines: String = (0..500).map(|n| format!("x-{n}: {n}\r\n")).collect();
    let head = request(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")).unwrap();
    assert_eq!(head.parts.headers.len(), 501);
    assert_eq!(head.parts.headers["x-499"], "499");
}

/// Names that are not allocated are the same as those that are.
#[test]
fn known_names_compare_equal() {
    for name in [
        "X-Request-ID",
        "traceparent",
        "B3",
        "X-Forwarded-Client-Cert",
        "Weft-Deadline",
    ] {
        let head = request(format!("GET / HTTP/1.0\r\n{name}: 1\r\n\r\n")).unwrap();
        let parsed: http::HeaderName = name.parse().unwrap();
        assert_eq!(head.parts.headers.keys().next(), Some(&parsed));
        assert_eq!(head.parts.headers[parsed.as_str()], "1");
    }
}

/// The characters that are refused in a path and in a query, in HTTP/1.1 with a text that names them.
fn refused_characters(before: &str) -> Vec<u8> {
    let asked = |byte: u8| {
        let mut input = format!("GET {before}").into_bytes();
        input.extend_from_slice(&[byte, b'b']);
        input.extend_from_slice(b" HTTP/1.1\r\nHost: h\r\n\r\n");
        request(&input)
    };
    let visible = (0x21..=0xff).filter(|byte| !matches!(byte, 0x7f | b'#'));
    let refused = visible.filter(|byte| match asked(*byte) {
        Ok(_) => false,
        Err(malformed) => {
            let said = malformed.to_string();
            let encoded = format!("percent-encoded: %{byte:02X}");
            assert!(said.ends_with(&encoded), "{said}");
            assert_eq!(malformed.status(), 400);
            true
        }
    });
    refused.collect()
}

#[test]
fn characters_of_targets() {
    let guide = include_str!("../../../../../deploy/guide/http.md");
    for row in [
        "| in a path | `<` `>` `` ` `` | 400 `bad-request`",
        "| in a query | `\"` `<` `>` | 400 `bad-request`",
        "| in both | bytes from 0x80 on that are not UTF-8 | 400 `bad-request`",
    ] {
        assert!(guide.contains(row), "{row}");
    }
    let high = 0x80..=0xff;
    for (before, expected) in [
        ("/a", &b"<>`"[..]),
        ("/a?", b"\"<>"),
        ("http://h/a", b"<>`"),
    ] {
        let refused = refused_characters(before);
        let all: Vec<u8> = expected.iter().copied().chain(high.clone()).collect();
        assert_eq!(refused, all, "{before}");
        // The same in HTTP/2, where the library refuses them.
        let path = before.trim_start_matches("http://h");
        for byte in (0x21..0x7f).filter(|byte| *byte != b'#') {
            let target = [path.as_bytes(), &[byte]].concat();
            let held = PathAndQuery::try_from(&target[..]).is_ok();
            assert_eq!(held, !expected.contains(&byte), "{byte}");
        }
    }
    for target in ["/\u{e4}", "/?\u{20ac}", "/|{}[]\\^'%zz"] {
        let head = request(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
        assert_eq!(head.unwrap().parts.uri, target);
    }
}

#[test]
fn targets_in_http2() {
    let uri = |path: &'static str| {
        let path = PathAndQuery::from_static(path);
        Uri::builder()
            .scheme("http")
            .authority("web")
            .path_and_query(path)
            .build()
            .unwrap()
    };
    for (method, path, extended, expected) in [
        ("GET", "/", false, true),
        ("GET", "/a?b=*", false, true),
        ("GET", "*", false, false),
        ("OPTIONS", "*", false, true),
        ("options", "*", false, false),
        ("PRI", "*", false, false),
        ("GET", "?a", false, false),
        ("CONNECT", "/chat", true, true),
        ("CONNECT", "*", true, false),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let checked = check_target(&method, &uri(path), extended);
        assert_eq!(checked.is_ok(), expected, "{method} {path}: {checked:?}");
    }
    for (authority, expected) in [("web:80", true), ("web", false), ("web:0", false)] {
        let uri = Uri::from(Authority::from_static(authority));
        let checked = check_target(&Method::CONNECT, &uri, false);
        assert_eq!(checked.is_ok(), expected, "{authority}");
    }
}

#[test]
fn hosts_of_both_versions() {
    let longest = "a".repeat(HOST_BYTES);
    for host in ["web", "web:80", "web:", "[::1]:8080", "a_b!", &longest] {
        assert_eq!(check_authority(host.as_bytes()), Ok(()), "{host}");
        assert!(Authority::try_from(host).is_ok(), "{host}");
    }
    let empty = BadHost::Empty;
    assert_eq!(check_authority(b""), Err(empty.clone()));
    assert_eq!(check_authority(b":80"), Err(empty));
    let long = longest + "a";
    assert_eq!(check_authority(long.as_bytes()), Err(BadHost::TooLong(262)));
    for host in [
        "a%20b",
        "u@web",
        "web:http",
        "web:99999",
        "a/b",
        "[x]",
        "a b",
    ] {
        let checked = check_authority(host.as_bytes());
        assert!(matches!(checked, Err(BadHost::Unreadable(_))), "{host}");
    }

    let mut headers = HeaderMap::new();
    let path = Uri::from_static("/x");
    assert_eq!(is_host_missing(&path, &headers), Ok(true));
    let absolute = Uri::from_static("http://b/x");
    assert_eq!(is_host_missing(&absolute, &headers), Ok(false));
    headers.insert(HOST, HeaderValue::from_static("web"));
    assert_eq!(is_host_missing(&path, &headers), Ok(false));
    headers.insert(HOST, HeaderValue::from_static(""));
    assert_eq!(is_host_missing(&path, &headers), Err(BadHost::Empty));
}

proptest! {
    /// What is let through is what the URIs between sidecars can hold.
    #[test]
    fn hosts_can_be_held(host in "[a-z0-9.:\\[\\]%@!~ -]{0,20}") {
        if check_authority(host.as_bytes()).is_ok() {
            prop_assert!(Authority::try_from(host.as_str()).is_ok());
        }
    }
}
