//! Costs, and distributions within bounds.

use std::time::Duration;

use super::*;
use crate::time::Instant;
use proptest::prelude::*;

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn ewma() -> PeakEwma {
    PeakEwma::new(Duration::from_secs(10), Duration::from_millis(30))
}

/// A request that ends at this time, after so many milliseconds.
fn finish(load: &mut PeakEwma, latency: u64, failed: bool, millis: u64) {
    let request = load.on_start(at(millis - latency));
    load.on_finish(request, failed, at(millis));
}

/// A request that its caller gives up at this time, after so many milliseconds.
fn give_up(load: &mut PeakEwma, waited: u64, millis: u64) {
    let request = load.on_start(at(millis - waited));
    load.on_cancel(request, at(millis));
}

#[test]
fn peaks_are_taken_at_once_and_forgotten_slowly() {
    let mut load = ewma();
    finish(&mut load, 500, false, 1000);
    assert_eq!(load.latency(at(1000)), Duration::from_millis(500));
    finish(&mut load, 1, false, 1010);
    assert!(load.latency(at(1010)) > Duration::from_millis(490));
    assert!(load.latency(at(60_000)) < Duration::from_millis(5));
}

#[test]
fn fast_failures_do_not_attract() {
    let (mut failing, mut slow) = (ewma(), ewma());
    finish(&mut failing, 0, true, 1000);
    finish(&mut slow, 200, false, 1000);
    assert!(failing.score(at(1000)) > slow.score(at(1000)));
}

#[test]
fn requests_under_way_count_and_cancelled_ones_do_not() {
    let mut load = ewma();
    finish(&mut load, 5, false, 1000);
    let idle = load.score(at(1000));
    let held = [load.on_start(at(1000)), load.on_start(at(1000))];
    assert!(load.score(at(1000)) > idle * 2.9);
    for request in held {
        load.on_cancel(request, at(1000));
    }
    assert_eq!(load.in_flight(), 0);
    assert!((load.score(at(1000)) - idle).abs() < 1e-6);
}

#[test]
fn the_time_that_callers_have_waited_is_the_least_that_it_takes() {
    let mut load = ewma();
    finish(&mut load, 5, false, 1000);
    give_up(&mut load, 2000, 3000);
    assert_eq!(load.latency(at(3000)), Duration::from_millis(2000));
    // It only raises: neither one that was given up early nor one as long as that says it is less.
    let before = load.latency(at(4000));
    give_up(&mut load, 100, 4000);
    assert_eq!(load.latency(at(4000)), before);
    // Forgotten like any other.
    assert!(load.latency(at(60_000)) < Duration::from_millis(10));
    // One that never answered is not tried by everybody, however soon callers give up.
    let mut silent = ewma();
    give_up(&mut silent, 1, 1000);
    assert_eq!(silent.latency(at(1000)), Duration::from_millis(30));
    assert!(silent.score(at(1000)) > 1e6);
}

#[test]
fn unanswered_requests_count_by_their_age() {
    let mut load = ewma();
    finish(&mut load, 5, false, 1000);
    let mut hung = load.on_start(at(1000));
    assert_eq!(load.latency(at(1003)).as_millis(), 4, "still as it was");
    assert_eq!(load.latency(at(3000)), Duration::from_millis(2000));
    let second = load.on_start(at(3000));
    assert_eq!(
        load.latency(at(3000)),
        Duration::from_millis(1000),
        "on average"
    );
    // What waits in a queue of our own waits for nobody.
    load.on_queued(&mut hung);
    assert_eq!(load.latency(at(4000)), Duration::from_millis(1000));
    load.on_sent(&mut hung, at(4000));
    assert_eq!(load.latency(at(5000)), Duration::from_millis(1500));
    load.on_cancel(second, at(5000));
    // Once the answer has begun, the rest is not latency.
    load.on_answer(&mut hung, at(5000));
    assert_eq!(hung.waited(at(9000)), Duration::from_millis(1000));
    load.on_finish(hung, false, at(65_000));
    assert!(load.latency(at(65_000)) < Duration::from_millis(1010));
    assert_eq!(load.in_flight(), 0);
    // Given up in the queue, it says nothing.
    let mut fresh = ewma();
    let mut queued = fresh.on_start(at(0));
    fresh.on_queued(&mut queued);
    fresh.on_cancel(queued, at(60_000));
    assert!(
        fresh.score(at(60_000)) < 2.0,
        "as if it had never been asked"
    );
}

