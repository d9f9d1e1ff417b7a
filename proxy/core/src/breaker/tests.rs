//! Every transition, and the traps.

use super::*;
use crate::health::CheckFailure;
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

/// The caller gives up at once.
fn cancel(breaker: &mut Breaker, permit: Permit) {
    assert_eq!(breaker.on_cancel(permit, Duration::ZERO, at(0), 0), None);
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
fn the_last_changes_are_kept() {
    let mut breaker = opened(1000);
    call(&mut breaker, BAD, 2000);
    for round in 0..20u64 {
        let _half_open_and_open_again = call(&mut breaker, BAD, 1_000_000 * (round + 1));
    }
    let changes: Vec<Change> = breaker.changes().copied().collect();
    assert_eq!(changes.len(), CHANGES_MAX);
    let [.., probed, last] = changes.as_slice() else {
        panic!("{changes:?}");
    };
    let (open, half_open) = (StateView::Open, StateView::HalfOpen);
    assert_eq!((probed.at, probed.cause), (at(20_000_000), None));
    assert_eq!(
        (probed.transition.from, probed.transition.to),
        (open, half_open)
    );
    assert_eq!((last.at, last.cause), (at(20_000_000), Some(Cause::Probe)));
    assert_eq!(
        (last.transition.from, last.transition.to),
        (half_open, open)
    );
    // The first of all.
    let breaker = opened(1000);
    let first = breaker
        .changes()
        .next()
        .map(|change| (change.at, change.cause));
    assert_eq!(first, Some((at(1000), Some(Cause::InARow(5)))));
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
            from: StateView::Closed,
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
            from: StateView::HalfOpen,
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
    cancel(&mut breaker, probe);
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
        half_open_permits: 3,
        ..config()
    });
    assert_eq!(breaker.state(at(500)), StateView::Open);
    let probes: Vec<_> = (0..3).map(|_| breaker.try_acquire(at(1000))).collect();
    assert!(probes.iter().all(Result::is_ok));
    assert!(breaker.try_acquire(at(1000)).is_err());
}

const fn outcome(class: CallClass) -> CallOutcome {
    let latency = Duration::from_millis(1);
    CallOutcome { class, latency }
}

#[test]
fn the_window_may_be_a_number_of_calls() {
    let mut breaker = Breaker::new(BreakerConfig {
        window: Window::Count(10),
        consecutive_failures: None,
        ..config()
    });
    // Five of the last ten, however long ago; the minimum of 20 calls is capped at ten.
    for n in 0..13 {
        assert_eq!(call(&mut breaker, OK, n * 1_000_000), None);
    }
    for n in 13..17 {
        assert_eq!(call(&mut breaker, BAD, n * 1_000_000), None);
    }
    assert!(call(&mut breaker, BAD, 17_000_000).is_some());
}

#[test]
fn another_window_begins_anew_and_everything_else_stays() {
    let mut breaker = Breaker::new(config());
    for _ in 0..4 {
        call(&mut breaker, BAD, 3_600_000);
    }
    let window = Window::Time {
        length: Duration::from_secs(100),
        buckets: 10,
    };
    breaker.set_config(BreakerConfig { window, ..config() });
    assert_eq!(breaker.config().window, window);
    call(&mut breaker, OK, 3_600_000);
    for n in 0..18 {
        let class = if n % 2 == 0 { BAD } else { OK };
        assert_eq!(call(&mut breaker, class, 3_600_000), None);
    }
    // Old calls leave the new window too, although its buckets are numbered differently.
    for n in 0..18 {
        let class = if n % 2 == 0 { BAD } else { OK };
        assert_eq!(call(&mut breaker, class, 3_800_000), None);
    }
}

