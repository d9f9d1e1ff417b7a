//! Which endpoint a request goes to: zones, breakers, health checks, endpoints that were tried, and
//! what happens where too few are left. One function decides in the sidecar, [`choose`]; what keeps
//! endpoints out of the choice, [`Guard`], is also what `weft explain` asks.
//!
//! In order of preference, each among the nearest endpoints first ([`crate::locality`]), or where the
//! service says nothing of that in the request's zone, and then anywhere:
//!
//! 1. an endpoint that takes requests and was not tried for this one,
//! 2. one that takes requests and was tried,
//! 3. the same among those that the limit on connections leaves no way to,
//! 4. as a last resort one that is out, those that were not tried first: ejecting all would be an
//!    outage of the mesh's own making.
//!
//! Nothing here allocates, except while more endpoints are out than `maxEjectedShare` allows.

use crate::balance::{Candidates, Capacity, SplitMix, hash::Table, zone_share};
use crate::breaker::{Standing, is_panic, most_ejected};
use crate::policy::{BreakerMode, TrafficPolicy};
use crate::time::Instant;

/// Endpoints of a port as one request sees them, by their indices. [`Candidates`] says what they
/// cost; what it excludes besides is left out of every choice.
pub trait Endpoints: Candidates {
    /// Whether it takes requests now.
    fn standing(&self, index: usize) -> Standing;
    /// Whether this request was already sent there.
    fn is_tried(&self, index: usize) -> bool;
    /// Whether the limit on connections leaves a way to it.
    fn is_reachable(&self, _index: usize) -> bool {
        true
    }
    /// Its zone; empty when unknown.
    fn zone(&self, index: usize) -> &str;
    /// How near it is ([`crate::locality::tiers`]).
    fn tier(&self, _index: usize) -> u8 {
        0
    }
    /// The largest that [`Endpoints::tier`] is.
    fn farthest(&self) -> u8 {
        0
    }
}

/// What a choice depends on, beside the endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// How the port is treated.
    pub policy: &'a TrafficPolicy,
    /// The request's key with the table of the port's endpoints, where the policy goes by one.
    pub key: Option<(u64, &'a Table)>,
    /// The caller's zone; empty when unknown.
    pub zone: &'a str,
    /// Random bits.
    pub random: u64,
    /// The number of this choice at the port, for round robin.
    pub turn: u64,
    /// Whether an endpoint that is out is chosen where nothing else is left. A hedge waits instead.
    pub last_resort: bool,
}

/// An endpoint that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub index: usize,
    /// Whether a breaker that lets no call through is passed over: it is only observed, or too many
    /// endpoints are out. `false`: where it refuses after all, another choice is to be made.
    pub past_breaker: bool,
}

/// Which of the endpoints that are out stay out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// None: breakers are only observed, or fewer are well than `panicThreshold` wants.
    Disregarded,
    /// Those that health checks put out.
    Checks,
    /// All of them.
    All,
    /// As many as `maxEjectedShare` allows, those that went out first: up to and including this
    /// one. All that went out later take requests as if they were well.
    First {
        /// When the last of them went out.
        since: Instant,
        /// Its index, which decides between those of the same time.
        index: usize,
        /// Whether only health checks are heeded.
        checks_only: bool,
    },
}

impl Guard {
    /// What is heeded of `total` endpoints, whose standings are these.
    pub fn of(policy: &TrafficPolicy, total: usize, standing: impl Fn(usize) -> Standing) -> Self {
        let (guard, checks_only) = match policy.breaker_mode {
            BreakerMode::Observe if policy.health_check.is_none() => return Self::Disregarded,
            BreakerMode::Observe => (Self::Checks, true),
            BreakerMode::Enforce | BreakerMode::ForceOpen => (Self::All, false),
        };
        // Where neither number draws a line, nothing needs counting: where nothing is left, one is
        // chosen all the same.
        if policy.max_ejected_share >= 1.0 && policy.panic_threshold <= 0.0 {
            return guard;
        }
        let since = |index: usize| guard.out_since(standing(index));
        let out = (0..total).filter(|index| since(*index).is_some()).count();
        if is_panic(total, out, policy.panic_threshold) {
            return Self::Disregarded;
        }
        let most = most_ejected(total, policy.max_ejected_share);
        if out <= most {
            return guard;
        }
        if most == 0 {
            return Self::Disregarded;
        }
        let out = (0..total).filter_map(|index| Some((since(index)?, index)));
        let mut out: Vec<(Instant, usize)> = out.collect();
        if out.len() <= most {
            return guard;
        }
        let (_, (since, index), _) = out.select_nth_unstable(most - 1);
        Self::First {
            since: *since,
            index: *index,
            checks_only,
        }
    }

    /// Whether requests keep away from an endpoint with this standing.
    pub fn excludes(self, index: usize, standing: Standing) -> bool {
        match self {
            Self::Disregarded => false,
            Self::Checks | Self::All => self.out_since(standing).is_some(),
            Self::First {
                since,
                index: last,
                checks_only,
            } => {
                let heeded = if checks_only { Self::Checks } else { Self::All };
                let out = heeded.out_since(standing);
                out.is_some_and(|out| (out, index) <= (since, last))
            }
        }
    }

    /// Whether an endpoint's breaker may refuse a call that this guard lets through.
    fn passes_over(self) -> bool {
        !matches!(self, Self::All)
    }

