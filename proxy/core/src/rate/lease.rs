//! One limit for many sidecars: who may use which share of it.
//!
//! The books of one limit. What a sidecar may use is at most what it has acknowledged or has been
//! sent since; the sum of that is never raised above the whole. A share moves only after the loser
//! has said that it gave it up, or has been out of touch for [`LOST_AFTER`].

mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{RuleName, WHOLE};
use crate::time::Instant;
use step::Step;

/// Keys of a limit that have shares of their own; the others go by the base.
pub const HOT_KEYS_MAX: usize = 32;
/// Keys that sidecars may name as held, of one limit, all together: those of the books before, and some
/// that cool down. What a sidecar holds of a further key counts as held of every key.
const TOLD_KEYS_MAX: usize = 2 * HOT_KEYS_MAX;
/// Keys of one limit that anybody has a share of. Always some of them are left for keys that are hot.
const NAMED_KEYS_MAX: usize = 3 * HOT_KEYS_MAX;
/// Who has been out of touch for this long is not waited for any more.
pub const LOST_AFTER: Duration = Duration::from_secs(30);
/// How long a sidecar that knows itself out of touch goes on with its lease. It knows so within 15 s
/// of the last contact: both together are [`LOST_AFTER`], after which others get the share.
pub const LEASE_ENDS_AFTER: Duration = Duration::from_secs(15);
/// After this time out of touch a share that is smaller than an even one becomes an even one. By then
/// the larger leases of all that went out of touch together have ended.
pub const EVEN_AFTER: Duration = Duration::from_secs(45);
/// Everyone gets this part of an even share, whatever the others want.
const MINIMUM_PART: u64 = 10;
/// Most requests of one report that count.
const DEMAND_MAX: u64 = 1 << 40;
/// Demand is counted in sixteenths, so that halving it forgets nothing at once.
const DEMAND_SCALE: u64 = 16;

/// What a sidecar may use of a limit, in parts of [`WHOLE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    /// Of every key that is not named.
    pub base: u32,
    /// Of single keys, by their hash.
    pub keys: BTreeMap<u64, u32>,
}

impl Shares {
    /// All of it.
    pub const WHOLE: Self = Self::base(WHOLE);

    const fn base(base: u32) -> Self {
        Self {
            base,
            keys: BTreeMap::new(),
        }
    }

    /// An even share among so many.
    pub fn even(instances: u32) -> Self {
        Self::base(WHOLE / instances.max(1))
    }

    /// What is left of a lease, by what has become of it.
    pub fn lapsed(&self, lapse: Lapse, instances: u32) -> Self {
        let even = Self::even(instances);
        match lapse {
            Lapse::Holds => self.clone(),
            Lapse::AtMostEven => Self {
                base: self.base.min(even.base),
                keys: self
                    .keys
                    .iter()
                    .map(|(key, share)| (*key, (*share).min(even.base)))
                    .collect(),
            },
            Lapse::Even => even,
        }
    }

    /// Of a key.
    pub fn of(&self, key: u64) -> u32 {
        self.keys.get(&key).copied().unwrap_or(self.base)
    }
}

/// What becomes of a lease while the sidecar is out of touch with the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Lapse {
    /// It holds.
    #[default]
    Holds,
    /// It has ended: what is more than an even share is another's.
    AtMostEven,
    /// An even share, as of a sidecar that never had a lease.
    Even,
}

impl Lapse {
    /// After so long out of touch.
    pub fn after(out_of_touch: Duration) -> Self {
        if out_of_touch < LEASE_ENDS_AFTER {
            Self::Holds
        } else if out_of_touch < EVEN_AFTER {
            Self::AtMostEven
        } else {
            Self::Even
        }
    }
}

/// What a sidecar was asked for since it told last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// Requests of all keys.
    pub base: u64,
    /// Requests of single keys, of those that want much.
    pub keys: BTreeMap<u64, u64>,
}

