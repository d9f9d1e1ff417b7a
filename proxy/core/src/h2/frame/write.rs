//! Frames to bytes. Each function appends to `out`.

use std::num::NonZeroU32;

use bytes::BytesMut;

use super::PREFACE;
use super::code::ErrorCode;
use super::head::{HEAD_BYTES, Head, Kind, MASK_31, StreamId, flag};
use super::settings::Setting;
use super::size::FrameSize;

/// Writes the client's connection preface, which its SETTINGS frame has to follow (RFC 9113 section
/// 3.4). A server begins with SETTINGS alone.
pub fn write_preface(out: &mut BytesMut) {
    out.extend_from_slice(PREFACE);
}

/// The head of a DATA frame (section 6.1), for a payload of `length` bytes that the caller writes
/// behind it, from wherever it is. The payload must be within both windows and the peer's
/// [`FrameSize`].
pub fn data_head(stream: StreamId, length: u32, end_stream: bool) -> [u8; HEAD_BYTES] {
    let flags = if end_stream { flag::END_STREAM } else { 0 };
    Head {
        length,
        kind: Kind::Data,
        flags,
        stream: Some(stream),
    }
    .to_bytes()
}

/// Writes [`data_head`].
pub fn write_data_head(stream: StreamId, length: u32, end_stream: bool, out: &mut BytesMut) {
    out.extend_from_slice(&data_head(stream, length, end_stream));
}

/// Writes a field block as HEADERS and as many CONTINUATION frames as it needs with frames of the
/// peer's size (sections 4.3, 6.2 and 6.10). They may not be separated by other frames.
pub fn write_headers(
    stream: StreamId,
    block: &[u8],
    end_stream: bool,
    limit: FrameSize,
    out: &mut BytesMut,
) {
    let fragment_bytes = limit.get() as usize;
    let frames = block.len().div_ceil(fragment_bytes).max(1);
    out.reserve(block.len() + frames * HEAD_BYTES);
    let mut rest = block;
    let mut kind = Kind::Headers;
    let mut flags = if end_stream { flag::END_STREAM } else { 0 };
    loop {
        let (fragment, behind) = rest.split_at(rest.len().min(fragment_bytes));
        if behind.is_empty() {
            flags |= flag::END_HEADERS;
        }
        write_head(kind, flags, Some(stream), fragment.len(), out);
        out.extend_from_slice(fragment);
        if behind.is_empty() {
            return;
        }
        (rest, kind, flags) = (behind, Kind::Continuation, 0);
    }
}

/// Writes a field block that `encode` appends to the buffer, as [`write_headers`] does, but without
/// copying it where one frame is enough. `encode` must do nothing else with the buffer.
pub fn encode_headers(
    stream: StreamId,
    end_stream: bool,
    limit: FrameSize,
    out: &mut BytesMut,
    encode: impl FnOnce(&mut BytesMut),
) {
    let begin = out.len();
    let block_begin = begin + HEAD_BYTES;
    write_headers(stream, b"", end_stream, limit, out);
    encode(out);
    debug_assert!(out.len() >= block_begin, "only a block may be appended");
    let length = out.len().saturating_sub(block_begin);
    if length <= limit.get() as usize {
        // The length is what the head begins with.
        let [_, l0, l1, l2] = (length as u32).to_be_bytes();
        out[begin..begin + 3].copy_from_slice(&[l0, l1, l2]);
        return;
    }
    let block = out.split_off(block_begin);
    out.truncate(begin);
    write_headers(stream, &block, end_stream, limit, out);
}

/// Writes SETTINGS (section 6.5).
pub fn write_settings(settings: &[Setting], out: &mut BytesMut) {
    let entries = settings.iter().copied().map(Setting::to_bytes);
    let length = entries.clone().map(|entry| entry.len()).sum();
    write_head(Kind::Settings, 0, None, length, out);
    for entry in entries {
        out.extend_from_slice(&entry);
    }
}

/// Writes SETTINGS with ACK: settings of the peer have been applied (section 6.5.3).
pub fn write_settings_ack(out: &mut BytesMut) {
    write_head(Kind::Settings, flag::ACK, None, 0, out);
}

/// Writes PING (section 6.7).
pub fn write_ping(payload: [u8; 8], out: &mut BytesMut) {
    write_head(Kind::Ping, 0, None, payload.len(), out);
    out.extend_from_slice(&payload);
}

/// Writes PING with ACK, which has the payload of the PING that it answers.
pub fn write_ping_ack(payload: [u8; 8], out: &mut BytesMut) {
    write_head(Kind::Ping, flag::ACK, None, payload.len(), out);
    out.extend_from_slice(&payload);
}

/// Writes GOAWAY (section 6.8). `last_stream` is the last stream of the peer that was or may be
/// processed; it must never increase. Debug data is cut to what every peer accepts.
pub fn write_goaway(
    last_stream: Option<StreamId>,
    code: ErrorCode,
    debug: &[u8],
    out: &mut BytesMut,
) {
    let room = FrameSize::DEFAULT.get() as usize - 8;
    let debug = &debug[..debug.len().min(room)];
    write_head(Kind::GoAway, 0, None, 8 + debug.len(), out);
    let last_stream = last_stream.map_or(0, StreamId::get);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(debug);
}

/// Writes RST_STREAM (section 6.4). The stream must not be idle.
pub fn write_reset_stream(stream: StreamId, code: ErrorCode, out: &mut BytesMut) {
    write_head(Kind::ResetStream, 0, Some(stream), 4, out);
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// Writes WINDOW_UPDATE (section 6.9) of a stream, or with `None` of the connection. The increment is
/// at most 2^31-1, as that of [`ReceiveWindow`](super::super::flow::ReceiveWindow) always is.
pub fn write_window_update(stream: Option<StreamId>, increment: NonZeroU32, out: &mut BytesMut) {
    debug_assert!(increment.get() <= MASK_31, "an increment has 31 bits");
    write_head(Kind::WindowUpdate, 0, stream, 4, out);
    out.extend_from_slice(&increment.get().to_be_bytes());
}

/// `length` is below 2^24.
fn write_head(kind: Kind, flags: u8, stream: Option<StreamId>, length: usize, out: &mut BytesMut) {
    let length = length as u32;
    let head = Head {
        length,
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&head.to_bytes());
}
