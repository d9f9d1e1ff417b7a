//! The control plane: what was asked for, who is there, whom to believe, and who needs to know.
//!
//! Flow: `sources` (the store, the registry, the identities) → `world` (facts by key) → `compile` (pure:
//! from what is dirty to resources) → `publish` (who asked for what) → `discovery` (a stream of a
//! sidecar). `pipeline` drives it, `app` wires everything.
//!
//! Architecture invariant: no byte of application traffic comes here.
#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod args;
pub mod backup;
pub mod budget;
pub mod check;
pub mod clock;
pub mod cluster;
pub mod compile;
pub mod discovery;
pub mod health;
pub mod identity;
pub mod injector;
pub mod install;
mod interception;
pub mod kubernetes;
pub mod metrics;
pub mod missing_sidecar;
pub mod model;
mod panics;
pub mod peer;
pub mod peers;
pub mod pipeline;
pub mod policy;
pub mod publish;
pub mod ratelimit;
pub mod registry;
pub mod replicas;
pub mod sources;
pub mod status;
pub mod store;
pub mod supervise;
pub mod tls;
pub mod transport;
pub mod world;

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

/// SHA-256, hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Random bytes fit for secrets.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // aws-lc's generator is seeded by the kernel and does not fail once the process runs; zeros
    // would be worse than stopping.
    #[expect(
        clippy::expect_used,
        reason = "no secret must ever be made without entropy"
    )]
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random generator");
    bytes
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_seconds() -> i64 {
    unix_millis() / 1000
}
