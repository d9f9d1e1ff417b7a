//! Tests of the codec as a whole.

mod decoding;
mod encoding;
mod examples;
mod properties;

use bytes::BytesMut;

use super::table::Table;
use super::{CompressionError, Decoder, Encoder, FieldList};

/// A field: name, value, and whether it is never indexed.
type Owned = (Vec<u8>, Vec<u8>, bool);

/// More than any list of these tests has.
const LIST_LIMIT: usize = 1 << 20;

/// Bytes of hexadecimal digits, which may stand apart.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Everything that a block was found to hold.
fn decode(
    decoder: &mut Decoder,
    block: &[u8],
) -> Result<(FieldList, Vec<Owned>), CompressionError> {
    let mut fields = Vec::new();
    let list = decoder.decode(block, |field| {
        let (name, value) = (field.name.to_vec(), field.value.to_vec());
        fields.push((name, value, field.never_indexed));
    })?;
    Ok((list, fields))
}

/// The fields of a block that is valid.
fn accept(decoder: &mut Decoder, block: &[u8]) -> Vec<Owned> {
    decode(decoder, block).unwrap().1
}

/// A block with these fields.
fn encode(encoder: &mut Encoder, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = BytesMut::new();
    encoder.begin(&mut out);
    for (name, value) in fields {
        encoder.field(&mut out, name.as_bytes(), value.as_bytes());
    }
    out.to_vec()
}

/// The fields of a table, the newest first.
fn contents(table: &Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..table.len())
        .map(|age| table.get(age).unwrap())
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect()
}

/// The same for fields that are written down.
fn owned(fields: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = |text: &str| text.as_bytes().to_vec();
    fields
        .iter()
        .map(|(name, value)| (bytes(name), bytes(value)))
        .collect()
}
