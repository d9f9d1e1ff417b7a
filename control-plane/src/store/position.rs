//! How much of the documents' history was seen, by which processes that share a store find out what of it
//! another one has. Revisions do not say that: in a cluster each process counts its own.
//!
//! Versions of objects of one kind (`resourceVersion`) are numbers that ascend with every change,
//! deletions included, and a watch tells changes in that order (KEP-5504). So of each kind one number
//! says what was seen, and it never comes again, whatever documents are changed back to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::Revision;

/// Positions that are remembered.
pub const POSITIONS_MAX: usize = 256;

/// Of each kind the greatest version up to which everything was seen.
pub type SeenVersions = BTreeMap<Arc<str>, u64>;

/// A revision of this process: what it changed, and what was seen of the documents at it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// The revision.
    pub revision: Revision,
    /// What was seen up to the next revision, or until now.
    pub seen: SeenVersions,
    /// What changed with it; of the oldest that is remembered, up to it.
    pub changed: ChangedVersions,
}

/// What changed, by the versions of each kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangedVersions {
    kinds: BTreeMap<Arc<str>, VersionRange>,
    /// Uids of documents that were deleted here and whose last version the watch has not told of yet.
    unseen: BTreeSet<(Arc<str>, String)>,
}

/// The versions after `after`, up to `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct VersionRange {
    after: u64,
    until: u64,
}

impl Position {
    /// Whether whoever has seen this much has seen everything that changed.
    pub fn is_within(&self, seen: &SeenVersions) -> bool {
        let mut kinds = self.changed.kinds.iter();
        self.changed.unseen.is_empty() && kinds.all(|(kind, range)| of(seen, kind) >= range.until)
    }

    /// Whether whoever has seen no more than this has seen nothing of it.
    pub fn is_beyond(&self, seen: &SeenVersions) -> bool {
        let mut kinds = self.changed.kinds.iter();
        self.changed.unseen.is_empty() && kinds.all(|(kind, range)| of(seen, kind) <= range.after)
    }
}

fn of(seen: &SeenVersions, kind: &str) -> u64 {
    seen.get(kind).copied().unwrap_or_default()
}

impl ChangedVersions {
    fn add(&mut self, kind: &Arc<str>, range: VersionRange) {
        let held = self.kinds.entry(Arc::clone(kind)).or_insert(range);
        held.after = held.after.min(range.after);
        held.until = held.until.max(range.until);
    }

    fn forget(&mut self, kind: &str) {
        self.kinds.remove(kind);
        self.unseen.retain(|(of, _uid)| **of != *kind);
    }

    /// Takes what an older revision changed, which is not remembered by itself any more.
    fn absorb(&mut self, older: &Self) {
        for (kind, range) in &older.kinds {
            self.add(kind, VersionRange { after: 0, ..*range });
        }
        self.unseen.extend(older.unseen.iter().cloned());
    }
}

/// The newest positions.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// What the watches have told.
    told: SeenVersions,
    /// The same without what the documents do not have yet, because a commit is being written.
    seen: SeenVersions,
    /// What changes with the next revision.
    changing: ChangedVersions,
    newest: VecDeque<Arc<Position>>,
}

impl Positions {
    /// The watch of a kind has told everything up to a version. One that is no number says nothing.
    pub(super) fn tell(&mut self, kind: &str, version: &str) {
        let Ok(version) = version.parse::<u64>() else {
            return;
        };
        match self.told.get_mut(kind) {
            Some(told) => *told = version.max(*told),
            None => {
                self.told.insert(kind.into(), version);
            }
        }
    }

    /// A list of a kind is of this version. Where it is an older one than was told, as after a restored
    /// backup of etcd, the versions are those of another history.
    pub(super) fn restart(&mut self, kind: &str, version: &str) {
        self.told.remove(kind);
        self.tell(kind, version);
    }

