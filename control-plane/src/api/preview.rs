//! What would be after a change that is not made yet.

use std::sync::Arc;
use std::time::Duration;

use super::backend::Backend;
use super::refusal::Refusal;
use crate::compile::Snapshot;
use crate::model::{Document, Placed, Problem};
use crate::store::Change;
use crate::world::Delta;
use crate::world::facts::Stated;

/// How long a change waits for the world to have those before it. Beyond, it is checked against the
/// world as it is.
pub(super) const SETTLE_MAX: Duration = Duration::from_secs(2);

/// What would be after these changes; nothing changes.
pub(super) async fn preview(backend: &Backend, changes: &[Change]) -> Result<Preview, Refusal> {
    let before = settled(backend).await;
    let now = crate::unix_millis();
    let mut deltas = Vec::with_capacity(changes.len());
    for change in changes {
        let Some(document) = &change.document else {
            deltas.push(Delta::DocumentGone(change.key.clone()));
            continue;
        };
        let before = backend.store.get(&change.key)?;
        let document = Document::from_value(document.clone()).map_err(Refusal::problems)?;
        deltas.push(Delta::Document(Box::new(Stated {
            created: before.as_ref().map_or(now, |before| before.created),
            generation: before.map_or(0, |before| before.generation) + 1,
            document,
        })));
    }
    let after = before.after(deltas, now / 1000);
    Ok(Preview { before, after })
}

/// What is, and what would be.
pub(super) struct Preview {
    pub(super) before: Arc<Snapshot>,
    pub(super) after: Snapshot,
}

/// The world with every commit that was made before: one who applies a service and then a policy for
/// it is not told that there is no such service.
async fn settled(backend: &Backend) -> Arc<Snapshot> {
    let revision = *backend.store.watch().borrow();
    let settled = backend.snapshots.at_least(revision);
    let settled = tokio::time::timeout(SETTLE_MAX, settled).await;
    settled.unwrap_or_else(|_too_late| backend.snapshots.snapshot())
}

/// References of these documents that would lead nowhere.
pub(super) fn dangling(after: &Snapshot, documents: &[Placed]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for placed in documents {
        let dangling = after.dangling(&placed.value).into_iter();
        problems.extend(dangling.map(|dangling| Problem {
            source_name: placed.source_name.clone(),
            document: placed.document,
            path: dangling.path,
            found: dangling.found,
            allowed: format!("{} (or --allow-missing)", dangling.allowed),
        }));
    }
    problems
}
