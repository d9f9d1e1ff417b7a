//! What moves the limit and what does not, one by one and against a simulated server.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use super::*;
use proptest::prelude::*;

const MILLISECOND: u64 = 1_000_000;

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * MILLISECOND)
}

fn limiter(change: impl FnOnce(&mut AdaptiveConfig)) -> Limiter {
    let mut config = AdaptiveConfig::default();
    change(&mut config);
    assert_eq!(config.validate(), []);
    Limiter::new(config)
}

/// So many calls at the same time, each answered after so many milliseconds; when they end.
fn round(limiter: &mut Limiter, millis: u64, calls: usize, latency: u64) -> u64 {
    let end = millis + latency;
    let permits: Vec<Permit> = (0..calls)
        .map_while(|_| limiter.try_acquire(at(millis), Priority::Default).ok())
        .collect();
    for permit in permits {
        let sample = limiter.on_answer(permit, at(end));
        limiter.on_sample(sample, at(end));
    }
    end
}

#[test]
fn the_default_is_allowed_and_what_is_refused_is_named() {
    assert_eq!(AdaptiveConfig::default().validate(), []);
    type Change = fn(&mut AdaptiveConfig);
    let cases: [(&str, Change); 16] = [
        ("max", |c| c.max = 0),
        ("max", |c| c.max = MAX + 1),
        ("min", |c| c.min = 0),
        ("min", |c| c.min = c.max + 1),
        ("initial", |c| c.initial = c.min - 1),
        ("initial", |c| c.initial = c.max + 1),
        ("smoothing", |c| c.smoothing = 0.0),
        ("smoothing", |c| c.smoothing = f64::NAN),
        ("tolerance", |c| c.tolerance = 0.9),
        ("tolerance", |c| c.tolerance = f64::INFINITY),
        ("queue", |c| c.queue = 0),
        ("queue", |c| c.queue = MAX_QUEUE + 1),
        ("longWindow", |c| c.long_window = Duration::from_millis(999)),
        ("longWindow", |c| c.long_window = Duration::MAX),
        ("criticalShare", |c| c.critical_share = 0.51),
        ("criticalShare", |c| c.critical_share = -0.1),
    ];
    for (field, change) in cases {
        let mut config = AdaptiveConfig::default();
        change(&mut config);
        let errors = config.validate();
        assert!(
            errors.iter().any(|e| e.field == field),
            "{field}: {errors:?}"
        );
    }
}

const MAX: u32 = crate::limit::MAX_REQUESTS;

#[test]
fn a_share_is_kept_for_critical_calls() {
    // Limit, share, how many default calls it lets through.
    let cases = [
        (20, 0.0, 20),
        (20, 0.1, 18),
        (10, 0.1, 9),
        (11, 0.1, 9),
        (4, 0.5, 2),
        (1, 0.1, 1),
        (2, 0.5, 1),
    ];
    for (limit, share, default) in cases {
        let mut limiter = limiter(|config| {
            (config.min, config.initial) = (1, limit);
            config.critical_share = share;
        });
        let mut held = Vec::new();
        while let Ok(permit) = limiter.try_acquire(at(0), Priority::Default) {
            held.push(permit);
        }
        assert_eq!(held.len(), default, "{limit} {share}");
        while let Ok(permit) = limiter.try_acquire(at(0), Priority::Critical) {
            held.push(permit);
        }
        assert_eq!(held.len(), limit as usize, "{limit} {share}");
        let view = limiter.view();
        assert_eq!((view.limit, view.in_flight), (limit, limit));
        assert_eq!(view.refused, [1, 1]);
        for permit in held {
            limiter.release(permit);
        }
        assert_eq!(limiter.in_flight(), 0);
    }
}

#[test]
fn it_grows_while_it_is_used_and_answers_take_as_long_as_always() {
    let mut limiter = limiter(|_| {});
    let mut now = 0;
    for _ in 0..50 {
        let calls = limiter.limit() as usize;
        now = round(&mut limiter, now, calls, 100);
    }
    assert!(limiter.limit() > 60, "{:?}", limiter.view());
    // Less than half of it is used: it neither grows nor falls, for however long.
    now = round(&mut limiter, now, 12, 100);
    let before = limiter.limit();
    for _ in 0..500 {
        now = round(&mut limiter, now, 12, 100);
    }
    assert_eq!(limiter.limit(), before);
    // Slow answers with so few calls are not for their number.
    for _ in 0..50 {
        now = round(&mut limiter, now, 12, 1000);
    }
    assert_eq!(limiter.limit(), before);
}

