//! Which endpoint a request goes to.
//!
//! The pick functions take numbers of endpoints and closures, so that a caller needs no list of its
//! own; [`Policy::pick`] does the same over [`Candidates`]. Nothing here allocates.
//! Balancing by a key of the request is in [`hash`].

pub mod hash;
mod load;

use std::time::Duration;

pub use load::{FAILURE_PENALTY, InFlight, PeakEwma, QUOTA_BIAS_TIME};

/// Endpoints as balancing sees them, by their indices.
pub trait Candidates {
    /// How many there are.
    fn count(&self) -> usize;
    /// Whether this one may not be picked.
    fn excluded(&self, _index: usize) -> bool {
        false
    }
    /// The cost of one more request, [`PeakEwma::score`]: lower is better.
    fn score(&self, index: usize) -> f64;
    /// Requests under way.
    fn in_flight(&self, index: usize) -> u32;
    /// What its cost is multiplied by for this request, [`PeakEwma::quota_bias`].
    fn bias(&self, _index: usize) -> f64 {
        1.0
    }
    /// Its share, 1 to 1000; 100 is ordinary.
    fn weight(&self, index: usize) -> u32;
    /// What no weight is above, where they differ; `None` where all are the same, which is picked
    /// from faster.
    fn heaviest(&self) -> Option<u32> {
        None
    }
}

/// How endpoints are picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The cheaper of two random ones by [`PeakEwma`].
    #[default]
    PeakEwma,
    /// The one with fewer requests under way of two random ones.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// By a key of the request on a [`hash::Ring`].
    RingHash,
    /// By a key of the request in a [`hash::Maglev`] table.
    Maglev,
}

impl Policy {
    /// As users write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PeakEwma => "peakEwma",
            Self::LeastRequest => "leastRequest",
            Self::RoundRobin => "roundRobin",
            Self::Random => "random",
            Self::RingHash => "ringHash",
            Self::Maglev => "maglev",
        }
    }

    /// Whether requests with the same key are to meet the same endpoint.
    pub const fn is_by_key(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }

    /// Picks one of the available candidates; `None` where there is none. `turn` counts the picks
    /// of this list, for round robin. A request without a key may go to any.
    pub fn pick(self, candidates: &impl Candidates, random: u64, turn: u64) -> Option<usize> {
        let len = candidates.count();
        let excluded = |index: usize| candidates.excluded(index);
        let weight = |index: usize| candidates.weight(index);
        match self {
            Self::PeakEwma => {
                let score = |index: usize| candidates.score(index) * candidates.bias(index);
                match candidates.heaviest() {
                    None => pick_p2c(len, random, excluded, score),
                    Some(heaviest) => {
                        let cost = |index: usize| score(index) * relief(candidates, index);
                        pick_weighted_p2c(len, random, excluded, (weight, heaviest), cost)
                    }
                }
            }
            Self::LeastRequest => {
                let score = |index: usize| {
                    (f64::from(candidates.in_flight(index)) + 1.0) * candidates.bias(index)
                };
                match candidates.heaviest() {
                    None => pick_p2c(len, random, excluded, score),
                    Some(heaviest) => {
                        let cost = |index: usize| score(index) * relief(candidates, index);
                        pick_weighted_p2c(len, random, excluded, (weight, heaviest), cost)
                    }
                }
            }
            Self::RoundRobin => pick_round_robin(len, turn, excluded, weight),
            Self::Random | Self::RingHash | Self::Maglev => {
                pick_random(len, random, excluded, weight)
            }
        }
    }
}

/// The share of its ordinary traffic that an endpoint gets while it is new: it grows evenly over
/// `slow_start`, and never begins at nothing.
pub fn slow_start_share(age: Duration, slow_start: Duration) -> f64 {
    const LEAST: f64 = 0.1;
    if age >= slow_start {
        return 1.0;
    }
    (age.as_secs_f64() / slow_start.as_secs_f64()).max(LEAST)
}

/// What some endpoints can take, as the sums of their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Of those that are well.
    pub healthy: u64,
    /// Of all of them.
    pub all: u64,
}

