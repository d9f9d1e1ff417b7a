//! The numbers. Each is in the guide, `deploy/guide/control-plane.md`.

use std::time::Duration;

use super::Rate;

/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection without a client certificate may take to make its first call.
pub const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection without a client certificate may stand without a call under way.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection without a client certificate may stand at all.
pub const ANONYMOUS_LIFE_MAX: Duration = Duration::from_secs(60);
/// Calls on one connection without a client certificate.
pub const ANONYMOUS_CALLS_MAX: u64 = 16;
/// Bytes received on one connection without a client certificate, TLS records excluded.
pub const ANONYMOUS_RECEIVED_MAX_BYTES: u64 = 256 * 1024;
/// How long a call may take until its answer begins: of a unary call the whole of it, of a stream
/// the head only.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stream may go on after the certificate that opened it has ended, while its instance
/// has not proved a newer one: the time for connecting anew.
pub const CERTIFICATE_GRACE: Duration = Duration::from_secs(5);
/// How long a connection may go on that has to end, until it is cut.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long a message may wait until a peer has room for it.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an instance is held back that sends faster than its rate, summed over its streams, before
/// it is refused.
pub const THROTTLED_MAX: Duration = Duration::from_secs(10);
/// Streams of HTTP/2 on one connection at the same time.
pub const STREAMS_PER_CONNECTION: u32 = 64;
/// Headers of one call.
pub const HEADERS_MAX_BYTES: u32 = 16 * 1024;
/// A request of discovery: 20,000 names and what is held of them.
pub const DISCOVERY_MESSAGE_MAX_BYTES: usize = 4 * 1024 * 1024;
/// A registration, an observation or a report of limits.
pub const MESSAGE_MAX_BYTES: usize = 1024 * 1024;
/// A request for a certificate.
pub const SIGN_MESSAGE_MAX_BYTES: usize = 32 * 1024;
/// Names of a message that are taken before other tasks get their turn.
pub const NAMES_PER_TURN: usize = 1_000;

/// Names and resources held of one instance, over all streams and kinds.
pub const NAMES_PER_INSTANCE: usize = 40_000;

/// A kind of standing stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    /// Delta discovery.
    Discovery,
    /// Registrations.
    Registration,
    /// What a sidecar sees of its breakers.
    Observation,
    /// Leases of shared rate limits.
    Leases,
}

impl StreamKind {
    /// Its name in messages and in the guide.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Registration => "registration",
            Self::Observation => "observation",
            Self::Leases => "leases",
        }
    }
}

/// Limits that are counted over connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of all instances together.
    pub connections: usize,
    /// Connections of one instance.
    pub connections_per_instance: usize,
    /// Calls of one instance at the same time, standing streams included, over all connections. A
    /// call counts until its answer has ended.
    pub calls_per_instance: usize,
    /// Calls that one instance begins.
    pub call_rate: Rate,
    /// Standing streams of one kind of one instance; one more ends the oldest.
    pub streams_per_kind: usize,
    /// Messages on the streams of one instance.
    pub message_rate: Rate,
    /// Bytes received from one instance, over all connections.
    pub received_rate: Rate,
    /// Names subscribed to and resources held by all instances together.
    pub names: usize,
    /// Names subscribed to and resources held by one instance, over all streams and kinds.
    pub names_per_instance: usize,
    /// Bytes of pushes that one instance has not answered.
    pub unanswered_bytes_per_instance: usize,
    /// Connections without a client certificate, those in their handshake included.
    pub anonymous: usize,
    /// Those of one source address, or one /64 of IPv6. Sidecars behind one address that connect at
    /// once, after a restart for instance, should find room: those in their handshake give up
    /// their places, too.
    pub anonymous_per_address: usize,
    /// Connections that one source address makes.
    pub handshake_rate: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_instance: 16,
            calls_per_instance: 64,
            call_rate: Rate::new(20, 200),
            streams_per_kind: 4,
            message_rate: Rate::new(200, 2_000),
            received_rate: Rate::new(2 * 1024 * 1024, 16 * 1024 * 1024),
            names: 5_000_000,
            names_per_instance: NAMES_PER_INSTANCE,
            unanswered_bytes_per_instance: 32 * 1024 * 1024,
            anonymous: 4_096,
            anonymous_per_address: 2_048,
            handshake_rate: Rate::new(500, 4_000),
        }
    }
}

impl Limits {
    /// File descriptors that are not for connections of sidecars: the store, sockets of operators,
    /// logs.
    const DESCRIPTORS_RESERVED: usize = 400;

    /// The defaults, as far as the process may have descriptors: an eighth for connections without
    /// a certificate, the rest for instances.
    pub fn for_descriptors(descriptors: u64) -> Self {
        let limits = Self::default();
        let room = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let room = room.saturating_sub(Self::DESCRIPTORS_RESERVED).max(64);
        let anonymous = limits.anonymous.min(room / 8);
        Self {
            anonymous,
            anonymous_per_address: limits.anonymous_per_address.min(anonymous),
            connections: limits.connections.min(room - anonymous),
            ..limits
        }
    }
}
