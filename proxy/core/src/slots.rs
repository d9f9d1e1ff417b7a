//! Places for connections of clients that are not known: some for each, some in all, and a newcomer
//! finds one whoever has the others.

use std::collections::{BTreeMap, HashMap};

use crate::connections::Client;

/// Connections that are open.
#[derive(Debug)]
pub struct Slots {
    max: usize,
    per_address: usize,
    /// The oldest first.
    open: BTreeMap<u64, Client>,
    counts: HashMap<Client, usize>,
    next: u64,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Its address has as many as one may have: it is closed.
    Refused,
    /// It has a place.
    Admitted {
        /// What to give back.
        ticket: u64,
        /// A connection that has to be closed for it, and has no place any more.
        evicted: Option<u64>,
    },
}

impl Slots {
    /// At most `max` in all, and `per_address` of one address; those of the application are bounded by
    /// `max` only.
    pub fn new(max: usize, per_address: usize) -> Self {
        Self {
            max,
            per_address,
            open: BTreeMap::new(),
            counts: HashMap::new(),
            next: 0,
        }
    }

    /// Admits a connection. Where all places are taken, the oldest connection of the client with the
    /// most gives way: nobody is kept out by those who keep connections open.
    pub fn admit(&mut self, client: Client) -> Admission {
        let own = self.counts.get(&client).copied().unwrap_or(0);
        let limit = self.per_address.min(self.max);
        if client != Client::Application && own >= limit {
            return Admission::Refused;
        }
        let evicted = match self.open.len() >= self.max {
            true => self.oldest_of_the_largest(),
            false => None,
        };
        if let Some(evicted) = evicted {
            self.remove(evicted);
        }
        let ticket = self.next;
        self.next += 1;
        *self.counts.entry(client.clone()).or_default() += 1;
        self.open.insert(ticket, client);
        Admission::Admitted { ticket, evicted }
    }

    /// A connection has ended, or was evicted before.
    pub fn remove(&mut self, ticket: u64) {
        let Some(client) = self.open.remove(&ticket) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&client);
            }
        }
    }

    fn oldest_of_the_largest(&self) -> Option<u64> {
        let most = self.counts.values().max()?;
        let mut oldest_first = self.open.iter();
        let found = oldest_first.find(|(_, client)| self.counts.get(client) == Some(most))?;
        Some(*found.0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn address(last: u8) -> Client {
        Client::at(IpAddr::from([192, 0, 2, last]))
    }

    fn admitted(ticket: u64, evicted: Option<u64>) -> Admission {
        Admission::Admitted { ticket, evicted }
    }

    #[test]
    fn a_newcomer_finds_a_place() {
        let mut slots = Slots::new(4, 2);
        assert_eq!(slots.admit(address(1)), admitted(0, None));
        assert_eq!(slots.admit(address(1)), admitted(1, None));
        assert_eq!(slots.admit(address(1)), Admission::Refused);
        assert_eq!(slots.admit(address(2)), admitted(2, None));
        assert_eq!(slots.admit(address(3)), admitted(3, None));
        // The first has the most, and its oldest goes.
        assert_eq!(slots.admit(address(4)), admitted(4, Some(0)));
        // All have one: the oldest goes.
        assert_eq!(slots.admit(address(5)), admitted(5, Some(1)));
        assert_eq!(slots.admit(Client::Application), admitted(6, Some(2)));
        slots.remove(0);
        slots.remove(4);
        assert_eq!(slots.admit(address(1)), admitted(7, None));
    }

    #[test]
    fn the_application_has_only_the_whole_limit() {
        let mut slots = Slots::new(3, 1);
        for n in 0..3 {
            assert_eq!(slots.admit(Client::Application), admitted(n, None));
        }
        assert_eq!(slots.admit(Client::Application), admitted(3, Some(0)));
        assert_eq!(slots.admit(address(1)), admitted(4, Some(1)));
    }

    proptest! {
        #[test]
        fn limits_hold_whatever_comes(steps in prop::collection::vec((any::<bool>(), 0u8..6), 0..200)) {
            let mut slots = Slots::new(5, 2);
            let mut open: Vec<(u64, u8)> = Vec::new();
            for (comes, client) in steps {
                if comes {
                    match slots.admit(address(client)) {
                        Admission::Refused => {
                            prop_assert_eq!(open.iter().filter(|(_, of)| *of == client).count(), 2);
                        }
                        Admission::Admitted { ticket, evicted } => {
                            prop_assert_eq!(evicted.is_some(), open.len() == 5);
                            open.retain(|(one, _)| Some(*one) != evicted);
                            open.push((ticket, client));
                        }
                    }
                } else if !open.is_empty() {
                    let (ticket, _) = open.remove(usize::from(client) % open.len());
                    slots.remove(ticket);
                }
                prop_assert!(open.len() <= 5);
                prop_assert_eq!(slots.open.len(), open.len());
                prop_assert_eq!(slots.counts.values().sum::<usize>(), open.len());
            }
        }
    }
}
