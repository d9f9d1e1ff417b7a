//! HPACK: any blocks are decoded within the limits of table and list, what was decoded is encoded so
//! that it is decoded again, with every kind of encoder, and a smaller list changes nothing else.
//!
//! The first two bytes are the table's limit and the list's, in units of 16 and 64 bytes. The rest are
//! blocks with their lengths before them; a length of 255 is a new limit of the table instead.

use bytes::BytesMut;
use weft_core::h2::hpack::{CompressionError, Decoder, Encoder, FIELD_OVERHEAD, FieldList};

use crate::input::Input;

/// A field with its name and value, and whether it is never indexed.
type Owned = (Vec<u8>, Vec<u8>, bool);
type Decoded = Result<(FieldList, Vec<Owned>), CompressionError>;

/// More than any input has.
const LIST_LIMIT: usize = 1 << 24;
/// What a decoder's table may have before settings are acknowledged.
const TABLE_LIMIT: u32 = 4096;

fn decode(decoder: &mut Decoder, block: &[u8]) -> Decoded {
    let mut fields = Vec::new();
    let list = decoder.decode(block, |field| {
        let never = field.never_indexed;
        fields.push((field.name.to_vec(), field.value.to_vec(), never));
    })?;
    Ok((list, fields))
}

fn size(fields: &[Owned]) -> usize {
    let sizes = fields
        .iter()
        .map(|(name, value, _)| name.len() + value.len() + FIELD_OVERHEAD);
    sizes.sum()
}

/// The fields of the dynamic table, the newest first. They are asked for by their indexes, which changes
/// nothing.
fn table(decoder: &mut Decoder) -> Vec<Owned> {
    let mut fields = Vec::new();
    for index in 62_usize.. {
        let mut block = vec![0x80 | index.min(127) as u8];
        if index >= 127 {
            let mut rest = index - 127;
            while rest >= 128 {
                block.push(0x80 | (rest % 128) as u8);
                rest /= 128;
            }
            block.push(rest as u8);
        }
        match decode(decoder, &block) {
            Ok((_, field)) => fields.extend(field),
            Err(_beyond) => break,
        }
    }
    fields
}

/// Encodes a list, decodes it, and compares.
fn check_round_trip(encoder: &mut Encoder, decoder: &mut Decoder, fields: &[Owned]) {
    let mut block = BytesMut::new();
    encoder.begin(&mut block);
    for (name, value, never) in fields {
        match never {
            true => encoder.never_indexed(&mut block, name, value),
            false => encoder.field(&mut block, name, value),
        }
    }
    // A literal has a length before name and value, and something before these; a block has two sizes.
    assert!(block.len() <= 12 + size(fields));
    let found = decode(decoder, &block);
    let bytes = size(fields) as u64;
    let Ok((FieldList::Complete { bytes: all }, found)) = found else {
        panic!("{} is not decoded: {found:?}", block.escape_ascii());
    };
    assert_eq!((all, found.len()), (bytes, fields.len()));
    for ((name, value, never), found) in fields.iter().zip(&found) {
        assert_eq!((name, value), (&found.0, &found.1));
        // The encoder makes some secret by itself.
        assert!(found.2 || !never);
    }
}

/// The ways to encode, each with the decoder of its peer.
fn coders(table: u32) -> [(Encoder, Decoder); 3] {
    let decoder = || Decoder::new(TABLE_LIMIT, LIST_LIMIT);
    [
        (Encoder::plain(), decoder()),
        (Encoder::with_table(TABLE_LIMIT), decoder()),
        (Encoder::with_table(table), decoder()),
    ]
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let mut table_limit = u32::from(input.byte()) * 16;
    let list_limit = usize::from(input.byte()) * 64;
    let mut decoder = Decoder::new(table_limit, list_limit);
    let mut whole = Decoder::new(table_limit, LIST_LIMIT);
    let mut coders = coders(table_limit);
    while !input.is_empty() {
        let length = input.byte();
        if length == 255 {
            table_limit = u32::from(input.byte()) * 32;
            decoder.set_table_limit(table_limit);
            whole.set_table_limit(table_limit);
            for (encoder, decoder) in &mut coders {
                encoder.set_peer_table_limit(table_limit);
                decoder.set_table_limit(table_limit);
            }
            continue;
        }
        let block = input.bytes(length.into());
        let (found, all) = (decode(&mut decoder, block), decode(&mut whole, block));
        let (Ok((list, fields)), Ok((_, all))) = (&found, &all) else {
            assert_eq!(found.err(), all.err());
            return;
        };
        assert!(size(fields) <= list_limit);
        assert!(all.starts_with(fields));
        match list {
            FieldList::Complete { bytes } => assert_eq!(*bytes, size(all) as u64),
            FieldList::TooLarge { bytes, limit } => {
                assert!(bytes > limit && *bytes == size(all) as u64);
            }
        }
        for (encoder, decoder) in &mut coders {
            check_round_trip(encoder, decoder, all);
        }
        let most = table_limit.max(TABLE_LIMIT) as usize;
        assert!(
            size(all) <= block.len() * (most + FIELD_OVERHEAD),
            "what a byte stands for is bounded"
        );
    }
    // Behind a new limit the next block has to begin with a size update, which the question has not.
    let (table, other) = (table(&mut decoder), table(&mut whole));
    assert!(size(&table) <= table_limit as usize);
    if list_limit >= size(&other) {
        assert_eq!(table, other);
    }
}