    /// Since when an endpoint is out, where that is heeded.
    fn out_since(self, standing: Standing) -> Option<Instant> {
        match (self, standing) {
            (_, Standing::Available) | (Self::Disregarded, _) => None,
            (Self::Checks, Standing::Open { .. }) => None,
            (_, Standing::Open { since } | Standing::Unhealthy { since }) => Some(since),
        }
    }
}

/// Chooses an endpoint; `None` where there is none, or without a last resort none that is well.
pub fn choose(endpoints: &impl Endpoints, terms: &Terms<'_>) -> Option<Choice> {
    let count = endpoints.count();
    if count == 0 {
        return None;
    }
    if count == 1 && terms.last_resort {
        return Some(Choice {
            index: 0,
            past_breaker: true,
        });
    }
    let guard = Guard::of(terms.policy, count, |index| endpoints.standing(index));
    let mut bits = SplitMix(terms.random);
    let place = Place::of(endpoints, terms, guard, &mut bits);
    let terms = &Terms {
        random: bits.next(),
        ..*terms
    };
    let pick = |guard, tried, unreachable| {
        let mut tiers = 0..=endpoints.farthest();
        tiers.find_map(|tier| {
            let view = View {
                endpoints,
                guard,
                place,
                tier,
                tried,
                unreachable,
            };
            view.pick(terms)
        })
    };
    let well = pick(guard, false, false)
        .or_else(|| pick(guard, true, false))
        .or_else(|| pick(guard, false, true))
        .or_else(|| pick(guard, true, true));
    let past_breaker = guard.passes_over();
    if let Some(index) = well {
        return Some(Choice {
            index,
            past_breaker,
        });
    }
    if !terms.last_resort {
        return None;
    }
    let any = Guard::Disregarded;
    let index = pick(any, false, true).or_else(|| pick(any, true, true))?;
    Some(Choice {
        index,
        past_breaker: true,
    })
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Anywhere,
    /// To this zone.
    In(&'a str),
    /// To any zone but this one.
    OutOf(&'a str),
}

impl<'a> Place<'a> {
    /// Whether this request stays in the caller's zone or makes room there for others.
    fn of(
        endpoints: &impl Endpoints,
        terms: &Terms<'a>,
        guard: Guard,
        bits: &mut SplitMix,
    ) -> Self {
        let is_said = endpoints.farthest() > 0;
        if !terms.policy.prefer_zone || terms.zone.is_empty() || is_said {
            return Self::Anywhere;
        }
        let (mut own, mut others) = (Capacity::default(), Capacity::default());
        for index in 0..endpoints.count() {
            let side = if endpoints.zone(index) == terms.zone {
                &mut own
            } else {
                &mut others
            };
            let healthy = !guard.excludes(index, endpoints.standing(index));
            side.add(endpoints.weight(index), healthy);
        }
        let point = bits.next() as f64 / u64::MAX as f64;
        if point < zone_share(own, others) {
            Self::In(terms.zone)
        } else {
            Self::OutOf(terms.zone)
        }
    }

    fn excludes(self, zone: &str) -> bool {
        match self {
            Self::Anywhere => false,
            Self::In(own) => own != zone,
            Self::OutOf(own) => own == zone,
        }
    }
}

/// Those of the endpoints that one preference allows.
struct View<'a, E> {
    endpoints: &'a E,
    guard: Guard,
    place: Place<'a>,
    /// No endpoint farther than this is allowed.
    tier: u8,
    /// Whether endpoints that were tried are allowed,
    tried: bool,
    /// and those that there is no way to.
    unreachable: bool,
}

impl<E: Endpoints> View<'_, E> {
    fn pick(&self, terms: &Terms<'_>) -> Option<usize> {
        let picked = self.pick_here(terms);
        if picked.is_some() || self.place == Place::Anywhere {
            return picked;
        }
        let anywhere = View {
            place: Place::Anywhere,
            ..*self
        };
        anywhere.pick_here(terms)
    }

    fn pick_here(&self, terms: &Terms<'_>) -> Option<usize> {
        match terms.key {
            Some((key, table)) => table.pick(key, |index| self.excluded(index)),
            None => terms.policy.balancing.pick(self, terms.random, terms.turn),
        }
    }
}

impl<E: Endpoints> Candidates for View<'_, E> {
    fn count(&self) -> usize {
        self.endpoints.count()
    }

    fn excluded(&self, index: usize) -> bool {
        (!self.tried && self.endpoints.is_tried(index))
            || (!self.unreachable && !self.endpoints.is_reachable(index))
            || self.endpoints.tier(index) > self.tier
            || self.place.excludes(self.endpoints.zone(index))
            || self.endpoints.excluded(index)
            || (self.guard != Guard::Disregarded
                && self.guard.excludes(index, self.endpoints.standing(index)))
    }

    fn score(&self, index: usize) -> f64 {
        self.endpoints.score(index)
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.endpoints.in_flight(index)
    }

    fn bias(&self, index: usize) -> f64 {
        self.endpoints.bias(index)
    }

    fn weight(&self, index: usize) -> u32 {
        self.endpoints.weight(index)
    }

    fn heaviest(&self) -> Option<u32> {
        self.endpoints.heaviest()
    }
}

#[cfg(test)]
mod tests;
