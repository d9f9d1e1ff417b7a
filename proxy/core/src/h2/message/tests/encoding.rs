//! Heads as they are sent.

use http::{HeaderValue, Method, Request, StatusCode, Uri};

use super::*;
use crate::h2::message::{Protocol, Unsendable, encode_request, encode_response, encode_trailers};

/// `name: value` of every field of a block, with `!` before those that are never indexed.
fn decoded(block: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    let list = decoder().decode(block, |field| {
        let never = if field.never_indexed { "!" } else { "" };
        let (name, value) = (field.name.escape_ascii(), field.value.escape_ascii());
        lines.push(format!("{never}{name}: {value}"));
    });
    assert!(list.is_ok());
    lines
}

fn encoded(
    method: Method,
    uri: &str,
    protocol: Option<&'static str>,
    fields: &[(&'static str, &'static str)],
) -> Result<Vec<String>, Unsendable> {
    let uri: Uri = uri.parse().unwrap();
    let protocol = protocol
        .map(HeaderValue::from_static)
        .and_then(Protocol::new);
    let headers = map(fields);
    let (mut encoder, mut out) = (Encoder::plain(), BytesMut::new());
    encode_request(
        &mut encoder,
        &method,
        &uri,
        protocol.as_ref(),
        &headers,
        &mut out,
    )?;
    Ok(decoded(&out))
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn section_8_3_1_requests() {
    let get = |uri| encoded(Method::GET, uri, None, &[("host", "web")]).unwrap();
    let (method, http) = (":method: GET", ":scheme: http");
    for (uri, expected) in [
        ("http://web", [method, http, ":path: /", ":authority: web"]),
        ("http://web/", [method, http, ":path: /", ":authority: web"]),
        (
            "https://web:1/a?b",
            [method, ":scheme: https", ":path: /a?b", ":authority: web:1"],
        ),
        (
            "http://web?b",
            [method, http, ":path: /?b", ":authority: web"],
        ),
        (
            "http://user:word@web/",
            [method, http, ":path: /", ":authority: web"],
        ),
        // No authority: `Host` says whom it is for.
        ("/a", [method, http, ":path: /a", "host: web"]),
    ] {
        assert_eq!(get(uri), expected, "{uri}");
    }
    let found = encoded(Method::OPTIONS, "*", None, &[]).unwrap();
    assert_eq!(found, [":method: OPTIONS", http, ":path: *"]);
}

#[test]
fn section_8_5_connect() {
    let websocket = Some("websocket");
    let found = encoded(Method::CONNECT, "web:443", None, &[]).unwrap();
    assert_eq!(found, [":method: CONNECT", ":authority: web:443"]);
    let found = encoded(Method::CONNECT, "https://web:443/", None, &[]).unwrap();
    assert_eq!(found, [":method: CONNECT", ":authority: web:443"]);
    let found = encoded(Method::CONNECT, "https://web/chat", websocket, &[]).unwrap();
    assert_eq!(
        found,
        [
            ":method: CONNECT",
            ":scheme: https",
            ":path: /chat",
            ":authority: web",
            ":protocol: websocket",
        ]
    );
    // No CONNECT: there is no protocol to speak.
    let found = encoded(Method::GET, "/", websocket, &[]).unwrap();
    assert_eq!(found, [":method: GET", ":scheme: http", ":path: /"]);
}

#[test]
fn targets_that_cannot_be_sent() {
    for (method, uri) in [
        (Method::GET, "*"),
        (Method::CONNECT, "/"),
        (Method::CONNECT, "web"),
        (Method::CONNECT, "http://web/"),
    ] {
        let refused = encoded(method, uri, None, &[]).unwrap_err();
        assert!(refused.to_string().contains("the target is"), "{refused}");
    }
}

#[test]
fn section_8_2_2_what_is_left_out() {
    let fields = [
        ("connection", "close"),
        ("proxy-connection", "close"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers"),
        ("x-a", " b\t"),
        ("x-b", ""),
    ];
    let expected = ["te: trailers", "x-a: b", "x-b: "];
    let found = encoded(Method::GET, "/", None, &fields).unwrap();
    assert_eq!(found[3..], expected);
    let (mut encoder, mut out) = (Encoder::plain(), BytesMut::new());
    encode_response(&mut encoder, StatusCode::NOT_FOUND, &map(&fields), &mut out).unwrap();
    let (status, rest) = (":status: 404", &decoded(&out)[1..]);
    assert_eq!(
        (decoded(&out)[0].as_str(), rest),
        (status, &expected.map(String::from)[..])
    );
    out.clear();
    encode_trailers(&mut encoder, &map(&fields), &mut out);
    assert_eq!(decoded(&out), expected);
}

#[test]
fn section_8_6_switching_protocols() {
    let (mut encoder, mut out) = (Encoder::with_table(100), BytesMut::new());
    let (status, none) = (StatusCode::SWITCHING_PROTOCOLS, HeaderMap::new());
    let refused = encode_response(&mut encoder, status, &none, &mut out);
    assert_eq!(refused, Err(Unsendable::SwitchingProtocols));
    assert!(out.is_empty());
}

#[test]
fn sensitive_values_are_never_indexed() {
    let mut request = Request::get("/").header("x-a", "open").body(()).unwrap();
    let mut secret = HeaderValue::from_static("secret");
    secret.set_sensitive(true);
    request.headers_mut().append("x-b", secret);
    let (mut encoder, mut out) = (Encoder::with_table(4096), BytesMut::new());
    let (uri, headers) = (request.uri(), request.headers());
    encode_request(&mut encoder, request.method(), uri, None, headers, &mut out).unwrap();
    assert_eq!(decoded(&out)[3..], ["x-a: open", "!x-b: secret"]);
}
