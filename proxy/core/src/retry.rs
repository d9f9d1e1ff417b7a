//! Whether a failed attempt is made again, when, and at whose expense.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::Method;

use crate::fault::Fault;
use crate::invalid::{Errors, PolicyError};
use crate::time::Instant;
use crate::timeout::MAX_TIMEOUT;

/// Most attempts after the first: more only multiply a failure.
pub const MAX_RETRIES: u32 = 10;
/// Most bytes of a body that are kept for another attempt.
pub const MAX_RETRY_BODY: u32 = 1024 * 1024;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing was sent.
    ConnectFailed,
    /// The peer refused the stream without processing it (RFC 9113 section 8.7).
    RefusedStream,
    /// The peer's sidecar refused it: its application has enough to do, and has not seen it.
    Shed,
    /// Our own limit on connections leaves none to send it over.
    Limited,
    /// The connection was gone before anything was sent.
    NotSent,
    /// The connection or stream broke after the request, or part of it, was sent.
    Reset,
    /// No answer in the time of one attempt.
    PerTryTimeout,
    /// An answer with this status.
    Status(u16),
    /// A gRPC answer with this code other than 0, OK.
    GrpcStatus(u32),
    /// The caller broke its upload off: the endpoint never got the whole request.
    UploadBroken,
}

impl Failure {
    /// Whether a quota or a load limit refused the request: that says how busy the endpoint is, and
    /// not that it fails.
    pub const fn is_quota(self) -> bool {
        // 429, RESOURCE_EXHAUSTED.
        matches!(self, Self::Status(429) | Self::GrpcStatus(8) | Self::Shed)
    }

    /// Whether the application can't have seen the request.
    pub const fn provably_not_sent(self) -> bool {
        match self {
            Self::ConnectFailed
            | Self::RefusedStream
            | Self::Shed
            | Self::Limited
            | Self::NotSent => true,
            Self::Reset
            | Self::PerTryTimeout
            | Self::Status(_)
            | Self::GrpcStatus(_)
            | Self::UploadBroken => false,
        }
    }

    /// Whose fault it is.
    pub const fn fault(self) -> Fault {
        match self {
            Self::ConnectFailed
            | Self::RefusedStream
            | Self::NotSent
            | Self::Reset
            | Self::PerTryTimeout
            | Self::Status(_)
            | Self::GrpcStatus(_) => Fault::Endpoint,
            Self::UploadBroken => Fault::Caller,
            Self::Limited => Fault::Mesh,
            Self::Shed => Fault::Nobody,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectFailed => f.write_str("no connection"),
            Self::RefusedStream => f.write_str("refused"),
            Self::Shed => f.write_str("shed"),
            Self::Limited => f.write_str("no connection left"),
            Self::NotSent => f.write_str("not sent"),
            Self::Reset => f.write_str("reset"),
            Self::PerTryTimeout => f.write_str("no answer in time"),
            Self::Status(status) => write!(f, "{status}"),
            Self::GrpcStatus(code) => write!(f, "gRPC {code}"),
            Self::UploadBroken => f.write_str("the caller broke its upload off"),
        }
    }
}

/// How often and on what.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    /// Statuses that idempotent requests are repeated on.
    pub statuses: Cow<'static, [u16]>,
    /// gRPC codes that calls are repeated on. Every call is a POST, and nothing tells whether it
    /// is idempotent: whoever names a code here says so. Empty unless asked for; UNAVAILABLE is 14.
    pub grpc_codes: Cow<'static, [u32]>,
    /// The first wait; it doubles each time, up to the longest.
    pub backoff: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// Whether `backoff` is a minimum that jitter only lengthens, as HTTPRoute's `retry.backoff` is
    /// (Gateway API, GEP-1731). Else waits have full jitter.
    pub backoff_is_minimum: bool,
    /// Bytes of a request's body that are kept for another attempt; a longer one is sent once.
    pub body_max: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            statuses: Cow::Borrowed(&[502, 503, 504]),
            grpc_codes: Cow::Borrowed(&[]),
            backoff: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            backoff_is_minimum: false,
            body_max: 64 * 1024,
        }
    }
}

/// Whether a repeat does the same as one request (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE | Method::OPTIONS | Method::TRACE
    )
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another attempt, if the budget allows it.
    Retry,
    /// The failure is the answer.
    GiveUp(Why),
}

/// Why there is no other attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// All attempts were made.
    AttemptsUsed,
    /// The body was sent, at least in part, and not kept.
    BodyGone,
    /// The application may have seen the request, and a repeat may do harm.
    NotIdempotent,
    /// This status or code is not one to repeat on.
    NotRetryable,
}

