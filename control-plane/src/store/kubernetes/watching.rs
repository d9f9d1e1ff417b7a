//! The tasks that feed the mirror: which kinds the cluster has, and one watch for each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event};

use tokio::time::timeout;

use super::definitions;
use super::following::{self, KindEvent};
use super::object::{self, TABLE};
use super::{RECORDS, Shared};
use crate::kubernetes::retry::{Backoff, Pauses};
use crate::kubernetes::told;
use crate::kubernetes::watches;
use crate::model::{Kind, ResourceKey};

/// How often the cluster is asked for kinds that it did not have.
const DISCOVER_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long an answer to which kinds there are may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Pauses between questions that are not answered.
const ASKED_AGAIN: Pauses = Pauses {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(10),
};

/// A kind of documents as the cluster may have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindApi {
    /// The kind.
    pub kind: String,
    /// Its name in the plural.
    pub plural: String,
    /// Groups and versions that it is read in, the preferred one first.
    pub versions: Vec<String>,
}

impl KindApi {
    /// Every kind but `Service`: in a cluster, services are the cluster's own.
    pub fn all() -> Vec<Self> {
        let kinds = crate::model::KINDS.iter();
        let kinds = kinds.filter(|kind| kind.name != "Service");
        kinds.map(Self::of).collect()
    }

    fn of(kind: &Kind) -> Self {
        Self {
            kind: kind.name.to_owned(),
            plural: kind.plural.to_owned(),
            versions: kind.versions().map(ToOwned::to_owned).collect(),
        }
    }

    /// How the cluster calls it in this group and version.
    pub(crate) fn resource(&self, api_version: &str) -> ApiResource {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }
}

