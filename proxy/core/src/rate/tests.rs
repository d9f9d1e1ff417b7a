use super::*;
use crate::path::{NormalPath, PathNormalization};
use crate::route::PathMatch;
use crate::time::Instant;
use http::{HeaderMap, Method};
use proptest::prelude::*;

pub(super) fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

/// `requests` in so many milliseconds.
pub(super) fn limit(requests: u64, per: u64, burst: u64) -> RateLimit {
    RateLimit {
        name: RuleName {
            namespace: "shop".into(),
            policy: "web".into(),
            rule: 0,
        },
        scope: RateScope::Local,
        matches: Vec::new(),
        key: Vec::new(),
        requests,
        per: Duration::from_millis(per),
        burst,
    }
}

#[test]
fn a_bucket_is_exact() {
    let pace = Pace::of(&limit(3, 1000, 2), WHOLE);
    let mut bucket = Bucket::full(&pace, at(0));
    let mut take = |nanos: u64| bucket.take(&pace, Instant::from_nanos(nanos));
    let first = take(0);
    assert_eq!((first.allowed, first.left), (true, 1));
    assert_eq!(first.wait, Duration::from_nanos(333_333_334));
    assert!(take(0).allowed);
    let refused = take(0);
    assert_eq!((refused.allowed, refused.left), (false, 0));
    // A third of a second, rounded up: exactly then, not a nanosecond before.
    assert_eq!(refused.wait, Duration::from_nanos(333_333_334));
    assert!(!take(333_333_333).allowed);
    assert!(take(333_333_334).allowed);
    // No drift: after a million tokens the next comes when it has to.
    let mut now = 333_333_334;
    for _ in 0..1_000_000 {
        let refused = take(now);
        assert!(!refused.allowed);
        now += u64::try_from(refused.wait.as_nanos()).unwrap();
        assert!(take(now).allowed);
    }
    assert_eq!(now, 1_000_001 * 1_000_000_000 / 3 + 1);
    // A clock that was read too early takes nothing away.
    assert!(!take(5).allowed);
}

#[test]
fn extremes_do_not_overflow() {
    let large = RateLimit {
        per: MAX_PER,
        ..limit(MAX_REQUESTS, 1, MAX_REQUESTS)
    };
    let pace = Pace::of(&large, WHOLE);
    let mut bucket = Bucket::full(&pace, at(0));
    let last = Instant::from_nanos(u64::MAX);
    assert_eq!(bucket.take(&pace, last).left, MAX_REQUESTS - 1);
    let smallest = RateLimit {
        per: MAX_PER,
        ..limit(1, 1, 1)
    };
    let pace = Pace::of(&smallest, 1);
    let mut bucket = Bucket::full(&pace, at(0));
    assert!(bucket.take(&pace, at(0)).allowed);
    assert!(bucket.take(&pace, at(1)).wait > MAX_PER);
}

#[test]
fn what_a_limit_is_for() {
    let mut limit = limit(1, 1, 1);
    let headers = HeaderMap::new();
    let takes = |limit: &RateLimit, method: Method, path: &str| {
        let head = RequestHead {
            method: &method,
            path: NormalPath::new(path),
            query: None,
            headers: &headers,
        };
        let readings = head.readings(PathNormalization::default());
        limit.applies(&head, &readings).unwrap()
    };
    assert!(takes(&limit, Method::GET, "/x"));
    limit.matches = vec![
        HttpMatch::of(PathMatch::exact("/a").unwrap()),
        HttpMatch {
            method: Some(Method::POST),
            ..HttpMatch::of(PathMatch::prefix("/b/").unwrap())
        },
        HttpMatch::of(PathMatch::pattern("/[0-9]+").unwrap()),
    ];
    let cases = [
        (Method::GET, "/a", true),
        (Method::GET, "/a/b", false),
        (Method::POST, "/b", true),
        (Method::POST, "/b/c", true),
        (Method::POST, "/bc", false),
        (Method::GET, "/b", false),
        (Method::GET, "/12", true),
        (Method::GET, "/12/x", false),
    ];
    for (method, path, expected) in cases {
        assert_eq!(
            takes(&limit, method.clone(), path),
            expected,
            "{method} {path}"
        );
    }
}

