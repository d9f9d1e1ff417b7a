//! Every transition of what is thought of an endpoint, when it is asked, and the wire of gRPC.

use super::grpc::{Serving, answer, request};
use super::*;
use crate::breaker::{Breaker, BreakerConfig, StateView};
use crate::policy::TrafficPolicy;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn check() -> HealthCheck {
    HealthCheck {
        jitter: 0.0,
        ..HealthCheck::new(Check::Tcp)
    }
}

fn http() -> HttpCheck {
    HttpCheck {
        path: "/healthz".into(),
        host: None,
        statuses: [(200, 299)].into(),
        headers: [].into(),
    }
}

const BAD: CheckFailure = CheckFailure::Status(503);

fn result(passed: bool) -> Result<(), CheckFailure> {
    if passed { Ok(()) } else { Err(BAD) }
}

/// What results come to: `+` passed, `-` failed; `h` and `u` where the verdict changed, else `.`.
fn verdicts(config: HealthCheck, results: &str) -> String {
    let mut health = Health::new(Arc::new(config), at(0), 0);
    let verdict = |one: char| match health.on_result(result(one == '+'), at(0), 0) {
        None => '.',
        Some(Verdict::Healthy) => 'h',
        Some(Verdict::Unhealthy { .. } | Verdict::Unchecked) => 'u',
    };
    results.chars().map(verdict).collect()
}

#[test]
fn so_many_in_a_row_decide() {
    let with = |unhealthy, healthy, initial| HealthCheck {
        unhealthy_threshold: unhealthy,
        healthy_threshold: healthy,
        initial,
        ..check()
    };
    use InitialState::{Healthy, Unhealthy};
    let cases = [
        (with(3, 2, Healthy), "++--+---", ".......u"),
        (with(3, 2, Healthy), "+---+-++", "...u...h"),
        // Never passed: the first success is enough.
        (with(3, 2, Healthy), "---+---", "..uh..u"),
        (with(1, 1, Healthy), "+-+-", ".uhu"),
        (with(3, 2, Healthy), "---------", "..u......"),
        (with(3, 2, Unhealthy), "+", "h"),
        (with(3, 2, Unhealthy), "-----+---+++", ".....h..u.h."),
    ];
    for (config, results, expected) in cases {
        assert_eq!(verdicts(config, results), expected, "{results}");
    }
}

#[test]
fn the_verdict_says_why() {
    let mut health = Health::new(Arc::new(check()), at(0), 0);
    for failure in [BAD, CheckFailure::Timeout] {
        assert_eq!(health.on_result(Err(failure), at(0), 0), None);
    }
    let last = CheckFailure::Mesh(Reason::ApplicationUnreachable);
    let in_a_row = 3;
    let verdict = health.on_result(Err(last), at(0), 0);
    assert_eq!(verdict, Some(Verdict::Unhealthy { in_a_row, last }));
    assert!(!health.is_healthy());
}

#[test]
fn an_endpoint_that_is_not_known_is_asked_soon_and_often() {
    let second = |health: &Health, from| health.due().saturating_since(at(from));
    let mut health = Health::new(Arc::new(check()), at(0), u64::MAX);
    assert_eq!(health.due(), at(1000));
    assert_eq!(Health::new(Arc::new(check()), at(0), 0).due(), at(0));
    for _ in 0..2 {
        health.on_result(Err(BAD), at(5000), 0);
        assert_eq!(second(&health, 5000), Duration::from_secs(1));
    }
    health.on_result(Err(BAD), at(5000), 0);
    assert_eq!(second(&health, 5000), Duration::from_secs(10));
    let mut health = Health::new(Arc::new(check()), at(0), 0);
    health.on_result(Ok(()), at(7), 0);
    assert_eq!(second(&health, 7), Duration::from_secs(10));
    // One that begins as unwell and stays so is not asked every second for ever.
    let unwell = HealthCheck {
        initial: InitialState::Unhealthy,
        ..check()
    };
    let mut health = Health::new(Arc::new(unwell), at(0), 0);
    assert_eq!(health.initially(), Some(Verdict::Unchecked));
    for _ in 0..3 {
        assert_eq!(health.on_result(Err(BAD), at(0), 0), None);
    }
    assert_eq!(second(&health, 0), Duration::from_secs(10));
}

#[test]
fn what_is_not_the_endpoints_doing_says_nothing() {
    let of = CheckFailure::of_reason;
    let unreachable = Reason::ApplicationUnreachable;
    assert_eq!(of(unreachable), Some(CheckFailure::Mesh(unreachable)));
    assert_eq!(of(Reason::DeadlineExceeded), Some(CheckFailure::Timeout));
    for reason in [
        Reason::ConcurrencyLimit,
        Reason::Draining,
        Reason::PeerNotAuthenticated,
        Reason::PlaintextRefused,
    ] {
        assert_eq!(of(reason), None, "{reason}");
    }
    let mut health = Health::new(Arc::new(check()), at(0), 0);
    for millis in [0, 1000] {
        health.on_result(Err(BAD), at(millis), 0);
    }
    health.on_silence(at(2000), 0);
    assert_eq!(health.due(), at(12_000));
    assert!(health.is_healthy());
    assert!(health.on_result(Err(BAD), at(12_000), 0).is_some());
}