/// What a sidecar says of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which limit.
    pub rule: RuleName,
    /// By which lease it goes; 0: by none of this stream.
    pub version: u64,
    /// What it uses.
    pub holds: Shares,
    /// What it was asked for since it said so last; `None` in a mere acknowledgement.
    pub demand: Option<Demand>,
}

/// A lease, as a sidecar gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Of which limit.
    pub rule: RuleName,
    /// By which it is acknowledged.
    pub version: u64,
    /// What it may use from now on.
    pub shares: Shares,
}

/// What is to be sent to a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who it is for.
    pub instance: Arc<str>,
    /// On which of its streams.
    pub stream: u64,
    /// By which it is acknowledged; grows with every lease.
    pub version: u64,
    /// What it may use from now on.
    pub shares: Shares,
}

#[derive(Debug)]
struct Holder {
    stream: u64,
    acked: Shares,
    /// Whether it holds shares of keys that the books have no room for: it is sent a lease without them.
    holds_more: bool,
    sent: Option<(u64, Shares)>,
    /// Since when it is out of touch.
    lost: Option<Instant>,
    /// In sixteenths, halved with every report.
    demand: Demand,
}

impl Holder {
    /// What it may be using of a column.
    fn held(&self, column: Column) -> u32 {
        let sent = self.sent.as_ref().map(|(_, sent)| column.of(sent));
        column.of(&self.acked).max(sent.unwrap_or(0))
    }

    fn wants(&self, column: Column) -> u64 {
        match column {
            None => self.demand.base,
            Some(key) => self.demand.keys.get(&key).copied().unwrap_or(0),
        }
    }
}

/// What is shared out by itself: a key, or all others.
type Column = Option<u64>;

trait Of {
    fn of(self, shares: &Shares) -> u32;
}

impl Of for Column {
    fn of(self, shares: &Shares) -> u32 {
        match self {
            None => shares.base,
            Some(key) => shares.of(key),
        }
    }
}

/// The books of one limit.
#[derive(Debug)]
pub struct Allocator {
    /// Whether it has keys: the base is even then, since it is for each of them.
    keyed: bool,
    holders: BTreeMap<Arc<str>, Holder>,
    /// Until then not all who hold something may have told: nothing is raised.
    opens: Instant,
    /// The greatest stream whose shares may be raised.
    raises: u64,
    version: u64,
    /// Keys that somebody has a share of, and those told of since the last poll.
    named: BTreeSet<u64>,
}

impl Allocator {
    /// Nobody is known. Nothing is raised before `opens`.
    pub const fn new(keyed: bool, opens: Instant) -> Self {
        Self {
            keyed,
            holders: BTreeMap::new(),
            opens,
            raises: u64::MAX,
            version: 0,
            named: BTreeSet::new(),
        }
    }

    /// The first lease has a greater version: sidecars may know leases of books of the same limit that
    /// were closed, up to this one.
    #[must_use]
    pub fn after(mut self, version: u64) -> Self {
        self.version = version;
        self
    }

    /// From now on only the shares of this stream and of those with smaller numbers are raised. Without
    /// it, all are.
    pub const fn raise_up_to(&mut self, stream: u64) {
        self.raises = stream;
    }

    /// That of the last lease.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Whether the limit has keys, which a change of its policy may change.
    pub fn set_keyed(&mut self, keyed: bool) {
        if self.keyed && !keyed {
            self.named.clear();
            for holder in self.holders.values_mut() {
                holder.acked.keys.clear();
                holder.demand.keys.clear();
                if let Some((_, sent)) = &mut holder.sent {
                    sent.keys.clear();
                }
            }
        }
        self.keyed = keyed;
    }

