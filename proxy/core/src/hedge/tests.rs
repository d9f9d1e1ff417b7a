//! Tables, and a storm that stays within its budget.

use proptest::prelude::*;

use super::*;
use crate::retry::{Failure, RetryPolicy, may_retry};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn policy(after: After) -> HedgePolicy {
    HedgePolicy {
        after,
        max_attempts: 1,
        methods: SAFE_METHODS.to_vec().into(),
        grpc_methods: Cow::Borrowed(&[]),
    }
}

const FITS: Situation = Situation {
    made: 0,
    body_is_whole: true,
    deadline: None,
    is_open: false,
    has_endpoint: true,
    has_place: true,
};

#[test]
fn only_what_does_no_harm_is_covered() {
    let mut policy = policy(After::Delay(ms(50)));
    let cases = [
        (Method::GET, None, true),
        (Method::HEAD, None, true),
        (Method::OPTIONS, None, true),
        (Method::PUT, None, false),
        (Method::DELETE, None, false),
        (Method::POST, None, false),
        (Method::PATCH, None, false),
        (Method::POST, Some("/shop.Orders/Get"), false),
        // The method is no way around what is a call.
        (Method::GET, Some("/shop.Orders/Get"), false),
    ];
    for (method, grpc, expected) in cases {
        assert_eq!(policy.covers(&method, grpc), expected, "{method} {grpc:?}");
    }
    policy.methods = vec![Method::PUT].into();
    assert!(policy.covers(&Method::PUT, None));
    assert!(!policy.covers(&Method::GET, None));
    policy.grpc_methods = vec!["shop.Orders/Get".to_owned(), "shop.Items/*".to_owned()].into();
    let cases = [
        ("/shop.Orders/Get", true),
        ("/shop.Orders/Put", false),
        ("/shop.Orders/GetAll", false),
        ("/shop.Items/Put", true),
        ("/shop.ItemsToo/Put", false),
        ("/shop.Items/a/b", false),
        ("/", false),
        ("", false),
    ];
    for (path, expected) in cases {
        assert_eq!(policy.covers(&Method::POST, Some(path)), expected, "{path}");
    }
}

#[test]
fn an_attempt_is_waited_for_as_long_as_the_policy_says() {
    let fixed = policy(After::Delay(ms(50)));
    assert_eq!(fixed.delay(None, at(0)), Some(ms(50)));
    assert!(!fixed.learns());
    let live = policy(After::Percentile {
        percentile: 90.0,
        min_delay: ms(20),
    });
    assert!(live.learns());
    let mut latencies = Latencies::new(at(0));
    assert_eq!(live.delay(None, at(0)), None);
    assert_eq!(live.delay(Some(&mut latencies), at(0)), None);
    for _ in 0..100 {
        latencies.on_latency(ms(5), at(1));
    }
    assert_eq!(live.delay(Some(&mut latencies), at(1)), Some(ms(20)));
    for _ in 0..100 {
        latencies.on_latency(ms(300), at(1));
    }
    let delay = live.delay(Some(&mut latencies), at(200)).unwrap();
    assert!((ms(300)..ms(320)).contains(&delay), "{delay:?}");
}

#[test]
fn each_reason_against_a_hedge_is_named() {
    let policy = policy(After::Delay(ms(50)));
    let now = at(1000);
    let wait = Decision::Wait;
    let cases = [
        (FITS, Decision::Hedge),
        (Situation { made: 1, ..FITS }, wait(Why::AttemptsUsed)),
        (
            Situation {
                body_is_whole: false,
                ..FITS
            },
            wait(Why::BodyNotWhole),
        ),
        (
            Situation {
                deadline: Some(now),
                ..FITS
            },
            wait(Why::DeadlinePassed),
        ),
        (
            Situation {
                deadline: Some(at(1001)),
                ..FITS
            },
            Decision::Hedge,
        ),
        (
            Situation {
                is_open: true,
                ..FITS
            },
            wait(Why::BreakerOpen),
        ),
        (
            Situation {
                has_endpoint: false,
                ..FITS
            },
            wait(Why::NoEndpoint),
        ),
        (
            Situation {
                has_place: false,
                ..FITS
            },
            wait(Why::NoPlace),
        ),
    ];
    for (situation, expected) in cases {
        // One hedge, which only the one that is made pays for.
        let mut budget = RetryBudget::new(1.0, 0);
        budget.on_request(now);
        let decided = decide(&policy, &situation, &mut budget, now);
        assert_eq!(decided, expected, "{situation:?}");
        let left = budget.try_retry(now);
        assert_eq!(left, expected != Decision::Hedge, "{situation:?}");
        let decided = decide(&policy, &FITS, &mut budget, now);
        assert_eq!(decided, wait(Why::BudgetSpent), "{situation:?}");
    }
}

