//! How clients share the places for requests that each hold a whole connection to the application.
//!
//! A request is admitted while its client holds fewer than [`FACTOR`] times the places that are left
//! (a dynamic threshold, as switches share buffers). A client alone gets three quarters of all
//! places; several that want everything get equal parts, and a part of the same size stays free for
//! those who come later. Clients outside the mesh together get three quarters at most, and one of
//! them three quarters of that. The requests that may wait are shared by the same rule.
//!
//! Invariants: never more are admitted than there are places; a request waits only while its client
//! is at its share; the requests of one client are admitted in the order in which they came, and
//! clients take turns.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A client may hold so many times what is left: alone, `FACTOR / (FACTOR + 1)` of everything.
const FACTOR: u32 = 3;
/// One part of so many is kept from the clients outside the mesh together.
const KEPT_FROM_OUTSIDE: u32 = 4;

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// Outside the mesh: a source address.
    Outside,
    /// A verified instance of a workload.
    Peer,
}

impl ClientKind {
    const ALL: [Self; 2] = [Self::Outside, Self::Peer];
}

/// Names a client whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientKey {
    /// Where it is.
    pub kind: ClientKind,
    /// Tells it from others of its kind: a hash with a secret key, so that no client can choose it.
    pub id: u64,
}

impl Hash for ClientKey {
    /// The number is a hash.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.id);
    }
}

/// Takes the number of a client as its hash.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    /// Clients write a number only.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

/// Something of each client.
type ByClient<T> = HashMap<ClientKey, T, BuildHasherDefault<IdHasher>>;

impl ClientKey {
    /// What its streams of bytes are counted for: apart from its requests, which go on beside them.
    pub const fn tunnels(self) -> Self {
        Self {
            kind: self.kind,
            id: !self.id,
        }
    }
}

/// Why a request neither has a place nor may wait for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingFull {
    /// How many requests wait.
    pub waiting: u32,
}

/// The places, and the requests that wait for one. `W` is what a waiting request is told by.
#[derive(Debug)]
pub struct Shares<W> {
    held: Counts,
    waiting: Counts,
    queues: ByClient<VecDeque<(u64, W)>>,
    /// The clients with waiting requests, by kind, each once; the next to be served is the first.
    turns: [VecDeque<ClientKey>; ClientKind::ALL.len()],
    next_ticket: u64,
}

impl<W> Shares<W> {
    /// Nobody has a place yet.
    pub fn new(places: u32, waiting_max: u32) -> Self {
        Self {
            held: Counts::new(places),
            waiting: Counts::new(waiting_max),
            queues: ByClient::default(),
            turns: Default::default(),
            next_ticket: 0,
        }
    }

    /// Takes a place, to be given back with [`Self::release`]; false where the client is at its
    /// share.
    pub fn take(&mut self, client: ClientKey) -> bool {
        let has_room = self.held.has_room(client);
        if has_room {
            self.held.add(client);
        }
        has_room
    }

    /// Lets a request wait for a place; its ticket is for [`Self::leave`].
    ///
    /// # Errors
    ///
    /// When as many requests wait as may, or as many of this client.
    pub fn wait(&mut self, client: ClientKey, waiter: W) -> Result<u64, WaitingFull> {
        if !self.waiting.has_room(client) {
            let waiting = self.waiting.total;
            return Err(WaitingFull { waiting });
        }
        self.waiting.add(client);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let queue = self.queues.entry(client).or_default();
        if queue.is_empty() {
            self.turns[client.kind as usize].push_back(client);
        }
        queue.push_back((ticket, waiter));
        Ok(ticket)
    }

    /// A request stops waiting; false if it has its place.
    pub fn leave(&mut self, client: ClientKey, ticket: u64) -> bool {
        let Some(queue) = self.queues.get_mut(&client) else {
            return false;
        };
        let Ok(at) = queue.binary_search_by_key(&ticket, |(one, _)| *one) else {
            return false;
        };
        queue.remove(at);
        self.waiting.remove(client);
        if queue.is_empty() {
            self.queues.remove(&client);
            self.turns[client.kind as usize].retain(|one| *one != client);
        }
        true
    }

    /// A place is given back. Those who wait are served with [`Self::serve`].
    pub fn release(&mut self, client: ClientKey) {
        self.held.remove(client);
    }

    /// The next waiting request that has a place now, which counts as taken; `None` when all clients
    /// with waiting requests are at their share.
    pub fn serve(&mut self) -> Option<(ClientKey, W)> {
        for kind in ClientKind::ALL {
            if self.held.left(kind) == 0 {
                continue;
            }
            let turns = &self.turns[kind as usize];
            let next = turns.iter().position(|one| self.held.has_room(*one));
            if let Some(at) = next
                && let Some(served) = self.serve_turn(kind, at)
            {
                return Some(served);
            }
        }
        None
    }

    fn serve_turn(&mut self, kind: ClientKind, at: usize) -> Option<(ClientKey, W)> {
        let turns = &mut self.turns[kind as usize];
        let client = turns.remove(at)?;
        let queue = self.queues.get_mut(&client)?;
        let (_ticket, waiter) = queue.pop_front()?;
        match queue.is_empty() {
            true => {
                self.queues.remove(&client);
            }
            false => turns.push_back(client),
        }
        self.waiting.remove(client);
        self.held.add(client);
        Some((client, waiter))
    }

    /// How many places a client has.
    pub fn held_by(&self, client: ClientKey) -> u32 {
        self.held.of(client)
    }

    /// Whether nobody has a place or waits for one.
    pub fn is_unused(&self) -> bool {
        self.held.total == 0 && self.waiting.total == 0
    }
}

/// Things of which clients have some, up to a number in all.
#[derive(Debug)]
struct Counts {
    most: u32,
    total: u32,
    outside: u32,
    by_client: ByClient<u32>,
}

impl Counts {
    fn new(most: u32) -> Self {
        Self {
            most,
            total: 0,
            outside: 0,
            by_client: ByClient::default(),
        }
    }

    fn of(&self, client: ClientKey) -> u32 {
        self.by_client.get(&client).copied().unwrap_or_default()
    }

    /// How many more there may be, for clients of a kind.
    fn left(&self, kind: ClientKind) -> u32 {
        let left = self.most.saturating_sub(self.total);
        match kind {
            ClientKind::Peer => left,
            ClientKind::Outside => {
                let most = self.most - self.most / KEPT_FROM_OUTSIDE;
                left.min(most.saturating_sub(self.outside))
            }
        }
    }

    fn has_room(&self, client: ClientKey) -> bool {
        self.of(client) < self.left(client.kind).saturating_mul(FACTOR)
    }

    fn add(&mut self, client: ClientKey) {
        self.total += 1;
        self.outside += u32::from(client.kind == ClientKind::Outside);
        *self.by_client.entry(client).or_default() += 1;
    }

    fn remove(&mut self, client: ClientKey) {
        let Some(held) = self.by_client.get_mut(&client) else {
            return;
        };
        *held -= 1;
        if *held == 0 {
            self.by_client.remove(&client);
        }
        self.total -= 1;
        self.outside -= u32::from(client.kind == ClientKind::Outside);
    }
}

#[cfg(test)]
mod tests;
