//! How long things may take, and how much of each there may be.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_core::connections::ConnectionLimits;
use weft_core::terms::Defaults;

use super::units::{self, ByteSize};

/// How long things may take. Written with a unit: `300ms`, `10s`, `5m`, `1h`. Where `0s` switches
/// something off, the field says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutConfig {
    /// For a TCP connection to come into being.
    #[serde(with = "units::duration")]
    pub connect: Duration,
    /// For a TLS handshake, both sides.
    #[serde(with = "units::duration")]
    pub handshake: Duration,
    /// For a whole request, where no policy says otherwise; `0s` is no limit.
    #[serde(with = "units::duration")]
    pub request: Duration,
    /// How long protocol detection waits for the client's first bytes.
    #[serde(with = "units::duration")]
    pub detect: Duration,
    /// How long a connection waits for the control plane's answer about its destination.
    #[serde(with = "units::duration")]
    pub discovery_wait: Duration,
    /// How long a client outside the mesh may say nothing on a port that takes requests only, from
    /// when its connection was accepted; `0s` is no limit.
    #[serde(with = "units::duration")]
    pub client_first: Duration,
    /// How long an idle HTTP connection of a client is kept; `0s` is no limit.
    #[serde(with = "units::duration")]
    pub client_idle: Duration,
    /// For a request's head in HTTP/1, from its first byte.
    #[serde(with = "units::duration")]
    pub client_head: Duration,
    /// How long a client may stall at the sidecar beside the application: with a body that the
    /// application waits for, or by not reading its answer; in HTTP/2 where the stream holds a
    /// connection to the application. How long a client of an HTTP/2 connection may read nothing
    /// while something waits to be written to it. `0s` is no limit.
    #[serde(with = "units::duration")]
    pub client_stall: Duration,
    /// How long an idle HTTP connection to the application, or out of the mesh, is kept for reuse.
    #[serde(with = "units::duration")]
    pub application_idle: Duration,
    /// How long a request waits for a connection to the application with room for it.
    #[serde(with = "units::duration")]
    pub application_pending: Duration,
    /// How long an idle connection to another sidecar is kept.
    #[serde(with = "units::duration")]
    pub peer_idle: Duration,
    /// How long a silent connection to another sidecar waits until it is probed with a PING, and
    /// how long the answer may take; `0s` never probes.
    #[serde(with = "units::duration")]
    pub peer_keepalive: Duration,
    /// How long a TCP connection, or a stream of bytes, may be silent; `0s` is no limit.
    #[serde(with = "units::duration")]
    pub tcp_idle: Duration,
    /// How long a connection lives on after the newest certificate that its peer has proved.
    #[serde(with = "units::duration")]
    pub expired_grace: Duration,
    /// For the control plane to acknowledge that the workload leaves.
    #[serde(with = "units::duration")]
    pub deregister: Duration,
    /// For running requests and connections to end when the sidecar stops.
    #[serde(with = "units::duration")]
    pub drain: Duration,
}

impl TimeoutConfig {
    /// What holds for requests where neither a route nor a policy says otherwise.
    pub fn terms(&self) -> Defaults {
        Defaults {
            request: self.request,
            connect: self.connect,
            idle: self.peer_idle,
        }
    }
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        let terms = Defaults::default();
        Self {
            connect: terms.connect,
            handshake: Duration::from_secs(5),
            request: terms.request,
            detect: Duration::from_millis(300),
            discovery_wait: Duration::from_secs(2),
            client_first: Duration::from_secs(50),
            client_idle: Duration::from_secs(300),
            client_head: Duration::from_secs(15),
            client_stall: Duration::from_secs(50),
            application_idle: Duration::from_secs(4),
            application_pending: Duration::from_secs(10),
            peer_idle: terms.idle,
            peer_keepalive: Duration::from_secs(30),
            tcp_idle: Duration::from_secs(3600),
            expired_grace: crate::tls::EXPIRED_GRACE,
            deregister: Duration::from_secs(5),
            drain: Duration::from_secs(30),
        }
    }
}

