//! Tables per section of RFC 9113, and properties.

mod encoding;
mod fields;
mod length;
mod limits;
mod properties;
mod requests;
mod responses;

use bytes::BytesMut;
use http::HeaderMap;

use super::{
    ExtendedConnect, HeadLimits, Malformed, RequestHead, ResponseHead, Scratch, decode_request,
    decode_response, decode_trailers,
};
use crate::h1::Message;
use crate::h2::hpack::{Decoder, Encoder};

/// More than any list of these tests has, but where they say so.
const LIST_LIMIT: usize = 1 << 20;

const LIMITS: HeadLimits = HeadLimits {
    bytes: 64 * 1024,
    fields: 256,
};

/// A block with these fields.
fn block(fields: &[(&str, &str)]) -> BytesMut {
    let (mut encoder, mut out) = (Encoder::plain(), BytesMut::new());
    encoder.begin(&mut out);
    for (name, value) in fields {
        encoder.field(&mut out, name.as_bytes(), value.as_bytes());
    }
    out
}

fn decoder() -> Decoder {
    Decoder::new(4096, LIST_LIMIT)
}

/// Requests to a server that has announced extended CONNECT.
fn request(fields: &[(&str, &str)]) -> Result<RequestHead, Malformed> {
    let extended = ExtendedConnect::Announced;
    request_to(fields, LIMITS, extended)
}

fn request_to(
    fields: &[(&str, &str)],
    limits: HeadLimits,
    extended: ExtendedConnect,
) -> Result<RequestHead, Malformed> {
    let (mut decoder, mut scratch) = (decoder(), Scratch::default());
    let block = block(fields);
    let found = decode_request(&mut decoder, &block, &mut scratch, limits, extended);
    assert!(scratch.fields.is_empty());
    found.unwrap()
}

fn response(fields: &[(&str, &str)], end_stream: bool) -> Result<ResponseHead, Malformed> {
    let (mut decoder, mut scratch) = (decoder(), Scratch::default());
    let block = block(fields);
    decode_response(&mut decoder, &block, &mut scratch, LIMITS, end_stream).unwrap()
}

fn trailers(fields: &[(&str, &str)], end_stream: bool) -> Result<HeaderMap, Malformed> {
    let (mut decoder, mut scratch) = (decoder(), Scratch::default());
    let (block, message) = (block(fields), Message::Request);
    let (decoder, scratch) = (&mut decoder, &mut scratch);
    decode_trailers(decoder, &block, scratch, LIMITS, message, end_stream).unwrap()
}

const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "web"),
    (":path", "/"),
];

/// `GET http://web/` with these fields.
fn get<'a>(fields: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&GET, fields].concat()
}

/// `name: value` of every field, in the order of the map.
fn lines(headers: &HeaderMap) -> Vec<String> {
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        format!("{name}: {}", value.as_bytes().escape_ascii())
    };
    headers.iter().map(line).collect()
}

/// What becomes of a request that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Reset,
    Status(u16),
}

/// Checks a refusal: what becomes of it, and words of its text.
#[track_caller]
fn check_refusal(found: Result<impl std::fmt::Debug, Malformed>, end: End, text: &str) {
    let malformed = match found {
        Ok(head) => panic!("{head:?} was accepted, not refused for {text:?}"),
        Err(malformed) => malformed,
    };
    let said = malformed.to_string();
    assert!(said.contains(text), "{said:?} without {text:?}");
    let status = malformed.answerable.as_ref().map(|_| malformed.status());
    let found = status.map_or(End::Reset, End::Status);
    assert_eq!(found, end, "{said}");
}
