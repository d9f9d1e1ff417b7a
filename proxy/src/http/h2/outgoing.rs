//! A message's body on its way into a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::Instant;
use weft_core::h2::connection::{Connection, Progress, StreamKey, TrailersError};
use weft_core::h2::frame::ErrorCode;

/// A body that can be sent.
pub trait Outbound: Body<Data = Bytes> + Unpin {
    /// What its stream is reset with where it breaks.
    fn reset_code(error: &Self::Error) -> ErrorCode;

    /// Whether the other side is bounded in how long it may take nothing of it.
    fn is_bounded(&self) -> bool {
        false
    }

    /// The other side has taken nothing of it for too long. It is dropped next.
    fn on_stalled(&mut self) {}

    /// The other side has said everything and reads no more, which is no failure (RFC 9113 section 8.1).
    /// It is dropped next.
    fn on_unread(&mut self) {}
}

/// A body that is being sent.
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    body: B,
    /// What had no room yet.
    rest: Bytes,
    /// Since when the other side takes not all of that, where it is bounded.
    untaken_since: Option<Instant>,
}

/// How far a body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It waits: for more of it, or for room.
    Waiting,
    /// All of it.
    Done,
    /// It has broken, and its stream was reset.
    Broken,
    /// Its stream has ended before.
    Gone,
}

impl<B: Outbound> Outgoing<B> {
    pub(super) fn new(body: B) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            untaken_since: None,
        }
    }

    /// Since when the other side, which is bounded in that, takes not all of what was there.
    pub(super) fn untaken_since(&self) -> Option<Instant> {
        self.untaken_since
    }

    /// The other side has taken nothing for too long.
    pub(super) fn on_stalled(mut self) {
        self.body.on_stalled();
    }

    /// The other side reads no more, which is no failure.
    pub(super) fn on_unread(mut self) {
        self.body.on_unread();
    }

    /// Sends as much as there is and has room.
    pub(super) fn poll_send(
        &mut self,
        connection: &mut Connection,
        stream: StreamKey,
        cx: &mut Context<'_>,
    ) -> Sent {
        loop {
            if !self.rest.is_empty() {
                let end = self.body.is_end_stream();
                match connection.send_data(stream, &mut self.rest, end) {
                    Ok(Progress::Done) if end => return Sent::Done,
                    Ok(Progress::Done) => self.untaken_since = None,
                    Ok(Progress::Blocked) => {
                        if self.untaken_since.is_none() && self.body.is_bounded() {
                            self.untaken_since = Some(Instant::now());
                        }
                        return Sent::Waiting;
                    }
                    Err(_ended) => return Sent::Gone,
                }
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Sent::Waiting,
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => {
                    connection.reset(stream, B::reset_code(&error));
                    return Sent::Broken;
                }
                Poll::Ready(None) => return end(connection, stream),
            };
            match frame.into_data() {
                // Nobody polls a body past its end.
                Ok(data) if data.is_empty() && self.body.is_end_stream() => {
                    return end(connection, stream);
                }
                Ok(data) => self.rest = data,
                Err(other) => {
                    if let Some(sent) = send_trailers(connection, stream, other) {
                        return sent;
                    }
                }
            }
        }
    }
}

/// Ends a message behind all of its data.
fn end(connection: &mut Connection, stream: StreamKey) -> Sent {
    match connection.send_data(stream, &mut Bytes::new(), true) {
        Ok(_done) => Sent::Done,
        Err(_ended) => Sent::Gone,
    }
}

/// Trailers end a message; `None` where the frame has none.
fn send_trailers(
    connection: &mut Connection,
    stream: StreamKey,
    frame: Frame<Bytes>,
) -> Option<Sent> {
    let trailers = frame.into_trailers().ok()?;
    Some(match connection.send_trailers(stream, &trailers) {
        Ok(()) => Sent::Done,
        Err(TrailersError::Ended(_)) => Sent::Gone,
        Err(TrailersError::TooLarge(error)) => {
            tracing::debug!(%error, "trailers are not sent");
            connection.reset(stream, ErrorCode::INTERNAL_ERROR);
            Sent::Broken
        }
    })
}
