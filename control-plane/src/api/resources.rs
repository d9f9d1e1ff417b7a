//! Routes of resources: apply, plan, list, delete, history.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header::CONTENT_TYPE};
use axum::{Extension, Json};
use bytes::Bytes;
use tokio::time::Instant;
use weft_core::name::ServiceName;

use super::Admin;
use super::operators::{Operator, author};
use super::refusal::{Answer, Refusal, found_info, read};
use super::types::{
    Action, Applied, ApplyQuery, ApplyResult, AuthorQuery, ConditionInfo, ConflictInfo,
    HistoryInfo, HistoryPageInfo, Items, Metadata, ParentInfo, ParentRefInfo, PlanResult,
    ResourceInfo, ResourceQuery, ResourceStatus, Source, Sources,
};
use crate::compile::{Compiled, Dangling, Snapshot};
use crate::model::{
    self, API_GROUP, Document, Kind, Parent, Placed, Problem, ResourceKey, kind_names, version_of,
};
use crate::parts::Parts;
use crate::policy::plan;
use crate::store::{
    Change, Expect, HistoryEntry, HistoryQuery, Revision, Store, StoreError, StoredResource, digest,
};
use crate::world::Delta;
use crate::world::facts::Stated;

/// Who looks after routes (Gateway API, `controllerName`).
const CONTROLLER: &str = "weft-mesh.io/control-plane";
/// Changes in one answer, by default and at most.
const HISTORY_DEFAULT: usize = 50;
const HISTORY_MAX: usize = 1000;

/// How long a change waits for the world to have those before it, and how often it looks.
const SETTLE_MAX: Duration = Duration::from_secs(2);
const SETTLE_PAUSE: Duration = Duration::from_millis(1);
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
        let (changes, resources) = compare(&admin.parts.store, &documents, query.force)?;
        if !query.allow_missing {
            let preview = preview(&admin.parts, &changes).await?;
            let problems = dangling(&preview.after, &documents);
            if !problems.is_empty() {
                return Err(Refusal::problems(problems));
            }
        }
        if query.dry_run {
            return Ok(Json(ApplyResult {
                revision: *admin.parts.store.watch().borrow(),
                dry_run: true,
                resources,
            }));
        }
        match commit(&admin.parts, &author, changes, &resources).await {
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
    let (changes, resources) = compare(&admin.parts.store, &documents, query.force)?;
    let preview = preview(&admin.parts, &changes).await?;
    let problems = dangling(&preview.after, &documents);
    if !query.allow_missing && !problems.is_empty() {
        return Err(Refusal::problems(problems));
    }
    Ok(Json(PlanResult {
        resources,
        effects: plan::effects(&preview.before, &preview.after),
    }))
}

/// The documents of a body.
fn asked_for(headers: &HeaderMap, query: &ApplyQuery, body: &[u8]) -> Result<Vec<Placed>, Refusal> {
    let sources = sources(headers, query, body)?;
    read_sources(&sources).map_err(Refusal::problems)
}

