//! What the sidecar tells about itself: metrics, spans, access log and its own log.
//!
//! Nothing here waits for a reader: queues are bounded, what does not fit is dropped and counted.

pub mod access_log;
pub(crate) mod ledger;
pub mod log;
pub mod metrics;
pub(crate) mod spans;
pub mod tracing;
