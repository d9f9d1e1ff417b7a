//! The Huffman code of string literals (RFC 7541 section 5.2 and Appendix B).
//!
//! The code is canonical: codes of a length are consecutive numbers in the order of their symbols,
//! and follow those of the lengths before. So [`LENGTHS`] defines all of it, and every other table
//! here is computed from that one by the compiler.

use bytes::{BufMut, BytesMut};

use super::error::CompressionError;

/// The end of a string, which is only used as padding.
const EOS: usize = 256;

/// Bits of the shortest code.
const SHORTEST: u32 = 5;

/// Bits of the longest codes.
const LONGEST: u32 = 30;

/// Bits of the code of every byte, and of [`EOS`] (RFC 7541 Appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; EOS + 1] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Everything that is computed from [`LENGTHS`].
struct Tables {
    /// The code of every symbol, in its low bits.
    codes: [u32; EOS + 1],
    /// Symbols in the order of their codes.
    symbols: [u16; EOS + 1],
    /// By length: its first code, how many it has, and where in `symbols` the first is.
    lengths: [Length; LONGEST as usize + 1],
    /// By the next byte: the symbol and the length of the code that the byte begins with, or length
    /// 0 if that code is longer than the byte.
    short: [(u8, u8); 256],
}

#[derive(Clone, Copy)]
struct Length {
    first_code: u32,
    count: u32,
    first_symbol: u16,
}

static TABLES: Tables = Tables::compute();

impl Tables {
    const fn compute() -> Self {
        let nothing = Length {
            first_code: 0,
            count: 0,
            first_symbol: 0,
        };
        let mut tables = Self {
            codes: [0; EOS + 1],
            symbols: [0; EOS + 1],
            lengths: [nothing; LONGEST as usize + 1],
            short: [(0, 0); 256],
        };
        let (mut length, mut code, mut assigned) = (SHORTEST, 0_u32, 0);
        while length <= LONGEST {
            tables.lengths[length as usize].first_code = code;
            tables.lengths[length as usize].first_symbol = assigned as u16;
            let mut symbol = 0;
            while symbol <= EOS {
                if LENGTHS[symbol] as u32 == length {
                    tables.codes[symbol] = code;
                    tables.symbols[assigned] = symbol as u16;
                    if length <= 8 {
                        tables.begin_with(code, length, symbol as u8);
                    }
                    code += 1;
                    assigned += 1;
                }
                symbol += 1;
            }
            let first = tables.lengths[length as usize].first_code;
            tables.lengths[length as usize].count = code - first;
            code <<= 1;
            length += 1;
        }
        // Every sequence of bits begins with a code, which `long_symbol` relies on.
        assert!(code == 2 << LONGEST, "LENGTHS is no complete code");
        tables
    }

    /// Notes the symbol for all bytes that begin with its code.
    const fn begin_with(&mut self, code: u32, length: u32, symbol: u8) {
        let mut byte = (code << (8 - length)) as usize;
        let end = ((code + 1) << (8 - length)) as usize;
        while byte < end {
            self.short[byte] = (symbol, length as u8);
            byte += 1;
        }
    }
}

/// Upper bound of what `bytes` bytes decode to, in bytes.
pub(super) const fn max_decoded_length(bytes: usize) -> usize {
    // Saturating: a bound of nothing that fits into memory is never reached.
    bytes.saturating_mul(8) / SHORTEST as usize
}

/// Decodes `source` and calls `symbol` for every byte of the result.
///
/// Padding of 8 bits or more, or with a bit that is not set, is
/// [`CompressionError::HuffmanPadding`]; EOS is [`CompressionError::HuffmanEos`] (section 5.2). After
/// an error `symbol` has been called for what was before it.
#[inline]
pub(super) fn decode(source: &[u8], mut symbol: impl FnMut(u8)) -> Result<(), CompressionError> {
    let mut rest = source;
    // The next `bits` bits, from the highest on; below them are zeros. At most 55 before a symbol.
    let (mut window, mut bits) = (0_u64, 0_u32);
    loop {
        if bits < 32 {
            if let Some((four, tail)) = rest.split_first_chunk::<4>() {
                window |= u64::from(u32::from_be_bytes(*four)) << (32 - bits);
                bits += 32;
                rest = tail;
            } else {
                for &byte in rest {
                    window |= u64::from(byte) << (56 - bits);
                    bits += 8;
                }
                rest = &[];
            }
        }
        while bits >= 8 {
            let (byte, length) = TABLES.short[(window >> 56) as usize];
            if length == 0 {
                break;
            }
            symbol(byte);
            window <<= length;
            bits -= u32::from(length);
        }
        if bits < LONGEST && !rest.is_empty() {
            continue;
        }
        // A long code, or the end. As if padding went on for ever, so that a code that is cut shows
        // as longer than `bits`.
        let padded = window | (u64::MAX >> bits);
        let (found, length) = match TABLES.short[(padded >> 56) as usize] {
            (_, 0) => long_symbol((padded >> 32) as u32),
            (byte, length) => (u16::from(byte), length),
        };
        if u32::from(length) > bits {
            let is_padding = bits < 8 && padded == u64::MAX;
            return is_padding
                .then_some(())
                .ok_or(CompressionError::HuffmanPadding);
        }
        symbol(u8::try_from(found).map_err(|_| CompressionError::HuffmanEos)?);
        window <<= length;
        bits -= u32::from(length);
    }
}

/// The symbol whose code these 32 bits begin with, and the length of the code; for codes of more
/// than 8 bits.
#[inline(never)]
fn long_symbol(bits: u32) -> (u16, u8) {
    for length in 9..LONGEST {
        let Length {
            first_code,
            count,
            first_symbol,
        } = TABLES.lengths[length as usize];
        // The code is no lower than the first: it would have had a shorter length.
        let nth = (bits >> (32 - length)) - first_code;
        if nth < count {
            let symbol = TABLES.symbols[usize::from(first_symbol) + nth as usize];
            return (symbol, length as u8);
        }
    }
    let last = TABLES.lengths[LONGEST as usize];
    let nth = (bits >> (32 - LONGEST)) - last.first_code;
    let symbol = TABLES.symbols[usize::from(last.first_symbol) + nth as usize];
    (symbol, LONGEST as u8)
}

/// Bytes that `source` encodes to.
pub(super) fn encoded_length(source: &[u8]) -> usize {
    let bits: usize = source
        .iter()
        .map(|&byte| usize::from(LENGTHS[usize::from(byte)]))
        .sum();
    bits.div_ceil(8)
}

/// Appends `source`, encoded, to `out`.
pub(super) fn encode(source: &[u8], out: &mut BytesMut) {
    // The low `bits` bits, fewer than 32 before a symbol, have not been written yet.
    let (mut pending, mut bits) = (0_u64, 0_u32);
    for &byte in source {
        let length = u32::from(LENGTHS[usize::from(byte)]);
        pending = (pending << length) | u64::from(TABLES.codes[usize::from(byte)]);
        bits += length;
        if bits >= 32 {
            bits -= 32;
            out.put_u32((pending >> bits) as u32);
        }
    }
    let padding = bits.next_multiple_of(8) - bits;
    pending = (pending << padding) | ((1 << padding) - 1);
    bits += padding;
    while bits > 0 {
        bits -= 8;
        out.put_u8((pending >> bits) as u8);
    }
}
