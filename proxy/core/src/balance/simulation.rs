//! Shares over time, with latencies, load and failures: requests come at random, endpoints answer
//! after a random time, and what is picked next depends on what was seen before.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use super::*;
use crate::time::Instant;

/// An endpoint as it behaves.
#[derive(Clone, Copy)]
struct Server {
    weight: u32,
    /// Shortest time to an answer; the longest is three times that.
    micros: u64,
    /// Whether it fails every request.
    fails: bool,
}

const fn server(weight: u32, micros: u64) -> Server {
    Server {
        weight,
        micros,
        fails: false,
    }
}

struct Seen<'a> {
    servers: &'a [Server],
    loads: Vec<PeakEwma>,
    now: Instant,
}

impl Candidates for Seen<'_> {
    fn count(&self) -> usize {
        self.servers.len()
    }
    fn excluded(&self, _index: usize) -> bool {
        false
    }
    fn score(&self, index: usize) -> f64 {
        self.loads[index].score(self.now)
    }
    fn in_flight(&self, index: usize) -> u32 {
        self.loads[index].in_flight()
    }
    fn weight(&self, index: usize) -> u32 {
        self.servers[index].weight
    }
    fn heaviest(&self) -> Option<u32> {
        let weights = self.servers.iter().map(|server| server.weight);
        let heaviest = weights.clone().max();
        let same = weights.clone().all(|weight| Some(weight) == heaviest);
        heaviest.filter(|_| !same)
    }
}

/// What happens next: when, and the endpoint and number of the request that ends, if it is not a new
/// one.
type Event = Reverse<(u64, Option<(usize, u64)>)>;

/// The share of the requests that each server gets, at so many a second.
fn shares(policy: Policy, servers: &[Server], rate: u64) -> Vec<f64> {
    const REQUESTS: u64 = 40_000;
    let mut bits = SplitMix(0x5eed);
    let fresh = PeakEwma::new(Duration::from_secs(10), Duration::from_millis(30));
    let mut seen = Seen {
        servers,
        loads: vec![fresh; servers.len()],
        now: Instant::default(),
    };
    let mut events: BinaryHeap<Event> = BinaryHeap::from([Reverse((1, None))]);
    let mut counts = vec![0u64; servers.len()];
    let mut made = 0;
    let mut under_way = HashMap::new();
    while let Some(Reverse((nanos, what))) = events.pop() {
        seen.now = Instant::from_nanos(nanos);
        if let Some((index, number)) = what {
            let failed = servers[index].fails;
            let request = under_way.remove(&number).unwrap();
            seen.loads[index].on_finish(request, failed, seen.now);
            continue;
        }
        if made == REQUESTS {
            continue;
        }
        let index = policy.pick(&seen, bits.next(), made).unwrap();
        made += 1;
        counts[index] += 1;
        under_way.insert(made, seen.loads[index].on_start(seen.now));
        let micros = servers[index].micros;
        let latency = micros * 1000 + bits.below_u64(micros * 2000);
        events.push(Reverse((nanos + latency, Some((index, made)))));
        // Evenly at random around the mean, so that requests meet.
        let wait = bits.below_u64(2_000_000_000 / rate) + 1;
        events.push(Reverse((nanos + wait, None)));
    }
    counts.iter().map(|c| *c as f64 / REQUESTS as f64).collect()
}

const ALL: [Policy; 4] = [
    Policy::PeakEwma,
    Policy::LeastRequest,
    Policy::RoundRobin,
    Policy::Random,
];

/// Few requests a second, some under way, and many under way.
const RATES: [u64; 3] = [20, 500, 10_000];

#[track_caller]
fn check(policy: Policy, servers: &[Server], rate: u64, tolerance: f64) {
    let found = shares(policy, servers, rate);
    let total: u32 = servers.iter().map(|server| server.weight).sum();
    for (found, server) in found.iter().zip(servers) {
        let expected = f64::from(server.weight) / f64::from(total);
        let within = (found - expected).abs() <= tolerance;
        assert!(within, "{policy:?} at {rate}: {found} for {expected}");
    }
}

#[test]
fn like_endpoints_get_like_shares() {
    for policy in ALL {
        for rate in RATES {
            check(policy, &[server(100, 2000); 5], rate, 0.03);
        }
    }
}

#[test]
fn shares_follow_weights_at_every_load() {
    for policy in ALL {
        for rate in RATES {
            let two = [server(100, 2000), server(300, 2000)];
            check(policy, &two, rate, 0.06);
            let mut ten = [server(100, 2000); 10];
            ten[9].weight = 1000;
            check(policy, &ten, rate, 0.07);
        }
    }
}

#[test]
fn who_looks_at_latency_leaves_the_slow_out_and_who_looks_at_load_sends_it_less() {
    for weights in [[100, 100, 100], [100, 300, 100]] {
        let mut servers = weights.map(|weight| server(weight, 1000));
        servers[1].micros = 20_000;
        for rate in [500, 5000] {
            let found = shares(Policy::PeakEwma, &servers, rate)[1];
            assert!(found < 0.08, "{weights:?} {rate}: {found}");
            let random = shares(Policy::Random, &servers, rate)[1];
            let least = shares(Policy::LeastRequest, &servers, rate)[1];
            assert!(least < random, "{weights:?} {rate}: {least} of {random}");
        }
        let least = shares(Policy::LeastRequest, &servers, 5000)[1];
        let nominal = f64::from(weights[1]) / f64::from(weights.iter().sum::<u32>());
        assert!(least < nominal / 2.0, "{weights:?}: {least} of {nominal}");
    }
}