    /// A sidecar says what it uses, which lease that is of (0: none on this stream), and now and then
    /// what it was asked for since it said so last. The first report of a stream opens its account.
    pub fn handle_report(
        &mut self,
        (instance, stream): (&Arc<str>, u64),
        version: u64,
        holds: Shares,
        demand: Option<Demand>,
    ) {
        let known = self.holders.get(instance);
        if known.is_some_and(|holder| holder.stream > stream) {
            return;
        }
        let known = known.filter(|holder| holder.stream == stream);
        let is_new = known.is_none();
        let sent = known.and_then(|holder| holder.sent.as_ref());
        let is_acknowledged = sent.is_none_or(|(sent, _)| *sent <= version);
        let told = is_acknowledged.then(|| self.admit(holds));
        if is_new {
            let holder = Holder {
                stream,
                acked: Shares::base(0),
                holds_more: false,
                sent: None,
                lost: None,
                demand: Demand::default(),
            };
            self.holders.insert(Arc::clone(instance), holder);
        }
        let Some(holder) = self.holders.get_mut(instance) else {
            return;
        };
        if let Some((holds, holds_more)) = told {
            (holder.acked, holder.sent) = (holds, None);
            holder.holds_more = holds_more;
        }
        if let Some(mut demand) = demand {
            if !self.keyed {
                demand.keys.clear();
            }
            holder.note(demand);
        }
    }

    /// What a sidecar says that it uses, by keys that there is room for, and whether there were others:
    /// what it uses of those counts as used of every key. Without keys there is the base only.
    fn admit(&mut self, mut holds: Shares) -> (Shares, bool) {
        if !self.keyed {
            holds.keys.clear();
            return (holds, false);
        }
        let Shares { base, keys } = &mut holds;
        let told = keys.len();
        let named = &mut self.named;
        keys.retain(|key, share| {
            let has_room = named.len() < TOLD_KEYS_MAX;
            let is_named = named.contains(key) || (has_room && named.insert(*key));
            if !is_named {
                *base = (*base).max(*share);
            }
            is_named
        });
        let holds_more = keys.len() < told;
        (holds, holds_more)
    }

    /// A stream has ended: what it held stays held for [`LOST_AFTER`].
    pub fn handle_disconnect(&mut self, instance: &str, stream: u64, now: Instant) {
        if let Some(holder) = self.holders.get_mut(instance)
            && holder.stream == stream
        {
            holder.lost = Some(now);
        }
    }

