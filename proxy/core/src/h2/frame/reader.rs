//! Bytes to frames.

use std::num::NonZeroU32;

use bytes::{Buf, Bytes, BytesMut};

use super::check::PRIORITY_BYTES;
use super::code::ErrorCode;
use super::error::{ConnectionError, FrameError, StreamError};
use super::head::{HEAD_BYTES, Head, Kind, MASK_31, StreamId, flag};
use super::limits::Limits;
use super::payload::{Block, DataRest, dependency, headers_fragment, take};
use super::settings::Settings;
use super::{Frame, PREFACE};

/// Which side of a connection reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The side that made the connection.
    Client,
    /// The side that accepted it; it expects the client's preface first.
    Server,
}

/// Reads the frames of one connection, in one direction.
///
/// It holds no bytes except those of a header block whose end has not come, at most
/// [`Limits::block_bytes`]. What is not complete stays in the caller's buffer: at most one frame of
/// [`Limits::frame_size`] and its head, whatever the peer sends.
#[derive(Debug)]
pub struct Reader {
    role: Role,
    limits: Limits,
    state: State,
}

/// What is expected next.
#[derive(Debug)]
enum State {
    /// The client's preface, of which so many bytes have come.
    Preface { received: usize },
    /// The SETTINGS frame that begins a connection (RFC 9113 section 3.4).
    FirstFrame,
    /// Any frame but CONTINUATION.
    NextFrame,
    /// CONTINUATION.
    Block(Block),
    /// More of a DATA frame.
    Data(DataRest),
    /// So many bytes that are dropped.
    Discard(usize),
    /// Nothing more.
    Failed(ConnectionError),
}

/// What [`Reader::read`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A frame, or a piece of a DATA frame.
    Frame(Frame),
    /// More bytes are needed, at least so many (and at least one) before there is another frame. An
    /// error may be found earlier.
    NeedMore(usize),
}

impl Reader {
    /// A reader for the beginning of a connection.
    pub fn new(role: Role, limits: Limits) -> Self {
        let state = match role {
            Role::Client => State::FirstFrame,
            Role::Server => State::Preface { received: 0 },
        };
        Self {
            role,
            limits,
            state,
        }
    }

    /// Reads the next frame off the buffer. After a [`FrameError::Stream`] it goes on with the frame
    /// behind; a [`FrameError::Connection`] is returned again for ever, and the buffer not touched.
    pub fn read(&mut self, buffer: &mut BytesMut) -> Result<Received, FrameError> {
        let received = self.step(buffer);
        if let Err(FrameError::Connection(error)) = &received {
            self.state = State::Failed(*error);
        }
        received
    }

    /// Bytes that it holds itself: those of a header block whose end has not come.
    pub fn held_bytes(&self) -> usize {
        match &self.state {
            State::Block(block) => block.len(),
            State::Preface { .. }
            | State::FirstFrame
            | State::NextFrame
            | State::Data(_)
            | State::Discard(_)
            | State::Failed(_) => 0,
        }
    }

    fn step(&mut self, buffer: &mut BytesMut) -> Result<Received, FrameError> {
        loop {
            match &mut self.state {
                State::FirstFrame | State::NextFrame | State::Block(_) => {
                    if let Some(received) = self.frame(buffer)? {
                        return Ok(received);
                    }
                }
                State::Data(data) => {
                    return Ok(match data.next_piece(buffer) {
                        Ok(piece) => {
                            if data.is_done() {
                                self.state = State::NextFrame;
                            }
                            Received::Frame(Frame::Data(piece))
                        }
                        Err(missing) => Received::NeedMore(missing),
                    });
                }
                State::Discard(rest) => {
                    let skipped = buffer.len().min(*rest);
                    buffer.advance(skipped);
                    *rest -= skipped;
                    if *rest > 0 {
                        return Ok(Received::NeedMore(*rest + HEAD_BYTES));
                    }
                    self.state = State::NextFrame;
                }
                State::Preface { received } => {
                    check_preface(received, buffer)?;
                    let missing = PREFACE.len() - *received;
                    if missing > 0 {
                        return Ok(Received::NeedMore(missing + HEAD_BYTES));
                    }
                    self.state = State::FirstFrame;
                }
                State::Failed(error) => return Err((*error).into()),
            }
        }
    }

