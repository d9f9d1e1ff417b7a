//! HTTP/2 to bytes and back (RFC 9113), without a socket.
//!
//! The sidecar does not use it yet: its connections are those of `hyper` and `h2`.

pub mod connection;
pub mod flow;
pub mod frame;
pub mod hpack;
pub mod message;
