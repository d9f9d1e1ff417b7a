//! The control plane's admin API: the types of its bodies, and a client.
//!
//! The command line and other programs speak with a control plane through this crate.
//!
//! Architecture invariant: it knows the API and nothing behind it, no store and no session.
#![forbid(unsafe_code)]

pub mod client;
pub mod operator;
pub mod reader;
pub mod types;

/// The DNS name in the control plane's certificate.
pub const SERVER_NAME: &str = "control-plane.weft";
