//! Resources as the store holds them, and the changes that are asked of it.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ChangedResource, Revision, StoreError};
use crate::model::ResourceKey;

/// Largest document, bytes of JSON text. Below etcd's limit for a request (1.5 MiB).
pub const DOCUMENT_MAX: usize = 1024 * 1024;
/// Changes in one commit, at most. `weft apply` reads 4 MiB at most, which are fewer documents.
pub const CHANGES_MAX: usize = 100_000;

/// A resource with what the store knows about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredResource {
    /// Its name.
    pub key: ResourceKey,
    /// The revision of its last change.
    pub revision: Revision,
    /// When it was created, milliseconds since the Unix epoch.
    pub created: i64,
    /// When it was changed last, milliseconds since the Unix epoch.
    pub changed: i64,
    /// Who changed it last.
    pub author: String,
    /// SHA-256 of the document, hexadecimal.
    pub digest: String,
    /// Counts its own changes, from 1.
    pub generation: u64,
    /// The document.
    pub document: Value,
}

impl StoredResource {
    /// The error when its document cannot be used.
    pub fn unreadable(&self, cause: &dyn ToString) -> StoreError {
        // As engines write it, so that the digest is that of the row.
        let content = serde_json::to_vec(self).unwrap_or_default();
        StoreError::unreadable("resources", &self.key.to_string(), &content, cause)
    }
}

/// All resources as of one revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// The newest revision that is in it. [`events`](super::Store::events) from here on are
    /// exactly what is not in it.
    pub revision: Revision,
    /// The resources, ordered by key.
    pub resources: Vec<StoredResource>,
}

/// A change that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The resource.
    pub key: ResourceKey,
    /// Its document from now on; `None` deletes it.
    pub document: Option<Value>,
    /// The condition under which the change is made.
    pub expect: Expect,
}

impl Change {
    /// Creates or replaces a resource.
    pub fn put(key: ResourceKey, document: Value) -> Self {
        Self {
            key,
            document: Some(document),
            expect: Expect::Any,
        }
    }

    /// Deletes a resource; where there is none, nothing changes.
    pub fn delete(key: ResourceKey) -> Self {
        Self {
            key,
            document: None,
            expect: Expect::Any,
        }
    }

    /// Makes the change conditional.
    #[must_use]
    pub fn expecting(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }
}

/// The condition of a change: compare-and-swap on the revision of the resource's last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expect {
    /// No condition: the last writer wins.
    #[default]
    Any,
    /// The resource does not exist.
    Absent,
    /// The resource exists and was changed last at this revision.
    Revision(Revision),
}

impl Expect {
    /// The condition that nothing has happened to a resource since it was read.
    pub fn unchanged(read: Option<&StoredResource>) -> Self {
        read.map_or(Self::Absent, |read| Self::Revision(read.revision))
    }

    /// Whether the condition holds for what exists.
    pub fn holds(self, found: Option<Revision>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Revision(expected) => found == Some(expected),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::Absent => f.write_str("no such resource"),
            Self::Revision(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// A change whose condition does not hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// The resource.
    pub key: ResourceKey,
    /// The condition.
    pub expected: Expect,
    /// What exists instead; `None` when nothing does.
    pub found: Option<StoredResource>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, expected, .. } = self;
        match &self.found {
            None => write!(f, "{key}: expected {expected}, found no such resource"),
            Some(found) => write!(
                f,
                "{key}: expected {expected}, found revision {} by {}",
                found.revision, found.author
            ),
        }
    }
}

/// SHA-256 of a document in its canonical form, hexadecimal.
pub fn digest(document: &Value) -> String {
    // serde_json keeps objects sorted by key: equal documents have equal text.
    crate::sha256_hex(document.to_string().as_bytes())
}

/// Refuses what no engine accepts: too many changes, too large a document, a resource named twice.
pub(super) fn check_changes(changes: &[Change]) -> Result<(), StoreError> {
    if changes.len() > CHANGES_MAX {
        return Err(StoreError::TooMany {
            found: changes.len(),
            max: CHANGES_MAX,
        });
    }
    let mut keys = HashSet::with_capacity(changes.len());
    for Change { key, document, .. } in changes {
        if !keys.insert(key) {
            return Err(StoreError::Twice(key.clone()));
        }
        let size = document.as_ref().map_or(0, |doc| doc.to_string().len());
        if size > DOCUMENT_MAX {
            return Err(StoreError::TooLarge {
                key: key.clone(),
                size,
                max: DOCUMENT_MAX,
            });
        }
    }
    Ok(())
}

/// Decides a commit: `found` is what exists of each changed resource. Either every condition holds,
/// or the commit is refused; what changes nothing is left out.
pub(super) fn decide(
    revision: Revision,
    time: i64,
    author: &str,
    changes: Vec<Change>,
    found: Vec<Option<StoredResource>>,
) -> Result<Vec<ChangedResource>, StoreError> {
    let paired: Vec<_> = changes.into_iter().zip(found).collect();
    let broken = paired.iter().filter(|(change, found)| {
        let found = found.as_ref().map(|found| found.revision);
        !change.expect.holds(found)
    });
    let conflicts: Vec<Conflict> = broken
        .map(|(change, found)| Conflict {
            key: change.key.clone(),
            expected: change.expect,
            found: found.clone(),
        })
        .collect();
    if !conflicts.is_empty() {
        return Err(StoreError::Conflict(conflicts));
    }
    let changed = paired.into_iter().filter_map(|(change, found)| {
        let new_digest = change.document.as_ref().map(digest);
        if new_digest.as_ref() == found.as_ref().map(|found| &found.digest) {
            return None;
        }
        let resource = change.document.zip(new_digest);
        let resource = resource.map(|(document, digest)| StoredResource {
            key: change.key.clone(),
            revision,
            created: found.as_ref().map_or(time, |found| found.created),
            changed: time,
            author: author.to_owned(),
            digest,
            generation: found.map_or(1, |found| found.generation + 1),
            document,
        });
        Some(ChangedResource {
            key: change.key,
            resource,
        })
    });
    Ok(changed.collect())
}