    /// Reads a frame from its beginning; `None` where the state says what comes next.
    fn frame(&mut self, buffer: &mut BytesMut) -> Result<Option<Received>, FrameError> {
        let Some(head) = Head::parse(buffer) else {
            return Ok(Some(Received::NeedMore(HEAD_BYTES - buffer.len())));
        };
        self.check_place(&head, buffer)?;
        head.check(&self.limits)?;
        let awaited = match head.kind {
            Kind::Data => usize::from(head.has(flag::PADDED)),
            Kind::Unknown(_) => 0,
            Kind::GoAway => {
                let kept = self.limits.goaway_debug_bytes.saturating_add(8);
                head.length.min(kept) as usize
            }
            Kind::Headers
            | Kind::Priority
            | Kind::ResetStream
            | Kind::Settings
            | Kind::PushPromise
            | Kind::Ping
            | Kind::WindowUpdate
            | Kind::Continuation => head.length as usize,
        };
        if buffer.len() < HEAD_BYTES + awaited {
            let missing = HEAD_BYTES + awaited - buffer.len();
            return Ok(Some(Received::NeedMore(missing)));
        }
        buffer.advance(HEAD_BYTES);
        let frame = self.payload(&head, buffer)?;
        Ok(frame.map(Received::Frame))
    }

    /// Whether such a frame may come now (RFC 9113 sections 3.4, 4.3 and 6.10).
    fn check_place(&self, head: &Head, buffer: &[u8]) -> Result<(), ConnectionError> {
        let kind = head.kind;
        match &self.state {
            State::FirstFrame if buffer.starts_with(b"HTTP/") => Err(ConnectionError::Http1Answer),
            State::FirstFrame if kind != Kind::Settings || head.has(flag::ACK) => {
                Err(ConnectionError::FirstFrame { kind })
            }
            State::Block(block) => block.check(head, &self.limits),
            State::FirstFrame
            | State::NextFrame
            | State::Preface { .. }
            | State::Data(_)
            | State::Discard(_)
            | State::Failed(_) => match kind {
                Kind::Continuation => Err(ConnectionError::ContinuationUnexpected),
                Kind::Data
                | Kind::Headers
                | Kind::Priority
                | Kind::ResetStream
                | Kind::Settings
                | Kind::PushPromise
                | Kind::Ping
                | Kind::GoAway
                | Kind::WindowUpdate
                | Kind::Unknown(_) => Ok(()),
            },
        }
    }

    /// Reads a payload, of which the buffer has as much as was awaited; head and place are valid.
    fn payload(&mut self, head: &Head, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let length = head.length as usize;
        let frame = match head.kind {
            Kind::Data => {
                let pad_length = head.has(flag::PADDED).then(|| buffer.get_u8());
                let data = DataRest::new(head, head.open_stream()?, pad_length)?;
                self.state = State::Data(data);
                return Ok(None);
            }
            Kind::Headers => return self.headers(head, buffer.split_to(length)),
            Kind::Continuation => return Ok(self.continuation(head, buffer)),
            Kind::Priority => return priority(head, &buffer.split_to(length)).map(Some),
            Kind::Unknown(_) => {
                self.state = State::Discard(length);
                let (kind, stream) = (head.kind, head.stream);
                Frame::Ignored { kind, stream }
            }
            Kind::GoAway => self.goaway(length, buffer),
            Kind::Settings if head.has(flag::ACK) => Frame::SettingsAck,
            Kind::Settings => {
                let settings = Settings::parse(take(buffer, length), self.role)?;
                self.state = State::NextFrame;
                Frame::Settings(settings)
            }
            Kind::Ping => {
                let payload = buffer.get_u64().to_be_bytes();
                if head.has(flag::ACK) {
                    Frame::PingAck { payload }
                } else {
                    Frame::Ping { payload }
                }
            }
            Kind::ResetStream => Frame::ResetStream {
                stream: head.open_stream()?,
                code: ErrorCode(buffer.get_u32()),
            },
            Kind::WindowUpdate => window_update(head.stream, buffer.get_u32())?,
            Kind::PushPromise => return Err(ConnectionError::PushPromise.into()),
        };
        Ok(Some(frame))
    }

