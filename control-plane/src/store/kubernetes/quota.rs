//! How much of one namespace's documents is in force: the oldest, up to its quota, policies before
//! routes. Pure.
//!
//! Whoever may write documents in one namespace of a cluster fills neither the control plane nor what
//! others have. Of two documents made at the same time the first by kind and name is the older.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

use crate::model::{ResourceKey, RouteKind};

/// Documents of one namespace that are in force.
pub(super) const DOCUMENTS_MAX: usize = 2_000;
/// Bytes of JSON text of one namespace's documents that are in force.
pub(super) const BYTES_MAX: usize = 8 * 1024 * 1024;

/// Whether a document is a route, when it was made, milliseconds since the Unix epoch, and its name.
type Place = (bool, i64, ResourceKey);

/// The place of a document in its namespace's order. Policies are first: whoever may write only routes
/// puts no protection out of force.
fn place(made: i64, key: &ResourceKey) -> Place {
    (RouteKind::parse(&key.kind).is_some(), made, key.clone())
}

/// What every namespace has, and how far its quota reaches.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    namespaces: BTreeMap<String, Namespace>,
    made: BTreeMap<ResourceKey, i64>,
}

/// Invariant: `count` and `bytes` are those of the documents up to and including `last`, and the next
/// one has no room beside them.
#[derive(Debug, Default)]
struct Namespace {
    /// Bytes of each document.
    documents: BTreeMap<Place, usize>,
    last: Option<Place>,
    count: usize,
    bytes: usize,
}

impl Quotas {
    /// A document is there, or has another size. Returns those of which it is different now whether
    /// they are within the quota.
    pub(super) fn put(
        &mut self,
        key: &ResourceKey,
        made: i64,
        bytes: usize,
    ) -> BTreeSet<ResourceKey> {
        let before = self.made.insert(key.clone(), made);
        let namespace = self.namespaces.entry(key.namespace.clone());
        let namespace = namespace.or_default();
        let mut changed = BTreeSet::new();
        if let Some(before) = before {
            namespace.take(&place(before, key), &mut changed);
        }
        namespace.add(place(made, key), bytes, &mut changed);
        namespace.settle(&mut changed);
        changed
    }

    /// A document is not there any more.
    pub(super) fn remove(&mut self, key: &ResourceKey) -> BTreeSet<ResourceKey> {
        let mut changed = BTreeSet::new();
        let Some(made) = self.made.remove(key) else {
            return changed;
        };
        if let Some(namespace) = self.namespaces.get_mut(&key.namespace) {
            namespace.take(&place(made, key), &mut changed);
            namespace.settle(&mut changed);
            if namespace.documents.is_empty() {
                self.namespaces.remove(&key.namespace);
            }
        }
        changed.remove(key);
        changed
    }

    /// Why a document is not within its namespace's quota, if it is not.
    pub(super) fn refusal(&self, key: &ResourceKey) -> Option<String> {
        let made = self.made.get(key)?;
        let namespace = self.namespaces.get(&key.namespace)?;
        let place = place(*made, key);
        let last = namespace.last.as_ref();
        if last.is_some_and(|last| place <= *last) {
            return None;
        }
        Some(format!(
            "metadata.namespace: found {} documents in {}; allowed: the oldest {DOCUMENTS_MAX} of a \
             namespace, policies before routes, up to {BYTES_MAX} bytes of them together: delete some, or use another namespace",
            namespace.documents.len(),
            key.namespace,
        ))
    }
}

impl Namespace {
    fn add(&mut self, place: Place, bytes: usize, changed: &mut BTreeSet<ResourceKey>) {
        if self.last.as_ref().is_some_and(|last| place < *last) {
            self.count += 1;
            self.bytes += bytes;
            toggle(changed, &place);
        }
        self.documents.insert(place, bytes);
    }

    fn take(&mut self, place: &Place, changed: &mut BTreeSet<ResourceKey>) {
        let Some(bytes) = self.documents.remove(place) else {
            return;
        };
        let Some(last) = self.last.as_ref().filter(|last| place <= *last) else {
            return;
        };
        self.count -= 1;
        self.bytes -= bytes;
        toggle(changed, place);
        if last == place {
            self.last = self.before(place);
        }
    }

    /// Leaves out the youngest while there is no room, then takes the next ones while there is.
    fn settle(&mut self, changed: &mut BTreeSet<ResourceKey>) {
        while self.count > DOCUMENTS_MAX || self.bytes > BYTES_MAX {
            let Some(last) = self.last.take() else {
                break;
            };
            self.count -= 1;
            self.bytes -= self.documents.get(&last).copied().unwrap_or_default();
            toggle(changed, &last);
            self.last = self.before(&last);
        }
        loop {
            let from = self.last.as_ref().map_or(Unbounded, Excluded);
            let mut rest = self.documents.range((from, Unbounded));
            let Some((place, bytes)) = rest.next() else {
                break;
            };
            if self.count + 1 > DOCUMENTS_MAX || self.bytes + bytes > BYTES_MAX {
                break;
            }
            self.count += 1;
            self.bytes += bytes;
            toggle(changed, place);
            self.last = Some(place.clone());
        }
    }

