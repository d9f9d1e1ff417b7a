//! What callers are told: `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11,
//! sections 3 and 4) and `Retry-After` (RFC 9110 section 10.2.3).

use std::fmt::Write as _;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{RateLimit, Verdict};

/// The limits that hold for a request.
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of them.
pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// The largest integer of a structured field (RFC 9651 section 3.3.1).
const INTEGER_MAX: u64 = 999_999_999_999_999;

/// Writes what became of a request, after what is there already.
pub fn write<'a>(
    verdicts: impl IntoIterator<Item = (&'a RateLimit, Verdict)>,
    headers: &mut HeaderMap,
) {
    let (mut policies, mut limits) = (String::new(), String::new());
    let mut wait = None;
    for (limit, verdict) in verdicts {
        if !policies.is_empty() {
            policies.push_str(", ");
            limits.push_str(", ");
        }
        let name = (&limit.name.policy, limit.name.rule);
        let (quota, window) = quota(limit);
        let (left, reset) = (verdict.left.min(INTEGER_MAX), seconds(verdict.wait));
        let _infallible = write!(policies, "\"{}/{}\";q={quota};w={window}", name.0, name.1);
        let _infallible = write!(limits, "\"{}/{}\";r={left};t={reset}", name.0, name.1);
        if !verdict.allowed {
            wait = wait.max(Some(reset.max(1)));
        }
    }
    // Names of policies are labels: all of it is visible ASCII.
    if let Ok(value) = HeaderValue::from_str(&policies) {
        headers.append(RATELIMIT_POLICY, value);
    }
    if let Ok(value) = HeaderValue::from_str(&limits) {
        headers.append(RATELIMIT, value);
    }
    if let Some(wait) = wait {
        headers.insert(RETRY_AFTER, HeaderValue::from(wait));
    }
}

/// Requests in a window of whole seconds.
fn quota(limit: &RateLimit) -> (u64, u64) {
    let window = seconds(limit.per).max(1);
    let requests = u128::from(limit.requests) * Duration::from_secs(window).as_nanos();
    let quota = requests / limit.per.as_nanos().max(1);
    let quota = u64::try_from(quota).unwrap_or(INTEGER_MAX);
    (quota.min(INTEGER_MAX), window)
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    let more = u64::from(time.subsec_nanos() > 0);
    time.as_secs().saturating_add(more).min(INTEGER_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::tests::limit;
    use super::*;

    #[test]
    fn fields_are_those_of_the_draft() {
        let minute = limit(100, 60_000, 10);
        let quick = limit(5, 500, 5);
        let verdict = |allowed, left, wait| Verdict {
            allowed,
            left,
            wait: Duration::from_millis(wait),
        };
        let mut headers = HeaderMap::new();
        let passed = [
            (&minute, verdict(true, 9, 600)),
            (&quick, verdict(true, 0, 1)),
        ];
        write(passed, &mut headers);
        let text = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_owned();
        let expected = "\"web/0\";q=100;w=60, \"web/0\";q=10;w=1";
        assert_eq!(text(&headers, "ratelimit-policy"), expected);
        let expected = "\"web/0\";r=9;t=1, \"web/0\";r=0;t=1";
        assert_eq!(text(&headers, "ratelimit"), expected);
        assert!(!headers.contains_key("retry-after"));

        let mut headers = HeaderMap::new();
        let refused = [
            (&minute, verdict(false, 0, 61_001)),
            (&quick, verdict(false, 0, 1)),
        ];
        write(refused, &mut headers);
        assert_eq!(text(&headers, "retry-after"), "62");
        let expected = "\"web/0\";r=0;t=62, \"web/0\";r=0;t=1";
        assert_eq!(text(&headers, "ratelimit"), expected);

        let never = Verdict {
            allowed: false,
            left: 0,
            wait: Duration::MAX,
        };
        write([(&minute, never)], &mut headers);
        assert_eq!(text(&headers, "retry-after"), INTEGER_MAX.to_string());
    }
}
