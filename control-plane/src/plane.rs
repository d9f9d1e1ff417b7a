//! The living state: what was asked for, and what follows from it together with who is there.

mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tonic::{Request, Status};
use weft_core::model::{Cidr, MeshConfig};
use weft_core::name::ServiceName;

use crate::budget::StreamKind;
use crate::compile::{Assigned, Compiled, VirtualAddresses, compile};
use crate::identity::Identities;
use crate::model::{ObjectName, ResourceKey, TrafficPolicySpec};
use crate::peers::{LiveStream, Peers};
use crate::registry::{Entry, Observations, Registrations};
use crate::store::{
    Change, Listing, Revision, Store, StoreError, StoredResource, read_records, record,
};
use crate::tls::PeerIdentity;
use crate::{unix_millis, unix_seconds};

use wanted::Wanted;

/// The table of the store.
const ADDRESSES: &str = "address";

/// Leaving waits this long for everybody to know.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// In a storm of changes, compilations are at least this far apart.
const COMPILE_PAUSE: Duration = Duration::from_millis(20);
/// How often observations are looked through for those whose streams have ended.
const FORGET_EVERY: Duration = Duration::from_millis(250);

/// What the control plane was started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a workload without a stream is kept.
    pub grace: Duration,
    /// Ranges of workloads' own addresses.
    pub workload_ranges: Vec<Cidr>,
}

/// A proxy's discovery stream, as others see it.
#[derive(Debug, Clone)]
pub struct ProxyView {
    /// Who it is.
    pub peer: PeerIdentity,
    /// Its version.
    pub version: String,
    /// Since when, milliseconds.
    pub since: i64,
    /// The compilation up to which it has acknowledged everything.
    pub applied_generation: u64,
    /// The store's revision in that.
    pub applied_revision: Revision,
    /// Resources that it holds.
    pub holds: usize,
    /// Resources that it rejected, with the reason.
    pub rejected: BTreeMap<String, String>,
}

/// The control plane's state.
#[derive(Debug)]
pub struct Plane {
    store: Arc<dyn Store>,
    identities: Arc<Identities>,
    registrations: Arc<Registrations>,
    observations: Arc<Observations>,
    settings: Settings,
    state: Mutex<State>,
    compiled: ArcSwap<Compiled>,
    dirty: watch::Sender<u64>,
    published: watch::Sender<u64>,
    covered: watch::Sender<Covered>,
    proxies: Mutex<HashMap<u64, ProxyView>>,
    /// Counters for metrics.
    pub counters: Counters,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Responses pushed.
    pub pushes: AtomicU64,
    /// Responses acknowledged.
    pub acks: AtomicU64,
    /// Responses rejected.
    pub nacks: AtomicU64,
}

/// Which changes are in which compilation.
#[derive(Debug, Clone, Copy, Default)]
struct Covered {
    change: u64,
    generation: u64,
}

#[derive(Debug, Default)]
struct State {
    addresses: VirtualAddresses,
    /// Addresses that could not be written down yet.
    unsaved: BTreeMap<ServiceName, Assigned>,
    wanted: Wanted,
    revision: Revision,
}

/// What would be.
#[derive(Debug)]
pub struct Preview {
    /// What sidecars would be told.
    pub compiled: Compiled,
    /// Policies, the oldest first.
    pub policies: Vec<(ObjectName, TrafficPolicySpec)>,
}

