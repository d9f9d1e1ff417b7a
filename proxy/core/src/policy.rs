//! How a caller's sidecar treats one port of a service: what a TrafficPolicy comes to.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::adaptive::{self, AdaptiveConfig};
use crate::balance::{self, hash::HashOn};
use crate::breaker::{self, BreakerConfig, CallClass};
use crate::health::HealthCheck;
use crate::hedge::HedgePolicy;
use crate::invalid::{Errors, PolicyError};
use crate::limit::MAX_REQUESTS;
use crate::name::ServiceName;
use crate::path::PathNormalization;
use crate::retry::{Failure, RetryPolicy, validate_retry};
use crate::shedding::Shedding;
use crate::timeout::MAX_TIMEOUT;

/// Most retries per request in the long run.
pub const MAX_RETRY_RATIO: f64 = 10.0;
/// Most retries per second that are allowed whatever the load.
pub const MAX_RETRIES_PER_SECOND: u32 = 10_000;
/// Most bytes of a fallback's body.
pub const MAX_FALLBACK: usize = 64 * 1024;
/// Shortest time after which an idle connection is closed: they are looked for once a second.
pub const MIN_IDLE: Duration = Duration::from_secs(1);

/// Retries in proportion to requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetConfig {
    /// Retries for each request of the last ten seconds, 0 to [`MAX_RETRY_RATIO`].
    pub ratio: f64,
    /// Retries that are always allowed, per second, 0 to [`MAX_RETRIES_PER_SECOND`].
    pub minimum_per_second: u32,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            ratio: 0.2,
            minimum_per_second: 10,
        }
    }
}

/// What counts as an endpoint's failure. Cancelled requests and 4xx never do, unless they are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// Statuses, from and to, both included.
    pub statuses: Cow<'static, [(u16, u16)]>,
    /// gRPC codes.
    pub grpc_codes: Cow<'static, [u32]>,
    /// No connection.
    pub connect: bool,
    /// A connection or stream that broke.
    pub reset: bool,
    /// No answer in the time of an attempt.
    pub timeout: bool,
}

impl Failures {
    /// What counts where nothing is said: 5xx, and of gRPC's codes DEADLINE_EXCEEDED, INTERNAL,
    /// UNAVAILABLE and DATA_LOSS.
    pub const DEFAULT: Self = Self {
        statuses: Cow::Borrowed(&[(500, 599)]),
        grpc_codes: Cow::Borrowed(&[4, 13, 14, 15]),
        connect: true,
        reset: true,
        timeout: true,
    };

    /// What an answer says about the endpoint.
    pub fn of_answer(&self, status: u16, grpc_code: Option<u32>) -> CallClass {
        let mut statuses = self.statuses.iter();
        let by_status = statuses.any(|(from, to)| (*from..=*to).contains(&status));
        let by_code = grpc_code.is_some_and(|code| self.grpc_codes.contains(&code));
        if by_status || by_code {
            CallClass::Failure
        } else {
            CallClass::Success
        }
    }

    /// What a failed attempt says about the endpoint.
    pub fn of_failure(&self, failure: Failure) -> CallClass {
        let counts = match failure {
            Failure::ConnectFailed => self.connect,
            Failure::RefusedStream | Failure::NotSent | Failure::Reset => self.reset,
            Failure::PerTryTimeout => self.timeout,
            Failure::Shed | Failure::Limited | Failure::UploadBroken => false,
            Failure::Status(status) => return self.of_answer(status, None),
            Failure::GrpcStatus(code) => return self.of_answer(200, Some(code)),
        };
        if counts {
            CallClass::Failure
        } else {
            CallClass::Neutral
        }
    }
}

/// What breakers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BreakerMode {
    /// Open ones keep requests away.
    #[default]
    Enforce,
    /// Open ones are seen and told of, and nothing else.
    Observe,
    /// No request goes through.
    ForceOpen,
}

impl BreakerMode {
    /// As users write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
            Self::ForceOpen => "forceOpen",
        }
    }
}

/// What answers where no endpoint does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    /// This.
    Response {
        /// The status.
        status: u16,
        /// The body.
        body: Arc<str>,
        /// What the body is.
        content_type: Arc<str>,
    },
    /// Another service.
    Backend {
        /// Which.
        service: ServiceName,
        /// At which port.
        port: u16,
    },
}

