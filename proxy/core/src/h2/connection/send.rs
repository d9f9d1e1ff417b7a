//! Calls in, frames out.

use std::convert::Infallible;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};

use super::super::frame::{StreamId, encode_headers, write_data_head, write_ping};
use super::super::hpack::{Encoder, FIELD_OVERHEAD};
use super::super::message::{self, Length, Protocol, Unsendable};
use super::streams::{Half, Stream};
use super::{Connection, QUANTUM, Role, StreamKey};
use crate::headers::WEFT_HTTP1_FORM;

/// What pseudo-header fields of a request count beside their target: names, 32 for each, and the longest
/// usual method and scheme.
const PSEUDO_BYTES: usize = 10 + 7 + 5 + 7 + 7 + 5 + 9 + 5 * FIELD_OVERHEAD;
/// What `:status` counts.
const STATUS_BYTES: usize = 7 + 3 + FIELD_OVERHEAD;

/// Bytes of data for which there is room, where there is any, but half of [`Config::out_bytes`](super::Config) at most. Small frames cost their recipient more
/// than they carry, and some recipients end a connection for too many.
const DATA_LEAST: usize = 1024;

/// How far data has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All of it is in the output.
    Done,
    /// The rest waits for room; [`Connection::next_writable`] says when to go on.
    Blocked,
}

/// The stream has ended, or this direction of it: nothing can be sent on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stream {0} has ended")]
pub struct StreamEnded(pub StreamId);

/// Why no stream can be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many are open as may be.
    #[error("{open} streams are open or have data that nobody has taken; {limit} may be open")]
    TooMany {
        /// Streams that are open, or of which data is held.
        open: u32,
        /// What is allowed.
        limit: u32,
    },
    /// The connection is ending.
    #[error("the connection takes no new streams")]
    GoingAway,
    /// There is no room in the output.
    #[error("the server does not read")]
    NoRoom,
    /// The head is larger than the server takes (SETTINGS_MAX_HEADER_LIST_SIZE).
    #[error(transparent)]
    TooLarge(#[from] HeadTooLarge),
    /// All identifiers were used (RFC 9113 section 5.1.1).
    #[error("the connection has used all stream identifiers")]
    Exhausted,
    /// HTTP/2 has no such request.
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    /// Servers open none.
    #[error("only clients open streams")]
    Server,
}

/// A head or trailers that are larger than the peer takes; nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fields are a list of {bytes} bytes with 32 for each; the peer takes {limit}")]
pub struct HeadTooLarge {
    /// Bytes of the list.
    pub bytes: usize,
    /// What is allowed.
    pub limit: u32,
}