#[test]
fn several_successes_may_be_needed() {
    let mut breaker = opened(0);
    breaker.set_config(BreakerConfig {
        half_open_permits: 2,
        half_open_successes: 3,
        ..config()
    });
    for millis in [1000, 1001] {
        assert_eq!(call(&mut breaker, OK, millis), None);
        assert_eq!(breaker.state(at(millis)), StateView::HalfOpen);
    }
    assert!(call(&mut breaker, OK, 1002).is_some());
    assert_eq!(breaker.state(at(1002)), StateView::Closed);
}

#[test]
fn a_slow_probe_opens_again() {
    let mut breaker = opened(0);
    breaker.set_config(BreakerConfig {
        slow_call: Some(Duration::from_millis(100)),
        ..config()
    });
    assert!(slow_call(&mut breaker, OK, 1000, 101).is_some());
    assert_eq!(breaker.state(at(1001)), StateView::Open);
}

#[test]
fn a_probe_that_was_given_up_does_not_give_back_the_slot_of_another() {
    for late in [OK, BAD, CallClass::Neutral] {
        let mut breaker = opened(0);
        let hung = breaker.try_acquire(at(1000)).unwrap();
        assert!(hung.is_probe());
        let other = breaker.try_acquire(at(11_000)).unwrap();
        assert_eq!(breaker.on_result(hung, outcome(late), at(11_001), 0), None);
        assert_eq!(breaker.state(at(11_001)), StateView::HalfOpen);
        assert!(!breaker.is_available(at(11_001)));
        assert!(breaker.try_acquire(at(11_001)).is_err());
        cancel(&mut breaker, other);
        assert!(breaker.try_acquire(at(11_001)).is_ok());
    }
}

#[test]
fn opening_again_on_the_ramp_counts_as_not_recovered() {
    for (recovered_at, expected) in [(5_999, 2), (6_000, 1)] {
        let mut breaker = opened(0);
        call(&mut breaker, OK, 1000);
        for _ in 0..5 {
            call(&mut breaker, BAD, recovered_at);
        }
        let rejected = breaker.try_acquire(at(recovered_at)).unwrap_err();
        assert_eq!(rejected.retry_after, Duration::from_secs(expected));
    }
}

#[test]
fn the_rejection_says_when_a_hung_probe_will_be_given_up() {
    let mut breaker = opened(0);
    let _probe = breaker.try_acquire(at(1000)).unwrap();
    let rejected = breaker.try_acquire(at(4000)).unwrap_err();
    assert_eq!(rejected.retry_after, Duration::from_secs(7));
}

#[test]
fn parameters_out_of_range() {
    type Change = fn(&mut BreakerConfig);
    let time = |length, buckets| Window::Time { length, buckets };
    assert_eq!(BreakerConfig::default().validate(), Ok(()));
    let cases: [(&str, Change); 17] = [
        ("window", |c| c.window = Window::Count(0)),
        ("window", |c| c.window = Window::Count(10_001)),
        ("failure_rate", |c| c.failure_rate = 0.0),
        ("failure_rate", |c| c.failure_rate = f64::NAN),
        ("slow_call", |c| c.slow_call = Some(Duration::ZERO)),
        ("slow_rate", |c| c.slow_rate = 1.1),
        ("consecutive_failures", |c| c.consecutive_failures = Some(0)),
        ("minimum_calls", |c| c.minimum_calls = 0),
        ("open", |c| c.open = Duration::ZERO),
        ("open", |c| c.open = Duration::from_secs(61)),
        ("open_max", |c| c.open_max = Duration::MAX),
        ("open_growth", |c| c.open_growth = 0.5),
        ("jitter", |c| c.jitter = -0.1),
        ("half_open_permits", |c| c.half_open_permits = 0),
        ("half_open_successes", |c| c.half_open_successes = 0),
        ("half_open_max_wait", |c| {
            c.half_open_max_wait = Duration::ZERO
        }),
        ("ramp", |c| c.ramp = Duration::MAX),
    ];
    for (field, change) in cases {
        let mut config = BreakerConfig::default();
        change(&mut config);
        assert_eq!(config.validate().unwrap_err().field, field);
        // What nobody validated does not break anything either.
        let mut breaker = Breaker::new(config);
        for n in 0..100 {
            if let Ok(permit) = breaker.try_acquire(at(n)) {
                breaker.on_result(permit, outcome(BAD), at(n), u64::MAX);
            }
        }
    }
    for (length, buckets, field) in [
        (Duration::from_secs(1), 0, "window.buckets"),
        (Duration::from_secs(1), 601, "window.buckets"),
        (Duration::from_millis(9), 10, "window.length"),
        (Duration::from_secs(86_401), 10, "window.length"),
    ] {
        let window = time(length, buckets);
        let config = BreakerConfig { window, ..config() };
        assert_eq!(config.validate().unwrap_err().field, field);
    }
    let bad = BreakerConfig {
        jitter: 2.0,
        ..config()
    };
    let text = bad.validate().unwrap_err().to_string();
    assert_eq!(text, "circuit breaker: jitter is 2; allowed is 0 to 1");
}

