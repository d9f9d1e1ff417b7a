//! How requests come to connections: take one that stands, wait, dial another, or be refused.
//!
//! A [`ConnectionSet`] holds the connections to one destination, or to several that share a limit,
//! and the requests that wait for one. It neither dials nor sends: the caller tells it what happened
//! (`on_*`) and does what [`ConnectionSet::poll`] answers until that is `None`.
//!
//! Invariants: requests that wait are served in order of arrival, and before any that comes later,
//! but that those which want a new connection ([`Want::MadeSince`], [`Want::Own`]) hold up nobody who
//! can use one that stands; connections and dials together never exceed [`Bounds::connections`]; a
//! dial belongs to the destination, not to the request that it was begun for.

mod demand;
mod destination;
mod entries;
mod queue;
mod want;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::time::Instant;

use destination::Destination;
use entries::{Entries, unused};

pub use entries::ConnectionId;
pub use want::{Want, own_share};

/// What a set observes of a connection, and tells it.
pub trait Connection {
    /// Whether it takes no request any more.
    fn is_closed(&self) -> bool;

    /// Whether it takes a request at once. One that does not may still be at the end of a request
    /// before.
    fn is_ready(&self) -> bool;

    /// It carries nothing: what it needs only for that, it may give back.
    fn rest(&self);
}

impl<T: Connection + ?Sized> Connection for Rc<T> {
    fn is_closed(&self) -> bool {
        self.deref().is_closed()
    }

    fn is_ready(&self) -> bool {
        self.deref().is_ready()
    }

    fn rest(&self) {
        self.deref().rest();
    }
}

impl<T: Connection + ?Sized> Connection for Arc<T> {
    fn is_closed(&self) -> bool {
        self.deref().is_closed()
    }

    fn is_ready(&self) -> bool {
        self.deref().is_ready()
    }

    fn rest(&self) {
        self.deref().rest();
    }
}

/// The limits of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections, dials in flight included.
    pub connections: u32,
    /// Dials in flight to one destination.
    pub dials: u32,
    /// Requests that wait for a connection.
    pub waiting: u32,
}

/// Which connections a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Which of the connections that stand this request may use.
    pub want: Want,
    /// Connections of other generations are used only where the limit on connections leaves no
    /// other.
    pub generation: u64,
    /// Requests that a connection carries in all.
    pub requests: u32,
    /// Concurrent requests on a connection at most, whatever its server takes.
    pub streams: u32,
    /// Whether connections take one request at a time, where that is known before one stands.
    pub exclusive: Option<bool>,
    /// The limits of the set.
    pub bounds: Bounds,
    /// How long a request waits.
    pub patience: Duration,
}

/// A connection that was dialled.
#[derive(Debug)]
pub struct NewConnection<C> {
    /// The connection.
    pub connection: C,
    /// The generation that it was made under.
    pub generation: u64,
    /// Whether it takes one request at a time.
    pub is_exclusive: bool,
    /// Concurrent requests that its server takes, as far as it has said.
    pub streams: u32,
}

/// A place on a connection for one request, until [`ConnectionSet::on_released`].
#[derive(Debug)]
pub struct Grant<C> {
    /// Names the connection.
    pub id: ConnectionId,
    /// The connection.
    pub connection: C,
    /// Whether it has carried other requests: its server may have closed it meanwhile.
    pub is_reused: bool,
    /// When a request before this one left it, or it was made.
    pub last_used: Instant,
}

/// What the caller has to do next.
#[derive(Debug)]
pub enum Step<K, C, W, P> {
    /// Give a waiting request its place.
    Serve(W, Grant<C>),
    /// Dial a destination, within the place that was taken for the connection.
    Dial(K, P),
}

/// Why a request may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull;

/// The connections to destinations that share limits, and the requests that wait for one.
///
/// `K` names a destination, `C` is a connection, `W` what a waiting request is told by.
#[derive(Debug)]
pub struct ConnectionSet<K, C, W> {
    destinations: BTreeMap<K, Destination<W>>,
    entries: Entries<K, C>,
    next_ticket: u64,
    waiting: u32,
    dialling: u32,
    is_closed: bool,
}

impl<K, C, W> Default for ConnectionSet<K, C, W> {
    fn default() -> Self {
        Self {
            destinations: BTreeMap::new(),
            entries: Entries::default(),
            next_ticket: 0,
            waiting: 0,
            dialling: 0,
            is_closed: false,
        }
    }
}

impl<K: Ord + Clone, C: Connection + Clone, W> ConnectionSet<K, C, W> {
    /// A place on a connection that stands; `None` if there is no room, or others wait for it.
    ///
    /// Where none has been used as lately as the request wants ([`Want::UsedSince`]), the one that
    /// has carried nothing for the longest time is closed: the request is about to add another.
    pub fn take(&mut self, key: &K, terms: &Terms) -> Option<Grant<C>> {
        let destination = self.destinations.get_mut(key)?;
        if destination.queue.sharing() > 0 {
            return None;
        }
        let grant = destination.take(&mut self.entries, terms, false);
        if grant.is_none()
            && matches!(terms.want, Want::UsedSince(_))
            && let Some((_used, index)) = destination.evictable(&self.entries)
        {
            self.drop_entry(index);
        }
        grant
    }

