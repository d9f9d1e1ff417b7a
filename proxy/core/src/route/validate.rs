//! What a rule may say: the same for documents and for what comes over the wire.

use std::time::Duration;

use super::fault::{Fault, PARTS};
use super::filter::{Filter, Mirror, check_hostname};
use super::{Backend, Rule};
use crate::invalid::PolicyError;
use crate::retry::validate_retry;
use crate::timeout::MAX_TIMEOUT;

/// Largest weight of a backend (Gateway API, `HTTPBackendRef.weight`).
pub(super) const WEIGHT_MAX: u32 = 1_000_000;
/// Highest status code of gRPC, UNAUTHENTICATED.
const GRPC_CODE_MAX: u32 = 16;

fn error(field: impl Into<String>, found: impl ToString, allowed: &str) -> PolicyError {
    PolicyError {
        field: field.into(),
        found: found.to_string(),
        allowed: allowed.to_owned(),
    }
}

impl Rule {
    /// What is wrong with it, with paths below the rule, as users write an HTTPRoute.
    pub fn validate(&self) -> Vec<PolicyError> {
        let mut errors = self.validate_retry();
        errors.extend(self.validate_timeouts());
        errors.extend(validate_filters("filters", &self.filters));
        for (index, backend) in self.backends.iter().enumerate() {
            let at = format!("backendRefs[{index}]");
            errors.extend(backend.validate(&at));
        }
        errors
    }

    /// What is wrong with what it retries.
    pub fn validate_retry(&self) -> Vec<PolicyError> {
        let mut errors: Vec<PolicyError> = Vec::new();
        for mut error in self.retry.iter().flat_map(validate_retry) {
            error.field = error.field.replace("retry.statuses", "retry.codes");
            // A rule has one backoff, from which the longest wait follows.
            if error.field.starts_with("retry.backoff") {
                error.field = "retry.backoff".to_owned();
            }
            if !errors.iter().any(|other| other.field == error.field) {
                errors.push(error);
            }
        }
        errors
    }

    /// What is wrong with its timeouts. Zero is no limit.
    pub fn validate_timeouts(&self) -> Vec<PolicyError> {
        const BACKEND: &str = "timeouts.backendRequest";
        let mut errors = Vec::new();
        let all = [
            ("timeouts.request", self.request_timeout),
            (BACKEND, self.backend_timeout),
        ];
        for (field, time) in all {
            let too_long = time.filter(|time| *time > MAX_TIMEOUT);
            errors.extend(too_long.map(|time| error(field, format!("{time:?}"), "up to a day")));
        }
        if let (Some(whole), Some(one)) = (self.request_timeout, self.backend_timeout)
            && whole > Duration::ZERO
            && one > whole
        {
            let allowed = "at most timeouts.request: a longer one never ends an attempt";
            errors.push(error(BACKEND, format!("{one:?}"), allowed));
        }
        errors
    }
}

impl Backend {
    fn validate(&self, at: &str) -> Vec<PolicyError> {
        let mut errors = validate_filters(&format!("{at}.filters"), &self.filters);
        if self.weight > WEIGHT_MAX {
            let field = format!("{at}.weight");
            errors.push(error(field, self.weight, "0 to 1000000"));
        }
        errors
    }
}

fn validate_filters(at: &str, filters: &[Filter]) -> Vec<PolicyError> {
    let mut errors = Vec::new();
    for (index, filter) in filters.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let (kind, of_filter) = match filter {
            Filter::Fault(fault) => ("fault", fault.validate()),
            Filter::Mirror(mirror) => ("requestMirror", mirror.validate()),
            Filter::Rewrite(rewrite) => ("urlRewrite", hostname(rewrite.hostname.as_deref())),
            Filter::Redirect(redirect) => {
                ("requestRedirect", hostname(redirect.hostname.as_deref()))
            }
            Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) | Filter::Cors(_) => continue,
        };
        errors.extend(of_filter.into_iter().map(|mut error| {
            error.field = format!("{at}.{kind}.{}", error.field);
            error
        }));
    }
    errors
}

fn hostname(text: Option<&str>) -> Vec<PolicyError> {
    let bad = text.filter(|text| !check_hostname(text));
    let allowed = "a host without port and wildcard";
    let errors = bad.map(|text| error("hostname", format!("{text:?}"), allowed));
    errors.into_iter().collect()
}

impl Mirror {
    fn validate(&self) -> Vec<PolicyError> {
        let (part, whole) = (self.numerator, self.denominator);
        if whole == 0 || part > whole {
            let found = format!("{part} of {whole}");
            return vec![error("fraction", found, "0 to all of them")];
        }
        Vec::new()
    }
}

