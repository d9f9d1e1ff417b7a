//! The bytes of one connection: what was read of it and not used yet, and what is to be written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffers::{self, Size};

/// Data up to this many bytes is copied behind what is to be written before it; longer data is
/// written from where it is.
const COPY_MAX_BYTES: usize = 4 * 1024;
/// As much as this waits to be written before no more is asked for.
const QUEUE_MAX_BYTES: usize = 64 * 1024;
/// What a connection has room for that has begun to send.
const READ_SIZE: Size = Size::KIB_8;
/// Room for one read of a body whose bytes come faster than they are read.
const BULK_SIZE: Size = Size::KIB_64;
/// What a connection has room for to which something is to be written: heads, and data that is copied.
const WRITE_SIZE: Size = Size::KIB_8;
/// Room for a read of a head, at least.
pub(super) const HEAD_READ_BYTES: usize = 4 * 1024;
/// Room for a read of what is only to tell that the other side has gone, at least.
const AHEAD_READ_BYTES: usize = 1024;

/// A connection with its buffers. Memory is bounded: `read` by whoever asks for more, the queue by
/// [`QUEUE_MAX_BYTES`] and one piece of data.
pub(super) struct Wire<IO> {
    io: IO,
    /// Received and not used yet.
    pub(super) read: BytesMut,
    /// What that was taken with.
    read_size: Size,
    /// Room for the next read of a body.
    body_size: Size,
    /// The other side has ended its sending.
    pub(super) eof: bool,
    /// To be written first.
    small: BytesMut,
    /// To be written next.
    large: Bytes,
    /// To be written last.
    after: BytesMut,
    /// Bytes written in all.
    pub(super) written: u64,
    unflushed: bool,
}

impl<IO> std::fmt::Debug for Wire<IO> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire")
            .field("read", &self.read.len())
            .field("eof", &self.eof)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl<IO> Wire<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            read_size: READ_SIZE,
            body_size: READ_SIZE,
            eof: false,
            small: BytesMut::new(),
            large: Bytes::new(),
            after: BytesMut::new(),
            written: 0,
            unflushed: false,
        }
    }

    /// The connection itself.
    pub(super) fn io(&self) -> &IO {
        &self.io
    }

    pub(super) fn into_parts(self) -> (IO, Bytes) {
        // An empty one would keep its memory.
        let first = match self.read.is_empty() {
            true => Bytes::new(),
            false => self.read.freeze(),
        };
        (self.io, first)
    }

    /// Where heads and what frames a body are written to.
    pub(super) fn out(&mut self) -> &mut BytesMut {
        if !self.large.is_empty() {
            return &mut self.after;
        }
        if self.small.capacity() == 0 {
            self.small = buffers::take(WRITE_SIZE);
        }
        &mut self.small
    }

    /// Queues data of a body.
    pub(super) fn queue(&mut self, data: Bytes) {
        if data.len() > COPY_MAX_BYTES && self.large.is_empty() {
            self.large = data;
        } else {
            self.out().extend_from_slice(&data);
        }
    }

    /// Whether more may be queued.
    pub(super) fn has_room(&self) -> bool {
        self.large.is_empty() && self.small.len() < QUEUE_MAX_BYTES
    }

    /// Whether all that was queued has been handed to the connection.
    pub(super) fn is_drained(&self) -> bool {
        self.small.is_empty() && self.large.is_empty() && self.after.is_empty()
    }

    /// Whether all that was queued has left, also what the connection had held back.
    pub(super) fn is_flushed(&self) -> bool {
        self.is_drained() && !self.unflushed
    }

    /// Holds no buffer for what is read any more, unless something is in it: nothing more is there. What
    /// was written is given back with its last byte.
    pub(super) fn rest(&mut self) {
        if self.read.is_empty() {
            buffers::give(std::mem::take(&mut self.read), self.read_size);
        }
    }

    /// Has room for `least` bytes, in a buffer of that size where there is none.
    fn make_room(&mut self, size: Size, least: usize) {
        if self.read.capacity() == 0 {
            self.read = buffers::take(size);
            self.read_size = size;
        }
        self.read.reserve(least);
    }

    fn room(&self) -> usize {
        self.read.capacity() - self.read.len()
    }
}

impl<IO: AsyncRead + Unpin> Wire<IO> {
    /// Reads more of a head, with room for `room` bytes; 0 at the end.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        self.make_room(READ_SIZE, room);
        self.poll_read(cx)
    }

    /// Reads more of a body that is asked for; 0 at the end.
    pub(super) fn poll_fill_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // What a head has left is used first.
        let is_enough = self.body_size == READ_SIZE && self.room() >= HEAD_READ_BYTES;
        let least = match is_enough {
            true => HEAD_READ_BYTES,
            false => self.body_size.bytes(),
        };
        self.poll_bulk(cx, least)
    }

    /// Reads what comes before it is asked for, which tells that the other side has gone; 0 at the end.
    pub(super) fn poll_fill_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_bulk(cx, AHEAD_READ_BYTES)
    }

    /// Reads with room for `least` bytes. The next read has more where this one fills all of its room, since
    /// there is more where that came from, and less where little comes.
    fn poll_bulk(&mut self, cx: &mut Context<'_>, least: usize) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let size = self.body_size;
        self.make_room(size, least);
        let room = self.room();
        let read = ready!(self.poll_read(cx))?;
        if read >= room {
            // A body of a few buffers costs not many more calls than one that is known to be large.
            self.body_size = size.doubled(BULK_SIZE).doubled(BULK_SIZE);
        } else if read < size.bytes() / 4 {
            self.body_size = size.halved(READ_SIZE);
        }
        Poll::Ready(Ok(read))
    }

    /// Reads into the room that there is. Who waits holds no buffer.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
        if read.is_pending() {
            self.rest();
        }
        let read = ready!(read)?;
        self.eof = read == 0;
        Poll::Ready(Ok(read))
    }

    /// Reads and forgets; 0 at the end.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let mut room = [std::mem::MaybeUninit::uninit(); HEAD_READ_BYTES];
        let mut room = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut room))?;
        self.eof = room.filled().is_empty();
        Poll::Ready(Ok(room.filled().len()))
    }
}

