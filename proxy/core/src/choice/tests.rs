//! Who is chosen, of endpoints of every kind.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::balance::Policy;
use crate::health::{Check, HealthCheck};
use proptest::prelude::*;

/// An endpoint as a test describes it.
#[derive(Debug, Clone, Copy)]
struct One {
    standing: Standing,
    tried: bool,
    reachable: bool,
    zone: &'static str,
}

const WELL: One = One {
    standing: Standing::Available,
    tried: false,
    reachable: true,
    zone: "",
};

/// Out by calls since so many seconds after the origin.
const fn open(secs: u64) -> One {
    let since = Instant::from_nanos(secs * 1_000_000_000);
    One {
        standing: Standing::Open { since },
        ..WELL
    }
}

/// Out by checks.
const fn unhealthy(secs: u64) -> One {
    let since = Instant::from_nanos(secs * 1_000_000_000);
    One {
        standing: Standing::Unhealthy { since },
        ..WELL
    }
}

const fn tried(one: One) -> One {
    One { tried: true, ..one }
}

const fn unreachable(one: One) -> One {
    One {
        reachable: false,
        ..one
    }
}

const fn zone(zone: &'static str, one: One) -> One {
    One { zone, ..one }
}

struct All<'a>(&'a [One]);

impl Candidates for All<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn score(&self, _index: usize) -> f64 {
        1.0
    }
    fn in_flight(&self, _index: usize) -> u32 {
        0
    }
    fn weight(&self, _index: usize) -> u32 {
        100
    }
}

impl Endpoints for All<'_> {
    fn standing(&self, index: usize) -> Standing {
        self.0[index].standing
    }
    fn is_tried(&self, index: usize) -> bool {
        self.0[index].tried
    }
    fn is_reachable(&self, index: usize) -> bool {
        self.0[index].reachable
    }
    fn zone(&self, index: usize) -> &str {
        self.0[index].zone
    }
}

fn policy(change: impl FnOnce(&mut TrafficPolicy)) -> TrafficPolicy {
    let mut policy = TrafficPolicy::default();
    change(&mut policy);
    policy
}

/// Everyone who is ever chosen, and whether past a breaker.
fn chosen(policy: &TrafficPolicy, all: &[One], last_resort: bool) -> (BTreeSet<usize>, bool) {
    let table = balance_table(policy, all.len());
    let mut past = BTreeSet::new();
    let choices = (0..400u64).filter_map(|turn| {
        let random = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let terms = Terms {
            policy,
            key: table.as_ref().map(|table| (random, table)),
            zone: "a",
            random,
            turn,
            last_resort,
        };
        let choice = choose(&All(all), &terms)?;
        past.insert(choice.past_breaker);
        Some(choice.index)
    });
    let indices = choices.collect();
    assert!(past.len() <= 1, "one preference at a time: {all:?}");
    (indices, past.contains(&true))
}

fn balance_table(policy: &TrafficPolicy, count: usize) -> Option<Table> {
    let names: Vec<String> = (0..count).map(|index| format!("i{index}")).collect();
    let named: Vec<(&str, u32)> = names.iter().map(|name| (&**name, 100)).collect();
    Table::new(policy.balancing, &named)
}

const ALL_POLICIES: [Policy; 6] = [
    Policy::PeakEwma,
    Policy::LeastRequest,
    Policy::RoundRobin,
    Policy::Random,
    Policy::RingHash,
    Policy::Maglev,
];

#[track_caller]
fn check(change: fn(&mut TrafficPolicy), all: &[One], expected: &[usize], past_breaker: bool) {
    for balancing in ALL_POLICIES {
        let mut policy = policy(change);
        policy.balancing = balancing;
        let (found, past) = chosen(&policy, all, true);
        let expected: BTreeSet<usize> = expected.iter().copied().collect();
        assert_eq!(found, expected, "{balancing:?}");
        assert_eq!(past, past_breaker, "{balancing:?}");
    }
}

fn default(_policy: &mut TrafficPolicy) {}