/// Asks which kinds the cluster has, again and again, and watches each that it has.
pub(super) async fn discover(shared: Arc<Shared>) {
    let mut missing = shared.kinds.clone();
    let mut said = BTreeSet::new();
    let mut backoff = Backoff::new(ASKED_AGAIN);
    let asking = shared.watches.begin("kinds");
    let mut watches = tokio::task::JoinSet::new();
    watches.spawn(records(Arc::clone(&shared)));
    watches.spawn(definitions::keep(Arc::clone(&shared)));
    loop {
        let mut failed = false;
        let mut still_missing = Vec::new();
        let versions = match missing.is_empty() {
            true => Ok(BTreeSet::new()),
            false => group_versions(&shared).await,
        };
        for kind in std::mem::take(&mut missing) {
            let found = match &versions {
                Ok(versions) => served(&shared, &kind, versions).await,
                Err(error) => Err(error.clone()),
            };
            match found {
                Ok(Some(resource)) => {
                    tracing::info!(kind = kind.kind, version = resource.api_version, "watched");
                    shared.has_kind(&kind.kind, resource.clone());
                    watches.spawn(documents(Arc::clone(&shared), kind.kind, resource));
                }
                Ok(None) => {
                    shared.watches.begin(&kind.plural).on_absent();
                    if said.insert(kind.kind.clone()) {
                        let versions = kind.versions.join(", ");
                        tracing::warn!(
                            kind = kind.kind,
                            versions,
                            "the cluster does not have this kind"
                        );
                    }
                    still_missing.push(kind);
                }
                Err(error) => {
                    failed = true;
                    asking.on_failed(&error, Instant::now());
                    tracing::warn!(kind = kind.kind, error, "the cluster was not asked");
                    still_missing.push(kind);
                }
            }
        }
        missing = still_missing;
        let pause = match failed {
            true => backoff.next().unwrap_or(ASKED_AGAIN.longest),
            false => {
                backoff = Backoff::new(ASKED_AGAIN);
                asking.on_seen();
                shared.discovered();
                DISCOVER_AGAIN_AFTER
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// The groups that the cluster has, with their versions.
async fn group_versions(shared: &Shared) -> Result<BTreeSet<String>, String> {
    let groups = asked(shared.client.list_api_groups()).await?;
    let groups = groups.groups.into_iter();
    let versions = groups.flat_map(|group| group.versions);
    Ok(versions.map(|version| version.group_version).collect())
}

/// The first version of a kind that the cluster has.
async fn served(
    shared: &Shared,
    kind: &KindApi,
    versions: &BTreeSet<String>,
) -> Result<Option<ApiResource>, String> {
    for version in kind.versions.iter().filter(|one| versions.contains(*one)) {
        let list = asked(shared.client.list_api_group_resources(version)).await?;
        let mut found = list.resources.iter();
        if found.any(|one| one.name == kind.plural && one.kind == kind.kind) {
            return Ok(Some(kind.resource(version)));
        }
    }
    Ok(None)
}

/// The API server's answer, or why there is none.
pub(super) async fn asked<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, String> {
    match timeout(ANSWER_MAX, request).await {
        Ok(answer) => answer.map_err(|error| told(&error)),
        Err(_elapsed) => Err(format!("no answer within {ANSWER_MAX:?}")),
    }
}

async fn documents(shared: Arc<Shared>, kind: String, resource: ApiResource) {
    let api: Api<DynamicObject> = Api::all_with(shared.client.clone(), &resource);
    let health = shared.watches.begin(&resource.plural);
    let tell = |event| document_event(&shared, &kind, event);
    following::follow(&api, &kind, &health, tell).await;
}

fn document_event(shared: &Shared, kind: &str, event: KindEvent) {
    let mut mirror = shared.mirror();
    let changed: Vec<ResourceKey> = match event {
        KindEvent::ListBegins => {
            mirror.objects.begin(kind);
            return;
        }
        KindEvent::Listed(objects) => {
            for object in objects {
                if let Some((key, entry)) = object::read(kind, object) {
                    mirror.objects.listed(kind, key, entry);
                }
            }
            return;
        }
        KindEvent::ListDone(version) => {
            mirror.listed_at(kind, &version);
            let changed = mirror.objects.done(kind, |key| key.kind == kind);
            shared.listed(kind);
            changed
        }
        KindEvent::Bookmark(version) => {
            mirror.told(kind, &version);
            Vec::new()
        }
        KindEvent::Applied(object) | KindEvent::Gone(object)
            if object.metadata.deletion_timestamp.is_some() =>
        {
            gone(&mut mirror, kind, &object)
        }
        KindEvent::Gone(object) => gone(&mut mirror, kind, &object),
        KindEvent::Applied(object) => {
            mirror.told(kind, version_of(&object));
            let read = object::read(kind, object);
            let news = read.and_then(|(key, entry)| {
                let is_news = mirror.objects.applied(key.clone(), entry);
                is_news.then_some(key)
            });
            news.into_iter().collect()
        }
    };
    // Also where nothing has changed: more was seen.
    let event = mirror.refresh(changed);
    mirror.settle(kind);
    shared.publish(&mut mirror, event);
}

fn version_of(object: &DynamicObject) -> &str {
    object
        .metadata
        .resource_version
        .as_deref()
        .unwrap_or_default()
}

fn gone(mirror: &mut super::Mirror, kind: &str, object: &DynamicObject) -> Vec<ResourceKey> {
    mirror.told(kind, version_of(object));
    let key = ResourceKey {
        kind: kind.to_owned(),
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    };
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    match mirror.objects.gone(&key, uid) {
        true => vec![key],
        false => Vec::new(),
    }
}

async fn records(shared: Arc<Shared>) {
    let api: Api<Secret> = Api::namespaced(shared.client.clone(), &shared.namespace);
    let config = watcher::Config::default().labels(TABLE);
    let health = shared.watches.begin(RECORDS);
    let mut events = std::pin::pin!(watches::follow(api, config, health));
    while let Some(event) = events.next().await {
        record_event(&shared, event);
    }
}

fn record_event(shared: &Shared, event: Event<Secret>) {
    let mut mirror = shared.mirror();
    let is_news = match event {
        Event::Init => {
            mirror.records.begin(RECORDS);
            false
        }
        Event::InitApply(secret) => {
            if let Some((key, entry)) = object::read_record(secret) {
                mirror.records.listed(RECORDS, key, entry);
            }
            false
        }
        Event::InitDone => {
            let changed = mirror.records.done(RECORDS, |_key| true);
            shared.listed(RECORDS);
            !changed.is_empty()
        }
        Event::Apply(secret) => object::read_record(secret)
            .is_some_and(|(key, entry)| mirror.records.applied(key, entry)),
        Event::Delete(secret) => object::read_record(secret)
            .is_some_and(|(key, entry)| mirror.records.gone(&key, &entry.uid)),
    };
    drop(mirror);
    if is_news {
        shared.records_of_others.send_modify(|count| *count += 1);
    }
}
