//! Calls in, frames out.

use std::convert::Infallible;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, request};

use super::super::flow::{ReceiveWindow, SendWindow};
use super::super::frame::{StreamId, encode_headers, write_data_head, write_ping};
use super::super::hpack::Encoder;
use super::super::message::{self, Length, Protocol, Unsendable};
use super::streams::{Half, Stream};
use super::{Connection, QUANTUM, Role, StreamKey};

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
    #[error("{open} streams are open; {limit} are allowed at the same time")]
    TooMany {
        /// Streams that are open.
        open: u32,
        /// What is allowed.
        limit: u32,
    },
    /// The connection is ending.
    #[error("the connection takes no new streams")]
    GoingAway,
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

/// Why a response is not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    /// Its stream has ended, or has a response.
    #[error(transparent)]
    Ended(#[from] StreamEnded),
    /// HTTP/2 has no such response.
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
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
    pub fn open(
        &mut self,
        request: &request::Parts,
        protocol: Option<&Protocol>,
        end: bool,
    ) -> Result<StreamKey, OpenError> {
        if self.role == Role::Server {
            return Err(OpenError::Server);
        }
        if self.is_going_away() || self.ended.is_some() {
            return Err(OpenError::GoingAway);
        }
        let (open, limit) = (self.streams.open(), self.max_open_streams());
        // Those of which only data is held have a place, too.
        let is_full = self.streams.len() >= self.config.max_streams as usize * 2;
        if open >= limit || is_full {
            return Err(OpenError::TooMany { open, limit });
        }
        let next = self.highest.map_or(1, |highest| highest.get() + 2);
        let id = StreamId::new(next).ok_or(OpenError::Exhausted)?;
        self.write_head(id, end, |encoder, out| {
            let (method, uri) = (&request.method, &request.uri);
            message::encode_request(encoder, method, uri, protocol, &request.headers, out)
        })?;
        self.highest = Some(id);
        let stream_window = self.stream_window();
        Ok(self.streams.insert(
            id,
            Stream {
                receive: Half::Head,
                send: if end { Half::Ended } else { Half::Body },
                receive_window: ReceiveWindow::new(stream_window),
                send_window: SendWindow::new(self.peer.window),
                length: Length::request(&Method::GET, None),
                method: request.method.clone(),
                is_blocked: false,
                is_queued: false,
            },
        ))
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
        let end = end && !is_interim;
        self.write_head(stream.id(), end, |encoder, out| {
            message::encode_response(encoder, status, headers, out)
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
        let ended = StreamEnded(stream.id());
        let found = self.streams.get_mut(stream).ok_or(ended)?;
        if found.send != Half::Body {
            return Err(ended);
        }
        let mut quantum = match self.queue.is_empty() {
            true => usize::MAX,
            false => QUANTUM,
        };
        while !data.is_empty() {
            let room = self.config.out_bytes.saturating_sub(self.out.len());
            let wanted = data.len().min(quantum).min(room);
            let wanted = wanted.min(self.peer.frame_size.get() as usize);
            // A frame has 24 bits.
            let taken = found
                .send_window
                .take_with(&mut self.send_window, wanted as u32);
            if taken == 0 {
                found.is_blocked = true;
                // Its own window is told by WINDOW_UPDATE; for everything else it queues.
                if found.send_window.available() > 0 && !found.is_queued {
                    found.is_queued = true;
                    self.queue.push_back(stream);
                }
                return Ok(Progress::Blocked);
            }
            quantum -= taken as usize;
            let is_last = end && taken as usize == data.len();
            write_data_head(stream.id(), taken, is_last, &mut self.out);
            self.out.extend_from_slice(&data[..taken as usize]);
            self.idle.on_data_sent(taken);
            data.advance(taken as usize);
            if is_last {
                return Ok(self.ended_sending(stream));
            }
        }
        if end {
            write_data_head(stream.id(), 0, true, &mut self.out);
            return Ok(self.ended_sending(stream));
        }
        found.is_blocked = false;
        Ok(Progress::Done)
    }

    /// Ends a message with trailers, behind all of its data.
    ///
    /// # Errors
    ///
    /// As [`Self::send_data`].
    pub fn send_trailers(
        &mut self,
        stream: StreamKey,
        trailers: &HeaderMap,
    ) -> Result<(), StreamEnded> {
        self.check_half(stream, Half::Body)?;
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
            Some(found) if found.send == half => Ok(()),
            Some(_) | None => Err(StreamEnded(stream.id())),
        }
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

    fn ended_sending(&mut self, stream: StreamKey) -> Progress {
        if let Some(found) = self.streams.get_mut(stream) {
            found.send = Half::Ended;
            found.is_blocked = false;
        }
        self.on_half_ended(stream);
        Progress::Done
    }

    /// The next stream that was blocked and may go on; to be called after [`Self::receive`] and after
    /// output was written, until it returns `None`.
    pub fn next_writable(&mut self) -> Option<StreamKey> {
        while self.has_room() && self.send_window.available() > 0 {
            let key = self.queue.pop_front()?;
            if let Some(found) = self.streams.get_mut(key) {
                found.is_queued = false;
                if std::mem::take(&mut found.is_blocked) {
                    return Some(key);
                }
            }
        }
        None
    }

    /// Sends PING; [`Event::PingAnswered`](super::Event::PingAnswered) follows when the peer has
    /// answered.
    pub fn ping(&mut self, payload: [u8; 8]) {
        write_ping(payload, &mut self.out);
    }
}
