//! Balancing by a key of the request, so that equal keys meet the same endpoint: ring hash, which
//! moves only the keys of the endpoint that went, and Maglev, which is faster and more even.
//!
//! Tables are made when the endpoints change, not on the request path.

use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Policy;

/// Points of an endpoint with ordinary weight (100) on a [`Ring`].
const POINTS: u64 = 160;
/// Most points of a ring, 16 bytes each; beyond, every endpoint gets fewer.
const MAX_POINTS: u64 = 1 << 18;
/// Entries of a [`Maglev`] table, 4 bytes each: a prime, as the permutations need one, and large
/// enough for some hundreds of endpoints at a hundred entries each (the paper's own small size).
pub const MAGLEV_SIZE: usize = 65_537;

/// A hash that is the same in every sidecar and every version: FNV-1a, mixed so that every bit of
/// the key reaches every bit of the result.
pub fn hash(key: &[u8]) -> u64 {
    let fnv = key.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(fnv)
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Consistent hashing on a ring (Karger et al.): each endpoint owns the stretches before its
/// points, as many as its weight says.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// Ascending.
    points: Box<[(u64, u32)]>,
}

impl Ring {
    /// Makes the ring of endpoints, each with a name that stays the same and a weight (100 is
    /// ordinary, 0 gets nothing).
    pub fn new(endpoints: &[(&str, u32)]) -> Self {
        let wanted = |weight: u32| u64::from(weight) * POINTS / 100;
        let total: u64 = endpoints.iter().map(|(_, weight)| wanted(*weight)).sum();
        let mut points = Vec::new();
        for (index, (name, weight)) in endpoints.iter().enumerate() {
            let share = if total > MAX_POINTS {
                wanted(*weight) * MAX_POINTS / total
            } else {
                wanted(*weight)
            };
            let count = share.max(u64::from(*weight > 0));
            let seed = hash(name.as_bytes());
            points.extend((0..count).map(|n| {
                let step = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (mix(seed.wrapping_add(step)), index as u32)
            }));
        }
        points.sort_unstable();
        Self {
            points: points.into(),
        }
    }

    /// The endpoint of a key's [`hash()`]: the next on the ring that is not excluded.
    pub fn pick(&self, hash: u64, excluded: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.points.partition_point(|(point, _)| *point < hash);
        let (before, after) = self.points.split_at(start);
        let mut clockwise = after.iter().chain(before).map(|(_, index)| *index as usize);
        clockwise.find(|index| !excluded(*index))
    }
}

/// Maglev's table (Eisenbud et al., section 3.4), with weights.
#[derive(Debug, Clone, Default)]
pub struct Maglev {
    table: Box<[u32]>,
    endpoints: usize,
}

impl Maglev {
    /// Makes the table of endpoints, each with a name that stays the same and a weight (0 gets
    /// nothing).
    pub fn new(endpoints: &[(&str, u32)]) -> Self {
        const EMPTY: u32 = u32::MAX;
        let heaviest = endpoints.iter().map(|(_, weight)| *weight).max();
        let Some(heaviest) = heaviest.filter(|weight| *weight > 0) else {
            return Self::default();
        };
        let size = MAGLEV_SIZE as u64;
        let mut table = vec![EMPTY; MAGLEV_SIZE];
        // Each goes through the table in an order of its own and takes the next free entry; the
        // heaviest in every round, others when their credit is full.
        let mut walkers: Vec<Walker> = endpoints
            .iter()
            .map(|(name, weight)| Walker {
                at: hash(name.as_bytes()) % size,
                step: mix(hash(name.as_bytes())) % (size - 1) + 1,
                weight: u64::from(*weight),
                credit: 0,
            })
            .collect();
        let mut free = MAGLEV_SIZE;
        'full: loop {
            for (index, walker) in walkers.iter_mut().enumerate() {
                walker.credit += walker.weight;
                if walker.credit < u64::from(heaviest) {
                    continue;
                }
                walker.credit -= u64::from(heaviest);
                while table[walker.at as usize] != EMPTY {
                    walker.at = (walker.at + walker.step) % size;
                }
                table[walker.at as usize] = index as u32;
                free -= 1;
                if free == 0 {
                    break 'full;
                }
            }
        }
        Self {
            table: table.into(),
            endpoints: endpoints.len(),
        }
    }

    /// The endpoint of a key's [`hash()`]. Where that is excluded, the key falls on others evenly.
    pub fn pick(&self, hash: u64, excluded: impl Fn(usize) -> bool) -> Option<usize> {
        let size = self.table.len() as u64;
        if size == 0 {
            return None;
        }
        let entry = |hash: u64| self.table[(hash % size) as usize] as usize;
        // Other entries of the same key, always in the same order.
        let mut again = hash;
        for _draw in 0..DRAWS {
            let index = entry(again);
            if !excluded(index) {
                return Some(index);
            }
            again = mix(again.wrapping_add(0x9e37_79b9_7f4a_7c15));
        }
        let start = (again % size) as usize;
        let (before, after) = self.table.split_at(start);
        if (0..self.endpoints).all(&excluded) {
            return None;
        }
        let mut round = after.iter().chain(before).map(|index| *index as usize);
        round.find(|index| !excluded(*index))
    }
}