impl Plane {
    /// Takes up what the store holds.
    pub fn open(
        store: Arc<dyn Store>,
        identities: Arc<Identities>,
        registrations: Arc<Registrations>,
        settings: Settings,
    ) -> Result<Arc<Self>, StoreError> {
        let addresses = read_records::<Assigned>(&*store, ADDRESSES)?.into_iter();
        let addresses =
            addresses.filter_map(|(name, assigned)| Some((name.parse().ok()?, assigned)));
        let state = State {
            addresses: VirtualAddresses::restore(addresses),
            ..State::default()
        };
        let plane = Arc::new(Self {
            store,
            identities,
            registrations,
            observations: Arc::default(),
            settings,
            state: Mutex::new(state),
            compiled: ArcSwap::default(),
            dirty: watch::Sender::new(0),
            published: watch::Sender::new(0),
            covered: watch::Sender::default(),
            proxies: Mutex::default(),
            counters: Counters::default(),
        });
        plane.load_documents()?;
        Ok(plane)
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Who is who.
    pub fn identities(&self) -> &Arc<Identities> {
        &self.identities
    }

    /// Who is there.
    pub fn registrations(&self) -> &Arc<Registrations> {
        &self.registrations
    }

    /// What sidecars see.
    pub fn observations(&self) -> &Arc<Observations> {
        &self.observations
    }

    /// What it was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What sidecars are told now.
    pub fn compiled(&self) -> Arc<Compiled> {
        self.compiled.load_full()
    }

    /// Changes with every compilation.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Who is connected, and what each of them uses.
    pub fn peers(&self) -> &Arc<Peers> {
        self.registrations.peers()
    }

    /// A number for a stream.
    pub fn next_stream(&self) -> u64 {
        self.peers().next_number()
    }

    /// Begins a standing stream for the peer that makes a request; the error is for the peer.
    pub fn open_stream<T>(
        &self,
        request: &Request<T>,
        kind: StreamKind,
    ) -> Result<(PeerIdentity, LiveStream), Status> {
        self.peers().open_stream(&self.identities, request, kind)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed, and the state shows it already; the number of the change.
    fn touch(&self) -> u64 {
        let mut number = 0;
        self.dirty.send_modify(|count| {
            *count += 1;
            number = *count;
        });
        number
    }

    fn load_documents(&self) -> Result<(), StoreError> {
        let Listing {
            revision,
            resources,
        } = self.store.list()?;
        let wanted = Wanted::read(resources);
        let mut state = self.state();
        state.wanted = wanted;
        state.revision = revision;
        drop(state);
        self.touch();
        Ok(())
    }

    /// Compiles whenever something changed: at once when it is quiet, in a storm every 20 ms.
    /// Runs until the task is dropped.
    pub async fn keep_compiled(self: Arc<Self>) {
        let mut dirty = self.dirty.subscribe();
        let mut stored = self.store.watch();
        let mut revoked = self.identities.watch_revoked();
        let mut forget = tokio::time::interval(FORGET_EVERY);
        self.compile_now().await;
        loop {
            tokio::select! {
                Ok(()) = dirty.changed() => {}
                // What changed is read again as a whole.
                _changes = self.registrations.changes().take() => {}
                Ok(()) = revoked.changed() => {}
                Ok(()) = stored.changed() => {
                    if let Err(error) = self.load_documents() {
                        tracing::error!(%error, "resources not read");
                    }
                }
                _ = forget.tick() => {
                    self.observations.forget();
                    continue;
                }
            }
            self.compile_now().await;
            tokio::time::sleep(COMPILE_PAUSE).await;
        }
    }

    async fn compile_now(&self) {
        // Read first: what changes from here on is in the next compilation at the latest.
        let change = *self.dirty.borrow();
        let (compiled, unsaved) = self.compile();
        if !unsaved.is_empty() {
            let records = unsaved
                .iter()
                .map(|(name, assigned)| record(ADDRESSES, &name.to_string(), Some(assigned)));
            match self.store.write(records.collect()).await {
                Ok(()) => {
                    let mut state = self.state();
                    state
                        .unsaved
                        .retain(|name, now| unsaved.get(name) != Some(now));
                }
                // Endpoints that left must not stay because of a full disk. A name's addresses
                // follow from the name, so a restart gives it the same ones.
                Err(error) => {
                    tracing::error!(%error, "virtual addresses not kept; tried again with the next change");
                }
            }
        }
        let generation = compiled.generation;
        self.compiled.store(Arc::new(compiled));
        self.published.send_replace(generation);
        self.covered.send_replace(Covered { change, generation });
    }

    /// The world of now, with the addresses that are still to be written down.
    fn compile(&self) -> (Compiled, BTreeMap<ServiceName, Assigned>) {
        let mut state = self.state();
        let entries: Vec<Entry> = self.registrations.entries();
        let config = self.mesh_config(&state);
        let bundle = self.identities.bundle();
        let mut addresses = std::mem::take(&mut state.addresses);
        let names = state.wanted.names(&entries);
        let names: BTreeSet<ServiceName> = names.into_iter().cloned().collect();
        let changed = addresses.assign(&names, unix_seconds());
        let world = state.wanted.world(&entries, &addresses, &config, &bundle);
        let compiled = compile(world, &self.compiled.load(), state.revision);
        state.addresses = addresses;
        state.unsaved.extend(changed);
        (compiled, state.unsaved.clone())
    }

    /// What sidecars would be told after these changes, with the policies of then; nothing changes.
    pub fn preview(&self, changes: &[Change]) -> Result<Preview, StoreError> {
        let now = unix_millis();
        let mut resources: BTreeMap<ResourceKey, StoredResource> = BTreeMap::new();
        for resource in self.store.list()?.resources {
            resources.insert(resource.key.clone(), resource);
        }
        for change in changes {
            let key = &change.key;
            let Some(document) = &change.document else {
                resources.remove(key);
                continue;
            };
            let before = resources.get(key);
            let resource = StoredResource {
                key: key.clone(),
                revision: 0,
                created: before.map_or(now, |before| before.created),
                changed: now,
                author: String::new(),
                digest: String::new(),
                generation: before.map_or(0, |before| before.generation) + 1,
                document: document.clone(),
            };
            resources.insert(key.clone(), resource);
        }
        let wanted = Wanted::read(resources.into_values().collect());
        let state = self.state();
        let entries: Vec<Entry> = self.registrations.entries();
        let mut addresses = state.addresses.clone();
        let mut config = self.mesh_config(&state);
        config.unknown_destinations = wanted.config.unknown_destinations;
        let bundle = self.identities.bundle();
        drop(state);
        addresses.assign(wanted.names(&entries), unix_seconds());
        let world = wanted.world(&entries, &addresses, &config, &bundle);
        let compiled = compile(world, &self.compiled.load(), 0);
        Ok(Preview {
            compiled,
            policies: wanted.policies,
        })
    }

    /// Policies that were asked for, the oldest first.
    pub fn policies(&self) -> Vec<(ObjectName, TrafficPolicySpec)> {
        self.state().wanted.policies.clone()
    }

    fn mesh_config(&self, state: &State) -> MeshConfig {
        let more = state.wanted.config.workload_ranges.iter();
        let more = more.filter_map(|text| Cidr::parse(text));
        MeshConfig {
            trust_domain: self.identities.signer().trust_domain().clone(),
            virtual_ranges: virtual_ranges(),
            workload_ranges: self
                .settings
                .workload_ranges
                .iter()
                .copied()
                .chain(more)
                .collect(),
            unknown_destinations: state.wanted.config.unknown_destinations,
            // What of the outside is known is compiled.
            external_hosts: Vec::new(),
            external_addresses: Vec::new(),
        }
    }

    /// Waits until every sidecar knows what has changed until now; false when that takes too long.
    pub async fn all_know(&self) -> bool {
        let change = self.touch();
        let mut covered = self.covered.subscribe();
        let known = async {
            let covered = covered.wait_for(|covered| covered.change >= change).await;
            let Ok(goal) = covered.map(|covered| covered.generation) else {
                return;
            };
            while !self.all_applied(goal) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LEAVE_MAX, known).await.is_ok()
    }

    fn all_applied(&self, generation: u64) -> bool {
        let proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        proxies.values().all(|p| p.applied_generation >= generation)
    }

    // --- Proxies.

    /// Notes how far a proxy has come; `None` when its stream has ended.
    pub fn note_proxy(&self, stream: u64, view: Option<ProxyView>) {
        let mut proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        match view {
            Some(view) => {
                proxies.insert(stream, view);
            }
            None => {
                proxies.remove(&stream);
            }
        }
    }

    /// Every connected proxy.
    pub fn proxies(&self) -> Vec<ProxyView> {
        let proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        newest(&proxies, |view| &view.peer)
    }
}

/// What each instance said on its newest stream, in the order of instances: one that moves to
/// another connection has two for a moment.
fn newest<T: Clone>(by_stream: &HashMap<u64, T>, peer: impl Fn(&T) -> &PeerIdentity) -> Vec<T> {
    let mut newest: BTreeMap<&str, (u64, &T)> = BTreeMap::new();
    for (stream, said) in by_stream {
        let held = newest
            .entry(&peer(said).instance)
            .or_insert((*stream, said));
        if held.0 < *stream {
            *held = (*stream, said);
        }
    }
    let newest = newest.into_values();
    newest.map(|(_stream, said)| said.clone()).collect()
}

/// Ranges of the services' virtual addresses.
pub fn virtual_ranges() -> Vec<Cidr> {
    let ranges = ["240.240.0.0/16", "fd77:6566:7400:1::/64"];
    ranges.into_iter().filter_map(Cidr::parse).collect()
}
