//! Chunked bodies: the same bytes mean the same whole and byte by byte.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use weft_core::h1::{Decoded, Decoder, Framing, Limits, Message};

/// Data, trailers and whether the body ended or was refused.
#[derive(Debug, Default, PartialEq)]
struct Meaning {
    data: Vec<u8>,
    trailers: String,
    ended: bool,
    refused: Option<std::mem::Discriminant<weft_core::h1::Defect>>,
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Meaning {
    let mut decoder = Decoder::new(Message::Request, Framing::Chunked, &Limits::default());
    let (mut buffer, mut meaning) = (BytesMut::new(), Meaning::default());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Decoded::NeedMore) => break,
                Ok(Decoded::Data(data)) => meaning.data.extend_from_slice(&data),
                Ok(Decoded::Trailers(trailers)) => meaning.trailers = format!("{trailers:?}"),
                Ok(Decoded::End) => {
                    meaning.ended = true;
                    return meaning;
                }
                Err(malformed) => {
                    meaning.refused = Some(std::mem::discriminant(&malformed.defect));
                    return meaning;
                }
            }
        }
    }
    meaning
}

fuzz_target!(|input: &[u8]| {
    assert_eq!(decode(std::iter::once(input)), decode(input.chunks(1)));
});
