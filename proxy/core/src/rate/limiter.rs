//! The live side of a limit: a bucket for every key, as many as fit.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::bucket::{Bucket, Pace, Verdict};
use super::lease::{Demand, HOT_KEYS_MAX, Shares};
use super::{RateLimit, key_hash};
use crate::time::Instant;

/// Keys that have a bucket of their own; those beyond share one.
pub const KEYS_MAX: usize = 10_000;
/// Full buckets are looked for no more often than this.
const SWEEP_MIN: Duration = Duration::from_millis(100);

/// A limit with what has been counted.
#[derive(Debug)]
pub struct Limiter {
    limit: Arc<RateLimit>,
    shares: Shares,
    base: Pace,
    buckets: HashMap<Box<str>, Counted>,
    /// Of all keys that find no room.
    rest: Counted,
    keys_max: usize,
    /// Before that, no bucket is full.
    next_sweep: Instant,
    /// Since when demand is counted.
    since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    bucket: Bucket,
    /// Requests that asked since demand was told last.
    asked: u64,
    hash: u64,
}

impl Limiter {
    /// Full buckets, with these shares of the limit.
    pub fn new(limit: Arc<RateLimit>, shares: Shares, now: Instant) -> Self {
        let base = Pace::of(&limit, shares.base);
        Self {
            rest: Counted {
                bucket: Bucket::full(&base, now),
                asked: 0,
                hash: 0,
            },
            limit,
            shares,
            base,
            buckets: HashMap::new(),
            keys_max: KEYS_MAX,
            next_sweep: now,
            since: now,
        }
    }

    /// The limit.
    pub const fn limit(&self) -> &Arc<RateLimit> {
        &self.limit
    }

    /// Its shares.
    pub const fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Asks for a token of a key.
    pub fn take(&mut self, key: &str, now: Instant) -> Verdict {
        let pace = self.pace_of(key);
        let counted = self.bucket_mut(key, &pace, now);
        counted.asked += 1;
        counted.bucket.take(&pace, now)
    }

    /// Gives a token back that was taken for nothing.
    pub fn give_back(&mut self, key: &str) {
        let pace = self.pace_of(key);
        let counted = self.buckets.get_mut(key).unwrap_or(&mut self.rest);
        counted.bucket.give_back(&pace);
    }

    /// Exchanges the limit and the shares; what was taken stays taken.
    pub fn change(&mut self, limit: Arc<RateLimit>, shares: Shares, now: Instant) {
        if *limit == *self.limit && shares == self.shares {
            return;
        }
        // Another key: what was counted by the old one says nothing.
        if limit.key != self.limit.key {
            *self = Self {
                keys_max: self.keys_max,
                ..Self::new(limit, shares, now)
            };
            return;
        }
        let base = Pace::of(&limit, shares.base);
        for counted in self.buckets.values_mut() {
            let from = Pace::of(&self.limit, self.shares.of(counted.hash));
            let to = Pace::of(&limit, shares.of(counted.hash));
            counted.bucket.change(&from, &to, now);
        }
        self.rest.bucket.change(&self.base, &base, now);
        (self.limit, self.shares, self.base) = (limit, shares, base);
        self.next_sweep = now;
    }

    /// What was asked for since the last time, by key for those that want much.
    pub fn demand(&mut self, now: Instant) -> Demand {
        let elapsed = now.saturating_since(self.since);
        self.since = now;
        let mut demand = Demand {
            base: std::mem::take(&mut self.rest.asked),
            keys: BTreeMap::new(),
        };
        let mut hot: Vec<(u64, u64)> = Vec::new();
        for counted in self.buckets.values_mut() {
            let asked = std::mem::take(&mut counted.asked);
            demand.base += asked;
            let pace = Pace::of(&self.limit, self.shares.of(counted.hash));
            let much = asked > 0 && asked.saturating_mul(2) >= pace.tokens_in(elapsed);
            if much && !self.limit.key.is_empty() {
                hot.push((asked, counted.hash));
            }
        }
        hot.sort_unstable_by(|a, b| b.cmp(a));
        hot.truncate(HOT_KEYS_MAX);
        demand.keys = hot.into_iter().map(|(asked, key)| (key, asked)).collect();
        demand
    }

    /// Keys with a bucket of their own.
    pub fn keys(&self) -> usize {
        self.buckets.len()
    }

    fn pace_of(&self, key: &str) -> Pace {
        // Only shares by key need its hash.
        if self.shares.keys.is_empty() {
            return self.base;
        }
        match self.shares.keys.get(&key_hash(key)) {
            Some(share) => Pace::of(&self.limit, *share),
            None => self.base,
        }
    }

    fn bucket_mut(&mut self, key: &str, pace: &Pace, now: Instant) -> &mut Counted {
        if !self.buckets.contains_key(key) {
            if self.buckets.len() >= self.keys_max && self.next_sweep <= now {
                self.sweep(now);
            }
            if self.buckets.len() >= self.keys_max {
                return &mut self.rest;
            }
            let fresh = Counted {
                bucket: Bucket::full(pace, now),
                asked: 0,
                hash: key_hash(key),
            };
            return self.buckets.entry(key.into()).or_insert(fresh);
        }
        self.buckets.get_mut(key).unwrap_or(&mut self.rest)
    }

