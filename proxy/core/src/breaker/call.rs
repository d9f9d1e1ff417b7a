//! A call that a breaker lets through, or not, and its outcome.

use std::time::Duration;

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallClass {
    /// As it should.
    Success,
    /// The endpoint's failure.
    Failure,
    /// Says nothing about the endpoint but how long it has been waited for: cancelled by the
    /// caller, or refused before it was sent. Only a call that was slow already counts.
    Neutral,
}

/// A finished call.
#[derive(Debug, Clone, Copy)]
pub struct CallOutcome {
    /// Of which class it is.
    pub class: CallClass,
    /// How long it took.
    pub latency: Duration,
}

/// The right to make one call; to be given back with its result, or cancelled.
#[derive(Debug)]
#[must_use = "a permit has to be given back"]
pub struct Permit {
    pub(super) generation: u64,
    /// The slot of a probe.
    pub(super) probe: Option<u64>,
}

impl Permit {
    /// Whether the call decides about closing the breaker.
    pub const fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

/// No call may be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the circuit breaker is open; try again in {retry_after:?}")]
pub struct Rejected {
    /// When the next probe may be made, at the latest.
    pub retry_after: Duration,
}
