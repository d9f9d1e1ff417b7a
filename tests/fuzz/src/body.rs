//! Bodies in HTTP/1.1: the same bytes mean the same however they are cut, and what is accepted means
//! the same once it was written anew. The first byte cuts, the second chooses the framing.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use weft_core::h1::{Decoded, Decoder, Defect, Encoder, Framing, Limits, Message};

use crate::input::{Input, pieces};

/// Small enough that inputs exceed them now and then.
const LIMITS: Limits = Limits {
    head_bytes: 512,
    fields: 16,
    method_bytes: 64,
    empty_lines: 2,
    chunk_line_bytes: 64,
    chunk_extension_bytes: 64,
    trailer_bytes: 256,
};

/// Data, trailers and whether the body ended or was refused.
#[derive(Debug, Default, PartialEq)]
struct Meaning {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    ended: bool,
    refused: Option<std::mem::Discriminant<Defect>>,
    /// Bytes behind the end.
    left: usize,
}

fn decode<'a>(
    framing: Framing,
    limits: &Limits,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Meaning {
    let mut decoder = Decoder::new(Message::Request, framing, limits);
    let (mut buffer, mut meaning) = (BytesMut::new(), Meaning::default());
    // Where nothing comes at all, a body may be over as well.
    for piece in pieces.chain([&[][..]]) {
        buffer.extend_from_slice(piece);
        while !meaning.ended && meaning.refused.is_none() {
            match decoder.decode(&mut buffer) {
                Ok(Decoded::NeedMore) => {
                    assert!(
                        buffer.len() <= limits.trailer_bytes,
                        "what waits is bounded"
                    );
                    break;
                }
                Ok(Decoded::Data(data)) => {
                    assert!(!data.is_empty());
                    meaning.data.extend_from_slice(&data);
                }
                Ok(Decoded::Trailers(trailers)) => meaning.trailers = Some(trailers),
                Ok(Decoded::End) => meaning.ended = true,
                Err(malformed) => {
                    assert!(!malformed.to_string().is_empty());
                    meaning.refused = Some(std::mem::discriminant(&malformed.defect));
                }
            }
        }
    }
    if meaning.ended {
        meaning.left = buffer.len();
    }
    assert_eq!(decoder.is_done(), meaning.ended);
    meaning
}

/// A body that has ended, as this side writes it.
fn encode(framing: Framing, meaning: &Meaning, cut: u8) -> Bytes {
    let (mut encoder, mut out) = (Encoder::new(framing), BytesMut::new());
    for piece in pieces(&meaning.data, cut) {
        let frame = encoder.data(piece.len());
        let frame = frame.unwrap_or_else(|mismatch| panic!("{mismatch}"));
        out.extend_from_slice(&frame.before);
        out.extend_from_slice(piece);
        out.extend_from_slice(frame.after);
    }
    let ended = encoder.end(meaning.trailers.as_ref(), &mut out);
    ended.unwrap_or_else(|mismatch| panic!("{mismatch}"));
    out.freeze()
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let (cut, form) = (input.byte(), input.byte());
    let framing = match form {
        0..224 => Framing::Chunked,
        224..240 => Framing::Length(u64::from(form - 224)),
        240.. => Framing::UntilClose,
    };
    let stream = input.rest();
    let whole = decode(framing, &LIMITS, std::iter::once(stream));
    assert_eq!(decode(framing, &LIMITS, pieces(stream, cut)), whole);
    if !whole.ended {
        return;
    }
    let out = encode(framing, &whole, cut);
    // Writing anew adds a space to a field.
    let mut again = decode(framing, &Limits::default(), std::iter::once(&out[..]));
    assert_eq!((again.left, again.refused), (0, None));
    let mut sent = whole.trailers.unwrap_or_default();
    weft_core::headers::clean_trailers(&mut sent);
    assert_eq!(again.trailers.take().unwrap_or_default(), sent);
    assert_eq!(again.data, whole.data);
}
