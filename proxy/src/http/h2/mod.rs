//! Connections in HTTP/2 of our own: what drives the state machine of `weft_core::h2::connection` over
//! a socket. One task drives a connection with everything on it: no task, channel or boxed future
//! is made for a request, and all frames of a turn leave in one write.
//!
//! Connections between sidecars are of this ([`super::mesh`]); those with applications and with the
//! outside are `hyper`'s.

mod body;
mod client;
mod failure;
mod handle;
mod inbox;
mod outgoing;
mod probe;
mod ready;
mod server;
mod wire;

pub use body::StreamBody;
pub use client::{Announced, DriveError, Driving, connect};
pub use failure::StreamFailure;
pub use handle::{Exchange, Failed, Handle};
pub use outgoing::Outbound;
pub use probe::Probing;
pub use server::{Called, ServeError, Service, Serving};

#[cfg(test)]
mod tests;