impl Why {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsUsed => "attempts-used",
            Self::BodyGone => "body-gone",
            Self::NotIdempotent => "not-idempotent",
            Self::NotRetryable => "not-retryable",
        }
    }
}

/// Decides about another attempt: `body_replayable` says that the body can be sent (again), since
/// it is empty, was kept, or nothing took it; `attempts_made` counts the first attempt too.
///
/// What the application provably has not seen is repeated for every method; everything else only
/// where a repeat does no harm.
pub fn decide(
    policy: &RetryPolicy,
    failure: &Failure,
    method: &Method,
    body_replayable: bool,
    attempts_made: u32,
) -> Decision {
    let (retryable, harmless) = match failure {
        Failure::ConnectFailed | Failure::RefusedStream | Failure::Shed | Failure::NotSent => {
            (true, true)
        }
        // Another attempt would be one too many as well, or lack the body as well.
        Failure::Limited | Failure::UploadBroken => (false, true),
        Failure::Reset | Failure::PerTryTimeout => (true, is_idempotent(method)),
        Failure::Status(status) => (policy.statuses.contains(status), is_idempotent(method)),
        Failure::GrpcStatus(code) => (policy.grpc_codes.contains(code), true),
    };
    if !retryable {
        Decision::GiveUp(Why::NotRetryable)
    } else if !harmless {
        Decision::GiveUp(Why::NotIdempotent)
    } else if !body_replayable {
        Decision::GiveUp(Why::BodyGone)
    } else if attempts_made > policy.attempts {
        Decision::GiveUp(Why::AttemptsUsed)
    } else {
        Decision::Retry
    }
}

/// [`decide`] as a yes or no.
pub fn may_retry(
    policy: &RetryPolicy,
    failure: Failure,
    method: &Method,
    replayable: bool,
    made: u32,
) -> bool {
    decide(policy, &failure, method, replayable, made) == Decision::Retry
}

/// How long to wait before attempt number `attempt` (1 is the first repeat): exponential with full
/// jitter, from nothing or from the minimum.
pub fn backoff(policy: &RetryPolicy, attempt: u32, random: u64) -> Duration {
    let doubled = policy
        .backoff
        .saturating_mul(1 << attempt.saturating_sub(1).min(16));
    let (least, longest) = if policy.backoff_is_minimum {
        // Half as much again, so that the first waits of many callers differ too.
        let longest = doubled.saturating_add(doubled / 2);
        (policy.backoff, longest.min(policy.backoff_max))
    } else {
        (Duration::ZERO, doubled.min(policy.backoff_max))
    };
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let range = nanos(longest.saturating_sub(least));
    // A random share of it, rounded up.
    let share = (u128::from(range) * u128::from(random)).div_ceil(u128::from(u64::MAX));
    least.saturating_add(Duration::from_nanos(share as u64))
}

/// Checks what is retried, of a policy or of a route's rule; everything that is wrong, with fields as
/// in a TrafficPolicy.
pub fn validate_retry(retry: &RetryPolicy) -> Vec<PolicyError> {
    let mut errors = Errors::default();
    let fits = retry.attempts <= MAX_RETRIES;
    errors.require(fits, "retry.attempts", retry.attempts, "0 to 10");
    errors.check_list("retry.statuses", &retry.statuses);
    errors.check_list("retry.grpcCodes", &retry.grpc_codes);
    for (index, status) in retry.statuses.iter().enumerate() {
        let fits = (500..=599).contains(status) || [408, 425, 429].contains(status);
        let field = format!("retry.statuses[{index}]");
        errors.require(fits, &field, status, "500 to 599, 408, 425 or 429");
    }
    for (index, code) in retry.grpc_codes.iter().enumerate() {
        let field = format!("retry.grpcCodes[{index}]");
        errors.require((1..=16).contains(code), &field, code, "1 to 16");
    }
    let kept = retry.body_max;
    let fits = kept <= MAX_RETRY_BODY;
    errors.require(fits, "retry.maxBodyBytes", kept, "0 to 1048576");
    let (first, longest) = (retry.backoff, retry.backoff_max);
    let allowed = "at most retry.backoff.max";
    let found = format!("{first:?}");
    errors.require(first <= longest, "retry.backoff.base", found, allowed);
    let (fits, found) = (longest <= MAX_TIMEOUT, format!("{longest:?}"));
    errors.require(fits, "retry.backoff.max", found, "up to a day");
    errors.0
}

/// Seconds over which the budget is counted.
const BUDGET_SECONDS: usize = 10;

