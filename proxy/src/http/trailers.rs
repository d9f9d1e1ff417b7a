//! Trailers towards an HTTP/1.1 peer.
//!
//! RFC 9110 section 6.6.2 asks senders to announce trailers in `Trailer`, and many don't: what comes
//! over HTTP/2 or from an ordinary server is known only when the body has ended. hyper's encoder
//! writes announced ones and drops the rest. So the end of a chunked body is written here: instead
//! of the trailers, the body gives hyper one last chunk of random bytes, and the connection, which
//! sees everything that hyper writes, puts `0`, the trailers and an empty line in the place of that
//! chunk and of the end behind it. Whatever has no trailers passes untouched.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_core::headers::may_be_trailer;

/// As many random bytes as nobody guesses.
const MARKER_BYTES: usize = 16;
/// What hyper writes before a chunk of [`MARKER_BYTES`].
const CHUNK_SIZE: &[u8] = b"10\r\n";
/// What hyper writes after the last chunk.
const END: &[u8] = b"\r\n0\r\n\r\n";
/// A chunk of [`MARKER_BYTES`] and the end of the body.
const PATTERN_BYTES: usize = CHUNK_SIZE.len() + MARKER_BYTES + END.len();

/// What a body and the connection it is written to share. One message is written at a time.
#[derive(Debug, Clone, Default)]
pub struct Trailers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whether `pending` is worth a look: read before every write.
    armed: AtomicBool,
    pending: Mutex<Option<Pending>>,
}

#[derive(Debug)]
struct Pending {
    /// What hyper is going to write.
    pattern: [u8; PATTERN_BYTES],
    /// What is to be sent instead.
    end: Vec<u8>,
}

impl Trailers {
    /// Makes the message chunked, where its body has no length that is known: only then can
    /// trailers follow. The caller knows that the peer takes chunks and that this message may have
    /// a body.
    ///
    /// hyper would leave out the body of a `GET` that doesn't say so itself.
    pub fn frame(self, headers: &mut HeaderMap, body: &impl Body) -> Option<Self> {
        self.frame_sized(headers, body.size_hint().exact())
    }

    /// The same for a body of which the length is known or not.
    pub(super) fn frame_sized(self, headers: &mut HeaderMap, length: Option<u64>) -> Option<Self> {
        if headers.contains_key(CONTENT_LENGTH) || length.is_some() {
            return None;
        }
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        Some(self)
    }

    /// The chunk to write instead of these trailers; `None` where none of them may be sent, or
    /// nothing can be made up that nobody guesses.
    pub(super) fn replace(&self, trailers: &HeaderMap) -> Option<Bytes> {
        let mut end = Vec::with_capacity(128);
        end.extend_from_slice(b"0\r\n");
        for (name, value) in trailers.iter().filter(|(name, _)| may_be_trailer(name)) {
            end.extend_from_slice(name.as_str().as_bytes());
            end.extend_from_slice(b": ");
            end.extend_from_slice(value.as_bytes());
            end.extend_from_slice(b"\r\n");
        }
        end.extend_from_slice(b"\r\n");
        let mut marker = [0; MARKER_BYTES];
        if end.len() == b"0\r\n\r\n".len() || aws_lc_rs::rand::fill(&mut marker).is_err() {
            return None;
        }
        let mut pattern = [0; PATTERN_BYTES];
        let (head, rest) = pattern.split_at_mut(CHUNK_SIZE.len());
        let (middle, tail) = rest.split_at_mut(MARKER_BYTES);
        head.copy_from_slice(CHUNK_SIZE);
        middle.copy_from_slice(&marker);
        tail.copy_from_slice(END);
        *self.pending() = Some(Pending { pattern, end });
        self.0.armed.store(true, Ordering::Release);
        Some(Bytes::copy_from_slice(&marker))
    }

