//! The end of a connection in good order (RFC 9113 section 6.8).

use super::super::frame::{ErrorCode, Role, StreamId, write_goaway, write_ping};
use super::event::Event;
use super::streams::StreamKey;
use super::{Connection, ResetCause};

/// What this side sends in a PING behind its first GOAWAY.
const PING: [u8; 8] = *b"weft-end";

/// How far the end has come.
#[derive(Debug, Default)]
pub(super) struct Shutdown {
    sent: Sent,
    /// The last stream that the peer processes, where it has sent GOAWAY; 0: none.
    received: Option<u32>,
}

/// What the peer has been told.
#[derive(Debug, Default, PartialEq, Eq)]
enum Sent {
    #[default]
    Nothing,
    /// That no more streams should be opened. Those under way are still taken.
    Warning,
    /// That none after this one is processed.
    Last(Option<StreamId>),
}

impl Connection {
    /// Ends the connection in good order: the peer is told to open no more streams. A server goes on
    /// taking those that are under way until the peer has answered. Without effect the second time.
    pub fn shut_down(&mut self) {
        if self.shutdown.sent != Sent::Nothing || self.ended.is_some() {
            return;
        }
        match self.role {
            Role::Server => {
                self.shutdown.sent = Sent::Warning;
                let code = ErrorCode::NO_ERROR;
                write_goaway(Some(StreamId::MAX), code, b"", &mut self.out);
                write_ping(PING, &mut self.out);
            }
            // No server opens streams.
            Role::Client => self.say_last(None),
        }
    }

    /// Takes no more streams, as if the peer had answered [`Self::shut_down`]: for one that does not.
    /// Without effect before that.
    pub fn stop_waiting(&mut self) {
        if self.shutdown.sent == Sent::Warning && self.ended.is_none() {
            self.say_last(self.highest);
        }
    }

    /// The last stream that a GOAWAY names now: it never increases (section 6.8).
    pub(super) fn last_stream(&self) -> Option<StreamId> {
        match (&self.shutdown.sent, self.role) {
            (Sent::Last(last), _) => *last,
            // No server opens streams.
            (Sent::Nothing | Sent::Warning, Role::Client) => None,
            (Sent::Nothing | Sent::Warning, Role::Server) => self.highest,
        }
    }

    /// Whether it is shut down and everything on it is over: it is to be closed once the output is
    /// written.
    pub fn is_finished(&self) -> bool {
        let is_last = match self.shutdown.sent {
            Sent::Last(_) => true,
            Sent::Nothing | Sent::Warning => self.shutdown.received.is_some(),
        };
        is_last && self.streams.open() == 0
    }

    /// Whether the peer takes no new streams.
    pub fn is_going_away(&self) -> bool {
        self.shutdown.received.is_some() || self.shutdown.sent != Sent::Nothing
    }

    fn say_last(&mut self, last: Option<StreamId>) {
        self.shutdown.sent = Sent::Last(last);
        write_goaway(last, ErrorCode::NO_ERROR, b"", &mut self.out);
    }

    /// A PING was answered: if it was the one of the end, the peer has seen the first GOAWAY.
    pub(super) fn on_ping_ack(&mut self, payload: [u8; 8]) {
        if payload == PING && self.shutdown.sent == Sent::Warning {
            return self.say_last(self.highest);
        }
        self.events.push_back(Event::PingAnswered { payload });
    }

    /// Whether a new stream comes too late to be processed.
    pub(super) fn is_too_late(&self, stream: StreamId) -> bool {
        match self.shutdown.sent {
            Sent::Last(last) => last.is_none_or(|last| stream > last),
            Sent::Nothing | Sent::Warning => false,
        }
    }

    /// GOAWAY was received. A last stream that increases is not believed (section 6.8).
    pub(super) fn on_goaway(
        &mut self,
        last: Option<StreamId>,
        code: ErrorCode,
        debug: bytes::Bytes,
    ) {
        let last = last.map_or(0, StreamId::get);
        let last = self
            .shutdown
            .received
            .map_or(last, |before| before.min(last));
        self.shutdown.received = Some(last);
        self.events.push_back(Event::GoAway { code, debug });
        if self.role == Role::Server {
            return;
        }
        let mut unprocessed: Vec<StreamKey> = Vec::new();
        self.streams.for_each(|key, stream| {
            if key.id().get() > last && !stream.is_closed() {
                unprocessed.push(key);
            }
        });
        for stream in unprocessed {
            self.forget(stream);
            let cause = ResetCause::Unprocessed;
            self.events.push_back(Event::Reset { stream, cause });
        }
    }
}
