//! The tasks that feed the mirror: which kinds the cluster has, and one watch for each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event};

use tokio::task::JoinSet;
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
/// How often the cluster is asked for kinds that it does not serve any more and of which documents are in force.
const DOUBTED_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Documents of a kind that the cluster says for this long that it does not serve are not in force any more:
/// they are of a definition that was taken away. Longer than an API server that starts takes to serve its
/// definitions.
const DOUBTED_FOR: Duration = Duration::from_secs(30);
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

/// A kind that is not followed.
#[derive(Debug)]
struct Unfollowed {
    kind: KindApi,
    documents: Documents,
}

/// What there is of the documents of a kind that is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Documents {
    /// None are known.
    None,
    /// What is known is in force. The cluster says since then that it does not serve the kind, if it does.
    InForce(Option<Instant>),
}

impl Documents {
    /// The cluster says that it does not serve the kind; whether the documents are not in force any more.
    fn on_absent(&mut self, now: Instant) -> bool {
        let Self::InForce(since) = self else {
            return false;
        };
        let since = *since.get_or_insert(now);
        let is_over = now.saturating_duration_since(since) >= DOUBTED_FOR;
        if is_over {
            *self = Self::None;
        }
        is_over
    }

    /// The cluster does not say what it serves.
    fn on_no_answer(&mut self) {
        if let Self::InForce(since) = self {
            *since = None;
        }
    }
}

