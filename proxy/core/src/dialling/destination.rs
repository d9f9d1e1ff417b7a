//! One destination: its connections and the requests that wait for one.

use std::time::Duration;

use super::demand::Demand;
use super::entries::Entries;
use super::queue::Queue;
use super::want::{Kind, own_share};
use super::{Connection, Grant, Terms, Want};
use crate::time::Instant;

/// The connections to one destination, as indices of a set's entries.
#[derive(Debug)]
pub(super) struct Destination<W> {
    /// Those of the request that came last.
    pub(super) terms: Terms,
    pub(super) queue: Queue<W>,
    pub(super) dialling: u32,
    /// Exclusive connections that carry nothing; the one used last is taken first, so that the
    /// others may end.
    pub(super) idle: Vec<usize>,
    /// Connections for several requests at a time.
    shared: Vec<usize>,
    /// Concurrent requests that the server last said to take.
    pub(super) streams: Option<u32>,
    /// Whether connections are exclusive, once one has shown it.
    is_exclusive: Option<bool>,
}

impl<W> Destination<W> {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            queue: Queue::default(),
            dialling: 0,
            idle: Vec::new(),
            shared: Vec::new(),
            streams: None,
            is_exclusive: None,
        }
    }

    pub(super) fn is_unused(&self) -> bool {
        self.dialling == 0 && self.queue.is_empty()
    }

    /// A place on a connection that stands. Those that may not be used any more are closed, or
    /// finish what they carry.
    pub(super) fn take<K, C: Connection + Clone>(
        &mut self,
        entries: &mut Entries<K, C>,
        terms: &Terms,
        any_generation: bool,
    ) -> Option<Grant<C>> {
        let index = self
            .take_idle(entries, terms, any_generation)
            .or_else(|| self.with_room(entries, terms, any_generation))?;
        let grant = grant(entries, index);
        if matches!(terms.want, Want::Own(_)) {
            self.forget(index);
            entries.make_own(index);
        }
        grant
    }

    /// The first connection for several requests that has room for one more.
    fn with_room<K, C: Connection>(
        &mut self,
        entries: &mut Entries<K, C>,
        terms: &Terms,
        any_generation: bool,
    ) -> Option<usize> {
        self.shared.retain(|&index| {
            let stays = entries.peek(index);
            let stays = stays.is_some_and(|entry| entry.is_usable(terms));
            if !stays {
                entries.finish(index);
            }
            stays
        });
        let fits = |index: &&usize| {
            let entry = entries.peek(**index);
            entry.is_some_and(|entry| {
                (any_generation || entry.generation == terms.generation)
                    && entry.has_room(terms)
                    && entry.suits(terms.want)
            })
        };
        self.shared.iter().find(fits).copied()
    }

    /// Gives the waiting request that came first of those for whom there is room its place. Those that
    /// came after one that a connection has to be made for are not served where that one waits
    /// `in_turn`: at the limit on connections they would use each that comes free.
    pub(super) fn serve<K, C: Connection + Clone>(
        &mut self,
        entries: &mut Entries<K, C>,
        any_generation: bool,
        in_turn: bool,
    ) -> Option<(W, Grant<C>)> {
        let own_room = self.own_room(entries);
        let mut firsts = Kind::ALL.map(|kind| match kind {
            Kind::Own if own_room == 0 => None,
            Kind::Any | Kind::Used | Kind::Made | Kind::Own => self.queue.first(kind),
        });
        firsts.sort_unstable_by_key(|first| first.map(|(ticket, _want)| ticket));
        for (ticket, want) in firsts.into_iter().flatten() {
            let terms = Terms { want, ..self.terms };
            if let Some(grant) = self.take(entries, &terms, any_generation) {
                return Some((self.queue.remove(ticket)?, grant));
            }
            let is_made = matches!(want.kind(), Kind::Made | Kind::Own);
            if in_turn && is_made && self.lacks_dials(entries) {
                return None;
            }
        }
        None
    }

    /// Whether requests wait for which a connection has to be made, and no dial has been begun.
    pub(super) fn lacks_dials<K, C>(&self, entries: &Entries<K, C>) -> bool {
        let alone = self.queue.alone(self.own_room(entries));
        self.dialling < alone.min(self.terms.bounds.dials)
    }

    /// Takes out the waiting requests that a dial would have served that has failed.
    pub(super) fn unserved<K, C>(&mut self, entries: &Entries<K, C>) -> Vec<W> {
        let own_room = self.own_room(entries);
        let (alone, rest) = (self.queue.nth_alone(0, own_room), self.queue.nth_sharing(0));
        match (alone, rest) {
            (Some(alone), rest) if rest.is_none_or(|rest| alone < rest) => {
                self.queue.remove(alone).into_iter().collect()
            }
            _ => {
                let most = self.per_connection().min(self.queue.sharing());
                let told = (0..most).map_while(|_| {
                    let ticket = self.queue.nth_sharing(0)?;
                    self.queue.remove(ticket)
                });
                told.collect()
            }
        }
    }

    /// How many more requests may have a connection of their own.
    fn own_room<K, C>(&self, entries: &Entries<K, C>) -> u32 {
        own_share(self.terms.bounds.connections).saturating_sub(entries.own())
    }

    /// The exclusive connection used last that takes a request at once.
    fn take_idle<K, C: Connection>(
        &mut self,
        entries: &mut Entries<K, C>,
        terms: &Terms,
        any_generation: bool,
    ) -> Option<usize> {
        for at in (0..self.idle.len()).rev() {
            let index = self.idle[at];
            let Some(entry) = entries.peek(index) else {
                self.idle.remove(at);
                continue;
            };
            let fits = any_generation || entry.generation == terms.generation;
            if !fits || !entry.is_usable(terms) {
                self.idle.remove(at);
                entries.remove(index);
            } else if entry.suits(terms.want) && entry.connection.is_ready() {
                return Some(self.idle.remove(at));
            }
        }
        None
    }

    /// Adds a connection that has just been made. Those of other generations finish what they carry.
    pub(super) fn add<K, C>(&mut self, entries: &mut Entries<K, C>, index: usize) {
        self.dialling = self.dialling.saturating_sub(1);
        let Some(entry) = entries.peek(index) else {
            return;
        };
        let generation = entry.generation;
        self.is_exclusive = Some(entry.is_exclusive);
        if entry.is_exclusive {
            self.idle.push(index);
            return;
        }
        self.streams = Some(entry.streams);
        if generation == self.terms.generation {
            self.shared.retain(|&other| {
                let other_entry = entries.peek(other);
                let stays = other_entry.is_some_and(|entry| entry.generation == generation);
                if !stays {
                    entries.finish(other);
                }
                stays
            });
        }
        self.shared.push(index);
    }

    /// How many requests a connection that is dialled now will take at a time, as far as is known.
    pub(super) fn per_connection(&self) -> u32 {
        match self.is_exclusive.or(self.terms.exclusive) {
            Some(true) => 1,
            // The first one shows it.
            None => u32::MAX,
            Some(false) => {
                let streams = self.streams.unwrap_or(u32::MAX).min(self.terms.streams);
                streams.min(self.terms.requests).max(1)
            }
        }
    }

    /// The ticket of the first request that no dial in flight will serve, if another may be begun.
    pub(super) fn uncovered<K, C>(&self, entries: &Entries<K, C>) -> Option<u64> {
        let dials_max = self.terms.bounds.dials;
        if self.dialling >= dials_max {
            return None;
        }
        let own_room = self.own_room(entries);
        let dials_alone = self.dialling.min(self.queue.alone(own_room));
        let demand = Demand {
            waiting: self.queue.sharing(),
            dialling: self.dialling - dials_alone,
            per_connection: self.per_connection(),
        };
        let shared = demand.uncovered(dials_max);
        let shared = shared.and_then(|covered| self.queue.nth_sharing(covered));
        let alone = self.queue.nth_alone(dials_alone, own_room);
        shared.into_iter().chain(alone).min()
    }

    /// Closes what has carried nothing for longer than (shared, exclusive) connections may, and
    /// what is closed. The rest of what carries nothing gives back what it needs only for that.
    pub(super) fn sweep<K, C: Connection>(
        &mut self,
        entries: &mut Entries<K, C>,
        now: Instant,
        (shared, exclusive): (Duration, Duration),
        spare: usize,
    ) {
        let surplus = self.idle.len().saturating_sub(spare);
        // The one used last is at the end.
        let idle = self.idle.iter().enumerate();
        let idle = idle.map(|(at, &index)| (index, at < surplus));
        let all = self.shared.iter().map(|&index| (index, false)).chain(idle);
        let mut over: Vec<usize> = Vec::new();
        for (index, is_surplus) in all {
            let Some(entry) = entries.peek(index) else {
                continue;
            };
            let limit = if entry.is_exclusive {
                exclusive
            } else {
                shared
            };
            let is_idle = entry.in_flight == 0;
            let is_old = is_idle && now.saturating_since(entry.last_used) >= limit;
            if is_old || entry.connection.is_closed() || is_surplus {
                over.push(index);
            } else if is_idle {
                entry.connection.rest();
            }
        }
        if !over.is_empty() {
            self.idle.retain(|index| !over.contains(index));
            self.shared.retain(|index| !over.contains(index));
        }
        for index in over {
            entries.finish(index);
        }
    }

    pub(super) fn close<K, C>(&mut self, entries: &mut Entries<K, C>) {
        for index in self.idle.drain(..).chain(self.shared.drain(..)) {
            entries.finish(index);
        }
    }

    /// The connection that has carried nothing for the longest time, and since when.
    pub(super) fn evictable<K, C: Connection>(
        &self,
        entries: &Entries<K, C>,
    ) -> Option<(Instant, usize)> {
        let all = self.idle.iter().chain(&self.shared);
        let evictable = all.filter_map(|&index| {
            let entry = entries.peek(index)?;
            entry.is_evictable().then_some((entry.last_used, index))
        });
        evictable.min()
    }

    /// Takes a connection off the lists.
    pub(super) fn forget(&mut self, index: usize) {
        self.idle.retain(|&one| one != index);
        self.shared.retain(|&one| one != index);
    }
}

/// Gives a place on a connection to a request.
fn grant<K, C: Clone>(entries: &mut Entries<K, C>, index: usize) -> Option<Grant<C>> {
    let id = entries.id(index);
    let entry = entries.begin(index)?;
    let is_reused = entry.carried > 0;
    entry.carried = entry.carried.saturating_add(1);
    Some(Grant {
        id,
        connection: entry.connection.clone(),
        is_reused,
        last_used: entry.last_used,
    })
}
