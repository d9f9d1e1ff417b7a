//! Messages of others on their way through.

use std::error::Error;
use std::sync::Arc;

use http::header::HOST;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use weft_core::headers::remove_hop_by_hop;

use super::body::{BodyGuard, ProxyBody};
use super::incoming::Incoming;
use super::trailers::Trailers;
use super::watch::Activity;

/// A peer's response on its way to the caller. The guard is told of the body's end; `chunks` is
/// where trailers may follow in HTTP/1.1, and `activity` what moves in the request's stream, where
/// that is watched.
pub(crate) fn relayed<G: BodyGuard + 'static>(
    response: Response<Incoming>,
    guard: G,
    chunks: Option<Trailers>,
    activity: Option<Arc<Activity>>,
) -> Response<ProxyBody<G>> {
    let (mut parts, body) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers, false);
    if body.is_end_stream() {
        guard.on_end(None);
        return Response::from_parts(parts, ProxyBody::Empty);
    }
    let mut body = ProxyBody::guarded(body, guard);
    let has_body = ![StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&parts.status);
    if let Some(chunks) = chunks
        && has_body
    {
        body.frame(&mut parts.headers, chunks);
    }
    if let Some(activity) = activity {
        body = body.watched(activity);
    }
    Response::from_parts(parts, body)
}

/// The connection that a response goes to, where it may be in chunks: a caller in HTTP/1.0 does not
/// know them, and the answer to `HEAD` has no body (RFC 9112 section 6.1).
pub(crate) fn chunks<B>(connection: &Option<Trailers>, request: &Request<B>) -> Option<Trailers> {
    let connection = connection.as_ref()?;
    let takes_chunks = request.version() == Version::HTTP_11;
    let has_body = *request.method() != Method::HEAD && *request.method() != Method::CONNECT;
    (takes_chunks && has_body).then(|| connection.clone())
}

/// HTTP/1.1 towards a server: the path alone, and Host; CONNECT keeps its authority.
pub(crate) fn origin_form<B>(request: Request<B>) -> Request<B> {
    let (mut parts, body) = request.into_parts();
    if parts.method != Method::CONNECT {
        let uri = std::mem::take(&mut parts.uri).into_parts();
        if let Some(authority) = &uri.authority
            && !parts.headers.contains_key(HOST)
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            parts.headers.insert(HOST, host);
        }
        parts.uri = uri
            .path_and_query
            .map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    parts.version = Version::HTTP_11;
    Request::from_parts(parts, body)
}

/// An error with everything behind it, on one line.
pub(crate) fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
