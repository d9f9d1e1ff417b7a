//! Bodies as they are received (RFC 9112 sections 6 and 7.1).

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use httparse::{EMPTY_HEADER, Status};
use memchr::memchr;

use super::field::{diagnose, trailer_map};
use super::framing::Framing;
use super::limits::Limits;
use super::malformed::{Defect, Excerpt, Malformed, Message};
use super::scan::{HeadScan, Section};

/// Reads the body of one message.
#[derive(Debug)]
pub struct Decoder {
    message: Message,
    limits: Limits,
    state: State,
    /// Bytes of chunk extensions that may still come; data adds to it.
    extensions: u64,
}

/// What is expected next.
#[derive(Debug)]
enum State {
    /// So many bytes, at least one.
    Length(u64),
    UntilClose,
    /// The line before a chunk, searched up to this position.
    ChunkLine {
        searched: usize,
    },
    /// So many bytes of a chunk, at least one.
    ChunkData(u64),
    ChunkEnd,
    Trailers(HeadScan),
    Done,
}

/// The next part of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// More bytes are needed.
    NeedMore,
    /// Some of the body, never empty; it shares the received bytes.
    Data(Bytes),
    /// The trailers, never empty, as received; [`Self::End`] follows.
    Trailers(HeaderMap),
    /// The message is over; what is in the buffer belongs to the next.
    End,
}

impl Decoder {
    /// A decoder of the body of a message with this framing.
    pub fn new(message: Message, framing: Framing, limits: &Limits) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkLine { searched: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            message,
            limits: *limits,
            state,
            extensions: limits.chunk_extension_bytes,
        }
    }

    /// Reads the next part off the buffer.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Malformed> {
        self.step(buffer).map_err(|defect| self.malformed(defect))
    }

    /// Takes note that the connection has ended: `Ok` where that ends the body too, or where it
    /// was over, and [`Defect::BodyCut`] otherwise. What is in the buffer has to be decoded first.
    pub fn on_eof(&mut self) -> Result<(), Malformed> {
        let missing = match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                return Ok(());
            }
            State::Length(missing) => Some(missing),
            State::ChunkLine { .. }
            | State::ChunkData(_)
            | State::ChunkEnd
            | State::Trailers(_) => None,
        };
        Err(self.malformed(Defect::BodyCut { missing }))
    }

    /// Whether the message is over: [`Self::decode`] returns [`Decoded::End`].
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Bytes that are still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(remaining) => Some(remaining),
            State::Done => Some(0),
            State::UntilClose
            | State::ChunkLine { .. }
            | State::ChunkData(_)
            | State::ChunkEnd
            | State::Trailers(_) => None,
        }
    }

    fn malformed(&self, defect: Defect) -> Malformed {
        let message = self.message;
        Malformed { message, defect }
    }

    fn step(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Defect> {
        loop {
            let next = match &mut self.state {
                State::Done => return Ok(Decoded::End),
                State::UntilClose => {
                    let mut unlimited = u64::MAX;
                    return Ok(take(buffer, &mut unlimited));
                }
                State::Length(remaining) => {
                    let decoded = take(buffer, remaining);
                    if *remaining == 0 {
                        self.state = State::Done;
                    }
                    return Ok(decoded);
                }
                State::ChunkData(remaining) => {
                    let before = *remaining;
                    let decoded = take(buffer, remaining);
                    self.extensions = self.extensions.saturating_add(before - *remaining);
                    if *remaining == 0 {
                        self.state = State::ChunkEnd;
                    }
                    return Ok(decoded);
                }
                State::ChunkLine { .. } => self.chunk_line(buffer)?,
                State::ChunkEnd => chunk_end(buffer)?,
                State::Trailers(scan) => {
                    let Some(trailers) = read_trailers(scan, buffer, &self.limits)? else {
                        return Ok(Decoded::NeedMore);
                    };
                    self.state = State::Done;
                    if !trailers.is_empty() {
                        return Ok(Decoded::Trailers(trailers));
                    }
                    continue;
                }
            };
            let Some(next) = next else {
                return Ok(Decoded::NeedMore);
            };
            self.state = next;
        }
    }

    /// `chunk-size [ chunk-ext ] CRLF`; extensions are dropped, as they are for one hop.
    fn chunk_line(&mut self, buffer: &mut BytesMut) -> Result<Option<State>, Defect> {
        let limit = self.limits.chunk_line_bytes;
        let State::ChunkLine { searched } = &mut self.state else {
            return Ok(None);
        };
        let window = &buffer[..buffer.len().min(limit)];
        let Some(feed) = memchr(b'\n', &window[*searched..]) else {
            *searched = window.len();
            return if buffer.len() >= limit {
                Err(Defect::ChunkLineTooLong { limit })
            } else {
                Ok(None)
            };
        };
        let feed = *searched + feed;
        let (size, extension) = parse_chunk_line(&window[..feed])?;
        let Some(left) = self.extensions.checked_sub(extension) else {
            let limit = self.limits.chunk_extension_bytes;
            return Err(Defect::ChunkExtensions { limit });
        };
        self.extensions = left;
        buffer.advance(feed + 1);
        Ok(Some(match size {
            0 => State::Trailers(HeadScan::default()),
            size => State::ChunkData(size),
        }))
    }
}

