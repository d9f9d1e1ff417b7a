//! Heads and trailers as they are sent (RFC 9113 section 8.3, RFC 8441 section 4).

use bytes::BytesMut;
use http::header::{HOST, HeaderName, HeaderValue, TE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, StatusCode, Uri};

use super::collect::{is_connection_specific, is_trailers};
use super::request::Protocol;
use crate::h1::{self, check_target};
use crate::h2::hpack::Encoder;
use crate::headers::WEFT_HTTP1_FORM;

/// Why a head cannot be sent in HTTP/2. Nothing of it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// The target of a request is none (RFC 9113 sections 8.3.1 and 8.5).
    #[error("{0}")]
    Target(h1::Defect),
    /// HTTP/2 has no such response (RFC 9113 section 8.6).
    #[error("the status is 101; protocols are not switched in HTTP/2, 200 opens a stream")]
    SwitchingProtocols,
}

/// Appends the block of a request to `out`: pseudo-header fields by `uri`, whose scheme is `http` where
/// it has none, and `protocol` of an extended `CONNECT`.
///
/// Of `headers` are left out what is for a connection in HTTP/1.1 and `te` other than `trailers`
/// (RFC 9113 section 8.2.2), `Host` where the target has an authority, [`WEFT_HTTP1_FORM`], and white
/// space around values.
/// Sensitive values are never indexed.
///
/// # Errors
///
/// Where [`check_target`] refuses the target.
pub fn encode_request(
    encoder: &mut Encoder,
    method: &Method,
    uri: &Uri,
    protocol: Option<&Protocol>,
    headers: &HeaderMap,
    out: &mut BytesMut,
) -> Result<(), Unsendable> {
    let protocol = protocol.filter(|_| *method == Method::CONNECT);
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    // `http://host?query`: the path is empty.
    let has_query_only = path.starts_with('?');
    if !has_query_only {
        check_target(method, uri, protocol.is_some()).map_err(Unsendable::Target)?;
    }
    let authority = uri.authority().map(Authority::as_str);
    // User information is never sent (section 8.3.1).
    let authority = authority.map(|whole| whole.rsplit_once('@').map_or(whole, |(_, host)| host));
    encoder.begin(out);
    let mut put = |name: &[u8], value: &[u8]| encoder.field(out, name, value);
    put(b":method", method.as_str().as_bytes());
    if *method != Method::CONNECT || protocol.is_some() {
        put(b":scheme", uri.scheme_str().unwrap_or("http").as_bytes());
        match has_query_only {
            true => put(b":path", format!("/{path}").as_bytes()),
            false => put(b":path", path.as_bytes()),
        }
    }
    if let Some(authority) = authority {
        put(b":authority", authority.as_bytes());
    }
    if let Some(protocol) = protocol {
        put(b":protocol", protocol.as_bytes());
    }
    let has_authority = authority.is_some();
    put_fields(encoder, headers, out, |name| has_authority && name == HOST);
    Ok(())
}

/// Appends the block of a response to `out`. Of `headers` the same is left out as of a request's, but
/// `Host`.
///
/// # Errors
///
/// For 101, which HTTP/2 does not have.
pub fn encode_response(
    encoder: &mut Encoder,
    status: StatusCode,
    headers: &HeaderMap,
    out: &mut BytesMut,
) -> Result<(), Unsendable> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Unsendable::SwitchingProtocols);
    }
    encoder.begin(out);
    encoder.field(out, b":status", status.as_str().as_bytes());
    put_fields(encoder, headers, out, |_| false);
    Ok(())
}

/// Appends the block of trailers to `out`. The same is left out as of a response's fields.
pub fn encode_trailers(encoder: &mut Encoder, trailers: &HeaderMap, out: &mut BytesMut) {
    encoder.begin(out);
    put_fields(encoder, trailers, out, |_| false);
}

fn put_fields(
    encoder: &mut Encoder,
    headers: &HeaderMap,
    out: &mut BytesMut,
    is_omitted: impl Fn(&HeaderName) -> bool,
) {
    for (name, value) in headers {
        let bytes = trimmed(value);
        if *name == WEFT_HTTP1_FORM
            || is_connection_specific(name)
            || (name == TE && !is_trailers(bytes))
            || is_omitted(name)
        {
            continue;
        }
        let name = name.as_str().as_bytes();
        match value.is_sensitive() {
            true => encoder.never_indexed(out, name, bytes),
            false => encoder.field(out, name, bytes),
        }
    }
}

/// The value without spaces and tabs around it (RFC 9113 section 8.2.1).
fn trimmed(value: &HeaderValue) -> &[u8] {
    // It has no other control characters.
    value.as_bytes().trim_ascii()
}
