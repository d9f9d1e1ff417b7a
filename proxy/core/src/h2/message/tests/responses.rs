//! Heads of responses, and trailers.

use http::Version;

use super::End::Reset;
use super::*;
use crate::fault::Fault;
use crate::reason::Reason;

#[test]
fn section_8_3_2_status() {
    for (value, text) in [
        ("", ":status is empty"),
        ("20", ":status is \"20\"; three digits"),
        ("2000", ":status is"),
        ("099", ":status is"),
        ("2x0", ":status is"),
        ("+20", ":status is"),
        // Section 8.6.
        ("101", ":status is 101"),
    ] {
        check_refusal(response(&[(":status", value)], false), Reset, text);
    }
    let ok = (":status", "200");
    for (fields, text) in [
        (&[][..], "no :status"),
        (&[ok, ok], "more than one :status"),
        (&[ok, (":path", "/")], "\":path\" is not known"),
        (&[("a", "b"), ok], ":status follows a regular field"),
        (&[("a", "b")], "no :status"),
    ] {
        check_refusal(response(fields, false), Reset, text);
    }
    for status in [100, 103, 200, 204, 304, 404, 599, 999] {
        let value = status.to_string();
        let found = response(&[(":status", &value), ("a", "b")], false).unwrap();
        assert_eq!(found.parts.status, status);
        assert_eq!(found.parts.version, Version::HTTP_2);
        assert_eq!(found.is_interim(), status < 200);
        assert_eq!(lines(&found.parts.headers), ["a: b"]);
    }
    let malformed = response(&[], true).unwrap_err();
    assert_eq!(malformed.reason(), Reason::UpstreamProtocolError);
    assert_eq!(
        (malformed.status(), malformed.fault()),
        (502, Fault::Endpoint)
    );
}

#[test]
fn section_8_1_streams_end_with_a_final_response_or_trailers() {
    let interim = response(&[(":status", "103")], true);
    check_refusal(interim, Reset, "the stream ends with :status 103");
    assert!(response(&[(":status", "204")], true).is_ok());
    check_refusal(trailers(&[("a", "b")], false), Reset, "END_STREAM");
}

#[test]
fn section_8_1_trailers() {
    for name in [":status", ":method", ":x"] {
        let text = format!("\"{name}\" is not known here; trailers have none");
        check_refusal(trailers(&[(name, "200")], true), Reset, &text);
    }
    let found = trailers(&[("grpc-status", "0"), ("host", "a"), ("host", "b")], true).unwrap();
    assert_eq!(lines(&found), ["grpc-status: 0", "host: a", "host: b"]);
    assert!(trailers(&[], true).unwrap().is_empty());
}
