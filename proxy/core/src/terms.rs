//! The terms of a request: how long it may take, and how it is repeated. One function merges what the
//! route's rule, the port's policy and the sidecar's own configuration say; sidecars act on the
//! result, and `weft explain` prints it.

use std::fmt;
use std::time::Duration;

use http::Method;

use crate::hedge::HedgePolicy;
use crate::policy::{Failures, TrafficPolicy};
use crate::retry::RetryPolicy;
use crate::route::Rule;
use crate::time::Instant;

/// Where a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The rule of the route that takes the request.
    Route,
    /// The port's policy.
    Policy,
    /// The sidecar's own configuration, which may differ from one sidecar to the next.
    Sidecar,
    /// Nobody set it: the built-in behaviour.
    BuiltIn,
}

/// A setting with its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting<T> {
    /// What holds.
    pub value: T,
    /// Who says so.
    pub origin: Origin,
}

/// A limit on time; `None` is no limit.
pub type Limit = Setting<Option<Duration>>;

/// The sidecar's own timeouts, for what neither a route nor a policy sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// `timeouts.request`; zero is no limit.
    pub request: Duration,
    /// `timeouts.connect`.
    pub connect: Duration,
    /// `timeouts.peer_idle`.
    pub idle: Duration,
}

impl Default for Defaults {
    /// A sidecar whose configuration sets none of them.
    fn default() -> Self {
        Self {
            request: Duration::ZERO,
            connect: Duration::from_secs(2),
            idle: Duration::from_secs(300),
        }
    }
}

/// What a request is, as far as its terms depend on that.
#[derive(Debug, Clone, Copy)]
pub struct Kind<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The path of a gRPC call; `None` for anything else.
    pub grpc: Option<&'a str>,
    /// Whether its connection is to become a stream of bytes: an upgrade, or CONNECT.
    pub upgrade: bool,
}

/// The terms of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms<'a> {
    /// How long the request may take until its response begins, with all attempts.
    pub request: Limit,
    /// How long one attempt may take until its response begins.
    pub attempt: Limit,
    /// How long connecting may take, TLS included.
    pub connect: Limit,
    /// How long a connection to an endpoint may carry nothing.
    pub idle: Limit,
    /// How long nothing may move in the request's stream, in either direction.
    pub stream_idle: Limit,
    /// How it is repeated.
    pub retry: Setting<&'a RetryPolicy>,
    /// How it is hedged; `None`: not at all.
    pub hedge: Option<&'a HedgePolicy>,
    /// What counts as an endpoint's failure.
    pub failures: &'a Failures,
    /// Whether a 503 with `Retry-After` opens the endpoint's breaker for that long.
    pub heed_retry_after: bool,
}

impl<'a> Terms<'a> {
    /// The terms of a request that `rule` takes, to a port with `policy`.
    pub fn of(
        policy: &'a TrafficPolicy,
        rule: Option<&'a Rule>,
        kind: Kind<'_>,
        defaults: &Defaults,
    ) -> Self {
        let by_rule = |time: Option<Duration>| (time, Origin::Route);
        let by_policy = |time: Option<Duration>| (time, Origin::Policy);
        let own = |time: Duration| (Some(time), Origin::Sidecar);
        let retry = rule.and_then(|rule| rule.retry.as_ref());
        let hedge = policy.hedge.as_ref().filter(|_| !kind.upgrade);
        Self {
            request: first([
                by_rule(rule.and_then(|rule| rule.request_timeout)),
                by_policy(policy.request_timeout),
                own(defaults.request),
            ]),
            attempt: first([
                by_rule(rule.and_then(|rule| rule.backend_timeout)),
                by_policy(policy.per_try_timeout),
            ]),
            connect: first([by_policy(policy.connect_timeout), own(defaults.connect)]),
            idle: first([by_policy(policy.idle_timeout), own(defaults.idle)]),
            stream_idle: first([by_policy(policy.stream_idle_timeout)]),
            retry: match retry {
                Some(retry) => Setting {
                    value: retry,
                    origin: Origin::Route,
                },
                None => Setting {
                    value: &policy.retry,
                    origin: Origin::Policy,
                },
            },
            hedge: hedge.filter(|hedge| hedge.covers(kind.method, kind.grpc)),
            failures: &policy.failures,
            heed_retry_after: policy.heed_retry_after,
        }
    }

    /// The time of a request that arrived at `began`, whose caller then waited for `asked` at most.
    pub fn time(&self, began: Instant, asked: Option<Duration>) -> Time {
        let own = self.request.value;
        // A limit of the sidecar's own is not told to others: it is no deadline of the request.
        let told = own.filter(|_| self.request.origin != Origin::Sidecar);
        let caller_first = asked.is_some_and(|asked| own.is_none_or(|own| asked < own));
        let end = match (caller_first, asked, own) {
            (true, Some(asked), _) => Some((asked, End::Caller)),
            (_, _, Some(own)) => Some((own, End::Timeout)),
            (_, _, None) => None,
        };
        let deadline = asked.into_iter().chain(told).min();
        Time {
            end: end.map(|(after, end)| (began + after, after, end)),
            deadline: deadline.map(|after| began + after),
        }
    }
}

/// The first of several limits that is set; zero sets that there is none.
fn first<const N: usize>(limits: [(Option<Duration>, Origin); N]) -> Limit {
    let mut limits = limits.into_iter();
    let set = limits.find_map(|(time, origin)| Some((time?, origin)));
    let (value, origin) = match set {
        Some((Duration::ZERO, origin)) => (None, origin),
        Some((time, origin)) => (Some(time), origin),
        None => (None, Origin::BuiltIn),
    };
    Setting { value, origin }
}

