//! HTTP/1.1 messages to bytes and back (RFC 9112), without a socket.
//!
//! A connection keeps a [`BytesMut`](bytes::BytesMut) of received bytes and one [`HeadScan`]. It
//! calls [`parse_request`] or [`parse_response`] until they return a head, makes a [`Decoder`] of
//! the head's [`Framing`] and calls it until [`Decoded::End`]; what is left in the buffer belongs
//! to the next message. In the other direction [`encode_request`] or [`encode_response`] write a
//! head and return the framing that the recipient was told; an [`Encoder`] of that framing writes
//! the body. Bytes that are left after a final response answer no request: such a connection is
//! closed rather than used again.
//!
//! Architecture invariant: every input ends in a message or in a [`Malformed`], which says what was
//! found, what is allowed, whose fault it is and what the mesh answers. The same bytes give the
//! same result however they are cut. Memory is bounded by [`Limits`].
//!
//! # What is refused, what is mended
//!
//! A request is read strictly, because the next recipient might read it differently: a bare line
//! feed or carriage return, a folded line, white space before a colon, two ways of framing and two
//! hosts are refused. A response is the application's own: lines that end in a bare line feed are
//! accepted, white space before a colon is removed (RFC 9112 section 5.1), folded lines are joined
//! (section 5.2), and `Transfer-Encoding` overrides `Content-Length` (section 6.3). Chunks and
//! trailers are read strictly in both.
//!
//! Removing fields for one hop, and fields that only the mesh may set, is [`crate::headers`]'s job:
//! a parsed head has them all. The encoders however never copy `Connection`, `Content-Length`,
//! `Transfer-Encoding`, `Keep-Alive` and `Proxy-Connection`; they write what is true for the
//! message they write.

mod body;
mod decode;
mod encode;
mod field;
mod framing;
mod head;
mod limits;
mod malformed;
mod plain;
mod scan;
mod target;

pub use body::{ChunkHead, Encoder, Frame, LengthMismatch};
pub use decode::{Decoded, Decoder};
pub use encode::{
    RequestOptions, ResponseOptions, Written, encode_request, encode_response, join_cookies,
};
pub use framing::{ConnectionOptions, Framing};
pub(crate) use framing::{is_tunnel, may_have_body, note_length};
pub use head::{RequestHead, ResponseHead, parse_request, parse_response};
pub use limits::{Limits, METHOD_BYTES};
pub use malformed::{Defect, Excerpt, Malformed, Message};
pub use scan::HeadScan;
pub use target::{
    BadHost, HOST_BYTES, TargetForm, authority, check_authority, check_target, is_host_missing,
};
pub(crate) use target::{check_host, parse_authority_form, parse_http2_path, shared_authority};

#[cfg(test)]
mod tests;