#[test]
fn what_is_refused_is_named() {
    type Change = fn(&mut HedgePolicy);
    let cases: [(&str, Change); 9] = [
        ("hedge.delay", |p| p.after = After::Delay(Duration::ZERO)),
        ("hedge.delay", |p| p.after = After::Delay(MAX_TIMEOUT * 2)),
        // The attempt is over by then.
        ("hedge.delay", |p| p.after = After::Delay(ms(500))),
        ("hedge.percentile", |p| {
            p.after = After::Percentile {
                percentile: f64::NAN,
                min_delay: ms(1),
            }
        }),
        ("hedge.minDelay", |p| {
            p.after = After::Percentile {
                percentile: 95.0,
                min_delay: ms(500),
            }
        }),
        ("hedge.maxAttempts", |p| p.max_attempts = 0),
        ("hedge.maxAttempts", |p| p.max_attempts = 4),
        ("hedge.methods[1]", |p| {
            p.methods = vec![Method::GET, Method::POST].into();
        }),
        ("hedge.grpcMethods[0]", |p| {
            p.grpc_methods = vec!["Get".to_owned()].into();
        }),
    ];
    for (field, change) in cases {
        let mut changed = policy(After::Delay(ms(50)));
        assert_eq!(changed.validate(Some(ms(500))), []);
        change(&mut changed);
        let errors = changed.validate(Some(ms(500)));
        assert!(
            errors.iter().any(|e| e.field == field),
            "{field}: {errors:?}"
        );
    }
}

/// What becomes of one request in the storm.
#[derive(Debug, Clone)]
struct Stormy {
    pause: u64,
    /// How often its attempts are found slow.
    slow: u32,
    /// How often its attempts fail.
    fails: u32,
}

proptest! {
    /// Requests that are all slow and all fail, with as many hedges and retries as there may be:
    /// together they are never more than the budget has.
    #[test]
    fn hedges_and_retries_share_one_budget(
        ratio in 0.0..1.0,
        minimum in 0u32..3,
        max_attempts in 1u32..=MAX_HEDGES,
        retries in 0u32..5,
        storm in proptest::collection::vec(
            (0u64..3000, 0u32..6, 0u32..6)
                .prop_map(|(pause, slow, fails)| Stormy { pause, slow, fails }),
            1..300,
        ),
    ) {
        let policy = HedgePolicy { max_attempts, ..policy(After::Delay(ms(1))) };
        let retry = RetryPolicy { attempts: retries, ..RetryPolicy::default() };
        let mut budget = RetryBudget::new(ratio, minimum);
        let (mut requests, mut extra, mut millis) = (0u64, 0u64, 0);
        for one in storm {
            millis += one.pause;
            let now = at(millis);
            budget.on_request(now);
            requests += 1;
            let mut hedges = 0;
            for _ in 0..one.slow {
                let situation = Situation { made: hedges, ..FITS };
                if decide(&policy, &situation, &mut budget, now) == Decision::Hedge {
                    hedges += 1;
                }
            }
            prop_assert!(hedges <= max_attempts);
            let mut made = 1;
            for _ in 0..one.fails {
                if may_retry(&retry, Failure::Reset, &Method::GET, true, made)
                    && budget.try_retry(now)
                {
                    made += 1;
                }
            }
            extra += u64::from(hedges + made - 1);
            let begun = millis / 10_000 + 1;
            let bound = requests as f64 * ratio + (begun * 10 * u64::from(minimum)) as f64;
            prop_assert!(extra as f64 <= bound, "{extra} of {bound}");
        }
    }
}