/// Times an excluded endpoint is drawn before the table is read in order.
const DRAWS: u32 = 16;

struct Walker {
    at: u64,
    step: u64,
    weight: u64,
    credit: u64,
}

/// What a port's requests with a key are picked by.
#[derive(Debug, Clone)]
pub enum Table {
    /// Consistent hashing.
    Ring(Ring),
    /// Maglev's.
    Maglev(Maglev),
}

impl Table {
    /// The table of a policy that wants one, for endpoints as [`Ring::new`] takes them.
    pub fn new(policy: Policy, endpoints: &[(&str, u32)]) -> Option<Self> {
        match policy {
            Policy::RingHash => Some(Self::Ring(Ring::new(endpoints))),
            Policy::Maglev => Some(Self::Maglev(Maglev::new(endpoints))),
            Policy::PeakEwma | Policy::LeastRequest | Policy::RoundRobin | Policy::Random => None,
        }
    }

    /// The endpoint of a key's [`hash()`] that is not excluded.
    pub fn pick(&self, hash: u64, excluded: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Ring(ring) => ring.pick(hash, excluded),
            Self::Maglev(maglev) => maglev.pick(hash, excluded),
        }
    }
}

/// What a request's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// A field of the request.
    Header(HeaderName),
    /// A parameter of the query.
    Query(Box<str>),
    /// A cookie.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// Whoever has none gets one for this long; `None`: nobody gets one.
        issue: Option<Duration>,
    },
    /// The calling workload: all of its requests meet the same endpoint.
    Source,
}

impl HashOn {
    /// The hash of a request's key, where it has one. `source` names the caller.
    pub fn key(&self, headers: &HeaderMap, query: Option<&str>, source: &str) -> Option<u64> {
        match self {
            Self::Header(name) => headers.get(name).map(|value| hash(value.as_bytes())),
            Self::Query(name) => {
                let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
                let found = pairs.find(|(found, _)| *found == **name);
                found.map(|(_, value)| hash(value.as_bytes()))
            }
            Self::Cookie { name, .. } => cookie(headers, name).map(hash),
            Self::Source => Some(hash(source.as_bytes())),
        }
    }

    /// A cookie for a request without one, where there is to be one: its key, and the `Set-Cookie`
    /// that tells the caller (RFC 6265).
    pub fn issue(&self, random: u64) -> Option<(u64, HeaderValue)> {
        let Self::Cookie {
            name,
            issue: Some(life),
        } = self
        else {
            return None;
        };
        let value = format!("{random:016x}");
        let seconds = life.as_secs();
        let cookie = format!("{name}={value}; Max-Age={seconds}; Path=/; HttpOnly");
        Some((hash(value.as_bytes()), HeaderValue::try_from(cookie).ok()?))
    }
}

