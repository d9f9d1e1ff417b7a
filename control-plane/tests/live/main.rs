//! A running control plane and sidecars made by hand: real TLS, real gRPC, a real data directory.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic with its place is the failure"
)]

mod addresses;
mod discovery;
mod documents;
mod durability;
mod identity;
mod process;
mod registry;
mod slices;
mod support;
