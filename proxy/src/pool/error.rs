//! Why there is no connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_core::reason::Reason;

use crate::tls::{PeerError, in_words};

/// Why a request gets no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// No TCP connection.
    #[error("connecting to {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What happened.
        source: Arc<io::Error>,
    },
    /// Too slow.
    #[error("connecting to {address} took longer than {limit:?}")]
    Timeout {
        /// Where.
        address: SocketAddr,
        /// What is allowed, TLS included.
        limit: Duration,
    },
    /// No TLS.
    #[error("TLS with {address}: {}", in_words(source))]
    Tls {
        /// Where.
        address: SocketAddr,
        /// What happened.
        source: Arc<io::Error>,
    },
    /// Somebody else is there.
    #[error("{address}: {source}")]
    Peer {
        /// Where.
        address: SocketAddr,
        /// Who.
        source: PeerError,
    },
    /// The application is not reached.
    #[error("{detail}")]
    Application {
        /// What callers are told.
        reason: Reason,
        /// Where, and what happened.
        detail: Arc<str>,
    },
    /// As many stand as may.
    #[error("connecting to {address}: {limit} connections are open")]
    Limited {
        /// Where.
        address: SocketAddr,
        /// How many may.
        limit: u32,
    },
    /// As many requests wait for a connection as may.
    #[error("{waiting} requests wait for a connection already")]
    Full {
        /// How many do.
        waiting: u32,
    },
    /// Waited for a connection with room in vain.
    #[error("no connection had room within {patience:?}; {open} of at most {most} are open{of}")]
    Busy {
        /// How long.
        patience: Duration,
        /// Connections that stand.
        open: u32,
        /// Connections that may stand.
        most: u32,
        /// Which of all these are, where not every one.
        of: &'static str,
    },
    /// Waited in vain for its client to have another connection to the application.
    #[error(
        "its client has {held} connections to the application, which is its share, and gave none back within {patience:?}"
    )]
    Share {
        /// How long.
        patience: Duration,
        /// Connections that the client's requests hold.
        held: u32,
    },
    /// We have no certificate to show.
    #[error("this sidecar has no valid certificate")]
    NoCertificate,
}

impl DialError {
    /// A handshake with another sidecar that failed.
    pub(super) fn of_handshake(address: SocketAddr, error: io::Error) -> Self {
        match PeerError::of_handshake(&error) {
            Some(source) => Self::Peer { address, source },
            None => Self::Tls {
                address,
                source: Arc::new(error),
            },
        }
    }

    /// Whether nobody was dialled, for a limit of our own: it says nothing about the endpoint.
    pub const fn is_limited(&self) -> bool {
        matches!(
            self,
            Self::Limited { .. } | Self::Full { .. } | Self::Busy { .. } | Self::Share { .. }
        )
    }

    /// Why the TLS handshake failed, in a word for metrics; `None` where it was not that.
    pub(crate) const fn handshake(&self) -> Option<&'static str> {
        match self {
            Self::Tls { .. } => Some("tls"),
            Self::Peer { .. } => Some("peer"),
            Self::NoCertificate => Some(Reason::PeerNotAuthenticated.as_str()),
            Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Application { .. }
            | Self::Limited { .. }
            | Self::Full { .. }
            | Self::Busy { .. }
            | Self::Share { .. } => None,
        }
    }

    /// The reason that callers see.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Connect { .. } => Reason::ConnectFailed,
            Self::Timeout { .. } => Reason::ConnectTimeout,
            Self::Tls { source, .. } if names_another(source) => Reason::PeerIdentityMismatch,
            Self::Tls { .. } => Reason::TlsFailed,
            Self::Peer { source, .. } => match source {
                PeerError::Revoked { .. } => Reason::PeerRevoked,
                PeerError::NoCertificate | PeerError::Chain(_) => Reason::TlsFailed,
                PeerError::NoIdentity { .. }
                | PeerError::NotControlPlane { .. }
                | PeerError::TrustDomain { .. }
                | PeerError::Mismatch(_) => Reason::PeerIdentityMismatch,
            },
            Self::Application { reason, .. } => *reason,
            Self::Limited { .. } => Reason::ConnectionLimit,
            Self::Full { .. } | Self::Busy { .. } | Self::Share { .. } => Reason::PendingLimit,
            Self::NoCertificate => Reason::PeerNotAuthenticated,
        }
    }
}

/// Whether a server outside the mesh showed a good certificate, for another name.
fn names_another(error: &io::Error) -> bool {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
    let inner = error.get_ref();
    let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        inner,
        Some(rustls::Error::InvalidCertificate(
            NotValidForName | NotValidForNameContext { .. }
        ))
    )
}
