//! Every transition, and the traps.

use super::*;
use proptest::prelude::*;

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn config() -> BreakerConfig {
    BreakerConfig {
        jitter: 0.0,
        ..BreakerConfig::default()
    }
}

const OK: CallClass = CallClass::Success;
const BAD: CallClass = CallClass::Failure;

fn call(breaker: &mut Breaker, class: CallClass, millis: u64) -> Option<Transition> {
    slow_call(breaker, class, millis, 1)
}

fn slow_call(
    breaker: &mut Breaker,
    class: CallClass,
    millis: u64,
    latency: u64,
) -> Option<Transition> {
    let permit = breaker.try_acquire(at(millis)).unwrap();
    let latency = Duration::from_millis(latency);
    breaker.on_result(permit, CallOutcome { class, latency }, at(millis), 0)
}

fn opened(millis: u64) -> Breaker {
    let mut breaker = Breaker::new(config());
    for _ in 0..5 {
        call(&mut breaker, BAD, millis);
    }
    assert_eq!(breaker.state(at(millis)), StateView::Open);
    breaker
}

#[test]
fn opens_on_consecutive_failures_and_says_when_to_come_back() {
    let mut breaker = opened(1000);
    let rejected = breaker.try_acquire(at(1400)).unwrap_err();
    assert_eq!(rejected.retry_after, Duration::from_millis(600));
    assert!(!breaker.is_available(at(1999)));
    assert!(breaker.is_available(at(2000)));
}

#[test]
fn a_success_in_between_starts_the_row_anew() {
    let mut breaker = Breaker::new(config());
    for round in 0..4 {
        for _ in 0..4 {
            call(&mut breaker, BAD, 20_000 * round);
        }
        call(&mut breaker, OK, 20_000 * round);
    }
    assert_eq!(breaker.state(at(60_000)), StateView::Closed);
}

#[test]
fn opens_on_the_failure_rate_but_not_below_the_minimum_of_calls() {
    let mut breaker = Breaker::new(config());
    for n in 0..19 {
        let class = if n % 2 == 0 { BAD } else { OK };
        assert_eq!(call(&mut breaker, class, 1000), None);
    }
    let transition = call(&mut breaker, BAD, 1000);
    assert_eq!(
        transition,
        Some(Transition {
            to: StateView::Open
        })
    );
}

#[test]
fn calls_older_than_the_window_do_not_count() {
    let mut breaker = Breaker::new(config());
    for n in 0..18 {
        call(&mut breaker, if n % 2 == 0 { BAD } else { OK }, 1000);
    }
    for n in 0..18 {
        assert_eq!(
            call(&mut breaker, if n % 2 == 0 { BAD } else { OK }, 12_000),
            None
        );
    }
}

#[test]
fn opens_on_slow_calls() {
    let mut breaker = Breaker::new(BreakerConfig {
        slow_call: Some(Duration::from_millis(100)),
        slow_rate: 0.5,
        ..config()
    });
    for _ in 0..10 {
        slow_call(&mut breaker, OK, 1000, 1);
    }
    for _ in 0..9 {
        assert_eq!(slow_call(&mut breaker, OK, 1000, 101), None);
    }
    assert!(slow_call(&mut breaker, OK, 1000, 101).is_some());
}

#[test]
fn a_successful_probe_closes_and_traffic_ramps_up() {
    let mut breaker = opened(1000);
    let transition = call(&mut breaker, OK, 2500);
    assert_eq!(
        transition,
        Some(Transition {
            to: StateView::Closed
        })
    );
    assert!(breaker.ramp_share(at(2500)) < 0.01);
    assert!((breaker.ramp_share(at(5000)) - 0.5).abs() < 0.01);
    assert!(breaker.ramp_share(at(9000)) >= 1.0);
    // What was counted before does not open it again.
    call(&mut breaker, BAD, 2600);
    assert_eq!(breaker.state(at(2600)), StateView::Closed);
}

#[test]
fn a_failed_probe_opens_for_longer_up_to_the_maximum() {
    let mut breaker = opened(0);
    let mut now = 0;
    for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
        let rejected = breaker.try_acquire(at(now)).unwrap_err();
        assert_eq!(rejected.retry_after, Duration::from_secs(expected));
        now += expected * 1000;
        call(&mut breaker, BAD, now);
    }
}

