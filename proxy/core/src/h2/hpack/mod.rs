//! HPACK, the compression of header fields in HTTP/2 (RFC 7541), without a socket.
//!
//! A connection keeps one [`Decoder`] for the field blocks it receives and one [`Encoder`] for those
//! it sends. A block is decoded whole, after its CONTINUATION frames were joined: the decoder calls
//! a closure for every [`Field`], whose bytes are borrowed from the block, the dynamic table or a
//! buffer of the decoder. The encoder appends to a [`BytesMut`](bytes::BytesMut).
//!
//! ```
//! use bytes::BytesMut;
//! use weft_core::h2::hpack::{Decoder, Encoder, FieldList};
//!
//! let mut encoder = Encoder::with_table(4096);
//! let mut block = BytesMut::new();
//! encoder.begin(&mut block);
//! encoder.field(&mut block, b":method", b"GET");
//! encoder.field(&mut block, b"x-tenant", b"blue");
//!
//! let mut decoder = Decoder::new(4096, 16 * 1024);
//! let mut names = Vec::new();
//! let list = decoder.decode(&block, |field| names.push(field.name.to_vec()));
//! assert_eq!(list, Ok(FieldList::Complete { bytes: 42 + 44 }));
//! assert_eq!(names, [b":method".as_slice(), b"x-tenant"]);
//! ```
//!
//! Names and values are bytes here. Whether a name is lower case, a pseudo-header field is known or
//! a value has control characters (RFC 9113 sections 8.2.1 and 8.3) is for the caller to check.
//!
//! Architecture invariant: every block ends in a [`FieldList`] or in a [`CompressionError`]. After
//! an error the dynamic table is no longer that of the peer, so the connection has to be closed with
//! COMPRESSION_ERROR (RFC 9113 section 4.3). A list that is larger than allowed is no error: the
//! table stays the peer's, and only the stream is refused.
//!
//! Memory is bounded by the limits that the constructors are given: see [`Decoder::new`] and
//! [`Encoder::with_table`].

mod decode;
mod encode;
mod error;
mod huffman;
mod indexing;
mod integer;
mod static_table;
mod table;

pub use decode::{Decoder, Field, FieldList};
pub use encode::Encoder;
pub use error::CompressionError;

/// SETTINGS_HEADER_TABLE_SIZE of both peers until they say something else, in bytes (RFC 9113
/// section 6.5.2).
pub const DEFAULT_TABLE_SIZE: u32 = 4096;

/// What a field counts beyond its name and value, in bytes: in the dynamic table (RFC 7541 section
/// 4.1) and in SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113 section 6.5.2).
pub const FIELD_OVERHEAD: usize = 32;

/// Size of a field by both of these rules, in bytes.
fn field_size(name_bytes: usize, value_bytes: usize) -> usize {
    name_bytes + value_bytes + FIELD_OVERHEAD
}

#[cfg(test)]
mod tests;
