//! One HTTP/2 connection (RFC 9113 sections 5 and 6), without a socket: bytes in, events out; calls in,
//! bytes out.
//!
//! Whoever drives a [`Connection`] does this in every turn:
//!
//! 1. append what was received to a buffer and call [`Connection::receive`] until it returns `None`;
//! 2. tell streams by [`Connection::next_writable`] that they may go on;
//! 3. write what [`Connection::output`] holds, all frames of the turn at once, and begin again when some
//!    of it was written: there is room for what had none.
//!
//! Nothing here waits, allocates per frame or knows a task. A stream is named by a [`StreamKey`]; one
//! that has ended names nothing, and calls with it say so.
//!
//! # Bounds
//!
//! - Received data is bounded by the connection's window: what was not [consumed](Connection::consumed)
//!   is not allowed again. A stream that nobody reads stops itself by its own, smaller window; as many as
//!   fill the connection's window stop all. The bytes of an event share the receive buffer: whoever
//!   keeps small ones copies them.
//! - Streams are bounded by [`Config::max_streams`]. A stream that has ended keeps its place while data
//!   of it is held, so that there are at most twice as many.
//! - What is to be written is bounded by twice [`Config::out_bytes`] and one head and RST_STREAM for each
//!   stream. Data and new streams stop at once [`Config::out_bytes`] ([`Connection::has_room`]), and
//!   receiving at twice that ([`Connection::may_receive`]): two ends that both have much to send go on
//!   reading each other, and a peer that does not read what answers it is not read from.
//! - Frames without effect are bounded by a budget, on which a connection that carries something does
//!   not run low. Resets are told, and for the caller to count (`crate::resets`).
//!
//! # Fairness
//!
//! Streams that wait for room go on in the order in which they were stopped. As many are told as there
//! is room for, of which [`QUANTUM`] bytes are kept for each; while any waits, no other goes before it.

mod config;
mod event;
mod heads;
mod idle;
mod receive;
mod recent;
mod send;
mod settings;
mod shutdown;
mod streams;
mod violation;

use std::collections::VecDeque;

use bytes::BytesMut;

pub use config::Config;
pub use event::{Event, ResetCause};
pub use send::{HeadTooLarge, OpenError, Progress, RespondError, StreamEnded, TrailersError};
pub use streams::StreamKey;
pub use violation::{ConnectionViolation, StreamViolation};

use super::flow::{ReceiveWindow, SendWindow};
use super::frame::{
    ErrorCode, Reader, Role, StreamId, WindowSize, write_goaway, write_preface, write_reset_stream,
    write_settings, write_window_update,
};
use super::hpack::{DEFAULT_TABLE_SIZE, Decoder, Encoder};
use super::message::Scratch;
use idle::IdleBudget;
use recent::RecentResets;
use settings::PeerSettings;
use shutdown::Shutdown;
use streams::{Half, Stream, Streams};

/// Bytes that a stream may send while others wait.
pub const QUANTUM: u32 = 16 * 1024;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Config,
    reader: Reader,
    decoder: Decoder,
    /// Where the fields of a head are put together.
    scratch: Scratch,
    encoder: Encoder,
    receive_window: ReceiveWindow,
    send_window: SendWindow,
    /// What the peer has announced.
    peer: PeerSettings,
    /// Whether it has acknowledged what this side has announced.
    is_acknowledged: bool,
    streams: Streams,
    /// The highest stream that the client of the connection has opened.
    highest: Option<StreamId>,
    /// Whether it has passed over some.
    has_gaps: bool,
    resets: RecentResets,
    idle: IdleBudget,
    /// Streams that wait for room in the output or in the connection's window.
    queue: VecDeque<StreamKey>,
    /// Bytes that are kept for streams that were told to go on.
    reserved: u32,
    /// What is to be told before anything else is read.
    events: VecDeque<Event>,
    out: BytesMut,
    shutdown: Shutdown,
    ended: Option<ConnectionViolation>,
}

impl Connection {
    /// A connection that has just been made. Its preface is in the output.
    pub fn new(role: Role, config: Config) -> Self {
        let mut out = BytesMut::new();
        let settings = match role {
            Role::Client => {
                write_preface(&mut out);
                config.client_settings()
            }
            Role::Server => config.server_settings(),
        };
        write_settings(&settings, &mut out);
        let mut receive_window = ReceiveWindow::new(WindowSize::DEFAULT);
        let size = config.connection_window.max(WindowSize::DEFAULT);
        if let Some(increment) = receive_window.resize(size) {
            write_window_update(None, increment, &mut out);
        }
        // Before it has acknowledged them the peer may use what holds without settings.
        let table = config.receive_table.max(DEFAULT_TABLE_SIZE);
        let encoder = match config.send_table {
            0 => Encoder::plain(),
            table => Encoder::with_table(table),
        };
        Self {
            role,
            // A block is no longer than its list: one that is too large ends its stream alone.
            reader: Reader::new(role, config.frames.at_least(config.header_list)),
            decoder: Decoder::new(table, config.header_list as usize),
            scratch: Scratch::default(),
            encoder,
            receive_window,
            send_window: SendWindow::new(WindowSize::DEFAULT),
            peer: PeerSettings::default(),
            is_acknowledged: false,
            streams: Streams::default(),
            highest: None,
            has_gaps: false,
            resets: RecentResets::default(),
            idle: IdleBudget::new(),
            queue: VecDeque::new(),
            reserved: 0,
            events: VecDeque::new(),
            out,
            shutdown: Shutdown::default(),
            ended: None,
            config,
        }
    }

