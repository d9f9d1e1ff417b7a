//! Whether the application's connections are still redirected to the sidecar.
//!
//! The sidecar may not read the rules. It dials a reserved address that they redirect to it for its
//! own user too, and learns from each dial whether it arrived.

use std::time::Duration;

use crate::time::Instant;

/// How often it is dialled.
pub const PROOF_INTERVAL: Duration = Duration::from_secs(1);
/// How long one dial may take.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(1);
/// How many dials in a row have to fail: one may be late on a busy machine.
pub const PROOF_FAILURES: u32 = 2;

/// What one dial showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It arrived at this sidecar.
    Redirected,
    /// Somebody else answered.
    Elsewhere,
    /// Nobody was there.
    Unreachable,
    /// It took longer than [`PROOF_TIMEOUT`].
    TimedOut,
}

impl Proof {
    /// What it showed, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redirected => "redirected",
            Self::Elsewhere => "somebody else answered at the reserved address",
            Self::Unreachable => "nobody answers at the reserved address",
            Self::TimedOut => "the dial of the reserved address timed out",
        }
    }
}

/// Whether connections are redirected, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interception {
    /// No dial has arrived yet.
    Unproved,
    /// The last dials have arrived.
    Proved,
    /// They do not arrive any more.
    Lost {
        /// Since when, at the latest: the first dial that failed.
        since: Instant,
        /// What the last dial showed.
        found: Proof,
    },
}

/// Takes the results of dials.
#[derive(Debug, Clone)]
pub struct InterceptionProof {
    state: Interception,
    failures: u32,
    first_failure: Instant,
}

impl InterceptionProof {
    /// Before the first dial.
    pub fn new(now: Instant) -> Self {
        Self {
            state: Interception::Unproved,
            failures: 0,
            first_failure: now,
        }
    }

    /// What is known.
    pub fn state(&self) -> Interception {
        self.state
    }

    /// Takes the result of a dial that began at `began`; whether the state changed.
    pub fn handle(&mut self, found: Proof, began: Instant) -> bool {
        let before = self.state;
        if found == Proof::Redirected {
            self.failures = 0;
            self.state = Interception::Proved;
            return before != self.state;
        }
        if self.failures == 0 {
            self.first_failure = began;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= PROOF_FAILURES && before != Interception::Unproved {
            let since = self.first_failure;
            self.state = Interception::Lost { since, found };
        }
        before != self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn one_late_dial_is_no_loss_and_two_are() {
        let mut proof = InterceptionProof::new(at(0));
        assert!(!proof.handle(Proof::TimedOut, at(0)), "not proved yet");
        assert!(!proof.handle(Proof::TimedOut, at(1)));
        assert_eq!(proof.state(), Interception::Unproved);
        assert!(proof.handle(Proof::Redirected, at(2)));
        assert_eq!(proof.state(), Interception::Proved);
        assert!(!proof.handle(Proof::TimedOut, at(3)));
        assert!(!proof.handle(Proof::Redirected, at(4)));
        assert!(!proof.handle(Proof::Unreachable, at(5)));
        assert!(proof.handle(Proof::Elsewhere, at(6)));
        let lost = |found| Interception::Lost {
            since: at(5),
            found,
        };
        assert_eq!(proof.state(), lost(Proof::Elsewhere));
        assert!(proof.handle(Proof::Unreachable, at(7)));
        assert_eq!(proof.state(), lost(Proof::Unreachable));
        assert!(!proof.handle(Proof::Unreachable, at(8)));
        assert!(proof.handle(Proof::Redirected, at(9)));
        assert_eq!(proof.state(), Interception::Proved);
    }
}
