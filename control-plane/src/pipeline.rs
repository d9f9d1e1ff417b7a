//! The one place where facts change: takes what the sources see, compiles what depends on it and
//! publishes it. Everybody else reads snapshots.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use weft_core::model::{Cidr, MeshConfig, Registration};
use weft_core::name::{ServiceName, TrustDomain};
use weft_proto::resource::Kind;

use crate::compile::{Changes, Snapshot};
use crate::health::Pulse;
use crate::publish::Publisher;
use crate::registry::{Departed, Departures};
use crate::sources::{ADDRESSES, Batch, Source, read_assigned};
use crate::store::{Revision, Store, StoreError, record};
use crate::unix_seconds;
use crate::world::World;
use crate::world::addresses::VirtualAddresses;
use crate::world::cluster::SERVICE_SLICES_MAX;
use crate::world::dirty::Dirty;

/// A workload that leaves waits this long for those whom it concerns to know.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// Facts that are taken before other tasks get their turn.
const FACTS_AT_ONCE: usize = 1000;
/// How often the pipeline tries again to write down addresses that could not be written, and shows
/// that it lives where nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far the pipeline has come.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// The registry's last change that is published.
    registered: u64,
    /// The compilation that it is in, or an older one.
    generation: u64,
    /// The store's revision in that compilation.
    revision: Revision,
}

/// Owns the world and what is compiled of it.
#[derive(Debug)]
pub struct Pipeline {
    store: Arc<dyn Store>,
    publisher: Arc<Publisher>,
    snapshot: ArcSwap<Snapshot>,
    progress: watch::Sender<Progress>,
    /// Whether every source has handed out what there was to begin with.
    complete: watch::Sender<bool>,
    pulse: Arc<Pulse>,
    /// Names whose virtual addresses are not written down yet.
    unsaved: Mutex<BTreeSet<ServiceName>>,
}

impl Pipeline {
    /// Takes up what the sources have to begin with. `cluster` is the control plane's own namespace,
    /// where it looks after a cluster.
    pub fn open(
        store: Arc<dyn Store>,
        publisher: Arc<Publisher>,
        settings: MeshConfig,
        cluster: Option<&str>,
        sources: &mut [Box<dyn Source>],
    ) -> Result<Arc<Self>, StoreError> {
        let assigned = read_assigned(&*store)?;
        let (addresses, dropped) = VirtualAddresses::restore(assigned);
        let bundle = weft_core::model::TrustBundle {
            trust_domain: settings.trust_domain.clone(),
            roots: Vec::new(),
            revoked_instances: BTreeSet::new(),
        };
        let now = unix_seconds();
        let world = World::new(settings, bundle, addresses);
        let mut snapshot = Snapshot::new(match cluster {
            Some(namespace) => world.in_cluster(namespace),
            None => world,
        });
        let mut progress = Progress::default();
        let mut deltas = Vec::new();
        for source in sources.iter_mut() {
            let batch = source.start()?;
            deltas.extend(batch.deltas);
            progress.registered = batch.registered.unwrap_or(progress.registered);
            if let Some(revision) = batch.revision {
                snapshot.compiled.revision = revision;
            }
        }
        let (changes, records) = snapshot.apply(deltas, now);
        let released = snapshot.release_unused(now);
        let unsaved = dropped.into_iter().chain(records).chain(released);
        progress.generation = snapshot.compiled.generation;
        progress.revision = snapshot.compiled.revision;
        publisher.publish(&snapshot.compiled, &changes.names);
        let pipeline = Self {
            store,
            publisher,
            snapshot: ArcSwap::from_pointee(snapshot),
            progress: watch::Sender::new(progress),
            complete: watch::Sender::new(is_complete(sources)),
            pulse: Arc::default(),
            unsaved: Mutex::new(unsaved.map(|(name, _)| name).collect()),
        };
        pipeline.count(&changes);
        Ok(Arc::new(pipeline))
    }

    /// The world and what sidecars are told of it, as of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Waits until every commit up to a revision of the store is published; the world of then.
    pub async fn at_least(&self, revision: Revision) -> Arc<Snapshot> {
        let mut progress = self.progress.subscribe();
        // It does not fail: the sender is our own.
        let _reached = progress
            .wait_for(|progress| progress.revision >= revision)
            .await;
        self.snapshot()
    }

    /// Waits until every source has handed out what there was to begin with. Before that sidecars must
    /// not be told anything.
    pub async fn complete(&self) {
        let mut complete = self.complete.subscribe();
        // It does not fail: the sender is our own.
        let _reached = complete.wait_for(|complete| *complete).await;
    }