/// Retries in proportion to requests: a storm of failures can't multiply the load.
///
/// Counted in a ring of seconds. A request pays for retries as long as it is in the ring, and a
/// retry stays in it for at least as long, so that no request pays twice: over any time, there are
/// at most `ratio` retries for each request and, for every ten seconds begun, ten times
/// `minimum_per_second`.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    /// Retries for each request of the last ten seconds.
    ratio: f64,
    /// Retries that are always allowed, per second.
    minimum_per_second: u32,
    seconds: [(u32, u32); BUDGET_SECONDS],
    newest: u64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(0.2, 10)
    }
}

impl RetryBudget {
    /// Allows `ratio` retries for each request, and `minimum_per_second` in any case, counted over
    /// the last ten seconds.
    pub fn new(ratio: f64, minimum_per_second: u32) -> Self {
        Self {
            ratio,
            minimum_per_second,
            seconds: [(0, 0); BUDGET_SECONDS],
            newest: 0,
        }
    }

    /// Exchanges the parameters; what was counted stays.
    pub fn set(&mut self, ratio: f64, minimum_per_second: u32) {
        self.ratio = ratio;
        self.minimum_per_second = minimum_per_second;
    }

    /// A request came, its first attempt.
    pub fn on_request(&mut self, now: Instant) {
        let second = self.second(now);
        second.0 = second.0.saturating_add(1);
    }

    /// Takes a retry out of the budget; false when there is none left.
    pub fn try_retry(&mut self, now: Instant) -> bool {
        self.second(now);
        let sum = |part: fn(&(u32, u32)) -> u32| -> u64 {
            self.seconds
                .iter()
                .map(|second| u64::from(part(second)))
                .sum()
        };
        let (requests, retries) = (sum(|s| s.0), sum(|s| s.1));
        let always = u64::from(self.minimum_per_second) * BUDGET_SECONDS as u64;
        let allowed = always.saturating_add((requests as f64 * self.ratio) as u64);
        let within = retries < allowed;
        if within {
            let second = self.second(now);
            second.1 = second.1.saturating_add(1);
        }
        within
    }

