//! Frames of HTTP/2: the same bytes mean the same however they are cut, no more is kept than the limits
//! allow, no frame comes before as many bytes as were said to be needed, and what was read is written
//! so that it is read again.
//!
//! The first byte cuts. Of the second, 1 reads as a client, 2 begins with a valid preface and SETTINGS, 4
//! has small limits, and 8 says that frames are written short ([`expand`]).

use bytes::{Bytes, BytesMut};
use weft_core::h2::frame::{
    Frame, FrameError, FrameSize, HEAD_BYTES, Limits, PREFACE, Reader, Received, Role, Setting,
    write_data_head, write_goaway, write_headers, write_ping, write_ping_ack, write_reset_stream,
    write_settings, write_settings_ack, write_window_update,
};

use crate::input::{Input, pieces};

const SMALL: Limits = Limits {
    frame_size: FrameSize::DEFAULT,
    block_bytes: 60,
    continuations: 3,
    settings: 4,
    goaway_debug_bytes: 5,
};

/// An empty SETTINGS frame, which begins a connection.
const BEGIN: [u8; HEAD_BYTES] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Frames that are written short: type, flags, stream and length in one byte each, then the payload.
/// Changing a length so leaves what follows whole.
pub(crate) fn expand(mut input: Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() {
        let (kind, flags, number) = (input.byte(), input.byte(), input.byte());
        let length = input.byte();
        let payload = input.bytes(length.into());
        stream.extend((payload.len() as u32).to_be_bytes().iter().skip(1));
        stream.extend([kind, flags, 0, 0, 0, number]);
        stream.extend(payload);
    }
    stream
}

/// The beginning of a connection that a reader of this role accepts.
pub(crate) fn beginning(role: Role) -> Vec<u8> {
    match role {
        Role::Client => BEGIN.to_vec(),
        Role::Server => [&PREFACE[..], &BEGIN].concat(),
    }
}

type Results = Vec<Result<Frame, FrameError>>;

fn is_over(results: &Results) -> bool {
    matches!(results.last(), Some(Err(FrameError::Connection(_))))
}

/// Adds a frame; data to the data before where both are of one stream that had not ended, since pieces
/// are not told from frames.
fn join(results: &mut Results, frame: Frame) {
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

fn read<'a>(role: Role, limits: Limits, stream: impl Iterator<Item = &'a [u8]>) -> Results {
    let (mut reader, mut buffer) = (Reader::new(role, limits), BytesMut::new());
    let (mut results, mut needed) = (Results::new(), 0);
    for piece in stream {
        buffer.extend_from_slice(piece);
        needed -= piece.len() as i64;
        while !is_over(&results) {
            match reader.read(&mut buffer) {
                Ok(Received::NeedMore(bytes)) => {
                    assert!(bytes >= 1);
                    assert!(buffer.len() < HEAD_BYTES + limits.frame_size.get() as usize);
                    needed = bytes as i64;
                    break;
                }
                Ok(Received::Frame(frame)) => {
                    assert!(needed <= 0, "{needed} bytes early: {frame:?}");
                    join(&mut results, frame);
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    results.push(Err(error));
                }
            }
            assert!(reader.held_bytes() <= limits.block_bytes as usize);
        }
    }
    if is_over(&results) {
        // The same error for ever.
        let again = reader.read(&mut buffer);
        assert_eq!(results.last(), Some(&again.map(|_| panic!("it goes on"))));
    }
    results
}

/// Writes a frame; `None` where there is nothing that writes it.
fn write(frame: &Frame, out: &mut BytesMut) -> Option<()> {
    match frame {
        Frame::Data(data) => {
            let length = data.payload.len();
            // The window counts the padding, which is not written.
            if data.padding > 0 || length > FrameSize::DEFAULT.get() as usize {
                return None;
            }
            write_data_head(data.stream, length as u32, data.end_stream, out);
            out.extend_from_slice(&data.payload);
        }
        Frame::Headers {
            stream,
            block,
            end_stream,
            depends_on_itself,
        } => {
            if *depends_on_itself {
                return None;
            }
            write_headers(*stream, block, *end_stream, FrameSize::DEFAULT, out);
        }
        Frame::ResetStream { stream, code } => write_reset_stream(*stream, *code, out),
        Frame::Settings(settings) => {
            let settings: Vec<Setting> = settings.iter().collect();
            write_settings(&settings, out);
        }
        Frame::SettingsAck => write_settings_ack(out),
        Frame::Ping { payload } => write_ping(*payload, out),
        Frame::PingAck { payload } => write_ping_ack(*payload, out),
        Frame::GoAway {
            last_stream,
            code,
            debug,
        } => write_goaway(*last_stream, *code, debug, out),
        Frame::WindowUpdate { stream, increment } => write_window_update(*stream, *increment, out),
        Frame::Ignored { .. } => return None,
    }
    Some(())
}

/// Every frame alone, written and read, is the same.
fn check_writing(role: Role, results: &Results) {
    let begin = beginning(role);
    for frame in results.iter().flatten() {
        let mut out = BytesMut::from(&begin[..]);
        if write(frame, &mut out).is_none() {
            continue;
        }
        let limits = Limits::default();
        let again = read(role, limits, std::iter::once(&out[..]));
        match (&again[..], frame) {
            ([_, Ok(Frame::Settings(found))], Frame::Settings(sent)) => {
                assert!(found.iter().eq(sent.iter()));
            }
            ([_, Ok(found)], sent) => assert_eq!(found, sent),
            (found, sent) => panic!("{sent:?} is written, {found:?} is read"),
        }
    }
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let (cut, form) = (input.byte(), input.byte());
    let role = match form & 1 {
        0 => Role::Server,
        _ => Role::Client,
    };
    let limits = match form & 4 {
        0 => Limits::default(),
        _ => SMALL,
    };
    let mut stream = match form & 2 {
        0 => Vec::new(),
        _ => beginning(role),
    };
    match form & 8 {
        0 => stream.extend(input.rest()),
        _ => stream.extend(expand(input)),
    }
    let stream = Bytes::from(stream);
    let whole = read(role, limits, std::iter::once(&stream[..]));
    let found = read(role, limits, pieces(&stream, cut));
    assert_eq!(found, whole);
    check_writing(role, &whole);
}
