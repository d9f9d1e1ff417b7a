//! How often peers may check.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::peer::VerifiedPeer;
use crate::time::Instant;

/// Health checks of one instance that a sidecar takes as such on one port, per second and in a burst.
/// Twice as many as one policy can ask of a caller ([`super::MIN_CHECK_INTERVAL`]).
pub const CHECKS_PER_SECOND: u32 = 20;
/// Instances whose checks are counted; those of others are none, until one of these has not checked
/// for a second.
pub const CHECKING_PEERS_MAX: usize = 10_000;

/// What a check costs of the second.
const COST: Duration = Duration::from_nanos(1_000_000_000 / CHECKS_PER_SECOND as u64);
/// What may be owed: a burst.
const DEBT_MAX: Duration = Duration::from_secs(1);

/// The checks of each peer on one port: a token bucket of [`CHECKS_PER_SECOND`], kept as the moment
/// when it is full again (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug, Default)]
pub struct CheckBudget(HashMap<Arc<str>, Instant>);

impl CheckBudget {
    /// Takes a check of a peer; false where it has none left.
    pub fn take(&mut self, peer: &VerifiedPeer, now: Instant) -> bool {
        self.take_of(peer.instance(), now)
    }

    fn take_of(&mut self, instance: &Arc<str>, now: Instant) -> bool {
        if !self.0.contains_key(instance) {
            if self.0.len() >= CHECKING_PEERS_MAX {
                // Buckets that are full are as good as new ones.
                self.0.retain(|_instance, full_at| *full_at > now);
            }
            if self.0.len() >= CHECKING_PEERS_MAX {
                return false;
            }
        }
        let full_at = self.0.entry(Arc::clone(instance)).or_insert(now);
        let next = (*full_at).max(now) + COST;
        let allowed = next.saturating_since(now) <= DEBT_MAX;
        if allowed {
            *full_at = next;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Instant {
        Instant::from_nanos(5_000_000_000 + millis * 1_000_000)
    }

    fn taken(budget: &mut CheckBudget, name: &str, now: Instant, tries: u32) -> u32 {
        let instance: Arc<str> = name.into();
        let tries = (0..tries).filter(|_| budget.take_of(&instance, now));
        u32::try_from(tries.count()).unwrap()
    }

    #[test]
    fn a_storm_gets_a_burst_and_then_its_rate() {
        let mut budget = CheckBudget::default();
        assert_eq!(taken(&mut budget, "a", at(0), 1000), CHECKS_PER_SECOND);
        assert_eq!(taken(&mut budget, "a", at(49), 10), 0);
        assert_eq!(taken(&mut budget, "a", at(50), 10), 1);
        assert_eq!(taken(&mut budget, "a", at(1_050), 100), CHECKS_PER_SECOND);
        // Nobody else pays for it.
        assert_eq!(taken(&mut budget, "b", at(1_050), 100), CHECKS_PER_SECOND);
    }

    #[test]
    fn the_fastest_policy_is_within_it() {
        let mut budget = CheckBudget::default();
        let interval = super::super::MIN_CHECK_INTERVAL.as_millis() as u64;
        let all = (0..1000).all(|n| taken(&mut budget, "a", at(n * interval), 1) == 1);
        assert!(all);
    }

    #[test]
    fn peers_are_bounded() {
        let mut budget = CheckBudget::default();
        for n in 0..CHECKING_PEERS_MAX {
            assert_eq!(taken(&mut budget, &n.to_string(), at(0), 1), 1);
        }
        assert_eq!(taken(&mut budget, "late", at(49), 1), 0);
        assert_eq!(taken(&mut budget, "late", at(50), 1), 1);
        assert_eq!(budget.0.len(), 1);
    }
}
