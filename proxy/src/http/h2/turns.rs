//! What both sides of a connection do in a turn: look whether the other side is there, read, hear what
//! readers have taken, go on with what was woken, write.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::h2::connection::{Connection, ConnectionViolation, Event, StreamKey};

use super::arrived::Come;
use super::failure::StreamFailure;
use super::inbox::{Inboxes, Touched};
use super::probe::{PROBE, Probe, Probed, Probing};
use super::ready::Ready;
use super::wire::Wire;

/// How often a connection goes from reading to writing before others have their turn.
pub(super) const ROUNDS: usize = 8;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The other side has broken a rule, or this one has ended the connection.
    #[error("{0}")]
    Violation(Arc<ConnectionViolation>),
    /// The socket has failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side does not answer any more.
    #[error("a PING was not answered")]
    Silent,
}

impl DriveError {
    /// What everything on the connection has failed with.
    pub(super) fn failure(&self) -> StreamFailure {
        match self {
            Self::Silent => StreamFailure::Ended,
            Self::Violation(violation) => StreamFailure::Connection(Arc::clone(violation)),
            Self::Io(error) => StreamFailure::io(error),
        }
    }
}

/// A connection with its socket, and what is to be done on it.
#[derive(Debug)]
pub(super) struct Turns<IO> {
    pub(super) wire: Wire<IO>,
    /// Parts that were woken, and were not polled yet.
    woken: Vec<u32>,
    touched: Vec<Touched>,
    probe: Option<Probe>,
    /// Whether more was not read for want of room in the output.
    is_held_up: bool,
}

/// What reading has come to.
#[derive(Debug)]
pub(super) enum Read {
    Event(Event),
    /// Nothing more is here, or may be read now.
    Nothing,
    /// The other side sends no more.
    Ended,
}

/// What follows a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another one.
    Round,
    /// Nothing is left to do before something happens.
    Wait,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Turns<IO> {
    pub(super) fn new(
        io: IO,
        connection: Connection,
        probing: Option<Probing>,
        ready: &Arc<Ready>,
    ) -> Self {
        Self {
            wire: Wire::new(io, connection, ready),
            woken: Vec::new(),
            touched: Vec::new(),
            probe: probing.map(Probe::new),
            is_held_up: false,
        }
    }

    /// Asks the other side, of which nothing has come for long, whether it is there.
    pub(super) fn probe(&mut self) -> Result<(), DriveError> {
        let Some(probe) = &mut self.probe else {
            return Ok(());
        };
        // Its timer wakes what the socket does.
        let Some(waker) = self.wire.woken() else {
            return Ok(());
        };
        let mut cx = Context::from_waker(waker);
        let probed = probe.poll(&mut cx, self.wire.connection.is_unused());
        let connection = &mut self.wire.connection;
        match probed {
            Probed::Nothing => Ok(()),
            Probed::Ask => {
                connection.ping(PROBE);
                Ok(())
            }
            Probed::Silent => Err(DriveError::Silent),
        }
    }

    /// The next event; reads where none is here, `budget` bytes at most.
    pub(super) fn read(&mut self, budget: &mut usize) -> Result<Read, DriveError> {
        self.is_held_up = false;
        loop {
            match self.wire.next_event() {
                Ok(Some(event)) => return Ok(Read::Event(event)),
                Ok(None) => {}
                Err(violation) => return Err(DriveError::Violation(Arc::new(violation))),
            }
            self.is_held_up = !self.wire.connection.may_receive();
            if self.is_held_up || *budget == 0 {
                return Ok(Read::Nothing);
            }
            match self.wire.poll_read(*budget) {
                Poll::Pending => return Ok(Read::Nothing),
                Poll::Ready(Ok(0)) => return Ok(Read::Ended),
                Poll::Ready(Ok(read)) => {
                    *budget = budget.saturating_sub(read);
                    if let Some(probe) = &mut self.probe {
                        probe.on_read();
                    }
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
        }
    }

    /// Tells the connection what readers have taken. `on_dropped` hears of streams that nobody reads any
    /// more, and what had come of their message.
    pub(super) fn hear_readers(
        &mut self,
        inboxes: &Inboxes,
        mut on_dropped: impl FnMut(&mut Connection, StreamKey, Come),
    ) {
        inboxes.take_touched(&mut self.touched);
        let connection = &mut self.wire.connection;
        for touch in self.touched.drain(..) {
            if touch.is_dropped {
                inboxes.close(touch.inbox);
            }
            let Some(stream) = touch.stream else {
                continue;
            };
            connection.consumed(stream, touch.taken);
            if touch.is_dropped {
                connection.discard(stream);
                on_dropped(connection, stream, touch.come);
            }
        }
    }

    /// Takes note of what was woken until now: each part has its turn once.
    pub(super) fn begin_work(&mut self, ready: &Ready) {
        if self.woken.is_empty() {
            ready.take(&mut self.woken);
            self.woken.reverse();
        }
    }

    /// The next part that was woken, while there is room for what comes of it.
    pub(super) fn next_woken(&mut self) -> Option<usize> {
        let has_room = self.wire.connection.has_room();
        let number = has_room.then(|| self.woken.pop()).flatten()?;
        Some(number as usize)
    }

    /// What follows a round at whose end all of the output was written or not.
    pub(super) fn next(&self, is_written: bool) -> Next {
        let connection = &self.wire.connection;
        if self.is_held_up && connection.may_receive() {
            return Next::Round;
        }
        // While the socket takes nothing, its readiness is what is waited for.
        match !is_written || self.woken.is_empty() && !connection.has_output() {
            true => Next::Wait,
            false => Next::Round,
        }
    }
}
