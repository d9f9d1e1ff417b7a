//! Memory that is used for one head after the other.

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};

/// Bytes that are allocated at once for heads. A head of a call has some hundred bytes, one
/// of a browser about a thousand.
pub(super) const CHUNK_BYTES: usize = 4096;
/// Fields for which room is kept between heads; most have fewer.
const KEPT_FIELDS: usize = 64;

/// What [`decode_request`](super::decode_request) and its sisters decode into.
///
/// Blocks of up to 4 KiB, and values that no such block holds as they are, are slices of chunks of 4 KiB,
/// which one after the other is appended to; larger values have memory of their own. A chunk lives as long
/// as any value of it, and is used again once there is none.
/// One `Scratch` for all connections of a thread is enough: no field stays in it between calls, and it
/// keeps one chunk and room for 64 fields.
#[derive(Debug, Default)]
pub struct Scratch {
    chunk: BytesMut,
    /// The fields of a message, until their number is known.
    pub(super) fields: Vec<(HeaderName, HeaderValue)>,
}

impl Scratch {
    /// The bytes in memory that is shared with other values.
    pub(super) fn share(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if bytes.len() > CHUNK_BYTES {
            return Bytes::copy_from_slice(bytes);
        }
        let has_room = self.chunk.capacity() >= bytes.len();
        if !has_room && !self.chunk.try_reclaim(bytes.len()) {
            self.chunk = BytesMut::with_capacity(CHUNK_BYTES);
        }
        self.chunk.extend_from_slice(bytes);
        self.chunk.split().freeze()
    }

    /// Forgets the fields of the last message, and gives back the memory of an unusual one.
    pub(super) fn clear(&mut self) {
        if self.fields.capacity() > KEPT_FIELDS {
            self.fields = Vec::new();
        } else {
            self.fields.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_shared_and_used_again() {
        let mut scratch = Scratch::default();
        let first = scratch.share(b"one");
        let second = scratch.share(b"two");
        assert_eq!(first.as_ptr().wrapping_add(3), second.as_ptr());
        let begin = first.as_ptr();
        drop((first, second));
        let whole = scratch.share(&[b'x'; CHUNK_BYTES]);
        assert_eq!(whole.as_ptr(), begin);
        // Still in use.
        let next = scratch.share(b"y");
        assert_ne!(next.as_ptr(), begin);
        assert_eq!(whole, [b'x'; CHUNK_BYTES][..]);
    }

    #[test]
    fn a_large_value_is_in_no_chunk() {
        let mut scratch = Scratch::default();
        let first = scratch.share(b"one");
        let large = scratch.share(&[b'x'; CHUNK_BYTES + 1]);
        let second = scratch.share(b"two");
        assert_eq!(first.as_ptr().wrapping_add(3), second.as_ptr());
        assert_eq!(large.len(), CHUNK_BYTES + 1);
    }
}
