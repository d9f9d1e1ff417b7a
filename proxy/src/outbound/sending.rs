//! What is sent of a request with each of its attempts.

use http::Request;
use http::request::Parts;
use weft_core::route::Mirror;
use weft_core::terms::Terms;
use weft_core::time::Instant;

use crate::http::{Kept, ProxyBody};

/// Bytes of a body that are kept for a copy of the request; of a longer one there is none.
const MIRROR_BYTES: usize = 256 * 1024;

/// Keeps a request's body where there may be another attempt or a copy.
pub(super) fn keep(
    body: ProxyBody,
    terms: &Terms<'_>,
    mirrors: &[&Mirror],
) -> (Option<ProxyBody>, Option<Kept>) {
    let retry = terms.retry.value;
    let limit = retry.body_max as usize;
    let again = retry.attempts > 0 || terms.hedge.is_some();
    let wanted = again && limit > 0;
    if !wanted && mirrors.is_empty() {
        return (Some(body), None);
    }
    let limit = match mirrors {
        [] => limit,
        _ => limit.max(MIRROR_BYTES),
    };
    match body.keep(limit) {
        Ok(kept) => (None, Some(kept)),
        Err(body) => (Some(body), None),
    }
}

/// A request until it has been answered.
pub(super) struct Sending {
    pub(super) parts: Parts,
    /// The body, where it is not kept and not gone yet.
    pub(super) body: Option<ProxyBody>,
    pub(super) kept: Option<Kept>,
    /// When the caller stops waiting, where it or the policy says so.
    pub(super) deadline: Option<Instant>,
    /// Whether somebody waits for a copy of the body.
    pub(super) mirrored: bool,
}

impl Sending {
    /// The request for the next attempt; the head is copied only where there may be another.
    pub(super) fn request(&mut self, again: bool) -> Box<Request<ProxyBody>> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_since(crate::clock::now());
            weft_core::timeout::write(left, &mut self.parts.headers);
        }
        let head = if again {
            self.parts.clone()
        } else {
            take(&mut self.parts)
        };
        let body = match (&self.kept, &self.body) {
            (Some(kept), _) => kept.body(),
            // Nothing can be sent any number of times.
            (None, Some(ProxyBody::Empty) | None) => ProxyBody::Empty,
            (None, Some(_)) => self.body.take().unwrap_or(ProxyBody::Empty),
        };
        // On the heap: every future on its way holds it.
        Box::new(Request::from_parts(head, body))
    }

    pub(super) fn is_replayable(&self) -> bool {
        match &self.kept {
            Some(kept) => kept.is_replayable(),
            None => self.body.is_some(),
        }
    }

    /// Whether all of the body is here, so that attempts may send it side by side.
    pub(super) fn is_whole(&self) -> bool {
        match &self.kept {
            Some(kept) => kept.is_whole(),
            None => matches!(self.body, Some(ProxyBody::Empty)),
        }
    }

    /// There is no other attempt.
    pub(super) fn done(&self) {
        if let Some(kept) = &self.kept
            && !self.mirrored
        {
            kept.release();
        }
    }
}

fn take(parts: &mut Parts) -> Parts {
    let (empty, ()) = Request::new(()).into_parts();
    let method = parts.method.clone();
    let taken = std::mem::replace(parts, empty);
    // What decides about a retry is still asked of it.
    parts.method = method;
    taken
}