    /// Beats whenever it was looked for changes.
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Follows the sources. Runs until the task is dropped; returns when a source has failed.
    pub async fn run(self: Arc<Self>, mut sources: Vec<Box<dyn Source>>) -> StoreError {
        self.save(&self.snapshot()).await;
        // It goes on while batches come: otherwise a mesh that never rests is never looked after.
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.pulse.beat();
            let batches = tokio::select! {
                batches = next_batches(&mut sources) => batches,
                _ = look.tick() => {
                    self.save(&self.snapshot()).await;
                    continue;
                }
            };
            for batch in batches {
                match batch {
                    Ok(batch) => self.take(batch).await,
                    Err(error) => return error,
                }
            }
            let complete = is_complete(&sources);
            self.complete.send_if_modified(|was| {
                let became = complete && !*was;
                *was |= complete;
                became
            });
        }
    }

    async fn take(&self, batch: Batch) {
        let before = self.snapshot.load_full();
        let mut snapshot = Snapshot::clone(&before);
        let (mut dirty, mut at_once) = (Dirty::default(), 0);
        let now = unix_seconds();
        for delta in batch.deltas {
            at_once += delta.weight();
            snapshot.world.apply(delta, now, &mut dirty);
            if at_once >= FACTS_AT_ONCE {
                at_once = 0;
                tokio::task::yield_now().await;
            }
        }
        let (changes, records) = snapshot.compile(dirty);
        for (service, left_out) in snapshot.world.partial() {
            if !before.world.is_partial(service) {
                tracing::warn!(
                    %service,
                    left_out,
                    used = SERVICE_SLICES_MAX,
                    "a service has more EndpointSlices than are used: some of its endpoints get no requests"
                );
            }
        }
        if let Some(revision) = batch.revision {
            snapshot.compiled.revision = revision;
        }
        if !records.is_empty() {
            self.unsaved()
                .extend(records.into_iter().map(|(name, _)| name));
            // Before anybody is told of an address, so that a restart gives no other name the same.
            self.save(&snapshot).await;
        }
        self.count(&changes);
        let snapshot = Arc::new(snapshot);
        self.snapshot.store(Arc::clone(&snapshot));
        let compiled = &snapshot.compiled;
        self.publisher.publish(compiled, &changes.names);
        self.progress.send_modify(|progress| {
            progress.generation = compiled.generation;
            progress.revision = compiled.revision;
            progress.registered = batch.registered.unwrap_or(progress.registered);
        });
    }

    fn count(&self, changes: &Changes) {
        let counters = &self.publisher.counters;
        let counted = [
            (&counters.compiled, changes.compiled),
            (&counters.changed, changes.changed),
        ];
        for (counter, many) in counted {
            counter.fetch_add(many, Ordering::Relaxed);
        }
    }

    fn unsaved(&self) -> std::sync::MutexGuard<'_, BTreeSet<ServiceName>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down virtual addresses, as they are now: what was to be written while the store could not
    /// be reached may have given way to somebody else's record. Endpoints that left must not stay because
    /// of a full disk: a failure is told, and tried again. A name's addresses follow from the name, so a
    /// restart meanwhile gives it the same ones, as a rule.
    async fn save(&self, snapshot: &Snapshot) {
        let names = self.unsaved().clone();
        if names.is_empty() {
            return;
        }
        let write = |name: &ServiceName| {
            let assigned = snapshot.world.address_record(name);
            record(ADDRESSES, &name.to_string(), assigned.as_ref())
        };
        match self.store.write(names.iter().map(write).collect()).await {
            Ok(()) => self.unsaved().retain(|name| !names.contains(name)),
            Err(error) => tracing::error!(%error, "virtual addresses not kept; tried again"),
        }
    }
}

impl Departures for Pipeline {
    /// Waits until every sidecar that asked for a service or an address of a workload knows that it
    /// has left; false when that took too long.
    fn told(&self, departed: Departed) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let registration = &departed.entry.registration;
            let mut progress = self.progress.subscribe();
            let known = async {
                let is_published = |progress: &Progress| progress.registered >= departed.change;
                let Ok(published) = progress.wait_for(is_published).await.map(|p| *p) else {
                    return;
                };
                let concerned = self.publisher.subscribers(&self.names_of(registration));
                let generation = published.generation;
                self.publisher.applied(&concerned, generation).await;
            };
            tokio::time::timeout(LEAVE_MAX, known).await.is_ok()
        })
    }
}

impl Pipeline {
    /// Every name under which a workload, or a service of its, may have been asked for. The service
    /// may be gone together with its last workload.
    fn names_of(&self, registration: &Registration) -> BTreeSet<(Kind, Arc<str>)> {
        let snapshot = self.snapshot.load();
        let mut names = BTreeSet::new();
        for service in &registration.services {
            let addresses = snapshot.world.addresses_of(service);
            let addresses = addresses.iter().map(ToString::to_string);
            let all = addresses.chain([service.to_string(), service.hostname()]);
            names.extend(all.map(|name| (Kind::Service, name.into())));
        }
        let own = registration.addresses.iter().map(ToString::to_string);
        let own = own.chain([registration.workload.to_string()]);
        names.extend(own.map(|name| (Kind::Workload, name.into())));
        names
    }
}

fn is_complete(sources: &[Box<dyn Source>]) -> bool {
    sources.iter().all(|source| source.is_complete())
}

/// Waits until a source has a batch, and takes one of each source that has, in the order of the
/// sources: a source that always has another keeps none of the others waiting.
async fn next_batches(sources: &mut [Box<dyn Source>]) -> Vec<Result<Batch, StoreError>> {
    let mut next: Vec<_> = sources.iter_mut().map(|source| source.next()).collect();
    std::future::poll_fn(|context| {
        let mut ready = Vec::new();
        for batch in &mut next {
            if let Poll::Ready(batch) = batch.as_mut().poll(context) {
                ready.push(batch);
            }
        }
        match ready.is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(ready),
        }
    })
    .await
}

/// The mesh's settings as the control plane was started with them.
pub fn settings(
    trust_domain: TrustDomain,
    virtual_ranges: Vec<Cidr>,
    workload_ranges: Vec<Cidr>,
) -> MeshConfig {
    MeshConfig {
        trust_domain,
        virtual_ranges,
        workload_ranges,
        unknown_destinations: Default::default(),
        // What of the outside is known is compiled.
        external_hosts: Vec::new(),
        external_addresses: Vec::new(),
    }
}

/// Ranges of the services' virtual addresses.
pub fn virtual_ranges() -> Vec<Cidr> {
    let ranges = ["240.240.0.0/16", "fd77:6566:7400:1::/64"];
    ranges.into_iter().filter_map(Cidr::parse).collect()
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
