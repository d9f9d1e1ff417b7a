//! A message's body as it arrives.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::failure::StreamFailure;
use super::inbox::Reader;

/// The body of a message that is received on a stream. Dropped, what is still to come is not wanted any more.
#[derive(Debug)]
pub struct StreamBody(Option<Reader>);

impl StreamBody {
    /// Of a message that has ended with its head.
    pub(in crate::http) const EMPTY: Self = Self(None);

    pub(super) fn new(reader: Reader) -> Self {
        Self(Some(reader))
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = StreamFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamFailure>>> {
        match &mut self.0 {
            Some(reader) => reader.poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Reader::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Some(reader) => reader.size_hint(),
            // That it is empty says its end. A length of 0 would be written as a field that its sender
            // has not written.
            None => SizeHint::default(),
        }
    }
}