#[test]
fn a_quota_makes_an_endpoint_dearer_for_its_route_and_a_while() {
    let mut load = ewma();
    finish(&mut load, 20, false, 1000);
    let latency = load.latency(at(1000));
    for _ in 0..100 {
        let request = load.on_start(at(1000));
        load.on_quota(request, 7, at(1000));
    }
    // Refused in no time: that is not how long answers take, and it is no failure.
    assert_eq!((load.latency(at(1000)), load.in_flight()), (latency, 0));
    assert!((load.quota_bias(7, at(1000)) - 4.0).abs() < 1e-9);
    assert!((load.quota_bias(7, at(6000)) - 2.5).abs() < 1e-9);
    assert_eq!(load.quota_bias(7, at(11_000)), 1.0);
    assert_eq!(load.quota_bias(8, at(1000)), 1.0, "another route");
    // Of more routes than there is room for the oldest are forgotten.
    for route in 8..20 {
        let request = load.on_start(at(1000 + route));
        load.on_quota(request, route, at(1000 + route));
    }
    assert_eq!(load.quota_bias(7, at(1100)), 1.0);
    assert!(load.quota_bias(19, at(1100)) > 3.9);
}

#[test]
fn p2c_is_uniform_without_differences_and_prefers_the_cheaper() {
    const ROUNDS: u64 = 40_000;
    let count = |excluded: &dyn Fn(usize) -> bool, score: &dyn Fn(usize) -> f64| {
        let mut counts = [0u64; 5];
        for round in 0..ROUNDS {
            let random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            counts[pick_p2c(5, random, excluded, score).unwrap()] += 1;
        }
        counts
    };
    for share in count(&|_| false, &|_| 1.0) {
        assert!((7_400..8_600).contains(&share), "{share}");
    }
    let counts = count(&|_| false, &|index| if index == 3 { 9.0 } else { 1.0 });
    assert_eq!(counts[3], 0, "the dearest of two is never taken");
    let counts = count(&|index| index < 3, &|_| 1.0);
    assert_eq!(counts[..3], [0, 0, 0]);
    assert!((18_500..21_500).contains(&counts[4]), "{counts:?}");
}

#[test]
fn p2c_at_the_edges() {
    assert_eq!(pick_p2c(0, 1, |_| false, |_| 1.0), None);
    assert_eq!(pick_p2c(1, 1, |_| false, |_| 1.0), Some(0));
    assert_eq!(pick_p2c(3, 1, |_| true, |_| 1.0), None);
    for random in 0..100 {
        assert_eq!(
            pick_p2c(100, random, |index| index != 77, |_| 1.0),
            Some(77)
        );
    }
}

#[test]
fn a_new_endpoint_is_tried_by_one_request_at_a_time() {
    let late = at(86_400_000);
    let mut fresh = ewma();
    let mut known = ewma();
    finish(&mut known, 5, false, 86_400_000);
    assert!(fresh.score(late) < known.score(late), "it is tried");
    let first = fresh.on_start(late);
    assert!(fresh.score(late) > known.score(late), "by one");
    assert_eq!(fresh.latency(late), Duration::from_millis(30));
    let later = late + Duration::from_millis(2);
    fresh.on_finish(first, false, later);
    assert_eq!(fresh.latency(later), Duration::from_millis(2));
}

#[test]
fn a_clock_read_earlier_does_not_turn_time_back() {
    let mut load = ewma();
    finish(&mut load, 10, false, 2000);
    finish(&mut load, 10, false, 1000);
    assert_eq!(load.latency(at(2000)), Duration::from_millis(10));
}

/// Picks of each endpoint in so many rounds.
fn counts<const N: usize>(rounds: u64, pick: impl Fn(u64) -> Option<usize>) -> [u64; N] {
    let mut counts = [0; N];
    for round in 0..rounds {
        counts[pick(round).unwrap()] += 1;
    }
    counts
}

