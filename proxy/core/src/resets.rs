//! The budget of HTTP/2 streams that a client may open and reset before they are answered
//! (CVE-2023-44487, "Rapid Reset"), and of tunnels that it may open and give up: a token bucket that may
//! go into debt, since a reset is known only when it has happened. All connections of a client share
//! one budget.

mod clients;
mod tunnel;

use std::time::Duration;

use crate::time::Instant;

pub use clients::{CLIENTS_MAX, ResetBudgets, ResetClient, ResetStanding};
pub use tunnel::{ClientEnd, TUNNEL_BRIEF, TunnelUse};

/// What happens to a connection whose client has spent its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Nothing more is read of it until the debt is paid.
    Slow,
    /// It is closed with GOAWAY and ENHANCE_YOUR_CALM (RFC 9113 section 7).
    Close,
}

/// How many resets a client may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetPolicy {
    /// Resets at once.
    pub burst: u32,
    /// Resets in a second, for as long as the client likes.
    pub per_second: u32,
    /// What happens beyond that.
    pub excess: Excess,
}

impl ResetPolicy {
    /// For clients outside the mesh, per source address.
    pub const OUTSIDE: Self = Self {
        burst: 500,
        per_second: 100,
        excess: Excess::Close,
    };

    /// For the workload's own program. It is below [`Self::PEER`], so that what the program does
    /// never costs its sidecar anything elsewhere.
    pub const PROGRAM: Self = Self {
        burst: 2_000,
        per_second: 1_000,
        excess: Excess::Slow,
    };

    /// For another sidecar, per instance. Its connections carry the requests of many callers, and
    /// closing one would end them all.
    pub const PEER: Self = Self {
        burst: 10_000,
        per_second: 2_000,
        excess: Excess::Slow,
    };
}

/// Units of a token: a nanosecond brings [`ResetPolicy::per_second`] of them.
const TOKEN: i64 = 1_000_000_000;

/// What is left of a client's budget.
#[derive(Debug, Clone, Copy)]
pub struct ResetBudget {
    policy: ResetPolicy,
    /// In units of [`TOKEN`]; below zero it is a debt, of at most a whole burst.
    level: i64,
    at: Instant,
}

impl ResetBudget {
    /// A whole budget.
    pub fn new(policy: ResetPolicy, now: Instant) -> Self {
        Self {
            policy,
            level: i64::from(policy.burst) * TOKEN,
            at: now,
        }
    }

    /// How far it is from whole, as of the last time that it was asked.
    fn spent(&self) -> i64 {
        i64::from(self.policy.burst) * TOKEN - self.level
    }

    /// A reset was seen. Says what is to happen to the connection, if anything.
    pub fn on_reset(&mut self, now: Instant) -> Option<Excess> {
        self.settle(now);
        let burst = i64::from(self.policy.burst) * TOKEN;
        self.level = (self.level - TOKEN).max(-burst);
        (self.level < 0).then_some(self.policy.excess)
    }

    /// Pays for a reset that may come. Whether the debt had room for it: only what was paid may be
    /// given back by [`Self::refund`].
    pub fn deposit(&mut self, now: Instant) -> bool {
        self.settle(now);
        let floor = -i64::from(self.policy.burst) * TOKEN;
        let has_room = self.level - TOKEN >= floor;
        if has_room {
            self.level -= TOKEN;
        }
        has_room
    }

    /// Gives a deposit back.
    pub fn refund(&mut self, now: Instant) {
        self.settle(now);
        let burst = i64::from(self.policy.burst) * TOKEN;
        self.level = (self.level + TOKEN).min(burst);
    }

    /// How long it takes until the debt is paid; zero where there is none.
    pub fn debt(&mut self, now: Instant) -> Duration {
        self.settle(now);
        let owed = u64::try_from(-self.level).unwrap_or_default();
        match u64::from(self.policy.per_second) {
            0 => Duration::from_secs(u64::from(owed > 0) * 3600),
            gain => Duration::from_nanos(owed.div_ceil(gain)),
        }
    }

