//! Bodies that are sent in HTTP/1.1.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame};
use tokio::io::AsyncWrite;
use tokio::time::{Sleep, sleep};
use weft_core::h1::{Encoder, Framing};

use super::wire::Wire;
use crate::http::BodyError;

/// A body on its way to a connection. It is asked for more only while the connection takes it.
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    body: B,
    /// `None` once the end has been queued.
    encoder: Option<Encoder>,
    /// Whether its length is 0.
    is_empty: bool,
    /// Set once nothing but its end is waited for.
    overdue: Option<Pin<Box<Sleep>>>,
    /// Whether anything was taken from the body.
    pub(super) touched: bool,
}

/// Time in which a body of length 0 ends whose recipient has its message already. Then nobody waits for it
/// any more.
const END_WAIT: Duration = Duration::from_secs(1);

/// Why a body is not sent to its end.
#[derive(Debug)]
pub(super) enum Cut {
    /// It ended early.
    Body(BodyError),
    /// The connection broke.
    Io(io::Error),
}

/// What is known of a body's end before it is sent.
pub(super) fn framing<B: Body>(headers: &HeaderMap, body: &B) -> Framing {
    if body.is_end_stream() {
        return Framing::None;
    }
    let said = || headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    match body.size_hint().exact().or_else(said) {
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Outgoing<B> {
    /// A body in the framing that the recipient was told.
    pub(super) fn new(body: B, framing: Framing) -> Self {
        // One of length 0 may have an end that is still to come: whoever sends it is told of that, too.
        let is_over = match framing {
            Framing::None => true,
            Framing::Length(0) => body.is_end_stream(),
            Framing::Length(_) | Framing::Chunked | Framing::UntilClose => false,
        };
        Self {
            body,
            encoder: (!is_over).then(|| Encoder::new(framing)),
            is_empty: framing == Framing::Length(0),
            overdue: None,
            touched: false,
        }
    }

    /// Whether all of it has been queued.
    pub(super) fn is_queued(&self) -> bool {
        self.encoder.is_none()
    }

    /// Whether nothing is waited for but the end of a body of length 0, and for too long.
    fn is_end_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_empty {
            return false;
        }
        let overdue = self
            .overdue
            .get_or_insert_with(|| Box::pin(sleep(END_WAIT)));
        overdue.as_mut().poll(cx).is_ready()
    }

    /// Gives back a body of which nothing was taken.
    pub(super) fn into_body(self) -> B {
        self.body
    }

    /// Queues and writes; ready when all of it has been written.
    pub(super) fn poll<IO: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire<IO>,
    ) -> Poll<Result<(), Cut>> {
        loop {
            let mut starved = false;
            while self.encoder.is_some() && wire.has_room() {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => {
                        starved = true;
                        break;
                    }
                    Poll::Ready(frame) => {
                        self.touched = true;
                        if let Err(error) = self.queue(frame.transpose(), wire) {
                            return Poll::Ready(Err(Cut::Body(error)));
                        }
                    }
                }
            }
            match wire.poll_flush(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Cut::Io(error))),
                Poll::Ready(Ok(())) if self.encoder.is_none() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if starved && self.is_end_overdue(cx) => {
                    self.encoder = None;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(())) if starved => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    fn queue<IO>(
        &mut self,
        frame: Result<Option<Frame<Bytes>>, BodyError>,
        wire: &mut Wire<IO>,
    ) -> Result<(), BodyError> {
        let Some(frame) = frame? else {
            return self.end(None, wire);
        };
        match frame.into_data() {
            Ok(data) => {
                let Some(encoder) = &mut self.encoder else {
                    return Ok(());
                };
                let around = encoder.data(data.len())?;
                wire.out().extend_from_slice(&around.before);
                wire.queue(data);
                wire.out().extend_from_slice(around.after);
                if self.body.is_end_stream() {
                    return self.end(None, wire);
                }
                Ok(())
            }
            Err(frame) => self.end(frame.trailers_ref(), wire),
        }
    }

    fn end<IO>(
        &mut self,
        trailers: Option<&HeaderMap>,
        wire: &mut Wire<IO>,
    ) -> Result<(), BodyError> {
        match self.encoder.take() {
            Some(encoder) => Ok(encoder.end(trailers, wire.out())?),
            None => Ok(()),
        }
    }
}