/// How much of everything there may be. Sizes are written with a unit: `64KiB`, `1MiB`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitConfig {
    /// Accepted connections at a time, all workers and directions together.
    pub max_connections: usize,
    /// Connections of `max_connections` that have not shown yet whose they are; at most a tenth.
    /// The oldest is closed for a new one.
    pub max_unidentified_connections: usize,
    /// Connections of `max_connections` from outside the mesh.
    pub max_plaintext_connections: usize,
    /// Those from one source address; of IPv6, from one /64.
    pub max_plaintext_connections_per_client: usize,
    /// Connections of `max_connections` from peers with one identity.
    pub max_connections_per_peer: usize,
    /// Accepted connections that wait in the kernel, per listener and worker.
    pub listen_backlog: u32,
    /// Idle HTTP/1.1 connections to the application kept for reuse, per port and worker. The one
    /// used last goes first, so that those beyond what is needed end.
    pub max_idle_per_endpoint: usize,
    /// Connections to one port of the application, per worker and version of HTTP. Where each
    /// carries one request at a time, clients share them ([`weft_core::shares`]).
    pub max_application_connections: u32,
    /// Requests to one port of the application that wait for a connection with room for them, per
    /// worker and version of HTTP; more are refused.
    pub max_application_pending: u32,
    /// Concurrent requests on one connection, as we advertise it.
    pub max_concurrent_streams: u32,
    /// A request's or response's head, all its fields together.
    pub max_header_bytes: ByteSize,
    /// Fields in a request's or response's head.
    pub max_headers: usize,
    /// What is read of a connection before its protocol is known.
    pub detect_bytes: ByteSize,
    /// Each direction of a relayed TCP connection, at most, while bytes wait to be passed on.
    pub relay_buffer: ByteSize,
    /// Flow-control window of one HTTP/2 stream.
    pub stream_window: ByteSize,
    /// Flow-control window of a whole HTTP/2 connection.
    pub connection_window: ByteSize,
    /// Destinations remembered: services, workloads, and answers that there is none.
    pub max_destinations: usize,
    /// Of them, names that nothing is known of; the one used least lately is forgotten for a new one.
    pub max_unknown_destinations: usize,
    /// Series of metrics before new ones are counted under `other`.
    pub max_metric_series: usize,
    /// Access log lines that wait for the writer; more are dropped and counted.
    pub access_log_queue: usize,
    /// Lines of the sidecar's own log that wait for the writer; more are dropped and counted.
    pub log_queue: usize,
}

impl LimitConfig {
    /// How many connections there may be, of each kind and client.
    pub fn connections(&self) -> ConnectionLimits {
        ConnectionLimits {
            total: self.max_connections,
            unidentified: self.max_unidentified_connections,
            plaintext: self.max_plaintext_connections,
            plaintext_per_client: self.max_plaintext_connections_per_client,
            per_peer: self.max_connections_per_peer,
        }
    }
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_unidentified_connections: 1_000,
            max_plaintext_connections: 2_500,
            max_plaintext_connections_per_client: 2_000,
            max_connections_per_peer: 5_000,
            listen_backlog: 1024,
            max_idle_per_endpoint: 1024,
            max_application_connections: 4096,
            max_application_pending: 4096,
            max_concurrent_streams: 256,
            max_header_bytes: ByteSize::kib(64),
            max_headers: 256,
            detect_bytes: ByteSize::kib(8),
            relay_buffer: ByteSize::kib(128),
            stream_window: ByteSize::kib(256),
            connection_window: ByteSize::mib(64),
            max_destinations: 10_000,
            max_unknown_destinations: 1_000,
            max_metric_series: 2_000,
            access_log_queue: 8_192,
            log_queue: 4_096,
        }
    }
}
