//! HTTP/2 to bytes and back (RFC 9113), without a socket.
//!
//! Connections between sidecars are of this; those with applications and with the outside are still of
//! `hyper` and `h2`.

pub mod connection;
pub mod flow;
pub mod frame;
pub mod hpack;
pub mod message;
