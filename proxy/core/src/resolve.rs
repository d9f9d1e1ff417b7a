//! When a name is resolved again, and what counts meanwhile.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::external::ADDRESSES_MAX;
use crate::time::Instant;

/// An answer is used for at least this long, whatever its TTL says.
pub const TTL_MIN: Duration = Duration::from_secs(5);
/// An answer is asked for again after this long at the latest.
pub const TTL_MAX: Duration = Duration::from_secs(300);
/// After a failure: the first wait, doubled up to the longest.
pub const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest wait after a failure.
pub const RETRY_MAX: Duration = Duration::from_secs(10);

/// What asking for a name came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It has addresses.
    Addresses {
        /// Which, in any order.
        addresses: Vec<IpAddr>,
        /// How long the answer holds.
        ttl: Duration,
    },
    /// It has none, or nobody could say.
    Nothing {
        /// Why.
        reason: String,
    },
}

/// One name over time. The last good answer counts until there is another.
#[derive(Debug, Clone)]
pub struct Resolution {
    addresses: Arc<[IpAddr]>,
    failure: Option<Arc<str>>,
    failures: u32,
    due: Instant,
}

impl Resolution {
    /// A name that nobody has asked for yet.
    pub fn new(now: Instant) -> Self {
        Self {
            addresses: Arc::default(),
            failure: None,
            failures: 0,
            due: now,
        }
    }

    /// Its addresses, ascending; none until there was a good answer.
    pub fn addresses(&self) -> &Arc<[IpAddr]> {
        &self.addresses
    }

    /// Why there are no addresses; `None` where there are, or nobody has answered yet.
    pub fn failure(&self) -> Option<&Arc<str>> {
        self.failure.as_ref()
    }

    /// When it is to be asked for.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Takes an answer; whether it changed what counts. `random` spreads the sidecars of a mesh: up
    /// to an eighth of the time is taken off.
    pub fn handle_answer(&mut self, found: Found, now: Instant, random: u64) -> bool {
        let wait = match &found {
            Found::Addresses { ttl, .. } => {
                self.failures = 0;
                (*ttl).clamp(TTL_MIN, TTL_MAX)
            }
            Found::Nothing { .. } => {
                self.failures = self.failures.saturating_add(1);
                let doubled = 1u32 << (self.failures - 1).min(8);
                (RETRY_FIRST * doubled).min(RETRY_MAX)
            }
        };
        let floor = match &found {
            Found::Addresses { .. } => TTL_MIN,
            Found::Nothing { .. } => Duration::ZERO,
        };
        let share = (random >> 32) as f64 / f64::from(u32::MAX);
        self.due = now + wait.mul_f64(1.0 - share / 8.0).max(floor);
        match found {
            Found::Addresses { mut addresses, .. } => {
                addresses.sort_unstable();
                addresses.dedup();
                addresses.truncate(ADDRESSES_MAX);
                let changed = self.failure.take().is_some() || *self.addresses != *addresses;
                self.addresses = addresses.into();
                changed
            }
            Found::Nothing { .. } if !self.addresses.is_empty() => false,
            Found::Nothing { reason } => {
                let changed = self.failure.as_deref() != Some(&reason);
                self.failure = Some(reason.into());
                changed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(addresses: &[[u8; 4]], ttl: u64) -> Found {
        Found::Addresses {
            addresses: addresses.iter().map(|a| IpAddr::from(*a)).collect(),
            ttl: Duration::from_secs(ttl),
        }
    }

    fn nothing() -> Found {
        Found::Nothing {
            reason: "NXDOMAIN".to_owned(),
        }
    }

    #[test]
    fn the_last_good_answer_counts() {
        let now = Instant::from_nanos(0);
        let mut name = Resolution::new(now);
        assert_eq!(name.due(), now);
        assert!(name.handle_answer(nothing(), now, 0));
        assert_eq!(name.failure().map(|f| &**f), Some("NXDOMAIN"));
        assert!(!name.handle_answer(nothing(), now, 0));
        assert!(name.handle_answer(found(&[[10, 0, 0, 2], [10, 0, 0, 1]], 30), now, 0));
        assert_eq!(name.failure(), None);
        assert!(!name.handle_answer(found(&[[10, 0, 0, 1], [10, 0, 0, 2]], 30), now, 0));
        assert!(!name.handle_answer(nothing(), now, 0));
        assert_eq!(name.addresses().len(), 2);
        assert_eq!(name.failure(), None);
        assert!(name.handle_answer(found(&[[10, 0, 0, 3]], 30), now, 0));
        assert_eq!(name.addresses().len(), 1);
    }

    #[test]
    fn when_it_is_asked_for_again() {
        let cases = [
            (found(&[[1, 2, 3, 4]], 0), TTL_MIN),
            (found(&[[1, 2, 3, 4]], 60), Duration::from_secs(60)),
            (found(&[[1, 2, 3, 4]], 86_400), TTL_MAX),
            (nothing(), RETRY_FIRST),
        ];
        for (answer, expected) in cases {
            let mut name = Resolution::new(Instant::from_nanos(0));
            name.handle_answer(answer.clone(), Instant::from_nanos(7), 0);
            assert_eq!(name.due(), Instant::from_nanos(7) + expected, "{answer:?}");
        }
        let mut name = Resolution::new(Instant::from_nanos(0));
        for _ in 0..100 {
            name.handle_answer(nothing(), Instant::from_nanos(0), 0);
        }
        assert_eq!(name.due(), Instant::from_nanos(0) + RETRY_MAX);
    }

    proptest! {
        /// Whatever comes: what was once found stays until something else is found, and it is never
        /// asked for too soon or too late.
        #[test]
        fn always(answers in proptest::collection::vec((any::<bool>(), 0u8..4, 0u64..1000, any::<u64>()), 1..50)) {
            let mut name = Resolution::new(Instant::from_nanos(0));
            let mut now = Instant::from_nanos(0);
            for (good, address, ttl, random) in answers {
                let before = name.addresses().clone();
                let answer = if good { found(&[[10, 0, 0, address]], ttl) } else { nothing() };
                let changed = name.handle_answer(answer, now, random);
                let wait = name.due().saturating_since(now);
                if good {
                    prop_assert_eq!(&**name.addresses(), &[IpAddr::from([10, 0, 0, address])]);
                    prop_assert!(wait >= TTL_MIN && wait <= TTL_MAX);
                } else {
                    prop_assert_eq!(name.addresses(), &before);
                    prop_assert!(wait <= RETRY_MAX && wait >= RETRY_FIRST.mul_f64(0.87));
                    prop_assert_eq!(name.failure().is_some(), before.is_empty());
                }
                prop_assert!(changed || *before == **name.addresses());
                now = name.due();
            }
        }
    }
}
