//! The engine on the API of a Kubernetes cluster: documents are custom resources, records are Secrets
//! and leases are Leases of the control plane's own namespace.
//!
//! - Reads come from a mirror that watches feed; own writes are in it before they are answered. While
//!   the API cannot be reached, what is known stays in force.
//! - The API server has no transactions. A commit checks every condition, has the API server try
//!   every change without making it (`dryRun`), and then makes them one after the other, each on the
//!   `resourceVersion` that was read. What stops it then, another writer between both or the loss of
//!   the API, is [`StoreError::Partial`], which names what was written. Followers in this process see
//!   a commit as one event; other replicas see one for each object.
//! - A [`Revision`] is this process's own count of what it has seen change. It begins at the time of
//!   the start in microseconds, so that it ascends over restarts and is never the same in two replicas
//!   for two states: a condition on another replica's revision does not hold, it never holds wrongly.
//! - Who changed a document last is the manager of its fields; an author becomes one.
//! - A document that is refused by [`Document::from_value`](crate::model::Document::from_value) is not
//!   in force. Where this process has seen a good version of it, that one stays in force; after a
//!   restart there is none. [`KubernetesStore::refused`] has the reasons.
//! - There is no history and there are no snapshots: what was asked for when is in the Git repository
//!   that it is applied from, and backups are those of the cluster's etcd.

mod definitions;
mod following;
mod leading;
mod leases;
mod mirror;
mod object;
mod quota;
#[cfg(test)]
pub(super) mod tests;
mod watching;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, ready};
use kube::Client;
use kube::core::{ApiResource, DynamicObject};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use weft_proto::refusals::Refusals;

use super::events::EventLog;
use super::resource::check_changes;
use super::{
    Change, Clock, Event, Events, Fence, HistoryEntry, HistoryPage, HistoryQuery, Lease, Listing,
    MonotonicClock, Position, RecordWrite, Revision, SnapshotSink, Store, StoreError,
    StoredResource,
};
use crate::kubernetes::told;
use crate::kubernetes::watches::Watches;
use crate::model::{Document, ResourceKey};
use definitions::Lacking;
use leases::Leases;
use mirror::Mirror;

pub use definitions::DefinitionNotes;
pub use leading::StoreLease;
pub use mirror::{INVALID, RefusedDocument};
pub use watching::KindApi;

/// The watch of records.
const RECORDS: &str = "records";
/// Writes that may wait.
const WAITING_MAX: usize = 1024;
/// How long one request to the API may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// How often it is said that the first lists are not done.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(10);

const NO_HISTORY: &str = "in a cluster there is no history here: what was asked for when is in the Git repository that it is applied from";
const NO_SNAPSHOT: &str = "in a cluster there is no backup here: documents and records are in the cluster's etcd, and its backups have them";

/// How a store in a cluster is kept.
#[derive(Debug, Clone)]
pub struct KubernetesOptions {
    /// The control plane's own namespace.
    pub namespace: String,
    /// The kinds of documents.
    pub kinds: Vec<KindApi>,
    /// Says what is wrong with a document.
    pub accept: fn(&Value) -> Result<(), String>,
    /// The revision before the first.
    pub revision: Revision,
    /// The time by which leases end.
    pub clock: Arc<dyn Clock>,
    /// How the watches fare is said there.
    pub watches: Arc<Watches>,
}

impl KubernetesOptions {
    /// Those of a control plane in this namespace.
    pub fn new(namespace: &str, watches: Arc<Watches>) -> Self {
        let micros = u64::try_from(crate::unix_millis()).unwrap_or_default() * 1000;
        Self {
            namespace: namespace.to_owned(),
            kinds: KindApi::all(),
            accept,
            revision: micros + u64::from(crate::random::<1>()[0]),
            clock: Arc::<MonotonicClock>::default(),
            watches,
        }
    }
}

/// Why a document of the cluster would not be put in force, with the field, what was found and what is
/// allowed; nothing where it would.
pub fn refusal(kind: &str, object: DynamicObject) -> Option<String> {
    let (_key, entry) = object::read(kind, object)?;
    accept(&entry.value.document).err()
}

fn accept(document: &Value) -> Result<(), String> {
    let read = Document::from_value(document.clone());
    read.map(drop).map_err(|problems| {
        let problems = problems.iter();
        let texts: Vec<String> = problems
            .map(|p| format!("{}: found {}; allowed: {}", p.path, p.found, p.allowed))
            .collect();
        texts.join("; ")
    })
}

