//! Connections in HTTP/2 of our own: what drives the state machine of `weft_core::h2::connection` over
//! a socket. One task drives a connection with everything on it: no task, channel or boxed future
//! is made for a request, and all frames of a turn leave in one write.
//!
//! What a connection may cost, and who answers its requests, is for whoever makes it to say
//! ([`super::http2`]).

mod answering;
mod arrived;
mod body;
mod client;
mod exchange;
mod failure;
mod handle;
mod inbox;
mod outgoing;
mod probe;
mod ready;
mod server;
mod service;
mod tunnel;
mod turns;
mod unsent;
mod wire;

pub use body::StreamBody;
pub use client::{Announced, Driving, connect};
pub use failure::StreamFailure;
pub use handle::{Exchange, Failed, Handle};
pub use outgoing::{Outbound, Stop};
pub use probe::Probing;
pub use server::{Patience, Serving};
pub use service::Service;
pub(super) use tunnel::TunnelWatch;
pub use tunnel::{Tunnel, TunnelAborted, TunnelBody, TunnelWriter, tunnel};
pub use turns::DriveError;

#[cfg(test)]
mod tests;