    /// Whether resets were seen that have not been made up for yet.
    pub fn is_touched(&mut self, now: Instant) -> bool {
        self.settle(now);
        self.level < i64::from(self.policy.burst) * TOKEN
    }

    fn settle(&mut self, now: Instant) {
        let elapsed = now.saturating_since(self.at).as_nanos();
        let gain = elapsed.saturating_mul(u128::from(self.policy.per_second));
        let gain = i64::try_from(gain).unwrap_or(i64::MAX);
        let burst = i64::from(self.policy.burst) * TOKEN;
        self.level = self.level.saturating_add(gain).min(burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: ResetPolicy = ResetPolicy {
        burst: 10,
        per_second: 5,
        excess: Excess::Slow,
    };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_burst_is_free_and_the_next_one_is_not() {
        let mut budget = ResetBudget::new(POLICY, at(0));
        assert!(!budget.is_touched(at(0)));
        assert!((0..10).all(|_| budget.on_reset(at(0)).is_none()));
        assert_eq!(budget.debt(at(0)), Duration::ZERO);
        assert_eq!(budget.on_reset(at(0)), Some(Excess::Slow));
        assert_eq!(budget.debt(at(0)), Duration::from_millis(200));
        assert_eq!(budget.debt(at(150)), Duration::from_millis(50));
        assert_eq!(budget.debt(at(200)), Duration::ZERO);
        assert!(budget.is_touched(at(200)));
        assert!(!budget.is_touched(at(10_000)));
    }

    #[test]
    fn the_debt_is_bounded() {
        let mut budget = ResetBudget::new(POLICY, at(0));
        for _ in 0..100_000 {
            budget.on_reset(at(0));
        }
        assert_eq!(budget.debt(at(0)), Duration::from_secs(2));
    }

    #[test]
    fn a_clock_that_goes_back_brings_nothing() {
        let mut budget = ResetBudget::new(POLICY, at(1_000));
        for _ in 0..11 {
            budget.on_reset(at(1_000));
        }
        assert_eq!(budget.debt(at(0)), Duration::from_millis(200));
        assert_eq!(budget.debt(at(1_000)), Duration::from_millis(200));
    }

    #[test]
    fn a_program_stays_within_what_its_peers_bear() {
        let (program, peer) = (ResetPolicy::PROGRAM, ResetPolicy::PEER);
        assert!(program.burst < peer.burst && program.per_second < peer.per_second);
    }

    proptest! {
        /// Whatever the moments are: within a time there are never more resets free of charge than a
        /// burst and what the time brings.
        #[test]
        fn never_more_than_the_rate(steps in proptest::collection::vec(0u64..400, 1..200)) {
            let mut budget = ResetBudget::new(POLICY, at(0));
            let (mut now, mut free) = (0, 0u64);
            for step in steps {
                now += step;
                free += u64::from(budget.on_reset(at(now)).is_none());
                prop_assert!(free <= 10 + now * 5 / 1000);
                prop_assert!(budget.debt(at(now)) <= Duration::from_secs(2));
            }
        }
    }

    /// A deposit deepens the debt as far as that may go, and no further: giving back what was not paid
    /// would forgive it.
    #[test]
    fn only_what_was_paid_is_given_back() {
        let mut budget = ResetBudget::new(POLICY, at(0));
        for _ in 0..15 {
            budget.on_reset(at(0));
        }
        let owed = budget.debt(at(0));
        let paid = (0..10).filter(|_| budget.deposit(at(0))).count();
        assert_eq!(paid, 5);
        assert_eq!(budget.debt(at(0)), Duration::from_secs(2));
        for _ in 0..paid {
            budget.refund(at(0));
        }
        assert_eq!(budget.debt(at(0)), owed);
        // A budget that is whole again stays so.
        assert!(budget.deposit(at(60_000)));
        assert!(budget.is_touched(at(60_000)));
        budget.refund(at(70_000));
        assert!(!budget.is_touched(at(70_000)));
    }
}
