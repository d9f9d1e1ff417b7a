//! What a peer did wrong beyond single frames.

use super::super::flow::FlowControlError;
use super::super::frame::{ConnectionError, ErrorCode, Kind, StreamError, StreamId};
use super::super::hpack::CompressionError;
use super::super::message::Malformed;

/// Why a connection has ended; the peer is told by GOAWAY (RFC 9113 section 5.4.1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionViolation {
    /// A frame, or its place.
    #[error(transparent)]
    Frame(#[from] ConnectionError),
    /// A field block.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// The connection's window, or those of its streams by a setting.
    #[error("flow control of the connection: {0}")]
    FlowControl(FlowControlError),
    /// A frame on a stream that nobody has opened.
    #[error("{kind} is on stream {stream}, which is idle; HEADERS opens a stream")]
    IdleStream {
        /// The frame.
        kind: Kind,
        /// The stream.
        stream: StreamId,
    },
    /// A frame that would end its stream, which nobody has opened.
    #[error("{0}; the stream is idle")]
    IdleStreamFrame(StreamError),
    /// HEADERS on a stream that had ended.
    #[error("HEADERS is on stream {stream}, which has ended; a new stream has a higher number")]
    EndedStream {
        /// The stream.
        stream: StreamId,
    },
    /// HEADERS on a stream that was passed over.
    #[error("stream {stream} is opened after stream {highest}; numbers have to increase")]
    StreamOrder {
        /// The stream.
        stream: StreamId,
        /// The highest one that was opened.
        highest: StreamId,
    },
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL was taken back (RFC 8441 section 3).
    #[error("SETTINGS_ENABLE_CONNECT_PROTOCOL is 0 after it was 1; 1 is allowed")]
    ConnectProtocolWithdrawn,
    /// SETTINGS with ACK, of which nothing was outstanding.
    #[error("SETTINGS are acknowledged that were not sent")]
    SettingsAckUnexpected,
    /// Whoever drives the connection has ended it.
    #[error("{reason}")]
    Aborted {
        /// The code for GOAWAY.
        code: ErrorCode,
        /// Why, for people.
        reason: &'static str,
    },
    /// Too many frames that carry nothing.
    #[error("too many frames without effect, the last one {kind}")]
    Flood {
        /// The last of them.
        kind: Kind,
    },
}

impl ConnectionViolation {
    /// The code for GOAWAY.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Frame(error) => error.code(),
            Self::Compression(_) => ErrorCode::COMPRESSION_ERROR,
            Self::FlowControl(error) => error.code(),
            Self::IdleStreamFrame(error) => error.code(),
            Self::EndedStream { .. } => ErrorCode::STREAM_CLOSED,
            Self::Flood { .. } => ErrorCode::ENHANCE_YOUR_CALM,
            Self::Aborted { code, .. } => *code,
            Self::IdleStream { .. }
            | Self::StreamOrder { .. }
            | Self::ConnectProtocolWithdrawn
            | Self::SettingsAckUnexpected => ErrorCode::PROTOCOL_ERROR,
        }
    }
}

/// Why a stream was reset by this side (RFC 9113 section 5.4.2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamViolation {
    /// A frame.
    #[error(transparent)]
    Frame(StreamError),
    /// A head, trailers, or a body that does not fit its head (section 8.1.1).
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The stream's window.
    #[error("flow control of the stream: {0}")]
    FlowControl(#[from] FlowControlError),
    /// A frame after END_STREAM.
    #[error("{kind} comes after END_STREAM; WINDOW_UPDATE, PRIORITY and RST_STREAM are allowed")]
    Ended {
        /// The frame.
        kind: Kind,
    },
    /// DATA before the head.
    #[error("DATA comes before HEADERS; a message begins with HEADERS")]
    DataBeforeHead,
    /// One stream more than SETTINGS_MAX_CONCURRENT_STREAMS; nothing of it was processed.
    #[error("there are {limit} streams; no more are allowed at the same time")]
    TooMany {
        /// What is allowed.
        limit: u32,
    },
}

impl StreamViolation {
    /// The code for RST_STREAM.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Frame(error) => error.code(),
            Self::FlowControl(error) => error.code(),
            Self::Ended { .. } => ErrorCode::STREAM_CLOSED,
            Self::TooMany { .. } => ErrorCode::REFUSED_STREAM,
            Self::Malformed(malformed) => malformed.code(),
            Self::DataBeforeHead => ErrorCode::PROTOCOL_ERROR,
        }
    }
}
