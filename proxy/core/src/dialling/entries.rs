//! The connections of a set, by index.

use super::{Connection, Terms, Want};
use crate::time::Instant;

/// Names one connection of a set. It is never given to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId {
    pub(super) index: usize,
    serial: u64,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Entry<K, C> {
    serial: u64,
    pub(super) key: K,
    pub(super) connection: C,
    pub(super) generation: u64,
    pub(super) is_exclusive: bool,
    /// Concurrent requests that its server takes.
    pub(super) streams: u32,
    pub(super) in_flight: u32,
    /// Whether it is one request's own.
    is_own: bool,
    /// Requests that it has been given in all.
    pub(super) carried: u32,
    /// Whether it only finishes what it carries.
    pub(super) is_finishing: bool,
    pub(super) last_used: Instant,
}

impl<K, C: Connection> Entry<K, C> {
    /// Whether it may be given further requests under `terms`, of whatever generation it is.
    pub(super) fn is_usable(&self, terms: &Terms) -> bool {
        let is_spent = terms.requests < u32::MAX && self.carried >= terms.requests;
        !is_spent && !self.is_finishing && !self.connection.is_closed()
    }

    /// Whether it is one of those that a request wants.
    pub(super) fn suits(&self, want: Want) -> bool {
        match want {
            Want::Any => true,
            Want::UsedSince(since) => self.in_flight > 0 || self.last_used >= since,
            Want::MadeSince(since) | Want::Own(since) => {
                self.carried == 0 && self.last_used >= since
            }
        }
    }

    /// Whether it takes one more request now.
    pub(super) fn has_room(&self, terms: &Terms) -> bool {
        self.in_flight < terms.streams.min(self.streams)
    }

    /// Whether closing it interrupts nothing.
    pub(super) fn is_evictable(&self) -> bool {
        self.in_flight == 0 && (!self.is_exclusive || self.connection.is_ready())
    }
}

/// Connections by index; the indices of removed ones are used again.
#[derive(Debug)]
pub(super) struct Entries<K, C> {
    slots: Vec<Option<Entry<K, C>>>,
    free: Vec<usize>,
    serial: u64,
    /// Those that are one request's own.
    own: u32,
    /// How many carry a request.
    busy: u32,
}

impl<K, C> Default for Entries<K, C> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            serial: 0,
            own: 0,
            busy: 0,
        }
    }
}

impl<K: PartialEq, C> Entries<K, C> {
    /// Whether a connection to `key` stands.
    pub(super) fn leads_to(&self, key: &K) -> bool {
        let mut all = self.slots.iter().flatten();
        all.any(|entry| entry.key == *key)
    }
}

impl<K, C> Entries<K, C> {
    /// How many carry a request.
    pub(super) fn busy(&self) -> u32 {
        self.busy
    }

    /// An entry is given a request.
    pub(super) fn begin(&mut self, index: usize) -> Option<&mut Entry<K, C>> {
        let entry = self.slots.get_mut(index)?.as_mut()?;
        entry.in_flight += 1;
        self.busy += u32::from(entry.in_flight == 1);
        Some(entry)
    }

    /// A request leaves an entry.
    pub(super) fn end(&mut self, id: ConnectionId) -> Option<&mut Entry<K, C>> {
        let entry = self.slots.get_mut(id.index)?.as_mut()?;
        if entry.serial != id.serial || entry.in_flight == 0 {
            return None;
        }
        entry.in_flight -= 1;
        self.busy -= u32::from(entry.in_flight == 0);
        Some(entry)
    }

    pub(super) fn len(&self) -> u32 {
        let len = self.slots.len() - self.free.len();
        u32::try_from(len).unwrap_or(u32::MAX)
    }

    pub(super) fn insert(&mut self, new: Entry<K, C>) -> ConnectionId {
        self.serial += 1;
        let serial = self.serial;
        let entry = Some(Entry { serial, ..new });
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = entry;
                index
            }
            None => {
                self.slots.push(entry);
                self.slots.len() - 1
            }
        };
        ConnectionId { index, serial }
    }

    /// The entry at an index that a destination lists.
    pub(super) fn at(&mut self, index: usize) -> Option<&mut Entry<K, C>> {
        self.slots.get_mut(index)?.as_mut()
    }

    pub(super) fn peek(&self, index: usize) -> Option<&Entry<K, C>> {
        self.slots.get(index)?.as_ref()
    }

    pub(super) fn get(&mut self, id: ConnectionId) -> Option<&mut Entry<K, C>> {
        self.at(id.index).filter(|entry| entry.serial == id.serial)
    }

    pub(super) fn id(&self, index: usize) -> ConnectionId {
        let serial = self.peek(index).map_or(0, |entry| entry.serial);
        ConnectionId { index, serial }
    }

    pub(super) fn remove(&mut self, index: usize) {
        let removed = self.slots.get_mut(index).and_then(Option::take);
        if let Some(entry) = removed {
            self.own -= u32::from(entry.is_own);
            self.free.push(index);
        }
    }

    /// Makes an entry the own one of the request that it carries: it ends with that.
    pub(super) fn make_own(&mut self, index: usize) {
        if let Some(entry) = self.at(index) {
            let was = std::mem::replace(&mut entry.is_own, true);
            self.own += u32::from(!was);
        }
        self.finish(index);
    }

    /// Connections that are one request's own.
    pub(super) fn own(&self) -> u32 {
        self.own
    }

    /// Lets an entry finish what it carries; one that carries nothing is removed.
    pub(super) fn finish(&mut self, index: usize) {
        let Some(entry) = self.at(index) else { return };
        entry.is_finishing = true;
        if entry.in_flight == 0 {
            self.remove(index);
        }
    }
}

/// An entry that nothing uses yet.
pub(super) fn unused<K, C>(
    key: K,
    connection: C,
    (generation, is_exclusive, streams): (u64, bool, u32),
    now: Instant,
) -> Entry<K, C> {
    Entry {
        serial: 0,
        key,
        connection,
        generation,
        is_exclusive,
        streams,
        in_flight: 0,
        is_own: false,
        carried: 0,
        is_finishing: false,
        last_used: now,
    }
}