#[test]
fn it_falls_no_lower_than_the_minimum() {
    let mut limiter = limiter(|config| config.min = 6);
    let mut now = round(&mut limiter, 0, 20, 100);
    let mut latency = 200;
    for _ in 0..100 {
        let before = limiter.limit;
        now = round(&mut limiter, now, 20, latency);
        assert!(limiter.limit >= before * 0.9 - 0.001, "too steep");
        assert!(limiter.limit() >= 6);
        // Ever slower: it never looks as if fewer calls had been of no use.
        latency = (latency * 11 / 10).min(1_000_000);
    }
    assert!(limiter.limit() <= 20);
}

#[test]
fn idle_time_changes_nothing() {
    let mut limiter = limiter(|_| {});
    let mut now = 0;
    for _ in 0..20 {
        now = round(&mut limiter, now, 20, 100);
    }
    let before = limiter.view();
    for _ in 0..100 {
        now += 3_600_000;
        now = round(&mut limiter, now, 1, 100);
    }
    let after = limiter.view();
    assert_eq!(before.limit, after.limit);
    // Nor is one slow answer after an hour an hour of learning.
    round(&mut limiter, now + 3_600_000, 1, 2000);
    let normal = limiter.view().normal.unwrap();
    assert!(normal < Duration::from_millis(101), "{normal:?}");
}

#[test]
fn what_says_nothing_changes_nothing() {
    type End = fn(&mut Limiter, Permit, u64);
    let cases: [(&str, End); 3] = [
        ("failed", |limiter, permit, _now| limiter.release(permit)),
        ("a stream", |limiter, permit, now| {
            drop(limiter.on_answer(permit, at(now)));
        }),
        ("cancelled at once", |limiter, permit, now| {
            limiter.on_cancel(permit, at(now - 99));
        }),
    ];
    for (what, end) in cases {
        let mut limiter = limiter(|_| {});
        let mut now = 0;
        for _ in 0..10 {
            now = round(&mut limiter, now, 20, 50);
        }
        let before = limiter.view();
        for _ in 0..15 {
            now += 2000;
            let permit = limiter.try_acquire(at(now - 100), Priority::Default);
            end(&mut limiter, permit.unwrap(), now);
        }
        let after = limiter.view();
        assert_eq!(
            (before.limit, before.normal, before.recent),
            (after.limit, after.normal, after.recent),
            "{what}"
        );
    }
}

#[test]
fn callers_that_give_up_late_have_seen_that_it_is_slow() {
    let mut limiter = limiter(|_| {});
    let mut now = 0;
    for _ in 0..10 {
        now = round(&mut limiter, now, 20, 50);
    }
    let before = limiter.limit();
    for _ in 0..20 {
        let calls = limiter.limit();
        let permits: Vec<Permit> = (0..calls)
            .map(|_| limiter.try_acquire(at(now), Priority::Default).unwrap())
            .collect();
        assert!(limiter.try_acquire(at(now), Priority::Default).is_err());
        now += 1000;
        for permit in permits {
            limiter.on_cancel(permit, at(now));
        }
    }
    assert!(limiter.limit() < before, "{:?}", limiter.view());
}

#[test]
fn results_of_calls_from_under_another_limit_do_not_count() {
    let mut limiter = limiter(|_| {});
    let old = limiter.try_acquire(at(0), Priority::Default).unwrap();
    let mut now = round(&mut limiter, 0, 15, 100);
    now = round(&mut limiter, now, 15, 100);
    let before = limiter.view();
    let sample = limiter.on_answer(old, at(now + 5000));
    limiter.on_sample(sample, at(now + 5000));
    assert_eq!(limiter.view().recent, before.recent);
    assert_eq!(limiter.in_flight(), 0);
}

#[test]
fn calls_without_an_answer_are_taken_for_streams() {
    let mut limiter = limiter(|_| {});
    let streams: Vec<Permit> = (0..20)
        .map(|_| limiter.try_acquire(at(5000), Priority::Default).unwrap())
        .collect();
    assert!(limiter.try_acquire(at(30_000), Priority::Default).is_err());
    let call = limiter.try_acquire(at(40_001), Priority::Default).unwrap();
    assert_eq!(limiter.in_flight(), 1);
    // Their ends give back nothing that is not theirs.
    for stream in streams {
        limiter.release(stream);
    }
    assert_eq!(limiter.in_flight(), 1);
    limiter.release(call);
    assert_eq!(limiter.in_flight(), 0);
}

