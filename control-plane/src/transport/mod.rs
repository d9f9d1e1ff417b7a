//! Connections of sidecars and operators: accepted, proved by TLS, served, and ended in time.
//!
//! One slow or hostile peer stops nobody: handshakes run beside each other, each with a deadline and
//! within the budget of where it comes from; what a connection may use is in [`crate::budget`].

mod accept;
mod connection;
mod serve;

pub use accept::accept;
pub use connection::Connection;
pub use serve::{Sidecars, serve};
