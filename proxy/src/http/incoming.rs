//! Bodies as they arrive, whatever protocol they arrive in, and why they or their message failed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body::{Body, Frame, SizeHint};
use weft_core::h1::LengthMismatch;
use weft_core::h2::connection::OpenError;
use weft_core::h2::frame::ErrorCode;
use weft_core::headers::clean_trailers;
use weft_core::reason::Reason;

use super::body::{BodyGuard, ProxyBody};
use super::h1::client::ClientError;
use super::h1::{Broken, Http1Body};
use super::h2::{Failed, Outbound, Stop, StreamBody, StreamFailure, TunnelAborted};
use super::http2_body::Http2Body;

/// Data frames that are shorter are put together as far as more has been received. Each one costs its
/// receiver about as many bytes in HTTP/2, and some end a connection, which others share, when too many
/// of them wait to be read.
const SMALL_BYTES: usize = 256;
/// They are put together up to about this size.
const GATHERED_BYTES: usize = 4096;

/// The body of a message that is being received.
#[derive(Debug)]
pub struct Incoming {
    source: Source,
    /// What came after small pieces that were put together: nothing of it is data.
    next: Option<Box<Next>>,
}

type Next = Option<Result<Frame<Bytes>, BodyError>>;

#[derive(Debug)]
enum Source {
    Http2(Http2Body),
    Http1(Http1Body),
}

impl From<Http1Body> for Incoming {
    fn from(body: Http1Body) -> Self {
        Self {
            source: Source::Http1(body),
            next: None,
        }
    }
}

impl From<StreamBody> for Incoming {
    fn from(body: StreamBody) -> Self {
        Self::http2(Http2Body::plain(body))
    }
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let polled = match self {
            Self::Http2(body) => body.poll_frame(cx),
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
        };
        polled.map_ok(cleaned)
    }

    /// The next piece, where that is here already. Where it is not, nobody waits for it yet.
    fn poll_here(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let polled = match self {
            Self::Http2(body) => body.poll_here(cx),
            Self::Http1(body) => body.poll_here(cx),
        };
        polled.map_ok(cleaned)
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match self {
            Self::Http2(body) => body.poll_broken(cx),
            Self::Http1(body) => body.poll_broken(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http2(body) => body.is_end_stream(),
            Self::Http1(body) => body.is_end_stream(),
        }
    }
}

impl Incoming {
    /// Received in HTTP/2.
    pub(super) fn http2(body: Http2Body) -> Self {
        Self {
            source: Source::Http2(body),
            next: None,
        }
    }

    /// Bounds how long nothing of a request's body in HTTP/2 may come while its reader waits. In
    /// HTTP/1.1 its connection does that.
    pub(crate) fn bound_waiting(&mut self, limit: Duration) {
        match &mut self.source {
            Source::Http2(body) => body.bound_waiting(limit),
            Source::Http1(_) => {}
        }
    }

