//! Heads, trailers and lengths of messages in HTTP/2 (RFC 9113 section 8, RFC 8441), between field
//! blocks and the types of the `http` crate, without a socket.
//!
//! A connection calls [`decode_request`] or [`decode_response`] for the block of a HEADERS frame, and
//! [`decode_trailers`] for one that follows a final head; a [`Length`] of the head counts the DATA
//! between them. In the other direction [`encode_request`], [`encode_response`] and
//! [`encode_trailers`] append a block to a buffer.
//!
//! ```
//! use bytes::BytesMut;
//! use http::{HeaderMap, Method, Uri};
//! use weft_core::h2::hpack::{Decoder, Encoder};
//! use weft_core::h2::message::{
//!     ExtendedConnect, HeadLimits, Length, Scratch, decode_request, encode_request,
//! };
//!
//! let (mut encoder, mut block) = (Encoder::plain(), BytesMut::new());
//! let (uri, headers) = (Uri::from_static("http://web/cart"), HeaderMap::new());
//! encode_request(&mut encoder, &Method::GET, &uri, None, &headers, &mut block)?;
//!
//! let mut decoder = Decoder::new(4096, 256 * 1024);
//! let (mut scratch, limits) = (Scratch::default(), HeadLimits { bytes: 65_536, fields: 256 });
//! let extended = ExtendedConnect::Announced;
//! let head = decode_request(&mut decoder, &block, &mut scratch, limits, extended)??;
//! assert_eq!(head.parts.uri, uri);
//!
//! let length = Length::request(&head.parts.method, head.content_length);
//! length.on_end()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Architecture invariant: a block is decoded to its end whatever it holds, so that the dynamic table
//! stays that of the peer: only a [`CompressionError`](super::hpack::CompressionError) ends the
//! connection. A [`Malformed`] message ends its stream, and says what was found, what is allowed,
//! whose fault it is and what the mesh answers. Memory is bounded by the limit of the decoder and by
//! [`HeadLimits`]. Nothing is encoded that section 8 forbids.
//!
//! # What is refused
//!
//! Everything that section 8 calls malformed, in both directions. Targets and hosts are held to the
//! rules of HTTP/1.1 ([`crate::h1`]). Removing fields that only the mesh may set, and those that may
//! not be trailers, is [`crate::headers`]'s job, joining `Cookie` fields that of
//! [`crate::h1::join_cookies`].
//!
//! # What is answered, what is reset
//!
//! A request that HTTP/1.1 refuses too is [`Malformed::answerable`], so that its client reads the
//! reason: too large, a target, a host, a `Content-Length`. What breaks a rule of HTTP/2 itself is
//! reset with PROTOCOL_ERROR, as everything of a response is.

mod collect;
mod encode;
mod length;
mod limits;
mod malformed;
mod pseudo;
mod request;
mod response;
mod scratch;

pub use encode::{Unsendable, encode_request, encode_response, encode_trailers};
pub use length::{Length, may_have_content};
pub use limits::{Exceeded, HeadLimits};
pub use malformed::{Answerable, Defect, Malformed, PROTOCOL_BYTES};
pub use request::{ExtendedConnect, Protocol, RequestHead, decode_request};
pub use response::{ResponseHead, decode_response, decode_trailers};
pub use scratch::Scratch;

#[cfg(test)]
mod tests;
