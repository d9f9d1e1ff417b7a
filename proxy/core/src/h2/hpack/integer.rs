//! Integers with a prefix (RFC 7541 section 5.1).

use bytes::{BufMut, BytesMut};

use super::error::CompressionError;

/// Bytes after the prefix that a number below 2^32 can have.
const CONTINUATION_BYTES: u32 = 5;

/// Reads an integer at the beginning of `rest`, whose first byte holds it in the low `prefix` bits
/// (1 to 8), and removes it.
///
/// Numbers from 2^32 on, and more than 5 bytes after the prefix (leading zeros), are
/// [`CompressionError::IntegerOverflow`].
#[inline(always)]
pub(super) fn decode(rest: &mut &[u8], prefix: u32) -> Result<u32, CompressionError> {
    let (&first, tail) = rest.split_first().ok_or(CompressionError::Truncated)?;
    *rest = tail;
    let mask = u8::MAX >> (8 - prefix);
    let value = first & mask;
    if value < mask {
        return Ok(u32::from(value));
    }
    // An index of the static table has no more than one other byte.
    if let [byte @ 0..0x80, tail @ ..] = *rest {
        *rest = tail;
        return Ok(u32::from(mask) + u32::from(*byte));
    }
    decode_continuation(rest, value)
}

/// Reads what follows a prefix whose bits are all set and mean `value`.
#[inline(never)]
fn decode_continuation(rest: &mut &[u8], value: u8) -> Result<u32, CompressionError> {
    let mut value = u64::from(value);
    for at in 0..CONTINUATION_BYTES {
        let (&byte, tail) = rest.split_first().ok_or(CompressionError::Truncated)?;
        *rest = tail;
        value += u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return u32::try_from(value).map_err(|_| CompressionError::IntegerOverflow);
        }
    }
    Err(CompressionError::IntegerOverflow)
}

/// Appends an integer to `out`, in the low `prefix` bits (1 to 8) of a byte and as many more bytes
/// as it takes. `pattern` is what that byte has in its other bits.
#[inline(always)]
pub(super) fn encode(out: &mut BytesMut, pattern: u8, prefix: u32, value: usize) {
    let mask = u8::MAX >> (8 - prefix);
    if value < usize::from(mask) {
        out.put_u8(pattern | value as u8);
        return;
    }
    let left = value - usize::from(mask);
    match left {
        0..0x80 => out.put_slice(&[pattern | mask, left as u8]),
        _ => encode_continuation(out, pattern | mask, left),
    }
}

/// Appends a first byte and what is left of a number beside it.
#[inline(never)]
fn encode_continuation(out: &mut BytesMut, first: u8, mut left: usize) {
    out.put_u8(first);
    while left >= 0x80 {
        out.put_u8(left as u8 | 0x80);
        left >>= 7;
    }
    out.put_u8(left as u8);
}