#[test]
fn times_that_cannot_be_change_little() {
    for wrong in [0, 365 * 24 * 3_600_000] {
        let mut limiter = limiter(|_| {});
        let mut now = 0;
        for _ in 0..20 {
            now = round(&mut limiter, now, 20, 50);
        }
        let before = limiter.view();
        let permit = limiter.try_acquire(at(now), Priority::Default).unwrap();
        let others: Vec<Permit> = (0..15)
            .map(|_| limiter.try_acquire(at(now), Priority::Default).unwrap())
            .collect();
        for permit in others {
            let sample = limiter.on_answer(permit, at(now + 50));
            limiter.on_sample(sample, at(now + 50));
        }
        let sample = limiter.on_answer(permit, at(now + wrong));
        limiter.on_sample(sample, at(now + 100));
        let after = limiter.view();
        assert!(after.limit * 10 >= before.limit * 9, "{after:?}");
        let (one, other) = (before.recent.unwrap(), after.recent.unwrap());
        let ratio = one.as_secs_f64() / other.as_secs_f64();
        assert!((0.8..1.25).contains(&ratio), "{before:?} {after:?}");
    }
}

#[test]
fn new_parameters_keep_what_was_learned() {
    let mut limiter = limiter(|_| {});
    let permit = limiter.try_acquire(at(0), Priority::Default).unwrap();
    round(&mut limiter, 0, 15, 100);
    let normal = limiter.view().normal;
    let bounds = |min, max| AdaptiveConfig {
        min,
        max,
        initial: min,
        ..AdaptiveConfig::default()
    };
    limiter.set_config(bounds(50, 60));
    assert_eq!((limiter.limit(), limiter.in_flight()), (50, 1));
    limiter.set_config(bounds(1, 2));
    assert_eq!((limiter.limit(), limiter.in_flight()), (2, 1));
    assert_eq!(limiter.view().normal, normal);
    limiter.release(permit);
    // What no validation lets through breaks nothing.
    limiter.set_config(bounds(9, 0));
    assert_eq!(limiter.limit(), 9);
    limiter.set_config(bounds(0, 0));
    assert_eq!(limiter.limit(), 1);
    assert!(limiter.try_acquire(at(0), Priority::Default).is_ok());
}

/// A server that does so many requests at a time, each of them in about so many milliseconds, and
/// lets the others wait in a queue without end; asked so many times a second.
#[derive(Clone, Copy)]
struct Phase {
    seconds: u64,
    workers: usize,
    millis: f64,
    rate: f64,
    shape: Shape,
}

/// How the time of a request's work is distributed around its mean.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Evenly, from half to one and a half.
    Even,
    Exponential,
    /// With a standard deviation of 1 of the logarithm.
    LogNormal,
    /// With the exponent 1.5: its variance is infinite.
    Pareto,
}

impl Shape {
    const NOISY: [Self; 3] = [Self::Exponential, Self::LogNormal, Self::Pareto];

    /// A time whose mean is 1.
    fn draw(self, random: &mut Random) -> f64 {
        match self {
            Self::Even => 0.5 + random.share(),
            Self::Exponential => -random.share().ln(),
            Self::LogNormal => {
                let (radius, angle) = (random.share(), random.share());
                let normal = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
                (normal - 0.5).exp()
            }
            Self::Pareto => random.share().powf(-1.0 / 1.5) / 3.0,
        }
    }
}

/// What came of a phase, in its last half.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Answers a second.
    answered: f64,
    /// Milliseconds that one took.
    latency: f64,
    /// Milliseconds that 99 of 100 took at most.
    p99: f64,
    /// Share of the requests that were refused.
    refused: f64,
    least: u32,
    most: u32,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    Ends(usize),
}

/// Deterministic: splitmix64.
struct Random(u64);

impl Random {
    /// Above 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }
}

/// The server, and a limit before it where there is one.
struct Simulated<'a> {
    limiter: Option<&'a mut Limiter>,
    random: Random,
    /// When, in which order at the same time, and what.
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    calls: Vec<Option<(Option<Permit>, u64)>>,
    waiting: VecDeque<usize>,
    busy: usize,
}