/// A document of the cluster as whoever writes its status has to see it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name.
    pub key: ResourceKey,
    /// How the cluster calls its kind.
    pub resource: ApiResource,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.generation`.
    pub generation: u64,
    /// The revision in which the document in force was seen to change.
    pub revision: Revision,
    /// Why it is not in force as it is: in a word, and in full.
    pub refused: Option<(&'static str, String)>,
    /// The document as it is in the cluster.
    pub document: Value,
    /// The status that it has.
    pub status: Value,
    /// What the cluster's definitions take away from it.
    pub definitions: DefinitionNotes,
}

/// A store on the API of a cluster.
pub struct KubernetesStore {
    shared: Arc<Shared>,
    leases: Arc<Leases>,
    jobs: mpsc::Sender<Job>,
    /// What feeds the mirror, and what writes.
    tasks: [JoinHandle<()>; 2],
}

/// A write that is to be made.
type Job = Box<dyn FnOnce(Arc<Writer>) -> BoxFuture<'static, ()> + Send>;

/// Makes writes, one after the other in the order of the calls, whoever still waits for them: what
/// calls has noted already what it writes down.
#[derive(Clone)]
struct Writer {
    shared: Arc<Shared>,
    leases: Arc<Leases>,
}

impl Writer {
    async fn keep(self: Arc<Self>, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.recv().await {
            job(Arc::clone(&self)).await;
        }
    }

    async fn fenced(&self, fence: Option<&Fence>) -> Result<(), StoreError> {
        match fence {
            None => Ok(()),
            Some(fence) => self.leases.check(fence).await,
        }
    }
}

impl fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = &self.shared.namespace;
        f.debug_tuple("KubernetesStore").field(namespace).finish()
    }
}

impl Drop for KubernetesStore {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What the tasks that feed the mirror share with the store.
struct Shared {
    client: Client,
    namespace: String,
    kinds: Vec<KindApi>,
    mirror: Mutex<Mirror>,
    events: EventLog,
    /// Kinds that the cluster has, and how it calls them.
    found: Mutex<BTreeMap<String, ApiResource>>,
    progress: watch::Sender<Progress>,
    /// Counts what the watch of records tells that was not known.
    records_of_others: watch::Sender<u64>,
    watches: Arc<Watches>,
    /// What definitions lack of what is read.
    lacking: Mutex<Lacking>,
}

/// What has been read since the start.
#[derive(Debug, Default, Clone)]
struct Progress {
    /// The cluster has said which kinds it has.
    discovered: bool,
    /// Watches that are to be listed.
    begun: BTreeSet<String>,
    /// Watches whose first list is done.
    listed: BTreeSet<String>,
}

impl Shared {
    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the cluster calls a kind, if it has it.
    fn resource(&self, kind: &str) -> Option<ApiResource> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(kind).cloned()
    }

    fn has_kind(&self, kind: &str, resource: ApiResource) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(kind.to_owned(), resource);
        drop(found);
        self.progress.send_modify(|progress| {
            progress.begun.insert(kind.to_owned());
        });
    }

    /// The cluster does not serve a kind any more: it has no documents of it. How many were in force.
    fn lacks_kind(&self, kind: &str) -> usize {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.remove(kind);
        drop(found);
        let mut mirror = self.mirror();
        let event = mirror.lacks(kind);
        let gone = event.as_ref().map_or(0, |event| event.changes.len());
        self.publish(&mut mirror, event);
        drop(mirror);
        // Nobody waits for its first list.
        self.progress.send_modify(|progress| {
            progress.begun.remove(kind);
        });
        gone
    }

    /// Whether documents of a kind were read.
    fn was_listed(&self, kind: &str) -> bool {
        self.progress.borrow().listed.contains(kind)
    }

    fn discovered(&self) {
        self.progress
            .send_modify(|progress| progress.discovered = true);
    }

    fn listed(&self, watch: &str) {
        self.progress.send_modify(|progress| {
            progress.listed.insert(watch.to_owned());
        });
    }

    /// Tells those who follow. Under the mirror's lock, so that events are in the order of revisions.
    fn publish(&self, _locked: &mut Mirror, event: Option<Event>) {
        if let Some(event) = event {
            self.events.append(event);
        }
    }
}

impl KubernetesStore {
    /// Opens it: it has read everything that the cluster has of the kinds that there are.
    pub async fn open(client: Client, options: KubernetesOptions) -> Result<Arc<Self>, StoreError> {
        let (progress, mut reading) = watch::channel(Progress::default());
        let seen = progress.subscribe();
        let shared = Arc::new(Shared {
            client: client.clone(),
            namespace: options.namespace.clone(),
            kinds: options.kinds,
            mirror: Mutex::new(Mirror::new(options.revision, options.accept)),
            events: EventLog::new(options.revision),
            found: Mutex::default(),
            progress,
            records_of_others: watch::Sender::new(0),
            watches: options.watches,
            lacking: Mutex::default(),
        });
        let leases = Leases::new(client, &options.namespace, options.clock);
        let writer = Arc::new(Writer {
            shared: Arc::clone(&shared),
            leases: Arc::new(leases),
        });
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let store = Arc::new(Self {
            leases: Arc::clone(&writer.leases),
            jobs,
            tasks: [
                tokio::spawn(watching::discover(Arc::clone(&shared))),
                tokio::spawn(writer.keep(waiting)),
            ],
            shared,
        });
        let whole = reading.wait_for(|progress| {
            let Progress {
                discovered,
                begun,
                listed,
            } = progress;
            *discovered && listed.contains(RECORDS) && begun.is_subset(listed)
        });
        // A control plane that knows no revocation lets nobody in: it waits, however long.
        let began = Instant::now();
        {
            let mut opened = std::pin::pin!(async {
                store.leases.open().await;
                whole.await.map(drop)
            });
            loop {
                if let Ok(opened) = timeout(SAY_AGAIN_AFTER, &mut opened).await {
                    opened.map_err(|_ended| StoreError::Closed)?;
                    break;
                }
                let known = seen.borrow().clone();
                let missing: Vec<_> = known.begun.difference(&known.listed).collect();
                let watches = store.shared.watches.notes(Instant::now()).join("; ");
                let seconds = began.elapsed().as_secs();
                tracing::warn!(
                    ?missing,
                    watches,
                    seconds,
                    "waits for the cluster's API, without which it lets nobody in: not everything was \
                     read"
                );
            }
        }
        // Whoever follows begins with a listing.
        let mirror = store.shared.mirror();
        store.shared.events.reset(mirror.revision());
        drop(mirror);
        Ok(store)
    }

    /// Documents of the cluster that are not in force as they are there.
    pub fn refused(&self) -> BTreeMap<ResourceKey, RefusedDocument> {
        self.shared.mirror().refused().clone()
    }

    /// Every document of the cluster, for whoever writes statuses.
    pub fn subjects(&self) -> Vec<Subject> {
        let mirror = self.shared.mirror();
        let subjects = mirror
            .standing()
            .filter_map(|(key, entry, refused, revision)| {
                let resource = self.shared.resource(&key.kind)?;
                Some(Subject {
                    key: key.clone(),
                    definitions: self.shared.notes(&key.kind, &resource),
                    resource,
                    version: entry.version.clone(),
                    generation: entry.value.generation,
                    revision,
                    refused: refused.map(|refused| (refused.word, refused.reason.clone())),
                    document: entry.value.document.clone(),
                    status: entry.value.status.clone(),
                })
            });
        subjects.collect()
    }

    /// Kinds of documents that the cluster does not have.
    pub fn missing_kinds(&self) -> Vec<KindApi> {
        let kinds = self.shared.kinds.iter();
        let missing = kinds.filter(|kind| self.shared.resource(&kind.kind).is_none());
        missing.cloned().collect()
    }

    /// Has a write made after those that wait already.
    fn queued<T, F>(
        &self,
        work: impl FnOnce(Arc<Writer>) -> F + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job = self.jobs.try_send(Box::new(move |writer| {
            Box::pin(async move {
                let _nobody_waits = answer.send(work(writer).await);
            })
        }));
        Box::pin(async move {
            match job {
                Ok(()) => answered.await.unwrap_or(Err(StoreError::Closed)),
                Err(mpsc::error::TrySendError::Full(_)) => Err(StoreError::Busy {
                    waiting: WAITING_MAX,
                }),
                Err(mpsc::error::TrySendError::Closed(_)) => Err(StoreError::Closed),
            }
        })
    }
}

impl Store for KubernetesStore {
    fn commit_fenced(
        &self,
        author: &str,
        changes: Vec<Change>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if changes.is_empty() && fence.is_none() {
            let revision = self.shared.mirror().revision();
            return Box::pin(ready(Ok(revision)));
        }
        if let Err(error) = check_changes(&changes) {
            return Box::pin(ready(Err(error)));
        }
        let author = author.to_owned();
        self.queued(async move |writer: Arc<Writer>| writer.make(&author, changes, fence).await)
    }

    fn get(&self, key: &ResourceKey) -> Result<Option<StoredResource>, StoreError> {
        Ok(self.shared.mirror().documents().get(key).cloned())
    }

    fn list(&self) -> Result<Listing, StoreError> {
        let mirror = self.shared.mirror();
        Ok(Listing {
            revision: mirror.revision(),
            resources: mirror.documents().values().cloned().collect(),
        })
    }

    fn count(&self) -> Result<usize, StoreError> {
        Ok(self.shared.mirror().documents().len())
    }

    fn events(&self, from: Revision) -> Events {
        self.shared.events.follow(from)
    }

    fn history(&self, _query: HistoryQuery) -> BoxFuture<'_, Result<HistoryPage, StoreError>> {
        Box::pin(ready(Err(StoreError::Unsupported(NO_HISTORY))))
    }

    fn at(
        &self,
        _revision: Revision,
    ) -> BoxFuture<'_, Result<BTreeMap<ResourceKey, HistoryEntry>, StoreError>> {
        Box::pin(ready(Err(StoreError::Unsupported(NO_HISTORY))))
    }

    fn write_fenced(
        &self,
        records: Vec<RecordWrite>,
        fence: Option<Fence>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.queued(async move |writer: Arc<Writer>| writer.put(records, fence).await)
    }

    fn records(&self, table: &'static str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let mirror = self.shared.mirror();
        let found = mirror.records.iter().filter(|((of, _), _)| of == table);
        let found = found.map(|((_, key), entry)| (key.clone(), entry.value.clone()));
        Ok(found.collect())
    }

    fn lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Lease, StoreError>> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        Box::pin(async move { self.leases.acquire(&name, &holder, ttl).await })
    }

    fn renew(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>> {
        let lease = lease.clone();
        Box::pin(async move { self.leases.renew(&lease).await })
    }

    fn release(&self, lease: &Lease) -> BoxFuture<'_, Result<(), StoreError>> {
        let lease = lease.clone();
        Box::pin(async move { self.leases.release(&lease).await })
    }

    fn snapshot(&self, _sink: &mut SnapshotSink<'_>) -> Result<(), StoreError> {
        Err(StoreError::Unsupported(NO_SNAPSHOT))
    }

    fn positions(&self) -> Vec<Arc<Position>> {
        self.shared.mirror().positions()
    }

    fn changed_in(&self, revision: Revision) -> Vec<(ResourceKey, u64)> {
        let mirror = self.shared.mirror();
        let documents = mirror.documents().values();
        let changed = documents.filter(|document| document.revision == revision);
        changed
            .map(|document| (document.key.clone(), document.generation))
            .collect()
    }

    fn refusals(&self) -> Arc<Refusals> {
        self.shared.mirror().refusals()
    }

    fn watch_records(&self) -> watch::Receiver<u64> {
        self.shared.records_of_others.subscribe()
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.shared.events.watch()
    }
}

/// A request to the API within its time.
async fn asked<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match timeout(REQUEST_MAX, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Failure(Some(Box::new(error)))),
        Err(_elapsed) => Err(Failure(None)),
    }
}

/// Why the API did not do what it was asked; nothing where it did not answer in time.
#[derive(Debug)]
struct Failure(Option<Box<kube::Error>>);

impl Failure {
    fn status(&self) -> Option<&kube::core::Status> {
        let Some(kube::Error::Api(status)) = self.0.as_deref() else {
            return None;
        };
        Some(status)
    }

    fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// Another writer was faster: what was read is not what is there.
    fn is_conflict(&self) -> bool {
        self.status()
            .is_some_and(|status| status.is_conflict() || status.is_already_exists())
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match (failure.status(), &failure.0) {
            (Some(status), _) => Self::Cluster {
                cause: status.message.clone(),
            },
            (None, Some(error)) => Self::ClusterUncertain { cause: told(error) },
            (None, None) => Self::ClusterUncertain {
                cause: format!("no answer within {REQUEST_MAX:?}"),
            },
        }
    }
}
