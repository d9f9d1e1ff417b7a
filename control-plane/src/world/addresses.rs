//! What is kept of a service beside the documents: its virtual address, which is not given to another
//! name for 30 days, and the number of its slices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use weft_core::name::ServiceName;

use super::index::Map;
use crate::sha256_hex;

/// Indices of virtual addresses are below this: offsets in 240.240.0.0/16.
const INDEX_MAX: u32 = 0xffff;
/// A virtual address is not given to another name for this long, seconds.
const REST: i64 = 30 * 24 * 3600;

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
    /// have, the one that exists keeps it, else the one that gave it up last, else the first by
    /// name; records that are to be removed are returned.
    pub fn restore(
        records: impl IntoIterator<Item = (ServiceName, Assigned)>,
    ) -> (Self, Vec<AddressRecord>) {
        let mut records: Vec<_> = records.into_iter().collect();
        let age = |assigned: &Assigned| assigned.released.map_or(i64::MIN, |released| -released);
        records.sort_by(|(a, of_a), (b, of_b)| (age(of_a), a).cmp(&(age(of_b), b)));
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
                Some(holder) => self.by_name.get(holder).is_none_or(|assigned| {
                    assigned
                        .released
                        .is_some_and(|released| now - released > REST)
                }),
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
        // Two names that begin at the same index are too rare to look for: the range is filled.
        for n in 0..INDEX_MAX {
            addresses.assign(&name(n), 0, &mut records);
        }
        let holder = addresses.holders.get(&1).cloned().unwrap();
        addresses.release(&holder, 0, &mut records);
        records.clear();
        let late = name(1_000_000);
        addresses.assign(&late, REST, &mut records);
        assert!(records.is_empty(), "it rests");
        addresses.assign(&late, REST + 1, &mut records);
        let kept: BTreeMap<ServiceName, Option<Assigned>> = records.into_iter().collect();
        assert_eq!(kept[&holder], None);
        assert_eq!(kept[&late].unwrap().index, 1);
    }

    #[test]
    fn two_records_of_one_index_are_one_holders() {
        let at = |released| Assigned {
            index: 7,
            released,
            slices: 0,
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

    proptest! {
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