impl Simulated<'_> {
    fn at(&mut self, when: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((when, self.order, event)));
    }

    fn arrives(&mut self, now: u64, phase: &Phase) {
        let next = -self.random.share().ln() / phase.rate * 1e9;
        self.at(now + next as u64, Event::Arrives);
        let permit = match &mut self.limiter {
            None => None,
            Some(limiter) => {
                let permit = limiter.try_acquire(Instant::from_nanos(now), Priority::Default);
                assert!(permit.is_err() || limiter.in_flight() <= limiter.limit());
                let Ok(permit) = permit else { return };
                Some(permit)
            }
        };
        self.waiting.push_back(self.calls.len());
        self.calls.push(Some((permit, now)));
    }

    /// When the call had begun.
    fn ends(&mut self, call: usize, now: u64) -> u64 {
        self.busy -= 1;
        let (permit, began) = self.calls[call].take().unwrap();
        if let (Some(permit), Some(limiter)) = (permit, &mut self.limiter) {
            let sample = limiter.on_answer(permit, Instant::from_nanos(now));
            limiter.on_sample(sample, Instant::from_nanos(now));
        }
        began
    }

    fn works(&mut self, now: u64, phase: &Phase) {
        while self.busy < phase.workers
            && let Some(call) = self.waiting.pop_front()
        {
            self.busy += 1;
            let work = phase.millis * phase.shape.draw(&mut self.random) * MILLISECOND as f64;
            self.at(now + work as u64, Event::Ends(call));
        }
    }

    fn next(&mut self, end: u64) -> Option<(u64, Event)> {
        let Reverse((now, _, _)) = self.events.peek()?;
        if *now >= end {
            return None;
        }
        let Reverse((now, _, event)) = self.events.pop()?;
        Some((now, event))
    }
}

fn simulate(limiter: Option<&mut Limiter>, phases: &[Phase]) -> Vec<Seen> {
    let mut server = Simulated {
        limiter,
        random: Random(7),
        events: BinaryHeap::new(),
        order: 0,
        calls: Vec::new(),
        waiting: VecDeque::new(),
        busy: 0,
    };
    server.at(0, Event::Arrives);
    let mut start = 0;
    let mut seen = Vec::new();
    for phase in phases {
        let end = start + phase.seconds * 1_000_000_000;
        let middle = u64::midpoint(start, end);
        let (mut took, mut least, mut most) = (Vec::new(), u32::MAX, 0);
        let refused = |server: &Simulated<'_>| {
            let limiter = server.limiter.as_ref();
            limiter.map_or(0, |limiter| limiter.view().refused[0])
        };
        let (before, mut arrived) = (refused(&server), 0u64);
        while let Some((now, event)) = server.next(end) {
            match event {
                Event::Arrives => {
                    arrived += 1;
                    server.arrives(now, phase);
                }
                Event::Ends(call) => {
                    let began = server.ends(call, now);
                    if now >= middle {
                        took.push((now - began) as f64 / MILLISECOND as f64);
                    }
                }
            }
            server.works(now, phase);
            if let Some(limiter) = &server.limiter
                && now >= middle
            {
                least = least.min(limiter.limit());
                most = most.max(limiter.limit());
            }
        }
        seen.push(Seen {
            answered: took.len() as f64 / (phase.seconds as f64 / 2.0),
            latency: took.iter().sum::<f64>() / took.len() as f64,
            p99: {
                took.sort_by(f64::total_cmp);
                took.get(took.len() * 99 / 100).copied().unwrap_or_default()
            },
            refused: (refused(&server) - before) as f64 / arrived as f64,
            least,
            most,
        });
        start = end;
    }
    seen
}

const fn phase(seconds: u64, workers: usize, millis: f64, rate: f64) -> Phase {
    Phase {
        seconds,
        workers,
        millis,
        rate,
        shape: Shape::Even,
    }
}

#[test]
fn an_overloaded_server_does_all_it_can_without_a_queue() {
    let phases = [phase(20, 8, 50.0, 80.0), phase(60, 8, 50.0, 800.0)];
    let without = simulate(None, &phases)[1];
    assert!(without.latency > 10_000.0, "{without:?}");
    let mut limiter = limiter(|_| {});
    let with = simulate(Some(&mut limiter), &phases)[1];
    // Its capacity is 160 a second, of 8 at a time.
    assert!(with.answered > 150.0, "{with:?}");
    assert!(with.latency < 125.0, "{with:?}");
    assert!(with.least >= 9 && with.most <= 24, "{with:?}");
}

