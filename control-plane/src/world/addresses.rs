//! What is kept of a service beside the documents: its virtual address, which is not given to another
//! name for as long as the service existed, and the number of its slices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use weft_core::name::ServiceName;

use super::index::Map;
use crate::sha256_hex;

/// Indices of virtual addresses are below this: offsets in 240.240.0.0/16.
const INDEX_MAX: u32 = 0xffff;
/// A virtual address is not given to another name for as long as its service existed, but at most this
/// long, seconds.
const REST: i64 = 30 * 24 * 3600;
/// And at least this long, seconds: whoever makes services and deletes them at once uses up no range.
const REST_MIN: i64 = 3600;

/// What is on record of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The index of its address in the range.
    pub index: u32,
    /// When the service ceased to exist, seconds since the Unix epoch; `None` while it exists.
    pub released: Option<i64>,
    /// How many slices its endpoints are in; 0 before there were any. The number depends on how many
    /// there were before (`weft_core::slices`): without it a restart could divide the endpoints in
    /// another way, and everybody would get all of them anew.
    #[serde(default)]
    pub slices: u32,
    /// Since when the service exists, seconds since the Unix epoch; 0 where that was not written down.
    #[serde(default)]
    pub since: i64,
}

/// Who keeps an address that two names have: the lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Exists,
    Rests,
    Free,
}

impl Assigned {
    fn rank(&self, now: i64) -> Rank {
        match self.released {
            None => Rank::Exists,
            Some(_) if self.is_free(now) => Rank::Free,
            Some(_) => Rank::Rests,
        }
    }

    /// Whether this, of a service that exists, holds against another record of the same service.
    fn outlives(&self, other: &Self) -> bool {
        let is_older = self.index != other.index && self.since < other.since;
        self.released.is_none() && (other.released.is_some() || is_older)
    }

    /// Whether another name may have the address.
    fn is_free(&self, now: i64) -> bool {
        self.released.is_some_and(|released| {
            let existed = released.saturating_sub(self.since);
            now.saturating_sub(released) > existed.clamp(REST_MIN, REST)
        })
    }
}

/// What is to be written down of a name; `None` removes its record.
pub type AddressRecord = (ServiceName, Option<Assigned>);

/// Which name has which virtual address. No two names share one.
#[derive(Debug, Clone, Default)]
pub struct VirtualAddresses {
    by_name: Map<ServiceName, Assigned>,
    holders: Map<u32, ServiceName>,
}

impl VirtualAddresses {
    /// Takes up what is on record. Of two names with one index, which only a damaged store can
    /// have, the one that exists keeps it, else the one that gave it up last, else the older one, and
    /// then the first by name; records that are to be removed are returned.
    pub fn restore(
        records: impl IntoIterator<Item = (ServiceName, Assigned)>,
    ) -> (Self, Vec<AddressRecord>) {
        let mut records: Vec<_> = records.into_iter().collect();
        let age = |assigned: &Assigned| assigned.released.map_or(i64::MIN, |released| -released);
        records.sort_by(|(a, of_a), (b, of_b)| {
            (age(of_a), of_a.since, a).cmp(&(age(of_b), of_b.since, b))
        });
        let mut all = Self::default();
        let mut dropped = Vec::new();
        for (name, assigned) in records {
            if all.holders.get(&assigned.index).is_some() || assigned.index >= INDEX_MAX {
                dropped.push((name, None));
                continue;
            }
            all.holders.insert_cow(assigned.index, name.clone());
            all.by_name.insert_cow(name, assigned);
        }
        (all, dropped)
    }