/// Asks which kinds the cluster has, again and again, and watches each for as long as it has it.
pub(super) async fn discover(shared: Arc<Shared>) {
    let mut backoff = Backoff::new(ASKED_AGAIN);
    let asking = shared.watches.begin("kinds");
    let mut keepers = JoinSet::new();
    keepers.spawn(records(Arc::clone(&shared)));
    keepers.spawn(definitions::keep(Arc::clone(&shared)));
    let mut discovery = Discovery::new(shared);
    loop {
        let pause = match discovery.ask().await {
            Err(error) => {
                asking.on_failed(&error, Instant::now());
                backoff.next().unwrap_or(ASKED_AGAIN.longest)
            }
            Ok(()) => {
                backoff = Backoff::new(ASKED_AGAIN);
                asking.on_seen();
                discovery.shared.discovered();
                match discovery.doubts() {
                    true => DOUBTED_AGAIN_AFTER,
                    false => DISCOVER_AGAIN_AFTER,
                }
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Some(Ok(kind)) = discovery.followers.join_next() => {
                discovery.on_ended(kind);
                // A pause also where the API server names a kind that it then does not serve; and others may
                // end with it.
                tokio::time::sleep(DOUBTED_AGAIN_AFTER).await;
                while let Some(Ok(kind)) = discovery.followers.try_join_next() {
                    discovery.on_ended(kind);
                }
            }
        }
    }
}

/// Which kinds are followed, and which are not.
struct Discovery {
    shared: Arc<Shared>,
    missing: Vec<Unfollowed>,
    /// Kinds of which it was logged that the cluster does not have them.
    logged: BTreeSet<String>,
    /// Each ends, with its kind, when that is not served any more.
    followers: JoinSet<KindApi>,
}

impl Discovery {
    fn new(shared: Arc<Shared>) -> Self {
        let missing = shared.kinds.iter().map(|kind| Unfollowed {
            kind: kind.clone(),
            documents: Documents::None,
        });
        Self {
            missing: missing.collect(),
            logged: BTreeSet::new(),
            followers: JoinSet::new(),
            shared,
        }
    }

    /// Asks for every kind that is not followed, and follows those that there are; why one was not answered.
    async fn ask(&mut self) -> Result<(), String> {
        let missing = std::mem::take(&mut self.missing);
        let versions = match missing.is_empty() {
            true => return Ok(()),
            false => group_versions(&self.shared).await,
        };
        let mut result = Ok(());
        for mut one in missing {
            let found = match &versions {
                Ok(versions) => served(&self.shared, &one.kind, versions).await,
                Err(error) => Err(error.clone()),
            };
            match found {
                Ok(Some(resource)) => {
                    self.follow(one.kind, resource);
                    continue;
                }
                Ok(None) => self.on_absent(&mut one),
                Err(error) => {
                    tracing::warn!(kind = one.kind.kind, error, "the cluster was not asked");
                    one.documents.on_no_answer();
                    result = Err(error);
                }
            }
            self.missing.push(one);
        }
        result
    }

    fn follow(&mut self, kind: KindApi, resource: ApiResource) {
        let version = &resource.api_version;
        tracing::info!(kind = kind.kind, version, "watched");
        self.logged.remove(&kind.kind);
        self.shared.has_kind(&kind.kind, resource.clone());
        let shared = Arc::clone(&self.shared);
        self.followers.spawn(documents(shared, kind, resource));
    }

    /// The cluster says that it does not serve a kind.
    fn on_absent(&mut self, one: &mut Unfollowed) {
        let KindApi {
            kind,
            plural,
            versions,
        } = &one.kind;
        if one.documents.on_absent(Instant::now()) {
            let documents = self.shared.lacks_kind(kind);
            tracing::error!(
                kind,
                documents,
                "the cluster does not serve this kind any more: its documents are not in force"
            );
        }
        if one.documents != Documents::None {
            return;
        }
        self.shared.watches.begin(plural).on_absent();
        if self.logged.insert(kind.clone()) {
            let versions = versions.join(", ");
            tracing::warn!(kind, versions, "the cluster does not have this kind");
        }
    }

    /// A list of a kind was answered that there is no such kind.
    fn on_ended(&mut self, kind: KindApi) {
        let documents = match self.shared.was_listed(&kind.kind) {
            true => Documents::InForce(None),
            false => {
                self.shared.lacks_kind(&kind.kind);
                Documents::None
            }
        };
        self.missing.push(Unfollowed { kind, documents });
    }

    /// Whether documents are in force of kinds that are not followed.
    fn doubts(&self) -> bool {
        let mut missing = self.missing.iter();
        missing.any(|one| one.documents != Documents::None)
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

/// Follows a kind until it is not served in this version any more.
async fn documents(shared: Arc<Shared>, kind: KindApi, resource: ApiResource) -> KindApi {
    let health = shared.watches.begin(&resource.plural);
    let client = watches::reporting(shared.client.clone(), health.clone());
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut is_first_list = true;
    let tell = |event| document_event(&shared, &kind.kind, event, &mut is_first_list);
    following::follow_while_served(&api, &kind.kind, &health, tell).await;
    kind
}

fn document_event(shared: &Shared, kind: &str, event: KindEvent, is_first_list: &mut bool) {
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
            let is_of_kind = |key: &ResourceKey| key.kind == kind;
            let mut changed = mirror.objects.done(kind, is_of_kind);
            if std::mem::take(is_first_list) {
                // In another version of the kind, an object is another document.
                let all = mirror.objects.iter().map(|(key, _)| key);
                changed.extend(all.filter(|key| is_of_kind(key)).cloned());
            }
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
    let secrets = |client| Api::<Secret>::namespaced(client, &shared.namespace);
    let config = watcher::Config::default().labels(TABLE);
    let health = shared.watches.begin(RECORDS);
    let mut events = watches::follow(&shared.client, secrets, config, health);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_stay_in_force_until_their_kind_was_absent_for_a_while_without_a_break() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut none = Documents::None;
        assert!(!none.on_absent(at(0)) && !none.on_absent(at(100)));
        let mut documents = Documents::InForce(None);
        assert!(!documents.on_absent(at(0)) && !documents.on_absent(at(29)));
        documents.on_no_answer();
        assert!(!documents.on_absent(at(31)) && !documents.on_absent(at(60)));
        assert!(documents.on_absent(at(61)));
        assert_eq!(documents, Documents::None);
        assert!(!documents.on_absent(at(62)), "told once");
    }
}