#[test]
fn in_order_of_preference() {
    // Well and untried; well and tried; those without a way to them; and last who is out.
    check(default, &[WELL, WELL, tried(WELL), open(0)], &[0, 1], false);
    check(
        default,
        &[open(0), tried(WELL), tried(open(0))],
        &[1],
        false,
    );
    check(
        default,
        &[tried(WELL), tried(WELL), open(0)],
        &[0, 1],
        false,
    );
    check(
        default,
        &[open(0), unreachable(WELL), tried(WELL)],
        &[2],
        false,
    );
    check(default, &[open(0), unreachable(WELL), open(0)], &[1], false);
    let both = [open(0), unreachable(tried(WELL)), unreachable(WELL)];
    check(default, &both, &[2], false);
    check(
        default,
        &[open(0), tried(open(0)), unhealthy(0)],
        &[0, 2],
        true,
    );
    check(
        default,
        &[tried(open(0)), tried(unhealthy(0))],
        &[0, 1],
        true,
    );
    // The only one.
    check(default, &[tried(open(0))], &[0], true);
    check(default, &[], &[], false);
}

#[test]
fn a_hedge_has_no_last_resort() {
    let policy = policy(default);
    let cases: [(&[One], &[usize]); 4] = [
        (&[open(0), unhealthy(0)], &[]),
        (&[open(0)], &[]),
        (&[tried(WELL), open(0)], &[0]),
        (&[tried(WELL), WELL], &[1]),
    ];
    for (all, expected) in cases {
        let expected: BTreeSet<usize> = expected.iter().copied().collect();
        assert_eq!(chosen(&policy, all, false), (expected, false), "{all:?}");
    }
}

#[test]
fn observed_breakers_keep_nothing_away_and_checks_do() {
    let observe = |policy: &mut TrafficPolicy| policy.breaker_mode = BreakerMode::Observe;
    check(observe, &[WELL, open(0), unhealthy(0)], &[0, 1, 2], true);
    let checked = |policy: &mut TrafficPolicy| {
        policy.breaker_mode = BreakerMode::Observe;
        policy.health_check = Some(Arc::new(HealthCheck::new(Check::Tcp)));
    };
    check(checked, &[WELL, open(0), unhealthy(0)], &[0, 1], true);
}

#[test]
fn ejecting_stops_at_the_share() {
    let half = |policy: &mut TrafficPolicy| policy.max_ejected_share = 0.5;
    check(half, &[open(1), WELL, open(2), WELL], &[1, 3], false);
    // One more than two of four: those that went out first stay out.
    check(half, &[open(3), open(1), open(2), WELL], &[0, 3], true);
    check(half, &[unhealthy(1), open(2), open(3), WELL], &[2, 3], true);
    check(half, &[open(4), open(1), open(3), open(2)], &[0, 2], true);
    // At the same time: the first in the list.
    check(half, &[open(1), open(1), open(1), WELL], &[2, 3], true);
    // A share that is less than one of them.
    let fifth = |policy: &mut TrafficPolicy| policy.max_ejected_share = 0.2;
    check(fifth, &[open(1), WELL], &[0, 1], true);
    // Who is readmitted was not tried, which comes before one that is well and was.
    check(half, &[open(3), open(1), open(2), tried(WELL)], &[0], true);
}

#[test]
fn panic_disregards_all_of_them() {
    let panics = |policy: &mut TrafficPolicy| policy.panic_threshold = 0.5;
    check(panics, &[open(1), WELL, open(2), WELL], &[1, 3], false);
    check(
        panics,
        &[open(1), unhealthy(1), open(2), WELL],
        &[0, 1, 2, 3],
        true,
    );
    // The stricter of the two holds.
    let both = |policy: &mut TrafficPolicy| {
        policy.panic_threshold = 0.9;
        policy.max_ejected_share = 0.5;
    };
    check(both, &[open(1), WELL, WELL, WELL], &[0, 1, 2, 3], true);
}

#[test]
fn the_zone_comes_first_as_long_as_somebody_is_there() {
    let prefer = |policy: &mut TrafficPolicy| policy.prefer_zone = true;
    let (own, other) = (zone("a", WELL), zone("b", WELL));
    check(default, &[own, other], &[0, 1], false);
    check(prefer, &[own, own, other], &[0, 1], false);
    check(prefer, &[own, other, zone("", WELL)], &[0], false);
    // Tried in the zone: an untried one elsewhere comes before it.
    check(prefer, &[tried(own), other, other], &[1, 2], false);
    check(prefer, &[tried(own), tried(other)], &[0], false);
    check(prefer, &[zone("a", open(0)), other], &[1], false);
    check(prefer, &[other, other], &[0, 1], false);
    // Half of the zone's are out: 70 % stays.
    let half = [zone("a", open(0)), own, other, other];
    check(prefer, &half, &[1, 2, 3], false);
    // The last resort stays in the zone.
    check(
        prefer,
        &[zone("a", open(0)), zone("b", open(0))],
        &[0],
        true,
    );
}

