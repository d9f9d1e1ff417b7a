//! Payloads that take more than one step: data in pieces, header blocks in several frames.

use bytes::{Buf, Bytes, BytesMut};

use super::Data;
use super::check::PRIORITY_BYTES;
use super::error::ConnectionError;
use super::head::{Head, Kind, StreamId, flag};
use super::limits::Limits;

/// The rest of a DATA frame whose head has been read.
#[derive(Debug)]
pub(super) struct DataRest {
    stream: StreamId,
    end_stream: bool,
    /// Bytes of the message that have not come.
    payload: usize,
    /// Bytes of padding that have not come.
    padding: usize,
    /// Bytes that the Pad Length field and all the padding have.
    padding_total: u32,
}

impl DataRest {
    /// `pad_length` is the field of that name; `None` where the frame has none (RFC 9113 section
    /// 6.1).
    pub(super) fn new(
        head: &Head,
        stream: StreamId,
        pad_length: Option<u8>,
    ) -> Result<Self, ConnectionError> {
        let padding_total = pad_length.map_or(0, |padding| 1 + u32::from(padding));
        let Some(payload) = head.length.checked_sub(padding_total) else {
            return Err(too_much_padding(head, pad_length.unwrap_or_default()));
        };
        Ok(Self {
            stream,
            end_stream: head.has(flag::END_STREAM),
            payload: payload as usize,
            padding: pad_length.unwrap_or_default().into(),
            padding_total,
        })
    }

    /// Takes what there is off the buffer; otherwise how many bytes are needed at least.
    pub(super) fn next_piece(&mut self, buffer: &mut BytesMut) -> Result<Data, usize> {
        let length = self.payload.min(buffer.len());
        if length == 0 && self.payload > 0 {
            return Err(1);
        }
        let payload = take(buffer, length);
        self.payload -= length;
        if self.payload == 0 {
            let skipped = self.padding.min(buffer.len());
            buffer.advance(skipped);
            self.padding -= skipped;
        }
        let is_last = self.is_done();
        if !is_last && payload.is_empty() {
            return Err(self.padding);
        }
        Ok(Data {
            stream: self.stream,
            payload,
            padding: if is_last { self.padding_total } else { 0 },
            end_stream: is_last && self.end_stream,
        })
    }

    /// Whether the whole frame has been taken.
    pub(super) fn is_done(&self) -> bool {
        self.payload == 0 && self.padding == 0
    }
}

/// A header block of which a part has come (RFC 9113 section 4.3).
#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: StreamId,
    pub(super) end_stream: bool,
    pub(super) depends_on_itself: bool,
    /// Fragments, joined.
    bytes: BytesMut,
    /// Bytes of the payloads so far.
    received: u32,
    /// CONTINUATION frames so far.
    continuations: u32,
}

impl Block {
    /// A block that begins with the fragment of this HEADERS frame. The fragment is copied, so that it
    /// does not keep the receive buffer.
    pub(super) fn new(
        head: &Head,
        stream: StreamId,
        depends_on_itself: bool,
        fragment: &[u8],
    ) -> Self {
        Self {
            stream,
            depends_on_itself,
            end_stream: head.has(flag::END_STREAM),
            bytes: BytesMut::from(fragment),
            received: head.length,
            continuations: 0,
        }
    }

    /// Whether the next frame may come now, by its head: only CONTINUATION on the same stream may
    /// (section 6.10), and only as many and as large ones as are allowed.
    pub(super) fn check(&self, head: &Head, limits: &Limits) -> Result<(), ConnectionError> {
        let (kind, stream) = (head.kind, self.stream);
        if kind != Kind::Continuation || head.stream != Some(stream) {
            return Err(ConnectionError::BlockInterrupted { kind, stream });
        }
        if self.continuations >= limits.continuations {
            let limit = limits.continuations;
            return Err(ConnectionError::TooManyContinuations { stream, limit });
        }
        // Both have fewer than 32 bits: the limit held so far, and a length has 24.
        if u64::from(self.received) + u64::from(head.length) > u64::from(limits.block_bytes) {
            let limit = limits.block_bytes;
            return Err(ConnectionError::BlockTooLarge { stream, limit });
        }
        Ok(())
    }

    /// Adds the payload of a CONTINUATION frame that was checked.
    pub(super) fn append(&mut self, fragment: &[u8]) {
        self.bytes.extend_from_slice(fragment);
        self.received += fragment.len() as u32;
        self.continuations += 1;
    }

    /// Bytes that it holds.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The whole block.
    pub(super) fn take(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }
}

/// The fragment in the payload of a HEADERS frame: without padding, and without the deprecated
/// priority (RFC 9113 section 6.2); and the stream that this one depends on by that. The payload has
/// the fields that the flags announce.
pub(super) fn headers_fragment(
    head: &Head,
    mut payload: BytesMut,
) -> Result<(BytesMut, Option<StreamId>), ConnectionError> {
    let padding = if head.has(flag::PADDED) {
        payload.get_u8()
    } else {
        0
    };
    let mut depends_on = None;
    if head.has(flag::PRIORITY) {
        depends_on = dependency(&payload.split_to(PRIORITY_BYTES as usize));
    }
    let Some(length) = payload.len().checked_sub(padding.into()) else {
        return Err(too_much_padding(head, padding));
    };
    payload.truncate(length);
    Ok((payload, depends_on))
}

/// The stream that is depended on, by the fields of a priority; `None` where that is the connection.
pub(super) fn dependency(priority: &[u8]) -> Option<StreamId> {
    let field = priority.first_chunk().copied()?;
    // The first bit says whether the dependency is exclusive.
    StreamId::from_wire(u32::from_be_bytes(field))
}

/// Takes so many bytes, which the buffer has. An empty piece does not keep the buffer.
pub(super) fn take(buffer: &mut BytesMut, length: usize) -> Bytes {
    if length == 0 {
        return Bytes::new();
    }
    buffer.split_to(length).freeze()
}

fn too_much_padding(head: &Head, padding: u8) -> ConnectionError {
    let Head { kind, length, .. } = *head;
    ConnectionError::Padding {
        kind,
        length,
        padding,
    }
}
