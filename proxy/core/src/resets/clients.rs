//! The reset budgets of all clients of a process, in bounded memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Excess, ResetBudget, ResetPolicy};
use crate::connections::Client;
use crate::time::Instant;

/// Clients whose resets are remembered at a time.
pub const CLIENTS_MAX: usize = 4096;
/// Share of the clients that is forgotten when there are too many.
const FORGOTTEN_SHARE: usize = 4;

/// Whom resets are charged to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ResetClient {
    /// A client outside the mesh, by its address.
    Outside(Client),
    /// Another sidecar, by its verified instance.
    Peer(Arc<str>),
    /// The workload's own program.
    Program,
}

impl ResetClient {
    /// A client outside the mesh. All addresses of an IPv6 /64 are one client.
    pub fn outside(address: IpAddr) -> Self {
        Self::Outside(Client::at(address))
    }

    /// Its budget.
    pub const fn policy(&self) -> ResetPolicy {
        match self {
            Self::Outside(_) => ResetPolicy::OUTSIDE,
            Self::Peer(_) => ResetPolicy::PEER,
            Self::Program => ResetPolicy::PROGRAM,
        }
    }
}

/// How a client stands with its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResetStanding {
    /// Whether it has made resets that have not been made up for yet.
    pub is_touched: bool,
    /// How long it takes until its debt is paid; zero where it has none.
    pub debt: Duration,
}

/// The budgets of clients that have reset requests lately; every other client has a whole one.
///
/// At most `most` are remembered. For another one, those are forgotten whose budgets are nearest to
/// whole: filling the table to have a budget forgotten takes more resets, by other clients, than it
/// forgives.
#[derive(Debug)]
pub struct ResetBudgets {
    most: usize,
    budgets: HashMap<ResetClient, ResetBudget>,
}

impl Default for ResetBudgets {
    fn default() -> Self {
        Self::new(CLIENTS_MAX)
    }
}

impl ResetBudgets {
    /// Whole budgets, of which at most `most` are remembered once they are not.
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            budgets: HashMap::new(),
        }
    }

    /// A client has reset a request. Says what is to happen to the connection, if anything.
    pub fn on_reset(&mut self, client: &ResetClient, now: Instant) -> Option<Excess> {
        if let Some(budget) = self.budgets.get_mut(client) {
            return budget.on_reset(now);
        }
        if self.budgets.len() >= self.most {
            self.make_room(now);
        }
        let mut budget = ResetBudget::new(client.policy(), now);
        let excess = budget.on_reset(now);
        self.budgets.insert(client.clone(), budget);
        excess
    }

    /// A client pays for a reset that may come ([`ResetBudget::deposit`]); one that owes nothing does
    /// not.
    pub fn deposit(&mut self, client: &ResetClient, now: Instant) -> bool {
        let budget = self.budgets.get_mut(client);
        budget.is_some_and(|budget| budget.deposit(now))
    }

    /// Gives a client's deposit back.
    pub fn refund(&mut self, client: &ResetClient, now: Instant) {
        if let Some(budget) = self.budgets.get_mut(client) {
            budget.refund(now);
        }
    }

    /// How a client stands.
    pub fn standing(&mut self, client: &ResetClient, now: Instant) -> ResetStanding {
        let Some(budget) = self.budgets.get_mut(client) else {
            return ResetStanding::default();
        };
        if !budget.is_touched(now) {
            self.budgets.remove(client);
            return ResetStanding::default();
        }
        ResetStanding {
            is_touched: true,
            debt: budget.debt(now),
        }
    }

    /// Clients that are remembered.
    pub fn len(&self) -> usize {
        self.budgets.len()
    }

    /// Whether every client has a whole budget.
    pub fn is_empty(&self) -> bool {
        self.budgets.is_empty()
    }

    fn make_room(&mut self, now: Instant) {
        self.budgets
            .retain(|_client, budget| budget.is_touched(now));
        if self.budgets.len() < self.most {
            return;
        }
        let mut spent: Vec<i64> = self.budgets.values().map(ResetBudget::spent).collect();
        let at = (spent.len() / FORGOTTEN_SHARE).min(spent.len() - 1);
        let (_, &mut bound, _) = spent.select_nth_unstable(at);
        let less = spent.iter().filter(|spent| **spent < bound).count();
        let mut equal = at + 1 - less;
        self.budgets.retain(|_client, budget| {
            let is_equal = equal > 0 && budget.spent() == bound;
            equal -= usize::from(is_equal);
            budget.spent() >= bound && !is_equal
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(number: u32) -> ResetClient {
        ResetClient::Peer(number.to_string().into())
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_client_has_one_budget_and_others_have_their_own() {
        let mut budgets = ResetBudgets::default();
        let burst = ResetPolicy::PEER.burst;
        assert!((0..burst).all(|_| budgets.on_reset(&peer(1), at(0)).is_none()));
        assert_eq!(budgets.on_reset(&peer(1), at(0)), Some(Excess::Slow));
        assert!(budgets.standing(&peer(1), at(0)).debt > Duration::ZERO);
        assert_eq!(budgets.on_reset(&peer(2), at(0)), None);
        assert_eq!(budgets.standing(&peer(2), at(0)).debt, Duration::ZERO);
        assert_eq!(budgets.standing(&peer(3), at(0)), ResetStanding::default());
        assert_eq!(budgets.len(), 2);
        // Whole again, it is forgotten.
        assert!(!budgets.standing(&peer(1), at(60_000)).is_touched);
        assert_eq!(budgets.len(), 1);
    }

    #[test]
    fn a_network_of_one_host_is_one_client() {
        let client = |address: &str| ResetClient::outside(address.parse().unwrap());
        assert_eq!(client("2001:db8::1"), client("2001:db8::2:3"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"));
        assert_ne!(client("10.0.0.2"), client("10.0.0.1"));
    }

    #[test]
    fn a_flood_of_clients_does_not_make_a_debt_forgotten() {
        let mut budgets = ResetBudgets::new(8);
        for _ in 0..ResetPolicy::PEER.burst + 1000 {
            budgets.on_reset(&peer(0), at(0));
        }
        let debt = budgets.standing(&peer(0), at(0)).debt;
        for number in 1..10_000 {
            budgets.on_reset(&peer(number), at(0));
            assert!(budgets.len() <= 8);
        }
        assert_eq!(budgets.standing(&peer(0), at(0)).debt, debt);
    }

    proptest! {
        /// Whatever many clients do: memory is bounded, and who is forgotten has not spent more
        /// than anybody who is remembered.
        #[test]
        fn those_nearest_to_whole_are_forgotten(
            resets in proptest::collection::vec((0u32..20, 1u32..30, 0u64..3), 1..200),
        ) {
            let mut budgets = ResetBudgets::new(6);
            let mut now = 0;
            for (number, count, passed) in resets {
                now += passed;
                let before: Vec<_> = budgets.budgets.clone().into_iter().collect();
                for _ in 0..count {
                    budgets.on_reset(&peer(number), at(now));
                }
                prop_assert!(budgets.len() <= 6);
                let gone = before.iter().filter(|(client, _)| !budgets.budgets.contains_key(client));
                let spent = |budget: &ResetBudget| {
                    let mut budget = *budget;
                    budget.is_touched(at(now));
                    budget.spent()
                };
                let most = gone.map(|(_, budget)| spent(budget)).max().unwrap_or(0);
                let kept = before.iter().filter(|(client, _)| budgets.budgets.contains_key(client));
                let least = kept.map(|(_, budget)| spent(budget)).min().unwrap_or(i64::MAX);
                prop_assert!(most <= least, "{most} {least}");
            }
        }
    }
}
