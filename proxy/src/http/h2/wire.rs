//! A connection's bytes: what is read in a turn, and what is written at its end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;
use weft_core::h2::connection::{Connection, ConnectionViolation, Event};

use super::ready::{Ready, Socket};
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
    /// What the socket wakes, whether it is read or written.
    socket: Arc<Socket>,
    waker: Waker,
    pub(super) connection: Connection,
    /// What was received and not understood yet.
    received: BytesMut,
    /// Whether the socket has sent all that it has taken.
    is_flushed: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Wire<IO> {
    pub(super) fn new(io: IO, connection: Connection, ready: &Arc<Ready>) -> Self {
        let socket = Socket::new(ready);
        Self {
            io,
            waker: Waker::from(Arc::clone(&socket)),
            socket,
            connection,
            received: BytesMut::new(),
            is_flushed: true,
        }
    }

    /// What the socket wakes, where it was woken since the last time that there was nothing to read.
    pub(super) fn woken(&self) -> Option<&Waker> {
        self.socket.is_woken().then_some(&self.waker)
    }

    /// Reads once, `most` bytes at most; how many came, 0 at the end. While the socket says nothing new, it
    /// is not asked.
    pub(super) fn poll_read(&mut self, most: usize) -> Poll<io::Result<usize>> {
        let polled = match self.socket.begin_poll() {
            true => self.poll_socket(most),
            false => Poll::Pending,
        };
        if polled.is_ready() {
            self.socket.mark();
        } else if self.received.is_empty() && self.connection.is_unused() {
            // An idle connection holds no buffer.
            buffers::give(std::mem::take(&mut self.received), READ_SIZE);
        }
        polled
    }

    fn poll_socket(&mut self, most: usize) -> Poll<io::Result<usize>> {
        if self.received.capacity() == 0 {
            self.received = buffers::take(READ_SIZE);
        } else if self.received.capacity() - self.received.len() < READ_BYTES_MIN {
            self.received.reserve(READ_SIZE.bytes());
        }
        let mut room = (&mut self.received).limit(most);
        let mut cx = Context::from_waker(&self.waker);
        poll_read_buf(Pin::new(&mut self.io), &mut cx, &mut room)
    }

    /// The next event of what was read.
    pub(super) fn next_event(&mut self) -> Result<Option<Event>, ConnectionViolation> {
        let now = crate::clock::now();
        self.connection.receive(&mut self.received, now)
    }

    /// Writes all of the output.
    pub(super) fn poll_write(&mut self) -> Poll<io::Result<()>> {
        let cx = &mut Context::from_waker(&self.waker);
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
    pub(super) fn poll_shutdown(&mut self) -> Poll<io::Result<()>> {
        let mut cx = Context::from_waker(&self.waker);
        Pin::new(&mut self.io).poll_shutdown(&mut cx)
    }
}
