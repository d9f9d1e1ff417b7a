//! HTTP/2 frames to bytes and back (RFC 9113 sections 3.4, 4 and 6), without a socket.
//!
//! A connection keeps a [`BytesMut`](bytes::BytesMut) of received bytes and one [`Reader`], and calls
//! [`Reader::read`] until it returns [`Received::NeedMore`]. In the other direction the `write_*`
//! functions append frames to a buffer.
//!
//! Architecture invariant: every input ends in frames or in a [`FrameError`], which says what was
//! found, what is allowed, and whether it ends a stream or the connection. The same bytes mean the
//! same however they are cut. Memory is bounded by [`Limits`]. No frame costs an allocation of its
//! own, except a header block in several frames, which is joined, and the debug data of GOAWAY.
//!
//! # What is checked here, and what is not
//!
//! Checked is everything that a frame and its place among other frames say: the connection preface,
//! lengths, padding, values of settings, frames that need a stream and frames that must not have one,
//! and that nothing comes between HEADERS and its CONTINUATION frames. Neither side of the mesh
//! pushes, so that every stream with an even identifier is idle for ever: a frame on one is refused
//! here too (section 5.1.1). What needs the states of streams (section 5.1) is for the connection:
//! frames on idle or closed streams, the order of new identifiers, windows ([`super::flow`]), and how
//! many frames that do nothing a peer may send; it gets each of them, [`Frame::Ignored`] included.
//!
//! # Data in pieces
//!
//! A DATA frame is returned in pieces as its bytes arrive, all other frames as a whole. Waiting for the
//! whole frame would cost a full frame of memory on every connection, up to 16 MiB where large
//! frames are allowed, and would hold the beginning of a message back until its end is there; and the
//! usual frame of 16 KiB never fits in one TLS record together with its head, so that its last bytes
//! always come later. Nothing is lost: where a frame ends has no meaning for the message, windows count
//! bytes, and whoever forwards several pieces at once writes one head for all of them
//! ([`data_head`]). `END_STREAM` is reported with the last piece, padding with the last piece too.
//!
//! Payloads share the memory of the receive buffer: one byte keeps the whole buffer. Whoever queues
//! small pieces for a long time copies them together.

mod check;
mod code;
mod error;
mod head;
mod limits;
mod payload;
mod reader;
mod settings;
mod size;
mod write;

use std::num::NonZeroU32;

use bytes::Bytes;

pub use code::ErrorCode;
pub use error::{ConnectionError, FrameError, StreamError};
pub use head::{HEAD_BYTES, Kind, StreamId};
pub use limits::Limits;
pub use reader::{Reader, Received, Role};
pub use settings::{Setting, Settings};
pub use size::{FrameSize, WindowSize};
pub use write::{
    data_head, encode_headers, write_data_head, write_goaway, write_headers, write_ping,
    write_ping_ack, write_preface, write_reset_stream, write_settings, write_settings_ack,
    write_window_update,
};

/// The client's connection preface, which a SETTINGS frame follows (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame that was received, or a piece of a DATA frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// DATA (section 6.1), or a piece of it.
    Data(Data),
    /// HEADERS together with its CONTINUATION frames (sections 6.2 and 6.10). Priority is ignored
    /// (section 5.3.2).
    Headers {
        /// The stream.
        stream: StreamId,
        /// The whole field block; it has to be decoded even where the stream is gone (section 4.3).
        block: Bytes,
        /// Whether the sender's half of the stream ends with it.
        end_stream: bool,
        /// Whether its priority makes the stream depend on itself, which is an error of the stream (RFC
        /// 7540 section 5.3.1).
        depends_on_itself: bool,
    },
    /// RST_STREAM (section 6.4). On an idle stream it is a connection error, which the connection
    /// finds.
    ResetStream {
        /// The stream.
        stream: StreamId,
        /// Why.
        code: ErrorCode,
    },
    /// SETTINGS (section 6.5); an acknowledgement has to follow.
    Settings(Settings),
    /// SETTINGS with ACK: the oldest settings sent that were not acknowledged are in force.
    SettingsAck,
    /// PING (section 6.7); the same payload has to be sent back.
    Ping {
        /// Anything.
        payload: [u8; 8],
    },
    /// PING with ACK.
    PingAck {
        /// The payload of the PING that is answered.
        payload: [u8; 8],
    },
    /// GOAWAY (section 6.8).
    GoAway {
        /// The last stream that was or may be processed; `None` where there is none.
        last_stream: Option<StreamId>,
        /// Why.
        code: ErrorCode,
        /// Additional debug data, cut to [`Limits::goaway_debug_bytes`].
        debug: Bytes,
    },
    /// WINDOW_UPDATE (section 6.9).
    WindowUpdate {
        /// The stream; `None` for the connection's window.
        stream: Option<StreamId>,
        /// Bytes by which the window grows, at most 2^31-1.
        increment: NonZeroU32,
    },
    /// A frame without effect: PRIORITY (sections 5.3.2 and 6.3), and types that are not known here,
    /// such as PRIORITY_UPDATE, ALTSVC and ORIGIN (section 5.5). It is reported for peers that send
    /// too many to be noticed.
    Ignored {
        /// Its type.
        kind: Kind,
        /// Its stream, if any.
        stream: Option<StreamId>,
    },
}

/// A DATA frame or a piece of one (section 6.1). Only a frame without data, and the last piece of one
/// with padding, have an empty payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// The stream.
    pub stream: StreamId,
    /// The next bytes of the message; they share the receive buffer.
    pub payload: Bytes,
    /// Bytes that are not part of the message but of the frame's length: the Pad Length field and the
    /// padding. 0 to 256, and 0 in every piece but the last.
    pub padding: u32,
    /// Whether the sender's half of the stream ends with it; false in every piece but the last.
    pub end_stream: bool,
}

impl Data {
    /// Bytes that count in both windows (section 6.9.1); those of all pieces together are the
    /// frame's length.
    pub fn flow_controlled_bytes(&self) -> u32 {
        // A payload is part of a frame, whose length has 24 bits.
        self.payload.len() as u32 + self.padding
    }
}

#[cfg(test)]
mod tests;
