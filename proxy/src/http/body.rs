//! Bodies on their way through, without boxing: what is relayed, and what the mesh says itself.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// A body that is relayed, or a short one of our own.
#[derive(Debug)]
pub enum ProxyBody<G = ()> {
    /// Nothing.
    Empty,
    /// A text of our own.
    Text(Option<Bytes>),
    /// Relayed as it comes. The guard is told of the end, and is dropped when the body is.
    Relayed(Incoming, Option<G>),
}

/// Told how a relayed body ended. When the guard is dropped untold, the body was cut.
pub trait BodyGuard: Unpin {
    /// The body came to its end, with these trailers.
    fn on_end(self, trailers: Option<&http::HeaderMap>);
    /// The body broke.
    fn on_error(self, error: &hyper::Error);
    /// That many bytes went through.
    fn on_data(&mut self, bytes: usize);
}

impl BodyGuard for () {
    fn on_end(self, _trailers: Option<&http::HeaderMap>) {}
    fn on_error(self, _error: &hyper::Error) {}
    fn on_data(&mut self, _bytes: usize) {}
}

impl<G> ProxyBody<G> {
    /// A text of our own.
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl ProxyBody {
    /// A request's body: nothing where nothing comes, so that it can be sent again.
    pub fn of_request(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            Self::Empty
        } else {
            Self::Relayed(incoming, None)
        }
    }
}

impl<G: BodyGuard> Body for ProxyBody<G> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Relayed(incoming, guard) => {
                let polled = Pin::new(&mut *incoming).poll_frame(cx);
                match &polled {
                    Poll::Pending => {}
                    Poll::Ready(Some(Ok(frame))) => {
                        if let Some(data) = frame.data_ref() {
                            if let Some(guard) = guard {
                                guard.on_data(data.len());
                            }
                            // hyper does not poll past a frame that completes the length.
                            if incoming.is_end_stream()
                                && let Some(guard) = guard.take()
                            {
                                guard.on_end(None);
                            }
                        } else if let Some(guard) = guard.take() {
                            guard.on_end(frame.trailers_ref());
                        }
                    }
                    Poll::Ready(Some(Err(error))) => {
                        if let Some(guard) = guard.take() {
                            guard.on_error(error);
                        }
                    }
                    Poll::Ready(None) => {
                        if let Some(guard) = guard.take() {
                            guard.on_end(None);
                        }
                    }
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_none(),
            Self::Relayed(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Relayed(incoming, _) => incoming.size_hint(),
        }
    }
}