#[test]
fn the_last_healthy_endpoint_is_never_ejected() {
    let cases = [
        (1, 1.0, 0),
        (2, 1.0, 1),
        (10, 0.5, 5),
        (100, 0.29, 29),
        (10, 0.0, 0),
        (10, f64::NAN, 0),
        (0, 1.0, 0),
        (4, 0.99, 3),
    ];
    for (total, share, expected) in cases {
        assert_eq!(most_ejected(total, share), expected, "{total} {share}");
    }
}

proptest! {
    /// Whatever happens, it never gives more probes at a time than allowed, it always agrees with
    /// what it announces, and it never stays shut for longer than the longest open time and a hung
    /// probe. Permits are kept, given back, or forgotten.
    #[test]
    fn never_stuck_never_flooded(
        permits in 1u32..4,
        steps in proptest::collection::vec((0u8..6, 0u64..3000, any::<prop::sample::Index>()), 1..200),
    ) {
        let mut breaker = Breaker::new(BreakerConfig {
            half_open_permits: permits,
            half_open_successes: 2,
            ..config()
        });
        let mut now = 0;
        let mut held: Vec<Permit> = Vec::new();
        for (step, wait, index) in steps {
            now += wait;
            let probes = breaker.probes.capacity();
            let returned = (step > 2 && !held.is_empty()).then(|| held.remove(index.index(held.len())));
            match (step, returned) {
                (0..=2, _) => {
                    let announced = breaker.is_available(at(now));
                    let given = breaker.try_acquire(at(now));
                    prop_assert_eq!(announced, given.is_ok());
                    held.extend(given.ok());
                }
                (3, Some(permit)) => drop(breaker.on_cancel(permit, Duration::ZERO, at(now), now)),
                (4, Some(permit)) => {
                    breaker.on_result(permit, outcome(OK), at(now), now);
                }
                (_, Some(permit)) => {
                    breaker.on_result(permit, outcome(BAD), at(now), now);
                }
                (_, None) => {}
            }
            prop_assert!(breaker.probes.len() <= permits as usize);
            prop_assert_eq!(breaker.probes.capacity(), probes, "a call took memory");
            let share = breaker.ramp_share(at(now));
            prop_assert!((0.0..=1.0).contains(&share));
        }
        prop_assert!(breaker.is_available(at(now + 71_000)));
    }

    /// The open time lies between the share that jitter leaves and the whole.
    #[test]
    fn jitter_stays_in_bounds(random: u64, jitter in 0.0..=1.0) {
        let mut breaker = Breaker::new(BreakerConfig { jitter, ..config() });
        for _ in 0..5 {
            let permit = breaker.try_acquire(at(0)).unwrap();
            breaker.on_result(permit, outcome(BAD), at(0), random);
        }
        let shortest = Duration::from_secs_f64(1.0 - jitter).saturating_sub(Duration::from_micros(1));
        match breaker.try_acquire(at(0)) {
            Ok(_permit) => prop_assert!(jitter > 0.999),
            Err(rejected) => {
                prop_assert!(rejected.retry_after >= shortest);
                prop_assert!(rejected.retry_after <= Duration::from_secs(1));
            }
        }
    }
}