#[test]
fn jitter_shortens() {
    let mut breaker = Breaker::new(BreakerConfig::default());
    for _ in 0..5 {
        let permit = breaker.try_acquire(at(0)).unwrap();
        let outcome = CallOutcome {
            class: BAD,
            latency: Duration::ZERO,
        };
        breaker.on_result(permit, outcome, at(0), u64::MAX);
    }
    assert!(breaker.is_available(at(801)));
}

#[test]
fn only_so_many_probes_and_a_cancelled_one_gives_its_slot_back() {
    let mut breaker = opened(0);
    let probe = breaker.try_acquire(at(1000)).unwrap();
    assert!(breaker.try_acquire(at(1001)).is_err());
    breaker.on_cancel(probe);
    assert!(breaker.is_available(at(1001)));
    let neutral = breaker.try_acquire(at(1001)).unwrap();
    let outcome = CallOutcome {
        class: CallClass::Neutral,
        latency: Duration::ZERO,
    };
    assert_eq!(breaker.on_result(neutral, outcome, at(1002), 0), None);
    assert!(breaker.is_available(at(1002)));
}

#[test]
fn a_hung_probe_does_not_pin_it() {
    let mut breaker = opened(0);
    let hung = breaker.try_acquire(at(1000)).unwrap();
    assert!(breaker.try_acquire(at(10_999)).is_err());
    let next = breaker.try_acquire(at(11_000)).unwrap();
    let outcome = CallOutcome {
        class: OK,
        latency: Duration::from_millis(1),
    };
    assert!(breaker.on_result(next, outcome, at(11_001), 0).is_some());
    // It comes back after all, from an earlier generation.
    assert_eq!(
        breaker.on_result(
            hung,
            CallOutcome {
                class: BAD,
                ..outcome
            },
            at(12_000),
            0
        ),
        None
    );
    assert_eq!(breaker.state(at(12_000)), StateView::Closed);
}

#[test]
fn results_of_an_earlier_generation_do_not_count() {
    let mut breaker = Breaker::new(config());
    let early: Vec<Permit> = (0..50)
        .map(|_| breaker.try_acquire(at(0)).unwrap())
        .collect();
    for _ in 0..5 {
        call(&mut breaker, BAD, 10);
    }
    call(&mut breaker, OK, 1500);
    let outcome = CallOutcome {
        class: BAD,
        latency: Duration::from_millis(1),
    };
    for permit in early {
        assert_eq!(breaker.on_result(permit, outcome, at(1600), 0), None);
    }
    assert_eq!(breaker.state(at(1600)), StateView::Closed);
}

#[test]
fn new_parameters_keep_the_state() {
    let mut breaker = opened(0);
    breaker.set_config(BreakerConfig {
        probes: 3,
        ..config()
    });
    assert_eq!(breaker.state(at(500)), StateView::Open);
    let probes: Vec<_> = (0..3).map(|_| breaker.try_acquire(at(1000))).collect();
    assert!(probes.iter().all(Result::is_ok));
    assert!(breaker.try_acquire(at(1000)).is_err());
}

#[test]
fn the_last_healthy_endpoint_is_never_ejected() {
    let cases = [
        (1, 0, 1.0, false),
        (2, 0, 1.0, true),
        (2, 1, 1.0, false),
        (10, 4, 0.5, true),
        (10, 5, 0.5, false),
        (0, 0, 1.0, false),
    ];
    for (total, ejected, share, expected) in cases {
        assert_eq!(
            may_eject(total, ejected, share),
            expected,
            "{total} {ejected} {share}"
        );
    }
}

proptest! {
    /// Whatever happens, it never gives more probes at a time than allowed, and it never stays
    /// shut for longer than the longest open time and a hung probe.
    #[test]
    fn never_stuck_never_flooded(steps in proptest::collection::vec((0u8..4, 0u64..3000), 1..200)) {
        let mut breaker = Breaker::new(config());
        let mut now = 0;
        let mut held = Vec::new();
        for (step, wait) in steps {
            now += wait;
            match step {
                0 | 1 => if let Ok(permit) = breaker.try_acquire(at(now)) { held.push(permit); },
                2 => if let Some(permit) = held.pop() {
                    let outcome = CallOutcome { class: BAD, latency: Duration::ZERO };
                    breaker.on_result(permit, outcome, at(now), now);
                },
                _ => if let Some(permit) = held.pop() { breaker.on_cancel(permit); },
            }
            if let State::HalfOpen { probes, .. } = &breaker.state {
                prop_assert!(probes.len() <= 1);
            }
        }
        prop_assert!(breaker.is_available(at(now + 71_000)));
    }
}