/// Who ends the time of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The caller does not wait any longer.
    Caller,
    /// The timeout of the route, the policy or the sidecar.
    Timeout,
}

/// When the time of a request is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    end: Option<(Instant, Duration, End)>,
    /// What the next hop is told; `None`: nothing.
    pub deadline: Option<Instant>,
}

impl Time {
    /// What is left until it is over; `None`: there is no end.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.end.map(|(at, ..)| at.saturating_since(now))
    }

    /// Who ends it, after how long in all; `None`: there is no end.
    pub fn end(&self) -> Option<(End, Duration)> {
        self.end.map(|(_, after, end)| (end, after))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Route => "the route's",
            Self::Policy => "the policy's",
            Self::Sidecar => "the sidecar's default",
            Self::BuiltIn => "the default",
        })
    }
}

/// The value and where it comes from: `15s, the policy's`.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(time) => write!(f, "{}, {}", Seconds(time), self.origin),
            None => write!(f, "no limit, {}", self.origin),
        }
    }
}

/// A time as people write it: `15 s`, `250 ms`.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => write!(f, "{} µs", self.0.as_micros()),
            1..1000 => write!(f, "{millis} ms"),
            _ if millis.is_multiple_of(1000) => write!(f, "{} s", millis / 1000),
            _ => write!(f, "{} s", self.0.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const GET: Kind<'static> = Kind {
        method: &Method::GET,
        grpc: None,
        upgrade: false,
    };

    fn rule(request: Option<Duration>, attempt: Option<Duration>) -> Rule {
        Rule {
            request_timeout: request,
            backend_timeout: attempt,
            ..Rule::default()
        }
    }

    fn policy(request: Option<Duration>, attempt: Option<Duration>) -> TrafficPolicy {
        TrafficPolicy {
            request_timeout: request,
            per_try_timeout: attempt,
            ..TrafficPolicy::default()
        }
    }

    #[test]
    fn the_nearest_setting_holds() {
        let own = Defaults {
            request: ms(15_000),
            ..Defaults::default()
        };
        let (some, none) = (Some(ms(7)), None);
        let zero = Some(Duration::ZERO);
        // Rule, policy, and what the request's limit comes to.
        let cases = [
            (none, none, "15 s, the sidecar's default"),
            (none, some, "7 ms, the policy's"),
            (some, Some(ms(9)), "7 ms, the route's"),
            (none, zero, "no limit, the policy's"),
            (zero, some, "no limit, the route's"),
        ];
        for (of_rule, of_policy, expected) in cases {
            let (rule, policy) = (rule(of_rule, of_rule), policy(of_policy, of_policy));
            let terms = Terms::of(&policy, Some(&rule), GET, &own);
            assert_eq!(terms.request.to_string(), expected);
            if of_rule.or(of_policy).is_some() {
                assert_eq!(terms.attempt, terms.request);
            } else {
                assert_eq!(terms.attempt.to_string(), "no limit, the default");
            }
        }
        let policy = policy(None, None);
        let terms = Terms::of(&policy, None, GET, &Defaults::default());
        let shown = [terms.request, terms.connect, terms.idle].map(|limit| limit.to_string());
        let expected = ["no limit", "2 s", "300 s"];
        assert_eq!(
            shown,
            expected.map(|time| format!("{time}, the sidecar's default"))
        );
    }

    #[test]
    fn an_upgrade_is_never_hedged() {
        let policy = TrafficPolicy {
            hedge: Some(HedgePolicy {
                after: crate::hedge::After::Delay(ms(1)),
                max_attempts: 1,
                methods: crate::hedge::SAFE_METHODS.to_vec().into(),
                grpc_methods: Vec::new().into(),
            }),
            ..TrafficPolicy::default()
        };
        for upgrade in [false, true] {
            let kind = Kind { upgrade, ..GET };
            let terms = Terms::of(&policy, None, kind, &Defaults::default());
            assert_eq!(terms.hedge.is_some(), !upgrade);
        }
    }

    #[test]
    fn the_time_ends_by_whoever_is_first() {
        let began = Instant::from_nanos(5_000_000);
        let at = |millis| began + ms(millis);
        let own = Defaults {
            request: ms(50),
            ..Defaults::default()
        };
        // What the policy allows, what the caller asks for; when it ends and by whom; what is told.
        let cases = [
            (None, None, Some((50, End::Timeout)), None),
            (Some(20), None, Some((20, End::Timeout)), Some(20)),
            (Some(20), Some(20), Some((20, End::Timeout)), Some(20)),
            (Some(20), Some(19), Some((19, End::Caller)), Some(19)),
            (Some(20), Some(30), Some((20, End::Timeout)), Some(20)),
            (None, Some(60), Some((50, End::Timeout)), Some(60)),
            (Some(0), Some(60), Some((60, End::Caller)), Some(60)),
            (Some(0), None, None, None),
            (Some(20), Some(0), Some((0, End::Caller)), Some(0)),
        ];
        for (of_policy, asked, end, told) in cases {
            let policy = policy(of_policy.map(ms), None);
            let time = Terms::of(&policy, None, GET, &own).time(began, asked.map(ms));
            let expected = end.map(|(after, end)| (end, ms(after)));
            assert_eq!(time.end(), expected, "{of_policy:?} {asked:?}");
            assert_eq!(time.deadline, told.map(at), "{of_policy:?} {asked:?}");
            let left = time.left(at(10));
            let expected = end.map(|(after, _)| ms(after).saturating_sub(ms(10)));
            assert_eq!(left, expected, "{of_policy:?} {asked:?}");
        }
    }
}
