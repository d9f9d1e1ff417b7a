//! The end of an exchange on a server's side: the rest of a request's body that was answered already,
//! and the end of the connection.

use std::future::poll_fn;
use std::io;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::server::{Connection, End, HALF_CLOSED_SILENCE, READ_AHEAD_BYTES};
use super::upload::{Fed, Upload};

/// Of a request's body that nobody reads after the answer, this much is read so that the connection
/// can go on.
const UNREAD_MAX_BYTES: usize = 256 * 1024;
/// A connection that is closed while its client still sends is read on for so long, and so many
/// bytes, so that the answer is not lost by a reset (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(5);
const LINGER_MAX_BYTES: usize = 16 * 1024 * 1024;

impl<IO: AsyncRead + AsyncWrite + Unpin> Connection<IO> {
    /// After the answer: as long as somebody reads the rest of the request's body, it is received;
    /// what nobody reads, within bounds. Whether all of it was. What somebody reads may pause, what
    /// nobody reads has [`LINGER`] in all.
    pub(super) async fn finish(&mut self, upload: &mut Upload) -> bool {
        let patience = self.settings.stall.unwrap_or(HALF_CLOSED_SILENCE);
        let (mut unread, mut until) = (0, None);
        poll_fn(|cx| {
            loop {
                let (starved, wait) = match upload.feed(cx, &mut self.wire.read) {
                    Ok(Fed::Done) => return Poll::Ready(true),
                    Ok(Fed::Some) => {
                        until = None;
                        continue;
                    }
                    Ok(Fed::Starved) => (true, patience),
                    Ok(Fed::Full) => (false, patience),
                    Ok(Fed::Unwanted) => match upload.discard(&mut self.wire.read) {
                        Ok(bytes) => {
                            unread += bytes;
                            (true, LINGER)
                        }
                        Err(_malformed) => return Poll::Ready(false),
                    },
                    Err(_malformed) => return Poll::Ready(false),
                };
                if upload.is_done() || unread > UNREAD_MAX_BYTES {
                    return Poll::Ready(upload.is_done());
                }
                let due = Instant::now() + wait;
                until = Some(until.map_or(due, |until: Instant| until.min(due)));
                if starved || self.wire.read.len() < READ_AHEAD_BYTES {
                    match self.wire.poll_fill_body(cx) {
                        Poll::Ready(Ok(1..)) => continue,
                        Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                        Poll::Pending => {}
                    }
                }
                self.timer.set(until);
                ready!(self.timer.poll(cx));
                return Poll::Ready(false);
            }
        })
        .await
    }

    /// Ends the sending; everything of the client's has been read.
    pub(super) async fn close(&mut self) -> End {
        let closing = poll_fn(|cx| self.wire.poll_shutdown(cx));
        let _as_far_as_it_came = timeout(LINGER, closing).await;
        End::Closed
    }

    /// Ends the sending, and reads on for a while, so that the answer arrives.
    pub(super) async fn linger(&mut self) {
        let mut unread = 0;
        let reading = poll_fn(|cx| {
            ready!(self.wire.poll_shutdown(cx))?;
            while unread < LINGER_MAX_BYTES {
                match ready!(self.wire.poll_discard(cx))? {
                    0 => break,
                    read => unread += read,
                }
            }
            Poll::Ready(Ok::<_, io::Error>(()))
        });
        let _as_far_as_it_came = timeout(LINGER, reading).await;
    }
}