    /// Lets a request wait; its ticket is for [`Self::leave`].
    ///
    /// # Errors
    ///
    /// When as many wait as may, or as many for a connection of their own ([`own_share`]).
    pub fn wait(&mut self, key: &K, terms: Terms, waiter: W) -> Result<u64, QueueFull> {
        let waiting_max = terms.bounds.waiting;
        let is_own = matches!(terms.want, Want::Own(_));
        if self.waiting >= waiting_max || is_own && self.waiting_own() >= own_share(waiting_max) {
            return Err(QueueFull);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting += 1;
        let queue = &mut self.destination(key, terms).queue;
        queue.push(ticket, terms.want, waiter);
        Ok(ticket)
    }

    /// A request stops waiting; false if it has been served.
    pub fn leave(&mut self, key: &K, ticket: u64) -> bool {
        let destination = self.destinations.get_mut(key);
        let left = destination.and_then(|destination| destination.queue.remove(ticket));
        self.waiting -= u32::from(left.is_some());
        left.is_some()
    }

    /// The next thing to do. `place` takes a place within a limit that others share; where it has
    /// none, and where the set has as many connections as it may, an idle connection is closed to
    /// make room.
    pub fn poll<P>(&mut self, mut place: impl FnMut() -> Option<P>) -> Option<Step<K, C, W, P>> {
        if self.waiting == 0 {
            return None;
        }
        if let Some((waiter, grant)) = self.serve(false) {
            return Some(Step::Serve(waiter, grant));
        }
        let key = self.uncovered()?;
        match self.place(&key, &mut place) {
            Some(place) => {
                self.dialling += 1;
                if let Some(destination) = self.destinations.get_mut(&key) {
                    destination.dialling += 1;
                }
                Some(Step::Dial(key, place))
            }
            None => {
                let (waiter, grant) = self.serve(true)?;
                Some(Step::Serve(waiter, grant))
            }
        }
    }

    /// A dial has made a connection.
    pub fn on_connected(&mut self, key: &K, new: NewConnection<C>, now: Instant) -> ConnectionId {
        let NewConnection {
            connection,
            generation,
            is_exclusive,
            streams,
        } = new;
        let about = (generation, is_exclusive, streams);
        let entry = unused(key.clone(), connection, about, now);
        let id = self.entries.insert(entry);
        self.dialling = self.dialling.saturating_sub(1);
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.add(&mut self.entries, id.index);
        }
        id
    }

    /// A dial has failed. Answers the waiting requests that it would have served.
    pub fn on_dial_failed(&mut self, key: &K) -> Vec<W> {
        self.on_dial_dropped(key);
        let destination = self.destinations.get_mut(key);
        let told = destination.map(|destination| destination.unserved(&self.entries));
        let told = told.unwrap_or_default();
        self.waiting -= u32::try_from(told.len()).unwrap_or(self.waiting);
        told
    }

    /// A dial has ended that says nothing about its destination.
    pub fn on_dial_dropped(&mut self, key: &K) {
        self.dialling = self.dialling.saturating_sub(1);
        if let Some(destination) = self.destinations.get_mut(key) {
            destination.dialling = destination.dialling.saturating_sub(1);
        }
    }