/// The value of a cookie (RFC 6265 section 4.2.1).
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let fields = headers.get_all(COOKIE).iter();
    let mut pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let rest = pair.trim_ascii().strip_prefix(name.as_bytes())?;
        rest.strip_prefix(b"=")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEYS: u64 = 20_000;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("instance-{n}")).collect()
    }

    fn equal(names: &[String]) -> Vec<(&str, u32)> {
        names.iter().map(|name| (name.as_str(), 100)).collect()
    }

    fn hashes() -> impl Iterator<Item = u64> {
        (0..KEYS).map(|key| hash(&key.to_be_bytes()))
    }

    fn shares(count: usize, pick: impl Fn(u64) -> usize) -> Vec<f64> {
        let mut shares = vec![0.0; count];
        for key in hashes() {
            shares[pick(key)] += 1.0 / KEYS as f64;
        }
        shares
    }

    #[track_caller]
    fn check_shares(found: &[f64], expected: &[f64], tolerance: f64) {
        for (found, expected) in found.iter().zip(expected) {
            let within = (found - expected).abs() <= expected * tolerance + 1e-9;
            assert!(within, "{found} for {expected}");
        }
    }

    #[test]
    fn shares_follow_weights() {
        let endpoints = [("a", 100), ("b", 300), ("c", 0), ("d", 600)];
        let expected = [0.1, 0.3, 0.0, 0.6];
        let ring = Ring::new(&endpoints);
        check_shares(
            &shares(4, |key| ring.pick(key, |_| false).unwrap()),
            &expected,
            0.3,
        );
        let maglev = Maglev::new(&endpoints);
        check_shares(
            &shares(4, |key| maglev.pick(key, |_| false).unwrap()),
            &expected,
            0.1,
        );
    }

    #[test]
    fn nothing_to_pick() {
        for endpoints in [&[][..], &[("a", 0)]] {
            assert_eq!(Ring::new(endpoints).pick(1, |_| false), None);
            assert_eq!(Maglev::new(endpoints).pick(1, |_| false), None);
        }
        let endpoints = [("a", 100), ("b", 100)];
        assert_eq!(Ring::new(&endpoints).pick(1, |_| true), None);
        assert_eq!(Maglev::new(&endpoints).pick(1, |_| true), None);
        // Only one without weight is left.
        let endpoints = [("a", 100), ("b", 0)];
        assert_eq!(Maglev::new(&endpoints).pick(1, |index| index == 0), None);
    }

    #[test]
    fn a_ring_of_many_is_bounded() {
        let names = names(5000);
        let endpoints: Vec<_> = names.iter().map(|name| (name.as_str(), 1000)).collect();
        let ring = Ring::new(&endpoints);
        assert!(ring.points.len() as u64 <= MAX_POINTS);
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash(b""), mix(0xcbf2_9ce4_8422_2325));
        assert_eq!(hash(b"a"), mix(0xaf63_dc4c_8601_ec8c));
    }

    /// Whichever of a hundred goes: its own keys, and at most 2 % of all beside them, meet another.
    #[test]
    fn one_of_a_hundred_takes_little_along() {
        let all = names(100);
        for gone in [0, 37, 99] {
            let mut left = all.clone();
            left.remove(gone);
            let after = |index: usize| if index < gone { index } else { index + 1 };
            for (policy, most) in [(Policy::RingHash, 0.0), (Policy::Maglev, 0.02)] {
                let table = Table::new(policy, &equal(&all)).unwrap();
                let without = Table::new(policy, &equal(&left)).unwrap();
                let (mut own, mut others) = (0.0, 0.0);
                for key in hashes() {
                    let before = table.pick(key, |_| false).unwrap();
                    let now = after(without.pick(key, |_| false).unwrap());
                    own += f64::from(u8::from(before == gone)) / KEYS as f64;
                    others += f64::from(u8::from(before != gone && before != now)) / KEYS as f64;
                }
                assert!(others <= most, "{policy:?} {gone}: {others}");
                // Its own share is about that of one of a hundred: nothing else is counted as it.
                assert!((0.006..0.014).contains(&own), "{policy:?} {gone}: {own}");
            }
        }
    }

    /// The same for one that comes back: who had its keys gives them back, and hardly more.
    #[test]
    fn one_that_comes_takes_its_share_and_little_else() {
        let all = names(100);
        for policy in [Policy::RingHash, Policy::Maglev] {
            let table = Table::new(policy, &equal(&all[..99])).unwrap();
            let with = Table::new(policy, &equal(&all)).unwrap();
            let moved = hashes().filter(|key| {
                let now = with.pick(*key, |_| false).unwrap();
                now != 99 && now != table.pick(*key, |_| false).unwrap()
            });
            let share = moved.count() as f64 / KEYS as f64;
            assert!(share <= 0.02, "{policy:?}: {share}");
        }
    }

    #[test]
    fn equal_endpoints_get_about_the_same() {
        let names = names(20);
        for (policy, tolerance) in [(Policy::RingHash, 0.4), (Policy::Maglev, 0.12)] {
            let table = Table::new(policy, &equal(&names)).unwrap();
            let found = shares(20, |key| table.pick(key, |_| false).unwrap());
            check_shares(&found, &[0.05; 20], tolerance);
        }
    }

    #[test]
    fn keys() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("7"));
        headers.insert("cookie", HeaderValue::from_static("a=1; ab=2;stick=3"));
        let cookie = |name: &str| HashOn::Cookie {
            name: name.into(),
            issue: Some(Duration::from_secs(60)),
        };
        let cases = [
            (HashOn::Header("x-user".parse().unwrap()), Some("7")),
            (HashOn::Header("x-none".parse().unwrap()), None),
            (HashOn::Query("q".into()), Some("a b")),
            (HashOn::Query("z".into()), None),
            (cookie("stick"), Some("3")),
            (cookie("a"), Some("1")),
            (cookie("b"), None),
            (HashOn::Source, Some("shop/me")),
        ];
        for (on, expected) in cases {
            let found = on.key(&headers, Some("p=1&q=a+b"), "shop/me");
            assert_eq!(found, expected.map(|key| hash(key.as_bytes())), "{on:?}");
        }
        let (key, cookie) = cookie("stick").issue(255).unwrap();
        assert_eq!(key, hash(b"00000000000000ff"));
        assert_eq!(
            cookie,
            "stick=00000000000000ff; Max-Age=60; Path=/; HttpOnly"
        );
        assert_eq!(HashOn::Source.issue(1), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// When an endpoint goes, a ring moves its keys only, and Maglev few others; when one is
        /// excluded, both move its keys only, and to more than one other.
        #[test]
        fn disruption_is_small(count in 3usize..20, gone in any::<prop::sample::Index>()) {
            let all = names(count);
            let gone = gone.index(count);
            let mut left = all.clone();
            left.remove(gone);
            let after = |index: usize| if index < gone { index } else { index + 1 };
            let (ring, ring_left) = (Ring::new(&equal(&all)), Ring::new(&equal(&left)));
            let (maglev, maglev_left) = (Maglev::new(&equal(&all)), Maglev::new(&equal(&left)));
            let mut moved = 0;
            let (mut ring_to, mut maglev_to) = (vec![false; count], vec![false; count]);
            for key in hashes() {
                let before = ring.pick(key, |_| false).unwrap();
                let now = after(ring_left.pick(key, |_| false).unwrap());
                let around = ring.pick(key, |index| index == gone).unwrap();
                prop_assert_eq!(now, around);
                if before == gone { ring_to[now] = true } else { prop_assert_eq!(before, now) }
                let before = maglev.pick(key, |_| false).unwrap();
                let around = maglev.pick(key, |index| index == gone).unwrap();
                if before == gone {
                    maglev_to[around] = true;
                } else {
                    prop_assert_eq!(before, around);
                    moved += u64::from(before != after(maglev_left.pick(key, |_| false).unwrap()));
                }
            }
            prop_assert!(moved < KEYS / 10, "{} of {} keys moved", moved, KEYS);
            for to in [ring_to, maglev_to] {
                prop_assert!(to.iter().filter(|to| **to).count() > 1);
            }
        }
    }
}