const fn spread(round: u64) -> u64 {
    round.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[test]
fn random_goes_by_weight() {
    let weights = [100, 300, 0, 600];
    let found = counts::<4>(100_000, |round| {
        pick_random(4, spread(round), |_| false, |index| weights[index])
    });
    for (found, share) in found.into_iter().zip([10_000i64, 30_000, 0, 60_000]) {
        assert!((found as i64 - share).abs() < 700, "{found} {share}");
    }
    let found = counts::<4>(1000, |round| {
        pick_random(4, spread(round), |index| index == 3, |index| weights[index])
    });
    assert_eq!(found[3], 0);
}

#[test]
fn equal_endpoints_take_turns_and_an_excluded_ones_turns_go_to_all() {
    let turns: Vec<_> = (0..6)
        .map(|turn| pick_round_robin(3, turn, |_| false, |_| 100).unwrap())
        .collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    let found = counts::<4>(300, |turn| {
        pick_round_robin(4, turn, |index| index == 1, |_| 100)
    });
    assert_eq!(found, [100, 0, 100, 100]);
}

#[test]
fn weighted_turns_are_spread() {
    let weights = [500, 100, 100];
    let turns: Vec<_> = (0..7)
        .map(|turn| pick_round_robin(3, turn, |_| false, |index| weights[index]).unwrap())
        .collect();
    assert_eq!(turns.iter().filter(|index| **index == 0).count(), 5);
    let longest = turns.chunk_by(|a, b| a == b).map(<[usize]>::len).max();
    assert!(longest < Some(5), "{turns:?}");
}

/// Available, score, requests under way, weight.
type Fixed = (bool, f64, u32, u32);

impl Candidates for Vec<Fixed> {
    fn count(&self) -> usize {
        self.len()
    }
    fn excluded(&self, index: usize) -> bool {
        !self[index].0
    }
    fn score(&self, index: usize) -> f64 {
        self[index].1
    }
    fn in_flight(&self, index: usize) -> u32 {
        self[index].2
    }
    fn weight(&self, index: usize) -> u32 {
        self[index].3
    }
    fn heaviest(&self) -> Option<u32> {
        let heaviest = self.iter().map(|candidate| candidate.3).max();
        let same = self.iter().all(|candidate| Some(candidate.3) == heaviest);
        heaviest.filter(|_| !same)
    }
}

const POLICIES: [Policy; 4] = [
    Policy::PeakEwma,
    Policy::LeastRequest,
    Policy::RoundRobin,
    Policy::Random,
];

#[test]
fn every_policy_picks_by_its_own_measure() {
    let two = vec![(true, 1.0, 9, 100), (true, 2.0, 1, 100)];
    assert_eq!(Policy::PeakEwma.pick(&two, 7, 0), Some(0));
    assert_eq!(Policy::LeastRequest.pick(&two, 7, 0), Some(1));
    assert_eq!(Policy::RoundRobin.pick(&two, 7, 1), Some(1));
}

#[test]
fn least_request_prefers_the_idle() {
    let three = vec![
        (true, 1.0, 9, 100),
        (true, 1.0, 0, 100),
        (true, 1.0, 9, 100),
    ];
    let found = counts::<3>(30_000, |round| {
        Policy::LeastRequest.pick(&three, spread(round), 0)
    });
    assert!((19_000..21_000).contains(&found[1]), "{found:?}");
}

/// Endpoints at equal cost get their shares, however many there are and whatever is excluded; at
/// other costs the cheaper gets more.
#[test]
fn two_choices_go_by_weight() {
    let rounds = 30_000;
    for policy in [Policy::PeakEwma, Policy::LeastRequest] {
        let share = |candidates: &Vec<Fixed>| {
            let picks = (0..rounds).map(|round| policy.pick(candidates, spread(round), 0).unwrap());
            let mut shares = vec![0.0; candidates.len()];
            picks.for_each(|pick| shares[pick] += 1.0 / rounds as f64);
            shares
        };
        let idle = |weights: &[u32]| {
            weights
                .iter()
                .map(|w| (true, 5.0, 0, *w))
                .collect::<Vec<_>>()
        };
        for weights in [
            &[100, 300][..],
            &[100, 100, 100, 100, 100, 100, 100, 100, 100, 1000],
            &[1, 1000, 1000],
            &[1, 2, 3, 4, 5],
        ] {
            let total = f64::from(weights.iter().sum::<u32>());
            for (found, weight) in share(&idle(weights)).into_iter().zip(weights) {
                let expected = f64::from(*weight) / total;
                assert!((found - expected).abs() < 0.01, "{found} of {weights:?}");
            }
        }
        // One of many has nearly all the weight: it is hardly ever drawn by luck.
        let mut many = idle(&[1; 200]);
        many[77].3 = 1000;
        let found = share(&many)[77];
        assert!((found - 1000.0 / 1199.0).abs() < 0.01, "{found}");
        let mut without = idle(&[100, 300, 600]);
        without[2].0 = false;
        let found = share(&without);
        assert_eq!(found[2], 0.0);
        assert!((found[1] - 0.75).abs() < 0.01, "{found:?}");
        // Three times the weight bears three times as much at the same cost.
        let busy = share(&vec![(true, 11.0, 10, 100), (true, 31.0, 30, 300)]);
        assert!((busy[1] - 0.75).abs() < 0.01, "{busy:?}");
        let dear = share(&vec![(true, 10.0, 9, 100), (true, 1.0, 0, 300)]);
        assert!(dear[0] < 0.02, "{dear:?}");
    }
}

proptest! {
    /// Every policy finds an available endpoint exactly when there is one.
    #[test]
    fn never_an_excluded_one(
        available in proptest::collection::vec((any::<bool>(), 1u32..1000), 0..40),
        random: u64,
        turn: u64,
    ) {
        let candidates: Vec<Fixed> = available.iter()
            .map(|(up, weight)| (*up, f64::from(*weight), *weight, *weight))
            .collect();
        for policy in POLICIES {
            match policy.pick(&candidates, random, turn) {
                Some(index) => prop_assert!(candidates[index].0),
                None => prop_assert!(candidates.iter().all(|candidate| !candidate.0)),
            }
        }
    }

    /// Over one period each endpoint gets exactly its share.
    #[test]
    fn weighted_round_robin_is_exact(weights in proptest::collection::vec(0u32..20, 1..8), from: u32) {
        let divisor = weights.iter().fold(0, |a, w| gcd(u64::from(*w), a));
        prop_assume!(divisor > 0);
        let turns = weights.iter().map(|w| u64::from(*w)).sum::<u64>() / divisor;
        let mut found = vec![0; weights.len()];
        for turn in u64::from(from)..u64::from(from) + turns {
            found[pick_round_robin(weights.len(), turn, |_| false, |i| weights[i]).unwrap()] += 1;
        }
        let expected: Vec<u64> = weights.iter().map(|w| u64::from(*w) / divisor).collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn new_endpoints_and_zones_have_their_shares() {
    let second = Duration::from_secs(1);
    for (millis, share) in [(0, 0.1), (100, 0.1), (500, 0.5), (1000, 1.0), (9000, 1.0)] {
        assert_eq!(
            slow_start_share(Duration::from_millis(millis), second),
            share
        );
    }
    let whole = (10, 10);
    for (zone, others, share) in [
        ((0, 0), whole, 0.0),
        ((0, 4), whole, 0.0),
        ((1, 4), whole, 0.35),
        ((3, 4), whole, 1.0),
        ((4, 4), whole, 1.0),
        // Nobody else, or nobody else who is well: there is nowhere to go.
        ((1, 4), (0, 0), 1.0),
        ((1, 4), (0, 8), 1.0),
        ((0, 4), (0, 8), 1.0),
        ((0, 0), (0, 8), 0.0),
        // Both sides have lost most: each gets its part.
        ((1, 4), (1, 4), 0.5),
        ((1, 4), (1, 8), 2.0 / 3.0),
        // A heavy endpoint that is lost is more than a light one.
        ((100, 1000), whole, 0.14),
    ] {
        let capacity = |(healthy, all)| Capacity { healthy, all };
        let found = zone_share(capacity(zone), capacity(others));
        assert!((found - share).abs() < 1e-9, "{zone:?} {others:?}: {found}");
    }
    let mut capacity = Capacity::default();
    capacity.add(900, false);
    capacity.add(100, true);
    let (healthy, all) = (100, 1000);
    assert_eq!(capacity, Capacity { healthy, all });
}