impl Capacity {
    /// One more endpoint.
    pub fn add(&mut self, weight: u32, healthy: bool) {
        self.all += u64::from(weight);
        self.healthy += if healthy { u64::from(weight) } else { 0 };
    }

    /// The share of all requests that they stand, 0 to 1: all, until a good part of them is lost.
    fn stands(self) -> f64 {
        // Envoy's overprovisioning factor.
        const SPARE: f64 = 1.4;
        if self.all == 0 {
            return 0.0;
        }
        (self.healthy as f64 / self.all as f64 * SPARE).min(1.0)
    }
}

/// The share of requests that stays in the caller's zone: what its endpoints stand; the rest goes to
/// the others. Where both together stand less than everything, each side gets its part of it in
/// proportion (Envoy's priority levels, with normalized total health). Where nobody is well, there is
/// no reason to leave.
pub fn zone_share(zone: Capacity, others: Capacity) -> f64 {
    let (own, others) = (zone.stands(), others.stands());
    let together = own + others;
    if together >= 1.0 {
        own
    } else if together > 0.0 {
        own / together
    } else if zone.all > 0 {
        1.0
    } else {
        0.0
    }
}

/// What a score with requests under way is multiplied by, so that an endpoint of twice the weight
/// bears twice as many at the same cost.
fn relief(candidates: &impl Candidates, index: usize) -> f64 {
    let in_flight = f64::from(candidates.in_flight(index));
    let weight = f64::from(candidates.weight(index).max(1)) / ORDINARY;
    (in_flight / weight + 1.0) / (in_flight + 1.0)
}

/// The weight of an ordinary endpoint.
const ORDINARY: f64 = 100.0;
/// Times an endpoint is drawn and turned down for its weight before all weights are added up.
const WEIGHTED_DRAWS: u32 = 16;
/// Times a random endpoint that is excluded is drawn again before all are looked at.
const DRAWS: u32 = 4;

/// Power of two choices: the cheaper of two different random endpoints among `len` that are not
/// excluded; the only one, where there is one; `None` where there is none.
pub fn pick_p2c(
    len: usize,
    random: u64,
    excluded: impl Fn(usize) -> bool,
    score: impl Fn(usize) -> f64,
) -> Option<usize> {
    let mut bits = SplitMix(random);
    let first = draw(len, &mut bits, &excluded)?;
    let other = |index: usize| index == first || excluded(index);
    let Some(second) = draw(len, &mut bits, &other) else {
        return Some(first);
    };
    if score(second) < score(first) {
        Some(second)
    } else {
        Some(first)
    }
}

/// Power of two choices where weights differ: the first in proportion to weights, the second any
/// other, and of the two each with a chance in proportion to its weight and to the square of the
/// other's cost.
///
/// At equal costs every endpoint gets exactly its share: a pair is drawn in proportion to the sum of
/// its weights, and within it each is taken by its own. To divide costs by weights and to take the
/// cheaper instead gives the lighter of two idle ones nothing at all.
///
/// `weight` comes with what none of them is above.
pub fn pick_weighted_p2c(
    len: usize,
    random: u64,
    excluded: impl Fn(usize) -> bool,
    (weight, heaviest): (impl Fn(usize) -> u32, u32),
    cost: impl Fn(usize) -> f64,
) -> Option<usize> {
    let mut bits = SplitMix(random);
    let drawn = (0..WEIGHTED_DRAWS).find_map(|_draw| {
        if len == 0 {
            return None;
        }
        let index = bits.below(len);
        let taken = bits.below_u64(u64::from(heaviest)) < u64::from(weight(index));
        (taken && !excluded(index)).then_some(index)
    });
    let first = match drawn {
        Some(first) => first,
        None => pick_random(len, bits.next(), &excluded, &weight)?,
    };
    let other = |index: usize| index == first || weight(index) == 0 || excluded(index);
    let Some(second) = draw(len, &mut bits, &other) else {
        return Some(first);
    };
    let chance = |index: usize, other: f64| f64::from(weight(index)) * other * other;
    let of_first = chance(first, cost(second));
    let of_second = chance(second, cost(first));
    let point = bits.next() as f64 / u64::MAX as f64 * (of_first + of_second);
    Some(if point < of_first { first } else { second })
}