    /// Takes up what another control plane has put on record of names. What is on record holds, and so
    /// all control planes come to the same: of two names with one address the one that exists keeps it,
    /// else the one whose address rests, of two of these the older one, and then the first by name; the
    /// other is given another one. A record that says that a service is gone takes no address from one
    /// that exists here, and neither does one of a control plane that was cut off and gave the service
    /// another address later: what is so here is put on record again. Returns names whose addresses are
    /// not what they were.
    pub fn adopt(
        &mut self,
        mut theirs: Vec<(ServiceName, Assigned)>,
        now: i64,
        records: &mut Vec<AddressRecord>,
    ) -> Vec<ServiceName> {
        theirs.retain(|(_, assigned)| assigned.index < INDEX_MAX);
        theirs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut changed = Vec::new();
        for (name, assigned) in theirs {
            let before = self.by_name.get(&name).copied();
            if let Some(before) = before
                && before.outlives(&assigned)
            {
                records.push((name, Some(before)));
                continue;
            }
            if before.is_some_and(|before| before.index == assigned.index) {
                continue;
            }
            let holder = self.holders.get(&assigned.index).cloned();
            let loses = |holder: &ServiceName| {
                let held = self.by_name.get(holder);
                let (theirs, name) = ((assigned.rank(now), assigned.since), &name);
                held.is_none_or(|held| (theirs, name) < ((held.rank(now), held.since), holder))
            };
            match holder {
                Some(holder) if !loses(&holder) => {
                    // Whoever put it on record sees the same, and gives the name another one.
                    if before.is_none() && assigned.released.is_none() {
                        self.assign(&name, now, records);
                        changed.push(name);
                    }
                    continue;
                }
                Some(holder) => {
                    self.give_another(&holder, now, records, &mut changed, &name, assigned)
                }
                None => self.put(&name, assigned),
            }
            changed.push(name);
        }
        changed
    }

    /// A name takes the place of the holder of an index, who is given another one while it exists.
    fn give_another(
        &mut self,
        holder: &ServiceName,
        now: i64,
        records: &mut Vec<AddressRecord>,
        changed: &mut Vec<ServiceName>,
        name: &ServiceName,
        assigned: Assigned,
    ) {
        let held = self.by_name.remove_cow(holder);
        self.put(name, assigned);
        match held {
            Some(held) if held.released.is_none() => {
                self.assign(holder, now, records);
                self.set_slices(holder, held.slices, records);
                changed.push(holder.clone());
            }
            Some(_) | None => records.push((holder.clone(), None)),
        }
    }

    fn put(&mut self, name: &ServiceName, assigned: Assigned) {
        if let Some(before) = self.by_name.insert_cow(name.clone(), assigned) {
            self.holders.remove_cow(&before.index);
        }
        self.holders.insert_cow(assigned.index, name.clone());
    }

    /// What has to be on record of a name; `None` where nothing has.
    pub fn record_of(&self, name: &ServiceName) -> Option<Assigned> {
        self.by_name.get(name).copied()
    }

