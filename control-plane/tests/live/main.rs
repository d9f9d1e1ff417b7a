//! A running control plane and sidecars made by hand: real TLS, real gRPC, a real data directory.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic with its place is the failure"
)]
#![expect(
    clippy::print_stdout,
    reason = "how long neighbours of an attack waited is a figure to be read"
)]

mod addresses;
mod attacks;
mod budgets;
mod churn;
mod cluster;
mod compaction;
mod crashes;
mod definitions;
mod discovery;
mod disturbances;
mod documents;
mod durability;
mod health;
mod hung;
mod identity;
mod kubernetes;
mod leaders;
mod lifetimes;
mod neighbours;
mod process;
mod progress;
mod rbac;
mod registry;
mod replicas;
mod roots;
mod sharing;
mod slices;
mod support;
#[path = "../../src/kubernetes/testing.rs"]
mod testing;
