//! The history in the file: written, cut, and read a page at a time.

use std::collections::BTreeMap;

use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use super::rows::{
    self, Failure, HISTORY, HISTORY_BYTES, HISTORY_OF, META, OLDEST, REVISION, decode, encode,
};
use crate::model::ResourceKey;
use crate::store::history::PageBuilder;
use crate::store::{
    HistoryEntry, HistoryLimits, HistoryPage, HistoryPosition, HistoryQuery, Revision, StoreError,
};

/// Appends the entries of a revision, which becomes the newest, and cuts what is too old.
pub(super) fn append(
    transaction: &WriteTransaction,
    revision: Revision,
    entries: &[HistoryEntry],
    limits: HistoryLimits,
) -> Result<(), Failure> {
    let mut meta = transaction.open_table(META)?;
    let mut bytes = rows::number(&meta, HISTORY_BYTES)?;
    let mut oldest = rows::number(&meta, OLDEST)?;
    let mut history = transaction.open_table(HISTORY)?;
    let mut index = transaction.open_table(HISTORY_OF)?;
    for (number, entry) in (0..).zip(entries) {
        let row = entry.key.to_string();
        let content = encode(entry)?;
        let size = content.len() as u64;
        history.insert((revision, number), (row.as_str(), content.as_slice()))?;
        let deleted = entry.document.is_none();
        index.insert((row.as_str(), revision, number), (size, deleted))?;
        bytes += size;
    }
    while limits.exceeded(oldest, revision, bytes) {
        oldest += 1;
        bytes = bytes.saturating_sub(make_oldest(&mut history, &mut index, oldest)?);
    }
    meta.insert(REVISION, revision)?;
    meta.insert(OLDEST, oldest)?;
    meta.insert(HISTORY_BYTES, bytes)?;
    Ok(())
}

type History<'t> = redb::Table<'t, (u64, u32), (&'static str, &'static [u8])>;
type Index<'t> = redb::Table<'t, (&'static str, u64, u32), (u64, bool)>;

/// Makes a revision the oldest whose state can be told: of each resource that it changed, the
/// entry before goes, and so does the entry itself where it is a deletion. Returns the bytes of the
/// entries of this revision, which do not count any more.
fn make_oldest(
    history: &mut History<'_>,
    index: &mut Index<'_>,
    revision: Revision,
) -> Result<u64, Failure> {
    let mut changed = Vec::new();
    for row in history.range((revision, 0)..(revision + 1, 0))? {
        let (position, content) = row?;
        changed.push((position.value().1, content.value().0.to_owned()));
    }
    let mut bytes = 0;
    for (number, row) in changed {
        let row = row.as_str();
        let mut gone = Vec::new();
        for before in index.range((row, 0, 0)..(row, revision, number))? {
            let (_, revision, number) = before?.0.value();
            gone.push((revision, number));
        }
        if let Some(found) = index.get((row, revision, number))? {
            let (size, deleted) = found.value();
            bytes += size;
            if deleted {
                gone.push((revision, number));
            }
        }
        for (revision, number) in gone {
            history.remove((revision, number))?;
            index.remove((row, revision, number))?;
        }
    }
    Ok(bytes)
}

/// A page of the history.
pub(super) fn page(
    transaction: &ReadTransaction,
    query: &HistoryQuery,
) -> Result<HistoryPage, Failure> {
    let history = transaction.open_table(HISTORY)?;
    let mut page = PageBuilder::new(query.limit);
    let HistoryPosition(revision, number) =
        query.before.unwrap_or(HistoryPosition(u64::MAX, u32::MAX));
    let Some(key) = &query.key else {
        for row in history.range(..(revision, number))?.rev() {
            let (position, content) = row?;
            let (position, content) = (position.value(), content.value().1);
            if !page.has_room(content.len()) {
                break;
            }
            page.push(place(position), content.len(), entry(position, content)?);
        }
        return Ok(page.finish());
    };
    let row = key.to_string();
    let row = row.as_str();
    let index = transaction.open_table(HISTORY_OF)?;
    for found in index.range((row, 0, 0)..(row, revision, number))?.rev() {
        let (_, revision, number) = found?.0.value();
        let Some(content) = history.get((revision, number))? else {
            continue;
        };
        let content = content.value().1;
        if !page.has_room(content.len()) {
            break;
        }
        let position = (revision, number);
        page.push(place(position), content.len(), entry(position, content)?);
    }
    Ok(page.finish())
}

/// The entries in force at a revision.
pub(super) fn at(
    transaction: &ReadTransaction,
    revision: Revision,
) -> Result<BTreeMap<ResourceKey, HistoryEntry>, Failure> {
    let meta = transaction.open_table(META)?;
    let oldest = rows::number(&meta, OLDEST)?.max(1);
    let newest = rows::number(&meta, REVISION)?;
    if !(oldest..=newest).contains(&revision) {
        return Err(Failure::Store(StoreError::NoRevision {
            found: revision,
            oldest,
            newest,
        }));
    }
    // The last of each resource stays, because the index is in the order of revisions.
    let mut last: BTreeMap<String, Option<(u64, u32)>> = BTreeMap::new();
    for row in transaction.open_table(HISTORY_OF)?.iter()? {
        let (key, value) = row?;
        let (row, changed, number) = key.value();
        if changed <= revision {
            let (_size, deleted) = value.value();
            let place = (!deleted).then_some((changed, number));
            match last.get_mut(row) {
                Some(last) => *last = place,
                None => drop(last.insert(row.to_owned(), place)),
            }
        }
    }
    let history = transaction.open_table(HISTORY)?;
    let mut entries = BTreeMap::new();
    for position in last.into_values().flatten() {
        if let Some(content) = history.get(position)? {
            let entry = entry(position, content.value().1)?;
            entries.insert(entry.key.clone(), entry);
        }
    }
    Ok(entries)
}

fn place((revision, number): (u64, u32)) -> HistoryPosition {
    HistoryPosition(revision, number)
}

fn entry(position: (u64, u32), content: &[u8]) -> Result<HistoryEntry, Failure> {
    decode("history", &place(position).to_string(), content)
}