/// Any endpoint of any kind.
fn any_one() -> impl Strategy<Value = One> {
    let standing = prop_oneof![
        3 => Just(WELL.standing),
        1 => (0u64..5).prop_map(|secs| open(secs).standing),
        1 => (0u64..5).prop_map(|secs| unhealthy(secs).standing),
    ];
    let zones = prop_oneof![Just(""), Just("a"), Just("b")];
    (standing, any::<bool>(), any::<bool>(), zones).prop_map(
        |(standing, tried, reachable, zone)| One {
            standing,
            tried,
            reachable,
            zone,
        },
    )
}

proptest! {
    /// Somebody is chosen where there is anybody; nobody who is out while one is well, and nobody
    /// again while another one is well and was not asked.
    #[test]
    fn never_one_that_is_worse_than_another(
        all in proptest::collection::vec(any_one(), 1..8),
        share in prop_oneof![Just(1.0), 0.1..1.0],
        panic_threshold in prop_oneof![Just(0.0), 0.0..1.0],
        prefer_zone: bool,
        random: u64,
    ) {
        let policy = TrafficPolicy {
            max_ejected_share: share,
            panic_threshold,
            prefer_zone,
            ..TrafficPolicy::default()
        };
        let terms = Terms { policy: &policy, key: None, zone: "a", random, turn: 0, last_resort: true };
        let choice = choose(&All(&all), &terms).unwrap();
        let guard = Guard::of(&policy, all.len(), |index| all[index].standing);
        let out = |index: usize| guard.excludes(index, all[index].standing);
        let rank = |index: usize| {
            let one = &all[index];
            match (out(index), one.reachable, one.tried) {
                (false, true, false) => 0,
                (false, true, true) => 1,
                (false, false, false) => 2,
                (false, false, true) => 3,
                (true, _, false) => 4,
                (true, _, true) => 5,
            }
        };
        let best = (0..all.len()).map(rank).min().unwrap();
        prop_assert!(all.len() == 1 || rank(choice.index) == best, "{choice:?} of {all:?}");
        // Never more are kept out than the share allows, where it is not panic.
        let kept = (0..all.len()).filter(|index| out(*index)).count();
        prop_assert!(share >= 1.0 || kept <= most_ejected(all.len(), share));
        // Whoever is readmitted went out no earlier than anybody who stays out.
        if guard != Guard::Disregarded {
            let since = |index: usize| match all[index].standing {
                Standing::Available => None,
                Standing::Open { since } | Standing::Unhealthy { since } => Some(since),
            };
            let last_kept = (0..all.len()).filter(|index| out(*index)).filter_map(since).max();
            let first_back = (0..all.len()).filter(|index| !out(*index)).filter_map(since).min();
            prop_assert!(first_back.is_none_or(|back| last_kept.is_none_or(|kept| kept <= back)));
        }
    }
}

/// One that is large and well needs no look at all of its endpoints.
#[test]
fn a_choice_among_many_looks_at_few() {
    struct Counting(std::cell::Cell<usize>);
    impl Candidates for Counting {
        fn count(&self) -> usize {
            100_000
        }
        fn score(&self, _index: usize) -> f64 {
            1.0
        }
        fn in_flight(&self, _index: usize) -> u32 {
            0
        }
        fn weight(&self, _index: usize) -> u32 {
            100
        }
    }
    impl Endpoints for Counting {
        fn standing(&self, _index: usize) -> Standing {
            self.0.set(self.0.get() + 1);
            Standing::Available
        }
        fn is_tried(&self, _index: usize) -> bool {
            false
        }
        fn zone(&self, _index: usize) -> &str {
            ""
        }
    }
    let (policy, many) = (TrafficPolicy::default(), Counting(std::cell::Cell::new(0)));
    for random in 0..100 {
        let terms = Terms {
            policy: &policy,
            key: None,
            zone: "a",
            random,
            turn: 0,
            last_resort: true,
        };
        assert!(choose(&many, &terms).is_some());
    }
    assert!(many.0.get() <= 300, "{} looks", many.0.get());
}
