//! Pseudo-header fields of requests, CONNECT and extended CONNECT.

use http::Version;

use super::End::{Reset, Status};
use super::*;
use crate::fault::Fault;
use crate::h2::frame::ErrorCode;
use crate::h2::message::Answerable;
use crate::reason::Reason;

#[test]
fn section_8_3_1_targets_that_are_accepted() {
    let accepted: [(&[(&str, &str)], &str); 10] = [
        (&GET, "GET http://web/"),
        (
            &[
                (":path", "/a?b=c"),
                (":authority", "web:8080"),
                (":scheme", "https"),
                (":method", "PURGE"),
            ],
            "PURGE https://web:8080/a?b=c",
        ),
        // As HTTP/1.1 has it in `Host`: the URI has no scheme then.
        (
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/a"),
                ("host", "web"),
            ],
            "GET /a",
        ),
        (
            &[
                (":method", "OPTIONS"),
                (":scheme", "http"),
                (":path", "*"),
                (":authority", "web"),
            ],
            "OPTIONS http://web*",
        ),
        (
            &[(":method", "OPTIONS"), (":scheme", "http"), (":path", "*")],
            "OPTIONS *",
        ),
        (
            &[
                (":method", "GET"),
                (":scheme", "coap+tcp"),
                (":path", "/"),
                (":authority", "[::1]:5683"),
            ],
            "GET coap+tcp://[::1]:5683/",
        ),
        (&get(&[("host", "WEB")]), "GET http://web/"),
        (&get(&[("host", "web:80")]), "GET http://web/"),
        (
            &[(":method", "CONNECT"), (":authority", "web:443")],
            "CONNECT web:443",
        ),
        (
            &[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":path", "/chat"),
                (":authority", "web"),
            ],
            "CONNECT https://web/chat websocket",
        ),
    ];
    for (fields, expected) in accepted {
        let RequestHead {
            parts, protocol, ..
        } = request(fields).unwrap_or_else(|malformed| panic!("{fields:?}: {malformed}"));
        assert_eq!(parts.version, Version::HTTP_2);
        let mut found = format!("{} {}", parts.method, parts.uri);
        if let Some(protocol) = protocol {
            found += &format!(" {}", protocol.as_bytes().escape_ascii());
        }
        assert_eq!(found, expected);
    }
}

/// `GET http://web/` with another value of a field, or without it.
fn with(name: &'static str, value: Option<&'static str>) -> Vec<(&'static str, &'static str)> {
    let mut fields = Vec::from(GET);
    fields.retain(|field| field.0 != name);
    fields.extend(value.map(|value| (name, value)));
    fields
}

#[test]
fn section_8_3_pseudo_header_fields_that_are_refused() {
    let again = |field| get(&[field]);
    for (fields, text) in [
        (vec![], "no :method"),
        (with(":method", None), "no :method"),
        (with(":scheme", None), "no :scheme"),
        (with(":path", None), "no :path"),
        (with(":method", Some("")), ":method is empty"),
        (with(":scheme", Some("")), ":scheme is empty"),
        (with(":path", Some("")), ":path is empty"),
        (with(":method", Some("G T")), ":method is \"G T\"; a token"),
        (with(":method", Some("GET\0")), ":method is"),
        (with(":scheme", Some("http:")), ":scheme is \"http:\""),
        (with(":scheme", Some("1http")), ":scheme is"),
        (with(":scheme", Some("ht~tp")), ":scheme is"),
        (again((":method", "GET")), "more than one :method"),
        (again((":method", "POST")), "more than one :method"),
        (again((":scheme", "http")), "more than one :scheme"),
        (again((":authority", "web")), "more than one :authority"),
        (again((":path", "/")), "more than one :path"),
        (again((":status", "200")), "\":status\" is not known"),
        (again((":unknown", "1")), "\":unknown\" is not known"),
        (again((":", "1")), "\":\" is not known"),
        (again((":Path", "1")), "\":Path\" is not known"),
        (
            vec![("a", "b"), (":method", "GET")],
            ":method follows a regular field",
        ),
        (
            [&GET[..3], &[("a", "b")], &GET[3..]].concat(),
            ":path follows",
        ),
        (
            [&[("cookie", "b")], &GET[..]].concat(),
            ":method follows a regular field",
        ),
        (
            with(":path", Some(" /a")),
            "the value of \":path\" begins or ends with a space",
        ),
    ] {
        check_refusal(request(&fields), Reset, text);
    }
}

