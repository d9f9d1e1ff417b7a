//! What the end of an attempt, of a response and of a whole request teaches breakers and balancers:
//! only what is the endpoint's fault counts against it.

use crate::breaker::CallClass;
use crate::fault::Fault;
use crate::policy::Failures;
use crate::reason::Reason;
use crate::retry::Failure;

impl Failures {
    /// What a failed attempt says about its endpoint. `None` says nothing, neither that the endpoint
    /// fails nor how long it takes: the call is to be cancelled. `reason` is the one that callers
    /// would be told.
    pub fn of_attempt(
        &self,
        failure: Failure,
        reason: Reason,
        progress: Progress,
    ) -> Option<CallClass> {
        match (failure, reason) {
            (Failure::PerTryTimeout, _) if progress.is_callers_turn() => None,
            // Nobody was dialled: there is no certificate of our own to show.
            (Failure::ConnectFailed, Reason::PeerNotAuthenticated) => None,
            // It was dialled and is not believed: others may be.
            (Failure::ConnectFailed, Reason::PeerRevoked | Reason::PeerUntrusted) => {
                Some(self.of_failure(failure))
            }
            // We ended its connection ourselves.
            (_, Reason::PeerRevoked | Reason::PeerExpired | Reason::PeerUntrusted) => None,
            // A limit on the rate of requests answered: fast, and not because the endpoint fails.
            (_, Reason::RateLimited) => Some(CallClass::Neutral),
            // An application that ends a connection in good order goes on over others.
            (_, Reason::ApplicationRefused) => Some(CallClass::Neutral),
            (failure, _) => match failure.fault() {
                Fault::Endpoint => Some(self.of_failure(failure)),
                Fault::Caller | Fault::Mesh | Fault::Nobody => None,
            },
        }
    }

    /// What a response that was relayed says about its endpoint. `reason` is the one that it names:
    /// the endpoint's sidecar gave this answer then.
    pub fn of_response(
        &self,
        reason: Option<Reason>,
        status: u16,
        grpc_code: Option<u32>,
    ) -> CallClass {
        let shed = reason == Some(Reason::LoadShed);
        match reason.map(Reason::fault) {
            Some(Fault::Caller | Fault::Mesh | Fault::Nobody) => CallClass::Neutral,
            Some(Fault::Endpoint) if shed => CallClass::Neutral,
            Some(Fault::Endpoint) | None => self.of_answer(status, grpc_code),
        }
    }
}

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// An endpoint was chosen for it: it no longer waits for limits of our own alone.
    pub asked: bool,
    /// The endpoint has taken all of the body that came, and its caller has more to send.
    pub uploading: bool,
    /// It is a gRPC call, whose caller may keep its side open while it waits for the answer.
    pub grpc: bool,
}

impl Progress {
    /// Whether the answer waits for the caller: an endpoint that has not answered yet is not slow.
    pub const fn is_callers_turn(self) -> bool {
        self.uploading && !self.grpc
    }
}

/// Whose fault it is that a request ended with `reason` instead of a response.
pub fn of_request(reason: Reason, progress: Progress) -> Fault {
    if reason == Reason::RequestTimeout && !progress.asked {
        // In our own queue until its time was over: no endpoint has been slow.
        return Fault::Nobody;
    }
    let slow = [Reason::RequestTimeout, Reason::PerTryTimeout].contains(&reason);
    let silent = reason == Reason::StreamIdleTimeout;
    if (slow && progress.is_callers_turn()) || (silent && progress.uploading) {
        return Fault::Caller;
    }
    reason.fault()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_endpoints_fail() {
        use Failure::*;
        let failures = Failures::DEFAULT;
        let any = Reason::UpstreamReset;
        let cases = [
            (ConnectFailed, any, Some(CallClass::Failure)),
            (ConnectFailed, Reason::PeerNotAuthenticated, None),
            (Reset, Reason::PeerRevoked, None),
            (ConnectFailed, Reason::PeerRevoked, Some(CallClass::Failure)),
            (NotSent, Reason::PeerUntrusted, None),
            (RefusedStream, any, Some(CallClass::Failure)),
            (Reset, any, Some(CallClass::Failure)),
            (PerTryTimeout, any, Some(CallClass::Failure)),
            (Status(503), any, Some(CallClass::Failure)),
            (Status(429), Reason::RateLimited, Some(CallClass::Neutral)),
            (
                RefusedStream,
                Reason::ApplicationRefused,
                Some(CallClass::Neutral),
            ),
            (Shed, Reason::LoadShed, None),
            (Limited, Reason::ConnectionLimit, None),
            (UploadBroken, Reason::ClientGone, None),
        ];
        for (failure, reason, expected) in cases {
            let found = failures.of_attempt(failure, reason, Progress::default());
            assert_eq!(found, expected, "{failure:?} {reason}");
            let blames = found == Some(CallClass::Failure);
            let endpoint = failure.fault() == Fault::Endpoint;
            assert!(!blames || endpoint, "{failure:?}");
        }
    }

    #[test]
    fn what_a_sidecar_answers_is_not_always_its_applications_fault() {
        let failures = Failures::DEFAULT;
        let cases = [
            (None, 200, CallClass::Success),
            (None, 503, CallClass::Failure),
            (Some(Reason::UpstreamReset), 502, CallClass::Failure),
            (
                Some(Reason::ApplicationUnreachable),
                503,
                CallClass::Failure,
            ),
            (Some(Reason::LoadShed), 503, CallClass::Neutral),
            (Some(Reason::RateLimited), 429, CallClass::Neutral),
            (Some(Reason::DeadlineExceeded), 504, CallClass::Neutral),
            (Some(Reason::ClientGone), 499, CallClass::Neutral),
            (Some(Reason::Draining), 503, CallClass::Neutral),
        ];
        for (reason, status, expected) in cases {
            let found = failures.of_response(reason, status, None);
            assert_eq!(found, expected, "{reason:?} {status}");
        }
    }

    #[test]
    fn waiting_for_ourselves_or_for_the_caller_blames_nobody_else() {
        let asked = Progress {
            asked: true,
            ..Progress::default()
        };
        let uploading = Progress {
            uploading: true,
            ..asked
        };
        let call = Progress {
            grpc: true,
            ..uploading
        };
        let cases = [
            (Reason::RequestTimeout, asked, Fault::Endpoint),
            (Reason::RequestTimeout, Progress::default(), Fault::Nobody),
            (Reason::StreamIdleTimeout, asked, Fault::Endpoint),
            (Reason::RequestTimeout, uploading, Fault::Caller),
            (Reason::PerTryTimeout, uploading, Fault::Caller),
            (Reason::RequestTimeout, call, Fault::Endpoint),
            (Reason::StreamIdleTimeout, uploading, Fault::Caller),
            (Reason::StreamIdleTimeout, call, Fault::Caller),
            (Reason::DeadlineExceeded, asked, Fault::Caller),
            (Reason::ClientGone, uploading, Fault::Caller),
            (Reason::ConcurrencyLimit, Progress::default(), Fault::Mesh),
        ];
        for (reason, progress, expected) in cases {
            assert_eq!(
                of_request(reason, progress),
                expected,
                "{reason} {progress:?}"
            );
        }
        let slow = Failure::PerTryTimeout;
        for (progress, expected) in [(asked, Some(CallClass::Failure)), (uploading, None)] {
            let found = Failures::DEFAULT.of_attempt(slow, Reason::PerTryTimeout, progress);
            assert_eq!(found, expected);
        }
    }
}
