//! How many calls are under way, without those that turned out to be streams.

use std::time::Duration;

use crate::time::Instant;

/// Length of the spans in which calls are counted by when they began.
const SPAN: Duration = Duration::from_secs(10);
/// Spans that are kept: a call that has no answer after 30 to 40 s is taken for a stream.
const SPANS: usize = 4;

/// Calls under way by when they began.
#[derive(Debug, Clone, Default)]
pub(super) struct UnderWay {
    /// The span of now.
    span: u64,
    begun: [u32; SPANS],
}

impl UnderWay {
    /// Forgets what began too long ago.
    pub(super) fn follow(&mut self, now: Instant) {
        let span = now.as_nanos() / SPAN.as_nanos() as u64;
        let passed = span.saturating_sub(self.span).min(SPANS as u64);
        for ahead in 1..=passed {
            // Spans that are four apart have the same place.
            *self.slot(self.span.wrapping_add(ahead)) = 0;
        }
        self.span = self.span.max(span);
    }

    pub(super) fn begin(&mut self) -> u64 {
        let span = self.span;
        let begun = self.slot(span);
        *begun = begun.saturating_add(1);
        span
    }

    pub(super) fn end(&mut self, span: u64) {
        if span + SPANS as u64 > self.span {
            let begun = self.slot(span);
            *begun = begun.saturating_sub(1);
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.begun
            .iter()
            .fold(0, |sum, one| sum.saturating_add(*one))
    }

    const fn slot(&mut self, span: u64) -> &mut u32 {
        &mut self.begun[(span % SPANS as u64) as usize]
    }
}
