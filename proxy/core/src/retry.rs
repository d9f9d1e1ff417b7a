//! Whether a failed attempt is made again, when, and at whose expense.

use std::time::Duration;

use http::Method;

use crate::time::Instant;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing was sent.
    ConnectFailed,
    /// The peer refused the stream without processing it (RFC 9113 section 8.7).
    RefusedStream,
    /// The connection was gone before anything was sent.
    NotSent,
    /// The connection or stream broke after the request, or part of it, was sent.
    Reset,
    /// No answer in the time of one attempt.
    PerTryTimeout,
    /// An answer with this status.
    Status(u16),
}

impl Failure {
    /// Whether the application can't have seen the request.
    pub const fn provably_not_sent(self) -> bool {
        match self {
            Self::ConnectFailed | Self::RefusedStream | Self::NotSent => true,
            Self::Reset | Self::PerTryTimeout | Self::Status(_) => false,
        }
    }
}

/// How often and on what.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    /// Statuses that idempotent requests are repeated on.
    pub statuses: Vec<u16>,
    /// The first wait; it doubles each time, up to the longest.
    pub backoff: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            statuses: vec![502, 503, 504],
            backoff: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
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

/// Whether an attempt may be repeated: `replayable` says that the body can be sent again (it is
/// empty, or was kept), `made` how many attempts there were.
pub fn may_retry(
    policy: &RetryPolicy,
    failure: Failure,
    method: &Method,
    replayable: bool,
    made: u32,
) -> bool {
    if made > policy.attempts || !replayable {
        return false;
    }
    match failure {
        Failure::ConnectFailed | Failure::RefusedStream | Failure::NotSent => true,
        Failure::Reset | Failure::PerTryTimeout => is_idempotent(method),
        Failure::Status(status) => is_idempotent(method) && policy.statuses.contains(&status),
    }
}

/// How long to wait before attempt number `attempt` (1 is the first repeat): exponential with full
/// jitter.
pub fn backoff(policy: &RetryPolicy, attempt: u32, random: u64) -> Duration {
    let doubled = policy
        .backoff
        .saturating_mul(1 << attempt.saturating_sub(1).min(16));
    let longest = doubled.min(policy.backoff_max);
    longest.mul_f64(random as f64 / u64::MAX as f64)
}

/// Seconds over which the budget is counted.
const BUDGET_SECONDS: usize = 10;

/// Retries in proportion to requests: a storm of failures can't multiply the load.
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
        let allowed = always + (requests as f64 * self.ratio) as u64;
        let within = retries < allowed;
        if within {
            self.second(now).1 += 1;
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

    #[test]
    fn what_may_be_repeated() {
        let policy = RetryPolicy::default();
        let cases = [
            (Failure::ConnectFailed, Method::POST, true, 1, true),
            (Failure::ConnectFailed, Method::POST, false, 1, false),
            (Failure::RefusedStream, Method::POST, true, 1, true),
            (Failure::NotSent, Method::PATCH, true, 2, true),
            (Failure::NotSent, Method::PATCH, true, 3, false),
            (Failure::Reset, Method::POST, true, 1, false),
            (Failure::Reset, Method::GET, true, 1, true),
            (Failure::PerTryTimeout, Method::PUT, true, 1, true),
            (Failure::Status(503), Method::GET, true, 1, true),
            (Failure::Status(503), Method::POST, true, 1, false),
            (Failure::Status(500), Method::GET, true, 1, false),
            (Failure::Status(503), Method::GET, true, 3, false),
        ];
        for (failure, method, replayable, made, expected) in cases {
            assert_eq!(
                may_retry(&policy, failure, &method, replayable, made),
                expected,
                "{failure:?} {method} {replayable} {made}"
            );
        }
    }

    #[test]
    fn waits_grow_up_to_the_longest() {
        let policy = RetryPolicy::default();
        let longest: Vec<u128> = (1..7)
            .map(|attempt| backoff(&policy, attempt, u64::MAX).as_millis())
            .collect();
        assert_eq!(longest, [25, 50, 100, 200, 250, 250]);
        assert_eq!(backoff(&policy, 1, 0), Duration::ZERO);
    }

    #[test]
    fn the_budget_holds_in_a_storm_of_a_million_requests() {
        let mut budget = RetryBudget::default();
        let (mut requests, mut retries) = (0u64, 0u64);
        for step in 0..1_000_000u64 {
            // A thousand a second for a thousand seconds; everything fails and is retried twice.
            let now = Instant::from_nanos(step * 1_000_000);
            budget.on_request(now);
            requests += 1;
            for _ in 0..2 {
                retries += u64::from(budget.try_retry(now));
            }
            let seconds = step / 1000 + 10;
            let bound = requests as f64 * 0.2 + (seconds * 10) as f64 + 100.0;
            assert!(
                retries as f64 <= bound,
                "{retries} retries for {requests} requests"
            );
        }
        assert!(retries > 150_000, "it allows what it promises: {retries}");
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
}