    /// Why it has broken, where that is known already: nothing is taken. Whoever is told drops it.
    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let broken = |next: &mut Box<Next>| matches!(**next, Some(Err(_)));
        match (self.next.take_if(broken).map(|next| *next), &self.next) {
            (Some(Some(Err(error))), _) => Poll::Ready(error),
            // The source has nothing more to say.
            (_, Some(_)) => Poll::Pending,
            (_, None) => self.source.poll_broken(cx),
        }
    }

    /// Puts what else is here to a small piece. Its reader may have no room for more than that: it does not
    /// wait for its client, whose fault it would be that nothing comes.
    fn gather(&mut self, cx: &mut Context<'_>, first: Bytes) -> Bytes {
        let mut gathered = BytesMut::new();
        while first.len() + gathered.len() < GATHERED_BYTES && !self.source.is_end_stream() {
            let Poll::Ready(next) = self.source.poll_here(cx) else {
                break;
            };
            match next {
                Some(Ok(frame)) if frame.is_data() => {
                    let Ok(data) = frame.into_data() else { break };
                    if gathered.is_empty() {
                        gathered.extend_from_slice(&first);
                    }
                    gathered.extend_from_slice(&data);
                }
                next => {
                    self.next = Some(Box::new(next));
                    break;
                }
            }
        }
        match gathered.is_empty() {
            true => first,
            false => gathered.freeze(),
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = self.get_mut();
        if let Some(next) = me.next.take() {
            return Poll::Ready(*next);
        }
        let frame = match ready!(me.source.poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            end => return Poll::Ready(end),
        };
        let small = |data: &Bytes| data.len() < SMALL_BYTES;
        if !frame.data_ref().is_some_and(small) {
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = match frame.into_data() {
            Ok(first) => Frame::data(me.gather(cx, first)),
            Err(other) => other,
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self.next.as_deref() {
            None => self.source.is_end_stream(),
            Some(next) => next.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Http2(body) => body.size_hint(),
            Source::Http1(body) => body.size_hint(),
        }
    }
}

/// A frame without what may not be a trailer: neither a caller nor an application says with one what
/// only the mesh may, or changes what its head said.
fn cleaned(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            clean_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(other) => other,
    }
}

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The stream that it comes from has failed.
    #[error(transparent)]
    Stream(StreamFailure),
    /// The HTTP/1.1 connection that it comes from broke, or its framing did.
    #[error("{broken}")]
    Http1 {
        /// How.
        broken: Broken,
        /// What the stream is reset with where the body goes on in HTTP/2.
        reset: ErrorCode,
    },
    /// It is longer or shorter than its head said.
    #[error(transparent)]
    Length(#[from] LengthMismatch),
    /// It is a tunnel's, which was broken off.
    #[error(transparent)]
    Tunnel(#[from] TunnelAborted),
    /// Another attempt sends it.
    #[error("another attempt sends the body")]
    Superseded,
    /// Nothing moved in the stream for too long.
    #[error("nothing moved in the stream for too long")]
    Silent,
}

/// Whose doing the early end of a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFault {
    /// Of the peer that sends the body: it went away, reset the stream or broke the framing. Of a
    /// request's body that is the caller, of a response's the endpoint.
    Sender,
    /// Of the mesh: a policy ended the stream, or another attempt has taken the body over.
    Mesh,
}

impl BodyError {
    /// Of a request: its caller gave it up.
    pub(super) fn of_request(broken: Broken) -> Self {
        let reset = ErrorCode::CANCEL;
        Self::Http1 { broken, reset }
    }

    /// Of a response: the server failed.
    pub(super) fn of_response(broken: Broken) -> Self {
        let reset = ErrorCode::INTERNAL_ERROR;
        Self::Http1 { broken, reset }
    }

    /// What its stream is reset with where it goes on in HTTP/2.
    fn reset_code(&self) -> ErrorCode {
        match self {
            Self::Stream(failure) => failure.reset_code(),
            Self::Http1 { reset, .. } => *reset,
            Self::Tunnel(_) => ErrorCode::CANCEL,
            Self::Length(_) | Self::Superseded | Self::Silent => ErrorCode::INTERNAL_ERROR,
        }
    }

    /// Whose doing it is.
    pub fn fault(&self) -> BodyFault {
        match self {
            Self::Stream(_) | Self::Http1 { .. } | Self::Length(_) => BodyFault::Sender,
            Self::Superseded | Self::Silent | Self::Tunnel(_) => BodyFault::Mesh,
        }
    }

    /// Whether its trailers are larger than allowed.
    pub(crate) fn is_too_large(&self) -> bool {
        match self {
            Self::Http1 {
                broken: Broken::Malformed(malformed),
                ..
            } => malformed.reason() == Reason::HeadersTooLarge,
            Self::Stream(failure) => failure.is_too_large(),
            Self::Http1 { .. }
            | Self::Tunnel(_)
            | Self::Length(_)
            | Self::Superseded
            | Self::Silent => false,
        }
    }

    /// Whether nothing came of it for too long while its reader waited.
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(
            self,
            Self::Http1 {
                broken: Broken::Stalled(_),
                ..
            }
        )
    }

    /// The reason of a request whose body ends so.
    pub(crate) fn request_reason(&self) -> Reason {
        if self.is_too_large() {
            Reason::HeadersTooLarge
        } else if self.is_stalled() {
            Reason::ClientTimeout
        } else {
            Reason::ClientGone
        }
    }

    /// The reason of a response that ends so.
    pub(crate) fn response_reason(&self) -> Reason {
        match self.is_too_large() {
            true => Reason::HeadersTooLarge,
            false => Reason::UpstreamReset,
        }
    }
}

/// Why there is no response to a request.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// HTTP/2: the stream or its connection failed.
    #[error(transparent)]
    Stream(StreamFailure),
    /// HTTP/1.1: the connection failed, or what came was no response.
    #[error(transparent)]
    Http1(ClientError),
}

