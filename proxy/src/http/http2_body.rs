//! Bodies that are received in HTTP/2: hyper's, with a limit on trailers, which h2 does not refuse.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use weft_core::reason::Reason;

use super::incoming::BodyError;
use super::stall::Awaited;
use super::{HeadLimits, grpc_fields};

/// A body that is received in HTTP/2.
#[derive(Debug)]
pub(super) struct Http2Body {
    body: hyper::body::Incoming,
    /// What its trailers may have.
    limits: HeadLimits,
    /// Whether it is the answer to a gRPC call.
    grpc_answer: bool,
    /// Bounds how long nothing of it may come while its reader waits.
    awaited: Option<Box<Awaited>>,
}

impl Http2Body {
    /// Of a request.
    pub(super) fn request(body: hyper::body::Incoming, limits: HeadLimits) -> Self {
        Self::response(body, limits, false)
    }

    /// Of a response, to a gRPC call or not.
    pub(super) fn response(body: hyper::body::Incoming, limits: HeadLimits, grpc: bool) -> Self {
        Self {
            body,
            limits,
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
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let polled = match polled {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(self.checked(frame))),
            end @ (Poll::Pending | Poll::Ready(Some(Err(_)) | None)) => {
                end.map_err(BodyError::Http2)
            }
        };
        match &mut self.awaited {
            None => polled,
            Some(awaited) => awaited.bound(cx, polled),
        }
    }

    /// Trailers that are too large end the stream. A gRPC call ends with a status instead: its caller
    /// would not learn the reason otherwise.
    fn checked(&self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let trailers = frame.trailers_ref();
        let exceeded = trailers.and_then(|trailers| self.limits.exceeded_by(trailers, 0));
        let Some(exceeded) = exceeded else {
            return Ok(frame);
        };
        let error = BodyError::TrailersTooLarge(exceeded);
        if !self.grpc_answer {
            return Err(error);
        }
        let reason = Reason::HeadersTooLarge;
        let mut trailers = HeaderMap::new();
        grpc_fields(
            &mut trailers,
            reason.grpc_code(),
            reason,
            &error.to_string(),
        );
        Ok(Frame::trailers(trailers))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
