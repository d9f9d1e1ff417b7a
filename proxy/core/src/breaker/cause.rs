//! Why a breaker opened.

use std::fmt;

use crate::health::CheckFailure;

/// Why it opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Too large a share of calls failed.
    FailureRate {
        /// How many failed.
        failed: u32,
        /// Of how many.
        calls: u32,
    },
    /// Too large a share of calls was slow.
    SlowRate {
        /// How many were slow.
        slow: u32,
        /// Of how many.
        calls: u32,
    },
    /// So many failures in a row.
    InARow(u32),
    /// A probe failed, or was slow.
    Probe,
    /// The answer said for how long to stay away (RFC 9110 section 10.2.3).
    RetryAfter,
    /// So many health checks failed in a row.
    Checks {
        /// How many.
        in_a_row: u32,
        /// Why the last of them did.
        last: CheckFailure,
    },
    /// No health check has passed yet, and the policy wants one first.
    Unchecked,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailureRate { failed, calls } => write!(f, "{failed} of {calls} calls failed"),
            Self::SlowRate { slow, calls } => write!(f, "{slow} of {calls} calls were slow"),
            Self::InARow(failures) => write!(f, "{failures} failures in a row"),
            Self::Probe => f.write_str("a probe failed"),
            Self::RetryAfter => f.write_str("an answer said Retry-After"),
            Self::Checks { in_a_row, last } => {
                write!(f, "{in_a_row} health checks in a row failed: {last}")
            }
            Self::Unchecked => f.write_str("no health check has passed yet"),
        }
    }
}
