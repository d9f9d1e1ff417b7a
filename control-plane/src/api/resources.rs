//! Routes of resources: apply, validate, plan, list, delete.

use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use bytes::Bytes;

use super::Admin;
use super::input::{asked_for, kind};
use super::operators::{Operator, author};
use super::preview::{dangling, preview};
use super::refusal::{Answer, Refusal, found_info};
use super::resource_status::resource_info;
use super::types::{
    Action, Applied, ApplyQuery, ApplyResult, AuthorQuery, ConflictInfo, Items, PlanResult,
    ResourceInfo, ResourceQuery,
};
use crate::model::{Placed, ResourceKey};
use crate::policy::plan;
use crate::store::{Change, Expect, Revision, Store, StoreError, digest};

/// How often a commit is tried whose documents others change meanwhile. One of those who try at the
/// same time succeeds each time, and there are no more than so many requests at once.
const COMMIT_TRIES: usize = 64;

pub(super) async fn apply(
    State(admin): State<Admin>,
    operator: Option<Extension<Operator>>,
    Query(query): Query<ApplyQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<ApplyResult> {
    let documents = asked_for(&headers, &query, &body)?;
    let author = author(operator, &query.author);
    let mut tries = 1..=COMMIT_TRIES;
    loop {
        tries.next();
        let (changes, resources) = compare(&*admin.backend.store, &documents, query.force)?;
        if !query.allow_missing {
            let preview = preview(&admin.backend, &changes).await?;
            let problems = dangling(&preview.after, &documents);
            if !problems.is_empty() {
                return Err(Refusal::problems(problems));
            }
        }
        if query.dry_run {
            return Ok(Json(ApplyResult {
                revision: *admin.backend.store.watch().borrow(),
                dry_run: true,
                resources,
            }));
        }
        match commit(&*admin.backend.store, &author, changes, &resources).await {
            // What was checked is not what exists any more: it is checked again. Documents that
            // name the revision they were read at are refused then.
            Err(StoreError::Conflict(_)) if !tries.is_empty() => {}
            Err(error) => return Err(error.into()),
            Ok(revision) => {
                return Ok(Json(ApplyResult {
                    revision,
                    dry_run: false,
                    resources,
                }));
            }
        }
    }
}

/// Says what applying would change for callers, and changes nothing.
pub(super) async fn plan(
    State(admin): State<Admin>,
    Query(query): Query<ApplyQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<PlanResult> {
    let documents = asked_for(&headers, &query, &body)?;
    let (changes, resources) = compare(&*admin.backend.store, &documents, query.force)?;
    let preview = preview(&admin.backend, &changes).await?;
    let problems = dangling(&preview.after, &documents);
    if !query.allow_missing && !problems.is_empty() {
        return Err(Refusal::problems(problems));
    }
    Ok(Json(PlanResult {
        resources,
        effects: plan::effects(&preview.before, &preview.after),
    }))
}

/// Checks documents and keeps nothing; says what applying would change.
pub(super) async fn validate(
    admin: State<Admin>,
    Query(mut query): Query<ApplyQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<ApplyResult> {
    query.dry_run = true;
    apply(admin, None, Query(query), headers, body).await
}

pub(super) async fn list(
    State(admin): State<Admin>,
    Query(query): Query<ResourceQuery>,
) -> Answer<Items<ResourceInfo>> {
    let kind = query.kind.as_deref().map(kind).transpose()?;
    let matches = |wanted: Option<&str>, found: &str| wanted.is_none_or(|wanted| wanted == found);
    let all = admin.backend.store.list()?.resources.into_iter();
    let matching = all.filter(|resource| {
        matches(kind, &resource.key.kind)
            && matches(query.namespace.as_deref(), &resource.key.namespace)
            && matches(query.name.as_deref(), &resource.key.name)
    });
    let snapshot = admin.backend.snapshots.snapshot();
    let items = matching.map(|resource| resource_info(&snapshot, resource));
    Ok(Json(Items {
        items: items.collect(),
    }))
}

pub(super) async fn remove(
    State(admin): State<Admin>,
    operator: Option<Extension<Operator>>,
    Path((kind_text, namespace, name)): Path<(String, String, String)>,
    Query(query): Query<AuthorQuery>,
) -> Answer<ApplyResult> {
    let kind = kind(&kind_text)?.to_owned();
    let key = ResourceKey {
        kind,
        namespace,
        name,
    };
    if admin.backend.store.get(&key)?.is_none() {
        let text = format!("{key} does not exist; see `weft get {}`", key.kind);
        return Err(Refusal::unknown(text));
    }
    let author = author(operator, &query.author);
    let resources = vec![Applied {
        key: key.clone(),
        action: Action::Deleted,
    }];
    let changes = vec![Change::delete(key)];
    let revision = commit(&*admin.backend.store, &author, changes, &resources).await?;
    Ok(Json(ApplyResult {
        revision,
        dry_run: false,
        resources,
    }))
}

/// Makes changes whose outcome is known.
pub(super) async fn commit(
    store: &dyn Store,
    author: &str,
    changes: Vec<Change>,
    outcome: &[Applied],
) -> Result<Revision, StoreError> {
    let revision = store.commit(author, changes).await?;
    let changed = outcome.iter();
    for Applied { key, action } in changed.filter(|r| r.action != Action::Unchanged) {
        let action = action.as_str();
        tracing::info!(%key, action, author, revision, "resource");
    }
    Ok(revision)
}

/// The changes that documents ask for, and their outcome as things stand. Each change expects
/// what was compared; a document that names another revision is refused, unless `force`.
fn compare(
    store: &dyn Store,
    documents: &[Placed],
    force: bool,
) -> Result<(Vec<Change>, Vec<Applied>), Refusal> {
    let mut changes = Vec::with_capacity(documents.len());
    let mut resources = Vec::with_capacity(documents.len());
    let mut conflicts = Vec::new();
    for placed in documents {
        let (key, document) = (placed.value.key(), placed.to_value());
        let found = store.get(&key)?;
        let action = match &found {
            None => Action::Created,
            Some(found) if found.digest == digest(&document) => Action::Unchanged,
            Some(_) => Action::Changed,
        };
        let read_at = placed.read_at.filter(|_| !force);
        // What is there already is no conflict: an apply may be repeated.
        if read_at.is_some_and(|read_at| found.as_ref().map(|f| f.revision) != Some(read_at))
            && action != Action::Unchanged
        {
            conflicts.push(ConflictInfo {
                key: key.clone(),
                expected: read_at,
                found: found.as_ref().map(found_info),
                given: Some(document.clone()),
            });
        }
        let expect = Expect::unchanged(found.as_ref());
        changes.push(Change::put(key.clone(), document).expecting(expect));
        resources.push(Applied { key, action });
    }
    if conflicts.is_empty() {
        Ok((changes, resources))
    } else {
        Err(Refusal::conflicts(conflicts))
    }
}