#[test]
fn new_parameters_keep_what_was_found() {
    let mut health = Health::new(Arc::new(check()), at(0), 0);
    for _ in 0..3 {
        health.on_result(Err(BAD), at(0), 0);
    }
    let long = HealthCheck {
        interval: Duration::from_secs(60),
        ..check()
    };
    health.set_config(Arc::new(long), at(100), u64::MAX);
    assert!(!health.is_healthy());
    assert_eq!(health.due(), at(1100), "it is asked soon in the new way");
    health.on_result(Ok(()), at(1100), 0);
    assert!(health.is_healthy());
    // What was counted of another question does not count.
    health.on_result(Err(BAD), at(2000), 0);
    health.on_result(Err(BAD), at(2000), 0);
    let other = HealthCheck {
        check: Check::Http(http()),
        ..check()
    };
    health.set_config(Arc::new(other.clone()), at(2000), 0);
    assert_eq!(health.on_result(Err(BAD), at(2000), 0), None);
    assert_eq!(health.on_result(Err(BAD), at(2000), 0), None);
    // The same question with other numbers: it does.
    let stricter = HealthCheck {
        unhealthy_threshold: 2,
        ..other
    };
    health.set_config(Arc::new(stricter), at(2000), 0);
    assert!(health.on_result(Err(BAD), at(2000), 0).is_some());
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of parameters")]
fn parameters_out_of_range() {
    type Change = fn(&mut HealthCheck);
    fn of(check: &mut HealthCheck, change: impl Fn(&mut HttpCheck)) {
        let mut http = http();
        change(&mut http);
        check.check = Check::Http(http);
    }
    let cases: [(&str, Change); 20] = [
        ("interval", |c| c.interval = Duration::from_millis(99)),
        ("interval", |c| c.interval = Duration::from_secs(86_401)),
        ("timeout", |c| c.timeout = Duration::ZERO),
        ("timeout", |c| c.timeout = Duration::from_secs(61)),
        ("unhealthyThreshold", |c| c.unhealthy_threshold = 0),
        ("healthyThreshold", |c| c.healthy_threshold = 101),
        ("jitter", |c| c.jitter = 1.0),
        ("jitter", |c| c.jitter = f64::NAN),
        ("grpc.service", |c| {
            c.check = Check::Grpc {
                service: "a b".into(),
            }
        }),
        ("http.path", |c| of(c, |h| h.path = "healthz".into())),
        ("http.path", |c| of(c, |h| h.path = "/a b".into())),
        ("http.path", |c| of(c, |h| h.path = "/".repeat(1025).into())),
        ("http.host", |c| of(c, |h| h.host = Some("a/b".into()))),
        ("http.host", |c| of(c, |h| h.host = Some("u@h".into()))),
        ("http.expectedStatuses", |c| {
            of(c, |h| h.statuses = [].into())
        }),
        ("http.expectedStatuses[1]", |c| {
            of(c, |h| h.statuses = [(200, 200), (300, 299)].into())
        }),
        ("http.expectedStatuses[0]", |c| {
            of(c, |h| h.statuses = [(100, 200)].into())
        }),
        ("http.headers[0].name", |c| {
            of(c, |h| {
                h.headers = [(
                    HeaderName::from_static("weft-check"),
                    HeaderValue::from_static("x"),
                )]
                .into()
            })
        }),
        ("http.headers[0].name", |c| {
            of(c, |h| {
                h.headers = [(
                    HeaderName::from_static("x_forwarded_client_cert"),
                    HeaderValue::from_static("x"),
                )]
                .into()
            })
        }),
        ("http.headers[0].name", |c| {
            of(c, |h| {
                h.headers = [(http::header::HOST, HeaderValue::from_static("x"))].into()
            })
        }),
    ];
    for (field, change) in cases {
        let mut config = check();
        change(&mut config);
        let errors = config.validate();
        let found = errors.iter().map(|error| error.field.as_str());
        let expected = format!("healthCheck.{field}");
        assert_eq!(found.collect::<Vec<_>>(), [expected]);
        // A policy says so too.
        let policy = TrafficPolicy {
            health_check: Some(Arc::new(config)),
            ..TrafficPolicy::default()
        };
        assert_eq!(policy.validate(), errors);
    }
    let kinds = [
        Check::Tcp,
        Check::Http(http()),
        Check::Grpc { service: "".into() },
    ];
    for kind in kinds {
        assert_eq!(HealthCheck::new(kind).validate(), []);
    }
}

#[test]
fn messages_of_the_grpc_health_protocol() {
    assert_eq!(request(""), [0, 0, 0, 0, 0]);
    assert_eq!(request("a.B"), b"\0\0\0\0\x05\x0a\x03a.B");
    let long = "x".repeat(300);
    assert_eq!(&request(&long)[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
    let cases: [(&[u8], Option<Serving>); 11] = [
        (b"\0\0\0\0\0", Some(Serving::Unknown)),
        (b"\0\0\0\0\x02\x08\x01", Some(Serving::Serving)),
        (b"\0\0\0\0\x02\x08\x02", Some(Serving::NotServing)),
        (b"\0\0\0\0\x02\x08\x03", Some(Serving::ServiceUnknown)),
        // Fields of later versions are skipped.
        (b"\0\0\0\0\x06\x12\x02hi\x08\x01", Some(Serving::Serving)),
        (b"\0\0\0\0\x07\x1d1234\x08\x01", Some(Serving::Serving)),
        (b"", None),
        (b"\0\0\0\0", None),
        (b"\0\0\0\0\x03\x08\x01", None),
        (b"\x01\0\0\0\x02\x08\x01", None),
        (b"\0\0\0\0\x02\x08\x80", None),
    ];
    for (bytes, expected) in cases {
        assert_eq!(answer(bytes), expected, "{bytes:?}");
    }
}

proptest! {
    /// Whatever comes, it is read or refused.
    #[test]
    fn no_answer_breaks_anything(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _either = answer(&bytes);
    }

    /// What is thought of it changes exactly when as many as needed contradict it in a row.
    #[test]
    fn only_enough_in_a_row_change_the_verdict(
        unhealthy in 1u32..5,
        healthy in 1u32..5,
        begins_well: bool,
        results in proptest::collection::vec(any::<bool>(), 1..60),
    ) {
        let initial = if begins_well { InitialState::Healthy } else { InitialState::Unhealthy };
        let config = HealthCheck {
            unhealthy_threshold: unhealthy, healthy_threshold: healthy, initial, ..check()
        };
        let mut health = Health::new(Arc::new(config), at(0), 0);
        for index in 0..results.len() {
            let (now, so_far) = (results[index], &results[..=index]);
            let before = health.is_healthy();
            let changed = health.on_result(result(now), at(0), 0);
            let in_a_row = so_far.iter().rev().take_while(|one| **one == now).count();
            let first = now && !results[..index].contains(&true);
            let needed = match now {
                true if first => 1,
                true => healthy as usize,
                false => unhealthy as usize,
            };
            let expected = before != now && in_a_row >= needed;
            prop_assert_eq!(changed.is_some(), expected);
            prop_assert_eq!(health.is_healthy(), before ^ expected);
        }
    }

    /// The next check is never later than the interval, and never earlier than jitter allows.
    #[test]
    fn jitter_stays_in_bounds(random: u64, jitter in 0.0..=0.9, millis in 100u64..100_000) {
        let interval = Duration::from_millis(millis);
        let config = HealthCheck { interval, jitter, ..check() };
        let mut health = Health::new(Arc::new(config), at(0), random);
        let rounding = Duration::from_nanos(2);
        prop_assert!(health.due() <= at(millis.min(1000)) + rounding);
        health.on_result(Ok(()), at(50), random);
        let wait = health.due().saturating_since(at(50));
        let least = interval.mul_f64(1.0 - jitter);
        prop_assert!(wait <= interval + rounding && wait + rounding >= least, "{wait:?}");
    }

    /// The breaker is out by checks exactly as long as they say so, whatever calls do meanwhile.
    #[test]
    fn one_state(steps in proptest::collection::vec((0u8..4, 0u64..2000), 1..200)) {
        let mut breaker = Breaker::new(BreakerConfig::default());
        let mut health = Health::new(Arc::new(check()), at(0), 0);
        let mut now = 0;
        for (step, wait) in steps {
            now += wait;
            match step {
                0 | 1 => {
                    if let Some(verdict) = health.on_result(result(step == 0), at(now), 0) {
                        breaker.on_check(verdict, at(now));
                    }
                }
                2 => {
                    if let Ok(permit) = breaker.try_acquire(at(now)) {
                        breaker.hold_open(&permit, Duration::from_secs(1), at(now));
                    }
                }
                _ => {
                    if let Ok(permit) = breaker.try_acquire(at(now)) {
                        let outcome = crate::breaker::CallOutcome {
                            class: crate::breaker::CallClass::Failure,
                            latency: Duration::ZERO,
                        };
                        breaker.on_result(permit, outcome, at(now), 0);
                    }
                }
            }
            prop_assert_eq!(breaker.is_unhealthy(), !health.is_healthy());
            if breaker.is_unhealthy() {
                prop_assert_eq!(breaker.state(at(now)), StateView::Open);
                prop_assert!(!breaker.is_available(at(now + 1_000_000)));
                prop_assert!(breaker.try_acquire(at(now + 1_000_000)).is_err());
            }
        }
    }
}
