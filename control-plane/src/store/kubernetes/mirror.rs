//! The mirror of the cluster's documents and records, from which reads are answered. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use weft_proto::refusals::{self, Refusals};

use super::object::Object;
use super::quota::Quotas;
use crate::kubernetes::watched::{Entry, Watched};
use crate::model::ResourceKey;
use crate::store::position::Positions;
use crate::store::{ChangedResource, Event, Position, Revision, StoredResource, digest};

/// Says what is wrong with a document, if anything is.
pub(super) type Accept = fn(&Value) -> Result<(), String>;

/// The reason in the status of what the model refuses.
pub const INVALID: &str = "Invalid";

/// A document of the cluster that is not in force as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedDocument {
    /// `metadata.generation` of what is refused.
    pub generation: u64,
    /// Why, in a word: the reason of its condition.
    pub word: &'static str,
    /// Why.
    pub reason: String,
    /// Whether an older version of it, seen before by this process, is in force.
    pub older_in_force: bool,
}

/// What of the cluster is known.
#[derive(Debug)]
pub(super) struct Mirror {
    accept: Accept,
    /// Objects as they are in the cluster.
    pub(super) objects: Watched<ResourceKey, Object>,
    /// Documents in force: each the last good version of its object.
    documents: BTreeMap<ResourceKey, StoredResource>,
    refused: BTreeMap<ResourceKey, RefusedDocument>,
    /// What others are told of these; `None` where it is to be made anew.
    refusals: Option<Arc<Refusals>>,
    quotas: Quotas,
    /// Records by table and key.
    pub(super) records: Watched<(String, String), Vec<u8>>,
    revision: Revision,
    /// What a commit is writing. What the watch tells of it counts when the commit is whole.
    in_flight: BTreeSet<ResourceKey>,
    deferred: BTreeSet<ResourceKey>,
    positions: Positions,
}

