//! What may be received.

use std::num::NonZeroU32;

use super::super::frame::WindowSize;
use super::FlowControlError;

/// Bytes of DATA that the peer may send on a stream or a connection (RFC 9113 section 6.9), and those
/// that it sent and nobody has taken yet.
///
/// Invariant: `size` = `window` + `held` + what is to be given back. Bytes move from the first to the
/// second by [`receive`](Self::receive), to the third by [`consume`](Self::consume), and back to the
/// first by a WINDOW_UPDATE. Of the third there is less than nothing after the size was lowered below
/// what is promised; then nothing is given back until the difference has been consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    /// Bytes that the peer may have in flight and in queues here.
    size: WindowSize,
    /// Bytes that the peer may still send; negative after settings lowered it (section 6.9.2).
    window: i32,
    /// Bytes received and not consumed.
    held: u32,
}

impl ReceiveWindow {
    /// A window of that size, of which the peer knows: the SETTINGS_INITIAL_WINDOW_SIZE in force at the
    /// peer for a new stream, [`WindowSize::DEFAULT`] for a connection.
    pub fn new(size: WindowSize) -> Self {
        Self {
            size,
            window: size.signed(),
            held: 0,
        }
    }

    /// DATA was received, so many bytes with padding. Until the application takes them they are held;
    /// padding, and data that is dropped, is to be consumed at once. An error leaves all as it was.
    pub fn receive(&mut self, bytes: u32) -> Result<(), FlowControlError> {
        let allowed = self.available();
        if bytes > allowed {
            let received = bytes;
            return Err(FlowControlError::Exceeded { received, allowed });
        }
        // Not more than the window, which has 31 bits.
        self.window -= bytes as i32;
        self.held = self.held.saturating_add(bytes);
        Ok(())
    }

    /// The application has taken so many bytes of those that were held. Returns the increment of the
    /// WINDOW_UPDATE to send now, if any: as soon as at least half of the window is to be given back,
    /// so that updates are few (section 6.9.1) and a peer whose data is taken never stops.
    #[must_use = "a WINDOW_UPDATE is to be sent"]
    pub fn consume(&mut self, bytes: u32) -> Option<NonZeroU32> {
        debug_assert!(bytes <= self.held, "only what was received can be consumed");
        self.held = self.held.saturating_sub(bytes);
        self.give_back(self.size.get().div_ceil(2))
    }

    /// Gives back everything that was consumed, however little. Returns the increment of the
    /// WINDOW_UPDATE to send, if any: for a moment when frames are written anyway.
    #[must_use = "a WINDOW_UPDATE is to be sent"]
    pub fn flush(&mut self) -> Option<NonZeroU32> {
        self.give_back(1)
    }

    /// Changes the size by means of WINDOW_UPDATE: a larger window is given at once, a smaller one as
    /// data is consumed. It is the only way for a connection. Returns the increment of the WINDOW_UPDATE
    /// to send now, if any.
    #[must_use = "a WINDOW_UPDATE is to be sent"]
    pub fn resize(&mut self, size: WindowSize) -> Option<NonZeroU32> {
        let grows = size > self.size;
        self.size = size;
        if grows { self.flush() } else { self.consume(0) }
    }

    /// Our SETTINGS_INITIAL_WINDOW_SIZE was changed while the stream was open (section 6.9.2): when the
    /// settings are sent where it grows, when they are acknowledged where it shrinks, since the peer may
    /// use the larger of both in between (section 6.9.3). It needs no WINDOW_UPDATE.
    pub fn on_initial_window_size(&mut self, old: WindowSize, new: WindowSize) {
        // All have 31 bits and are not negative.
        let change = new.signed() - old.signed();
        let size = self.size.signed().saturating_add(change).max(0);
        self.size = WindowSize::new(size.unsigned_abs()).unwrap_or(WindowSize::MAX);
        self.window = self.window.saturating_add(change);
    }

    /// Bytes that the peer may still send.
    pub fn available(&self) -> u32 {
        self.window.max(0).unsigned_abs()
    }

    /// Bytes received and not consumed. Where a stream ends, its connection has to consume them.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// The size: at most so much is held as long as it is not changed.
    pub fn size(&self) -> WindowSize {
        self.size
    }

    /// Moves what is to be given back into the window, if it is at least so much.
    fn give_back(&mut self, threshold: u32) -> Option<NonZeroU32> {
        let owed = i64::from(self.size.get()) - i64::from(self.window) - i64::from(self.held);
        // A window that shrank far below zero may owe more than one frame can say.
        let owed = u32::try_from(owed).ok()?.min(WindowSize::MAX.get());
        if owed < threshold {
            return None;
        }
        let increment = NonZeroU32::new(owed)?;
        // Not above the size, of which it was short.
        self.window = self.window.saturating_add_unsigned(owed);
        Some(increment)
    }
}
