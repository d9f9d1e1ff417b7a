//! What a watch has told of objects of the cluster: the newest of each, by key. Pure.
//!
//! Own writes are entered when they are answered, before the watch tells of them. What the watch then
//! tells late, of an older version or of an object that was deleted meanwhile, changes nothing.

use std::collections::{BTreeMap, BTreeSet};

/// An object as the API server has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry<V> {
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// `metadata.resourceVersion`.
    pub(crate) version: String,
    /// What is kept of it.
    pub(crate) value: V,
}

/// The newest of each object, of one or several watches.
#[derive(Debug)]
pub(crate) struct Watched<K, V> {
    held: BTreeMap<K, Entry<V>>,
    /// Uids of objects that were deleted here, until the watch has told of it.
    deleted: BTreeMap<String, K>,
    /// Uids of objects that the watch has told to be gone while something is being written; nothing is
    /// kept at other times.
    gone_meanwhile: Option<BTreeSet<String>>,
    /// Lists that are being read, by the name of their watch.
    listing: BTreeMap<String, Listing<K, V>>,
}

#[derive(Debug)]
struct Listing<K, V> {
    listed: BTreeMap<K, Entry<V>>,
    /// What was written here since the list began, which it may not have.
    written: BTreeSet<K>,
}

impl<K, V> Default for Watched<K, V> {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            deleted: BTreeMap::new(),
            gone_meanwhile: None,
            listing: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone, V> Watched<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&Entry<V>> {
        self.held.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &Entry<V>)> {
        self.held.iter()
    }

    /// The watch tells of an object; whether that is news.
    pub(crate) fn applied(&mut self, key: K, entry: Entry<V>) -> bool {
        let outdated = self
            .held
            .get(&key)
            .is_some_and(|held| !is_newer(&entry.version, &held.version));
        if outdated || self.deleted.contains_key(&entry.uid) {
            return false;
        }
        self.held.insert(key, entry);
        true
    }

    /// What is held of an object is this, whatever it was; whether that is news.
    fn replace(&mut self, key: K, entry: Entry<V>) -> bool {
        let (uid, version) = (entry.uid.clone(), entry.version.clone());
        let before = self.held.insert(key, entry);
        before.is_none_or(|before| (before.uid, before.version) != (uid, version))
    }

    /// The watch tells that an object is gone; whether that is news.
    pub(crate) fn gone(&mut self, key: &K, uid: &str) -> bool {
        self.deleted.remove(uid);
        let held = self.held.get(key).is_some_and(|held| held.uid == uid);
        held && self.take(key)
    }

    fn take(&mut self, key: &K) -> bool {
        let held = self.held.remove(key);
        if let (Some(held), Some(gone)) = (&held, &mut self.gone_meanwhile) {
            gone.insert(held.uid.clone());
        }
        held.is_some()
    }

    /// Something begins to be written, or is not being written any more.
    pub(crate) fn set_writing(&mut self, is_writing: bool) {
        self.gone_meanwhile = is_writing.then(BTreeSet::new);
    }

    /// The uid of an object that was deleted here and that the watch has not told to be gone.
    pub(crate) fn deleted_here(&self, key: &K) -> Option<&str> {
        let mut deleted = self.deleted.iter();
        let found = deleted.find(|(_, of)| *of == key);
        found.map(|(uid, _)| &**uid)
    }

    /// Whether the watch has still to tell that an object is gone that was deleted here.
    pub(crate) fn is_outstanding(&self, uid: &str) -> bool {
        self.deleted.contains_key(uid)
    }

    /// A list begins: what it does not have when it is done is gone.
    pub(crate) fn begin(&mut self, watch: &str) {
        let listing = Listing {
            listed: BTreeMap::new(),
            written: BTreeSet::new(),
        };
        self.listing.insert(watch.to_owned(), listing);
    }

    /// The list has an object.
    pub(crate) fn listed(&mut self, watch: &str, key: K, entry: Entry<V>) {
        if let Some(listing) = self.listing.get_mut(watch) {
            listing.listed.insert(key, entry);
        }
    }

    /// The list is done; `belongs` says which keys its watch is for. Returns what has changed.
    pub(crate) fn done(&mut self, watch: &str, belongs: impl Fn(&K) -> bool) -> Vec<K> {
        let Some(Listing { listed, written }) = self.listing.remove(watch) else {
            return Vec::new();
        };
        // Deletions before the list began are in it.
        self.deleted
            .retain(|_uid, key| !belongs(key) || written.contains(key));
        let gone = self
            .held
            .keys()
            .filter(|key| belongs(key) && !listed.contains_key(*key) && !written.contains(*key));
        let mut changed: Vec<K> = gone.cloned().collect();
        for key in &changed {
            self.take(key);
        }
        for (key, entry) in listed {
            // A list is the newest that there is, also where its versions are lower than those held, as
            // after a restored backup of etcd: only what was written here meanwhile may be newer.
            let is_news = match written.contains(&key) {
                true => self.applied(key.clone(), entry),
                false => self.replace(key.clone(), entry),
            };
            if is_news {
                changed.push(key);
            }
        }
        changed
    }

