//! The handles that the path of a request holds.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Wire, lock};

/// Upper bounds of the buckets, in nanoseconds: six to a decade from 0.1 ms to 10 s, so that a
/// quantile read from them is off by at most a quarter.
pub(super) const BOUNDS: [u64; 33] = [
    100_000,
    150_000,
    200_000,
    300_000,
    500_000,
    700_000,
    1_000_000,
    1_500_000,
    2_000_000,
    3_000_000,
    5_000_000,
    7_000_000,
    10_000_000,
    15_000_000,
    20_000_000,
    30_000_000,
    50_000_000,
    70_000_000,
    100_000_000,
    150_000_000,
    200_000_000,
    300_000_000,
    500_000_000,
    700_000_000,
    1_000_000_000,
    1_500_000_000,
    2_000_000_000,
    3_000_000_000,
    5_000_000_000,
    7_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// Status classes: 1xx to 5xx, and none for a request that ended without a response.
pub(super) const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Codes of gRPC, 0 to 16.
pub(super) const GRPC_CODES: usize = 17;

/// A histogram of durations whose recording is three relaxed additions.
#[derive(Debug)]
pub(super) struct Histogram {
    /// One per bound, and one for what is above them all; not cumulative.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Nanoseconds; wraps after 584 years of waiting.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
        }
    }
}

/// What a histogram held when it was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HistogramSnapshot {
    /// Upper bound in seconds and count, not cumulative; the last bound is infinity.
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) sum: f64,
    pub(super) count: u64,
}

impl Histogram {
    pub(super) fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(nanos, Relaxed);
    }

    /// The sum of several.
    pub(super) fn snapshot<'a>(parts: impl Iterator<Item = &'a Self>) -> HistogramSnapshot {
        const NANOS: f64 = 1e9;
        let bounds = BOUNDS.iter().map(|b| *b as f64 / NANOS);
        let mut buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).map(|b| (b, 0)).collect();
        let mut sum = 0.0;
        for part in parts {
            for (total, bucket) in buckets.iter_mut().zip(&part.buckets) {
                total.1 += bucket.load(Relaxed);
            }
            sum += part.sum.load(Relaxed) as f64 / NANOS;
        }
        let count = buckets.iter().map(|(_, n)| n).sum();
        HistogramSnapshot {
            buckets,
            sum,
            count,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub struct RequestDone {
    /// How it travelled between this sidecar and the peer.
    pub wire: Wire,
    /// The status the caller was given; none when it left or the stream was reset before.
    pub status: Option<u16>,
    /// Why, where the mesh made the response.
    pub reason: Option<&'static str>,
    /// The gRPC status, where there was one.
    pub grpc_status: Option<u8>,
    /// From the head of the request to the end of the response.
    pub duration: Duration,
}

/// Counters of the requests of one key and thread. Aligned, so that no other thread's counters
/// share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct HttpStats {
    requests: [[AtomicU64; CLASSES.len()]; Wire::ALL.len()],
    pub(super) duration: Histogram,
    pub(super) in_flight: AtomicI64,
    pub(super) retries: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) hedges_won: AtomicU64,
    pub(super) grpc: [AtomicU64; GRPC_CODES],
    // The reasons are words of weft-core's; this is locked only when the mesh answers itself.
    made: Mutex<Vec<(MadeHere, u64)>>,
}

/// A kind of response that the mesh itself made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MadeHere {
    pub(super) wire: Wire,
    /// Index into [`CLASSES`].
    pub(super) class: usize,
    pub(super) reason: &'static str,
}

/// A running request; it counts as one until this is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<HttpStats>);

/// Where the request is counted.
impl std::ops::Deref for InFlight {
    type Target = HttpStats;

