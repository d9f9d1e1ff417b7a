//! Streams of bytes, which `CONNECT` makes of a stream (RFC 9113 section 8.5): a stream's two directions
//! as something that is read and written.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body as _, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::StreamBody;
use super::failure::StreamFailure;
use super::outgoing::Stop;
use crate::abort::Abort;

/// Bytes that were written to a tunnel and that its connection has not taken.
const PIPE_BYTES: usize = 32 * 1024;

/// What is sent on a tunnel's stream, and what it is written with.
pub fn tunnel() -> (TunnelWriter, TunnelBody) {
    let pipe = Arc::<Pipe>::default();
    (TunnelWriter(Arc::clone(&pipe)), TunnelBody(pipe))
}

/// What was written and not sent yet. The lock is held for a few instructions.
#[derive(Debug, Default)]
struct Pipe(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    data: BytesMut,
    end: End,
    /// Who waits for something to send.
    reader: Option<Waker>,
    /// Who waits for room.
    writer: Option<Waker>,
    /// Who waits for the stream to be broken off.
    watcher: Option<Waker>,
}

/// How far the direction has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// All was written.
    Finished,
    /// It was broken off by who writes.
    Aborted,
    /// The other side has said everything and reads no more, which is no failure.
    Unread,
    /// The other side has reset the stream behind its own end.
    Reset,
    /// The stream has ended.
    Gone,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes who waits for the other side.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        let waiting = [
            state.reader.take(),
            state.writer.take(),
            state.watcher.take(),
        ];
        drop(state);
        waiting.into_iter().flatten().for_each(Waker::wake);
        changed
    }
}

/// What is sent on a tunnel's stream.
#[derive(Debug)]
pub struct TunnelBody(Arc<Pipe>);

impl TunnelBody {
    /// The next bytes; an error where they were broken off.
    pub(in crate::http) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TunnelAborted>>> {
        let mut state = self.0.lock();
        if state.end == End::Aborted {
            return Poll::Ready(Some(Err(TunnelAborted)));
        }
        if !state.data.is_empty() {
            let data = state.data.split().freeze();
            let writer = state.writer.take();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if state.end != End::Open {
            return Poll::Ready(None);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Told when the bytes are broken off: nothing is taken.
    pub(in crate::http) fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<TunnelAborted> {
        let mut state = self.0.lock();
        if state.end == End::Aborted {
            return Poll::Ready(TunnelAborted);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether all of it was sent.
    pub(in crate::http) fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.end == End::Finished && state.data.is_empty()
    }

    /// The other side has said everything and takes no more.
    pub(in crate::http) fn on_stopped(&mut self, stop: Stop) {
        self.0.change(|state| {
            state.end = match stop {
                Stop::Unread => End::Unread,
                Stop::Reset => End::Reset,
            };
            state.data = BytesMut::new();
        });
    }
}

impl Drop for TunnelBody {
    fn drop(&mut self) {
        self.0.change(|state| {
            let is_whole = state.end == End::Finished && state.data.is_empty();
            if !is_whole && !matches!(state.end, End::Unread | End::Reset) {
                state.end = End::Gone;
                state.data = BytesMut::new();
            }
        });
    }
}

/// A tunnel's bytes were broken off.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the stream of bytes was broken off")]
pub struct TunnelAborted;

/// What a tunnel's stream is written with. Dropped, what is sent ends in order.
#[derive(Debug)]
pub struct TunnelWriter(Arc<Pipe>);

impl TunnelWriter {
    /// The tunnel, of which `body` is what arrives.
    pub fn with(self, body: StreamBody) -> Tunnel {
        Tunnel {
            writer: self,
            body,
            piece: Bytes::new(),
        }
    }
}

impl Drop for TunnelWriter {
    fn drop(&mut self) {
        self.0.change(|state| {
            if state.end == End::Open {
                state.end = End::Finished;
            }
        });
    }
}

/// A stream of bytes.
#[derive(Debug)]
pub struct Tunnel {
    writer: TunnelWriter,
    body: StreamBody,
    /// What was taken of it and not read yet.
    piece: Bytes,
}

impl Tunnel {
    /// Tells when the other side has reset the stream, also behind its own end, where nothing is read any
    /// more.
    pub(in crate::http) fn watch(&self) -> TunnelWatch {
        TunnelWatch(Arc::clone(&self.writer.0))
    }
}

/// Waits for the other side of a tunnel to break it off.
#[derive(Debug)]
pub(in crate::http) struct TunnelWatch(Arc<Pipe>);

impl Future for TunnelWatch {
    type Output = io::Error;

    /// The end of the connection is none of the stream: what has come before goes on.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut state = self.0.lock();
        if state.end == End::Reset {
            return Poll::Ready(reset());
        }
        match &mut state.watcher {
            Some(watcher) => watcher.clone_from(cx.waker()),
            None => state.watcher = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Abort for Tunnel {
    fn abort(&mut self) {
        self.writer.0.change(|state| {
            if matches!(state.end, End::Open | End::Finished) {
                state.end = End::Aborted;
                state.data = BytesMut::new();
            }
        });
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        while me.piece.is_empty() {
            match ready!(Pin::new(&mut me.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(frame)) => {
                    // There are no trailers after a tunnel's bytes.
                    if let Ok(data) = frame.into_data() {
                        me.piece = data;
                    }
                }
                Some(Err(failure)) => return Poll::Ready(Err(broken(failure))),
            }
        }
        let length = me.piece.len().min(buffer.remaining());
        buffer.put_slice(&me.piece[..length]);
        me.piece.advance(length);
        Poll::Ready(Ok(()))
    }
}

fn broken(failure: StreamFailure) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, failure)
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the stream has ended")
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the stream was reset")
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.writer.0.lock();
        match state.end {
            End::Open => {}
            End::Unread => return Poll::Ready(Ok(bytes.len())),
            End::Finished | End::Aborted => {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            End::Reset => return Poll::Ready(Err(reset())),
            End::Gone => return Poll::Ready(Err(gone())),
        }
        let length = bytes.len().min(PIPE_BYTES.saturating_sub(state.data.len()));
        if length == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.data.extend_from_slice(&bytes[..length]);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = self.writer.0.lock().end;
        Poll::Ready(match end {
            End::Open | End::Finished | End::Unread => Ok(()),
            End::Reset => Err(reset()),
            End::Aborted | End::Gone => Err(gone()),
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = self.writer.0.change(|state| {
            if state.end == End::Open {
                state.end = End::Finished;
            }
            state.end
        });
        Poll::Ready(match end {
            End::Open | End::Finished | End::Unread => Ok(()),
            End::Reset => Err(reset()),
            End::Aborted | End::Gone => Err(gone()),
        })
    }
}