    /// An object was written here, and this is what the API server has made of it.
    pub(crate) fn wrote(&mut self, watch: &str, key: K, entry: Entry<V>) {
        if let Some(listing) = self.listing.get_mut(watch) {
            listing.written.insert(key.clone());
        }
        self.applied(key, entry);
    }

    /// An object was deleted here.
    pub(crate) fn removed(&mut self, watch: &str, key: &K, uid: &str) {
        if let Some(listing) = self.listing.get_mut(watch) {
            listing.written.insert(key.clone());
        }
        let is_told = self.gone_meanwhile.as_ref();
        if is_told.is_none_or(|gone| !gone.contains(uid)) {
            self.deleted.insert(uid.to_owned(), key.clone());
        }
        if self.held.get(key).is_some_and(|held| held.uid == uid) {
            self.held.remove(key);
        }
    }
}

/// Whether a `resourceVersion` is newer than another: they are decimal numbers that ascend (KEP-5504).
/// Of those that are not numbers, another is a newer one.
pub(crate) fn is_newer(version: &str, than: &str) -> bool {
    match (version.parse::<u128>(), than.parse::<u128>()) {
        (Ok(version), Ok(than)) => version > than,
        (Ok(_) | Err(_), Ok(_) | Err(_)) => version != than,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: &str, version: u32) -> Entry<u32> {
        Entry {
            uid: uid.to_owned(),
            version: version.to_string(),
            value: version,
        }
    }

    fn held(watched: &Watched<&'static str, u32>) -> Vec<(&'static str, u32)> {
        watched
            .iter()
            .map(|(key, held)| (*key, held.value))
            .collect()
    }

    #[test]
    fn what_the_watch_tells_late_changes_nothing() {
        let mut watched = Watched::default();
        watched.wrote("w", "a", entry("1", 10));
        assert!(!watched.applied("a", entry("1", 10)));
        assert!(!watched.applied("a", entry("1", 9)));
        assert!(watched.applied("a", entry("1", 11)));
        watched.removed("w", &"a", "1");
        assert!(!watched.applied("a", entry("1", 11)), "told late");
        assert!(watched.applied("a", entry("2", 13)), "made again");
        assert!(!watched.gone(&"a", "1"), "the first one is gone");
        assert_eq!(held(&watched), [("a", 13)]);
        assert!(watched.gone(&"a", "2"));
        assert!(is_newer("100", "99") && !is_newer("99", "100") && is_newer("x", "y"));
    }

    /// The watch tells of a deletion before the answer to it is there.
    #[test]
    fn a_deletion_that_was_told_already_is_not_waited_for() {
        let mut watched = Watched::default();
        for uid in ["1", "2"] {
            watched.applied("a", entry(uid, 10));
            watched.set_writing(true);
            if uid == "1" {
                assert!(watched.gone(&"a", uid));
            }
            watched.removed("w", &"a", uid);
            watched.set_writing(false);
            assert_eq!(watched.deleted_here(&"a").is_some(), uid == "2");
            assert_eq!(watched.is_outstanding(uid), uid == "2");
            assert!(held(&watched).is_empty());
        }
        watched.gone(&"a", "2");
        assert!(!watched.is_outstanding("2"));
    }

    #[test]
    fn a_list_removes_what_it_does_not_have_unless_it_was_written_meanwhile() {
        let mut watched = Watched::default();
        for key in ["gone", "kept", "deleted", "z-other"] {
            watched.applied(key, entry(key, 1));
        }
        watched.begin("w");
        watched.wrote("w", "new", entry("new", 9));
        watched.removed("w", &"deleted", "deleted");
        for key in ["kept", "deleted"] {
            watched.listed("w", key, entry(key, 1));
        }
        watched.listed("w", "more", entry("more", 5));
        let changed = watched.done("w", |key| !key.starts_with('z'));
        assert_eq!(changed, ["gone", "more"]);
        assert_eq!(
            held(&watched),
            [("kept", 1), ("more", 5), ("new", 9), ("z-other", 1)]
        );
    }

    /// As after a restored backup of etcd, whose versions begin anew from an older one.
    #[test]
    fn a_list_replaces_what_is_held_by_what_is_older_unless_it_was_written_meanwhile() {
        let mut watched = Watched::default();
        for key in ["restored", "same", "written"] {
            watched.applied(key, entry(key, 10));
        }
        watched.begin("w");
        watched.wrote("w", "written", entry("written", 20));
        for (key, version) in [("restored", 4), ("same", 10), ("written", 5)] {
            watched.listed("w", key, entry(key, version));
        }
        assert_eq!(watched.done("w", |_key| true), ["restored"]);
        let expected = [("restored", 4), ("same", 10), ("written", 20)];
        assert_eq!(held(&watched), expected);
        assert!(watched.applied("restored", entry("restored", 5)));
    }
}
