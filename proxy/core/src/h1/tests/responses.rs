//! Heads of responses.

use http::{HeaderValue, Method, Version};

use super::super::Framing::{self, Chunked, Length, UntilClose};
use super::{check_refusal, fields, response};
use crate::fault::Fault;

#[test]
fn heads_are_read() {
    let head = response(
        &Method::GET,
        b"HTTP/1.1 404 Nicht gefunden \xfc\r\nServer: x\r\nContent-Length: 3\r\n\r\nabc",
    )
    .unwrap();
    assert_eq!(head.parts.status, 404);
    assert_eq!(head.parts.version, Version::HTTP_11);
    assert_eq!(head.form.unwrap().as_bytes(), b"t\"Nicht gefunden \xfc\"");
    assert_eq!(head.framing, Length(3));
    assert!(head.keep_alive && !head.tunnel);
    assert_eq!(
        fields(&head.parts.headers),
        ["server: x", "content-length: 3"]
    );
}

#[test]
fn statuses_and_phrases() {
    let cases: [(&str, u16, Option<&str>); 9] = [
        ("200 OK", 200, None),
        ("200 Fine", 200, Some("l\"Fine\"")),
        ("200 ", 200, Some("l\"\"")),
        ("200", 200, Some("l\"\"")),
        ("299 Odd", 299, Some("l\"Odd\"")),
        ("299 ", 299, None),
        ("599", 599, None),
        ("700 x", 700, Some("l\"x\"")),
        ("999 a\tb", 999, Some("l\"a\tb\"")),
    ];
    for (line, status, phrase) in cases {
        let input = format!("HTTP/1.1 {line}\r\n\r\n");
        let head = response(&Method::GET, &input).unwrap();
        assert_eq!(head.parts.status, status, "{line:?}");
        assert_eq!(
            head.form.as_ref().map(HeaderValue::as_bytes),
            phrase.map(str::as_bytes),
            "{line:?}"
        );
    }
}

#[test]
fn framing() {
    const LENGTH: &str = "Content-Length: 5\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    const BOTH: &str = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let none = Framing::None;
    let cases = [
        ("GET", 200, "", UntilClose),
        ("GET", 200, LENGTH, Length(5)),
        ("GET", 200, CHUNKED, Chunked),
        ("GET", 200, BOTH, Chunked),
        ("GET", 200, "Transfer-Encoding: identity\r\n", UntilClose),
        (
            "GET",
            200,
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            Length(5),
        ),
        ("GET", 500, "", UntilClose),
        ("GET", 777, LENGTH, Length(5)),
        ("HEAD", 200, "", none),
        ("HEAD", 200, LENGTH, none),
        ("HEAD", 200, CHUNKED, none),
        ("GET", 100, LENGTH, none),
        ("GET", 103, "", none),
        ("GET", 199, CHUNKED, none),
        ("GET", 101, LENGTH, none),
        ("GET", 204, LENGTH, none),
        ("GET", 204, CHUNKED, none),
        ("GET", 304, LENGTH, none),
        ("GET", 304, "", none),
        ("GET", 205, "", UntilClose),
        ("CONNECT", 200, "", none),
        ("CONNECT", 200, LENGTH, none),
        ("CONNECT", 299, CHUNKED, none),
        ("CONNECT", 407, LENGTH, Length(5)),
        ("head", 200, LENGTH, Length(5)),
    ];
    for (method, status, lines, framing) in cases {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let input = format!("HTTP/1.1 {status}\r\n{lines}\r\n");
        let head = response(&method, &input).unwrap();
        assert_eq!(head.framing, framing, "{method} {input:?}");
        let tunnel = status == 101 || (method == Method::CONNECT && status < 300);
        assert_eq!(head.tunnel, tunnel, "{method} {input:?}");
        assert_eq!(head.is_interim(), (100..200).contains(&status) && !tunnel);
        assert_eq!(
            head.keep_alive,
            framing != UntilClose && !tunnel,
            "{method} {input:?}"
        );
        let length = head.parts.headers.get("content-length").is_some();
        assert_eq!(
            length,
            lines.contains("Length") && lines != BOTH,
            "{method} {input:?}"
        );
    }
}

#[test]
fn connections() {
    for (version, lines, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
    ] {
        let input = format!("HTTP/{version} 200 OK\r\nContent-Length: 0\r\n{lines}\r\n");
        assert_eq!(
            response(&Method::GET, &input).unwrap().keep_alive,
            keep_alive,
            "{input:?}"
        );
    }
}

/// What RFC 9112 lets a recipient mend.
#[test]
fn leniency() {
    let expected = ["x: a b", "y: c", "z: "];
    for input in [
        "HTTP/1.1 200 OK\r\nX: a b\r\nY: c\r\nZ:\r\n\r\n",
        "HTTP/1.1 200 OK\nX: a b\nY: c\nZ:\n\n",
        "HTTP/1.1 200 OK\r\nX : a b\r\nY\t : c\r\nZ :\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nY:\r\n\tc\r\nZ: \r\n\r\n",
        "HTTP/1.1 200 OK\nX: a\n \n\t b\nY: c\nZ:\n  \n\n",
        "\r\nHTTP/1.1 200 OK\r\nX: a b\r\nY: c\r\nZ:\r\n\r\n",
    ] {
        let head = response(&Method::GET, input).unwrap_or_else(|m| panic!("{input:?}: {m}"));
        assert_eq!(fields(&head.parts.headers), expected, "{input:?}");
    }
}

#[test]
fn refusals() {
    let cases: [(&[u8], &str); 23] = [
        (b"ICY 200 OK\r\n", "status line"),
        (b"<html>", "status line"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "status line"),
        (b"HTTP/1.1 99 x\r\n", "status line"),
        (b"HTTP/1.1 099 x\r\n", "status line"),
        (b"HTTP/1.1 1000 x\r\n", "status line"),
        (b"HTTP/1.1 2x0 x\r\n", "status line"),
        (b"HTTP/1.1  200 OK\r\n", "status line"),
        (b"HTTP/1.1\r\n", "status line"),
        (b"HTTP/1.1 200 a\0b\r\n", "status line"),
        (b"HTTP/2.0 200 OK\r\n", "version"),
        (b"HTTP/1.1 200 OK\r\n X: a\r\n\r\n", "continues"),
        (b"HTTP/1.1 200 OK\r\nX: a\0\r\n\r\n", "NUL"),
        (b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", "carriage return"),
        (b"HTTP/1.1 200 OK\r\nX y: a\r\n\r\n", "is no field"),
        (b"HTTP/1.1 200 OK\r\nX\r\n\r\n", "is no field"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "Content-Length is",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "two values",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "only chunked",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "only chunked",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "once and last",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked,\r\n\r\n",
            "empty element",
        ),
        (
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0",
        ),
    ];
    for (input, text) in cases {
        let found = response(&Method::GET, input);
        assert_eq!(found.as_ref().unwrap_err().fault(), Fault::Endpoint);
        check_refusal(found, &(502, "upstream-protocol-error", text), input);
    }
    let large = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(70_000));
    let too_large = (502, "headers-too-large", "65536 bytes");
    check_refusal(response(&Method::GET, large), &too_large, b"a large head");
}