    /// What is to be written. Whoever has written some of it takes that off its front.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Whether something is to be written.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether there is room for more of what this side begins: where not, answers should wait.
    pub fn has_room(&self) -> bool {
        self.out.len() < self.config.out_bytes
    }

    /// Whether there is room for what answers the peer's frames.
    pub fn may_receive(&self) -> bool {
        self.out.len() < self.config.out_bytes.saturating_mul(2)
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> u32 {
        self.streams.open()
    }

    /// Whether there is no stream, nor data of one that somebody holds.
    pub fn is_unused(&self) -> bool {
        self.streams.len() == 0
    }

    /// Why it has ended, if it has.
    pub fn violation(&self) -> Option<&ConnectionViolation> {
        self.ended.as_ref()
    }

    /// Ends the connection: GOAWAY is in the output, behind which nothing follows. For what its driver
    /// finds; what is found here does it by itself.
    pub fn abort(&mut self, code: ErrorCode, reason: &'static str) {
        if self.ended.is_none() {
            self.end_with(ConnectionViolation::Aborted { code, reason });
        }
    }

    fn end_with(&mut self, violation: ConnectionViolation) {
        let debug = violation.to_string();
        let last = self.last_stream();
        write_goaway(last, violation.code(), debug.as_bytes(), &mut self.out);
        self.ended = Some(violation);
    }

    /// Resets a stream: nothing of it is sent or told any more. Without effect where it has ended.
    pub fn reset(&mut self, stream: StreamKey, code: ErrorCode) {
        if self.ended.is_some() || self.streams.get(stream).is_none_or(Stream::is_closed) {
            // What is left of it is dropped with it.
            return self.forget(stream);
        }
        self.write_reset(stream.id(), code);
        self.forget(stream);
    }

    /// The application has taken so many bytes of those that [`Event::Data`] brought: they are allowed
    /// again. Also for streams that have ended in the meantime, as long as they were not reset.
    pub fn consumed(&mut self, stream: StreamKey, bytes: usize) {
        let Some(found) = self.streams.get_mut(stream) else {
            return;
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bytes = bytes.min(found.receive_window.held());
        let update = found.receive_window.consume(bytes);
        let is_over = found.is_closed() && found.receive_window.held() == 0;
        if let Some(increment) = update
            && found.receive != Half::Ended
            && self.ended.is_none()
        {
            write_window_update(Some(stream.id()), increment, &mut self.out);
        }
        self.release(bytes);
        if is_over {
            self.remove(stream);
        }
    }

    /// Nobody reads the stream any more: what is held of it is given back to the connection's window,
    /// and what still comes of it is dropped without an event. Its own window is not given back, so that
    /// the peer stops; whether it is told so by a reset is for the caller to say.
    pub fn discard(&mut self, stream: StreamKey) {
        let Some(found) = self.streams.get_mut(stream) else {
            return;
        };
        found.is_discarded = true;
        let held = found.receive_window.held();
        let _not_told = found.receive_window.consume(held);
        let is_closed = found.is_closed();
        self.release(held);
        if is_closed {
            self.remove(stream);
        }
    }

    /// Whether more may come on the stream.
    pub fn is_receiving(&self, stream: StreamKey) -> bool {
        let found = self.streams.get(stream);
        found.is_some_and(|found| found.receive != Half::Ended)
    }

    /// Bytes of the connection's window are allowed again.
    fn release(&mut self, bytes: u32) {
        if let Some(increment) = self.receive_window.consume(bytes)
            && self.ended.is_none()
        {
            write_window_update(None, increment, &mut self.out);
        }
    }

    /// Resets a stream that may not be among those that are known.
    fn write_reset(&mut self, stream: StreamId, code: ErrorCode) {
        write_reset_stream(stream, code, &mut self.out);
        self.resets.insert(stream);
    }

    /// Drops a stream, and what is held of it.
    fn forget(&mut self, stream: StreamKey) {
        if let Some(removed) = self.remove(stream) {
            self.release(removed.receive_window.held());
        }
    }

    fn remove(&mut self, stream: StreamKey) -> Option<Stream> {
        self.leave_queue(stream);
        self.streams.remove(stream)
    }

    /// The stream has nothing more to send.
    fn leave_queue(&mut self, stream: StreamKey) {
        let Some(found) = self.streams.get_mut(stream) else {
            return;
        };
        found.is_blocked = false;
        self.reserved -= std::mem::take(&mut found.reserved);
        if std::mem::take(&mut found.is_queued) {
            self.queue.retain(|queued| *queued != stream);
        }
    }

    /// A direction of a stream has ended.
    fn on_half_ended(&mut self, stream: StreamKey) {
        self.streams.on_half_ended(stream);
        let is_over = self
            .streams
            .get(stream)
            .is_some_and(|found| found.is_closed() && found.receive_window.held() == 0);
        if is_over {
            self.remove(stream);
        }
    }
}

#[cfg(test)]
mod tests;