    /// Nobody tells of a kind any more: who has never heard of it has seen as much.
    pub(super) fn forget(&mut self, kind: &str) {
        self.told.remove(kind);
        self.seen.remove(kind);
        self.changing.forget(kind);
        for position in &mut self.newest {
            let position = Arc::make_mut(position);
            position.seen.remove(kind);
            position.changed.forget(kind);
        }
    }

    /// A document has changed: it is an object of this version now, or is gone, which the watch has told.
    /// A version that is no number is never seen by anybody.
    pub(super) fn change(&mut self, kind: &str, version: Option<&str>) {
        let told = of(&self.told, kind);
        let until = version.map_or(told, |version| version.parse().unwrap_or(u64::MAX));
        let after = of(&self.seen, kind).min(until.saturating_sub(1));
        let range = VersionRange { after, until };
        self.changing.add(&kind.into(), range);
    }

    /// A document was deleted here, and the watch has not told of it yet.
    pub(super) fn change_unseen(&mut self, kind: &str, uid: &str) {
        let kind: Arc<str> = kind.into();
        let range = VersionRange {
            after: of(&self.seen, &kind),
            until: 0,
        };
        self.changing.add(&kind, range);
        self.changing.unseen.insert((kind, uid.to_owned()));
    }

    /// The watch of a kind has told something: deletions that are not outstanding any more are in it.
    pub(super) fn settle(&mut self, kind: &str, is_outstanding: impl Fn(&str) -> bool) {
        let told = of(&self.told, kind);
        for position in &mut self.newest {
            let settled = |(of, uid): &(Arc<str>, String)| **of == *kind && !is_outstanding(uid);
            if !position.changed.unseen.iter().any(settled) {
                continue;
            }
            let changed = &mut Arc::make_mut(position).changed;
            changed.unseen.retain(|one| !settled(one));
            if let Some(range) = changed.kinds.get_mut(kind) {
                range.until = range.until.max(told);
            }
        }
    }

    /// What was told is in the documents of this revision, unless a commit is being written.
    pub(super) fn note(&mut self, revision: Revision, is_whole: bool) {
        let changed = std::mem::take(&mut self.changing);
        if is_whole && self.seen != self.told {
            self.seen.clone_from(&self.told);
        }
        if let Some(newest) = self.newest.back_mut()
            && newest.revision == revision
        {
            if newest.seen != self.seen {
                Arc::make_mut(newest).seen.clone_from(&self.seen);
            }
            return;
        }
        if self.newest.len() == POSITIONS_MAX
            && let Some(oldest) = self.newest.pop_front()
            && let Some(next) = self.newest.front_mut()
        {
            Arc::make_mut(next).changed.absorb(&oldest.changed);
        }
        self.newest.push_back(Arc::new(Position {
            revision,
            seen: self.seen.clone(),
            changed,
        }));
    }

    pub(super) fn newest(&self) -> Vec<Arc<Position>> {
        self.newest.iter().cloned().collect()
    }
}