impl ExchangeError {
    /// Whether the server has said that it has not processed the request: it refused the stream, or
    /// is going away and the stream is beyond the last one that it takes (RFC 9113 section 8.7).
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Stream(StreamFailure::Refused)) || self.is_going_away()
    }

    /// Whether the server's connection takes no further requests.
    pub fn is_going_away(&self) -> bool {
        matches!(self, Self::Stream(StreamFailure::GoingAway))
    }

    /// Whether the server takes no such request, over whichever connection: it is not to be sent again.
    pub(crate) fn is_unsendable(&self) -> bool {
        match self {
            Self::Stream(StreamFailure::NotOpened(error)) => match **error {
                OpenError::TooLarge(_) | OpenError::Unsendable(_) => true,
                OpenError::TooMany { .. }
                | OpenError::GoingAway
                | OpenError::NoRoom
                | OpenError::Exhausted
                | OpenError::Server => false,
            },
            Self::Stream(_) | Self::Http1(_) => false,
        }
    }

    /// Whether the server closed a connection in HTTP/1.1 instead of answering.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Http1(ClientError::Closed | ClientError::Io(_)))
    }

    /// Whether what the server sent was not HTTP.
    pub fn is_malformed(&self) -> bool {
        match self {
            Self::Http1(error) => error.is_malformed(),
            Self::Stream(failure) => failure.is_violation(),
        }
    }

    /// The mesh's reason for having no response.
    pub fn reason(&self) -> Reason {
        if let Some(reason) = self.upload_broken() {
            reason
        } else if let Self::Http1(ClientError::Malformed(malformed)) = self {
            malformed.reason()
        } else if let Self::Stream(failure) = self
            && failure.is_too_large()
        {
            Reason::HeadersTooLarge
        } else if self.is_unsendable() {
            Reason::BadRequest
        } else if self.is_malformed() {
            Reason::UpstreamProtocolError
        } else {
            Reason::UpstreamReset
        }
    }

    /// Whether this side broke the exchange off, because the request's body ended early: it says
    /// nothing about the server.
    pub fn is_upload_broken(&self) -> bool {
        self.upload_broken().is_some()
    }

    /// Why the request's body ended early, where that broke the exchange off.
    fn upload_broken(&self) -> Option<Reason> {
        match self {
            Self::Http1(ClientError::Upload(error)) => {
                let by_caller = error.fault() == BodyFault::Sender;
                by_caller.then(|| error.request_reason())
            }
            Self::Stream(StreamFailure::Broken(reason)) => Some(*reason),
            Self::Http1(_) | Self::Stream(_) => None,
        }
    }
}

/// A request that got no response.
#[derive(Debug)]
pub struct SendError {
    /// The request, where nothing of it was sent.
    pub unsent: Option<Box<Request<ProxyBody>>>,
    /// The request with what is left of its body, where something of it was sent in HTTP/1.1.
    pub sent: Option<Box<Request<ProxyBody>>>,
    /// Why.
    pub error: ExchangeError,
}

impl From<Failed<ProxyBody>> for SendError {
    fn from(failed: Failed<ProxyBody>) -> Self {
        Self {
            unsent: failed.unsent,
            sent: None,
            error: ExchangeError::Stream(failed.failure),
        }
    }
}

impl<G: BodyGuard> Outbound for ProxyBody<G> {
    fn reset_code(error: &BodyError) -> ErrorCode {
        error.reset_code()
    }

    fn request_reason(error: &BodyError) -> Reason {
        error.request_reason()
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match self {
            Self::Empty | Self::Text(_) => Poll::Pending,
            Self::Relayed(relayed) => relayed.poll_broken(cx),
            Self::Kept(kept) => kept.poll_broken(cx),
            Self::Watched(watched) => watched.poll_broken(cx),
            Self::Tunnel(tunnel) => tunnel.poll_aborted(cx).map(BodyError::from),
        }
    }

    fn is_bounded(&self) -> bool {
        self.holds_connection()
    }

    fn on_stalled(&mut self) {
        self.stalled();
    }

    fn on_stopped(&mut self, stop: Stop) {
        if let Self::Tunnel(tunnel) = self {
            tunnel.on_stopped(stop);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A request's body says why it broke, in whichever version of HTTP it was sent on.
    #[test]
    fn requests_that_break_are_told_as_what_they_are() {
        for (broken, reason) in [
            (
                Broken::Stalled(Duration::from_secs(50)),
                Reason::ClientTimeout,
            ),
            (
                Broken::Reset(io::ErrorKind::ConnectionReset),
                Reason::ClientGone,
            ),
            (Broken::Answered, Reason::ClientGone),
        ] {
            let body = || BodyError::of_request(broken.clone());
            let http1 = ExchangeError::Http1(ClientError::Upload(body()));
            let why = <ProxyBody as Outbound>::request_reason(&body());
            let http2 = ExchangeError::Stream(StreamFailure::Broken(why));
            for error in [http1, http2] {
                assert!(error.is_upload_broken());
                assert_eq!(error.reason(), reason, "{error}");
            }
        }
    }
}