/// Everything that is chosen for a port. [`TrafficPolicy::validate`] says what is allowed.
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficPolicy {
    /// How endpoints are picked.
    pub balancing: balance::Policy,
    /// What a request's key is, where endpoints are picked by one.
    pub hash_on: Option<HashOn>,
    /// A new endpoint gets more and more of its share over this time.
    pub slow_start: Option<Duration>,
    /// Whether endpoints in the caller's zone come first, as long as they can take it.
    pub prefer_zone: bool,
    /// When an endpoint is left out; `None`: never.
    pub breaker: Option<BreakerConfig>,
    /// When the whole port takes no requests; `None`: never.
    pub service_breaker: Option<BreakerConfig>,
    /// When one rule of a route sends no requests here, whatever becomes of those of other rules;
    /// `None`: never.
    pub route_breaker: Option<BreakerConfig>,
    /// What breakers do.
    pub breaker_mode: BreakerMode,
    /// What counts as a failure.
    pub failures: Failures,
    /// Whether a 503 with `Retry-After` opens the endpoint's breaker for that long.
    pub heed_retry_after: bool,
    /// What answers where breakers let nothing through, or there is no endpoint.
    pub fallback: Option<Fallback>,
    /// Most of the endpoints that may be left out at the same time, above 0 to 1.
    pub max_ejected_share: f64,
    /// What is repeated.
    pub retry: RetryPolicy,
    /// At whose expense.
    pub budget: BudgetConfig,
    /// What is made a second time while the first is slow; `None`: nothing.
    pub hedge: Option<HedgePolicy>,
    /// How long connecting to an endpoint may take, TLS included; `None`: what the sidecar's own
    /// configuration says.
    pub connect_timeout: Option<Duration>,
    /// How long one attempt may take until its response begins; `None`: as long as the request.
    pub per_try_timeout: Option<Duration>,
    /// How long a request may take until its response begins, with all attempts; `None`: what the
    /// sidecar's own configuration says.
    pub request_timeout: Option<Duration>,
    /// How long a connection to an endpoint may carry nothing, pooled or opaque; `None`: what the
    /// sidecar's own configuration says.
    pub idle_timeout: Option<Duration>,
    /// How long nothing may move in a request's stream, in either direction, upgraded or not;
    /// `None`: for ever, or where upgraded, what the sidecar's own configuration says.
    pub stream_idle_timeout: Option<Duration>,
    /// Requests at the same time, from all of a sidecar's callers; `None`: any number.
    pub max_requests: Option<u32>,
    /// Requests that wait for their turn where there are too many; `None`: none does.
    pub max_pending: Option<u32>,
    /// Retries at the same time; `None`: any number.
    pub max_retries: Option<u32>,
    /// Connections to all endpoints together, at the same time; `None`: any number. Requests to the
    /// outside of the mesh are not counted.
    pub max_connections: Option<u32>,
    /// Requests that a connection to an endpoint carries before another takes its place; `None`:
    /// any number.
    pub requests_per_connection: Option<u32>,
    /// How endpoints are checked; `None`: they are not.
    pub health_check: Option<Arc<HealthCheck>>,
    /// Where a smaller share of the endpoints than this is well, health and breakers are
    /// disregarded; 0 to 1.
    pub panic_threshold: f64,
    /// A limit on requests at the same time that follows how long answers take; `None`: there is
    /// none.
    pub adaptive: Option<AdaptiveConfig>,
    /// What the sidecars of those who serve the port hold to, whoever calls; `None`: nothing is
    /// shed.
    pub shedding: Option<Arc<Shedding>>,
    /// Which readings of a path the servers of the port may have: for what their sidecars restrict
    /// and permit by path.
    pub path_normalization: PathNormalization,
}

impl Default for TrafficPolicy {
    fn default() -> Self {
        Self {
            balancing: balance::Policy::default(),
            hash_on: None,
            slow_start: None,
            prefer_zone: false,
            breaker: Some(BreakerConfig::default()),
            service_breaker: None,
            route_breaker: None,
            breaker_mode: BreakerMode::default(),
            failures: Failures::DEFAULT,
            heed_retry_after: true,
            fallback: None,
            max_ejected_share: 1.0,
            retry: RetryPolicy::default(),
            budget: BudgetConfig::default(),
            hedge: None,
            connect_timeout: None,
            per_try_timeout: None,
            request_timeout: None,
            idle_timeout: None,
            stream_idle_timeout: None,
            max_requests: None,
            max_pending: None,
            max_retries: None,
            max_connections: None,
            requests_per_connection: None,
            health_check: None,
            panic_threshold: 0.0,
            adaptive: None,
            shedding: None,
            path_normalization: PathNormalization::default(),
        }
    }
}

