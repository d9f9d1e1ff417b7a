//! Why the mesh itself answered or closed a connection: one list, the same word everywhere.
//!
//! The word is in the `weft-reason` header, in metric labels, span attributes and the access log.
//! `deploy/guide/reasons.md` has a section on each; a test holds the two together.

use std::fmt;
use std::str::FromStr;

/// Whose doing it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller's.
    Downstream,
    /// The called one's.
    Upstream,
    /// The mesh's: its state, its policy or its configuration.
    Mesh,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:literal, $grpc:literal, $fault:ident, $text:literal;)*) => {
        /// A reason; see the table in `deploy/guide/reasons.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $text] $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word for it, kebab-case.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The status of an HTTP response that says so.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The status code of a gRPC response that says so.
            pub const fn grpc_code(self) -> u32 {
                match self { $(Self::$name => $grpc,)* }
            }

            /// Whose doing it was.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }

            /// What happened, and what to look at, in one sentence.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    NoEndpoints = "no-endpoints", 503, 14, Mesh,
        "nobody serves this port of the service now: see `weft get` and whether its workloads are ready";
    NoHealthyEndpoint = "no-healthy-endpoint", 503, 14, Upstream,
        "every endpoint of the service has just failed";
    ServiceNotFound = "service-not-found", 503, 14, Downstream,
        "the mesh has no service at this address";
    PortNotDeclared = "port-not-declared", 503, 14, Downstream,
        "the service does not have this port";
    DiscoveryUnavailable = "discovery-unavailable", 503, 14, Mesh,
        "the control plane has not answered for this destination yet; unanswered is not absent, so nothing was sent";
    CircuitOpen = "circuit-open", 503, 14, Upstream,
        "the circuit breaker is open";
    ConcurrencyLimit = "concurrency-limit", 503, 8, Mesh,
        "too many concurrent requests";
    PendingLimit = "pending-limit", 503, 8, Mesh,
        "too many requests wait for a connection";
    ConnectionLimit = "connection-limit", 503, 8, Mesh,
        "too many connections";
    ConnectFailed = "connect-failed", 503, 14, Upstream,
        "no TCP connection to the endpoint's sidecar";
    ConnectTimeout = "connect-timeout", 503, 14, Upstream,
        "connecting to the endpoint's sidecar took too long; a firewall that drops packets looks like this";
    TlsFailed = "tls-failed", 503, 14, Upstream,
        "the TLS handshake with the endpoint's sidecar failed";
    PeerIdentityMismatch = "peer-identity-mismatch", 503, 16, Upstream,
        "whoever answered is not who the control plane said has to be there";
    PeerNotAuthenticated = "peer-not-authenticated", 503, 16, Mesh,
        "one of the two sidecars has no valid certificate";
    PlaintextRefused = "plaintext-refused", 403, 7, Downstream,
        "this workload takes mutual TLS only (mtls: strict)";
    RequestTimeout = "request-timeout", 504, 4, Upstream,
        "the request took longer than its timeout";
    PerTryTimeout = "per-try-timeout", 504, 4, Upstream,
        "the last attempt took longer than the timeout of one";
    IdleTimeout = "idle-timeout", 504, 4, Upstream,
        "nothing moved for the idle time";
    UpstreamReset = "upstream-reset", 502, 14, Upstream,
        "the endpoint broke the connection or reset the stream";
    UpstreamProtocolError = "upstream-protocol-error", 502, 13, Upstream,
        "the endpoint's answer was not valid HTTP";
    HeadersTooLarge = "headers-too-large", 431, 8, Downstream,
        "the head of the request is larger than limits.max_header_bytes";
    BadRequest = "bad-request", 400, 3, Downstream,
        "the request is not one that can be forwarded";
    BodyTooLarge = "body-too-large", 413, 8, Downstream,
        "the body is larger than allowed";
    RetryBudgetExhausted = "retry-budget-exhausted", 503, 14, Mesh,
        "the attempt failed and the retry budget is spent";
    ApplicationUnreachable = "application-unreachable", 503, 14, Upstream,
        "the sidecar runs, but the application does not accept connections on this port";
    ApplicationLoopbackOnly = "application-loopback-only", 503, 14, Upstream,
        "the application listens on loopback only; let it listen on all addresses, or declare the port as loopback";
    DestinationRefused = "destination-refused", 502, 7, Mesh,
        "the destination is outside the mesh, and the mesh refuses those (unknownDestinations: refuse)";
    Draining = "draining", 503, 14, Mesh,
        "the sidecar is about to stop";
    UpgradeFailed = "upgrade-failed", 502, 13, Upstream,
        "the connection could not be upgraded";
    LoopDetected = "loop-detected", 508, 9, Mesh,
        "the request came back to the sidecar that sent it";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is not a reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a reason of the mesh")]
pub struct UnknownReason(String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(word: &str) -> Result<Self, UnknownReason> {
        let found = Self::ALL.iter().find(|reason| reason.as_str() == word);
        found
            .copied()
            .ok_or_else(|| UnknownReason(word.chars().take(60).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_unique_and_read_back() {
        let words: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert!((400..600).contains(&reason.http_status()));
        }
        assert!("x".parse::<Reason>().is_err());
    }

    #[test]
    fn the_guide_has_them_all() {
        let page = include_str!("../../../deploy/guide/reasons.md");
        for reason in Reason::ALL {
            let row = format!(
                "| `{}` | {} | {} |",
                reason.as_str(),
                reason.http_status(),
                reason.grpc_code()
            );
            assert!(page.contains(&row), "deploy/guide/reasons.md lacks {row}");
        }
    }
}
