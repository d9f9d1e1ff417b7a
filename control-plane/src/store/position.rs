//! States of all documents, by which processes that share a store find out what of it another one has
//! seen. Revisions do not say that: in a cluster each process counts its own.

use std::collections::{BTreeMap, VecDeque};

use aws_lc_rs::digest::{SHA256, digest};

use super::Revision;
use crate::model::ResourceKey;

/// States that are remembered.
pub const POSITIONS_MAX: usize = 256;

/// The state of all documents at a revision of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The revision.
    pub revision: Revision,
    /// The same wherever the same versions of the same documents were seen: the sum of a hash of each.
    pub state: u128,
}

/// The newest states of the documents.
#[derive(Debug, Default)]
pub(super) struct Positions {
    hashes: BTreeMap<ResourceKey, u128>,
    state: u128,
    newest: VecDeque<Position>,
}

impl Positions {
    /// A document is another version now, which these parts tell from every other one; or is gone.
    pub(super) fn set(&mut self, key: &ResourceKey, version: Option<[&str; 3]>) {
        let before = match version {
            Some(version) => {
                let hash = hash(key, version);
                self.state = self.state.wrapping_add(hash);
                self.hashes.insert(key.clone(), hash)
            }
            None => self.hashes.remove(key),
        };
        self.state = self.state.wrapping_sub(before.unwrap_or_default());
    }

    /// What was set is whole, at this revision.
    pub(super) fn note(&mut self, revision: Revision) {
        let position = Position {
            revision,
            state: self.state,
        };
        if self.newest.back() == Some(&position) {
            return;
        }
        if self.newest.len() == POSITIONS_MAX {
            self.newest.pop_front();
        }
        self.newest.push_back(position);
    }

    pub(super) fn newest(&self) -> Vec<Position> {
        self.newest.iter().copied().collect()
    }
}

fn hash(key: &ResourceKey, version: [&str; 3]) -> u128 {
    let ResourceKey {
        kind,
        namespace,
        name,
    } = key;
    let [uid, generation, content] = version;
    // None of them contains the separator.
    let text = [kind, namespace, name, uid, generation, content].join("\n");
    let mut first = [0; 16];
    first.copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..16]);
    u128::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ResourceKey {
        ResourceKey {
            kind: "FaultInjection".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn the_same_documents_are_the_same_state_whatever_their_order() {
        let [mut one, mut two] = [Positions::default(), Positions::default()];
        one.set(&key("a"), Some(["u", "1", "x"]));
        one.set(&key("b"), Some(["v", "1", "x"]));
        one.set(&key("b"), Some(["v", "2", "x"]));
        two.set(&key("b"), Some(["v", "2", "x"]));
        two.set(&key("c"), Some(["w", "1", "x"]));
        two.set(&key("a"), Some(["u", "1", "x"]));
        assert_ne!(one.state, two.state);
        two.set(&key("c"), None);
        assert_eq!(one.state, two.state);
        // Changed and changed back is another version.
        one.set(&key("a"), Some(["u", "3", "x"]));
        assert_ne!(one.state, two.state);
        for (position, revision) in [(&mut one, 7), (&mut two, 9)] {
            position.set(&key("a"), None);
            position.set(&key("b"), None);
            position.note(revision);
            position.note(revision);
            assert_eq!(position.newest(), [Position { revision, state: 0 }]);
        }
        for revision in 0..2 * POSITIONS_MAX as u64 {
            one.note(revision);
        }
        assert_eq!(one.newest().len(), POSITIONS_MAX);
    }
}
