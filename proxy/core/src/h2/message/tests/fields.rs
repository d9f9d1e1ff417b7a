//! Regular fields: the same in every section of a message.

use super::End::{Reset, Status};
use super::*;

/// A field after the pseudo-header fields of a request, of a response, and in trailers.
#[track_caller]
fn check(name: &str, value: &str, text: &str) {
    let field = (name, value);
    check_refusal(request(&get(&[field])), Reset, text);
    check_refusal(response(&[(":status", "200"), field], false), Reset, text);
    check_refusal(trailers(&[field], true), Reset, text);
}

#[test]
fn section_8_2_1_names_and_values() {
    for (name, text) in [
        ("Accept", "\"Accept\" has upper case letters"),
        ("x-A", "\"x-A\" has upper case"),
        ("X-Request-Id", "\"X-Request-Id\" has upper case"),
        ("", "the name of a field is \"\"; a token"),
        ("a b", "the name of a field is \"a b\""),
        ("a:", "the name of a field is"),
        ("a\"", "the name of a field is"),
        ("a\0", "the name of a field is"),
        ("\u{e9}", "the name of a field is"),
    ] {
        check(name, "1", text);
    }
    for value in ["a\0b", "a\rb", "a\nb", "\u{7f}", "a\u{1}"] {
        check("x-a", value, "the value of \"x-a\" has control characters");
    }
    for value in [" a", "a ", "\ta", "a\t", " "] {
        check("x-a", value, "the value of \"x-a\" begins or ends with");
    }
    let fields = get(&[
        ("x-a", ""),
        ("x-a", "b c\td"),
        ("accept", "\u{e9}"),
        ("!#$%&'*+-.^_`|~", "1"),
    ]);
    let expected = [
        "x-a: ",
        "x-a: b c\\td",
        "accept: \\xc3\\xa9",
        "!#$%&'*+-.^_`|~: 1",
    ];
    assert_eq!(lines(&request(&fields).unwrap().parts.headers), expected);
}

#[test]
fn section_8_2_2_connection_specific_fields() {
    for name in [
        "connection",
        "proxy-connection",
        "keep-alive",
        "transfer-encoding",
        "upgrade",
    ] {
        let text = format!("there is \"{name}\"");
        check(name, "close", &text);
        check(name, "", &text);
    }
    for value in ["gzip", "trailers, gzip", "", "trailers;q=1"] {
        check("te", value, &format!("te is \"{value}\"; only `trailers`"));
    }
    let found = request(&get(&[("te", "trailers")])).unwrap();
    assert_eq!(lines(&found.parts.headers), ["te: trailers"]);
}

#[test]
fn section_8_2_3_cookies_stay_several() {
    let found = request(&get(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")])).unwrap();
    let cookies: Vec<_> = found.parts.headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[test]
fn section_8_1_1_content_length() {
    let of = |values: &[&'static str]| {
        let fields: Vec<_> = values
            .iter()
            .map(|value| ("content-length", *value))
            .collect();
        request(&get(&fields))
    };
    for (values, length, lines_of_it) in [
        (&[][..], None, &[][..]),
        (&["0"], Some(0), &["content-length: 0"]),
        (&["5"], Some(5), &["content-length: 5"]),
        (&["5", "5", "05"], Some(5), &["content-length: 5"]),
        (&["007"], Some(7), &["content-length: 7"]),
    ] {
        let head = of(values).unwrap();
        assert_eq!(head.content_length, length, "{values:?}");
        assert_eq!(lines(&head.parts.headers), lines_of_it);
    }
    for (values, text) in [
        (&["x"][..], "Content-Length is \"x\""),
        (&[""], "Content-Length is \"\""),
        (&["+1"], "Content-Length is"),
        (&["-1"], "Content-Length is"),
        (&["1, 1"], "Content-Length is"),
        (&["10000000000000000000"], "Content-Length is"),
        (&["1", "2"], "two values of Content-Length, 1 and 2"),
    ] {
        check_refusal(of(values), Status(400), text);
        let fields: Vec<_> = values
            .iter()
            .map(|value| ("content-length", *value))
            .collect();
        let fields = [&[(":status", "200")], &fields[..]].concat();
        check_refusal(response(&fields, false), Reset, text);
    }
    // What trailers say of the content is not looked at: they may not (RFC 9110 section 6.5.1), and
    // lose it elsewhere.
    assert!(trailers(&[("content-length", "x")], true).is_ok());
}

/// RFC 7541 section 6.2.3.
#[test]
fn what_is_never_indexed_is_sensitive() {
    let (mut encoder, mut out) = (Encoder::with_table(4096), BytesMut::new());
    encoder.begin(&mut out);
    for (name, value) in GET {
        encoder.field(&mut out, name.as_bytes(), value.as_bytes());
    }
    encoder.never_indexed(&mut out, b"x-token", b"secret");
    encoder.field(&mut out, b"x-other", b"open");
    let (mut decoder, mut scratch) = (decoder(), Scratch::default());
    let extended = ExtendedConnect::NotAnnounced;
    let found = decode_request(&mut decoder, &out, &mut scratch, LIMITS, extended);
    let headers = found.unwrap().unwrap().parts.headers;
    assert!(headers["x-token"].is_sensitive());
    assert!(!headers["x-other"].is_sensitive());
}

/// One head costs no memory of its own while there is room in the chunk.
#[test]
fn values_share_memory() {
    let fields = get(&[("x-a", "first"), ("accept", "second")]);
    let found = request(&fields).unwrap();
    let authority = found.parts.uri.authority().unwrap().as_str().as_ptr();
    let behind = |name: &str| {
        let value = found.parts.headers[name].as_bytes().as_ptr();
        value.addr().wrapping_sub(authority.addr())
    };
    // Where they are in the block.
    let behind = ["x-a", "accept"].map(behind);
    assert!(behind[0] < behind[1] && behind[1] < 64, "{behind:?}");
}

/// A value that is kept keeps no more than a chunk.
#[test]
fn a_small_value_of_a_large_block_keeps_little() {
    let long = "v".repeat(3_000);
    let fields = get(&[("x-a", &long), ("x-b", &long), ("x-c", "small")]);
    let found = request(&fields).unwrap();
    let at = |name: &str| found.parts.headers[name].as_bytes().as_ptr().addr();
    // Each in a chunk of its own, and the small one behind one of them.
    assert!(at("x-a").abs_diff(at("x-b")) > 3_000);
    assert_eq!(at("x-c"), at("x-b") + long.len());
}