/// Takes at most `remaining` bytes, and counts them off.
fn take(buffer: &mut BytesMut, remaining: &mut u64) -> Decoded {
    if buffer.is_empty() {
        return Decoded::NeedMore;
    }
    let length = usize::try_from(*remaining).unwrap_or(usize::MAX);
    let data = buffer.split_to(length.min(buffer.len())).freeze();
    *remaining -= data.len() as u64;
    Decoded::Data(data)
}

/// The size in a chunk's line, and how many bytes of it are more than that. `line` is without its
/// line feed.
fn parse_chunk_line(line: &[u8]) -> Result<(u64, u64), Defect> {
    let malformed = || Defect::ChunkSize {
        found: Excerpt::of(line),
    };
    let content = line.strip_suffix(b"\r").ok_or(Defect::BareLineFeed)?;
    let digits = content.iter().take_while(|byte| byte.is_ascii_hexdigit());
    let digits = &content[..digits.count()];
    let mut size: u64 = 0;
    for digit in digits {
        let digit = char::from(*digit).to_digit(16).ok_or_else(malformed)?;
        size = size.checked_mul(16).ok_or_else(malformed)? + u64::from(digit);
    }
    let rest = &content[digits.len()..];
    // White space before the extensions is allowed, and some servers pad the size with it.
    let extension = rest.trim_ascii_start();
    let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    let valid = matches!(extension, [] | [b';', ..]) && rest.iter().all(is_text);
    if digits.is_empty() || !valid {
        return Err(malformed());
    }
    Ok((size, rest.len() as u64))
}

/// The line end after a chunk's data; `None` where it has not come.
fn chunk_end(buffer: &mut BytesMut) -> Result<Option<State>, Defect> {
    match &buffer[..] {
        [] | [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => {
            buffer.advance(2);
            Ok(Some(State::ChunkLine { searched: 0 }))
        }
        found => Err(Defect::ChunkEnd {
            found: Excerpt::of(&found[..found.len().min(2)]),
        }),
    }
}

/// The trailer section; `None` where it is not complete.
fn read_trailers(
    scan: &mut HeadScan,
    buffer: &mut BytesMut,
    limits: &Limits,
) -> Result<Option<HeaderMap>, Defect> {
    let Some(end) = scan.find_end(buffer, Section::Trailers, limits)? else {
        return Ok(None);
    };
    if end.lines == 0 {
        buffer.advance(end.length);
        return Ok(Some(HeaderMap::new()));
    }
    let section = buffer.split_to(end.length).freeze();
    let mut room = vec![EMPTY_HEADER; end.lines];
    match httparse::parse_headers(&section, &mut room) {
        Ok(Status::Complete((_, fields))) => trailer_map(&section, fields).map(Some),
        Ok(Status::Partial) | Err(_) => Err(diagnose(&section)),
    }
}
