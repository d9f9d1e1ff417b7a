//! What the sidecar tells about itself: metrics, spans, access log and its own log.
//!
//! Nothing here waits for a reader: queues are bounded, what does not fit is dropped and counted.

pub mod access_log;
pub mod log;
pub mod metrics;
pub mod tracing;
