//! Flow-control windows (RFC 9113 sections 5.2 and 6.9), as numbers without a connection.
//!
//! A connection keeps one [`SendWindow`] and one [`ReceiveWindow`] for itself and one of each for
//! every stream. What counts is the whole payload of DATA frames, padding included, and nothing else:
//! [`Data::flow_controlled_bytes`](super::frame::Data::flow_controlled_bytes).
//!
//! Memory is bounded by receive windows: a peer never has more bytes in flight and in queues here than
//! the window's size, because capacity is given back only for bytes that the application has taken.

mod receive;
mod send;

pub use receive::ReceiveWindow;
pub use send::SendWindow;

use super::frame::ErrorCode;

/// A violation of flow control by the peer: a stream error where the window is a stream's, a connection
/// error where it is the connection's or where a change of settings made it (sections 6.9.1 and
/// 6.9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlowControlError {
    /// A window grows beyond 2^31-1 bytes.
    #[error("the window is {window} bytes and grows by {increase}; at most 2^31-1 is allowed")]
    Overflow {
        /// Bytes before.
        window: i32,
        /// Bytes to add.
        increase: u32,
    },
    /// More was received than the window allowed.
    #[error("{received} bytes of DATA were received; {allowed} were allowed")]
    Exceeded {
        /// Bytes of the frame, or of the piece of it.
        received: u32,
        /// Bytes that were left.
        allowed: u32,
    },
}

impl FlowControlError {
    /// The code for RST_STREAM or GOAWAY.
    pub fn code(self) -> ErrorCode {
        ErrorCode::FLOW_CONTROL_ERROR
    }
}

#[cfg(test)]
mod tests;