impl<IO: AsyncWrite + Unpin> Wire<IO> {
    /// Writes all that is queued, and has the connection send it.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_drained() {
            let written = ready!(self.poll_write(cx))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written as u64;
            self.unflushed = true;
            self.advance(written);
        }
        // An exchange may last for hours.
        buffers::give(std::mem::take(&mut self.small), WRITE_SIZE);
        self.after = BytesMut::new();
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.io);
        if self.large.is_empty() && self.after.is_empty() {
            return io.poll_write(cx, &self.small);
        }
        let slices = [&self.small[..], &self.large, &self.after].map(IoSlice::new);
        let first = slices.iter().position(|slice| !slice.is_empty());
        let slices = &slices[first.unwrap_or_default()..];
        if io.is_write_vectored() {
            io.poll_write_vectored(cx, slices)
        } else {
            io.poll_write(cx, &slices[0])
        }
    }

    fn advance(&mut self, mut written: usize) {
        let small = written.min(self.small.len());
        if small == self.small.len() {
            self.small.clear();
        } else {
            self.small.advance(small);
        }
        written -= small;
        let large = written.min(self.large.len());
        self.large.advance(large);
        if self.large.is_empty() {
            // An empty one would keep its memory.
            self.large = Bytes::new();
        }
        written -= large;
        self.after.advance(written);
        if self.large.is_empty() && !self.after.is_empty() && self.small.is_empty() {
            std::mem::swap(&mut self.small, &mut self.after);
        }
    }

    /// Ends the sending.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Who waits holds no buffer, little takes little, and bulk is read in large pieces.
    #[tokio::test]
    async fn room_is_made_for_what_comes() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(near);
        for bulk in [1 << 20, 3 << 20] {
            for fill in [Wire::poll_fill_body, Wire::poll_fill_ahead] {
                let nothing = poll_fn(|cx| Poll::Ready(fill(&mut wire, cx).is_pending()));
                assert!(nothing.await);
                assert_eq!(wire.read.capacity(), 0);
            }
            far.write_all(b"little").await.unwrap();
            poll_fn(|cx| wire.poll_fill_body(cx)).await.unwrap();
            assert!(wire.read.capacity() <= 8 << 10);
            assert_eq!(wire.read.split_to(6).freeze(), "little");
            let (mut calls, mut received) = (0, 0);
            while received < bulk {
                far.write_all(&vec![7; 1 << 18]).await.unwrap();
                let burst = received + (1 << 18);
                while received < burst {
                    received += poll_fn(|cx| wire.poll_fill_body(cx)).await.unwrap();
                    drop(wire.read.split().freeze());
                    calls += 1;
                }
            }
            // All but the first few reads are of 64 KiB.
            assert!(calls <= (bulk >> 16) + 4, "{calls} for {bulk}");
            let rest = poll_fn(|cx| {
                while wire.poll_fill_body(cx)?.is_ready() {
                    wire.read.clear();
                }
                Poll::Ready(Ok::<_, io::Error>(()))
            });
            rest.await.unwrap();
            assert_eq!(wire.read.capacity(), 0);
            // It was bulk.
            for _ in 0..4 {
                far.write_all(b"little").await.unwrap();
                poll_fn(|cx| wire.poll_fill_body(cx)).await.unwrap();
                wire.read.clear();
            }
            let nothing = poll_fn(|cx| Poll::Ready(wire.poll_fill_body(cx).is_pending()));
            assert!(nothing.await);
        }
    }

    /// What has been written keeps no memory.
    #[tokio::test]
    async fn data_that_is_written_is_let_go() {
        let (near, _far) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(near);
        let data = Bytes::from(vec![7; 100_000]);
        wire.queue(data.clone());
        poll_fn(|cx| wire.poll_flush(cx)).await.unwrap();
        assert!(data.is_unique());
    }

    proptest! {
        /// Whatever is queued is written, in its order, however little the connection takes.
        #[test]
        fn the_order_is_kept(
            pieces in proptest::collection::vec((any::<bool>(), 0usize..20_000), 0..12),
            accepted in 1usize..9_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            runtime.block_on(async {
                let (near, mut far) = tokio::io::duplex(accepted);
                let reading = tokio::spawn(async move {
                    let mut read = Vec::new();
                    far.read_to_end(&mut read).await.map(|_| read)
                });
                let mut wire = Wire::new(near);
                let mut expected = Vec::new();
                for (index, (head, length)) in pieces.iter().enumerate() {
                    let piece = vec![index as u8; *length];
                    expected.extend_from_slice(&piece);
                    match head {
                        true => wire.out().extend_from_slice(&piece),
                        false => wire.queue(piece.into()),
                    }
                    if !wire.has_room() {
                        poll_fn(|cx| wire.poll_flush(cx)).await?;
                    }
                }
                poll_fn(|cx| wire.poll_flush(cx)).await?;
                assert!(wire.is_drained());
                assert_eq!(wire.written as usize, expected.len());
                drop(wire);
                assert_eq!(reading.await??, expected);
                Ok::<(), io::Error>(())
            })?;
        }
    }
}
