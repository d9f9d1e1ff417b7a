//! Bodies that are received in HTTP/2 from where nobody has held them to anything yet: an application, a
//! client or a server outside the mesh.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use weft_core::reason::Reason;

use super::grpc_fields;
use super::h2::StreamBody;
use super::incoming::BodyError;
use super::stall::Awaited;

/// A body that is received in HTTP/2.
#[derive(Debug)]
pub(super) struct Http2Body {
    body: StreamBody,
    /// Whether it is the answer to a gRPC call.
    grpc_answer: bool,
    /// Bounds how long nothing of it may come while its reader waits.
    awaited: Option<Box<Awaited>>,
}

impl Http2Body {
    /// Of a request, or of a response that another sidecar has held to what it may be.
    pub(super) fn plain(body: StreamBody) -> Self {
        Self::response(body, false)
    }

    /// Of a response, to a gRPC call or not.
    pub(super) fn response(body: StreamBody, grpc: bool) -> Self {
        Self {
            body,
            grpc_answer: grpc,
            awaited: None,
        }
    }

    /// Nothing of it may come for so long while its reader waits.
    pub(super) fn bound_waiting(&mut self, limit: Duration) {
        self.awaited = Some(Box::new(Awaited::new(limit)));
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_here(cx);
        match &mut self.awaited {
            None => polled,
            Some(awaited) => awaited.bound(cx, polled),
        }
    }

    /// The next piece, where that is here already. Where it is not, the reader of a request's body does
    /// not count as one that waits for its client.
    pub(super) fn poll_here(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        polled.map(|next| {
            next.map(|next| match next.map_err(BodyError::Stream) {
                Err(error) if self.grpc_answer && error.is_too_large() => Ok(status_of(&error)),
                next => next,
            })
        })
    }

    /// Why it has broken, where that is known already: nothing is taken.
    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.body.poll_failed(cx).map(BodyError::Stream)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a gRPC call ends with in the place of trailers that are too large: its caller would not learn
/// the reason otherwise.
fn status_of(error: &BodyError) -> Frame<Bytes> {
    let reason = Reason::HeadersTooLarge;
    let mut trailers = HeaderMap::new();
    let code = reason.grpc_code();
    grpc_fields(&mut trailers, code, reason, &error.to_string());
    Frame::trailers(trailers)
}
