//! The history of resources: every change, as long as it is kept.
//!
//! What is kept is bounded in revisions and in bytes. From the oldest kept revision on, the state
//! at every revision can be told exactly: of each resource that lived at the oldest revision, the
//! entry in force then is kept too, however old it is. A resource without an entry at or before a
//! kept revision did not exist at that revision.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Change, ChangedResource, Expect, Listing, Revision};
use crate::model::ResourceKey;

/// Revisions that are kept.
pub const HISTORY_REVISIONS_MAX: u64 = 10_000;
/// Entries that are kept, bytes of JSON text. The entries in force at the oldest revision, which
/// are as large as the resources are, do not count.
pub const HISTORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Entries in one page, bytes of JSON text, about. A page has one entry at least.
pub const HISTORY_PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How much history is kept.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    /// Revisions.
    pub revisions: u64,
    /// Bytes of entries.
    pub bytes: u64,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            revisions: HISTORY_REVISIONS_MAX,
            bytes: HISTORY_BYTES_MAX,
        }
    }
}

impl HistoryLimits {
    /// Whether a history from `oldest` (exclusive) to `newest` with so many bytes is too long.
    pub(super) fn exceeded(self, oldest: Revision, newest: Revision, bytes: u64) -> bool {
        oldest < newest && (newest - oldest > self.revisions || bytes > self.bytes)
    }
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// Its revision.
    pub revision: Revision,
    /// When, milliseconds since the Unix epoch.
    pub time: i64,
    /// By whom.
    pub author: String,
    /// What was changed.
    pub key: ResourceKey,
    /// SHA-256 of the document; empty when it was deleted.
    pub digest: String,
    /// The document since then; `None` when it was deleted.
    pub document: Option<Value>,
}

/// The place of an entry: its revision, and its number among the changes of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HistoryPosition(pub Revision, pub u32);

impl fmt::Display for HistoryPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for HistoryPosition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('.');
        let parsed = parsed.and_then(|(a, b)| Some(Self(a.parse().ok()?, b.parse().ok()?)));
        parsed.ok_or_else(|| format!("found {text:?}; allowed: REVISION.NUMBER, as in 17.0"))
    }
}

/// Which entries are asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryQuery {
    /// Only of this resource.
    pub key: Option<ResourceKey>,
    /// Only entries before this one: [`HistoryPage::next`] of the page before.
    pub before: Option<HistoryPosition>,
    /// At most so many.
    pub limit: usize,
}

/// Entries, the newest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HistoryPage {
    /// The entries.
    pub items: Vec<HistoryEntry>,
    /// Where the next page begins; `None` when there is no more.
    pub next: Option<HistoryPosition>,
}

/// The changes that bring resources back to what they were, `then` being the documents in force
/// at that time; of all resources, or of some. Each change expects the resource as it is listed
/// now, and what is the same already is left out.
///
/// A resource that lives and is not in `then` did not exist then, and is deleted.
pub fn changes_back(
    then: BTreeMap<ResourceKey, HistoryEntry>,
    now: &Listing,
    only: Option<&BTreeSet<ResourceKey>>,
) -> Vec<Change> {
    let mut then = then;
    let wanted = |key: &ResourceKey| only.is_none_or(|only| only.contains(key));
    let mut changes = Vec::new();
    for resource in now.resources.iter().filter(|r| wanted(&r.key)) {
        let change = match then.remove(&resource.key) {
            Some(entry) if entry.digest == resource.digest => continue,
            Some(HistoryEntry {
                document: Some(document),
                ..
            }) => Change::put(resource.key.clone(), document),
            Some(_) | None => Change::delete(resource.key.clone()),
        };
        changes.push(change.expecting(Expect::Revision(resource.revision)));
    }
    for (key, entry) in then.into_iter().filter(|(key, _)| wanted(key)) {
        if let Some(document) = entry.document {
            changes.push(Change::put(key, document).expecting(Expect::Absent));
        }
    }
    changes
}

/// The entry for a change.
pub(super) fn history_entry(
    revision: Revision,
    time: i64,
    author: &str,
    changed: &ChangedResource,
) -> HistoryEntry {
    let resource = changed.resource.as_ref();
    HistoryEntry {
        revision,
        time,
        author: author.to_owned(),
        key: changed.key.clone(),
        digest: resource.map(|r| r.digest.clone()).unwrap_or_default(),
        document: resource.map(|r| r.document.clone()),
    }
}

/// Collects a page.
#[derive(Debug)]
pub(super) struct PageBuilder {
    page: HistoryPage,
    limit: usize,
    bytes: usize,
    last: Option<HistoryPosition>,
}

impl PageBuilder {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            page: HistoryPage::default(),
            limit,
            bytes: 0,
            last: None,
        }
    }

    /// Whether there is room for one more entry of this size. Where there is none, the page says
    /// where the next one begins.
    pub(super) fn has_room(&mut self, size: usize) -> bool {
        let count = self.page.items.len();
        let full = count >= self.limit
            || (count > 0 && self.bytes.saturating_add(size) > HISTORY_PAGE_BYTES_MAX);
        if full {
            self.page.next = self.last;
        }
        !full
    }

    /// Adds an entry.
    pub(super) fn push(&mut self, position: HistoryPosition, size: usize, entry: HistoryEntry) {
        self.bytes += size;
        self.last = Some(position);
        self.page.items.push(entry);
    }

    pub(super) fn finish(self) -> HistoryPage {
        self.page
    }
}
