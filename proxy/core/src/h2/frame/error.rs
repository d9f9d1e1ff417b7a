//! Why frames are refused.

use super::code::ErrorCode;
use super::head::{Kind, StreamId};

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The connection is to be closed after a GOAWAY with [`ConnectionError::code`] (RFC 9113 section
    /// 5.4.1). Nothing more is read of it.
    #[error("connection error {code}: {0}", code = .0.code())]
    Connection(#[from] ConnectionError),
    /// The stream is to be closed with a RST_STREAM (section 5.4.2), unless it is idle, where that
    /// would be an error of ours. Other streams go on.
    #[error("stream error {code}: {0}", code = .0.code())]
    Stream(#[from] StreamError),
}

/// An error of which the whole connection is to end. A frame that is too large is always one, also
/// where section 4.2 would allow a stream error: the rest of it would have to be received, and counted
/// in windows, to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the error texts describe the variants and what they carry"
)]
pub enum ConnectionError {
    #[error("byte {at} of the connection is {found:#04x}, which is not in the preface of HTTP/2")]
    Preface { at: usize, found: u8 },
    #[error("the server answers with HTTP/1; HTTP/2 is expected")]
    Http1Answer,
    #[error("the first frame is {kind}; SETTINGS without ACK is expected")]
    FirstFrame { kind: Kind },
    #[error("{kind} has {length} bytes; at most {limit} are allowed")]
    FrameTooLarge { kind: Kind, length: u32, limit: u32 },
    #[error("{kind} has {length} bytes; {allowed} is allowed")]
    Length {
        kind: Kind,
        length: u32,
        allowed: &'static str,
    },
    #[error("{kind} is on stream 0; it belongs to a stream")]
    StreamMissing { kind: Kind },
    #[error("{kind} is on stream {stream}; it belongs to the connection, stream 0")]
    StreamForbidden { kind: Kind, stream: StreamId },
    #[error("{kind} is on stream {stream}; only streams with odd numbers can be open")]
    StreamEven { kind: Kind, stream: StreamId },
    #[error("{kind} of {length} bytes has {padding} bytes of padding; less than fits is allowed")]
    Padding {
        kind: Kind,
        length: u32,
        padding: u8,
    },
    #[error("{kind} comes within the header block of stream {stream}; CONTINUATION is expected")]
    BlockInterrupted { kind: Kind, stream: StreamId },
    #[error("CONTINUATION does not follow HEADERS without END_HEADERS on the same stream")]
    ContinuationUnexpected,
    #[error("the header block of stream {stream} is larger than {limit} bytes")]
    BlockTooLarge { stream: StreamId, limit: u32 },
    #[error("the header block of stream {stream} has more than {limit} CONTINUATION frames")]
    TooManyContinuations { stream: StreamId, limit: u32 },
    #[error("PUSH_PROMISE is not allowed: clients do not push, and no server was asked to")]
    PushPromise,
    #[error("the setting {name} is {value}; {allowed} is allowed")]
    Setting {
        name: &'static str,
        value: u32,
        allowed: &'static str,
    },
    #[error("SETTINGS has {count} settings; at most {limit} are allowed")]
    TooManySettings { count: u32, limit: u32 },
    #[error("WINDOW_UPDATE of the connection is 0; 1 to 2^31-1 is allowed")]
    IncrementZero,
}

impl ConnectionError {
    /// The code for GOAWAY.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::FrameTooLarge { .. } | Self::Length { .. } => ErrorCode::FRAME_SIZE_ERROR,
            Self::BlockTooLarge { .. }
            | Self::TooManyContinuations { .. }
            | Self::TooManySettings { .. } => ErrorCode::ENHANCE_YOUR_CALM,
            // Section 6.5.2: the one setting with a code of its own.
            Self::Setting { name, .. } if name == INITIAL_WINDOW_SIZE => {
                ErrorCode::FLOW_CONTROL_ERROR
            }
            Self::Preface { .. }
            | Self::Http1Answer
            | Self::FirstFrame { .. }
            | Self::StreamMissing { .. }
            | Self::StreamForbidden { .. }
            | Self::StreamEven { .. }
            | Self::Padding { .. }
            | Self::BlockInterrupted { .. }
            | Self::ContinuationUnexpected
            | Self::PushPromise
            | Self::Setting { .. }
            | Self::IncrementZero => ErrorCode::PROTOCOL_ERROR,
        }
    }
}

/// The name of the setting whose values may be a [`ErrorCode::FLOW_CONTROL_ERROR`].
pub(super) const INITIAL_WINDOW_SIZE: &str = "SETTINGS_INITIAL_WINDOW_SIZE";

/// An error of which one stream is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the error texts describe the variants and what they carry"
)]
pub enum StreamError {
    #[error("PRIORITY on stream {stream} has {length} bytes; 5 is allowed")]
    PriorityLength { stream: StreamId, length: u32 },
    #[error("stream {stream} depends on itself by its priority; any other stream is allowed")]
    SelfDependency { stream: StreamId },
    #[error("WINDOW_UPDATE on stream {stream} is 0; 1 to 2^31-1 is allowed")]
    IncrementZero { stream: StreamId },
}

impl StreamError {
    /// The stream that is to end.
    pub fn stream(self) -> StreamId {
        match self {
            Self::PriorityLength { stream, .. }
            | Self::SelfDependency { stream }
            | Self::IncrementZero { stream } => stream,
        }
    }

    /// The code for RST_STREAM.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::PriorityLength { .. } => ErrorCode::FRAME_SIZE_ERROR,
            Self::SelfDependency { .. } | Self::IncrementZero { .. } => ErrorCode::PROTOCOL_ERROR,
        }
    }
}