#[test]
fn it_says_since_when_and_why() {
    let mut breaker = Breaker::new(config());
    let fresh = breaker.view(at(0));
    assert_eq!(
        (fresh.since, fresh.cause, fresh.next_probe),
        (None, None, None)
    );
    for _ in 0..5 {
        call(&mut breaker, BAD, 1000);
    }
    let open = breaker.view(at(1400));
    assert_eq!(open.state, StateView::Open);
    assert_eq!(open.since, Some(Duration::from_millis(400)));
    assert_eq!(open.cause, Some(Cause::InARow(5)));
    assert_eq!(open.next_probe, Some(Duration::from_millis(600)));
    assert_eq!(open.cause.unwrap().to_string(), "5 failures in a row");
    call(&mut breaker, BAD, 2000);
    let again = breaker.view(at(2000));
    assert_eq!((again.cause, again.opened), (Some(Cause::Probe), 2));
}

#[test]
fn an_answer_may_say_for_how_long_to_stay_away() {
    let mut breaker = Breaker::new(config());
    let stay_away = |breaker: &mut Breaker, permit: &Permit, secs| {
        breaker.hold_open(permit, Duration::from_secs(secs), at(0))
    };
    let first = breaker.try_acquire(at(0)).unwrap();
    let second = breaker.try_acquire(at(0)).unwrap();
    let changed = stay_away(&mut breaker, &first, 7).unwrap();
    assert_eq!(
        (changed.from, changed.to),
        (StateView::Closed, StateView::Open)
    );
    assert_eq!(breaker.view(at(0)).cause, Some(Cause::RetryAfter));
    // Other calls that began before it opened change nothing, neither now nor after it has closed.
    assert_eq!(stay_away(&mut breaker, &second, 1), None);
    assert_eq!(stay_away(&mut breaker, &second, 3600), None);
    let next_probe = breaker.view(at(0)).next_probe;
    assert_eq!(next_probe, Some(Duration::from_secs(7)));
    assert!(call(&mut breaker, OK, 7000).is_some());
    assert_eq!(stay_away(&mut breaker, &second, 3600), None);
    assert_eq!(breaker.state(at(7000)), StateView::Closed);
    // None is longer than the longest.
    let mut breaker = Breaker::new(config());
    let permit = breaker.try_acquire(at(0)).unwrap();
    stay_away(&mut breaker, &permit, 3600).unwrap();
    let longest = config().open_max;
    assert_eq!(breaker.view(at(0)).next_probe, Some(longest));
    // Results of calls that began before do not count.
    assert!(breaker.try_acquire(at(59_999)).is_err());
    assert!(breaker.try_acquire(at(60_000)).unwrap().is_probe());
}

/// A call is answered with 503 and `Retry-After`.
fn retry_after(breaker: &mut Breaker, millis: u64, wait: Duration) -> Option<Transition> {
    let permit = breaker.try_acquire(at(millis)).unwrap();
    breaker.hold_open(&permit, wait, at(millis))
}

type Make = fn() -> Breaker;
type Event = fn(&mut Breaker) -> Option<Transition>;

/// Opens when half of the last four calls failed or were slow.
fn closed() -> Breaker {
    Breaker::new(BreakerConfig {
        window: Window::Count(4),
        slow_call: Some(Duration::from_millis(100)),
        slow_rate: 0.5,
        ..config()
    })
}

/// Open from 0 to 1000.
fn open() -> Breaker {
    opened(0)
}