impl Fault {
    /// What is wrong with it, with paths below it as users write a FaultInjection. Delay and abort
    /// are independent of each other: their shares may be all of the requests each.
    pub fn validate(&self) -> Vec<PolicyError> {
        let mut errors = Vec::new();
        let mut share = |field: &str, share: u32| {
            let percentage = f64::from(share) / f64::from(PARTS) * 100.0;
            let bad = (share > PARTS).then(|| error(field, percentage, "0 to 100"));
            errors.extend(bad);
        };
        if let Some(delay) = &self.delay {
            share("delay.percentage", delay.share);
        }
        if let Some(abort) = &self.abort {
            share("abort.percentage", abort.share);
        }
        if let Some(delay) = &self.delay
            && (delay.time.is_zero() || delay.time > MAX_TIMEOUT)
        {
            let found = format!("{:?}", delay.time);
            errors.push(error("delay.time", found, "above 0, up to a day"));
        }
        if let Some(abort) = &self.abort {
            if !(200..=599).contains(&abort.status) {
                errors.push(error("abort.status", abort.status, "200 to 599"));
            }
            if abort.grpc_code > GRPC_CODE_MAX {
                errors.push(error("abort.grpcCode", abort.grpc_code, "0 to 16"));
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Abort, Delay, Redirect, UrlRewrite};
    use super::*;
    use crate::retry::RetryPolicy;

    type Change = fn(&mut Rule);

    /// Each is refused with the path of its field.
    fn check(cases: &[(&str, Change)]) {
        for (field, change) in cases {
            let mut rule = Rule::default();
            change(&mut rule);
            let errors = rule.validate();
            assert_eq!(errors.len(), 1, "{field}: {errors:?}");
            assert_eq!(errors[0].field, *field);
            assert!(!errors[0].found.is_empty() && !errors[0].allowed.is_empty());
        }
    }

    fn retry(rule: &mut Rule) -> &mut RetryPolicy {
        rule.retry.get_or_insert_default()
    }

    fn backend(weight: u32, filters: Vec<Filter>) -> Backend {
        Backend {
            service: None,
            port: 0,
            weight,
            filters: filters.into(),
        }
    }

    fn delay(rule: &mut Rule, time: Duration, share: u32) {
        let delay = Some(Delay { time, share });
        rule.filters = vec![Filter::Fault(Fault {
            delay,
            ..Fault::default()
        })];
    }

    fn abort(rule: &mut Rule, status: u16, grpc_code: u32, share: u32) {
        let abort = Some(Abort {
            status,
            grpc_code,
            share,
        });
        rule.filters = vec![Filter::Fault(Fault {
            abort,
            ..Fault::default()
        })];
    }

    #[test]
    fn retries_timeouts_and_weights() {
        assert_eq!(Rule::default().validate(), []);
        check(&[
            ("retry.attempts", |r| retry(r).attempts = 11),
            ("retry.codes[0]", |r| retry(r).statuses = vec![404].into()),
            ("retry.backoff", |r| retry(r).backoff = Duration::MAX),
            ("timeouts.request", |r| {
                r.request_timeout = Some(Duration::MAX);
            }),
            ("timeouts.backendRequest", |r| {
                r.request_timeout = Some(Duration::from_secs(1));
                r.backend_timeout = Some(Duration::from_secs(2));
            }),
            ("backendRefs[0].weight", |r| {
                r.backends = vec![backend(WEIGHT_MAX + 1, vec![])];
            }),
        ]);
    }

    #[test]
    fn filters() {
        check(&[
            ("filters[0].fault.delay.percentage", |r| {
                delay(r, Duration::from_secs(1), PARTS + 1);
            }),
            ("filters[0].fault.delay.time", |r| {
                delay(r, Duration::ZERO, 1);
            }),
            ("filters[0].fault.abort.percentage", |r| {
                abort(r, 503, 14, u32::MAX);
            }),
            ("filters[0].fault.abort.status", |r| abort(r, 99, 14, 1)),
            ("filters[0].fault.abort.grpcCode", |r| abort(r, 503, 17, 1)),
            ("filters[0].urlRewrite.hostname", |r| {
                let hostname = Some("a b".into());
                r.filters = vec![Filter::Rewrite(UrlRewrite {
                    hostname,
                    path: None,
                })];
            }),
            ("filters[0].requestRedirect.hostname", |r| {
                let hostname = Some("*.example".into());
                r.filters = vec![Filter::Redirect(Redirect {
                    hostname,
                    ..Redirect::default()
                })];
            }),
            ("backendRefs[0].filters[0].requestMirror.fraction", |r| {
                let mirror = Mirror {
                    backend: "shop/copy".parse().unwrap(),
                    port: 80,
                    numerator: 3,
                    denominator: 2,
                };
                r.backends = vec![backend(1, vec![Filter::Mirror(mirror)])];
            }),
        ]);
    }
}
