//! Bodies as they are sent (RFC 9112 sections 6 and 7.1).

use std::ops::Deref;

use bytes::BytesMut;
use http::HeaderMap;

use super::encode::write_field;
use super::framing::Framing;
use crate::headers::may_be_trailer;

/// Frames the body of one message. The data itself never passes through it: it says what is written
/// before and after.
#[derive(Debug)]
pub struct Encoder {
    framing: Framing,
    /// Bytes that a [`Framing::Length`] still asks for.
    remaining: u64,
}

/// What stands around a piece of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Written before it.
    pub before: ChunkHead,
    /// Written after it.
    pub after: &'static [u8],
}

/// A chunk's size and its line end, or nothing; it derefs to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    bytes: [u8; CHUNK_HEAD_BYTES],
    begin: usize,
}

/// Sixteen digits and a line end.
const CHUNK_HEAD_BYTES: usize = 18;

/// The body is longer or shorter than its head said. The message is broken: its connection is to
/// be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LengthMismatch {
    /// There is more of it.
    #[error("the body is longer than its Content-Length, by {excess} bytes or more")]
    TooLong {
        /// Bytes that were one too many.
        excess: u64,
    },
    /// It ended too early.
    #[error("the body is shorter than its Content-Length: {missing} bytes are missing")]
    TooShort {
        /// Bytes that were promised.
        missing: u64,
    },
}

impl Encoder {
    /// An encoder for the framing that the recipient was told.
    pub fn new(framing: Framing) -> Self {
        let remaining = match framing {
            Framing::Length(length) => length,
            Framing::None | Framing::Chunked | Framing::UntilClose => 0,
        };
        Self { framing, remaining }
    }

    /// What to write around `length` bytes of data. Nothing stands around no data: an empty chunk
    /// would end the body.
    pub fn data(&mut self, length: usize) -> Result<Frame, LengthMismatch> {
        let length = length as u64;
        match self.framing {
            Framing::Chunked if length > 0 => Ok(Frame {
                before: ChunkHead::new(length),
                after: b"\r\n",
            }),
            Framing::None | Framing::Length(_) => match self.remaining.checked_sub(length) {
                Some(remaining) => {
                    self.remaining = remaining;
                    Ok(Frame::NOTHING)
                }
                None => Err(LengthMismatch::TooLong {
                    excess: length - self.remaining,
                }),
            },
            Framing::Chunked | Framing::UntilClose => Ok(Frame::NOTHING),
        }
    }

    /// Writes the end of the body. Trailers are written where chunks are, except those that may
    /// not be trailers ([`may_be_trailer`]); elsewhere they are lost, since there is no place for
    /// them.
    pub fn end(
        self,
        trailers: Option<&HeaderMap>,
        out: &mut BytesMut,
    ) -> Result<(), LengthMismatch> {
        if self.remaining > 0 {
            let missing = self.remaining;
            return Err(LengthMismatch::TooShort { missing });
        }
        if self.framing == Framing::Chunked {
            out.extend_from_slice(b"0\r\n");
            for (name, value) in trailers.into_iter().flatten() {
                if may_be_trailer(name) {
                    write_field(name, value, out);
                }
            }
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    /// Whether a body of known length has been written completely, so that only [`Self::end`]
    /// remains.
    pub fn is_complete(&self) -> bool {
        self.remaining == 0 && matches!(self.framing, Framing::None | Framing::Length(_))
    }

    /// Bytes that the recipient still expects, where it knows.
    pub fn remaining(&self) -> Option<u64> {
        match self.framing {
            Framing::None | Framing::Length(_) => Some(self.remaining),
            Framing::Chunked | Framing::UntilClose => None,
        }
    }
}

impl Frame {
    const NOTHING: Self = Self {
        before: ChunkHead {
            bytes: [0; CHUNK_HEAD_BYTES],
            begin: CHUNK_HEAD_BYTES,
        },
        after: b"",
    };
}

impl ChunkHead {
    fn new(length: u64) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut bytes = *b"0000000000000000\r\n";
        let mut begin = CHUNK_HEAD_BYTES - 2;
        let mut rest = length;
        while rest > 0 {
            begin -= 1;
            bytes[begin] = DIGITS[(rest % 16) as usize];
            rest /= 16;
        }
        Self { bytes, begin }
    }
}

impl Deref for ChunkHead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }
}
