//! What a connection tells.

use bytes::Bytes;
use http::HeaderMap;

use super::super::frame::{ErrorCode, StreamId};
use super::super::message::{Malformed, RequestHead, ResponseHead};
use super::streams::StreamKey;
use super::violation::StreamViolation;

/// Something that was received. Of one stream they come in the order of its message.
#[derive(Debug)]
pub enum Event {
    /// A request has opened a stream.
    Request {
        /// The stream.
        stream: StreamKey,
        /// Its head.
        head: Box<RequestHead>,
        /// Whether nothing follows.
        end: bool,
    },
    /// A request has opened a stream, which cannot be understood or is too large. It may be answered,
    /// or reset with the code of what is wrong. Its data follows all the same, unless it is
    /// [discarded](super::Connection::discard).
    BadRequest {
        /// The stream.
        stream: StreamKey,
        /// What is wrong with it.
        malformed: Malformed,
        /// Whether nothing follows.
        end: bool,
    },
    /// An interim response (1xx); the response follows.
    Interim {
        /// The stream.
        stream: StreamKey,
        /// Its head.
        head: Box<ResponseHead>,
    },
    /// The response.
    Response {
        /// The stream.
        stream: StreamKey,
        /// Its head.
        head: Box<ResponseHead>,
        /// Whether nothing follows.
        end: bool,
    },
    /// Data of a message. It counts as held until [`Connection::consumed`](super::Connection::consumed)
    /// is called with its length.
    Data {
        /// The stream.
        stream: StreamKey,
        /// May be empty where it is the end. It shares the receive buffer.
        payload: Bytes,
        /// Whether nothing follows.
        end: bool,
    },
    /// The trailers of a message, which end it.
    Trailers {
        /// The stream.
        stream: StreamKey,
        /// The fields.
        trailers: HeaderMap,
    },
    /// The trailers of a message, which end it, are larger than allowed: the message is broken, and all
    /// of its data came. Its stream is not reset: a server may still answer.
    BadTrailers {
        /// The stream.
        stream: StreamKey,
        /// What is wrong with them.
        malformed: Malformed,
    },
    /// The peer takes nothing more of what is sent on a stream. Its own message has come whole before:
    /// an answer that did not need all of the request (RFC 9113 section 8.1), or a request that was given
    /// up.
    Stopped {
        /// The stream.
        stream: StreamKey,
        /// Why.
        code: ErrorCode,
    },
    /// A stream has ended before its time, and its key names nothing any more. Data of it that was not
    /// consumed counts no longer: whoever has some drops it.
    Reset {
        /// The stream.
        stream: StreamKey,
        /// Who ended it.
        cause: ResetCause,
    },
    /// A stream that the peer wanted to open was reset at once; no other event names it.
    Refused {
        /// The stream.
        stream: StreamId,
        /// Why.
        violation: StreamViolation,
    },
    /// Settings of the peer have come: how many streams may be opened, and how.
    Settings,
    /// A PING of [`Connection::ping`](super::Connection::ping) was answered.
    PingAnswered {
        /// Its payload.
        payload: [u8; 8],
    },
    /// The peer accepts no new streams. Those that it has not processed are reset with
    /// [`ResetCause::Unprocessed`] in the events that follow.
    GoAway {
        /// Why.
        code: ErrorCode,
        /// What it says about it, for people.
        debug: Bytes,
    },
}

/// Who ended a stream before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResetCause {
    /// The peer, by RST_STREAM.
    Peer(ErrorCode),
    /// This side, because of what the peer did.
    Violation(StreamViolation),
    /// The peer, which has not processed the request (RFC 9113 section 6.8): it may be sent again.
    Unprocessed,
}