    /// A server has said how many concurrent requests a connection takes
    /// (SETTINGS_MAX_CONCURRENT_STREAMS, RFC 9113 section 5.1.2).
    pub fn on_streams(&mut self, id: ConnectionId, streams: u32) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        entry.streams = streams;
        if let Some(destination) = self.destinations.get_mut(&entry.key) {
            destination.streams = Some(streams);
        }
    }

    /// A request has left a connection. Answers whether that one has to become ready before it
    /// serves another.
    pub fn on_released(&mut self, id: ConnectionId, now: Instant) -> bool {
        let Some(entry) = self.entries.end(id) else {
            return false;
        };
        entry.last_used = now;
        let is_over = entry.is_finishing || entry.connection.is_closed();
        if entry.in_flight == 0 && (entry.is_finishing || entry.is_exclusive && is_over) {
            self.entries.remove(id.index);
            return false;
        }
        if !entry.is_exclusive {
            return false;
        }
        let must_wait = !entry.connection.is_ready();
        match self.destinations.get_mut(&entry.key) {
            Some(destination) if !self.is_closed => destination.idle.push(id.index),
            Some(_) | None => self.entries.finish(id.index),
        }
        must_wait
    }

    /// A connection is given no further requests: its server has said that it takes none.
    pub fn retire(&mut self, id: ConnectionId) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        if let Some(destination) = self.destinations.get_mut(&entry.key) {
            destination.forget(id.index);
        }
        self.entries.finish(id.index);
    }

    /// Closes connections that carried nothing for longer than `idle` allows, given the destination
    /// and whether the connection is exclusive, and idle exclusive ones beyond `spare`.
    pub fn sweep(&mut self, now: Instant, idle: impl Fn(&K, bool) -> Duration, spare: usize) {
        let entries = &mut self.entries;
        for (key, destination) in &mut self.destinations {
            let limits = (idle(key, false), idle(key, true));
            destination.sweep(entries, now, limits, spare);
        }
        self.destinations
            .retain(|key, destination| !destination.is_unused() || entries.leads_to(key));
    }

    /// Closes what carries nothing, and lets everything else finish: nobody asks for these
    /// destinations any more.
    pub fn close(&mut self) {
        self.is_closed = true;
        for destination in self.destinations.values_mut() {
            destination.close(&mut self.entries);
        }
    }

    /// Closes the connection that has carried nothing for the longest time; false if there is none.
    pub fn evict_idle(&mut self) -> bool {
        let entries = &self.entries;
        let idle = self.destinations.values();
        let idle = idle.filter_map(|destination| destination.evictable(entries));
        let Some((_used, index)) = idle.min() else {
            return false;
        };
        self.drop_entry(index);
        true
    }

    /// Whether a connection carries nothing and can make room for another.
    pub fn has_idle(&self) -> bool {
        let mut all = self.destinations.values();
        all.any(|destination| destination.evictable(&self.entries).is_some())
    }

    /// Whether a connection to a destination stands or is being dialled.
    pub fn leads_to(&self, key: &K) -> bool {
        let destination = self.destinations.get(key);
        let dials = destination.is_some_and(|destination| destination.dialling > 0);
        dials || self.entries.leads_to(key)
    }

    /// Whether it has to do with a destination.
    pub fn knows(&self, key: &K) -> bool {
        self.destinations.contains_key(key)
    }

    /// Connections that stand, those that only finish what they carry included.
    pub fn open(&self) -> u32 {
        self.entries.len()
    }

    /// Of them, those that are one request's own.
    pub fn own(&self) -> u32 {
        self.entries.own()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Whether it has no connection, no dial and no waiting request.
    pub fn is_unused(&self) -> bool {
        self.open() == 0 && self.dialling == 0 && self.waiting == 0
    }

    /// Connections that carry a request.
    pub fn busy(&self) -> u32 {
        self.entries.busy()
    }

    /// Whether requests are under way, or wait.
    pub fn is_busy(&self) -> bool {
        self.waiting > 0 || self.entries.busy() > 0
    }

    fn destination(&mut self, key: &K, terms: Terms) -> &mut Destination<W> {
        let destination = self.destinations.entry(key.clone());
        let destination = destination.or_insert_with(|| Destination::new(terms));
        destination.terms = terms;
        destination
    }

    fn serve(&mut self, any_generation: bool) -> Option<(W, Grant<C>)> {
        let in_turn = !any_generation && self.can_make_way();
        for destination in self.destinations.values_mut() {
            let served = destination.serve(&mut self.entries, any_generation, in_turn);
            if served.is_some() {
                self.waiting -= 1;
                return served;
            }
        }
        None
    }

    /// The destination of the request that has waited longest of those that no dial in flight will
    /// serve.
    fn uncovered(&self) -> Option<K> {
        let all = self.destinations.iter();
        let uncovered = all.filter_map(|(key, to)| Some((to.uncovered(&self.entries)?, key)));
        uncovered.min().map(|(_ticket, key)| key.clone())
    }

    /// Whether an idle connection has to be closed for one that is to be made, and can be.
    fn can_make_way(&self) -> bool {
        let mut all = self.destinations.values();
        let is_needed = all.any(|destination| {
            destination.lacks_dials(&self.entries) && self.is_at_limit(&destination.terms)
        });
        is_needed && self.has_idle()
    }

    /// Requests that wait for a connection of their own.
    fn waiting_own(&self) -> u32 {
        let all = self.destinations.values();
        all.map(|destination| destination.queue.own()).sum()
    }

    fn place<P>(&mut self, key: &K, place: &mut impl FnMut() -> Option<P>) -> Option<P> {
        let terms = self.destinations.get(key)?.terms;
        loop {
            if !self.is_at_limit(&terms)
                && let Some(place) = place()
            {
                return Some(place);
            }
            if !self.evict_idle() {
                return None;
            }
        }
    }

    fn is_at_limit(&self, terms: &Terms) -> bool {
        self.open().saturating_add(self.dialling) >= terms.bounds.connections
    }

    fn drop_entry(&mut self, index: usize) {
        let Some(entry) = self.entries.peek(index) else {
            return;
        };
        if let Some(destination) = self.destinations.get_mut(&entry.key) {
            destination.forget(index);
        }
        self.entries.remove(index);
    }
}

#[cfg(test)]
mod tests;
