//! Why a stream, or a whole connection, has failed.

use std::io;
use std::sync::Arc;

use weft_core::h2::connection::{ConnectionViolation, OpenError, ResetCause, StreamViolation};
use weft_core::h2::frame::ErrorCode;
use weft_core::h2::message::Malformed;
use weft_core::reason::Reason;

/// Why nothing more comes on a stream.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamFailure {
    /// The other side has reset it.
    #[error("the stream was reset: {0}")]
    Reset(ErrorCode),
    /// The other side has refused it, and not processed it: it may be sent again (RFC 9113 section 8.7).
    #[error("the stream was refused")]
    Refused,
    /// The other side ends the connection, and has not processed it: it may be sent again (section 6.8).
    #[error("the stream was not processed: the server is going away")]
    GoingAway,
    /// What came on it was malformed.
    #[error("{0}")]
    Violation(Arc<StreamViolation>),
    /// This side has given it up, because the message that it sends has broken: a request for this reason.
    #[error("the message that is sent has broken ({0})")]
    Broken(Reason),
    /// The client has gone away in the middle of its request.
    #[error("the client is gone")]
    ClientGone,
    /// It has ended, or its connection has in order.
    #[error("the stream has ended")]
    Ended,
    /// No stream could be opened; nothing was sent.
    #[error("{0}")]
    NotOpened(Arc<OpenError>),
    /// The other side has broken a rule of the connection.
    #[error("the connection has ended: {0}")]
    Connection(Arc<ConnectionViolation>),
    /// The connection is gone.
    #[error("the connection was lost: {0}")]
    Io(Arc<io::Error>),
}

impl From<ResetCause> for StreamFailure {
    fn from(cause: ResetCause) -> Self {
        match cause {
            ResetCause::Peer(ErrorCode::REFUSED_STREAM) => Self::Refused,
            ResetCause::Peer(code) => Self::Reset(code),
            ResetCause::Unprocessed => Self::GoingAway,
            ResetCause::Violation(violation) => Self::Violation(Arc::new(violation)),
        }
    }
}

impl StreamFailure {
    /// Whether the other side broke a rule of HTTP.
    pub(crate) fn is_violation(&self) -> bool {
        match self {
            Self::Violation(_) | Self::Connection(_) => true,
            Self::Reset(_)
            | Self::Refused
            | Self::GoingAway
            | Self::Broken(_)
            | Self::ClientGone
            | Self::Ended
            | Self::NotOpened(_)
            | Self::Io(_) => false,
        }
    }

    /// Whether a head or trailers are larger than allowed.
    pub(crate) fn is_too_large(&self) -> bool {
        match self {
            Self::Violation(violation) => matches!(
                &**violation,
                StreamViolation::Malformed(malformed)
                    if malformed.reason() == Reason::HeadersTooLarge
            ),
            Self::NotOpened(error) => matches!(**error, OpenError::TooLarge(_)),
            Self::Reset(_)
            | Self::Refused
            | Self::GoingAway
            | Self::Broken(_)
            | Self::ClientGone
            | Self::Ended
            | Self::Connection(_)
            | Self::Io(_) => false,
        }
    }

    /// What another stream is reset with, to which the message goes on: what this one was reset with,
    /// CANCEL where a client went away, and INTERNAL_ERROR where a server did.
    pub(crate) fn reset_code(&self) -> ErrorCode {
        match self {
            Self::Reset(code) => *code,
            Self::Refused => ErrorCode::REFUSED_STREAM,
            // It is right but for its size.
            Self::Violation(_) if self.is_too_large() => ErrorCode::INTERNAL_ERROR,
            Self::Violation(violation) => violation.code(),
            Self::Connection(violation) => violation.code(),
            Self::ClientGone | Self::Broken(_) => ErrorCode::CANCEL,
            Self::GoingAway | Self::Ended | Self::NotOpened(_) | Self::Io(_) => {
                ErrorCode::INTERNAL_ERROR
            }
        }
    }

    /// A message that is malformed.
    pub(super) fn of(malformed: Malformed) -> Self {
        Self::Violation(Arc::new(malformed.into()))
    }

    /// The connection is gone.
    pub(super) fn io(error: &io::Error) -> Self {
        Self::Io(Arc::new(io::Error::new(error.kind(), error.to_string())))
    }
}
