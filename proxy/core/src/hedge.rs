//! Whether a request is made a second time while the first is still under way, because that one
//! takes longer than others do: the first answer wins, and the others are given up. (Hedged
//! requests: Dean and Barroso, "The Tail at Scale", CACM 56/2, 2013; gRPC's proposal A6.)
//!
//! A hedge is load like a retry, and paid for out of the same budget.

mod latency;

use std::borrow::Cow;
use std::time::Duration;

use http::Method;

use crate::invalid::PolicyError;
use crate::retry::{RetryBudget, is_idempotent};
use crate::time::Instant;
use crate::timeout::{self, MAX_TIMEOUT};

pub use latency::{HALF_LIFE, Latencies, MINIMUM_SAMPLES};

/// Most hedges of a request.
pub const MAX_HEDGES: u32 = 3;
/// Most gRPC methods that a policy names.
pub const MAX_GRPC_METHODS: usize = 100;
/// Below it, more than half of all requests would be made twice.
pub const MIN_PERCENTILE: f64 = 50.0;
/// Above it, the percentile of what [`Latencies`] remembers is its slowest request.
pub const MAX_PERCENTILE: f64 = 99.9;
/// What a percentile comes to at least, where the policy does not say: less is noise.
pub const DEFAULT_MIN_DELAY: Duration = Duration::from_millis(1);

/// Methods that are hedged where nothing is said: those that change nothing (RFC 9110 section
/// 9.2.1). An idempotent change may be hedged by choice; one that lost may still be carried out,
/// even after a later one.
pub const SAFE_METHODS: [Method; 3] = [Method::GET, Method::HEAD, Method::OPTIONS];

/// How requests are hedged.
#[derive(Debug, Clone, PartialEq)]
pub struct HedgePolicy {
    /// When an attempt is slow.
    pub after: After,
    /// Hedges of a request, 1 to [`MAX_HEDGES`].
    pub max_attempts: u32,
    /// Methods that are hedged; gRPC calls are not looked for here.
    pub methods: Cow<'static, [Method]>,
    /// gRPC calls that are hedged: `PACKAGE.SERVICE/METHOD`, or `PACKAGE.SERVICE/*`. Every call is a
    /// POST: nothing tells what a repeat does. That calls are repeated after some code
    /// (`retry.grpcCodes`) does not either: a retry follows a failure, a hedge runs beside what may
    /// well succeed.
    pub grpc_methods: Cow<'static, [String]>,
}

/// When an attempt is slow: after so long without an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum After {
    /// This long.
    Delay(Duration),
    /// As long as this share of the recent requests needed at most.
    Percentile {
        /// [`MIN_PERCENTILE`] to [`MAX_PERCENTILE`].
        percentile: f64,
        /// But at least this long.
        min_delay: Duration,
    },
}

/// What a hedge depends on, at the moment when it would be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Hedges made for this request.
    pub made: u32,
    /// Whether all of the request's body is here: it can be sent while another attempt reads it.
    pub body_is_whole: bool,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// Whether a breaker keeps requests away from the whole port.
    pub is_open: bool,
    /// Whether there is an endpoint that is not left out.
    pub has_endpoint: bool,
    /// Whether there is a place among the retries under way.
    pub has_place: bool,
}

/// What is done about a slow attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another one is made beside it; the budget has paid for it.
    Hedge,
    /// It is waited for.
    Wait(Why),
}

/// Why there is no hedge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// All that are allowed were made.
    AttemptsUsed,
    /// The body is still on its way here, or too long to be kept.
    BodyNotWhole,
    /// Nobody would wait for the answer any more.
    DeadlinePassed,
    /// A breaker keeps requests away.
    BreakerOpen,
    /// Every endpoint is left out.
    NoEndpoint,
    /// As many retries are under way as may be.
    NoPlace,
    /// The retry budget is spent.
    BudgetSpent,
}

impl HedgePolicy {
    /// Whether a request of this kind is ever hedged; `grpc` is the path of a gRPC call.
    pub fn covers(&self, method: &Method, grpc: Option<&str>) -> bool {
        let Some(path) = grpc else {
            return self.methods.contains(method);
        };
        let Some((service, method)) = path.trim_start_matches('/').rsplit_once('/') else {
            return false;
        };
        self.grpc_methods.iter().any(|named| {
            let named = named.rsplit_once('/');
            named.is_some_and(|(of, one)| of == service && (one == "*" || one == method))
        })
    }