impl From<breaker::ConfigError> for PolicyError {
    fn from(error: breaker::ConfigError) -> Self {
        let field = match error.field {
            "window" => "window.count",
            "window.length" => "window.time",
            "window.buckets" => "window.buckets",
            "failure_rate" => "failureRate",
            "slow_call" => "slowCallDuration",
            "slow_rate" => "slowCallRate",
            "consecutive_failures" => "consecutiveFailures",
            "minimum_calls" => "minimumCalls",
            "open" => "openTime",
            "open_max" => "maxOpenTime",
            "open_growth" => "openTimeGrowth",
            "half_open_permits" => "halfOpen.probes",
            "half_open_successes" => "halfOpen.successes",
            "half_open_max_wait" => "halfOpen.maxWait",
            other => other,
        };
        let allowed = match error.allowed {
            "1 ms to open_max" => "1 ms to maxOpenTime",
            other => other,
        };
        Self {
            field: format!("circuitBreaker.{field}"),
            found: error.found,
            allowed: allowed.to_owned(),
        }
    }
}

impl From<adaptive::ConfigError> for PolicyError {
    fn from(error: adaptive::ConfigError) -> Self {
        Self {
            field: error.field.to_owned(),
            found: error.found,
            allowed: error.allowed.to_owned(),
        }
    }
}

impl TrafficPolicy {
    /// Checks every value; everything that is wrong.
    pub fn validate(&self) -> Vec<PolicyError> {
        let mut errors = Errors::default();
        self.check_retry(&mut errors);
        self.check_timeouts(&mut errors);
        self.check_breaker(&mut errors);
        self.check_balancing(&mut errors);
        self.check_limits(&mut errors);
        if let Some(hedge) = &self.hedge {
            let limit = self.per_try_timeout.or(self.request_timeout);
            errors.0.extend(hedge.validate(limit));
        }
        self.check_adaptive(&mut errors);
        if let Some(check) = &self.health_check {
            errors.0.extend(check.validate());
        }
        errors.0
    }

    fn check_adaptive(&self, errors: &mut Errors) {
        let client = self.adaptive.iter().flat_map(AdaptiveConfig::validate);
        let client = client.map(|error| ("client", PolicyError::from(error)));
        let server = self
            .shedding
            .iter()
            .flat_map(|shedding| shedding.validate());
        let server = server.map(|error| ("server", error));
        for (side, mut error) in client.chain(server) {
            error.field = format!("adaptiveConcurrency.{side}.{}", error.field);
            errors.0.push(error);
        }
    }