    /// The addresses of a service; none when it has not been given any.
    pub fn of(&self, name: &ServiceName) -> Vec<IpAddr> {
        let Some(assigned) = self.by_name.get(name) else {
            return Vec::new();
        };
        let [_, _, high, low] = assigned.index.to_be_bytes();
        let v4 = Ipv4Addr::new(240, 240, high, low);
        let v6 = Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 1, 0, 0, 0, assigned.index as u16);
        vec![v4.into(), v6.into()]
    }

    /// Gives addresses to a service that exists. What is to be written down is appended; the one
    /// that gave up an address after its rest loses its record.
    pub fn assign(&mut self, name: &ServiceName, now: i64, records: &mut Vec<AddressRecord>) {
        if let Some(assigned) = self.by_name.get_mut_cow(name) {
            if assigned.released.take().is_some() {
                records.push((name.clone(), Some(*assigned)));
            }
            return;
        }
        let Some(index) = self.free(name, now) else {
            tracing::error!(%name, "no virtual address left: 240.240.0.0/16 is full");
            return;
        };
        let assigned = Assigned {
            index,
            released: None,
            slices: 0,
            since: now,
        };
        if let Some(previous) = self.holders.insert_cow(index, name.clone()) {
            self.by_name.remove_cow(&previous);
            records.push((previous, None));
        }
        self.by_name.insert_cow(name.clone(), assigned);
        records.push((name.clone(), Some(assigned)));
    }

    /// Lets the addresses of a service that ceased to exist rest.
    pub fn release(&mut self, name: &ServiceName, now: i64, records: &mut Vec<AddressRecord>) {
        if let Some(assigned) = self.by_name.get_mut_cow(name)
            && assigned.released.is_none()
        {
            assigned.released = Some(now);
            records.push((name.clone(), Some(*assigned)));
        }
    }

    /// How many slices the endpoints of a service were in last; 0 where that is not known.
    pub fn slices_of(&self, name: &ServiceName) -> u32 {
        self.by_name.get(name).map_or(0, |assigned| assigned.slices)
    }

    /// Notes in how many slices the endpoints of a service are. One slice is what a service has
    /// without a record; that is not written down by itself.
    pub fn set_slices(
        &mut self,
        name: &ServiceName,
        slices: u32,
        records: &mut Vec<AddressRecord>,
    ) {
        if let Some(assigned) = self.by_name.get_mut_cow(name)
            && assigned.slices.max(1) != slices
        {
            assigned.slices = slices;
            records.push((name.clone(), Some(*assigned)));
        }
    }

    /// Names whose address does not rest.
    pub fn assigned(&self) -> impl Iterator<Item = &ServiceName> {
        let all = (&self.by_name).into_iter();
        all.filter_map(|(name, assigned)| assigned.released.is_none().then_some(name))
    }

    /// A free index, searched from the name's own hash on, so that a mesh made anew gives the same
    /// addresses. Without what looks like a network or broadcast address of a /24, which some programs
    /// refuse.
    fn free(&self, name: &ServiceName, now: i64) -> Option<u32> {
        let digest = sha256_hex(name.to_string().as_bytes());
        let start = u32::from_str_radix(&digest[..8], 16).unwrap_or(0) % INDEX_MAX;
        let candidates = (start..INDEX_MAX).chain(0..start);
        candidates
            .filter(|index| !matches!(index & 0xff, 0 | 255))
            .find(|index| match self.holders.get(index) {
                None => true,
                Some(holder) => {
                    { self.by_name.get(holder) }.is_none_or(|assigned| assigned.is_free(now))
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    fn name(n: u32) -> ServiceName {
        format!("shop/s{n}").parse().unwrap()
    }

    #[test]
    fn addresses_are_stable_and_rest() {
        let (mut addresses, mut records) = (VirtualAddresses::default(), Vec::new());
        let web = name(1);
        addresses.assign(&web, 0, &mut records);
        let first = addresses.of(&web);
        addresses.assign(&web, 1, &mut records);
        assert_eq!(records.len(), 1, "nothing new");
        addresses.release(&web, 2, &mut records);
        addresses.release(&web, 3, &mut records);
        assert_eq!(records.len(), 2);
        addresses.assign(&web, 4, &mut records);
        assert_eq!((records.len(), addresses.of(&web)), (3, first));
    }

    /// The holder of an index loses its record on disk, so that a restart gives it to one name.
    #[test]
    fn an_address_that_is_given_away_has_one_record() {
        let (mut addresses, mut records) = (VirtualAddresses::default(), Vec::new());
        // Two names that begin at the same index.
        let mut begun = BTreeMap::new();
        let (holder, late) = (0..INDEX_MAX)
            .find_map(|n| {
                let mut alone = VirtualAddresses::default();
                alone.assign(&name(n), 0, &mut Vec::new());
                let index = alone.by_name.get(&name(n)).unwrap().index;
                begun.insert(index, name(n)).map(|first| (first, name(n)))
            })
            .unwrap();
        addresses.assign(&holder, 0, &mut records);
        let index = addresses.by_name.get(&holder).unwrap().index;
        addresses.release(&holder, 0, &mut records);
        records.clear();
        let mut resting = addresses.clone();
        resting.assign(&late, REST_MIN, &mut Vec::new());
        assert_ne!(resting.by_name.get(&late).unwrap().index, index, "it rests");
        addresses.assign(&late, REST_MIN + 1, &mut records);
        let kept: BTreeMap<ServiceName, Option<Assigned>> = records.into_iter().collect();
        assert_eq!(kept[&holder], None);
        assert_eq!(kept[&late].unwrap().index, index);
    }

    #[test]
    fn two_records_of_one_index_are_one_holders() {
        let at = |released| Assigned {
            index: 7,
            released,
            slices: 0,
            since: 0,
        };
        let records = [
            (name(1), at(Some(3))),
            (name(2), at(None)),
            (name(3), at(None)),
        ];
        let (addresses, dropped) = VirtualAddresses::restore(records);
        assert_eq!(addresses.of(&name(2)).len(), 2);
        assert_eq!(dropped, [(name(3), None), (name(1), None)]);
    }

    #[test]
    fn an_address_rests_as_long_as_it_was_used() {
        let released = |since, released| Assigned {
            index: 7,
            released: Some(released),
            slices: 0,
            since,
        };
        let day = 24 * 3600;
        for (assigned, rests) in [
            (released(day, day), REST_MIN),
            (released(day, day + 1), REST_MIN),
            (released(day, 3 * day), 2 * day),
            (released(day, 100 * day), REST),
            // Written down before it was known since when.
            (released(0, 100 * day), REST),
        ] {
            let ends = assigned.released.unwrap() + rests;
            assert!(!assigned.is_free(ends), "{assigned:?}");
            assert!(assigned.is_free(ends + 1), "{assigned:?}");
        }
    }

    /// Two control planes that learn of the same services in another order.
    #[test]
    fn what_is_on_record_makes_control_planes_agree() {
        let kept = |records: &[AddressRecord], into: &mut BTreeMap<ServiceName, Assigned>| {
            for (name, assigned) in records {
                match assigned {
                    Some(assigned) => into.insert(name.clone(), *assigned),
                    None => into.remove(name),
                };
            }
        };
        let theirs = |kept: &BTreeMap<ServiceName, Assigned>| {
            kept.iter()
                .map(|(n, a)| (n.clone(), *a))
                .collect::<Vec<_>>()
        };
        // They fill the same small part of the range: each name wants the index of another one.
        let fill = |order: &mut dyn Iterator<Item = u32>| {
            let (mut addresses, mut records) = (VirtualAddresses::default(), Vec::new());
            for n in order {
                let index = 1 + n % 3;
                if addresses.holders.get(&index).is_none() {
                    let assigned = Assigned {
                        index,
                        released: None,
                        slices: 0,
                        since: 0,
                    };
                    addresses.put(&name(n), assigned);
                    records.push((name(n), Some(assigned)));
                } else {
                    addresses.assign(&name(n), 0, &mut records);
                }
            }
            (addresses, records)
        };
        let (mut one, of_one) = fill(&mut (0..9));
        let (mut two, of_two) = fill(&mut (0..9).rev());
        let mut store = BTreeMap::new();
        kept(&of_one, &mut store);
        kept(&of_two, &mut store);
        for round in 0.. {
            let before = store.clone();
            for addresses in [&mut one, &mut two] {
                let mut records = Vec::new();
                addresses.adopt(theirs(&store), 0, &mut records);
                kept(&records, &mut store);
            }
            if store == before {
                break;
            }
            assert!(round < 10, "they do not agree");
        }
        let mut given = BTreeSet::new();
        for n in 0..9 {
            assert_eq!(one.of(&name(n)), two.of(&name(n)), "s{n}");
            assert!(given.insert(one.of(&name(n))), "s{n} has that of another");
        }
    }

    fn with_index(index: u32, released: Option<i64>) -> Assigned {
        Assigned {
            index,
            released,
            slices: 0,
            since: 0,
        }
    }

    /// What rests, or is said to, takes no address from a service that exists, whoever is the first by
    /// name.
    #[test]
    fn a_record_that_rests_takes_no_address_from_a_service_that_exists() {
        let day = 24 * 3600;
        for (theirs, ours) in [(name(1), name(2)), (name(2), name(1))] {
            let mut addresses = VirtualAddresses::default();
            addresses.put(&ours, with_index(7, None));
            let before = addresses.of(&ours);
            let mut records = Vec::new();
            let resting = vec![(theirs.clone(), with_index(7, Some(day)))];
            assert_eq!(addresses.adopt(resting, day, &mut records), []);
            assert_eq!((addresses.of(&ours), records.len()), (before.clone(), 0));
            // The record of the name itself, by one that has not seen yet that it exists.
            for index in [9, 7] {
                records.clear();
                let resting = vec![(ours.clone(), with_index(index, Some(day)))];
                assert_eq!(addresses.adopt(resting, day, &mut records), []);
                assert_eq!(addresses.of(&ours), before);
                assert_eq!(records, [(ours.clone(), Some(with_index(7, None)))]);
            }
            // And one that exists takes it from one that rests, which loses its record.
            records.clear();
            let mut addresses = VirtualAddresses::default();
            addresses.put(&ours, with_index(7, Some(day)));
            let living = vec![(theirs.clone(), with_index(7, None))];
            let changed = addresses.adopt(living, day, &mut records);
            assert_eq!(changed.first(), Some(&theirs));
            assert_eq!(addresses.of(&theirs), before);
            assert!(addresses.of(&ours).is_empty());
            assert_eq!(records, [(ours, None)]);
        }
    }

    /// Numbers of names whose hashes begin at the same index.
    const COLLIDING: [u32; 6] = [17, 42245, 168976, 175169, 175444, 184688];

    /// A control plane, and what it has not written down yet.
    #[derive(Default)]
    struct Replica {
        addresses: VirtualAddresses,
        unsaved: BTreeSet<ServiceName>,
        is_cut_off: bool,
    }

    impl Replica {
        fn note(&mut self, records: Vec<AddressRecord>) {
            self.unsaved
                .extend(records.into_iter().map(|(name, _)| name));
        }

        /// Writes, and reads what all have written.
        fn exchange(&mut self, store: &mut BTreeMap<ServiceName, Assigned>, now: i64) {
            for name in std::mem::take(&mut self.unsaved) {
                match self.addresses.record_of(&name) {
                    Some(assigned) => store.insert(name, assigned),
                    None => store.remove(&name),
                };
            }
            let theirs = store.iter().map(|(n, a)| (n.clone(), *a)).collect();
            let mut records = Vec::new();
            self.addresses.adopt(theirs, now, &mut records);
            self.note(records);
        }
    }

    proptest! {
        /// Control planes learn of services in any order and are cut off from the store meanwhile. In
        /// the end they agree, and what all agreed on and is on record stayed so.
        #[test]
        fn a_control_plane_that_was_cut_off_takes_no_address_from_a_service(
            steps in proptest::collection::vec((0usize..2, 0u32..6, 0u32..5), 1..60),
        ) {
            let mut replicas = [Replica::default(), Replica::default()];
            let (mut store, mut agreed) = (BTreeMap::new(), BTreeMap::new());
            let services: Vec<ServiceName> = COLLIDING.iter().map(|n| name(*n)).collect();
            for (now, (replica, service, what)) in (1i64..).zip(steps) {
                let replica = &mut replicas[replica];
                match what {
                    0 => replica.is_cut_off = !replica.is_cut_off,
                    _ => {
                        let mut records = Vec::new();
                        let service = &services[service as usize];
                        replica.addresses.assign(service, now, &mut records);
                        replica.note(records);
                    }
                }
                for replica in &mut replicas {
                    if !replica.is_cut_off {
                        replica.exchange(&mut store, now);
                    }
                }
                for service in &services {
                    let [one, two] = [0, 1].map(|n| replicas[n].addresses.of(service));
                    let kept = store.get(service).map(|kept: &Assigned| kept.index);
                    let here = replicas[0].addresses.record_of(service).map(|own| own.index);
                    if !one.is_empty() && one == two && kept == here {
                        agreed.entry(service.clone()).or_insert(one);
                    }
                }
            }
            for round in 0..10 {
                for replica in &mut replicas {
                    replica.exchange(&mut store, 100 + round);
                }
            }
            for service in &services {
                let [one, two] = [0, 1].map(|n| replicas[n].addresses.of(service));
                // One that has not heard of the service knows its address from the record.
                prop_assert_eq!(&one, &two, "{}", service);
                if let Some(agreed) = agreed.get(service) {
                    prop_assert_eq!(agreed, &one, "{}", service);
                }
            }
            prop_assert!(replicas.iter().all(|replica| replica.unsaved.is_empty()));
        }

        #[test]
        fn no_two_services_share_an_address(steps in proptest::collection::vec(proptest::collection::btree_set(0u32..40, 0..20), 1..20)) {
            let (mut addresses, mut records) = (VirtualAddresses::default(), Vec::new());
            let mut ever: HashMap<Vec<IpAddr>, ServiceName> = HashMap::new();
            let mut there: BTreeSet<u32> = BTreeSet::new();
            for (now, step) in steps.into_iter().enumerate() {
                for gone in there.difference(&step) {
                    addresses.release(&name(*gone), now as i64, &mut records);
                }
                for n in &step {
                    addresses.assign(&name(*n), now as i64, &mut records);
                    let given = addresses.of(&name(*n));
                    prop_assert_eq!(given.len(), 2);
                    let owner = ever.entry(given).or_insert_with(|| name(*n));
                    prop_assert_eq!(&*owner, &name(*n));
                }
                there = step;
            }
            // What is on record restores to the same.
            let kept: BTreeMap<ServiceName, Option<Assigned>> = records.into_iter().collect();
            let kept = kept.into_iter().filter_map(|(name, assigned)| Some((name, assigned?)));
            let (restored, dropped) = VirtualAddresses::restore(kept);
            prop_assert!(dropped.is_empty());
            for n in there {
                prop_assert_eq!(restored.of(&name(n)), addresses.of(&name(n)));
            }
        }
    }
}
