//! The sidecar: it takes over a workload's TCP traffic and gives it mutual TLS, routing,
//! balancing, breaking and tracing.
//!
//! Architecture invariant: decisions live in `weft-core`; the code here moves bytes and asks.
//! Nothing here knows Kubernetes.

pub mod abort;
pub mod admin;
pub mod app;
pub mod application;
mod buffers;
pub mod clock;
pub mod cni;
pub mod config;
pub mod connections;
pub mod control_plane;
pub mod discovery;
pub mod dns;
pub mod drain;
mod first;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod intercept;
pub mod interception;
pub mod leases;
pub mod listeners;
pub mod local_application;
pub mod memory;
pub mod mesh;
pub mod names;
pub mod nest;
pub mod observe;
pub mod outbound;
pub mod pool;
pub mod probes;
pub mod registration;
pub mod relay;
pub mod scrape;
pub mod shared;
pub mod state;
pub mod telemetry;
pub mod tls;
mod upgrade;
pub mod verify;
pub mod vital;
pub mod wait;
pub mod worker;
