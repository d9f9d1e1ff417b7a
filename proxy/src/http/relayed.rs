//! Messages of others on their way through.

use std::error::Error;
use std::sync::Arc;

use http::Response;
use http_body::Body as _;
use weft_core::headers::remove_hop_by_hop;

use super::body::{BodyGuard, ProxyBody};
use super::incoming::Incoming;
use super::watch::Activity;

/// A peer's response on its way to the caller. The guard is told of the body's end; `activity`
/// is what moves in the request's stream, where that is watched.
pub(crate) fn relayed<G: BodyGuard + 'static>(
    response: Response<Incoming>,
    guard: G,
    activity: Option<Arc<Activity>>,
) -> Response<ProxyBody<G>> {
    let (mut parts, body) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers, false);
    if body.is_end_stream() {
        guard.on_end(None);
        return Response::from_parts(parts, ProxyBody::Empty);
    }
    let mut body = ProxyBody::guarded(body, guard);
    if let Some(activity) = activity {
        body = body.watched(activity);
    }
    Response::from_parts(parts, body)
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