/// Why a response is not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    /// Its stream has ended, or has a response.
    #[error(transparent)]
    Ended(#[from] StreamEnded),
    /// HTTP/2 has no such response.
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    /// The head is larger than the client takes (SETTINGS_MAX_HEADER_LIST_SIZE).
    #[error(transparent)]
    TooLarge(#[from] HeadTooLarge),
    /// An interim response, for which there is no room in the output.
    #[error("the client does not read")]
    NoRoom,
}

/// Why trailers are not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrailersError {
    /// The stream has ended, has ended in this direction, or has no head yet.
    #[error(transparent)]
    Ended(#[from] StreamEnded),
    /// They are larger than the peer takes (SETTINGS_MAX_HEADER_LIST_SIZE).
    #[error(transparent)]
    TooLarge(#[from] HeadTooLarge),
}

impl Connection {
    /// Streams that may be open at a time, of those that this side opens: what the peer allows, within
    /// [`Config::max_streams`](super::Config::max_streams).
    pub fn max_open_streams(&self) -> u32 {
        self.peer.max_streams.min(self.config.max_streams)
    }

    /// Opens a stream with a request; `protocol` is that of an extended CONNECT. `end` where it has no
    /// body.
    ///
    /// # Errors
    ///
    /// Where that is not possible; nothing was sent.
    pub fn open<B>(
        &mut self,
        request: &Request<B>,
        protocol: Option<&Protocol>,
        end: bool,
    ) -> Result<StreamKey, OpenError> {
        if self.role == Role::Server {
            return Err(OpenError::Server);
        }
        if self.is_going_away() || self.ended.is_some() {
            return Err(OpenError::GoingAway);
        }
        let limit = self.max_open_streams();
        // Those of which only data is held have a place, too.
        let is_full = self.streams.len() >= self.config.max_streams as usize * 2;
        if self.streams.open() >= limit || is_full {
            let open = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
            return Err(OpenError::TooMany { open, limit });
        }
        if !self.has_room() {
            return Err(OpenError::NoRoom);
        }
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        let authority = uri.authority().map_or(0, |host| host.as_str().len());
        let target = authority + uri.path_and_query().map_or(1, |path| path.as_str().len());
        // Names and values of pseudo-header fields beside the target, and what counts for each.
        self.check_size(headers, PSEUDO_BYTES + target)?;
        let next = self.highest.map_or(1, |highest| highest.get() + 2);
        let id = StreamId::new(next).ok_or(OpenError::Exhausted)?;
        let form = self.kept_form(headers);
        self.write_head(id, end, |encoder, out| {
            message::encode_request(encoder, method, uri, protocol, headers, out)
                .map(|()| put_form(form, encoder, out))
        })?;
        self.highest = Some(id);
        self.idle.on_request_sent();
        let send = if end { Half::Ended } else { Half::Body };
        let windows = (self.stream_window(), self.peer.window);
        // Of the response nothing is known yet.
        let length = Length::request(&Method::GET, None);
        let method = method.clone();
        let stream = Stream::new((Half::Head, send), windows, length, method);
        Ok(self.streams.insert(id, stream))
    }

    /// Sends a response, or with a status of 1xx an interim one; `end` where it has no body.
    ///
    /// # Errors
    ///
    /// Where the stream has ended, or has a response already.
    pub fn respond(
        &mut self,
        stream: StreamKey,
        status: StatusCode,
        headers: &HeaderMap,
        end: bool,
    ) -> Result<(), RespondError> {
        self.check_half(stream, Half::Head)?;
        let is_interim = status.is_informational();
        // As many as an application likes: only the last one is bounded by its stream.
        if is_interim && !self.has_room() {
            return Err(RespondError::NoRoom);
        }
        self.check_size(headers, STATUS_BYTES)?;
        let end = end && !is_interim;
        let form = self.kept_form(headers);
        self.write_head(stream.id(), end, |encoder, out| {
            message::encode_response(encoder, status, headers, out)
                .map(|()| put_form(form, encoder, out))
        })?;
        if end {
            self.ended_sending(stream);
        } else if !is_interim && let Some(found) = self.streams.get_mut(stream) {
            found.send = Half::Body;
        }
        Ok(())
    }

    /// Sends as much of the data as there is room for, and takes that off its front; with `end` the
    /// message ends behind it.
    ///
    /// # Errors
    ///
    /// Where the stream has ended, has ended in this direction, or has no head yet.
    pub fn send_data(
        &mut self,
        stream: StreamKey,
        data: &mut Bytes,
        end: bool,
    ) -> Result<Progress, StreamEnded> {
        self.check_half(stream, Half::Body)?;
        let mut allowed = self.begin_turn(stream);
        while !data.is_empty() {
            let (taken, wanted) = self.take_window(stream, data.len(), allowed);
            if taken == 0 {
                self.block(stream);
                return Ok(Progress::Blocked);
            }
            allowed -= taken;
            let length = taken as usize;
            let is_last = end && length == data.len();
            write_data_head(stream.id(), taken, is_last, &mut self.out);
            self.out.extend_from_slice(&data[..length]);
            self.idle.on_data_sent(taken, taken < wanted);
            data.advance(length);
            if is_last {
                return Ok(self.ended_sending(stream));
            }
        }
        if end {
            write_data_head(stream.id(), 0, true, &mut self.out);
            return Ok(self.ended_sending(stream));
        }
        Ok(Progress::Done)
    }

    /// Bytes that a stream may send now, windows and room apart: no stream goes before those that wait.
    fn begin_turn(&mut self, stream: StreamKey) -> u32 {
        let Some(found) = self.streams.get_mut(stream) else {
            return 0;
        };
        let own = std::mem::take(&mut found.reserved);
        self.reserved -= own;
        let others_wait = self.reserved > 0 || self.queue.iter().any(|queued| *queued != stream);
        match others_wait {
            false => u32::MAX,
            // Its turn, of which not all has to be used.
            true if own > 0 => QUANTUM,
            true => 0,
        }
    }

    /// Takes what may be sent at once of `length` bytes from both windows; with what would be without
    /// them.
    fn take_window(&mut self, stream: StreamKey, length: usize, allowed: u32) -> (u32, u32) {
        let room = match self.config.out_bytes.saturating_sub(self.out.len()) {
            0 => 0,
            // Output that is written in small pieces is not to make small frames.
            room => room.max(DATA_LEAST.min(self.config.out_bytes / 2)),
        };
        // A frame has 24 bits.
        let wanted = length.min(room).min(self.peer.frame_size.get() as usize) as u32;
        let wanted = wanted.min(allowed);
        let taken = self.streams.get_mut(stream).map_or(0, |found| {
            found.send_window.take_with(&mut self.send_window, wanted)
        });
        (taken, wanted)
    }

    /// A stream waits: for its own window, or in the queue for everything else.
    fn block(&mut self, stream: StreamKey) {
        if let Some(found) = self.streams.get_mut(stream) {
            found.is_blocked = true;
            found.enqueue_if_blocked(stream, &mut self.queue);
        }
    }

    /// Ends a message with trailers, behind all of its data.
    ///
    /// # Errors
    ///
    /// Where the stream has ended in this direction or has no head yet, and where they are too large:
    /// nothing was sent.
    pub fn send_trailers(
        &mut self,
        stream: StreamKey,
        trailers: &HeaderMap,
    ) -> Result<(), TrailersError> {
        self.check_half(stream, Half::Body)?;
        self.check_size(trailers, 0)?;
        let Ok(()) = self.write_head(stream.id(), true, |encoder, out| {
            message::encode_trailers(encoder, trailers, out);
            Ok::<_, Infallible>(())
        });
        self.ended_sending(stream);
        Ok(())
    }

    /// Whether that is how far sending has come.
    fn check_half(&self, stream: StreamKey, half: Half) -> Result<(), StreamEnded> {
        match self.streams.get(stream) {
            Some(found) if found.send == half && self.ended.is_none() => Ok(()),
            Some(_) | None => Err(StreamEnded(stream.id())),
        }
    }

    /// What HTTP/2 cannot say of a head, where the peer is told.
    fn kept_form<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
        let keeps = self.config.keeps_form;
        keeps.then(|| headers.get(WEFT_HTTP1_FORM)).flatten()
    }

    /// Writes HEADERS with the block that `encode` appends; nothing where that fails.
    fn write_head<E>(
        &mut self,
        stream: StreamId,
        end: bool,
        encode: impl FnOnce(&mut Encoder, &mut BytesMut) -> Result<(), E>,
    ) -> Result<(), E> {
        let begin = self.out.len();
        let (encoder, size) = (&mut self.encoder, self.peer.frame_size);
        let mut encoded = Ok(());
        encode_headers(stream, end, size, &mut self.out, |out| {
            encoded = encode(encoder, out);
        });
        if encoded.is_err() {
            self.out.truncate(begin);
        }
        encoded
    }

    /// Whether the peer takes fields of that size; `others` is what counts beside `headers`.
    fn check_size(&self, headers: &HeaderMap, others: usize) -> Result<(), HeadTooLarge> {
        let limit = self.peer.header_list;
        if limit == u32::MAX {
            return Ok(());
        }
        let is_sent = |name: &http::HeaderName| self.config.keeps_form || *name != WEFT_HTTP1_FORM;
        let fields = headers.iter().filter(|(name, _)| is_sent(name));
        let sizes = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
        let bytes = sizes.sum::<usize>() + others;
        match bytes <= limit as usize {
            true => Ok(()),
            false => Err(HeadTooLarge { bytes, limit }),
        }
    }

    fn ended_sending(&mut self, stream: StreamKey) -> Progress {
        self.leave_queue(stream);
        if let Some(found) = self.streams.get_mut(stream) {
            found.send = Half::Ended;
        }
        self.on_half_ended(stream);
        Progress::Done
    }

    /// The next stream that was blocked and may go on; to be called after [`Self::receive`] and after
    /// output was written, until it returns `None`. A part of the room is kept for the stream until it
    /// sends.
    pub fn next_writable(&mut self) -> Option<StreamKey> {
        while let Some(key) = self.queue.front().copied() {
            let room = self.config.out_bytes.saturating_sub(self.out.len());
            let room = u32::try_from(room).unwrap_or(u32::MAX);
            let room = room.min(self.send_window.available());
            if room <= self.reserved {
                return None;
            }
            self.queue.pop_front();
            if let Some(found) = self.streams.get_mut(key) {
                found.is_queued = false;
                let kept = found.send_window.available().min(QUANTUM);
                // One whose window was closed meanwhile queues again when it opens.
                if found.is_blocked && kept > 0 {
                    found.is_blocked = false;
                    found.reserved = kept;
                    self.reserved += kept;
                    return Some(key);
                }
            }
        }
        None
    }

    /// Sends PING; [`Event::PingAnswered`](super::Event::PingAnswered) follows when the peer has
    /// answered.
    pub fn ping(&mut self, payload: [u8; 8]) {
        if self.ended.is_none() {
            write_ping(payload, &mut self.out);
        }
    }
}

/// Adds a form to a block that has been written.
fn put_form(form: Option<&HeaderValue>, encoder: &mut Encoder, out: &mut BytesMut) {
    if let Some(form) = form {
        encoder.field(out, WEFT_HTTP1_FORM.as_str().as_bytes(), form.as_bytes());
    }
}
