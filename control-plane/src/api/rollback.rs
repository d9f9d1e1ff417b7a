//! The way back: resources as they were at a revision, validated as if they were applied.

use std::collections::BTreeSet;

use axum::extract::{Query, State};
use axum::{Extension, Json};
use bytes::Bytes;

use super::Admin;
use super::input::kind;
use super::operators::{Operator, author};
use super::preview::{dangling, preview};
use super::refusal::{Answer, Refusal, read};
use super::resources::commit;
use super::types::{Action, Applied, AuthorQuery, ResourceKey, RollbackRequest, RollbackResult};
use crate::model::{self, Placed, Problem};
use crate::policy::plan;
use crate::store::{Change, Expect, changes_back};

/// Resources that one rollback may name.
const NAMED_MAX: usize = 1000;

pub(super) async fn rollback(
    State(admin): State<Admin>,
    operator: Option<Extension<Operator>>,
    Query(query): Query<AuthorQuery>,
    body: Bytes,
) -> Answer<RollbackResult> {
    let request: RollbackRequest = read(&body)?;
    let only = named(&request.resources)?;
    let store = &admin.backend.store;
    let then = store.at(request.revision).await?;
    let listing = store.list()?;
    for key in only.iter().flatten() {
        let lives = listing
            .resources
            .iter()
            .any(|resource| resource.key == *key);
        if !lives && !then.contains_key(key) {
            let text = format!(
                "{key} does not exist, and did not at revision {}; see `weft history`",
                request.revision
            );
            return Err(Refusal::unknown(text));
        }
    }
    let changes = changes_back(then, &listing, only.as_ref());
    let documents = checked(&changes, request.revision).map_err(Refusal::problems)?;
    let preview = preview(&admin.backend, &changes).await?;
    let problems = dangling(&preview.after, &documents);
    if !request.allow_missing && !problems.is_empty() {
        return Err(Refusal::problems(problems));
    }
    let effects = plan::effects(&preview.before, &preview.after);
    let resources: Vec<Applied> = changes.iter().map(outcome).collect();
    let mut revision = listing.revision;
    if !request.dry_run {
        // Refused when a resource is not as it was listed: what was said above would not be true.
        let author = author(operator, &query.author);
        revision = commit(&*admin.backend.store, &author, changes, &resources).await?;
    }
    Ok(Json(RollbackResult {
        revision,
        dry_run: request.dry_run,
        resources,
        effects,
    }))
}

/// The resources that are named; `None` is all of them.
fn named(texts: &[String]) -> Result<Option<BTreeSet<ResourceKey>>, Refusal> {
    if texts.len() > NAMED_MAX {
        let text = format!("resources: found {}; allowed: {NAMED_MAX}", texts.len());
        return Err(Refusal::invalid(text));
    }
    let keys = texts.iter().map(|text| {
        let parts: Vec<&str> = text.split('/').collect();
        let [kind_text, namespace, name] = parts[..] else {
            let text = format!("resource: found {text:?}; allowed: KIND/NAMESPACE/NAME");
            return Err(Refusal::invalid(text));
        };
        Ok(ResourceKey {
            kind: kind(kind_text)?.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    });
    let keys: BTreeSet<ResourceKey> = keys.collect::<Result<_, _>>()?;
    Ok((!keys.is_empty()).then_some(keys))
}

/// The documents that come back, read as strictly as if they were applied.
fn checked(changes: &[Change], revision: u64) -> Result<Vec<Placed>, Vec<Problem>> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    for Change { key, document, .. } in changes {
        let Some(document) = document else {
            continue;
        };
        let source = format!("{key} at revision {revision}");
        match model::read(&source, &document.to_string()) {
            Ok(read) => documents.extend(read),
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() {
        Ok(documents)
    } else {
        Err(problems)
    }
}

fn outcome(change: &Change) -> Applied {
    let action = match (&change.document, change.expect) {
        (None, _) => Action::Deleted,
        (Some(_), Expect::Absent) => Action::Created,
        (Some(_), Expect::Any | Expect::Revision(_)) => Action::Changed,
    };
    Applied {
        key: change.key.clone(),
        action,
    }
}
