//! A message's body on its way into a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::Instant;
use weft_core::h2::connection::{Connection, Progress, StreamKey, TrailersError};
use weft_core::h2::frame::ErrorCode;
use weft_core::reason::Reason;

/// A body that can be sent.
pub trait Outbound: Body<Data = Bytes> + Unpin {
    /// What its stream is reset with where it breaks.
    fn reset_code(error: &Self::Error) -> ErrorCode;

    /// Why a request is given up whose body it is, where it breaks.
    fn request_reason(error: &Self::Error) -> Reason;

    /// Why it has broken, where that is known already; nothing is taken of it. Whoever is told drops it.
    /// Asked while there is no room for what was taken of it: its other side is to hear of that at once.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Self::Error>;

    /// Whether the other side is bounded in how long it may take nothing of it.
    fn is_bounded(&self) -> bool {
        false
    }

    /// The other side has taken nothing of it for too long. It is dropped next.
    fn on_stalled(&mut self) {}

    /// The other side has said everything and takes no more of it. It is dropped next.
    fn on_stopped(&mut self, _stop: Stop) {}
}

/// How the other side, which has said everything, stops what is sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A server needs no more of the request that it has answered, which is no failure (RFC 9113 section 8.1).
    Unread,
    /// It has reset the stream.
    Reset,
}

/// A body that is being sent.
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    body: B,
    /// What had no room yet.
    rest: Bytes,
    /// Whether the other side is bounded in how long it may take nothing, whatever the body says.
    is_bounded: bool,
    /// Since when the other side takes nothing of that, where it is bounded.
    untaken_since: Option<Instant>,
}

/// How far a body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It waits: for more of it, or for room.
    Waiting,
    /// All of it.
    Done,
    /// It has broken, and its stream was reset: that of a request for this reason.
    Broken(Reason),
    /// Its stream has ended before.
    Gone,
}

impl<B: Outbound> Outgoing<B> {
    pub(super) fn new(body: B) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            is_bounded: false,
            untaken_since: None,
        }
    }

    /// Since when the other side, which is bounded in that, takes nothing of what is there.
    pub(super) fn untaken_since(&self) -> Option<Instant> {
        self.untaken_since
    }

    /// From now on the other side is bounded in how long it may take nothing.
    pub(super) fn bound(&mut self) {
        self.is_bounded = true;
        if !self.rest.is_empty() {
            self.untaken_since.get_or_insert_with(Instant::now);
        }
    }

    /// The other side has taken nothing for too long.
    pub(super) fn on_stalled(mut self) {
        self.body.on_stalled();
    }

    /// The other side takes no more.
    pub(super) fn on_stopped(mut self, stop: Stop) {
        self.body.on_stopped(stop);
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
                let (end, before) = (self.body.is_end_stream(), self.rest.len());
                match connection.send_data(stream, &mut self.rest, end) {
                    Ok(Progress::Done) if end => return Sent::Done,
                    Ok(Progress::Done) => self.untaken_since = None,
                    Ok(Progress::Blocked) => {
                        self.on_blocked(before);
                        let Poll::Ready(error) = self.body.poll_broken(cx) else {
                            return Sent::Waiting;
                        };
                        return broken::<B>(connection, stream, &error);
                    }
                    Err(_ended) => return Sent::Gone,
                }
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Sent::Waiting,
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return broken::<B>(connection, stream, &error),
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

    /// There is no room for the rest, of which there was more before. Whatever went begins the time anew, as
    /// whatever a connection takes does in HTTP/1.1.
    fn on_blocked(&mut self, before: usize) {
        let has_moved = self.rest.len() < before;
        let is_bounded = self.is_bounded || self.body.is_bounded();
        if is_bounded && (has_moved || self.untaken_since.is_none()) {
            self.untaken_since = Some(Instant::now());
        }
    }
}

/// Resets the stream of a message whose body has broken.
fn broken<B: Outbound>(connection: &mut Connection, stream: StreamKey, error: &B::Error) -> Sent {
    connection.reset(stream, B::reset_code(error));
    Sent::Broken(B::request_reason(error))
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
            Sent::Broken(Reason::HeadersTooLarge)
        }
    })
}