/// A random endpoint, in proportion to weights. Weight 0 is never picked.
pub fn pick_random(
    len: usize,
    random: u64,
    excluded: impl Fn(usize) -> bool,
    weight: impl Fn(usize) -> u32,
) -> Option<usize> {
    let total = (0..len).fold(Sum::default(), |sum, index| {
        sum.with(&excluded, &weight, index)
    });
    if total.weight == 0 {
        return None;
    }
    let point = SplitMix(random).below_u64(total.weight);
    at_weight(len, point, excluded, weight)
}

/// The endpoint whose turn it is: in as many turns as the weights sum up to (after division by what
/// they have in common) each gets exactly its share, and the turns of one endpoint are spread
/// rather than in a row. Endpoints of equal weight simply take turns. Weight 0 is never picked.
///
/// An excluded endpoint's turns go to all others, not to its neighbour.
pub fn pick_round_robin(
    len: usize,
    turn: u64,
    excluded: impl Fn(usize) -> bool,
    weight: impl Fn(usize) -> u32,
) -> Option<usize> {
    let total = (0..len).fold(Sum::default(), |sum, index| {
        sum.with(&excluded, &weight, index)
    });
    if total.weight == 0 {
        return None;
    }
    let unit = total.divisor;
    let turns = total.weight / unit;
    let point = if total.equal() {
        turn % turns
    } else {
        // A step without a common divisor with `turns` meets every point once before the first
        // again; the golden section spreads them.
        let step = coprime_near((turns as f64 * 0.618_033_988_749_895) as u64, turns);
        (u128::from(turn % turns) * u128::from(step) % u128::from(turns)) as u64
    };
    at_weight(len, point * unit, excluded, weight)
}

/// Sums over the endpoints that are not excluded.
#[derive(Default)]
struct Sum {
    weight: u64,
    divisor: u64,
    count: u64,
}

impl Sum {
    fn with(
        self,
        excluded: &impl Fn(usize) -> bool,
        weight: &impl Fn(usize) -> u32,
        index: usize,
    ) -> Self {
        let own = if excluded(index) { 0 } else { weight(index) };
        if own == 0 {
            return self;
        }
        Self {
            weight: self.weight + u64::from(own),
            divisor: gcd(u64::from(own), self.divisor),
            count: self.count + 1,
        }
    }

    fn equal(&self) -> bool {
        self.weight == self.divisor * self.count
    }
}

/// The endpoint at a point of the line on which each is as long as its weight.
fn at_weight(
    len: usize,
    point: u64,
    excluded: impl Fn(usize) -> bool,
    weight: impl Fn(usize) -> u32,
) -> Option<usize> {
    let mut passed = 0;
    (0..len).find(|index| {
        if excluded(*index) {
            return false;
        }
        passed += u64::from(weight(*index));
        point < passed
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The smallest number from `from` on that has no divisor in common with `of`.
fn coprime_near(from: u64, of: u64) -> u64 {
    (from.max(1)..)
        .find(|step| gcd(*step, of) == 1)
        .unwrap_or(1)
}

/// A uniformly random index below `len` that is not excluded.
fn draw(len: usize, bits: &mut SplitMix, excluded: &impl Fn(usize) -> bool) -> Option<usize> {
    if len == 0 {
        return None;
    }
    for _draw in 0..DRAWS {
        let index = bits.below(len);
        if !excluded(index) {
            return Some(index);
        }
    }
    let left = (0..len).filter(|index| !excluded(*index)).count();
    if left == 0 {
        return None;
    }
    let nth = bits.below(left);
    (0..len).filter(|index| !excluded(*index)).nth(nth)
}

/// Many random numbers from one (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators).
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.below_u64(bound as u64) as usize
    }

    fn below_u64(&mut self, bound: u64) -> u64 {
        // Multiply and shift; the bias is below 2^-32 for any number of endpoints.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
