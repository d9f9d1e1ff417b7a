//! A connection's bytes: what is read in a turn, and what is written at its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;
use weft_core::h2::connection::{Connection, ConnectionViolation, Event};

use crate::buffers::{self, Size};

/// Room for one read.
const READ_SIZE: Size = Size::KIB_16;
/// Room that is left for a read before there is made more.
const READ_BYTES_MIN: usize = 4 * 1024;
/// What a connection that has nothing to write keeps of the memory for it.
const WRITE_BYTES_KEPT: usize = 8 * 1024;

/// A connection with its socket.
#[derive(Debug)]
pub(super) struct Wire<IO> {
    io: IO,
    pub(super) connection: Connection,
    /// What was received and not understood yet.
    received: BytesMut,
    /// Whether the socket has sent all that it has taken.
    is_flushed: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Wire<IO> {
    pub(super) fn new(io: IO, connection: Connection) -> Self {
        Self {
            io,
            connection,
            received: BytesMut::new(),
            is_flushed: true,
        }
    }

    /// Reads once, `most` bytes at most; how many came, 0 at the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        if self.received.capacity() == 0 {
            self.received = buffers::take(READ_SIZE);
        } else if self.received.capacity() - self.received.len() < READ_BYTES_MIN {
            self.received.reserve(READ_SIZE.bytes());
        }
        let mut room = (&mut self.received).limit(most);
        let polled = poll_read_buf(Pin::new(&mut self.io), cx, &mut room);
        let is_idle = self.received.is_empty() && self.connection.is_unused();
        if polled.is_pending() && is_idle {
            // An idle connection holds no buffer.
            buffers::give(std::mem::take(&mut self.received), READ_SIZE);
        }
        polled
    }

    /// The next event of what was read.
    pub(super) fn next_event(&mut self) -> Result<Option<Event>, ConnectionViolation> {
        let now = crate::clock::now();
        self.connection.receive(&mut self.received, now)
    }

    /// Writes all of the output.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let output = self.connection.output();
            if output.is_empty() {
                break;
            }
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_flushed = false;
            if written < output.len() {
                output.advance(written);
            } else if output.capacity() > WRITE_BYTES_KEPT {
                *output = BytesMut::new();
            } else {
                output.clear();
            }
        }
        if !self.is_flushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the side that is written.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
