//! How many connections each client and each kind of client may have.
//!
//! One number bounds all accepted connections. Each kind has a part of it that no other kind can
//! take, what is left is shared, and those who have not proved who they are get a small part of it
//! at most. Within a kind one client cannot have everything.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// What is known of the client of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectionKind {
    /// Accepted from outside, and not known yet: its first bytes or its handshake are waited for.
    Unidentified,
    /// From outside the mesh: plaintext, or the application's own TLS.
    Plaintext,
    /// A sidecar that has proved its identity.
    Peer,
    /// Of the workload's own application.
    Application,
}

impl ConnectionKind {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Unidentified,
        Self::Plaintext,
        Self::Peer,
        Self::Application,
    ];

    /// The word for it, in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unidentified => "unidentified",
            Self::Plaintext => "plaintext",
            Self::Peer => "peer",
            Self::Application => "application",
        }
    }
}

/// Whom a connection is charged to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Client {
    /// A source address; of IPv6 the first 64 bits, which one host may have all of.
    Address(IpAddr),
    /// A verified identity.
    Identity(Arc<str>),
    /// The workload's own application.
    Application,
}

impl Client {
    /// The client at a source address.
    pub fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
        })
    }
}

/// The numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections of all kinds together.
    pub total: usize,
    /// Those that are not identified yet.
    pub unidentified: usize,
    /// Those from outside the mesh.
    pub plaintext: usize,
    /// Those from outside the mesh from one source address.
    pub plaintext_per_client: usize,
    /// Those of peers with one identity.
    pub per_peer: usize,
}

/// A quarter of all connections is kept for peers, and another for the application.
const RESERVED_SHARE: usize = 4;
/// At most this share of all connections is for those that are not identified.
const UNIDENTIFIED_SHARE: usize = 10;
/// Entries of connections that have gone are removed from the queue when there are more of them.
const WAITING_SLACK: usize = 64;

/// A limit that a connection would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} connections: {limit} are open, which is {name}", kind.as_str())]
pub struct Exceeded {
    /// The connection's kind.
    pub kind: ConnectionKind,
    /// The limit's name in the configuration.
    pub name: &'static str,
    /// The number.
    pub limit: usize,
}

/// A connection that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// A connection that was admitted.
#[derive(Debug, PartialEq, Eq)]
pub struct Admission {
    /// The connection.
    pub ticket: Ticket,
    /// One that has to be closed for it: the oldest of those that are not identified.
    pub evicted: Option<Ticket>,
}

/// Counts connections; what is admitted has to be released.
#[derive(Debug)]
pub struct ConnectionBudget {
    limits: ConnectionLimits,
    next: u64,
    open: HashMap<Ticket, (ConnectionKind, Client)>,
    by_kind: [usize; ConnectionKind::ALL.len()],
    by_client: [HashMap<Client, usize>; ConnectionKind::ALL.len()],
    /// Those that are not identified, the oldest first; some have gone since.
    waiting: VecDeque<Ticket>,
}

impl ConnectionBudget {
    /// Nothing is open yet.
    pub fn new(limits: ConnectionLimits) -> Self {
        let total = limits.total.max(1);
        Self {
            limits: ConnectionLimits {
                total,
                unidentified: limits.unidentified.min(share(total, UNIDENTIFIED_SHARE)),
                plaintext: limits.plaintext.min(total),
                ..limits
            },
            next: 0,
            open: HashMap::new(),
            by_kind: [0; ConnectionKind::ALL.len()],
            by_client: Default::default(),
            waiting: VecDeque::new(),
        }
    }

    /// The numbers that hold.
    pub fn limits(&self) -> &ConnectionLimits {
        &self.limits
    }

    /// Admits a connection. Where no other may wait to be identified, the oldest of the client that
    /// has most of them is closed for it: an honest handshake takes milliseconds, and whoever fills
    /// the room with silence loses it first.
    ///
    /// # Errors
    ///
    /// Names the limit when there is no room.
    pub fn admit(&mut self, kind: ConnectionKind, client: Client) -> Result<Admission, Exceeded> {
        let evicted = match self.check(kind, &client) {
            Ok(()) => None,
            Err(exceeded) => {
                let oldest = (kind == ConnectionKind::Unidentified)
                    .then(|| self.oldest_of_most())
                    .flatten();
                let oldest = oldest.ok_or(exceeded)?;
                self.release(oldest);
                Some(oldest)
            }
        };
        let ticket = Ticket(self.next);
        self.next += 1;
        self.count(kind, client.clone());
        self.open.insert(ticket, (kind, client));
        if kind == ConnectionKind::Unidentified {
            self.wait(ticket);
        }
        Ok(Admission { ticket, evicted })
    }

