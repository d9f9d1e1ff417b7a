//! How many frames without effect a peer may send.

use crate::time::Instant;

/// Frames at once.
const BURST: i64 = 2_000;
/// Frames in a second, for as long as the peer likes.
const PER_SECOND: i64 = 200;
/// Frames that are earned by a message's head, or by a frame of data that is received.
const PER_USEFUL_FRAME: i64 = 2;
/// Frames that are earned by a request that is sent: where its stream is reset, what the server says
/// before it knows is without effect.
const PER_REQUEST_SENT: i64 = 4;
/// Frames that are earned by a frame of data that is sent: receivers answer with WINDOW_UPDATE for the
/// stream and for the connection, and some do so for every buffer that their application has read.
const PER_DATA_SENT: i64 = 8;
/// So many bytes of data that are sent earn one frame more.
const BYTES_PER_FRAME: i64 = 256;
/// Units of a frame: a nanosecond brings [`PER_SECOND`] of them.
const FRAME: i64 = 1_000_000_000;

/// The budget of one connection for frames that cost work and carry nothing: PING, SETTINGS,
/// WINDOW_UPDATE, PRIORITY, unknown types, DATA without data, and whatever is for a stream that has
/// ended. RFC 9113 section 10.5 asks for such a limit. It is a token bucket; frames that carry
/// something earn tokens, so that a busy connection may have as many of the others as it needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct IdleBudget {
    /// In units of [`FRAME`].
    level: i64,
    at: Option<Instant>,
}

impl IdleBudget {
    pub(super) fn new() -> Self {
        Self {
            level: BURST * FRAME,
            at: None,
        }
    }

    /// A frame without effect was received that costs as much as `weight` simple ones; whether the
    /// peer may send it.
    #[must_use]
    pub(super) fn on_idle_frame(&mut self, weight: u32, now: Instant) -> bool {
        let since = self.at.replace(now).unwrap_or(now);
        let elapsed = now.saturating_since(since).as_nanos();
        let gain = elapsed.saturating_mul(PER_SECOND.unsigned_abs().into());
        self.earn(i64::try_from(gain).unwrap_or(i64::MAX));
        let cost = i64::from(weight).saturating_mul(FRAME);
        if self.level < cost {
            return false;
        }
        self.level -= cost;
        true
    }

    /// A frame was received that carries something.
    pub(super) fn on_useful_frame(&mut self) {
        self.earn(PER_USEFUL_FRAME * FRAME);
    }

    /// A request was sent.
    pub(super) fn on_request_sent(&mut self) {
        self.earn(PER_REQUEST_SENT * FRAME);
    }

    /// A frame with so many bytes of data was sent. One that a window has cut short earns by its bytes
    /// alone: a peer that opens its windows by little at a time pays for it, one whose windows are small
    /// does not.
    pub(super) fn on_data_sent(&mut self, bytes: u32, is_cut: bool) {
        let frames = if is_cut { 0 } else { PER_DATA_SENT };
        self.earn(frames * FRAME + i64::from(bytes) * FRAME / BYTES_PER_FRAME);
    }

    fn earn(&mut self, units: i64) {
        self.level = self.level.saturating_add(units).min(BURST * FRAME);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn spend(budget: &mut IdleBudget, now: Instant) -> i64 {
        let mut frames = 0;
        while budget.on_idle_frame(1, now) {
            frames += 1;
        }
        frames
    }

    #[test]
    fn a_burst_and_a_rate() {
        let mut budget = IdleBudget::new();
        assert_eq!(spend(&mut budget, at(0)), BURST);
        assert_eq!(spend(&mut budget, at(1_000)), PER_SECOND);
        assert_eq!(spend(&mut budget, at(500)), 0, "a clock that goes back");
        assert_eq!(spend(&mut budget, at(3_600_000)), BURST);
    }

    #[test]
    fn what_carries_something_earns() {
        let mut budget = IdleBudget::new();
        assert_eq!(spend(&mut budget, at(0)), BURST);
        budget.on_useful_frame();
        assert_eq!(spend(&mut budget, at(0)), PER_USEFUL_FRAME);
        budget.on_data_sent(16_384, false);
        assert_eq!(spend(&mut budget, at(0)), PER_DATA_SENT + 64);
        budget.on_data_sent(640, true);
        assert_eq!(spend(&mut budget, at(0)), 2);
        budget.on_data_sent(128, true);
        assert_eq!(spend(&mut budget, at(0)), 1, "halves are kept");
        assert!(!budget.on_idle_frame(u32::MAX, at(0)));
    }
}