#[test]
fn who_fails_at_once_attracts_nothing() {
    for weights in [[100, 100, 100], [300, 100, 100]] {
        let mut servers = weights.map(|weight| server(weight, 5000));
        servers[0] = Server {
            micros: 50,
            fails: true,
            ..servers[0]
        };
        let found = shares(Policy::PeakEwma, &servers, 500)[0];
        assert!(found < 0.05, "{weights:?}: {found}");
    }
}

#[test]
fn a_zone_spills_over_only_what_it_cannot_take() {
    // Of 100 endpoints in the zone so many are well; each may take 1.4 times its own.
    let zone = |healthy| Capacity { healthy, all: 100 };
    let zone_share = |healthy| zone_share(zone(healthy), zone(100));
    let mut before = 0.0;
    for healthy in 0..=100u32 {
        let share = zone_share(healthy.into());
        assert!(share >= before && share <= 1.0);
        let each = share * 100.0 / f64::from(healthy.max(1));
        assert!(each <= 1.4 + 1e-9, "{healthy}: {each} times its own");
        before = share;
    }
    assert_eq!(zone_share(71), 0.71 * 1.4);
    assert_eq!(zone_share(72), 1.0);
}

#[test]
fn a_new_endpoint_starts_slowly() {
    // Its weight as it grows: with a tenth, half and all of its age behind it.
    let time = Duration::from_secs(10);
    for (age, expected) in [(0, 0.1), (5, 0.5), (10, 1.0)] {
        let share = slow_start_share(Duration::from_secs(age), time);
        let weight = (100.0 * share) as u32;
        let own = f64::from(weight) / f64::from(300 + weight);
        for policy in ALL {
            let mut servers = [server(100, 2000); 4];
            servers[3].weight = weight;
            for rate in [200, 5000] {
                let found = shares(policy, &servers, rate)[3];
                assert!(
                    (found - own).abs() < 0.04,
                    "{policy:?} {rate}: {found} for {own}"
                );
            }
        }
        assert!((share - expected).abs() < 1e-9);
    }
    let mut before = 0.0;
    for millis in (0..12_000).step_by(10) {
        let share = slow_start_share(Duration::from_millis(millis), time);
        assert!(share >= before && (0.1..=1.0).contains(&share));
        before = share;
    }
    assert_eq!(slow_start_share(Duration::ZERO, Duration::ZERO), 1.0);
}

/// Two endpoints, one of which takes requests and never answers, and callers that give up after so
/// many milliseconds: the share of the hung one after the first ten seconds of five minutes.
fn share_of_a_hung_one(rate: u64, patience: u64) -> f64 {
    const SECOND: u64 = 1_000_000_000;
    let servers = [server(100, 5000), server(100, 5000)];
    let mut bits = SplitMix(0x5eed);
    let fresh = PeakEwma::new(Duration::from_secs(10), Duration::from_millis(30));
    let mut seen = Seen {
        servers: &servers,
        loads: vec![fresh; servers.len()],
        now: Instant::default(),
    };
    let mut events: BinaryHeap<Event> = BinaryHeap::from([Reverse((1, None))]);
    let mut under_way = HashMap::new();
    let (mut made, mut hung, mut counted) = (0u64, 0u64, 0u64);
    while let Some(Reverse((nanos, what))) = events.pop() {
        seen.now = Instant::from_nanos(nanos);
        if let Some((index, number)) = what {
            let request = under_way.remove(&number).unwrap();
            match index {
                0 => seen.loads[0].on_cancel(request, seen.now),
                _ => seen.loads[1].on_finish(request, false, seen.now),
            }
            continue;
        }
        if nanos > 300 * SECOND {
            break;
        }
        let index = Policy::PeakEwma.pick(&seen, bits.next(), made).unwrap();
        made += 1;
        if nanos > 10 * SECOND {
            counted += 1;
            hung += u64::from(index == 0);
        }
        under_way.insert(made, seen.loads[index].on_start(seen.now));
        let takes = match index {
            0 => patience * 1_000_000,
            _ => servers[1].micros * 1000 + bits.below_u64(servers[1].micros * 2000),
        };
        events.push(Reverse((nanos + takes, Some((index, made)))));
        let wait = bits.below_u64(2 * SECOND / rate) + 1;
        events.push(Reverse((nanos + wait, None)));
    }
    hung as f64 / counted as f64
}

#[test]
fn one_that_never_answers_attracts_nothing() {
    for patience in [100, 1000, 5000] {
        for rate in [5, 50, 1000] {
            let found = share_of_a_hung_one(rate, patience);
            // It is tried now and then, as any slow one: at few requests, or where an idle one that
            // takes longer than the patience would still be as good, that is a larger part.
            assert!(found < 0.02, "{rate} a second, {patience} ms: {found}");
        }
    }
}
