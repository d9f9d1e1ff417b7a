//! Tables and properties of the codec; the oracle is in `proxy/tests/h1_oracle.rs`.

mod bodies;
mod cuts;
mod encoding;
mod requests;
mod responses;

use bytes::BytesMut;
use http::{HeaderMap, Method};

use super::{
    HeadScan, Limits, Malformed, RequestHead, ResponseHead, parse_request, parse_response,
};

/// The head of a request that is complete, or what is wrong with it.
fn request(input: impl AsRef<[u8]>) -> Result<RequestHead, Malformed> {
    let mut buffer = BytesMut::from(input.as_ref());
    let parsed = parse_request(&mut buffer, &mut HeadScan::default(), &Limits::default());
    parsed.map(|head| head.unwrap_or_else(|| panic!("incomplete: {:?}", escape(input.as_ref()))))
}

/// The head of a response to `method` that is complete, or what is wrong with it.
fn response(method: &Method, input: impl AsRef<[u8]>) -> Result<ResponseHead, Malformed> {
    let mut buffer = BytesMut::from(input.as_ref());
    let limits = Limits::default();
    let parsed = parse_response(&mut buffer, &mut HeadScan::default(), method, &limits);
    parsed.map(|head| head.unwrap_or_else(|| panic!("incomplete: {:?}", escape(input.as_ref()))))
}

/// `name: value` of every field, in the order of the map.
fn fields(headers: &HeaderMap) -> Vec<String> {
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        format!("{name}: {}", value.as_bytes().escape_ascii())
    };
    headers.iter().map(line).collect()
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Checks a refusal: its status, its reason, and words of its text.
#[track_caller]
fn check_refusal(found: Result<impl std::fmt::Debug, Malformed>, refusal: &Refusal, input: &[u8]) {
    let input = escape(input);
    let (status, reason, text) = refusal;
    match found {
        Ok(head) => panic!("{input} was accepted: {head:?}"),
        Err(malformed) => {
            let said = malformed.to_string();
            assert!(said.contains(text), "{input}: {said:?} without {text:?}");
            assert_eq!(malformed.status(), *status, "{input}: {said}");
            assert_eq!(malformed.reason().as_str(), *reason, "{input}: {said}");
        }
    }
}

/// Status, reason, and words of the text.
type Refusal = (u16, &'static str, &'static str);