    /// The parameters of an endpoint's breaker, which health checks need too; `None` where nothing
    /// ever puts an endpoint out.
    pub fn endpoint_breaker(&self) -> Option<Cow<'_, BreakerConfig>> {
        match (&self.breaker, &self.health_check) {
            (Some(config), _) => Some(Cow::Borrowed(config)),
            (None, Some(_)) => Some(Cow::Owned(BreakerConfig {
                by_calls: false,
                ..BreakerConfig::default()
            })),
            (None, None) => None,
        }
    }

    fn check_balancing(&self, errors: &mut Errors) {
        let by_key = self.balancing.is_by_key();
        let field = "loadBalancer.hashOn";
        if by_key && self.hash_on.is_none() {
            let allowed =
                "header, query, cookie or source: what requests with the same endpoint share";
            errors.require(false, field, "nothing", allowed);
        }
        if !by_key && self.hash_on.is_some() {
            let allowed = "nothing, unless loadBalancer.type is ringHash or maglev";
            errors.require(false, field, "a key", allowed);
        }
        if let Some(HashOn::Cookie { name, issue }) = &self.hash_on {
            let token = name.parse::<HeaderName>().is_ok();
            let field = "loadBalancer.hashOn.cookie.name";
            errors.require(token, field, format!("{name:?}"), "a token");
            let fits = issue.is_none_or(|life| life.as_secs() > 0);
            let field = "loadBalancer.hashOn.cookie.ttl";
            errors.require(fits, field, format!("{issue:?}"), "1s and longer");
        }
        if let Some(time) = self.slow_start {
            let fits = time > Duration::ZERO && time <= MAX_TIMEOUT;
            let found = format!("{time:?}");
            let field = "loadBalancer.slowStart";
            errors.require(fits, field, found, "above 0, up to a day");
        }
        let share = self.panic_threshold;
        let fits = (0.0..=1.0).contains(&share);
        errors.require(fits, "loadBalancer.panicThreshold", share, "0 to 1");
    }

    fn check_limits(&self, errors: &mut Errors) {
        let limits = [
            ("concurrentRequests", self.max_requests),
            ("pendingRequests", self.max_pending),
            ("concurrentRetries", self.max_retries),
            ("connections", self.max_connections),
            ("requestsPerConnection", self.requests_per_connection),
        ];
        for (field, limit) in limits {
            let Some(limit) = limit else { continue };
            let fits = (1..=MAX_REQUESTS).contains(&limit);
            errors.require(fits, &format!("limits.{field}"), limit, "1 to 1000000");
        }
        if let (Some(pending), None) = (self.max_pending, self.max_requests) {
            let allowed = "beside limits.concurrentRequests: without it nothing waits";
            errors.require(false, "limits.pendingRequests", pending, allowed);
        }
    }

    fn check_retry(&self, errors: &mut Errors) {
        errors.0.extend(validate_retry(&self.retry));
        let budget = &self.budget;
        let fits = (0.0..=MAX_RETRY_RATIO).contains(&budget.ratio);
        errors.require(fits, "retry.budget.ratio", budget.ratio, "0 to 10");
        let always = budget.minimum_per_second;
        let fits = always <= MAX_RETRIES_PER_SECOND;
        let field = "retry.budget.minimumPerSecond";
        errors.require(fits, field, always, "0 to 10000");
    }

    fn check_timeouts(&self, errors: &mut Errors) {
        let fields = [
            ("timeouts.connect", self.connect_timeout),
            ("timeouts.request", self.request_timeout),
            ("timeouts.perTry", self.per_try_timeout),
            ("timeouts.streamIdle", self.stream_idle_timeout),
        ];
        for (field, time) in fields {
            let Some(time) = time else { continue };
            let fits = time > Duration::ZERO && time <= MAX_TIMEOUT;
            errors.require(fits, field, format!("{time:?}"), "above 0, up to a day");
        }
        if let Some(time) = self.idle_timeout {
            let fits = (MIN_IDLE..=MAX_TIMEOUT).contains(&time);
            errors.require(fits, "timeouts.idle", format!("{time:?}"), "1s to a day");
        }
        if let (Some(one), Some(whole)) = (self.per_try_timeout, self.request_timeout) {
            let allowed = "at most timeouts.request: a longer one never ends an attempt";
            let found = format!("{one:?}");
            errors.require(one <= whole, "timeouts.perTry", found, allowed);
        }
    }

    fn check_breaker(&self, errors: &mut Errors) {
        let share = self.max_ejected_share;
        let allowed = "above 0 to 1; circuitBreaker.enabled: false ejects nothing";
        let fits = share > 0.0 && share <= 1.0;
        errors.require(fits, "circuitBreaker.maxEjectedShare", share, allowed);
        let field = "circuitBreaker.failures.statuses";
        errors.check_list(field, &self.failures.statuses);
        let field = "circuitBreaker.failures.grpcCodes";
        errors.check_list(field, &self.failures.grpc_codes);
        for (index, (from, to)) in self.failures.statuses.iter().enumerate() {
            let field = format!("circuitBreaker.failures.statuses[{index}]");
            let fits = (400..=599).contains(from) && (*from..=599).contains(to);
            errors.require(fits, &field, format!("{from} to {to}"), "400 to 599");
        }
        for (index, code) in self.failures.grpc_codes.iter().enumerate() {
            let field = format!("circuitBreaker.failures.grpcCodes[{index}]");
            errors.require((1..=16).contains(code), &field, code, "1 to 16");
        }
        if let Some(Fallback::Response { content_type, .. }) = &self.fallback {
            let fits = HeaderValue::from_str(content_type).is_ok() && !content_type.is_empty();
            let field = "circuitBreaker.fallback.response.contentType";
            let found = format!("{content_type:?}");
            errors.require(fits, field, found, "a media type, as in text/plain");
        }
        if let Some(Fallback::Response { status, body, .. }) = &self.fallback {
            let fits = (200..=599).contains(status);
            let field = "circuitBreaker.fallback.response.status";
            errors.require(fits, field, status, "200 to 599");
            let (size, field) = (body.len(), "circuitBreaker.fallback.response.body");
            errors.require(
                size <= MAX_FALLBACK,
                field,
                format!("{size} bytes"),
                "64 KiB at most",
            );
        }
        let all = [
            ("service", &self.service_breaker),
            ("route", &self.route_breaker),
        ];
        for (whose, config) in all {
            if let Some(Err(error)) = config.as_ref().map(BreakerConfig::validate) {
                let mut error = PolicyError::from(error);
                let inner = error.field.split_off("circuitBreaker.".len());
                error.field = format!("circuitBreaker.{whose}.{inner}");
                errors.0.push(error);
            }
        }
        let Some(breaker) = &self.breaker else {
            return;
        };
        if let Err(error) = breaker.validate() {
            errors.0.push(error.into());
        }
        let limit = self.per_try_timeout.or(self.request_timeout);
        if let (Some(slow), Some(limit)) = (breaker.slow_call, limit) {
            let allowed = format!(
                "below {limit:?}, the timeout of an attempt: no call that succeeds could be slow"
            );
            let field = "circuitBreaker.slowCallDuration";
            errors.require(slow < limit, field, format!("{slow:?}"), &allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::Window;
    use crate::route::PathMatch;
    use crate::shedding::Critical;

    #[test]
    fn the_default_is_allowed() {
        assert_eq!(TrafficPolicy::default().validate(), []);
    }

    #[test]
    fn what_is_refused_is_named() {
        type Change = fn(&mut TrafficPolicy);
        const fn secs(secs: u64) -> Option<Duration> {
            Some(Duration::from_secs(secs))
        }
        fn breaker(policy: &mut TrafficPolicy) -> &mut BreakerConfig {
            policy.breaker.get_or_insert_default()
        }
        let cases: [(&str, Change); 19] = [
            ("loadBalancer.panicThreshold", |p| p.panic_threshold = 1.1),
            ("loadBalancer.panicThreshold", |p| {
                p.panic_threshold = f64::NAN
            }),
            ("limits.concurrentRequests", |p| p.max_requests = Some(0)),
            ("circuitBreaker.maxEjectedShare", |p| {
                p.max_ejected_share = 0.0
            }),
            ("retry.attempts", |p| p.retry.attempts = 11),
            ("retry.statuses[1]", |p| {
                p.retry.statuses = vec![503, 200].into()
            }),
            ("retry.grpcCodes[0]", |p| {
                p.retry.grpc_codes = vec![0].into()
            }),
            ("retry.backoff.base", |p| p.retry.backoff = MAX_TIMEOUT),
            ("retry.maxBodyBytes", |p| p.retry.body_max = u32::MAX),
            ("retry.budget.ratio", |p| p.budget.ratio = f64::NAN),
            ("retry.budget.minimumPerSecond", |p| {
                p.budget.minimum_per_second = 10_001
            }),
            ("timeouts.request", |p| p.request_timeout = secs(0)),
            ("timeouts.perTry", |p| {
                p.per_try_timeout = secs(3);
                p.request_timeout = secs(2);
            }),
            ("circuitBreaker.window.count", |p| {
                breaker(p).window = Window::Count(0)
            }),
            ("circuitBreaker.openTime", |p| {
                breaker(p).open = Duration::ZERO
            }),
            ("circuitBreaker.slowCallDuration", |p| {
                breaker(p).slow_call = secs(2);
                p.request_timeout = secs(2);
            }),
            ("adaptiveConcurrency.client.min", |p| {
                p.adaptive.get_or_insert_default().min = 0
            }),
            ("adaptiveConcurrency.server.tolerance", |p| {
                Arc::make_mut(p.shedding.get_or_insert_default())
                    .limit
                    .tolerance = 11.0
            }),
            ("adaptiveConcurrency.server.critical[0]", |p| {
                let anything = Critical::of(PathMatch::prefix("/").unwrap());
                Arc::make_mut(p.shedding.get_or_insert_default()).critical = vec![anything];
            }),
        ];
        for (field, change) in cases {
            let mut policy = TrafficPolicy::default();
            change(&mut policy);
            let errors = policy.validate();
            assert!(
                errors.iter().any(|e| e.field == field),
                "{field}: {errors:?}"
            );
        }
    }

    #[test]
    fn idle_times_and_hedges_have_bounds() {
        type Change = fn(&mut TrafficPolicy);
        const SECOND: Duration = Duration::from_secs(1);
        let cases: [(&str, Change); 4] = [
            ("timeouts.idle", |p| p.idle_timeout = Some(SECOND / 2)),
            ("timeouts.idle", |p| p.idle_timeout = Some(MAX_TIMEOUT * 2)),
            ("timeouts.streamIdle", |p| {
                p.stream_idle_timeout = Some(Duration::ZERO);
            }),
            ("hedge.delay", |p| {
                p.per_try_timeout = Some(SECOND);
                p.hedge = Some(HedgePolicy {
                    after: crate::hedge::After::Delay(SECOND),
                    max_attempts: 1,
                    methods: Cow::Borrowed(&[]),
                    grpc_methods: Cow::Borrowed(&[]),
                });
            }),
        ];
        for (field, change) in cases {
            let mut policy = TrafficPolicy::default();
            change(&mut policy);
            let errors = policy.validate();
            let named = errors.iter().any(|e| e.field == field);
            assert!(named, "{field}: {errors:?}");
        }
    }
}