    fn is_armed(&self) -> bool {
        self.0.armed.load(Ordering::Acquire)
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Option<Pending>> {
        self.0
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the end in what is held. How many bytes of it may be sent: all, once the end was
    /// found, and until then all but what could be the beginning of it.
    fn rewrite(&self, held: &mut BytesMut) -> usize {
        let mut pending = self.pending();
        let Some(Pending { pattern, end }) = pending.as_ref() else {
            return held.len();
        };
        let Some(at) = held.windows(PATTERN_BYTES).position(|part| part == pattern) else {
            return held.len().saturating_sub(PATTERN_BYTES - 1);
        };
        let behind = held.split_off(at + PATTERN_BYTES);
        held.truncate(at);
        held.extend_from_slice(end);
        held.extend_from_slice(&behind);
        *pending = None;
        self.0.armed.store(false, Ordering::Release);
        held.len()
    }
}

pin_project! {
    /// A connection that HTTP/1.1 is written to, with trailers put in their place.
    #[derive(Debug)]
    pub struct WithTrailers<IO> {
        #[pin]
        io: IO,
        trailers: Trailers,
        // Empty but between a body's last chunk and the moment its end is written.
        held: BytesMut,
        sendable: usize,
    }
}

impl<IO> WithTrailers<IO> {
    /// A connection, and what the bodies written to it need.
    pub fn new(io: IO) -> (Self, Trailers) {
        let trailers = Trailers::default();
        let this = Self {
            io,
            trailers: trailers.clone(),
            held: BytesMut::new(),
            sendable: 0,
        };
        (this, trailers)
    }
}

impl<IO: AsyncWrite> WithTrailers<IO> {
    fn poll_send_held(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        while *this.sendable > 0 {
            let chunk = &this.held[..*this.sendable];
            let sent = ready!(this.io.as_mut().poll_write(cx, chunk))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.held.advance(sent);
            *this.sendable -= sent;
        }
        Poll::Ready(Ok(()))
    }

    fn is_rewriting(&self) -> bool {
        !self.held.is_empty() || self.trailers.is_armed()
    }

    fn poll_write_held(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // What may go goes first, so that no more is held than one write.
        ready!(self.as_mut().poll_send_held(cx))?;
        let this = self.project();
        this.held.extend_from_slice(bytes);
        *this.sendable = this.trailers.rewrite(this.held);
        Poll::Ready(Ok(bytes.len()))
    }
}

impl<IO: AsyncRead> AsyncRead for WithTrailers<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite> AsyncWrite for WithTrailers<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_rewriting() {
            return self.poll_write_held(cx, bytes);
        }
        self.project().io.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_rewriting() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write_held(cx, first.map_or(&[], |slice| slice));
        }
        self.project().io.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_send_held(cx))?;
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_send_held(cx))?;
        self.project().io.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    fn fields() -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        trailers.insert("content-length", HeaderValue::from_static("9"));
        trailers
    }

    #[test]
    fn only_forbidden_fields_are_as_none() {
        let mut trailers = fields();
        trailers.remove("x-sum");
        assert_eq!(Trailers::default().replace(&trailers), None);
    }

    proptest! {
        /// However hyper cuts what it writes, the end is replaced, and nothing else changes.
        #[test]
        fn the_end_is_replaced_wherever_it_is_cut(
            before in proptest::collection::vec(any::<u8>(), 0..200),
            behind in proptest::collection::vec(any::<u8>(), 0..60),
            cuts in proptest::collection::vec(1usize..40, 1..40),
            accepted in 1usize..50,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            runtime.block_on(async {
                let (far, near) = tokio::io::duplex(accepted);
                let (mut io, trailers) = WithTrailers::new(near);
                let reading = tokio::spawn(async move {
                    let mut read = Vec::new();
                    let mut far = far;
                    tokio::io::AsyncReadExt::read_to_end(&mut far, &mut read).await.map(|_| read)
                });
                io.write_all(b"head\r\n\r\n").await?;
                let marker = trailers.replace(&fields()).ok_or(io::ErrorKind::Other)?;
                let written = [&before[..], CHUNK_SIZE, &marker, END, &behind].concat();
                let mut rest = &written[..];
                for cut in cuts.iter().cycle() {
                    let (now, later) = rest.split_at((*cut).min(rest.len()));
                    io.write_all(now).await?;
                    io.flush().await?;
                    rest = later;
                    if rest.is_empty() {
                        break;
                    }
                }
                io.shutdown().await?;
                drop(io);
                let read = reading.await??;
                let expected =
                    [b"head\r\n\r\n", &before[..], b"0\r\nx-sum: 7\r\n\r\n", &behind].concat();
                assert_eq!(read, expected);
                Ok::<(), io::Error>(())
            })?;
        }
    }
}