/// Positions made by hand.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn seen(versions: &[(&str, u64)]) -> SeenVersions {
        let versions = versions.iter();
        let versions = versions.map(|(kind, version)| ((*kind).into(), *version));
        versions.collect()
    }

    /// A revision with changes of these versions, each the next one of its kind.
    pub(crate) fn changed(revision: Revision, versions: &[(&str, u64)]) -> Position {
        let mut changed = ChangedVersions::default();
        for (kind, version) in versions {
            let range = VersionRange {
                after: version - 1,
                until: *version,
            };
            changed.add(&(*kind).into(), range);
        }
        Position {
            revision,
            seen: seen(versions),
            changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::seen;
    use super::*;

    #[test]
    fn a_change_is_within_what_has_seen_its_version_and_no_less() {
        let mut positions = Positions::default();
        positions.tell("A", "10");
        positions.tell("B", "11");
        positions.note(1, true);
        positions.tell("A", "20");
        positions.change("A", Some("20"));
        positions.note(2, true);
        // A status of the other kind, at the same revision.
        positions.tell("B", "30");
        positions.note(2, true);
        let newest = positions.newest();
        assert_eq!(newest.len(), 2);
        let change = &newest[1];
        assert_eq!(change.seen, seen(&[("A", 20), ("B", 30)]));
        for (of_a, within, beyond) in [
            (0, false, true),
            (10, false, true),
            (15, false, false),
            (20, true, false),
        ] {
            let seen = seen(&[("A", of_a)]);
            assert_eq!(
                (change.is_within(&seen), change.is_beyond(&seen)),
                (within, beyond),
                "{of_a}"
            );
        }
    }

    /// The same documents as before are not the same position.
    #[test]
    fn a_deletion_is_within_what_has_seen_it() {
        let mut positions = Positions::default();
        positions.tell("A", "10");
        positions.change("A", Some("10"));
        positions.note(1, true);
        positions.tell("A", "12");
        positions.change("A", None);
        positions.note(2, true);
        let deletion = &positions.newest()[1];
        assert!(
            !deletion.is_within(&seen(&[("A", 11)])) && deletion.is_within(&seen(&[("A", 12)]))
        );
    }

    /// The answer to a deletion does not name its version: the watch does.
    #[test]
    fn a_deletion_of_this_process_is_within_nothing_until_the_watch_has_told_of_it() {
        let mut positions = Positions::default();
        positions.tell("A", "10");
        positions.note(1, true);
        positions.change_unseen("A", "u");
        positions.note(2, true);
        let all = seen(&[("A", 1000)]);
        assert!(!positions.newest()[1].is_within(&all));
        positions.tell("A", "11");
        positions.settle("A", |_uid| true);
        assert!(!positions.newest()[1].is_within(&all), "another change");
        positions.tell("A", "12");
        positions.settle("A", |_uid| false);
        let deletion = &positions.newest()[1];
        assert!(
            !deletion.is_within(&seen(&[("A", 11)])) && deletion.is_within(&seen(&[("A", 12)]))
        );
        assert!(deletion.is_beyond(&seen(&[("A", 10)])));
    }

    /// What the watch tells while a commit is written is not in the documents yet.
    #[test]
    fn what_is_told_while_a_commit_is_written_is_seen_when_it_is_whole() {
        let mut positions = Positions::default();
        positions.tell("A", "10");
        positions.note(1, true);
        positions.tell("A", "12");
        positions.note(1, false);
        assert_eq!(positions.newest()[0].seen, seen(&[("A", 10)]));
        positions.change("A", Some("14"));
        positions.note(2, true);
        let commit = &positions.newest()[1];
        assert_eq!(
            commit.seen,
            seen(&[("A", 12)]),
            "its own version comes by the watch"
        );
        assert!(commit.is_beyond(&seen(&[("A", 10)])) && !commit.is_beyond(&seen(&[("A", 11)])));
    }

    #[test]
    fn those_that_are_forgotten_are_in_the_oldest_that_is_remembered() {
        let mut positions = Positions::default();
        positions.tell("A", "7");
        positions.change("A", Some("7"));
        positions.note(1, true);
        for revision in 2..=2 * POSITIONS_MAX as u64 {
            positions.change("B", Some(&revision.to_string()));
            positions.note(revision, true);
        }
        let newest = positions.newest();
        assert_eq!(newest.len(), POSITIONS_MAX);
        assert!(newest[0].is_within(&seen(&[("A", 7), ("B", 1000)])));
        assert!(!newest[0].is_within(&seen(&[("A", 6), ("B", 1000)])));
        assert!(newest[1].is_within(&seen(&[("B", 1000)])));
    }

    #[test]
    fn a_version_that_is_no_number_is_seen_by_nobody() {
        let mut positions = Positions::default();
        positions.tell("A", "x");
        positions.change("A", Some("x"));
        positions.note(1, true);
        assert!(!positions.newest()[0].is_within(&seen(&[("A", u64::MAX - 1)])));
    }
}