/// What would be after these changes; nothing changes.
pub(super) async fn preview(parts: &Parts, changes: &[Change]) -> Result<Preview, Refusal> {
    let before = settled(parts).await;
    let now = crate::unix_millis();
    let mut deltas = Vec::with_capacity(changes.len());
    for change in changes {
        let Some(document) = &change.document else {
            deltas.push(Delta::DocumentGone(change.key.clone()));
            continue;
        };
        let before = parts.store.get(&change.key)?;
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
async fn settled(parts: &Parts) -> Arc<Snapshot> {
    let revision = *parts.store.watch().borrow();
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let snapshot = parts.snapshot();
        if snapshot.compiled.revision >= revision || Instant::now() >= deadline {
            return snapshot;
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
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
    let all = admin.parts.store.list()?.resources.into_iter();
    let matching = all.filter(|resource| {
        matches(kind, &resource.key.kind)
            && matches(query.namespace.as_deref(), &resource.key.namespace)
            && matches(query.name.as_deref(), &resource.key.name)
    });
    let snapshot = admin.parts.snapshot();
    let items = matching.map(|mut resource| ResourceInfo {
        api_version: version_of(&resource.key.kind).to_owned(),
        metadata: metadata_of(&resource),
        spec: resource.document["spec"].take(),
        status: ResourceStatus {
            parents: parents_of(&snapshot, &resource.key),
            conditions: conditions_of(&snapshot.compiled, &resource.key),
            addresses: addresses_of(&snapshot.compiled, &resource.key),
            ..status_of(&resource)
        },
        kind: resource.key.kind,
    });
    Ok(Json(Items {
        items: items.collect(),
    }))
}

/// The name, labels and annotations of a document.
pub(super) fn metadata_of(resource: &StoredResource) -> Metadata {
    let pairs = |field: &str| {
        let pairs = resource.document["metadata"][field].as_object();
        let pairs = pairs.into_iter().flatten();
        pairs
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    };
    Metadata {
        name: resource.key.name.clone(),
        namespace: resource.key.namespace.clone(),
        labels: pairs("labels"),
        annotations: pairs("annotations"),
        resource_version: Some(resource.revision.to_string()),
    }
}

/// What is known about a document.
pub(super) fn status_of(resource: &StoredResource) -> ResourceStatus {
    ResourceStatus {
        revision: resource.revision,
        generation: resource.generation,
        created: resource.created,
        changed: resource.changed,
        author: resource.author.clone(),
        parents: Vec::new(),
        conditions: Vec::new(),
        addresses: Vec::new(),
    }
}

fn condition(kind: &str, good: &str, wrong: &[&Dangling], generation: u64) -> ConditionInfo {
    let said = wrong.iter().map(|dangling| dangling.to_string());
    ConditionInfo {
        kind: kind.to_owned(),
        status: if wrong.is_empty() { "True" } else { "False" }.to_owned(),
        reason: wrong.first().map_or(good, |first| first.reason).to_owned(),
        message: said.collect::<Vec<_>>().join("; "),
        observed_generation: generation,
    }
}

fn external_name(key: &ResourceKey) -> Option<ServiceName> {
    let name = ServiceName::new(&key.namespace, &key.name).ok();
    name.filter(|_| key.kind == "ExternalService")
}

/// Whether an ExternalService is in force.
fn conditions_of(compiled: &Compiled, key: &ResourceKey) -> Vec<ConditionInfo> {
    let status = external_name(key);
    let status = status.and_then(|name| compiled.external_status(&name));
    let conditions = status.iter().map(|status| {
        let refused: Vec<&Dangling> = status.refused.iter().collect();
        condition("Accepted", "Accepted", &refused, status.generation)
    });
    conditions.collect()
}

/// The virtual addresses of an ExternalService that is in force.
fn addresses_of(compiled: &Compiled, key: &ResourceKey) -> Vec<IpAddr> {
    let name = external_name(key);
    let found = name.and_then(|name| compiled.service_policy(&name.to_string()));
    let found = found.filter(|service| service.external.is_some());
    found
        .map(|service| service.addresses.clone())
        .unwrap_or_default()
}

/// How a route stands to what it is attached to.
fn parents_of(snapshot: &Snapshot, key: &ResourceKey) -> Vec<ParentInfo> {
    let Some(status) = snapshot.route_status(key) else {
        return Vec::new();
    };
    let parents = status.parents.iter().map(|parent| {
        let refused: Vec<&Dangling> = parent.refused.iter().collect();
        let unresolved: Vec<&Dangling> = status.unresolved.iter().collect();
        let Parent { service, port } = &parent.parent;
        let (group, kind) = match parent.external {
            true => (API_GROUP, "ExternalService"),
            false => ("", "Service"),
        };
        ParentInfo {
            parent_ref: ParentRefInfo {
                group: group.to_owned(),
                kind: kind.to_owned(),
                namespace: service.namespace().to_owned(),
                name: service.name().to_owned(),
                port: *port,
            },
            controller_name: CONTROLLER.to_owned(),
            conditions: vec![
                condition("Accepted", "Accepted", &refused, parent.generation),
                condition(
                    "ResolvedRefs",
                    "ResolvedRefs",
                    &unresolved,
                    parent.generation,
                ),
            ],
        }
    });
    parents.collect()
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
    if admin.parts.store.get(&key)?.is_none() {
        let text = format!("{key} does not exist; see `weft get {}`", key.kind);
        return Err(Refusal::unknown(text));
    }
    let author = author(operator, &query.author);
    let resources = vec![Applied {
        key: key.clone(),
        action: Action::Deleted,
    }];
    let changes = vec![Change::delete(key)];
    let revision = commit(&admin.parts, &author, changes, &resources).await?;
    Ok(Json(ApplyResult {
        revision,
        dry_run: false,
        resources,
    }))
}

pub(super) async fn history(
    State(admin): State<Admin>,
    Query(query): Query<ResourceQuery>,
) -> Answer<HistoryPageInfo> {
    let limit = query.limit.unwrap_or(HISTORY_DEFAULT).min(HISTORY_MAX);
    let key = match (query.kind, query.namespace, query.name) {
        (None, None, None) => None,
        (Some(text), Some(namespace), Some(name)) => {
            let kind = kind(&text)?.to_owned();
            Some(ResourceKey {
                kind,
                namespace,
                name,
            })
        }
        _ => {
            let text = "history: name kind, namespace and name together, or none of them";
            return Err(Refusal::invalid(text));
        }
    };
    let before = query.before.as_deref().map(str::parse).transpose();
    let before = before.map_err(|error| Refusal::invalid(format!("before: {error}")))?;
    let query = HistoryQuery { key, before, limit };
    let page = admin.parts.store.history(query).await?;
    let items = page.items.into_iter().map(history_info);
    Ok(Json(HistoryPageInfo {
        items: items.collect(),
        next: page.next.map(|next| next.to_string()),
    }))
}

fn history_info(entry: HistoryEntry) -> HistoryInfo {
    HistoryInfo {
        revision: entry.revision,
        time: entry.time,
        author: entry.author,
        key: entry.key,
        digest: entry.digest,
        document: entry.document,
    }
}

/// Makes changes whose outcome is known.
pub(super) async fn commit(
    parts: &Parts,
    author: &str,
    changes: Vec<Change>,
    outcome: &[Applied],
) -> Result<Revision, StoreError> {
    let revision = parts.store.commit(author, changes).await?;
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
    store: &Arc<dyn Store>,
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

fn sources(headers: &HeaderMap, query: &ApplyQuery, body: &[u8]) -> Result<Vec<Source>, Refusal> {
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    if content_type.is_some_and(|found| found.starts_with(b"application/json")) {
        return Ok(read::<Sources>(body)?.sources);
    }
    let name = match query.source.as_str() {
        "" => "-".to_owned(),
        name => name.to_owned(),
    };
    match std::str::from_utf8(body) {
        Ok(text) => Ok(vec![Source {
            name,
            text: text.to_owned(),
        }]),
        Err(error) => Err(Refusal::problems(vec![Problem {
            source_name: name,
            document: 1,
            path: "(input)".to_owned(),
            found: format!("byte {} that is not UTF-8", error.valid_up_to()),
            allowed: "UTF-8".to_owned(),
        }])),
    }
}

/// Every document of all inputs, or everything that is wrong with any.
pub fn read_sources(sources: &[Source]) -> Result<Vec<Placed>, Vec<Problem>> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    let mut keys = BTreeSet::new();
    for source in sources {
        match model::read(&source.name, &source.text) {
            Err(more) => problems.extend(more),
            Ok(read) => {
                for document in read {
                    let key = document.value.key();
                    if keys.insert(key.clone()) {
                        documents.push(document);
                    } else {
                        problems.push(Problem {
                            source_name: document.source_name,
                            document: document.document,
                            path: "metadata.name".to_owned(),
                            found: format!("{key}, which is in another file too"),
                            allowed: "each resource once".to_owned(),
                        });
                    }
                }
            }
        }
    }
    if problems.is_empty() {
        Ok(documents)
    } else {
        Err(problems)
    }
}

/// A kind, as people write it: in any case, in the plural.
pub(super) fn kind(text: &str) -> Result<&'static str, Refusal> {
    let found = Kind::parse(text).map(|kind| kind.name);
    found.ok_or_else(|| {
        let allowed = kind_names();
        Refusal::invalid(format!("kind: found {text:?}; allowed: {allowed}"))
    })
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn kinds_as_people_write_them() {
        let cases = [
            ("Service", Some("Service")),
            ("services", Some("Service")),
            ("trafficpolicies", Some("TrafficPolicy")),
            ("trafficpolicy", Some("TrafficPolicy")),
            ("meshconfig", Some("MeshConfig")),
            ("httproutes", Some("HTTPRoute")),
            ("externalservices", Some("ExternalService")),
            ("policy", None),
        ];
        for (text, expected) in cases {
            assert_eq!(kind(text).ok(), expected, "{text}");
        }
    }
}