#[test]
fn section_8_3_1_targets_and_hosts_that_are_refused() {
    let long = "a".repeat(262);
    let long: &'static str = long.leak();
    let longer: &'static str = format!("/{}", "a".repeat(65_534)).leak();
    for (fields, status, text) in [
        (with(":path", Some("*")), 400, "the target is \"*\"; a path"),
        (with(":path", Some("a")), 400, "the target is \"a\"; a path"),
        (with(":path", Some("?a")), 400, "the target is \"?a\""),
        (with(":path", Some("http://web/")), 400, "a path, and"),
        (with(":path", Some("/a#b")), 400, "a fragment is never sent"),
        (with(":path", Some("/a b")), 400, "\" \" in its path"),
        (with(":path", Some("/<")), 400, "%3C"),
        (with(":path", Some("/?a=\"")), 400, "in its query"),
        (with(":path", Some("/\0")), 400, "%00"),
        (with(":path", Some(longer)), 414, "longer than 65534 bytes"),
        (with(":authority", Some("")), 400, "the host is empty"),
        (with(":authority", Some(":80")), 400, "the host is empty"),
        (with(":authority", Some("we b")), 400, "in :authority"),
        (with(":authority", Some("web/")), 400, "in :authority"),
        (with(":authority", Some("%41")), 400, "in :authority"),
        (with(":authority", Some("web:x")), 400, "in :authority"),
        (with(":authority", Some(long)), 400, "262 bytes"),
        (with(":authority", Some("a@web")), 400, "user information"),
        (get(&[("host", "other")]), 400, "Host is \"other\", but"),
        (get(&[("host", "web:8080")]), 400, "Host is"),
        (get(&[("host", "web:443")]), 400, "Host is"),
        (get(&[("host", "")]), 400, "Host is \"\", but"),
        (get(&[("host", "web"), ("host", "web")]), 400, "one Host"),
        (
            [with(":authority", None), vec![("host", "a b")]].concat(),
            400,
            "Host is \"a b\"",
        ),
    ] {
        let limits = HeadLimits {
            bytes: 1 << 20,
            ..LIMITS
        };
        let found = request_to(&fields, limits, ExtendedConnect::Announced);
        check_refusal(found, Status(status), text);
    }
}

#[test]
fn section_8_5_connect() {
    let connect = |fields: &[(&'static str, &'static str)]| {
        let method = (":method", "CONNECT");
        request(&[&[method], fields].concat())
    };
    let web = (":authority", "web:443");
    for (fields, end, text) in [
        (&[][..], Status(400), "CONNECT without :authority"),
        (&[web, (":path", "/")], Reset, "CONNECT has :path"),
        (&[web, (":scheme", "http")], Reset, "CONNECT has :scheme"),
        (&[(":authority", "web")], Status(400), "`host:port` only"),
        (&[(":authority", "web:0")], Status(400), "`host:port` only"),
        (
            &[(":authority", "a@web:1")],
            Status(400),
            "user information",
        ),
        (&[web, ("host", "web:80")], Status(400), "Host is"),
        (&[web, ("content-length", "1")], Status(400), "no content"),
        (&[(":authority", "")], Status(400), "`host:port` only"),
    ] {
        check_refusal(connect(fields), end, text);
    }
    let head = connect(&[web, ("content-length", "0"), ("host", "web:443")]).unwrap();
    assert_eq!(head.parts.uri.authority().unwrap(), "web:443");
    assert!(head.parts.uri.scheme().is_none() && head.parts.uri.path_and_query().is_none());
}

#[test]
fn rfc_8441_section_4_extended_connect() {
    const CONNECT: [(&str, &str); 5] = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "web"),
        (":path", "/chat"),
    ];
    let without = |name: &str| {
        let mut fields = Vec::from(CONNECT);
        fields.retain(|field| field.0 != name);
        fields
    };
    let long = "p".repeat(65);
    let protocol = |value| {
        let mut fields = without(":protocol");
        fields.push((":protocol", value));
        fields
    };
    for (fields, end, text) in [
        (without(":scheme"), Reset, "no :scheme"),
        (without(":path"), Reset, "no :path"),
        (protocol(""), Reset, ":protocol is empty"),
        (protocol("a\0"), Reset, "control characters"),
        (protocol(&long), Status(400), ":protocol has 65 bytes"),
        (
            get(&[(":protocol", "websocket")]),
            Reset,
            "with the method GET",
        ),
        (
            [&CONNECT[..], &[(":protocol", "a")]].concat(),
            Reset,
            "more than one :protocol",
        ),
        (
            [&CONNECT[..], &[("content-length", "5")]].concat(),
            Status(400),
            "no content is allowed",
        ),
    ] {
        check_refusal(request(&fields), end, text);
    }
    let refused = request_to(&CONNECT, LIMITS, ExtendedConnect::NotAnnounced);
    check_refusal(refused, Reset, "\":protocol\" is not known here");
    // Its host may be in `Host`, or nowhere.
    let head = request(&without(":authority")).unwrap();
    assert_eq!(head.parts.uri, "/chat");
    assert_eq!(head.protocol.unwrap().as_bytes(), b"websocket");
}

#[test]
fn what_an_answer_needs_is_known() {
    let grpc = ("content-type", "application/grpc+proto");
    let refused = |fields: &[(&str, &str)]| request(fields).unwrap_err();
    let malformed = refused(&[
        (":method", "HEAD"),
        (":scheme", "http"),
        (":path", "*"),
        grpc,
    ]);
    let expected = Answerable {
        head: true,
        grpc: true,
    };
    assert_eq!(malformed.answerable, Some(expected));
    assert_eq!(malformed.reason(), Reason::BadRequest);
    assert_eq!(malformed.fault(), Fault::Caller);
    assert_eq!(malformed.code(), ErrorCode::PROTOCOL_ERROR);
    // A status of 200 would open a tunnel.
    let malformed = refused(&[(":method", "CONNECT"), (":authority", "web"), grpc]);
    assert!(!malformed.answerable.unwrap().grpc);
    // What is wrong with it was found before.
    let twice = [("host", "a"), ("host", "b"), grpc];
    assert!(refused(&get(&twice)).answerable.unwrap().grpc);
}
