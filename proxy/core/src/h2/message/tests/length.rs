//! Lengths of bodies.

use http::{Method, StatusCode};

use super::super::Length;
use super::End::Reset;
use super::check_refusal;

/// Data in these pieces, and the end.
fn body(mut length: Length, pieces: &[usize]) -> Result<(), super::Malformed> {
    pieces.iter().try_for_each(|bytes| length.on_data(*bytes))?;
    length.on_end()
}

fn response(method: Method, status: u16, content_length: Option<u64>) -> Length {
    let status = StatusCode::from_u16(status).unwrap();
    Length::response(&method, status, content_length)
}

#[test]
fn section_8_1_1_lengths() {
    let get = |length| Length::request(&Method::GET, length);
    let ok = |length| response(Method::GET, 200, length);
    for (length, pieces) in [
        (get(None), &[][..]),
        (get(None), &[5, 0, 7]),
        (get(Some(0)), &[]),
        (get(Some(0)), &[0]),
        (get(Some(5)), &[5]),
        (get(Some(5)), &[2, 0, 3, 0]),
        (ok(None), &[9]),
        (ok(Some(9)), &[9]),
        // No content, whatever the head says.
        (response(Method::HEAD, 200, Some(9)), &[0]),
        (response(Method::GET, 304, Some(9)), &[]),
        (response(Method::GET, 204, Some(9)), &[]),
        (response(Method::GET, 103, Some(9)), &[]),
        // Of a tunnel.
        (Length::request(&Method::CONNECT, Some(0)), &[7]),
        (response(Method::CONNECT, 200, Some(9)), &[1, 2]),
        (response(Method::CONNECT, 404, Some(9)), &[9]),
    ] {
        let shown = format!("{length:?} {pieces:?}");
        body(length, pieces).unwrap_or_else(|malformed| panic!("{shown}: {malformed}"));
    }
    for (length, pieces, text) in [
        (get(Some(0)), &[1][..], "more than the 0 bytes"),
        (get(Some(5)), &[3, 3], "more than the 5 bytes"),
        (get(Some(5)), &[3], "has 3 bytes, 5 are required"),
        (get(Some(5)), &[], "has 0 bytes, 5 are required"),
        (ok(Some(9)), &[8], "malformed response: the body has 8"),
        (
            response(Method::HEAD, 200, Some(9)),
            &[9],
            "9 bytes of content",
        ),
        (response(Method::GET, 304, None), &[1], "1 bytes of content"),
        (response(Method::GET, 204, None), &[1], "1 bytes of content"),
        (response(Method::CONNECT, 404, Some(9)), &[1], "1 bytes, 9"),
    ] {
        check_refusal(body(length, pieces), Reset, text);
    }
}

#[test]
fn what_remains() {
    let mut length = Length::request(&Method::PUT, Some(5));
    length.on_data(2).unwrap();
    assert_eq!(length.remaining(), Some(3));
    assert_eq!(Length::request(&Method::PUT, None).remaining(), None);
    let head = response(Method::HEAD, 200, Some(9));
    assert_eq!(head.remaining(), Some(0));
}