#[test]
fn an_overload_of_hours_does_not_become_normal() {
    let mut limiter = limiter(|_| {});
    let phases = [phase(20, 8, 50.0, 80.0), phase(4 * 3600, 8, 50.0, 300.0)];
    let seen = simulate(Some(&mut limiter), &phases)[1];
    assert!(seen.most <= 30 && seen.latency < 125.0, "{seen:?}");
}

#[test]
fn it_follows_a_server_down_and_up_again() {
    let mut limiter = limiter(|_| {});
    let phases = [
        phase(20, 8, 50.0, 80.0),
        phase(40, 8, 50.0, 800.0),
        // Seven of eight workers hang.
        phase(120, 1, 50.0, 800.0),
        phase(40, 8, 50.0, 800.0),
    ];
    let seen = simulate(Some(&mut limiter), &phases);
    let (down, up) = (seen[2], seen[3]);
    assert!(
        down.least >= 4 && down.most <= 8 && down.latency < 500.0,
        "{down:?}"
    );
    assert!(down.answered > 18.0, "{down:?}");
    assert!(up.answered > 150.0 && up.latency < 150.0, "{up:?}");
}

#[test]
fn a_server_that_is_slower_for_good_is_not_taken_for_an_overloaded_one() {
    let mut limiter = limiter(|_| {});
    let phases = [
        phase(20, 100, 10.0, 5000.0),
        phase(20, 100, 10.0, 30_000.0),
        // As many at a time as before, but each of them takes three times as long.
        phase(40, 100, 30.0, 30_000.0),
    ];
    let seen = simulate(Some(&mut limiter), &phases);
    assert!(
        seen[1].answered > 9_500.0 && seen[1].most < 250,
        "{:?}",
        seen[1]
    );
    assert!(seen[2].answered > 3_100.0, "{:?}", seen[2]);
    assert!(seen[2].least >= 95 && seen[2].most < 350, "{:?}", seen[2]);
}

#[test]
fn load_below_the_capacity_is_never_refused() {
    let mut limiter = limiter(|_| {});
    simulate(Some(&mut limiter), &[phase(600, 50, 20.0, 250.0)]);
    assert_eq!(limiter.view().refused, [0, 0]);
}

/// Ordinary variance of answers is no queue, whatever its distribution, for as long as it takes.
#[test]
fn variance_is_not_taken_for_overload() {
    // A server that does everything at the same time, and servers with a queue that are half and
    // three quarters busy; seconds, workers, milliseconds, requests a second.
    let loads = [
        (600, 100_000, 100.0, 100.0),
        (600, 100_000, 1000.0, 5.0),
        (200, 100_000, 10.0, 2000.0),
        (600, 50, 20.0, 1250.0),
        (600, 20, 50.0, 300.0),
    ];
    for shape in Shape::NOISY {
        for (seconds, workers, millis, rate) in loads {
            let mut limiter = limiter(|_| {});
            let phase = Phase {
                shape,
                ..phase(seconds, workers, millis, rate)
            };
            let seen = simulate(Some(&mut limiter), &[phase])[0];
            let what = format!("{shape:?} {workers} {millis} ms {rate}/s: {seen:?}");
            assert!(seen.refused <= 0.01, "{what}");
            // As many are under way on average.
            let busy = rate * millis / 1000.0;
            assert!(f64::from(seen.least) >= busy * 1.2, "{what}");
        }
    }
}

/// Half, twice and five times what it can, and then half again, with answers that vary.
#[test]
fn overload_is_found_among_variance_and_passes() {
    for shape in [Shape::Even, Shape::Exponential, Shape::LogNormal] {
        let of = |seconds, rate| Phase {
            shape,
            ..phase(seconds, 8, 50.0, rate)
        };
        // Its capacity is 160 a second.
        let phases = [
            of(60, 80.0),
            of(20, 320.0),
            of(40, 320.0),
            of(20, 800.0),
            of(40, 800.0),
            of(60, 80.0),
        ];
        let mut limiter = limiter(|_| {});
        let seen = simulate(Some(&mut limiter), &phases);
        let (worst, best) = (simulate(None, &phases[..3])[2], seen[0]);
        for (index, seen) in seen.iter().enumerate().take(5).skip(1) {
            let what = format!("{shape:?} {index}: {seen:?}, without {worst:?}, at ease {best:?}");
            assert!(seen.answered >= 144.0, "{what}");
            // No more than so many wait for each that is done, 10 s after the load came.
            assert!(seen.latency <= 250.0, "{what}");
            assert!(seen.p99 <= best.p99 + 400.0, "{what}");
        }
        let after = seen[5];
        assert!(
            after.refused <= 0.01 && after.latency < 80.0,
            "{shape:?}: {after:?}"
        );
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask(bool),
    Answer(usize, bool),
    Cancel(usize),
    Release(usize),
    Wait(u64),
    Bounds(u32, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<bool>().prop_map(Step::Ask),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(n, told)| Step::Answer(n, told)),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => any::<usize>().prop_map(Step::Release),
        2 => prop_oneof![0..200u64, 1_000..60_000u64, Just(u64::MAX / MILLISECOND / 1000)]
            .prop_map(Step::Wait),
        1 => (1..50u32, 0..50u32).prop_map(|(min, more)| Step::Bounds(min, min + more)),
    ]
}