/// Half-open from 1000 on, one success short of closing.
fn half_open() -> Breaker {
    let mut breaker = opened(0);
    breaker.set_config(BreakerConfig {
        slow_call: Some(Duration::from_millis(100)),
        half_open_successes: 2,
        ..config()
    });
    assert_eq!(call(&mut breaker, OK, 1000), None);
    breaker
}

/// What may change the state of a breaker: from which one, by what, to which other one.
const TRANSITIONS: &[(&str, Make, Event, StateView, Option<StateView>)] = &[
    (
        "failures in a row",
        closed,
        |b| (0..5).find_map(|_| call(b, BAD, 1000)),
        StateView::Closed,
        Some(StateView::Open),
    ),
    (
        "a success",
        closed,
        |b| call(b, OK, 1000),
        StateView::Closed,
        None,
    ),
    (
        "one failure",
        closed,
        |b| call(b, BAD, 1000),
        StateView::Closed,
        None,
    ),
    (
        "one slow call",
        closed,
        |b| slow_call(b, OK, 1000, 101),
        StateView::Closed,
        None,
    ),
    (
        "Retry-After",
        closed,
        |b| retry_after(b, 1000, Duration::from_secs(3)),
        StateView::Closed,
        Some(StateView::Open),
    ),
    (
        "Retry-After: 0",
        closed,
        |b| retry_after(b, 1000, Duration::ZERO),
        StateView::Closed,
        None,
    ),
    (
        "a probe that fails",
        half_open,
        |b| call(b, BAD, 1000),
        StateView::HalfOpen,
        Some(StateView::Open),
    ),
    (
        "a probe that is slow",
        half_open,
        |b| slow_call(b, OK, 1000, 101),
        StateView::HalfOpen,
        Some(StateView::Open),
    ),
    (
        "the last probe that is needed",
        half_open,
        |b| call(b, OK, 1000),
        StateView::HalfOpen,
        Some(StateView::Closed),
    ),
    (
        "a probe that says nothing",
        half_open,
        |b| call(b, CallClass::Neutral, 1000),
        StateView::HalfOpen,
        None,
    ),
    (
        "Retry-After to a probe",
        half_open,
        |b| retry_after(b, 1000, Duration::from_secs(3)),
        StateView::HalfOpen,
        Some(StateView::Open),
    ),
    (
        "a call that says nothing",
        closed,
        |b| call(b, CallClass::Neutral, 1000),
        StateView::Closed,
        None,
    ),
    (
        "a cancelled probe",
        half_open,
        |b| {
            let probe = b.try_acquire(at(1000)).unwrap();
            cancel(b, probe);
            None
        },
        StateView::HalfOpen,
        None,
    ),
    (
        "a call that came too early",
        open,
        |b| {
            assert!(b.try_acquire(at(999)).is_err());
            None
        },
        StateView::Open,
        None,
    ),
];

/// Each from a fresh breaker in the state before.
#[test]
fn every_transition() {
    for (what, make, event, from, to) in TRANSITIONS.iter().copied() {
        let mut breaker = make();
        let when = if from == StateView::Open { 500 } else { 1000 };
        assert_eq!(breaker.state(at(when)), from, "{what}");
        let transition = event(&mut breaker);
        assert_eq!(transition, to.map(|to| Transition { from, to }), "{what}");
        assert_eq!(breaker.state(at(when)), to.unwrap_or(from), "{what}");
    }
    // By time alone.
    let mut breaker = open();
    assert_eq!(breaker.state(at(999)), StateView::Open);
    assert_eq!(breaker.state(at(1000)), StateView::HalfOpen);
    assert!(breaker.try_acquire(at(1000)).unwrap().is_probe());
}

