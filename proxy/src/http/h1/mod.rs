//! HTTP/1.1 on every edge: the connections that move the bytes of [`weft_core::h1`].
//!
//! A server's connection is one task, which reads requests, has them answered one after the other,
//! and notices while it waits that its client has gone. A client's connection has no task: whoever
//! waits for the response drives it, and the response's body gives it back when it has ended.

mod answering;
mod body;
pub mod client;
mod closing;
mod home;
mod outgoing;
mod response;
mod server;
mod timer;
mod upload;
mod wire;

#[cfg(test)]
mod tests;

use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use weft_core::h1::{Limits, Malformed};
use weft_core::h2::message;
use weft_core::headers::is_grpc;
use weft_core::reason::Reason;

use super::{ProxyBody, answer};
use crate::config::ProxyConfig;

pub(crate) use body::Expectation;
pub use body::{Broken, Http1Body, RequestBody};
pub(crate) use client::{CONTINUE_WAIT, OnContinue};
pub(crate) use server::serve;
pub(super) use timer::Timer;

/// How long a server's connection waits, and how much it reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Of heads and of what frames bodies.
    pub(crate) limits: Limits,
    /// For the next request; `None` waits for ever.
    pub(crate) idle: Option<Duration>,
    /// For a head that has begun.
    pub(crate) head: Duration,
    /// For a body that is waited for, and for a client that does not read; `None` waits for ever.
    pub(crate) stall: Option<Duration>,
}

impl Settings {
    /// Of connections of other sidecars.
    pub(crate) fn of_peer(config: &ProxyConfig) -> Self {
        Self {
            limits: peer_limits(config),
            ..Self::of(config, false)
        }
    }

    /// Of a listener; `stalls`: whether its clients are bounded in how long they stall.
    pub(crate) fn of(config: &ProxyConfig, stalls: bool) -> Self {
        let timeouts = &config.timeouts;
        let some = |time: Duration| (time > Duration::ZERO).then_some(time);
        Self {
            limits: limits(config),
            idle: some(timeouts.client_idle),
            head: some(timeouts.client_head).unwrap_or(timer::NEVER),
            stall: some(timeouts.client_stall).filter(|_| stalls),
        }
    }
}

/// Limits of heads, in both directions.
pub fn limits(config: &ProxyConfig) -> Limits {
    let limits = Limits::with_head_bytes(config.limits.max_header_bytes.bytes());
    Limits {
        fields: config.limits.max_headers,
        ..limits
    }
}

/// So many fields more than of others are read of another sidecar's message: what sidecars and
/// routes add to it.
const PEER_FIELDS: usize = 64;
/// So many times the bytes.
const PEER_BYTES: usize = 2;

/// Limits of heads that another sidecar has let through and added to: none fails on its second hop
/// that has passed the first.
pub(crate) fn peer_limits(config: &ProxyConfig) -> Limits {
    let edge = limits(config);
    Limits {
        fields: edge.fields.saturating_add(PEER_FIELDS),
        head_bytes: edge.head_bytes.saturating_mul(PEER_BYTES),
        trailer_bytes: edge.trailer_bytes.saturating_mul(PEER_BYTES),
        ..edge
    }
}

/// A request that is answered without being understood.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The mesh's reason.
    pub(crate) reason: Reason,
    /// The status of the answer.
    pub(crate) status: StatusCode,
    /// What was found, what is allowed.
    pub(crate) detail: String,
    /// Whether what came of its fields says that it is gRPC.
    pub(crate) grpc: bool,
}

impl Refusal {
    fn malformed(malformed: &Malformed, received: &[u8]) -> Self {
        let status = StatusCode::from_u16(malformed.status());
        Self {
            reason: malformed.reason(),
            status: status.unwrap_or(StatusCode::BAD_REQUEST),
            detail: malformed.to_string(),
            grpc: says_grpc(received),
        }
    }

    /// Of a request in HTTP/2 that was not understood; `grpc`: it is a call of gRPC.
    pub(super) fn answerable(malformed: &message::Malformed, grpc: bool) -> Self {
        let status = StatusCode::from_u16(malformed.status());
        Self {
            reason: malformed.reason(),
            status: status.unwrap_or(StatusCode::BAD_REQUEST),
            detail: malformed.to_string(),
            grpc,
        }
    }

    /// The answer that says so.
    pub(crate) fn answer<G>(&self) -> Response<ProxyBody<G>> {
        let mut answer = answer(self.reason, &self.detail, self.grpc);
        if !self.grpc {
            *answer.status_mut() = self.status;
        }
        answer
    }

    /// Of a request in HTTP/2. To CONNECT it is never one in gRPC: its status 200 opens a tunnel.
    pub(super) fn of<B>(
        request: &Request<B>,
        reason: Reason,
        status: StatusCode,
        detail: String,
    ) -> Self {
        Self {
            reason,
            status,
            detail,
            grpc: *request.method() != Method::CONNECT && is_grpc(request.headers()),
        }
    }

    fn late(limit: Duration, received: &[u8]) -> Self {
        Self {
            reason: Reason::ClientTimeout,
            status: StatusCode::REQUEST_TIMEOUT,
            detail: format!("the head was not complete within {limit:?}"),
            grpc: says_grpc(received),
        }
    }
}

/// Whether a head that was not understood has gRPC's content type.
fn says_grpc(head: &[u8]) -> bool {
    const FIELD: &[u8] = b"content-type: application/grpc";
    // A refusal in gRPC has status 200, which opens a tunnel.
    let connect = head.trim_ascii_start().starts_with(b"CONNECT ");
    let mut windows = head.windows(FIELD.len());
    !connect && windows.any(|window| window.eq_ignore_ascii_case(FIELD))
}