    fn deref(&self) -> &HttpStats {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl HttpStats {
    /// A request begins; it runs until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }

    /// A request has ended.
    pub fn record(&self, done: &RequestDone) {
        let class = class(done.status);
        self.duration.record(done.duration);
        if let Some(code) = done.grpc_status {
            // Codes that gRPC does not define are UNKNOWN (2).
            let code = usize::from(code);
            self.grpc[if code < GRPC_CODES { code } else { 2 }].fetch_add(1, Relaxed);
        }
        let Some(reason) = done.reason else {
            self.requests[done.wire as usize][class].fetch_add(1, Relaxed);
            return;
        };
        let kind = MadeHere {
            wire: done.wire,
            class,
            reason,
        };
        let mut made = lock(&self.made);
        match made.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => made.push((kind, 1)),
        }
    }

    /// Another attempt is made for a request.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// Another attempt is made beside one that is slow.
    pub fn hedged(&self) {
        self.hedges.fetch_add(1, Relaxed);
    }

    /// Such an attempt was the first to be answered.
    pub fn hedge_won(&self) {
        self.hedges_won.fetch_add(1, Relaxed);
    }

    /// Requests that ended, those the mesh answered included.
    pub fn requests(&self, wire: Wire) -> u64 {
        let passed: u64 = self.requests[wire as usize]
            .iter()
            .map(|n| n.load(Relaxed))
            .sum();
        let made = lock(&self.made);
        let made = made.iter().filter(|(kind, _)| kind.wire == wire);
        passed + made.map(|(_, n)| n).sum::<u64>()
    }

    /// Those that the mesh passed on, of one class (an index into [`CLASSES`]).
    pub(super) fn passed(&self, wire: Wire, class: usize) -> u64 {
        self.requests[wire as usize][class].load(Relaxed)
    }

    /// Those that the mesh answered.
    pub(super) fn made(&self) -> Vec<(MadeHere, u64)> {
        lock(&self.made).clone()
    }
}

fn class(status: Option<u16>) -> usize {
    match status.map(|status| status / 100) {
        Some(class @ 1..=5) => usize::from(class),
        Some(_) | None => 0,
    }
}

/// Counters of the TCP connections of one key and thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TcpStats {
    pub(super) opened: [AtomicU64; Wire::ALL.len()],
    pub(super) closed: [AtomicU64; Wire::ALL.len()],
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    made: Mutex<Vec<(&'static str, u64)>>,
}

/// An open connection; it counts as one until this is dropped.
#[derive(Debug)]
pub struct TcpOpen {
    stats: Arc<TcpStats>,
    wire: Wire,
}

impl Drop for TcpOpen {
    fn drop(&mut self) {
        self.stats.closed[self.wire as usize].fetch_add(1, Relaxed);
    }
}

impl TcpOpen {
    /// Bytes that came from the client.
    pub fn received(&self, bytes: u64) {
        self.stats.received.fetch_add(bytes, Relaxed);
    }

    /// Bytes that went to the client.
    pub fn sent(&self, bytes: u64) {
        self.stats.sent.fetch_add(bytes, Relaxed);
    }
}

impl TcpStats {
    /// A connection begins; it is open until the guard is dropped.
    pub fn open(self: &Arc<Self>, wire: Wire) -> TcpOpen {
        self.opened[wire as usize].fetch_add(1, Relaxed);
        TcpOpen {
            stats: Arc::clone(self),
            wire,
        }
    }

    /// The mesh closed a connection, and why.
    pub fn refused(&self, reason: &'static str) {
        let mut made = lock(&self.made);
        match made.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => made.push((reason, 1)),
        }
    }

    pub(super) fn refusals(&self) -> Vec<(&'static str, u64)> {
        lock(&self.made).clone()
    }
}

/// What the table has to know of a set of counters.
pub(super) trait Stats: Default {
    /// A number that changes with every use.
    fn activity(&self) -> u64;

    /// Requests that are to be remembered when the series expires.
    fn requests(&self, wire: Wire) -> u64;
}

impl Stats for HttpStats {
    fn activity(&self) -> u64 {
        let ended: u64 = Wire::ALL
            .iter()
            .map(|wire| Self::requests(self, *wire))
            .sum();
        ended + self.retries.load(Relaxed) + self.hedges.load(Relaxed)
    }

    fn requests(&self, wire: Wire) -> u64 {
        Self::requests(self, wire)
    }
}

impl Stats for TcpStats {
    fn activity(&self) -> u64 {
        let parts = self.opened.iter().chain(&self.closed);
        let bytes = self.received.load(Relaxed) + self.sent.load(Relaxed);
        let refusals: u64 = lock(&self.made).iter().map(|(_, n)| n).sum();
        bytes + refusals + parts.map(|n| n.load(Relaxed)).sum::<u64>()
    }

    fn requests(&self, _: Wire) -> u64 {
        0
    }
}