    /// How long an attempt that begins now is waited for; `None`: as long as it takes.
    pub fn delay(&self, latencies: Option<&mut Latencies>, now: Instant) -> Option<Duration> {
        match self.after {
            After::Delay(delay) => Some(delay),
            After::Percentile {
                percentile,
                min_delay,
            } => {
                let usual = latencies?.percentile(percentile, now)?;
                Some(usual.max(min_delay))
            }
        }
    }

    /// Whether latencies have to be noted.
    pub fn learns(&self) -> bool {
        matches!(self.after, After::Percentile { .. })
    }

    /// Everything that is not allowed. `limit` is the timeout of an attempt or of the request.
    pub(crate) fn validate(&self, limit: Option<Duration>) -> Vec<PolicyError> {
        let mut errors = Vec::new();
        let mut require = |fits: bool, field: &str, found: String, allowed: &str| {
            if !fits {
                errors.push(PolicyError {
                    field: format!("hedge.{field}"),
                    found,
                    allowed: allowed.to_owned(),
                });
            }
        };
        let (field, wait) = match self.after {
            After::Delay(delay) => {
                let fits = delay > Duration::ZERO && delay <= MAX_TIMEOUT;
                require(fits, "delay", format!("{delay:?}"), "above 0, up to a day");
                ("delay", delay)
            }
            After::Percentile {
                percentile,
                min_delay,
            } => {
                let fits = (MIN_PERCENTILE..=MAX_PERCENTILE).contains(&percentile);
                require(fits, "percentile", percentile.to_string(), "50 to 99.9");
                let fits = min_delay <= MAX_TIMEOUT;
                require(fits, "minDelay", format!("{min_delay:?}"), "up to a day");
                ("minDelay", min_delay)
            }
        };
        if let Some(limit) = limit {
            let allowed = format!("below {limit:?}, the timeout of an attempt: none would be made");
            require(wait < limit, field, format!("{wait:?}"), &allowed);
        }
        let (most, fits) = (self.max_attempts, 1..=MAX_HEDGES);
        require(
            fits.contains(&most),
            "maxAttempts",
            most.to_string(),
            "1 to 3",
        );
        for (index, method) in self.methods.iter().enumerate() {
            let field = format!("methods[{index}]");
            let allowed = "methods that are idempotent: GET, HEAD, OPTIONS, TRACE, PUT, DELETE";
            require(is_idempotent(method), &field, method.to_string(), allowed);
        }
        let count = self.grpc_methods.len();
        require(
            count <= MAX_GRPC_METHODS,
            "grpcMethods",
            format!("{count} methods"),
            "100 at most",
        );
        for (index, named) in self.grpc_methods.iter().enumerate() {
            let parts = named.split_once('/');
            let fits = parts.is_some_and(|(service, method)| {
                !service.is_empty() && !method.is_empty() && !method.contains('/')
            });
            let allowed = "PACKAGE.SERVICE/METHOD, or PACKAGE.SERVICE/* for all of a service";
            let field = format!("grpcMethods[{index}]");
            require(fits, &field, format!("{named:?}"), allowed);
        }
        errors
    }
}

/// Decides about another attempt beside one that is slow. Where it is made, it is taken out of the
/// budget.
pub fn decide(
    policy: &HedgePolicy,
    situation: &Situation,
    budget: &mut RetryBudget,
    now: Instant,
) -> Decision {
    let in_time = timeout::leaves_time_for(situation.deadline, now, Duration::ZERO);
    let why = if situation.made >= policy.max_attempts {
        Why::AttemptsUsed
    } else if !situation.body_is_whole {
        Why::BodyNotWhole
    } else if !in_time {
        Why::DeadlinePassed
    } else if situation.is_open {
        Why::BreakerOpen
    } else if !situation.has_endpoint {
        Why::NoEndpoint
    } else if !situation.has_place {
        Why::NoPlace
    } else if !budget.try_retry(now) {
        Why::BudgetSpent
    } else {
        return Decision::Hedge;
    };
    Decision::Wait(why)
}

#[cfg(test)]
mod tests;
