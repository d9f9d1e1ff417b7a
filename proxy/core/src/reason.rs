//! Why the mesh itself answered or closed a connection: one list, the same word everywhere.
//!
//! The word is in the `weft-reason` header, in metric labels, span attributes and the access log.
//! `deploy/guide/reasons.md` has a row on each; a test holds the two together.

use std::fmt;
use std::str::FromStr;

use crate::fault::Fault;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:literal, $grpc:literal, $fault:ident, $text:literal, $advice:literal;)*) => {
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

            /// Whose fault it is.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }

            /// What happened, in one sentence.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What to do about it, in one sentence.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)* }
            }
        }
    };
}

reasons! {
    NoEndpoints = "no-endpoints", 503, 14, Mesh,
        "nobody serves this port of the service now: see `weft get` and whether its workloads are ready",
        "start a workload for the service, or look why its workloads are not ready: a port is announced when the application first accepts connections on it, and the workload's own sidecar logs why it does not";
    ServiceNotFound = "service-not-found", 503, 14, Caller,
        "the mesh has no service at this address",
        "check the name and the address that was dialled; a service exists once it is declared or a workload names it";
    PortNotDeclared = "port-not-declared", 503, 14, Caller,
        "the service does not have this port",
        "declare the port in the Service or on its workloads";
    RouteNotFound = "route-not-found", 404, 12, Caller,
        "the service has routes, and none of them takes this request",
        "see what its routes match (`weft get httproutes`); a rule without matches takes everything else";
    BackendNotFound = "backend-not-found", 500, 14, Mesh,
        "the route sends this request to a backend that does not exist, or to none",
        "look at the route's status: ResolvedRefs names the reference that leads nowhere";
    FaultInjected = "fault-injected", 503, 14, Mesh,
        "a FaultInjection of the route failed this request on purpose; the status may be another",
        "nothing is broken: see the filters of the route";
    DiscoveryUnavailable = "discovery-unavailable", 503, 14, Mesh,
        "the control plane has not answered yet for this destination, or asks the called one's sidecar to enforce what it does not know; unanswered is not absent, so nothing was sent",
        "check that the control plane runs, that the sidecar reaches it, and that the sidecar is of its version (`weft proxies` shows what is rejected); what was known before still works";
    CircuitOpen = "circuit-open", 503, 14, Endpoint,
        "the circuit breaker is open",
        "wait for the next probe, and look at the failures that opened it";
    ConcurrencyLimit = "concurrency-limit", 503, 8, Mesh,
        "too many concurrent requests",
        "send less at a time, add endpoints, or raise the limit";
    LoadShed = "load-shed", 503, 8, Endpoint,
        "the application has as much to do as it takes well, and its own sidecar refused one more; the application has not seen the request",
        "add endpoints or make the application faster; what matters most can be declared critical (adaptiveConcurrency.server)";
    PendingLimit = "pending-limit", 503, 8, Mesh,
        "too many requests wait for a connection",
        "add endpoints, or raise the limit; of an application's connections each client has a share (limits.max_application_connections)";
    RateLimited = "rate-limited", 429, 8, Caller,
        "more requests came than a RateLimitPolicy of the service lets through",
        "wait as long as Retry-After says; RateLimit-Policy names the limit (policy/rule)";
    ConnectionLimit = "connection-limit", 503, 8, Mesh,
        "too many connections",
        "reuse connections, add endpoints, or raise the connection limit";
    NameResolutionFailed = "name-resolution-failed", 503, 14, Endpoint,
        "no address is known for the name of an endpoint outside the mesh",
        "check spec.endpoints of the ExternalService, and that the name resolves on the sidecar's host";
    ConnectFailed = "connect-failed", 503, 14, Endpoint,
        "no TCP connection to the endpoint or its sidecar",
        "check that the endpoint or its sidecar runs and that the network lets its port through";
    ConnectTimeout = "connect-timeout", 503, 14, Endpoint,
        "connecting to the endpoint or its sidecar took too long; a firewall that drops packets looks like this",
        "check firewalls and network policies between the two hosts, then timeouts.connect";
    TlsFailed = "tls-failed", 503, 14, Endpoint,
        "the TLS handshake with the endpoint or its sidecar failed",
        "look at both sidecars' logs of that moment: clocks, roots of trust and expired certificates are the usual causes; outside the mesh, caCertificates of the ExternalService";
    PeerIdentityMismatch = "peer-identity-mismatch", 503, 16, Endpoint,
        "whoever answered is not who the control plane said has to be there; outside the mesh, its certificate has another name",
        "find out what listens at that address: an address that was given to another workload, or an impostor; outside the mesh, check tls.sni";
    PeerNotAuthenticated = "peer-not-authenticated", 503, 16, Mesh,
        "this sidecar's own certificate has ended: it cannot show who it is",
        "check that the control plane runs and that the sidecar reaches it: certificates are renewed there (/certs, weft_certificate_renewals_total)";
    PeerRevoked = "peer-revoked", 503, 14, Mesh,
        "the instance on the other side of the connection between the sidecars was revoked (`weft certs revoke`): the connection was cut, or not made",
        "nothing is broken where that was meant; other instances of the workload go on";
    PeerExpired = "peer-expired", 503, 14, Mesh,
        "the other side of the connection between the sidecars has proved no newer certificate since its last one ended: the connection was told to end after timeouts.expired_grace, and cut timeouts.drain later",
        "look at that sidecar's log: it does not renew its certificate, or the side that dialled no longer reaches it";
    PeerUntrusted = "peer-untrusted", 503, 14, Mesh,
        "the root that the certificate of the other side leads to has left the trust bundle, and it has proved none under another root: the connection was told to end after timeouts.expired_grace, and cut timeouts.drain later",
        "let all sidecars renew their certificates before a root leaves the bundle; look at the log of the one that did not";
    PlaintextRefused = "plaintext-refused", 403, 7, Caller,
        "this workload takes mutual TLS only (mtls: strict)",
        "call through a sidecar, or set mtls to permissive on the server";
    NotHttp = "not-http", 400, 3, Caller,
        "the connection does not begin with a request, and its port takes nothing else: it is declared HTTP, or a policy limits its requests",
        "speak HTTP, or declare what the port speaks (tcp, tls)";
    HiddenHttp = "hidden-http", 400, 3, Caller,
        "bytes that were taken for another protocol turned out to be HTTP, which would have passed every rule and could have named any caller",
        "send a request as RFC 9112 has it and at once, or declare what the port speaks";
    RequestTimeout = "request-timeout", 504, 4, Endpoint,
        "the request took longer than its timeout",
        "find out what took long with a trace, then timeouts.request";
    PerTryTimeout = "per-try-timeout", 504, 4, Endpoint,
        "the last attempt took longer than the timeout of one",
        "find out what took long with a trace, then the timeout of one attempt";
    DeadlineExceeded = "deadline-exceeded", 504, 4, Caller,
        "the caller's own deadline (grpc-timeout, weft-deadline) has passed: nobody waits for the answer",
        "find out what took long with a trace, or let the caller wait longer";
    IdleTimeout = "idle-timeout", 504, 4, Endpoint,
        "nothing moved for the idle time",
        "send keep-alives, or raise the idle timeout";
    StreamIdleTimeout = "stream-idle-timeout", 504, 4, Endpoint,
        "nothing moved in the request's stream, in either direction, for the idle time of a stream",
        "find out who went silent, with a trace and both access logs; send keep-alives, or raise timeouts.streamIdle";
    UpstreamReset = "upstream-reset", 502, 14, Endpoint,
        "the endpoint broke the connection or reset the stream",
        "look at the endpoint's log: a crash, a restart, or its own timeout";
    UpstreamProtocolError = "upstream-protocol-error", 502, 13, Endpoint,
        "the endpoint's answer was not valid HTTP",
        "check the protocol that is declared for the port, and what the application answers";
    HeadersTooLarge = "headers-too-large", 431, 8, Caller,
        "the head or the trailers of the request, or of the application's response (then 502), are larger than limits.max_header_bytes or have too many fields",
        "make cookies and tokens smaller, or raise limits.max_header_bytes or limits.max_headers";
    BadRequest = "bad-request", 400, 3, Caller,
        "the request is not one that can be forwarded",
        "correct the request; the detail in the answer says what is wrong";
    ClientGone = "client-gone", 499, 1, Caller,
        "the caller went away, or broke its request's body off, before it was answered",
        "look at the caller: its own timeout, a cancelled request, or a connection that broke; nobody else has failed";
    ClientTimeout = "client-timeout", 408, 4, Caller,
        "the caller made a connection, began a request or was sent an answer, and did not go on with it in time",
        "look at the caller; timeouts.client_first, timeouts.client_head and timeouts.client_stall say how long the sidecar waits, and timeouts.handshake for the rest of a ClientHello";
    PathAmbiguous = "path-ambiguous", 400, 3, Caller,
        "servers read the path in different ways, and a limit of the service depends on which is meant",
        "write the path so that it can be read in one way only; the detail in the answer says what is wrong with it";
    ApplicationUnreachable = "application-unreachable", 503, 14, Endpoint,
        "the sidecar runs, but the application does not accept connections on this port",
        "check that the application runs and listens on the declared port; one that has accepted nothing since the sidecar's start is not announced: then callers get no-endpoints, and the sidecar's log has this reason";
    ApplicationRefused = "application-refused", 503, 14, Nobody,
        "the application said in HTTP/2 that it has not processed the request (REFUSED_STREAM or GOAWAY), also when it was asked again",
        "look at the application's limits on connections and streams (nginx: keepalive_requests, http2_max_concurrent_streams)";
    ApplicationLoopbackOnly = "application-loopback-only", 503, 14, Endpoint,
        "the application listens on loopback only; let it listen on all addresses, or declare the port as loopback",
        "bind the application to 0.0.0.0 or [::], or set workload.ports[].loopback; a port that has accepted nothing since the sidecar's start is not announced: then callers get no-endpoints, and the sidecar's log has this reason";
    DestinationRefused = "destination-refused", 502, 7, Mesh,
        "the destination is outside the mesh, and the mesh refuses those (unknownDestinations: refuse)",
        "declare the destination, or let unknown destinations pass";
    Draining = "draining", 503, 14, Mesh,
        "the sidecar stopped while this was under way: what it carried had longer than timeouts.drain to end",
        "let leaving take longer (timeouts.drain, weft run --drain), or make what takes so long shorter";
    UpgradeFailed = "upgrade-failed", 502, 13, Nobody,
        "the connection could not be upgraded",
        "check that the application supports the upgrade and answers with 101";
    LoopDetected = "loop-detected", 508, 9, Mesh,
        "the request came back to the sidecar that sent it",
        "look at the routes and at a service that points to itself";
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

    /// A reason's row of the guide: the test that fails prints the rows to put there.
    fn row(reason: Reason) -> String {
        let whose = match reason.fault() {
            Fault::Caller => "the caller",
            Fault::Endpoint => "the called one",
            Fault::Mesh => "the mesh",
            Fault::Nobody => "nobody",
        };
        format!(
            "| `{reason}` | {} | {} | {whose} | {} | {} |",
            reason.http_status(),
            reason.grpc_code(),
            reason.description(),
            reason.advice(),
        )
    }

    #[test]
    fn the_guide_has_exactly_these() {
        let page = include_str!("../../../deploy/guide/reasons.md");
        let found: Vec<&str> = page.lines().filter(|l| l.starts_with("| `")).collect();
        let expected: Vec<String> = Reason::ALL.iter().map(|reason| row(*reason)).collect();
        assert_eq!(
            found,
            expected,
            "deploy/guide/reasons.md is to have these rows:\n{}",
            expected.join("\n")
        );
    }

    #[test]
    fn words_are_kebab_case_and_codes_are_codes() {
        for reason in Reason::ALL {
            let letters = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(reason.as_str().chars().all(letters), "{reason}");
            assert!((1..=16).contains(&reason.grpc_code()), "{reason}");
            assert!(!reason.description().contains('|') && !reason.advice().contains('|'));
        }
    }
}
