//! Leases with fencing: who may do what only one may do.
//!
//! A lease is held by one holder until it is released or its time is over. Each time it passes
//! from hand to hand it gets a higher fencing number, and a write that carries an older one is
//! refused: a holder that was suspended for longer than its lease cannot undo what its successor
//! does. Time is monotonic, and is known within one process only. After a restart a lease counts
//! as renewed at the start.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::StoreError;

/// Shortest and longest time of a lease.
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(1);
/// See [`LEASE_TTL_MIN`].
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(3600);
/// Leases at the same time.
pub const LEASES_MAX: usize = 1000;
/// Name of a lease and of its holder, bytes.
pub const LEASE_NAME_MAX: usize = 253;

/// The time by which leases end.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Time since some moment, which is the same for the life of the process. Never goes back.
    fn now(&self) -> Duration;
}

/// The system's monotonic clock.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl Default for MonotonicClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A lease, as its holder has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What it is for.
    pub name: String,
    /// Who has it.
    pub holder: String,
    /// Higher than that of every holder before.
    pub fencing: u64,
}

impl Lease {
    /// What a write carries that is only to be made while this lease is held.
    pub fn fence(&self) -> Fence {
        Fence {
            lease: self.name.clone(),
            fencing: self.fencing,
        }
    }
}

/// The condition of a write that a lease is held still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Name of the lease.
    pub lease: String,
    /// Its fencing number.
    pub fencing: u64,
}

/// What of a lease is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LeaseRecord {
    pub(super) holder: String,
    pub(super) fencing: u64,
    pub(super) ttl_millis: u64,
}

/// All leases: a plain machine, which an engine makes durable.
#[derive(Debug, Clone, Default)]
pub(super) struct LeaseBook {
    held: BTreeMap<String, Held>,
    fencing: u64,
}

#[derive(Debug, Clone)]
struct Held {
    record: LeaseRecord,
    until: Duration,
}

impl LeaseBook {
    /// Takes up what was durable; `fencing` is the last number that was given.
    pub(super) fn restore(
        records: impl IntoIterator<Item = (String, LeaseRecord)>,
        fencing: u64,
        now: Duration,
    ) -> Self {
        let records = records.into_iter().map(|(name, record)| {
            let until = now + Duration::from_millis(record.ttl_millis);
            (name, Held { record, until })
        });
        let held: BTreeMap<_, _> = records.collect();
        Self { held, fencing }
    }

    /// The last number that was given.
    pub(super) fn fencing(&self) -> u64 {
        self.fencing
    }

    /// Takes back what was not made durable. Numbers that were given are not given again.
    pub(super) fn undo(&mut self, before: Self) {
        self.held = before.held;
    }

    /// Gives a lease to a holder, unless another one has it. The same holder gets it anew, and
    /// what it holds already counts no more.
    pub(super) fn acquire(
        &mut self,
        name: &str,
        holder: &str,
        ttl: Duration,
        now: Duration,
    ) -> Result<(Lease, LeaseRecord), StoreError> {
        check(name, holder, ttl)?;
        if let Some(held) = self.valid(name, now).filter(|h| h.record.holder != holder) {
            return Err(StoreError::LeaseHeld {
                name: name.to_owned(),
                holder: held.record.holder.clone(),
                remaining: held.until - now,
            });
        }
        if self.held.len() >= LEASES_MAX && !self.held.contains_key(name) {
            return Err(StoreError::Lease(format!(
                "found {LEASES_MAX} leases already, which is the limit"
            )));
        }
        self.fencing += 1;
        let record = LeaseRecord {
            holder: holder.to_owned(),
            fencing: self.fencing,
            ttl_millis: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
        };
        let held = Held {
            record: record.clone(),
            until: now + ttl,
        };
        self.held.insert(name.to_owned(), held);
        let lease = Lease {
            name: name.to_owned(),
            holder: holder.to_owned(),
            fencing: self.fencing,
        };
        Ok((lease, record))
    }

    /// Gives a holder its whole time again.
    pub(super) fn renew(&mut self, fence: &Fence, now: Duration) -> Result<(), StoreError> {
        self.check(fence, now)?;
        if let Some(held) = self.held.get_mut(&fence.lease) {
            held.until = now + Duration::from_millis(held.record.ttl_millis);
        }
        Ok(())
    }

    /// Ends a lease; whether it was there. One that has moved on is not touched.
    pub(super) fn release(&mut self, fence: &Fence) -> bool {
        let held = self.held.get(&fence.lease);
        let mine = held.is_some_and(|held| held.record.fencing == fence.fencing);
        if mine {
            self.held.remove(&fence.lease);
        }
        mine
    }

    /// Whether a lease is held still.
    pub(super) fn check(&self, fence: &Fence, now: Duration) -> Result<(), StoreError> {
        let valid = self.valid(&fence.lease, now);
        if valid.is_some_and(|held| held.record.fencing == fence.fencing) {
            return Ok(());
        }
        Err(StoreError::LeaseLost {
            name: fence.lease.clone(),
            fencing: fence.fencing,
        })
    }

    /// Drops leases that are over; their names.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<String> {
        let over = self.held.extract_if(.., |_name, held| held.until <= now);
        over.map(|(name, _held)| name).collect()
    }

    fn valid(&self, name: &str, now: Duration) -> Option<&Held> {
        self.held.get(name).filter(|held| held.until > now)
    }
}

/// Refuses what no engine accepts: a time, name or holder that is out of bounds.
pub(super) fn check(name: &str, holder: &str, ttl: Duration) -> Result<(), StoreError> {
    if !(LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(&ttl) {
        let text = format!("ttl: found {ttl:?}; allowed: 1 second to 1 hour");
        return Err(StoreError::Lease(text));
    }
    for (what, text) in [("name", name), ("holder", holder)] {
        if text.is_empty() || text.len() > LEASE_NAME_MAX {
            let text = format!(
                "{what}: found {} bytes; allowed: 1 to {LEASE_NAME_MAX}",
                text.len()
            );
            return Err(StoreError::Lease(text));
        }
    }
    Ok(())
}