    /// What a sidecar may be using of every key that is not named; `None` where it is not known.
    pub fn held(&self, instance: &str) -> Option<u32> {
        self.holders.get(instance).map(|holder| holder.held(None))
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// What is to be sent now.
    pub fn poll(&mut self, now: Instant) -> Vec<Lease> {
        self.holders.retain(|_instance, holder| {
            let lost = holder.lost;
            lost.is_none_or(|lost| now.saturating_since(lost) < LOST_AFTER)
        });
        let hot = self.hot();
        self.named = self.named(&hot);
        let keys = self.named.iter().map(|key| Some(*key));
        let columns: Vec<Column> = [None].into_iter().chain(keys).collect();
        let mut used: Vec<u64> = Vec::with_capacity(columns.len());
        let mut targets: Vec<Vec<u32>> = Vec::with_capacity(columns.len());
        for column in &columns {
            let held = self.holders.values().map(|h| u64::from(h.held(*column)));
            used.push(held.sum());
            targets.push(self.targets(*column));
        }
        let mut leases = Vec::new();
        for (place, (instance, holder)) in self.holders.iter_mut().enumerate() {
            if holder.lost.is_some() || holder.sent.is_some() {
                continue;
            }
            let open = now >= self.opens && holder.stream <= self.raises;
            // What counts as held of every key is more than it uses: to lease that is to raise it.
            if holder.holds_more && !open {
                continue;
            }
            let mut next = Shares::base(0);
            for (index, column) in columns.iter().enumerate() {
                let current = column.of(&holder.acked);
                let target = match column {
                    Some(key) if !hot.contains(key) => next.base,
                    None | Some(_) => targets[index].get(place).copied().unwrap_or(0),
                };
                let cools = column.is_some_and(|key| !hot.contains(&key));
                let step = Step {
                    current,
                    target,
                    used: used[index],
                    open,
                    exact: cools,
                };
                let share = step.next();
                used[index] += u64::from(share.saturating_sub(current));
                match column {
                    None => next.base = share,
                    Some(key) if share != next.base => {
                        next.keys.insert(*key, share);
                    }
                    Some(_) => {}
                }
            }
            if next == holder.acked && !holder.holds_more {
                continue;
            }
            self.version += 1;
            holder.sent = Some((self.version, next.clone()));
            leases.push(Lease {
                instance: Arc::clone(instance),
                stream: holder.stream,
                version: self.version,
                shares: next,
            });
        }
        leases
    }

    /// Keys that get shares of their own: those most wanted.
    fn hot(&self) -> BTreeSet<u64> {
        let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
        for holder in self.holders.values() {
            for (key, demand) in &holder.demand.keys {
                *wanted.entry(*key).or_default() += demand;
            }
        }
        hottest(wanted).into_keys().collect()
    }

    /// All keys that somebody has a share of, or is to get one, as far as there is room.
    fn named(&self, hot: &BTreeSet<u64>) -> BTreeSet<u64> {
        let held = self.holders.values().flat_map(|holder| {
            let sent = holder.sent.iter().flat_map(|(_, sent)| sent.keys.keys());
            holder.acked.keys.keys().chain(sent)
        });
        let mut named: BTreeSet<u64> = held.copied().collect();
        for key in hot {
            if named.len() < NAMED_KEYS_MAX {
                named.insert(*key);
            }
        }
        named
    }

    /// What everyone should have, in the order of holders: who is in touch a minimum, and the rest by
    /// demand.
    fn targets(&self, column: Column) -> Vec<u32> {
        let (lost, there): (Vec<&Holder>, Vec<&Holder>) =
            self.holders.values().partition(|h| h.lost.is_some());
        let lost: u64 = lost.iter().map(|h| u64::from(h.held(column))).sum();
        let free = u64::from(WHOLE).saturating_sub(lost);
        let count = (there.len() as u64).max(1);
        let even = column.is_none() && self.keyed;
        let wanted: u64 = there.iter().map(|h| h.wants(column)).sum();
        let shares = self.holders.values().map(|holder| {
            let share = if holder.lost.is_some() {
                0
            } else if even || wanted == 0 {
                free / count
            } else {
                let minimum = free / count / MINIMUM_PART;
                let by_demand = u128::from(free - minimum * count)
                    * u128::from(holder.wants(column))
                    / u128::from(wanted);
                minimum + u64::try_from(by_demand).unwrap_or(0)
            };
            u32::try_from(share).unwrap_or(WHOLE)
        });
        shares.collect()
    }
}

impl Holder {
    fn note(&mut self, demand: Demand) {
        let scaled = |asked: u64| asked.min(DEMAND_MAX) * (DEMAND_SCALE / 2);
        self.demand.base = self.demand.base / 2 + scaled(demand.base);
        self.demand.keys.retain(|_key, wanted| {
            *wanted /= 2;
            *wanted > 0
        });
        for (key, asked) in hottest(demand.keys) {
            let wanted = self.demand.keys.entry(key).or_default();
            *wanted += scaled(asked);
        }
        self.demand.keys = hottest(std::mem::take(&mut self.demand.keys));
    }
}

/// The keys that are most wanted.
fn hottest(keys: BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    if keys.len() <= HOT_KEYS_MAX {
        return keys;
    }
    let mut wanted: Vec<(u64, u64)> = keys.into_iter().map(|(k, d)| (d, k)).collect();
    wanted.sort_unstable_by(|a, b| b.cmp(a));
    wanted.truncate(HOT_KEYS_MAX);
    wanted
        .into_iter()
        .map(|(demand, key)| (key, demand))
        .collect()
}

#[cfg(test)]
mod tests;