impl Mirror {
    pub(super) fn new(revision: Revision, accept: Accept) -> Self {
        Self {
            accept,
            objects: Watched::default(),
            documents: BTreeMap::new(),
            refused: BTreeMap::new(),
            refusals: None,
            quotas: Quotas::default(),
            records: Watched::default(),
            revision,
            in_flight: BTreeSet::new(),
            deferred: BTreeSet::new(),
            positions: Positions::default(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn documents(&self) -> &BTreeMap<ResourceKey, StoredResource> {
        &self.documents
    }

    pub(super) fn refused(&self) -> &BTreeMap<ResourceKey, RefusedDocument> {
        &self.refused
    }

    /// What is refused, as others are told.
    pub(super) fn refusals(&mut self) -> Arc<Refusals> {
        let refused = &self.refused;
        let refusals = self.refusals.get_or_insert_with(|| refusals_of(refused));
        Arc::clone(refusals)
    }

    /// The newest revisions, with what was seen at them.
    pub(super) fn positions(&self) -> Vec<Arc<Position>> {
        self.positions.newest()
    }

    /// The watch of a kind has told everything up to a version.
    pub(super) fn told(&mut self, kind: &str, version: &str) {
        self.positions.tell(kind, version);
    }

    /// A list of a kind is of this version, whatever was told before.
    pub(super) fn listed_at(&mut self, kind: &str, version: &str) {
        self.positions.restart(kind, version);
    }

    /// There is nothing of a kind any more, and nobody tells of it.
    pub(super) fn lacks(&mut self, kind: &str) -> Option<Event> {
        self.objects.begin(kind);
        let gone = self.objects.done(kind, |key| key.kind == kind);
        self.positions.forget(kind);
        self.refresh(gone)
    }

    /// Deletions of a kind that were made here, and that the watch has told of by now.
    pub(super) fn settle(&mut self, kind: &str) {
        let objects = &self.objects;
        self.positions
            .settle(kind, |uid| objects.is_outstanding(uid));
    }

    /// Every object, with the revision that its document has changed in last.
    pub(super) fn standing(
        &self,
    ) -> impl Iterator<
        Item = (
            &ResourceKey,
            &Entry<Object>,
            Option<&RefusedDocument>,
            Revision,
        ),
    > {
        self.objects.iter().map(|(key, entry)| {
            let in_force = self.documents.get(key);
            let revision = in_force.map_or(self.revision, |document| document.revision);
            (key, entry, self.refused.get(key), revision)
        })
    }

    /// A commit begins to write these.
    pub(super) fn hold(&mut self, keys: impl IntoIterator<Item = ResourceKey>) {
        self.in_flight.extend(keys);
        self.objects.set_writing(true);
    }

    /// The commit is over; what it wrote is in `objects`.
    pub(super) fn release(&mut self) -> Option<Event> {
        let mut keys = std::mem::take(&mut self.in_flight);
        keys.append(&mut self.deferred);
        let event = self.refresh(keys);
        self.objects.set_writing(false);
        event
    }

    /// Brings documents up to date with their objects; what that changes is one revision.
    pub(super) fn refresh(&mut self, keys: impl IntoIterator<Item = ResourceKey>) -> Option<Event> {
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        let mut keys: BTreeSet<ResourceKey> = keys.into_iter().collect();
        for key in keys.clone() {
            let others = match self.objects.get(&key) {
                Some(Entry { value, .. }) => self.quotas.put(&key, value.created, value.bytes),
                None => self.quotas.remove(&key),
            };
            keys.extend(others);
        }
        for key in keys {
            if self.in_flight.contains(&key) {
                self.deferred.insert(key);
            } else {
                // Also of those that the quota lets in, or has no room for any more.
                self.position(&key);
                changes.extend(self.change(key, revision));
            }
        }
        let event = (!changes.is_empty()).then(|| {
            self.revision = revision;
            Event { revision, changes }
        });
        // What is told of a commit that is half written is not in the documents yet.
        self.positions
            .note(self.revision, self.in_flight.is_empty());
        event
    }

    /// Notes by which version somebody else finds what an object has become.
    fn position(&mut self, key: &ResourceKey) {
        match (self.objects.get(key), self.objects.deleted_here(key)) {
            (Some(entry), _) => self.positions.change(&key.kind, Some(&entry.version)),
            (None, Some(uid)) => self.positions.change_unseen(&key.kind, uid),
            (None, None) => self.positions.change(&key.kind, None),
        }
    }

    fn change(&mut self, key: ResourceKey, revision: Revision) -> Option<ChangedResource> {
        let Some(Entry { value, .. }) = self.objects.get(&key) else {
            if self.refused.remove(&key).is_some() {
                self.refusals = None;
            }
            self.documents.remove(&key)?;
            return Some(ChangedResource {
                key,
                resource: None,
            });
        };
        let over = self.quotas.refusal(&key);
        let is_over = over.is_some();
        let refused = match over {
            Some(why) => Some(("QuotaExceeded", why)),
            None => (self.accept)(&value.document)
                .err()
                .map(|why| (INVALID, why)),
        };
        if let Some((word, reason)) = refused {
            tracing::warn!(%key, reason, "a document of the cluster is not in force");
            // What a namespace has no room for is not there in an older version either.
            let was = is_over.then(|| self.documents.remove(&key)).flatten();
            let refused = RefusedDocument {
                generation: value.generation,
                word,
                reason,
                older_in_force: self.documents.contains_key(&key),
            };
            self.refusals = None;
            self.refused.insert(key.clone(), refused);
            return was.map(|_| ChangedResource {
                key,
                resource: None,
            });
        }
        if self.refused.remove(&key).is_some() {
            self.refusals = None;
        }
        let digest = digest(&value.document);
        let before = self.documents.get(&key);
        if before.is_some_and(|before| before.digest == digest) {
            return None;
        }
        let resource = StoredResource {
            key: key.clone(),
            revision,
            created: value.created,
            changed: value.changed,
            author: value.author.clone(),
            digest,
            generation: value.generation,
            document: value.document.clone(),
        };
        self.documents.insert(key.clone(), resource.clone());
        Some(ChangedResource {
            key,
            resource: Some(resource),
        })
    }
}

/// What others are told of refused documents, as far as there is room.
fn refusals_of(refused: &BTreeMap<ResourceKey, RefusedDocument>) -> Arc<Refusals> {
    let mut refusals = Refusals::default();
    for (key, document) in refused {
        let told = refusals::RefusedDocument {
            kind: key.kind.as_str().into(),
            name: key.name.as_str().into(),
            generation: document.generation,
            word: document.word.into(),
            reason: document.reason.as_str().into(),
        };
        refusals.add(&key.namespace, told);
    }
    Arc::new(refusals)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::SeenVersions;

    fn key(name: &str) -> ResourceKey {
        ResourceKey {
            kind: "FaultInjection".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    fn entry(version: u32, n: u32) -> Entry<Object> {
        Entry {
            uid: "u".to_owned(),
            version: version.to_string(),
            value: Object {
                document: json!({ "n": n }),
                bytes: 10,
                has_hidden: false,
                generation: 1,
                created: 1,
                changed: 1,
                author: "me".to_owned(),
                kept: Default::default(),
                status: Value::Null,
            },
        }
    }

    fn mirror() -> Mirror {
        Mirror::new(0, |document| match document["n"].as_u64() {
            Some(0) => Err("n is 0".to_owned()),
            _ => Ok(()),
        })
    }

    #[test]
    fn a_bad_version_does_not_replace_a_good_one() {
        let mut mirror = mirror();
        mirror.objects.applied(key("a"), entry(1, 0));
        assert_eq!(mirror.refresh([key("a")]), None);
        assert!(mirror.documents().is_empty());
        assert!(!mirror.refused()[&key("a")].older_in_force);
        mirror.objects.applied(key("a"), entry(2, 5));
        assert_eq!(mirror.refresh([key("a")]).unwrap().revision, 1);
        mirror.objects.applied(key("a"), entry(3, 0));
        assert_eq!(mirror.refresh([key("a")]), None);
        assert_eq!(mirror.documents()[&key("a")].document["n"], 5);
        assert!(mirror.refused()[&key("a")].older_in_force);
        let told = mirror.refusals();
        let named = &told.namespaces["shop"].documents[0];
        assert_eq!((&*named.name, &*named.reason), ("a", "n is 0"));
        assert!(mirror.objects.gone(&key("a"), "u"));
        let event = mirror.refresh([key("a")]).unwrap();
        assert_eq!(event.changes[0].resource, None);
        assert!(mirror.refused().is_empty());
        assert_eq!(*mirror.refusals(), Refusals::default());
    }

    #[test]
    fn a_kind_that_is_not_served_any_more_has_no_documents_and_no_versions() {
        let mut mirror = mirror();
        mirror.listed_at("FaultInjection", "7");
        mirror.objects.applied(key("a"), entry(1, 1));
        mirror.objects.applied(key("b"), entry(2, 0));
        assert!(mirror.refresh([key("a"), key("b")]).is_some());
        let event = mirror.lacks("FaultInjection").unwrap();
        assert_eq!((event.changes.len(), &event.changes[0].key), (1, &key("a")));
        assert_eq!(event.changes[0].resource, None);
        assert!(mirror.documents().is_empty() && mirror.refused().is_empty());
        let positions = mirror.positions();
        let seen = SeenVersions::default();
        assert!(
            positions.iter().all(|one| one.is_within(&seen)),
            "{positions:?}"
        );
        assert_eq!(mirror.lacks("FaultInjection"), None);
    }

    #[test]
    fn what_changes_beside_the_document_is_no_change() {
        let mut mirror = mirror();
        mirror.objects.applied(key("a"), entry(1, 1));
        assert!(mirror.refresh([key("a")]).is_some());
        // A new status, for instance.
        mirror.objects.applied(key("a"), entry(2, 1));
        assert_eq!(mirror.refresh([key("a")]), None);
        assert_eq!(mirror.revision(), 1);
    }

    #[test]
    fn what_is_over_the_quota_is_not_in_force_until_there_is_room() {
        let mut mirror = mirror();
        let large = |version| {
            let mut entry = entry(version, 1);
            entry.value.bytes = super::super::quota::BYTES_MAX;
            entry
        };
        mirror.objects.applied(key("a"), entry(1, 1));
        mirror.objects.applied(key("b"), entry(2, 1));
        assert!(mirror.refresh([key("a"), key("b")]).is_some());
        mirror.objects.applied(key("a"), large(3));
        let event = mirror.refresh([key("a")]).unwrap();
        assert_eq!((event.changes.len(), &event.changes[0].key), (1, &key("b")));
        assert_eq!(event.changes[0].resource, None);
        assert_eq!(mirror.refused()[&key("b")].word, "QuotaExceeded");
        assert!(mirror.objects.gone(&key("a"), "u"));
        let event = mirror.refresh([key("a")]).unwrap();
        assert_eq!(event.changes.len(), 2, "one goes, the other comes");
        let position = mirror.positions().pop().unwrap();
        let seen = |version| SeenVersions::from([("FaultInjection".into(), version)]);
        assert!(!position.is_within(&seen(1)) && position.is_within(&seen(2)));
        assert!(mirror.documents().contains_key(&key("b")) && mirror.refused().is_empty());
    }

    #[test]
    fn a_commit_is_one_event_whatever_the_watch_tells_first() {
        let mut mirror = mirror();
        mirror.hold([key("a"), key("b")]);
        mirror.objects.applied(key("a"), entry(1, 1));
        assert_eq!(mirror.refresh([key("a")]), None);
        assert!(mirror.documents().is_empty());
        mirror.told("FaultInjection", "1");
        assert_eq!(mirror.refresh([]), None);
        mirror.objects.wrote("w", key("b"), entry(2, 1));
        let before = mirror.positions();
        assert_eq!(before.len(), 1);
        assert!(before[0].seen.is_empty(), "half of it is not there");
        let event = mirror.release().unwrap();
        assert_eq!((event.revision, event.changes.len()), (1, 2));
        let positions = mirror.positions();
        assert_eq!((positions.len(), positions[1].revision), (2, 1));
        let seen = |version| SeenVersions::from([("FaultInjection".into(), version)]);
        assert_eq!(positions[1].seen, seen(1));
        assert!(!positions[1].is_within(&seen(1)) && positions[1].is_within(&seen(2)));
        assert!(positions[1].is_beyond(&seen(0)));
    }

    /// A document that is deleted here, and then one by somebody else.
    #[test]
    fn a_deletion_is_seen_when_the_watch_has_told_of_it() {
        let mut mirror = mirror();
        let seen = |version| SeenVersions::from([("FaultInjection".into(), version)]);
        for (version, here) in [(10, true), (20, false)] {
            let (told, gone) = (version.to_string(), (version + 1).to_string());
            mirror.told("FaultInjection", &told);
            mirror.objects.applied(key("a"), entry(version, 1));
            mirror.refresh([key("a")]);
            if here {
                mirror.hold([key("a")]);
                mirror.objects.removed("w", &key("a"), "u");
                assert!(mirror.release().is_some());
                let deletion = mirror.positions().pop().unwrap();
                assert!(
                    !deletion.is_within(&seen(1000)),
                    "nobody has said its version"
                );
            }
            mirror.told("FaultInjection", &gone);
            mirror.objects.gone(&key("a"), "u");
            assert_eq!(mirror.refresh([key("a")]).is_some(), !here);
            mirror.settle("FaultInjection");
            let deletion = mirror.positions().pop().unwrap();
            let version = u64::from(version);
            assert!(!deletion.is_within(&seen(version)) && deletion.is_within(&seen(version + 1)));
            assert!(deletion.is_beyond(&seen(version)));
        }
    }
}