    /// HEADERS (section 6.2): the whole block, or its beginning.
    fn headers(&mut self, head: &Head, payload: BytesMut) -> Result<Option<Frame>, FrameError> {
        let stream = head.open_stream()?;
        let (fragment, dependency) = headers_fragment(head, payload)?;
        let depends_on_itself = dependency == Some(stream);
        if !head.has(flag::END_HEADERS) {
            self.state = State::Block(Block::new(head, stream, depends_on_itself, &fragment));
            return Ok(None);
        }
        Ok(Some(Frame::Headers {
            stream,
            block: fragment.freeze(),
            end_stream: head.has(flag::END_STREAM),
            depends_on_itself,
        }))
    }

    /// CONTINUATION (section 6.10): the rest of a block, or more of it.
    fn continuation(&mut self, head: &Head, buffer: &mut BytesMut) -> Option<Frame> {
        let State::Block(block) = &mut self.state else {
            return None;
        };
        let length = head.length as usize;
        block.append(&buffer[..length]);
        buffer.advance(length);
        if !head.has(flag::END_HEADERS) {
            return None;
        }
        let frame = Frame::Headers {
            stream: block.stream,
            block: block.take(),
            end_stream: block.end_stream,
            depends_on_itself: block.depends_on_itself,
        };
        self.state = State::NextFrame;
        Some(frame)
    }

    /// GOAWAY (section 6.8). The debug data is copied, so that a log does not keep the buffer.
    fn goaway(&mut self, length: usize, buffer: &mut BytesMut) -> Frame {
        let last_stream = StreamId::from_wire(buffer.get_u32());
        let code = ErrorCode(buffer.get_u32());
        let debug_length = length - 8;
        let kept = debug_length.min(self.limits.goaway_debug_bytes as usize);
        let debug = Bytes::copy_from_slice(&buffer[..kept]);
        self.state = State::Discard(debug_length);
        Frame::GoAway {
            last_stream,
            code,
            debug,
        }
    }
}

/// Checks the bytes of the client's preface that have come, and takes them off (RFC 9113 section 3.4).
fn check_preface(received: &mut usize, buffer: &mut BytesMut) -> Result<(), ConnectionError> {
    let expected = &PREFACE[*received..];
    let length = expected.len().min(buffer.len());
    for (at, (expected, found)) in expected.iter().zip(buffer.iter().copied()).enumerate() {
        if *expected != found {
            let at = *received + at;
            return Err(ConnectionError::Preface { at, found });
        }
    }
    buffer.advance(length);
    *received += length;
    Ok(())
}

/// PRIORITY, which has no effect (section 5.3.2) and has to be valid all the same (section 6.3, and RFC
/// 7540 section 5.3.1).
fn priority(head: &Head, payload: &[u8]) -> Result<Frame, FrameError> {
    let (kind, length) = (head.kind, head.length);
    let stream = head.any_stream()?;
    if length != PRIORITY_BYTES {
        return Err(StreamError::PriorityLength { stream, length }.into());
    }
    if dependency(payload) == Some(stream) {
        return Err(StreamError::SelfDependency { stream }.into());
    }
    let stream = Some(stream);
    Ok(Frame::Ignored { kind, stream })
}

/// WINDOW_UPDATE (section 6.9); an increment of 0 is an error of the stream, or of the connection.
fn window_update(stream: Option<StreamId>, field: u32) -> Result<Frame, FrameError> {
    match (NonZeroU32::new(field & MASK_31), stream) {
        (Some(increment), stream) => Ok(Frame::WindowUpdate { stream, increment }),
        (None, Some(stream)) => Err(StreamError::IncrementZero { stream }.into()),
        (None, None) => Err(ConnectionError::IncrementZero.into()),
    }
}