    /// Forgets full buckets: a fresh one is the same.
    fn sweep(&mut self, now: Instant) {
        let mut next = Instant::from_nanos(u64::MAX);
        let (limit, shares, base) = (&self.limit, &self.shares, self.base);
        let mut forgotten = 0;
        self.buckets.retain(|_key, counted| {
            let pace = match shares.keys.get(&counted.hash) {
                Some(share) => Pace::of(limit, *share),
                None => base,
            };
            let full_at = counted.bucket.full_at(&pace);
            if full_at <= now {
                forgotten += counted.asked;
                return false;
            }
            next = next.min(full_at);
            true
        });
        self.rest.asked += forgotten;
        self.next_sweep = now + SWEEP_MIN;
        if self.buckets.len() >= self.keys_max {
            // Taking from them only makes it later.
            self.next_sweep = next.max(self.next_sweep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, limit};
    use super::super::{RateKey, WHOLE};
    use super::*;

    fn limiter(requests: u64, burst: u64, keys_max: usize) -> Limiter {
        let mut limit = limit(requests, 1000, burst);
        limit.key = vec![RateKey::Caller];
        Limiter {
            keys_max,
            ..Limiter::new(Arc::new(limit), Shares::WHOLE, at(0))
        }
    }

    fn passes(limiter: &mut Limiter, key: &str, tries: usize, now: Instant) -> usize {
        let tries = (0..tries).filter(|_| limiter.take(key, now).allowed);
        tries.count()
    }

    #[test]
    fn every_key_has_its_own() {
        let mut limiter = limiter(1, 3, 10);
        assert_eq!(passes(&mut limiter, "a", 5, at(0)), 3);
        assert_eq!(passes(&mut limiter, "b", 5, at(0)), 3);
        assert_eq!(passes(&mut limiter, "a", 5, at(1000)), 1);
    }

    #[test]
    fn keys_are_bounded_and_the_rest_shares_a_bucket() {
        let mut limiter = limiter(1, 2, 3);
        for key in ["a", "b", "c"] {
            assert_eq!(passes(&mut limiter, key, 5, at(0)), 2);
        }
        assert_eq!(passes(&mut limiter, "d", 5, at(0)), 2);
        assert_eq!(passes(&mut limiter, "e", 5, at(0)), 0, "with d");
        assert_eq!(limiter.keys(), 3);
        // Two seconds fill them: whoever comes then has room.
        assert_eq!(passes(&mut limiter, "f", 5, at(2000)), 2);
        assert_eq!(limiter.keys(), 1);
        // One that is not full stays, and what it took stays taken.
        for key in ["g", "h"] {
            limiter.take(key, at(4000));
        }
        limiter.take("f", at(3500));
        assert_eq!(passes(&mut limiter, "i", 1, at(4100)), 1);
        assert_eq!(passes(&mut limiter, "g", 5, at(4100)), 1);
        assert!(limiter.keys() <= 3);
    }

    #[test]
    fn a_change_keeps_what_was_taken() {
        let mut limiter = limiter(10, 10, 10);
        assert_eq!(passes(&mut limiter, "a", 8, at(0)), 8);
        let raise = Arc::new(RateLimit {
            burst: 100,
            ..(**limiter.limit()).clone()
        });
        limiter.change(raise, Shares::WHOLE, at(0));
        assert_eq!(passes(&mut limiter, "a", 100, at(0)), 2, "no gift");
        assert_eq!(passes(&mut limiter, "a", 100, at(1000)), 10);
        let lower = Arc::new(RateLimit {
            burst: 3,
            ..(**limiter.limit()).clone()
        });
        limiter.change(lower, Shares::WHOLE, at(9000));
        assert_eq!(passes(&mut limiter, "a", 100, at(9000)), 3);
        let slower = Arc::new(RateLimit {
            per: Duration::from_secs(10),
            ..(**limiter.limit()).clone()
        });
        limiter.change(slower, Shares::WHOLE, at(10_000));
        assert_eq!(passes(&mut limiter, "a", 100, at(10_000)), 3);
        assert_eq!(passes(&mut limiter, "a", 100, at(11_000)), 1);
        let other_key = Arc::new(RateLimit {
            key: Vec::new(),
            ..(**limiter.limit()).clone()
        });
        limiter.change(other_key, Shares::WHOLE, at(11_000));
        assert_eq!(passes(&mut limiter, "", 100, at(11_000)), 3);
    }

    #[test]
    fn shares_are_parts_of_the_limit_by_key() {
        let mut limiter = limiter(100, 100, 10);
        let shares = Shares {
            base: WHOLE / 4,
            keys: [(key_hash("hot"), WHOLE / 2)].into(),
        };
        limiter.change(Arc::clone(limiter.limit()), shares, at(0));
        assert_eq!(passes(&mut limiter, "hot", 200, at(0)), 50);
        assert_eq!(passes(&mut limiter, "cold", 200, at(0)), 25);
        assert_eq!(passes(&mut limiter, "hot", 200, at(500)), 25);
        assert_eq!(passes(&mut limiter, "cold", 200, at(500)), 12);
        let demand = limiter.demand(at(1000));
        assert_eq!(demand.base, 800);
        assert_eq!(demand.keys.get(&key_hash("hot")), Some(&400));
        assert_eq!(limiter.demand(at(2000)), Demand::default());
        let nothing = Shares {
            base: 0,
            keys: BTreeMap::new(),
        };
        limiter.change(Arc::clone(limiter.limit()), nothing, at(2000));
        let refused = limiter.take("hot", at(9000));
        assert_eq!((refused.allowed, refused.wait), (false, Duration::MAX));
    }

    #[test]
    fn what_is_given_back_can_be_taken() {
        let mut limiter = limiter(1, 2, 1);
        assert_eq!(passes(&mut limiter, "a", 5, at(0)), 2);
        limiter.give_back("a");
        assert_eq!(passes(&mut limiter, "a", 5, at(0)), 1);
        assert_eq!(passes(&mut limiter, "b", 5, at(0)), 2);
        limiter.give_back("b");
        assert_eq!(passes(&mut limiter, "c", 5, at(0)), 1);
    }
}