    /// Charges a connection to whom it turned out to be of. When there is no room it stays what it
    /// was, and has to be closed.
    ///
    /// # Errors
    ///
    /// Names the limit when there is no room.
    pub fn identify(
        &mut self,
        ticket: Ticket,
        kind: ConnectionKind,
        client: Client,
    ) -> Result<(), Exceeded> {
        let Some((before, whose)) = self.open.get(&ticket).cloned() else {
            // Evicted in the meantime.
            return Err(self.exceeded(ConnectionKind::Unidentified));
        };
        self.uncount(before, &whose);
        if let Err(exceeded) = self.check(kind, &client) {
            self.count(before, whose);
            return Err(exceeded);
        }
        self.count(kind, client.clone());
        self.open.insert(ticket, (kind, client));
        Ok(())
    }

    /// A connection has ended. A second time changes nothing.
    pub fn release(&mut self, ticket: Ticket) {
        if let Some((kind, client)) = self.open.remove(&ticket) {
            self.uncount(kind, &client);
        }
    }

    /// How many connections of a kind are open.
    pub fn open(&self, kind: ConnectionKind) -> usize {
        self.by_kind[kind as usize]
    }

    /// Connections of a kind that no other kind can take away.
    pub fn reserved(&self, kind: ConnectionKind) -> usize {
        let total = self.limits.total;
        match kind {
            ConnectionKind::Peer | ConnectionKind::Application => total / RESERVED_SHARE,
            // A peer is not identified before it is a peer.
            ConnectionKind::Unidentified => self.limits.unidentified,
            ConnectionKind::Plaintext => 0,
        }
    }

    fn check(&self, kind: ConnectionKind, client: &Client) -> Result<(), Exceeded> {
        let own = self.open(kind);
        let (name, limit) = limit_of(kind, &self.limits);
        if own >= limit {
            return Err(Exceeded { kind, name, limit });
        }
        let (name, limit) = match kind {
            ConnectionKind::Plaintext => (
                "limits.max_plaintext_connections_per_client",
                self.limits.plaintext_per_client,
            ),
            ConnectionKind::Peer => ("limits.max_connections_per_peer", self.limits.per_peer),
            ConnectionKind::Unidentified | ConnectionKind::Application => ("", usize::MAX),
        };
        let of_client = self.by_client[kind as usize].get(client);
        if of_client.is_some_and(|open| *open >= limit) {
            return Err(Exceeded { kind, name, limit });
        }
        if own < self.reserved(kind) || self.shared_in_use() < self.shared() {
            return Ok(());
        }
        Err(self.exceeded(kind))
    }

    fn exceeded(&self, kind: ConnectionKind) -> Exceeded {
        Exceeded {
            kind,
            name: "limits.max_connections",
            limit: self.limits.total,
        }
    }

    /// What is reserved for nobody.
    fn shared(&self) -> usize {
        let reserved: usize = ConnectionKind::ALL
            .map(|kind| self.reserved(kind))
            .iter()
            .sum();
        self.limits.total.saturating_sub(reserved)
    }

    fn shared_in_use(&self) -> usize {
        let beyond =
            ConnectionKind::ALL.map(|kind| self.open(kind).saturating_sub(self.reserved(kind)));
        beyond.iter().sum()
    }

    /// The oldest unidentified connection of those clients that have most of them.
    fn oldest_of_most(&self) -> Option<Ticket> {
        let counts = &self.by_client[ConnectionKind::Unidentified as usize];
        let most = counts.values().max()?;
        let of_most = |ticket: &&Ticket| {
            let found = self.open.get(ticket);
            found.is_some_and(|(kind, client)| {
                *kind == ConnectionKind::Unidentified && counts.get(client) == Some(most)
            })
        };
        self.waiting.iter().find(of_most).copied()
    }

    fn wait(&mut self, ticket: Ticket) {
        self.waiting.push_back(ticket);
        if self.waiting.len() > 2 * self.open(ConnectionKind::Unidentified) + WAITING_SLACK {
            let open = &self.open;
            self.waiting.retain(|ticket| {
                let found = open.get(ticket);
                found.is_some_and(|(kind, _)| *kind == ConnectionKind::Unidentified)
            });
        }
    }

    fn count(&mut self, kind: ConnectionKind, client: Client) {
        self.by_kind[kind as usize] += 1;
        *self.by_client[kind as usize].entry(client).or_default() += 1;
    }

    fn uncount(&mut self, kind: ConnectionKind, client: &Client) {
        self.by_kind[kind as usize] = self.by_kind[kind as usize].saturating_sub(1);
        let clients = &mut self.by_client[kind as usize];
        if let Some(open) = clients.get_mut(client) {
            *open -= 1;
            if *open == 0 {
                clients.remove(client);
            }
        }
    }
}

fn limit_of(kind: ConnectionKind, limits: &ConnectionLimits) -> (&'static str, usize) {
    match kind {
        ConnectionKind::Unidentified => {
            ("limits.max_unidentified_connections", limits.unidentified)
        }
        ConnectionKind::Plaintext => ("limits.max_plaintext_connections", limits.plaintext),
        ConnectionKind::Peer | ConnectionKind::Application => {
            ("limits.max_connections", limits.total)
        }
    }
}

fn share(total: usize, of: usize) -> usize {
    (total / of).max(1)
}

#[cfg(test)]
mod tests;
