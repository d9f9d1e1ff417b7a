//! What may be sent.

use std::num::NonZeroU32;

use super::super::frame::WindowSize;
use super::FlowControlError;

/// Bytes of DATA that may be sent on a stream or a connection (RFC 9113 section 6.9.1).
///
/// Invariant: -(2^31-1) <= window <= 2^31-1. Sending never makes it negative; lowering
/// SETTINGS_INITIAL_WINDOW_SIZE may (section 6.9.2), by no more than had been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow {
    window: i32,
}

impl SendWindow {
    /// A new stream's window, from the peer's SETTINGS_INITIAL_WINDOW_SIZE; a connection's begins with
    /// [`WindowSize::DEFAULT`], whatever the settings say.
    pub fn new(initial: WindowSize) -> Self {
        Self {
            window: initial.signed(),
        }
    }

    /// Bytes that may be sent now; 0 where the window is negative.
    pub fn available(&self) -> u32 {
        self.window.max(0).unsigned_abs()
    }

    /// Takes as much of `wanted` as there is, and returns it. DATA without payload needs nothing
    /// (section 6.9.1).
    pub fn take(&mut self, wanted: u32) -> u32 {
        let taken = wanted.min(self.available());
        // Not more than the window, which has 31 bits.
        self.window -= taken as i32;
        taken
    }

    /// Takes from a stream's window and from its connection's as much of `wanted` as both have, and
    /// returns it.
    pub fn take_with(&mut self, connection: &mut Self, wanted: u32) -> u32 {
        let taken = connection.take(wanted.min(self.available()));
        self.take(taken)
    }

    /// WINDOW_UPDATE was received.
    pub fn on_window_update(&mut self, increment: NonZeroU32) -> Result<(), FlowControlError> {
        self.increase(increment.get())
    }

    /// The peer changed its SETTINGS_INITIAL_WINDOW_SIZE while the stream was open (section 6.9.2). A
    /// connection's window does not change. An error is one of the connection.
    pub fn on_initial_window_size(
        &mut self,
        old: WindowSize,
        new: WindowSize,
    ) -> Result<(), FlowControlError> {
        // Both have 31 bits and are not negative.
        let change = new.signed() - old.signed();
        if change > 0 {
            return self.increase(change.unsigned_abs());
        }
        // By the invariant it never saturates, as long as `old` is what was in force.
        self.window = self.window.saturating_add(change).max(-i32::MAX);
        Ok(())
    }

    fn increase(&mut self, increase: u32) -> Result<(), FlowControlError> {
        // 2^31-1 is the largest window and the largest i32.
        match self.window.checked_add_unsigned(increase) {
            Some(window) => {
                self.window = window;
                Ok(())
            }
            None => Err(FlowControlError::Overflow {
                window: self.window,
                increase,
            }),
        }
    }
}