#[test]
fn rates_of_the_last_calls_open_it() {
    let several = |classes: [CallClass; 4], latency| {
        let mut breaker = closed();
        let calls = classes.map(|class| slow_call(&mut breaker, class, 1000, latency));
        assert!(calls[..3].iter().all(Option::is_none));
        assert_eq!(calls[3].unwrap().to, StateView::Open);
        breaker.view(at(1000)).cause
    };
    let failed = several([OK, BAD, OK, BAD], 1);
    assert_eq!(
        failed,
        Some(Cause::FailureRate {
            failed: 2,
            calls: 4
        })
    );
    let slow = several([OK, OK, OK, OK], 101);
    assert_eq!(slow, Some(Cause::SlowRate { slow: 4, calls: 4 }));
}

/// At a call a second the window of ten seconds never holds the minimum: rates decide nothing. What
/// does not depend on the rate does: failures in a row, and a window of calls.
#[test]
fn low_rates_do_not_leave_it_blind() {
    let rates_only = BreakerConfig {
        consecutive_failures: None,
        ..config()
    };
    let mut breaker = Breaker::new(rates_only.clone());
    assert!((0..10_000).all(|second| call(&mut breaker, BAD, second * 1000).is_none()));
    let hour = 3_600_000;
    let opens_after = |config: BreakerConfig| {
        let mut breaker = Breaker::new(config);
        (1..100).find(|n| call(&mut breaker, BAD, n * hour).is_some())
    };
    assert_eq!(opens_after(config()), Some(5));
    let window = Window::Count(30);
    let by_count = BreakerConfig {
        window,
        ..rates_only.clone()
    };
    assert_eq!(opens_after(by_count), Some(20));
    // A window smaller than the minimum decides when it is full.
    let window = Window::Count(7);
    assert_eq!(
        opens_after(BreakerConfig {
            window,
            ..rates_only
        }),
        Some(7)
    );
}

/// A result of a call from before counts neither for nor against what the breaker is in now: not
/// while open, not as a probe, not after closing, and not after an answer said to stay away.
#[test]
fn an_earlier_generation_is_not_heard_in_any_state() {
    for late in [OK, BAD] {
        let mut breaker = Breaker::new(config());
        let mut early: Vec<Permit> = (0..4)
            .map(|_| breaker.try_acquire(at(0)).unwrap())
            .collect();
        let mut tell = |breaker: &mut Breaker, millis, expected| {
            let permit = early.pop().unwrap();
            assert_eq!(
                breaker.on_result(permit, outcome(late), at(millis), 0),
                None
            );
            assert_eq!(breaker.state(at(millis)), expected, "{late:?}");
        };
        for _ in 0..5 {
            call(&mut breaker, BAD, 0);
        }
        tell(&mut breaker, 500, StateView::Open);
        let probe = breaker.try_acquire(at(1000)).unwrap();
        tell(&mut breaker, 1001, StateView::HalfOpen);
        assert!(
            !breaker.is_available(at(1001)),
            "the probe's slot is its own"
        );
        breaker.on_result(probe, outcome(OK), at(1002), 0);
        tell(&mut breaker, 1003, StateView::Closed);
        // Four more failures are one short: the late one was not counted.
        for _ in 0..4 {
            assert_eq!(call(&mut breaker, BAD, 1004), None);
        }
        retry_after(&mut breaker, 1005, Duration::from_secs(2)).unwrap();
        tell(&mut breaker, 1006, StateView::Open);
    }
}

/// Every probe hangs: one after the other is given up, and a late one has no say.
#[test]
fn probes_that_hang_one_after_the_other_do_not_pin_it() {
    let mut breaker = opened(0);
    let wait = 10_000;
    let hung: Vec<Permit> = (0..20)
        .map(|n| {
            let now = 1000 + n * wait;
            let probe = breaker.try_acquire(at(now)).unwrap();
            assert!(breaker.try_acquire(at(now + wait - 1)).is_err());
            probe
        })
        .collect();
    let now = 1000 + 20 * wait;
    for late in hung.into_iter().take(19) {
        assert_eq!(breaker.on_result(late, outcome(OK), at(now), 0), None);
    }
    assert_eq!(breaker.state(at(now)), StateView::HalfOpen);
    assert!(call(&mut breaker, OK, now).is_some());
    assert_eq!(breaker.state(at(now)), StateView::Closed);
}