proptest! {
    #[test]
    fn never_more_than_the_limit_and_everything_comes_back(
        steps in proptest::collection::vec(step(), 0..400),
        share in 0.0..=MAX_CRITICAL_SHARE,
    ) {
        let config = AdaptiveConfig { critical_share: share, ..AdaptiveConfig::default() };
        let (mut limiter, mut now) = (Limiter::new(config), 0u64);
        let (mut held, mut min, mut max) = (Vec::new(), config.min, config.max);
        for step in steps {
            match step {
                Step::Ask(critical) => {
                    let priority = if critical { Priority::Critical } else { Priority::Default };
                    let allowed = limiter.limit();
                    match limiter.try_acquire(at(now), priority) {
                        Ok(permit) => {
                            held.push(permit);
                            prop_assert!(limiter.in_flight() <= allowed);
                        }
                        Err(rejected) => {
                            prop_assert_eq!(rejected.limit, allowed);
                            let kept = allowed - (allowed / 2).min(allowed - 1);
                            prop_assert!(rejected.in_flight >= kept.min(allowed / 2));
                            prop_assert!(!critical || rejected.in_flight >= allowed);
                        }
                    }
                }
                Step::Answer(which, told) if !held.is_empty() => {
                    let permit = held.swap_remove(which % held.len());
                    let sample = limiter.on_answer(permit, at(now));
                    if told {
                        limiter.on_sample(sample, at(now));
                    }
                }
                Step::Cancel(which) if !held.is_empty() => {
                    let permit = held.swap_remove(which % held.len());
                    limiter.on_cancel(permit, at(now));
                }
                Step::Release(which) if !held.is_empty() => {
                    limiter.release(held.swap_remove(which % held.len()));
                }
                Step::Answer(..) | Step::Cancel(_) | Step::Release(_) => {}
                Step::Wait(millis) => now = now.saturating_add(millis).min(1 << 40),
                Step::Bounds(lower, upper) => {
                    (min, max) = (lower, upper);
                    limiter.set_config(AdaptiveConfig { min, max, initial: min, ..config });
                }
            }
            prop_assert!((min..=max).contains(&limiter.limit()), "{:?}", limiter);
            prop_assert!(limiter.in_flight() as usize <= held.len());
        }
        for permit in held {
            limiter.release(permit);
        }
        prop_assert_eq!(limiter.in_flight(), 0);
    }

    #[test]
    fn any_latencies_leave_it_within_its_bounds(
        latencies in proptest::collection::vec(prop_oneof![0..5u64, 1..5_000u64, any::<u64>()], 1..300),
    ) {
        let (mut limiter, mut now) = (limiter(|_| {}), 0u64);
        let mut seen = BTreeSet::new();
        for latency in latencies {
            let permits: Vec<Permit> = (0..20)
                .map_while(|_| limiter.try_acquire(Instant::from_nanos(now), Priority::Critical).ok())
                .collect();
            let end = Instant::from_nanos(now.saturating_add(latency));
            now = now.saturating_add(latency.min(10_000_000_000)).saturating_add(20_000_000);
            for permit in permits {
                let sample = limiter.on_answer(permit, end);
                limiter.on_sample(sample, Instant::from_nanos(now));
            }
            let config = *limiter.config();
            prop_assert!(limiter.limit.is_finite());
            prop_assert!((config.min..=config.max).contains(&limiter.limit()));
            seen.insert(limiter.limit());
        }
        prop_assert!(!seen.is_empty());
    }
}
