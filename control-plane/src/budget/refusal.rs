//! Why a peer is refused.

use std::fmt;

use tonic::Status;

/// The limit that was exceeded; the label of the metric `weft_control_plane_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Connections without a certificate, of one source address or of all.
    AnonymousConnections,
    /// Connections that one source address makes.
    Handshakes,
    /// Connections of one instance, or of all.
    Connections,
    /// Calls of one instance at the same time.
    Calls,
    /// Calls that one peer begins.
    CallRate,
    /// Streams of one kind.
    Streams,
    /// Messages on streams.
    Messages,
    /// Names subscribed to and resources held.
    Names,
    /// What a peer does not read.
    Unread,
    /// A deadline: of the handshake, of the first call, of being idle.
    Deadline,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::AnonymousConnections,
        Self::Handshakes,
        Self::Connections,
        Self::Calls,
        Self::CallRate,
        Self::Streams,
        Self::Messages,
        Self::Names,
        Self::Unread,
        Self::Deadline,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AnonymousConnections => "anonymous-connections",
            Self::Handshakes => "handshakes",
            Self::Connections => "connections",
            Self::Calls => "calls",
            Self::CallRate => "call-rate",
            Self::Streams => "streams",
            Self::Messages => "messages",
            Self::Names => "names",
            Self::Unread => "unread",
            Self::Deadline => "deadline",
        }
    }
}

/// A limit that a peer exceeded: what was found, what is allowed, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {text}", reason.as_str())]
pub struct Refusal {
    reason: Reason,
    text: String,
}

impl Refusal {
    /// A count that would be exceeded.
    pub fn count(
        reason: Reason,
        found: impl fmt::Display,
        allowed: impl fmt::Display,
        advice: &str,
    ) -> Self {
        let text = format!("found {found}; allowed: {allowed}; {advice}");
        Self { reason, text }
    }

    /// Which limit.
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::resource_exhausted(refusal.to_string())
    }
}