proptest! {
    /// However endpoints fail, at least one stays, and never more are out than the share allows.
    #[test]
    fn ejecting_leaves_some(total in 0usize..40, share in 0.0..=1.0) {
        let out = most_ejected(total, share);
        prop_assert!(total == 0 || out < total);
        prop_assert!(out as f64 <= total as f64 * share + 1e-6);
        // It stops for a reason.
        let next = (out + 1) as f64;
        prop_assert!(out + 1 >= total || next > total as f64 * share);
    }
}

const UNWELL: Verdict = Verdict::Unhealthy {
    in_a_row: 3,
    last: CheckFailure::Status(503),
};

fn between(from: StateView, to: StateView) -> Option<Transition> {
    Some(Transition { from, to })
}

#[test]
fn health_checks_open_it_from_every_state_and_only_they_close_it() {
    use StateView::{Closed, HalfOpen, Open};
    let closed = Breaker::new(config());
    let open = opened(0);
    let mut half_open = opened(0);
    let _probe = half_open.try_acquire(at(1000)).unwrap();
    for (mut breaker, from) in [(closed, Closed), (open, Open), (half_open, HalfOpen)] {
        assert_eq!(breaker.on_check(UNWELL, at(1500)), between(from, Open));
        assert_eq!(breaker.on_check(UNWELL, at(1600)), None, "it is so already");
        // No time brings it back, and nothing else opens it or changes why.
        let hour = 3_600_000;
        assert!(breaker.try_acquire(at(hour)).is_err());
        assert!(!breaker.is_available(at(hour)));
        let view = breaker.view(at(hour));
        assert_eq!((view.state, view.next_probe), (Open, None));
        let cause = view.cause.unwrap().to_string();
        assert_eq!(cause, "3 health checks in a row failed: status 503");
        // Back with the ramp.
        let closes = breaker.on_check(Verdict::Healthy, at(hour));
        assert_eq!(closes, between(Open, Closed));
        assert!((breaker.ramp_share(at(hour + 2500)) - 0.5).abs() < 1e-9);
        assert!(breaker.try_acquire(at(hour)).is_ok());
    }
}

#[test]
fn a_passing_check_does_not_undo_what_calls_opened() {
    let mut breaker = opened(0);
    assert_eq!(breaker.on_check(Verdict::Healthy, at(500)), None);
    assert!(breaker.try_acquire(at(999)).is_err());
    let mut breaker = Breaker::new(config());
    assert_eq!(breaker.on_check(Verdict::Healthy, at(0)), None);
    assert_eq!(breaker.view(at(0)).since, None);
}

#[test]
fn calls_begun_before_checks_opened_it_do_not_count() {
    let mut breaker = Breaker::new(config());
    let permits: Vec<Permit> = (0..9)
        .map(|_| breaker.try_acquire(at(0)).unwrap())
        .collect();
    breaker.on_check(UNWELL, at(1));
    breaker.on_check(Verdict::Healthy, at(2));
    for permit in permits {
        assert_eq!(breaker.on_result(permit, outcome(BAD), at(3), 0), None);
    }
    assert!(breaker.try_acquire(at(3)).is_ok());
}

#[test]
fn without_calls_only_checks_open_it() {
    let only_checks = BreakerConfig {
        by_calls: false,
        ..config()
    };
    let mut breaker = Breaker::new(only_checks.clone());
    for _ in 0..100 {
        assert_eq!(call(&mut breaker, BAD, 0), None);
    }
    assert_eq!(retry_after(&mut breaker, 0, Duration::from_secs(9)), None);
    let opens = between(StateView::Closed, StateView::Open);
    assert_eq!(breaker.on_check(Verdict::Unchecked, at(0)), opens);
    let why = breaker.view(at(0)).cause.unwrap().to_string();
    assert_eq!(why, "no health check has passed yet");
    // Switched off for calls, it forgets what they did, and not what checks say.
    breaker.set_config(only_checks.clone());
    assert!(breaker.is_unhealthy());
    let mut breaker = opened(0);
    breaker.set_config(only_checks);
    assert_eq!(breaker.state(at(0)), StateView::Closed);
    assert!(breaker.try_acquire(at(0)).is_ok());
}

