//! HTTP on both sides: settings shared by every connection, and the answers of the mesh itself.

mod body;
mod extended;
pub mod h1;
pub mod h2;
mod head;
mod http2;
mod http2_body;
mod incoming;
pub(crate) mod interims;
mod kept;
mod open;
mod paced;
mod relayed;
mod stall;
mod tunnel;
mod upgrade;
mod upload;
mod watch;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use weft_core::headers::WEFT_REASON;
use weft_core::reason::Reason;

use crate::config::ProxyConfig;
use crate::connections::Patience;
pub(crate) use open::{FIRST_REQUEST_WAIT, none_came};

pub use body::{BodyGuard, ProxyBody, Relayed};
pub(crate) use http2::{Party, client_config, probing, send_http2, serve_http2};
pub use incoming::{BodyError, BodyFault, ExchangeError, Incoming, SendError};
pub use kept::{Kept, KeptBody, KeptBudget};
pub use paced::Resets;
pub(crate) use paced::{Client, Deposit};
pub(crate) use relayed::{describe, relayed};
pub(crate) use upgrade::sha1;
pub use upgrade::{Io, Upgrade, UpgradeError, Upgraded};
pub use upload::Upload;
pub use watch::{Activity, Watched};

/// The client connection preface and the head of the SETTINGS frame that has to follow (RFC 9113
/// section 3.4).
const HTTP2_FIRST_BYTES: usize = 24 + 9;

/// Gives a request in HTTP/1.1 what HTTP/2 has in the place of `Host` (RFC 9113 section 8.3.1).
pub(crate) fn make_absolute<B>(request: &mut Request<B>) {
    let host = request.headers_mut().remove(HOST);
    if request.uri().authority().is_some() {
        return;
    }
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if authority.is_some() && parts.path_and_query.is_some() {
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = authority;
    }
    // All parts are there, or the path alone.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// What bounds a client's connection in HTTP/2 below HTTP. The client has to send its preface and a
/// frame's head in the time of a handshake, and to read something while there is something to
/// read: one whose stream stalls still reads its connection, and streams are bounded by themselves
/// (`stall.rs`, `h2/server.rs`). HTTP/1 has timeouts of its own.
pub(crate) fn patience(config: &ProxyConfig, http2: bool) -> Patience {
    match http2 {
        true => Patience {
            first: Some((HTTP2_FIRST_BYTES, config.timeouts.handshake)),
            write: config.timeouts.client_stall,
        },
        false => Patience::ENDLESS,
    }
}

/// What [`weft_core::headers::WEFT_CHECK`] says of a check that is for the application.
pub(crate) const CHECK_REQUEST: &str = "request";
/// What it says of one that asks its sidecar whether the application accepts a connection.
pub(crate) const CHECK_CONNECTION: &str = "connection";

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the mesh itself. It says why in `weft-reason`; to gRPC callers as a trailers-only
/// response (gRPC over HTTP/2, "Responses").
pub fn answer<G>(reason: Reason, detail: &str, grpc: bool) -> Response<ProxyBody<G>> {
    if grpc {
        return grpc_answer(reason.grpc_code(), reason, detail);
    }
    let reason_value = HeaderValue::from_static(reason.as_str());
    let text = if detail.is_empty() {
        format!("{}: {}\n", reason.as_str(), reason.description())
    } else {
        format!("{}: {} ({detail})\n", reason.as_str(), reason.description())
    };
    let mut response = Response::new(ProxyBody::text(Bytes::from(text)));
    *response.status_mut() =
        StatusCode::from_u16(reason.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(WEFT_REASON, reason_value);
    response
}

/// A gRPC answer of the mesh itself, with a code of its own.
pub(crate) fn grpc_answer<G>(code: u32, reason: Reason, detail: &str) -> Response<ProxyBody<G>> {
    let mut response = Response::new(ProxyBody::Empty);
    *response.version_mut() = Version::HTTP_2;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    grpc_fields(headers, code, reason, detail);
    headers.insert(WEFT_REASON, HeaderValue::from_static(reason.as_str()));
    response
}

/// The status of a gRPC call, and what it says to people.
fn grpc_fields(headers: &mut http::HeaderMap, code: u32, reason: Reason, detail: &str) {
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    let message = format!("{}: {detail}", reason.as_str());
    // Visible ASCII only; detail comes from our own error messages.
    if let Ok(message) = HeaderValue::from_str(&message.replace(['\n', '%'], " ")) {
        headers.insert(GRPC_MESSAGE, message);
    }
}
