//! A message's body as it arrives.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::failure::StreamFailure;
use super::inbox::Reader;

/// The body of a message that is received on a stream. Dropped, what is still to come is not wanted any more.
#[derive(Debug)]
pub struct StreamBody(Kind);

#[derive(Debug)]
enum Kind {
    Empty,
    /// One piece of a known length, which has come with the head. It is empty once it was read.
    Whole(Bytes),
    Reader(Reader),
}

impl StreamBody {
    /// Of a message that has ended with its head.
    pub(in crate::http) const EMPTY: Self = Self(Kind::Empty);

    pub(super) fn new(reader: Reader) -> Self {
        Self(Kind::Reader(reader))
    }

    /// Of a message whose head has just been read: what has come with it needs no reader.
    pub(super) fn behind_head(mut reader: Reader) -> Self {
        match reader.take_whole() {
            Some(whole) => Self(Kind::Whole(whole)),
            None if reader.is_end_stream() => Self::EMPTY,
            None => Self::new(reader),
        }
    }

    /// Why nothing more comes, where its stream has failed: nothing is taken.
    pub(in crate::http) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<StreamFailure> {
        match &mut self.0 {
            Kind::Reader(reader) => reader.poll_failed(cx),
            Kind::Whole(_) | Kind::Empty => Poll::Pending,
        }
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
            Kind::Reader(reader) => reader.poll_frame(cx),
            Kind::Whole(whole) if !whole.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(whole)))))
            }
            Kind::Whole(_) | Kind::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Reader(reader) => reader.is_end_stream(),
            Kind::Whole(whole) => whole.is_empty(),
            Kind::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Reader(reader) => reader.size_hint(),
            Kind::Whole(whole) => SizeHint::with_exact(whole.len() as u64),
            // That it is empty says its end. A length of 0 would be written as a field that its sender
            // has not written.
            Kind::Empty => SizeHint::default(),
        }
    }
}