#[test]
fn panic_when_too_few_are_left() {
    let cases = [
        (10, 10, 0.0, false),
        (10, 5, 0.5, false),
        (10, 6, 0.5, true),
        (10, 0, 1.0, false),
        (10, 1, 1.0, true),
        (0, 0, 1.0, false),
        (100, 71, 0.29, false),
        (100, 72, 0.29, true),
    ];
    for (total, out, threshold, expected) in cases {
        let found = is_panic(total, out, threshold);
        assert_eq!(found, expected, "{out} of {total}, {threshold}");
    }
}

/// A call that its caller gives up after so many milliseconds.
fn give_up(breaker: &mut Breaker, millis: u64, waited: u64) -> Option<Transition> {
    let permit = breaker.try_acquire(at(millis)).unwrap();
    breaker.on_cancel(permit, Duration::from_millis(waited), at(millis), 0)
}

#[test]
fn callers_that_give_up_late_have_seen_a_slow_call() {
    let watching = BreakerConfig {
        slow_call: Some(Duration::from_millis(100)),
        slow_rate: 0.5,
        ..config()
    };
    let mut breaker = Breaker::new(watching.clone());
    for _ in 0..100 {
        assert_eq!(give_up(&mut breaker, 1000, 100), None, "not slow yet");
    }
    for _ in 0..19 {
        assert_eq!(give_up(&mut breaker, 1000, 101), None);
    }
    let opens = between(StateView::Closed, StateView::Open);
    assert_eq!(give_up(&mut breaker, 1000, 101), opens);
    let (slow, calls) = (20, 20);
    let cause = breaker.view(at(1000)).cause;
    assert_eq!(cause, Some(Cause::SlowRate { slow, calls }));
    // A probe is no better where it hangs, and says nothing where its caller was quick.
    assert_eq!(give_up(&mut breaker, 2000, 100), None);
    assert_eq!(breaker.state(at(2000)), StateView::HalfOpen);
    let opens = between(StateView::HalfOpen, StateView::Open);
    assert_eq!(give_up(&mut breaker, 2000, 101), opens);
    // They are no failures, and no successes either: the row of failures goes on.
    let mut breaker = Breaker::new(watching);
    for _ in 0..4 {
        call(&mut breaker, BAD, 0);
        assert_eq!(give_up(&mut breaker, 0, 101), None);
    }
    assert!(call(&mut breaker, BAD, 0).is_some());
    // Where slow calls are not watched for, no time is too long.
    let mut breaker = Breaker::new(config());
    for _ in 0..100 {
        assert_eq!(give_up(&mut breaker, 0, 3_600_000), None);
    }
}

#[test]
fn it_is_out_since_it_was_last_closed() {
    let mut breaker = opened(0);
    let since = at(0);
    assert_eq!(breaker.standing(at(500)), Standing::Open { since });
    assert_eq!(breaker.standing(at(1000)), Standing::Available, "a probe");
    call(&mut breaker, BAD, 1000);
    assert_eq!(breaker.standing(at(1500)), Standing::Open { since });
    breaker.on_check(UNWELL, at(1600));
    assert_eq!(breaker.standing(at(1600)), Standing::Unhealthy { since });
    breaker.on_check(Verdict::Healthy, at(2000));
    assert_eq!(breaker.standing(at(2000)), Standing::Available);
    breaker.on_check(UNWELL, at(3000));
    let since = at(3000);
    assert_eq!(breaker.standing(at(4000)), Standing::Unhealthy { since });
}
