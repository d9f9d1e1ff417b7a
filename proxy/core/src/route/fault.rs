//! Faults on purpose: to see how callers cope.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::filter::chance;
use super::matching::{Purpose, ValueMatch, has_header};

/// Shares are in parts of this many.
pub const PARTS: u32 = 1_000_000;

/// What is done to requests with all of these fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fault {
    /// Fields that a request has to have; none is every request.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// It waits first.
    pub delay: Option<Delay>,
    /// It is answered without having been sent.
    pub abort: Option<Abort>,
}

/// A wait before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// How long.
    pub time: Duration,
    /// How many of [`PARTS`] requests.
    pub share: u32,
}

/// An answer of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// The status; to gRPC calls a code says it.
    pub status: u16,
    /// The code that gRPC calls get.
    pub grpc_code: u32,
    /// How many of [`PARTS`] requests.
    pub share: u32,
}

impl Fault {
    /// Whether requests with these fields are meant.
    pub(super) fn meets(&self, headers: &HeaderMap) -> bool {
        self.headers
            .iter()
            .all(|(name, wanted)| has_header(headers, name, wanted, Purpose::Routing))
    }
}

impl Delay {
    pub(super) fn takes(&self, random: u64) -> bool {
        chance(self.share, PARTS, random)
    }
}

impl Abort {
    pub(super) fn takes(&self, random: u64) -> bool {
        chance(self.share, PARTS, random)
    }
}
