//! Tables and properties of the frame codec.

mod cuts;
mod reading;
mod refused;
mod writing;

use bytes::BytesMut;

use super::*;

/// Kinds, as bytes, for frames that are written by hand.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// An empty SETTINGS frame, which begins a connection.
const BEGIN: [u8; 9] = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];

/// A frame with a payload of any kind, whatever is allowed.
fn raw(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    head(payload.len() as u32, kind, flags, stream, payload)
}

/// A head that says `length`, and what follows it.
fn head(length: u32, kind: u8, flags: u8, stream: u32, behind: impl AsRef<[u8]>) -> Vec<u8> {
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(behind.as_ref());
    frame
}

/// The entries of a SETTINGS frame.
fn entries(settings: &[(u16, u32)]) -> Vec<u8> {
    let entry = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    settings.iter().flat_map(entry).collect()
}

fn id(stream: u32) -> StreamId {
    StreamId::new(stream).unwrap()
}

/// Everything that the bytes mean.
#[derive(Debug, Clone, PartialEq)]
struct Meaning {
    results: Vec<Result<Frame, FrameError>>,
    /// Bytes that are needed at the end, if nothing failed.
    missing: Option<usize>,
    /// Bytes that were left.
    rest: usize,
}

/// Reads all that there is in the pieces, each of which is added when the ones before have been read.
/// The pieces of data are joined where [`join`] does.
fn read<'a>(role: Role, limits: Limits, pieces: impl IntoIterator<Item = &'a [u8]>) -> Meaning {
    let mut reader = Reader::new(role, limits);
    let mut buffer = BytesMut::new();
    let (mut results, mut missing) = (Vec::new(), None);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while !is_over(&results) {
            match reader.read(&mut buffer) {
                Ok(Received::NeedMore(bytes)) => {
                    missing = Some(bytes);
                    break;
                }
                Ok(Received::Frame(frame)) => join(&mut results, frame),
                Err(error) => results.push(Err(error)),
            }
        }
    }
    let missing = missing.filter(|_| !is_over(&results));
    let rest = buffer.len();
    Meaning {
        results,
        missing,
        rest,
    }
}

fn is_over(results: &[Result<Frame, FrameError>]) -> bool {
    matches!(results.last(), Some(Err(FrameError::Connection(_))))
}

/// Adds a frame; data to the data before where both are of one stream that had not ended, since pieces
/// are not told from frames.
fn join(results: &mut Vec<Result<Frame, FrameError>>, frame: Frame) {
    if let (Some(Ok(Frame::Data(before))), Frame::Data(data)) = (results.last_mut(), &frame)
        && before.stream == data.stream
        && !before.end_stream
    {
        before.payload = [&before.payload[..], &data.payload].concat().into();
        before.padding += data.padding;
        before.end_stream = data.end_stream;
    } else {
        results.push(Ok(frame));
    }
}

/// The frames of a client's connection that has begun, none of which may fail.
#[track_caller]
fn frames(input: impl AsRef<[u8]>) -> Vec<Frame> {
    let stream = [&PREFACE[..], &BEGIN, input.as_ref()].concat();
    let meaning = read(Role::Server, Limits::default(), [&stream[..]]);
    assert_eq!((meaning.missing, meaning.rest), (Some(HEAD_BYTES), 0));
    let frames = meaning.results.into_iter().skip(1);
    frames.collect::<Result<_, _>>().unwrap()
}
