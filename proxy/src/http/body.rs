//! Bodies on their way through, without boxing: what is relayed, what is kept to be sent again, and
//! what the mesh says itself.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::h2::TunnelBody;
use super::incoming::{BodyError, Incoming};
use super::kept::{Kept, KeptBody};
use super::upload::Upload;
use super::watch::{Activity, Watched};

/// A body that is relayed, or a short one of our own.
#[derive(Debug)]
pub enum ProxyBody<G = ()> {
    /// Nothing.
    Empty,
    /// A text of our own.
    Text(Option<Bytes>),
    /// Relayed as it comes.
    Relayed(Relayed<G>),
    /// Relayed, and kept as far as there is room.
    Kept(KeptBody),
    /// Relayed, and cut when nothing moves in its stream.
    Watched(Watched<G>),
    /// The bytes of a tunnel.
    Tunnel(TunnelBody),
}

/// A body that comes from elsewhere.
#[derive(Debug)]
pub struct Relayed<G> {
    body: Incoming,
    /// Told of the end, and dropped when the body is.
    guard: Option<G>,
    /// Counts what went through, where somebody wants to know.
    counter: Option<Arc<AtomicU64>>,
    /// Told of what moves, where it is a request's and somebody wants to know.
    activity: Option<Arc<Activity>>,
    /// Told how far it has come, where it is a request's.
    upload: Option<Upload>,
}

/// Told how a relayed body ended. When the guard is dropped untold, the body was cut.
pub trait BodyGuard: Unpin {
    /// The body came to its end, with these trailers.
    fn on_end(self, trailers: Option<&HeaderMap>);
    /// The body broke.
    fn on_error(self, error: &BodyError);
    /// The body was cut: nothing moved in its stream for too long.
    fn on_silence(self);
    /// The body was cut: its reader took nothing of it for too long. Only where it holds a connection
    /// ([`Self::holds_connection`]).
    fn on_stall(self)
    where
        Self: Sized,
    {
    }
    /// Whether a connection to the application carries nothing else until the body has ended.
    fn holds_connection(&self) -> bool {
        false
    }
    /// That many bytes went through.
    fn on_data(&mut self, bytes: usize);
    /// A stream of bytes has ended, after so many from the client and to it.
    fn on_stream(&mut self, received: u64, sent: u64);
}

impl BodyGuard for () {
    fn on_end(self, _trailers: Option<&HeaderMap>) {}
    fn on_error(self, _error: &BodyError) {}
    fn on_silence(self) {}
    fn on_data(&mut self, _bytes: usize) {}
    fn on_stream(&mut self, _received: u64, _sent: u64) {}
}

impl<G> ProxyBody<G> {
    /// A text of our own.
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::Text(Some(text.into()))
    }

    /// What comes from elsewhere; the guard is told of the end.
    pub fn guarded(body: Incoming, guard: G) -> Self {
        Self::Relayed(Relayed::new(body, Some(guard), None))
    }

    /// Cut when nothing moves in its stream, in either direction.
    pub fn watched(self, activity: Arc<Activity>) -> Self
    where
        G: BodyGuard + 'static,
    {
        match self {
            Self::Relayed(relayed) => Self::Watched(Watched::new(relayed, activity)),
            Self::Empty | Self::Text(_) | Self::Kept(_) | Self::Watched(_) | Self::Tunnel(_) => {
                self
            }
        }
    }
}

impl ProxyBody {
    /// A request's body: nothing where nothing comes, so that it can be sent again. Its bytes are
    /// added to the counter.
    pub fn of_request(body: Incoming, counter: Option<Arc<AtomicU64>>) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Relayed(Relayed::new(body, None, counter))
    }

    /// Has what moves in a request's body noted.
    pub fn watch(&mut self, activity: &Arc<Activity>) {
        match self {
            Self::Relayed(relayed) => {
                activity.expect_upload();
                relayed.activity = Some(Arc::clone(activity));
            }
            Self::Kept(_) | Self::Empty | Self::Text(_) | Self::Watched(_) | Self::Tunnel(_) => {}
        }
    }

    /// What is known of the body from now on; `None` where there is nothing of it to come.
    pub fn watch_upload(&mut self) -> Option<Upload> {
        match self {
            Self::Relayed(relayed) => Some(relayed.upload.get_or_insert_default().clone()),
            Self::Empty | Self::Text(_) | Self::Kept(_) | Self::Watched(_) | Self::Tunnel(_) => {
                None
            }
        }
    }

    /// Adds the bytes of a request's body to a counter.
    pub fn count(&mut self, counter: Arc<AtomicU64>) {
        match self {
            Self::Relayed(relayed) => relayed.counter = Some(counter),
            Self::Empty | Self::Text(_) | Self::Kept(_) | Self::Watched(_) | Self::Tunnel(_) => {}
        }
    }

    /// Keeps the body, up to so many bytes, so that it can be sent again. Nothing and texts of our
    /// own need no keeping: `Err` gives them back.
    pub fn keep(self, limit: usize) -> Result<Kept, Self> {
        match self {
            Self::Relayed(relayed) => {
                let Relayed {
                    body,
                    counter,
                    activity,
                    upload,
                    ..
                } = relayed;
                Ok(Kept::new(body, (counter, activity, upload), limit))
            }
            Self::Empty | Self::Text(_) | Self::Kept(_) | Self::Watched(_) | Self::Tunnel(_) => {
                Err(self)
            }
        }
    }
}

