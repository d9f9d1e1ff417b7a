//! How far a request's body has come from its caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use http_body::{Body as _, Frame};
use weft_core::reason::Reason;
use weft_core::time::Instant;

use super::incoming::{BodyError, Incoming};

/// What is known of a request's body. Shared between the body, wherever it is read, and those who
/// learn from how the request ends: a body that breaks is its caller's fault, and an endpoint that
/// still waits for it has not been slow.
#[derive(Debug, Clone, Default)]
pub struct Upload(Arc<AtomicU64>);

/// States that are no time. A body ended between them, in nanoseconds of our clock.
const OPEN: u64 = 0;
const AWAITED: u64 = u64::MAX - 1;
const BROKEN: u64 = u64::MAX;
/// Broken as well: nothing of it came for too long.
const STALLED: u64 = u64::MAX - 3;
/// Broken as well: its trailers are larger than allowed.
const TOO_LARGE: u64 = u64::MAX - 2;

impl Upload {
    /// When all of it was there; `None` before that.
    pub fn ended(&self) -> Option<Instant> {
        match self.0.load(Ordering::Relaxed) {
            OPEN | AWAITED | BROKEN | TOO_LARGE | STALLED => None,
            nanos => Some(Instant::from_nanos(nanos)),
        }
    }

    /// Whether it broke: its caller went away, reset it or framed it wrong.
    pub fn is_broken(&self) -> bool {
        self.broken().is_some()
    }

    /// Why it broke, if it did.
    pub fn broken(&self) -> Option<Reason> {
        match self.0.load(Ordering::Relaxed) {
            BROKEN => Some(Reason::ClientGone),
            TOO_LARGE => Some(Reason::HeadersTooLarge),
            STALLED => Some(Reason::ClientTimeout),
            _ => None,
        }
    }

    /// Whether the endpoint has taken all that came, and more is to come.
    pub fn is_awaited(&self) -> bool {
        self.0.load(Ordering::Relaxed) == AWAITED
    }

    /// It ends now.
    pub fn end(&self) {
        let now = crate::clock::now().as_nanos();
        self.0.store(now.clamp(1, STALLED - 1), Ordering::Relaxed);
    }

    /// Notes that it broke.
    pub(super) fn note_broken(&self, error: &BodyError) {
        let state = if error.is_too_large() {
            TOO_LARGE
        } else if error.is_stalled() {
            STALLED
        } else {
            BROKEN
        };
        self.0.store(state, Ordering::Relaxed);
    }

    /// Notes what came of asking for more of it.
    pub(super) fn note(
        &self,
        polled: &Poll<Option<Result<Frame<Bytes>, BodyError>>>,
        body: &Incoming,
    ) {
        let state = match polled {
            Poll::Pending => AWAITED,
            Poll::Ready(Some(Err(error))) => return self.note_broken(error),
            // Nobody polls past a frame that completes the length.
            Poll::Ready(Some(Ok(frame))) if !frame.is_trailers() && !body.is_end_stream() => OPEN,
            Poll::Ready(Some(Ok(_)) | None) => {
                if self.ended().is_none() {
                    self.end();
                }
                return;
            }
        };
        self.0.store(state, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart() {
        let upload = Upload::default();
        assert!(!upload.is_awaited() && !upload.is_broken() && upload.ended().is_none());
        upload.0.store(AWAITED, Ordering::Relaxed);
        assert!(upload.is_awaited() && !upload.is_broken() && upload.ended().is_none());
        upload.0.store(BROKEN, Ordering::Relaxed);
        assert!(!upload.is_awaited() && upload.is_broken() && upload.ended().is_none());
        assert_eq!(upload.broken(), Some(Reason::ClientGone));
        upload.0.store(TOO_LARGE, Ordering::Relaxed);
        assert!(!upload.is_awaited() && upload.is_broken() && upload.ended().is_none());
        assert_eq!(upload.broken(), Some(Reason::HeadersTooLarge));
        upload.0.store(STALLED, Ordering::Relaxed);
        assert!(!upload.is_awaited() && upload.is_broken() && upload.ended().is_none());
        assert_eq!(upload.broken(), Some(Reason::ClientTimeout));
        upload.end();
        assert!(!upload.is_awaited() && !upload.is_broken() && upload.ended().is_some());
    }
}
