//! Connections that have not proved who they are: in their handshake, or without a certificate.
//!
//! A newcomer always gets a place: the oldest connection of the same source gives up its own, or,
//! where all places are taken, that of the source with the most; one on which no call is under way
//! before one that waits for an answer. Neither connections that are held open nor calls that are
//! begun and not ended lock anybody out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use super::{
    ANONYMOUS_CALLS_MAX, ANONYMOUS_LIFE_MAX, Bucket, FIRST_CALL_TIMEOUT, IDLE_TIMEOUT, Limits,
    Reason, Refusal,
};

/// Sources that are remembered without a connection.
const SOURCES_MAX: usize = 65_536;

/// Where a connection comes from: an IPv4 address, or 64 bits of an IPv6 address, of which one
/// machine has as many as it likes below that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourcePrefix {
    /// One address.
    V4(Ipv4Addr),
    /// A /64.
    V6(u64),
}

impl From<IpAddr> for SourcePrefix {
    fn from(address: IpAddr) -> Self {
        fn of_v6(address: Ipv6Addr) -> SourcePrefix {
            SourcePrefix::V6((address.to_bits() >> 64) as u64)
        }
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }
}

/// Number of a connection; a greater one is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnonymousId(u64);

/// A place that was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Admission {
    /// Whose.
    pub id: AnonymousId,
    /// Who has to go for it.
    pub evicted: Option<AnonymousId>,
}

#[derive(Debug)]
struct Source {
    handshakes: Bucket,
    /// Whether a call is under way, by connection.
    connections: BTreeMap<AnonymousId, bool>,
}

impl Source {
    /// The oldest connection, of those without a call if there are any.
    fn oldest(&self) -> Option<AnonymousId> {
        let mut connections = self.connections.iter();
        let idle = connections.find(|(_, busy)| !**busy);
        let oldest = idle.or_else(|| self.connections.first_key_value());
        oldest.map(|(id, _)| *id)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct AnonymousConnections {
    sources: HashMap<SourcePrefix, Source>,
    by_id: HashMap<AnonymousId, SourcePrefix>,
    next: u64,
}

impl AnonymousConnections {
    /// Gives a place to a connection that was accepted.
    pub fn admit(
        &mut self,
        prefix: SourcePrefix,
        limits: &Limits,
        now: Instant,
    ) -> Result<Admission, Refusal> {
        if self.sources.len() >= SOURCES_MAX {
            self.sources
                .retain(|_, source| !source.connections.is_empty());
        }
        let source = self.sources.entry(prefix).or_insert_with(|| Source {
            handshakes: Bucket::full(now),
            connections: BTreeMap::new(),
        });
        let rate = limits.handshake_rate;
        source.handshakes.take(rate, 1, now).map_err(|wait| {
            Refusal::count(
                Reason::Handshakes,
                format_args!("more than {} connections a second", rate.per_second),
                format_args!(
                    "{} a second per source address, {} at once",
                    rate.per_second, rate.burst
                ),
                &format!("try again in {} ms", wait.as_millis().max(1)),
            )
        })?;
        let evicted = self.room_for(prefix, limits);
        if let Some(evicted) = evicted {
            self.remove(evicted);
        }
        self.next += 1;
        let id = AnonymousId(self.next);
        self.by_id.insert(id, prefix);
        if let Some(source) = self.sources.get_mut(&prefix) {
            source.connections.insert(id, false);
        }
        Ok(Admission { id, evicted })
    }

    /// Who has to go for one more of a source.
    fn room_for(&self, prefix: SourcePrefix, limits: &Limits) -> Option<AnonymousId> {
        let of_source = self.sources.get(&prefix)?;
        if of_source.connections.len() >= limits.anonymous_per_address {
            return of_source.oldest();
        }
        if self.by_id.len() < limits.anonymous {
            return None;
        }
        let all = self.sources.values();
        let most = all.max_by_key(|source| (source.connections.len(), Reverse(source.oldest())));
        most.and_then(Source::oldest)
    }

    /// Notes whether a call is under way on a connection.
    pub fn set_busy(&mut self, id: AnonymousId, busy: bool) {
        if let Some(prefix) = self.by_id.get(&id)
            && let Some(source) = self.sources.get_mut(prefix)
            && let Some(held) = source.connections.get_mut(&id)
        {
            *held = busy;
        }
    }

    /// A connection has ended, or has proved who it is.
    pub fn remove(&mut self, id: AnonymousId) {
        if let Some(prefix) = self.by_id.remove(&id)
            && let Some(source) = self.sources.get_mut(&prefix)
        {
            source.connections.remove(&id);
        }
    }

    /// Forgets sources of which forgetting changes nothing.
    pub fn forget(&mut self, now: Instant) {
        self.sources
            .retain(|_, source| !source.connections.is_empty() || !source.handshakes.is_full(now));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

/// How long one connection without a certificate may stand.
#[derive(Debug, Clone, Copy)]
pub struct AnonymousLife {
    began: Instant,
    calls: u64,
    under_way: usize,
    /// Since when no call has been under way.
    idle: Instant,
}

impl AnonymousLife {
    /// Its handshake is done.
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            calls: 0,
            under_way: 0,
            idle: now,
        }
    }

    /// A call begins.
    pub fn begin_call(&mut self) -> Result<(), Refusal> {
        let found = self.calls + 1;
        if found > ANONYMOUS_CALLS_MAX {
            return Err(Refusal::count(
                Reason::CallRate,
                format_args!("{found} calls"),
                format_args!("{ANONYMOUS_CALLS_MAX} on a connection without a certificate"),
                "connect anew",
            ));
        }
        self.calls = found;
        self.under_way += 1;
        Ok(())
    }

    /// A call has ended; whether none is under way any more.
    pub fn end_call(&mut self, now: Instant) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        self.idle = now;
        self.under_way == 0
    }

    /// When it has to be closed, if nothing happens before.
    pub fn closes(&self) -> Instant {
        let end = self.began + ANONYMOUS_LIFE_MAX;
        if self.under_way > 0 {
            end
        } else if self.calls == 0 {
            self.began + FIRST_CALL_TIMEOUT
        } else {
            end.min(self.idle + IDLE_TIMEOUT)
        }
    }
}