    fn before(&self, place: &Place) -> Option<Place> {
        let mut older = self.documents.range(..place);
        older.next_back().map(|(place, _)| place.clone())
    }
}

/// What changes twice has not changed.
fn toggle(changed: &mut BTreeSet<ResourceKey>, (_, _, key): &Place) {
    if !changed.remove(key) {
        changed.insert(key.clone());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(namespace: u8, number: usize) -> ResourceKey {
        let kind = if number % 3 == 2 {
            "HTTPRoute"
        } else {
            "FaultInjection"
        };
        ResourceKey {
            kind: kind.to_owned(),
            namespace: format!("n{namespace}"),
            name: format!("d{number:05}"),
        }
    }

    #[test]
    fn the_oldest_of_a_namespace_are_in_force_and_others_have_their_own() {
        let mut quotas = Quotas::default();
        for number in 0..DOCUMENTS_MAX {
            assert_eq!(quotas.put(&key(0, number), 5, 10).len(), 1);
        }
        // Routes, the last of all.
        let young = key(0, DOCUMENTS_MAX);
        assert_eq!(young.kind, "HTTPRoute");
        assert!(quotas.put(&young, 9, 10).is_empty());
        let why = quotas.refusal(&young).unwrap();
        assert!(why.contains("found 2001 documents in n0"), "{why}");
        assert!(quotas.refusal(&key(0, 7)).is_none());
        assert_eq!(quotas.put(&key(1, 0), 9, 10).len(), 1);
        // One that goes makes room for the next.
        assert_eq!(quotas.remove(&key(0, 7)), [young.clone()].into());
        assert!(quotas.refusal(&young).is_none());
        // One that was made before takes it from the youngest.
        let old = key(0, DOCUMENTS_MAX + 1);
        assert_eq!(quotas.put(&old, 1, 10), [old, young].into());
    }

    #[test]
    fn one_that_grows_leaves_no_room_for_those_after_it() {
        let mut quotas = Quotas::default();
        for number in 0..3 {
            quotas.put(&key(0, number), 1, BYTES_MAX / 4);
        }
        let changed = quotas.put(&key(0, 1), 1, BYTES_MAX / 2);
        assert!(changed.is_empty(), "exactly full: {changed:?}");
        let changed = quotas.put(&key(0, 1), 1, BYTES_MAX / 2 + 1);
        assert_eq!(changed, [key(0, 2)].into());
        let changed = quotas.put(&key(0, 0), 1, BYTES_MAX + 1);
        assert_eq!(changed, [key(0, 0), key(0, 1)].into());
        assert_eq!(quotas.remove(&key(0, 0)), [key(0, 1), key(0, 2)].into());
    }

    proptest! {
        #[test]
        fn it_is_as_counted_anew(steps in proptest::collection::vec((0..2u8, 0..12usize, 0..4i64, 0..5usize), 1..80)) {
            let mut quotas = Quotas::default();
            let mut all: BTreeMap<ResourceKey, (i64, usize)> = BTreeMap::new();
            let within = |all: &BTreeMap<ResourceKey, (i64, usize)>| {
                let mut ordered: Vec<_> = all.iter().map(|(key, (made, bytes))| (place(*made, key), *bytes)).collect();
                ordered.sort();
                let mut within = BTreeSet::new();
                for namespace in ["n0", "n1"] {
                    let mut bytes = 0;
                    for ((_, _, key), more) in ordered.iter().filter(|((_, _, key), _)| key.namespace == namespace) {
                        bytes += more;
                        if bytes > BYTES_MAX {
                            break;
                        }
                        within.insert(key.clone());
                    }
                }
                within
            };
            for (namespace, number, made, size) in steps {
                let key = key(namespace, number);
                let before = within(&all);
                let changed = match size {
                    0 => {
                        all.remove(&key);
                        quotas.remove(&key)
                    }
                    size => {
                        let bytes = size * BYTES_MAX / 6;
                        all.insert(key.clone(), (made, bytes));
                        quotas.put(&key, made, bytes)
                    }
                };
                let after = within(&all);
                for key in all.keys() {
                    prop_assert_eq!(quotas.refusal(key).is_none(), after.contains(key), "{}", key);
                }
                let mut expected: BTreeSet<ResourceKey> = before.symmetric_difference(&after).cloned().collect();
                if size == 0 {
                    expected.remove(&key);
                }
                prop_assert_eq!(changed, expected);
            }
        }
    }
}