#[test]
fn what_is_refused_is_named() {
    let good = || limit(10, 1000, 10);
    assert_eq!(good().validate(), []);
    type Change = fn(&mut RateLimit);
    let cases: [(&str, Change); 8] = [
        ("requests", |l| l.requests = 0),
        ("requests", |l| l.requests = MAX_REQUESTS + 1),
        ("burst", |l| l.burst = 0),
        ("per", |l| l.per = Duration::from_micros(999)),
        ("per", |l| l.per = MAX_PER + Duration::from_nanos(1)),
        ("key[1]", |l| l.key = vec![RateKey::Caller, RateKey::Caller]),
        ("key[0].claim", |l| l.key = vec![RateKey::Claim("".into())]),
        ("key", |l| {
            l.key = (0..5)
                .map(|n| RateKey::Claim(n.to_string().into()))
                .collect();
        }),
    ];
    for (field, change) in cases {
        let mut limit = good();
        change(&mut limit);
        let errors = limit.validate();
        let fields: Vec<&str> = errors.iter().map(|error| &*error.field).collect();
        assert_eq!(fields, [field]);
    }
}

/// The same limit by another way: the generic cell rate algorithm (ITU-T I.371), which keeps only
/// when the next request would be due. In units of 1/requests nanoseconds it is exact, too.
struct Gcra {
    due: u128,
}

impl Gcra {
    fn take(&mut self, limit: &RateLimit, now: u64) -> bool {
        let (scale, interval) = (u128::from(limit.requests), limit.per.as_nanos());
        let now = u128::from(now) * scale;
        let due = self.due.max(now);
        let tolerance = interval * u128::from(limit.burst - 1);
        let allowed = due - now <= tolerance;
        if allowed {
            self.due = due + interval;
        }
        allowed
    }
}

proptest! {
    /// In any window at most the burst and what the rate gives; and another implementation says
    /// the same of every single request.
    #[test]
    fn in_any_window(
        requests in 1u64..50,
        per in 1u64..5000,
        burst in 1u64..20,
        gaps in proptest::collection::vec(prop_oneof![Just(0), 1u64..2_000_000_000], 1..150),
    ) {
        let limit = limit(requests, per, burst);
        let pace = Pace::of(&limit, WHOLE);
        let mut bucket = Bucket::full(&pace, at(0));
        let mut other = Gcra { due: 0 };
        let mut now = 0u64;
        let mut passed: Vec<u64> = Vec::new();
        for gap in gaps {
            now += gap;
            let verdict = bucket.take(&pace, Instant::from_nanos(now));
            prop_assert_eq!(verdict.allowed, other.take(&limit, now));
            if verdict.allowed {
                passed.push(now);
            } else {
                // It says when: not a nanosecond earlier.
                let wait = u64::try_from(verdict.wait.as_nanos()).unwrap();
                let mut later = bucket;
                prop_assert!(!later.take(&pace, Instant::from_nanos(now + wait - 1)).allowed);
                prop_assert!(later.take(&pace, Instant::from_nanos(now + wait)).allowed);
            }
        }
        for (index, from) in passed.iter().enumerate() {
            for (count, to) in passed[index..].iter().enumerate() {
                let window = u128::from(to - from) * u128::from(requests);
                let most = u128::from(burst) + window / limit.per.as_nanos();
                prop_assert!((count as u128) < most, "{from} to {to}");
            }
        }
    }

    /// Shares of a limit that change again and again let through no more than the whole would: the
    /// sum of the shares is never above it, and a raise gives nothing for free.
    #[test]
    fn shares_together_are_the_limit(
        steps in proptest::collection::vec((0u64..400, 0u32..=100), 1..60),
    ) {
        let limit = Arc::new(limit(20, 1000, 10));
        let share = |part: u32| lease::Shares { base: WHOLE / 100 * part, ..lease::Shares::WHOLE };
        let mut limiters = [share(50), share(50)]
            .map(|share| Limiter::new(Arc::clone(&limit), share, at(0)));
        let (mut now, mut passed) = (0, 0u64);
        for (gap, part) in steps {
            now += gap;
            for (limiter, part) in limiters.iter_mut().zip([part, 100 - part]) {
                limiter.change(Arc::clone(&limit), share(part), at(now));
            }
            for limiter in &mut limiters {
                passed += (0..30).filter(|_| limiter.take("", at(now)).allowed).count() as u64;
            }
            // One request more for each: a share holds one at least.
            prop_assert!(passed <= 10 + 20 * now / 1000 + 2, "{passed} in {now} ms");
        }
    }
}
