//! HTTP/2 (RFC 9113) without a socket.

pub mod flow;
pub mod frame;