    fn second(&mut self, now: Instant) -> &mut (u32, u32) {
        let current = now.as_nanos() / 1_000_000_000;
        let passed = current
            .saturating_sub(self.newest)
            .min(BUDGET_SECONDS as u64);
        self.newest = self.newest.max(current);
        for back in 0..passed {
            self.seconds[((self.newest - back) % BUDGET_SECONDS as u64) as usize] = (0, 0);
        }
        &mut self.seconds[(self.newest % BUDGET_SECONDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_may_be_repeated() {
        let policy = RetryPolicy::default();
        let go = Decision::Retry;
        let used = Decision::GiveUp(Why::AttemptsUsed);
        let gone = Decision::GiveUp(Why::BodyGone);
        let harm = Decision::GiveUp(Why::NotIdempotent);
        let never = Decision::GiveUp(Why::NotRetryable);
        let cases = [
            (Failure::ConnectFailed, Method::POST, true, 1, go),
            (Failure::ConnectFailed, Method::POST, false, 1, gone),
            (Failure::RefusedStream, Method::POST, true, 1, go),
            (Failure::Shed, Method::POST, true, 1, go),
            (Failure::Shed, Method::GET, true, 3, used),
            (Failure::Limited, Method::GET, true, 1, never),
            (Failure::NotSent, Method::PATCH, true, 2, go),
            (Failure::NotSent, Method::PATCH, true, 3, used),
            (Failure::Reset, Method::POST, true, 1, harm),
            (Failure::Reset, Method::GET, true, 1, go),
            (Failure::Reset, Method::GET, false, 1, gone),
            (Failure::PerTryTimeout, Method::PUT, true, 1, go),
            (Failure::PerTryTimeout, Method::PATCH, true, 1, harm),
            (Failure::Status(503), Method::GET, true, 1, go),
            (Failure::Status(503), Method::POST, true, 1, harm),
            (Failure::Status(500), Method::GET, true, 1, never),
            (Failure::Status(503), Method::GET, true, 3, used),
            (Failure::GrpcStatus(14), Method::POST, true, 1, never),
        ];
        for (failure, method, replayable, made, expected) in cases {
            assert_eq!(
                decide(&policy, &failure, &method, replayable, made),
                expected,
                "{failure:?} {method} {replayable} {made}"
            );
            assert_eq!(
                may_retry(&policy, failure, &method, replayable, made),
                expected == go
            );
        }
        let opted_in = RetryPolicy {
            grpc_codes: Cow::Borrowed(&[14]),
            ..policy
        };
        let decided = decide(&opted_in, &Failure::GrpcStatus(14), &Method::POST, true, 1);
        assert_eq!(decided, go);
        let decided = decide(&opted_in, &Failure::GrpcStatus(13), &Method::POST, true, 1);
        assert_eq!(decided, never);
    }

    #[test]
    fn waits_grow_up_to_the_longest() {
        let policy = RetryPolicy::default();
        let longest: Vec<u128> = (1..7)
            .map(|attempt| backoff(&policy, attempt, u64::MAX).as_millis())
            .collect();
        assert_eq!(longest, [25, 50, 100, 200, 250, 250]);
        assert_eq!(backoff(&policy, 1, 0), Duration::ZERO);
        let endless = RetryPolicy {
            backoff: Duration::MAX,
            backoff_max: Duration::MAX,
            ..policy
        };
        assert!(backoff(&endless, u32::MAX, u64::MAX) > Duration::from_secs(3600));
    }

    #[test]
    fn a_minimum_is_never_undercut() {
        let policy = RetryPolicy {
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_millis(1000),
            backoff_is_minimum: true,
            ..RetryPolicy::default()
        };
        let millis = |attempt, random| backoff(&policy, attempt, random).as_millis();
        let longest: Vec<u128> = (1..7).map(|attempt| millis(attempt, u64::MAX)).collect();
        assert_eq!(longest, [150, 300, 600, 1000, 1000, 1000]);
        for attempt in 1..7 {
            assert_eq!(millis(attempt, 0), 100);
        }
        // A maximum below the minimum does not undercut it either.
        let capped = RetryPolicy {
            backoff_max: Duration::from_millis(50),
            ..policy
        };
        assert_eq!(backoff(&capped, 3, 0), Duration::from_millis(100));
        assert_eq!(backoff(&capped, 3, u64::MAX), Duration::from_millis(100));
    }

    /// The bound that [`RetryBudget`] promises since the clock's origin.
    fn most(requests: u64, ratio: f64, minimum_per_second: u64, now: Instant) -> f64 {
        let begun = now.as_nanos() / 10_000_000_000 + 1;
        requests as f64 * ratio + (begun * 10 * minimum_per_second) as f64
    }

    /// Everything fails and is repeated as often as the budget lets it: a million requests, evenly,
    /// in bursts with pauses, and all within a second.
    #[test]
    fn the_budget_holds_in_a_storm_of_a_million_requests() {
        let evenly = |step: u64| step * 1_000_000;
        let bursts = |step: u64| step / 10_000 * 25_000_000_000 + step % 10_000 * 1000;
        let at_once = |step: u64| step * 1000;
        type Storm = (&'static str, fn(u64) -> u64, u64);
        let storms: [Storm; 3] = [
            ("evenly", evenly, 150_000),
            ("bursts", bursts, 200_000),
            ("at once", at_once, 199_000),
        ];
        for (what, nanos, least) in storms {
            let mut budget = RetryBudget::default();
            let (mut requests, mut retries) = (0u64, 0u64);
            for step in 0..1_000_000u64 {
                let now = Instant::from_nanos(nanos(step));
                budget.on_request(now);
                requests += 1;
                for _ in 0..2 {
                    retries += u64::from(budget.try_retry(now));
                }
                let bound = most(requests, 0.2, 10, now);
                assert!(
                    retries as f64 <= bound,
                    "{what}: {retries} retries for {requests} requests"
                );
            }
            assert!(
                retries > least,
                "{what}: it allows what it promises: {retries}"
            );
        }
    }

    #[test]
    fn a_quiet_service_may_retry_all_the_same() {
        let mut budget = RetryBudget::default();
        let now = Instant::from_nanos(5_000_000_000_000);
        budget.on_request(now);
        assert!(budget.try_retry(now));
        let allowed = (0..1000).filter(|_| budget.try_retry(now)).count();
        assert_eq!(allowed, 99);
        assert!(budget.try_retry(now + Duration::from_secs(10)));
    }

    proptest! {
        /// Bursts and pauses of any kind, with as many retries as the budget gives.
        #[test]
        fn the_budget_is_never_exceeded(
            ratio in 0.0..2.0,
            minimum in 0u32..5,
            bursts in proptest::collection::vec((0u64..15_000, 0u64..200, 0u64..300), 1..60),
        ) {
            let mut budget = RetryBudget::new(ratio, minimum);
            let (mut requests, mut retries, mut millis) = (0, 0, 0);
            for (pause, came, tried) in bursts {
                millis += pause;
                let now = Instant::from_nanos(millis * 1_000_000);
                for _ in 0..came {
                    budget.on_request(now);
                }
                requests += came;
                retries += (0..tried).filter(|_| budget.try_retry(now)).count() as u64;
                let bound = most(requests, ratio, u64::from(minimum), now);
                prop_assert!(retries as f64 <= bound, "{retries} of {bound}");
            }
        }

        #[test]
        fn waits_stay_within(attempt: u32, random: u64) {
            let policy = RetryPolicy::default();
            prop_assert!(backoff(&policy, attempt, random) <= policy.backoff_max);
        }
    }
}