impl<G> Relayed<G> {
    fn new(body: Incoming, guard: Option<G>, counter: Option<Arc<AtomicU64>>) -> Self {
        Self {
            body,
            guard,
            counter,
            activity: None,
            upload: None,
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<G: BodyGuard> ProxyBody<G> {
    /// Whether a connection to the application carries nothing else until the body has ended.
    pub(super) fn holds_connection(&self) -> bool {
        match self {
            Self::Relayed(relayed) => {
                let guard = relayed.guard.as_ref();
                guard.is_some_and(BodyGuard::holds_connection)
            }
            Self::Empty | Self::Text(_) | Self::Kept(_) | Self::Watched(_) | Self::Tunnel(_) => {
                false
            }
        }
    }

    /// Its reader took nothing of it for too long, and drops it now.
    pub(super) fn stalled(&mut self) {
        if let Self::Relayed(relayed) = self
            && let Some(guard) = relayed.guard.take()
        {
            guard.on_stall();
        }
    }
}

impl<G: BodyGuard> Relayed<G> {
    /// Nothing moves any more: what it comes from is given up.
    pub(super) fn cut(mut self) {
        if let Some(guard) = self.guard.take() {
            guard.on_silence();
        }
    }

    /// Why it has broken, where that is known already: nothing is taken.
    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Poll::Ready(error) = self.body.poll_broken(cx) else {
            return match &self.activity {
                Some(activity) => activity.poll_cut(cx),
                None => Poll::Pending,
            };
        };
        if let Some(upload) = &self.upload {
            upload.note_broken(&error);
        }
        if let Some(guard) = self.guard.take() {
            guard.on_error(&error);
        }
        Poll::Ready(error)
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(upload) = &self.upload {
            upload.note(&polled, &self.body);
        }
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    if let Some(guard) = &mut self.guard {
                        guard.on_data(data.len());
                    }
                    if let Some(counter) = &self.counter {
                        counter.fetch_add(data.len() as u64, Ordering::Relaxed);
                    }
                    // Nobody polls past a frame that completes the length.
                    if self.body.is_end_stream()
                        && let Some(guard) = self.guard.take()
                    {
                        guard.on_end(None);
                    }
                } else if let Some(trailers) = frame.trailers_ref()
                    && let Some(guard) = self.guard.take()
                {
                    guard.on_end(Some(trailers));
                }
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(guard) = self.guard.take() {
                    guard.on_error(error);
                }
            }
            Poll::Ready(None) => {
                if let Some(guard) = self.guard.take() {
                    guard.on_end(None);
                }
            }
        }
        polled
    }
}

impl<G: BodyGuard> Body for ProxyBody<G> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Relayed(relayed) => {
                let polled = relayed.poll_frame(cx);
                match &relayed.activity {
                    None => polled,
                    Some(activity) => {
                        let ended = relayed.body.is_end_stream();
                        activity.note_upload(cx, polled, ended)
                    }
                }
            }
            Self::Kept(kept) => kept.poll_frame(cx),
            Self::Watched(watched) => watched.poll_frame(cx),
            Self::Tunnel(tunnel) => tunnel.poll_frame(cx).map_err(BodyError::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_none(),
            Self::Relayed(relayed) => relayed.is_end_stream(),
            Self::Kept(kept) => kept.is_end_stream(),
            Self::Watched(watched) => watched.is_end_stream(),
            Self::Tunnel(tunnel) => tunnel.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // That it is empty says its end. A length of 0 would be written as a field that the sender
            // of the message has not written.
            Self::Empty => SizeHint::default(),
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Relayed(relayed) => relayed.size_hint(),
            Self::Kept(kept) => kept.size_hint(),
            Self::Watched(watched) => watched.size_hint(),
            Self::Tunnel(_) => SizeHint::default(),
        }
    }
}
