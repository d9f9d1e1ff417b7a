//! The living state: who is there, what was asked for, and what follows from it. One lock around
//! plain machines; every change is durable before it shows.

mod live;
mod observed;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use weft_core::model::{Cidr, MeshConfig, ObservedBreaker, Registration, TrustBundle};
use weft_core::name::{ServiceName, SpiffeId};

use crate::compile::{Assigned, Compiled, VirtualAddresses, compile};
use crate::identity::ca::{self, Authority, CaError, SignedLeaf};
use crate::identity::operator::{self, OperatorRecord};
use crate::identity::token::{
    self, Binding, InstanceRecord, Redeemed, Redemption, TokenError, TokenRecord,
};
use crate::model::{ObjectName, ResourceKey, TrafficPolicySpec};
use crate::registry::{Entry, Refused, Registry, check_binding, check_values};
use crate::store::{
    Change, RecordExpect, RecordWrite, Revision, Store, StoreError, StoredResource, read_records,
};
use crate::tls::PeerIdentity;
use crate::{random, sha256_hex, unix_millis, unix_seconds};

use observed::Observations;
use wanted::Wanted;

pub use live::{LiveStream, LiveStreams};
pub use observed::ObservedView;

/// Tables of the store.
const TOKENS: &str = "token";
const INSTANCES: &str = "instance";
const OPERATORS: &str = "operator";
const ENTRIES: &str = "registration";
const ADDRESSES: &str = "address";

/// Signatures per second, and in one burst.
const SIGN_PER_SECOND: f64 = 50.0;
const SIGN_BURST: f64 = 200.0;
/// Leaving waits this long for everybody to know.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// A registration's stream whose place another one of its instance has taken ends after this long.
const SUPERSEDED_KEPT: Duration = Duration::from_secs(2);
/// In a storm of changes, compilations are at least this far apart.
const COMPILE_PAUSE: Duration = Duration::from_millis(20);
/// How often the registry is looked through for those whose grace is over.
const EXPIRE_EVERY: Duration = Duration::from_millis(250);
/// A redeemed or expired token is forgotten after this long, seconds.
const TOKEN_KEPT: i64 = 24 * 3600;

/// What the control plane was started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Life of a leaf.
    pub leaf_ttl: Duration,
    /// How long a workload without a stream is kept.
    pub grace: Duration,
    /// Ranges of workloads' own addresses.
    pub workload_ranges: Vec<Cidr>,
}

/// Why something is not done.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The registration is refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The credential is refused.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Not kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not signed.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Too many signatures are asked for.
    #[error("too many certificates are asked for at once; try again in a second")]
    RateLimited,
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// What a signature is asked for with.
#[derive(Debug)]
pub enum Credential {
    /// The text of a join token.
    JoinToken(String),
    /// The text of an instance key.
    InstanceKey(String),
    /// A certificate shown on the connection.
    Certificate(PeerIdentity),
}

/// A signature with all that belongs to it.
#[derive(Debug)]
pub struct Signed {
    /// The certificate.
    pub leaf: SignedLeaf,
    /// Whom it names.
    pub identity: SpiffeId,
    /// The instance.
    pub instance: String,
    /// What the instance may do.
    pub binding: Binding,
    /// The instance key, with the first certificate.
    pub instance_key: Option<String>,
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

/// Live streams of observations of one instance: one that moves to another connection has two for
/// a moment.
const OBSERVING_MAX: usize = 2;

/// The control plane's state.
#[derive(Debug)]
pub struct Plane {
    store: Arc<dyn Store>,
    authority: Authority,
    settings: Settings,
    state: Mutex<State>,
    compiled: ArcSwap<Compiled>,
    dirty: watch::Sender<u64>,
    published: watch::Sender<u64>,
    covered: watch::Sender<Covered>,
    revoked: watch::Sender<u64>,
    proxies: Mutex<HashMap<u64, ProxyView>>,
    observed: Mutex<Observations>,
    observing: Arc<LiveStreams>,
    registering: Arc<LiveStreams>,
    streams: AtomicU64,
    signing: Mutex<(f64, i64)>,
    /// Counters for metrics.
    pub counters: Counters,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Certificates signed.
    pub signed: AtomicU64,
    /// Signatures refused.
    pub sign_refused: AtomicU64,
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
    registry: Registry,
    tokens: HashMap<String, TokenRecord>,
    instances: HashMap<String, InstanceRecord>,
    operators: HashMap<String, OperatorRecord>,
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
        authority: Authority,
        settings: Settings,
    ) -> Result<Arc<Self>, PlaneError> {
        let entries = read_records::<Entry>(&*store, ENTRIES)?.into_iter();
        let entries = entries.map(|(_, entry)| entry);
        let addresses = read_records::<Assigned>(&*store, ADDRESSES)?.into_iter();
        let addresses =
            addresses.filter_map(|(name, assigned)| Some((name.parse().ok()?, assigned)));
        let grace = millis(settings.grace);
        let state = State {
            registry: Registry::restore(entries.collect(), unix_millis(), grace),
            tokens: read_records(&*store, TOKENS)?.into_iter().collect(),
            instances: read_records(&*store, INSTANCES)?.into_iter().collect(),
            operators: read_records(&*store, OPERATORS)?.into_iter().collect(),
            addresses: VirtualAddresses::restore(addresses),
            ..State::default()
        };
        let plane = Arc::new(Self {
            store,
            authority,
            settings,
            state: Mutex::new(state),
            compiled: ArcSwap::default(),
            dirty: watch::Sender::new(0),
            published: watch::Sender::new(0),
            covered: watch::Sender::default(),
            revoked: watch::Sender::new(0),
            proxies: Mutex::default(),
            observed: Mutex::default(),
            observing: Arc::default(),
            registering: Arc::default(),
            streams: AtomicU64::new(1),
            signing: Mutex::new((SIGN_BURST, unix_millis())),
            counters: Counters::default(),
        });
        plane.load_documents()?;
        Ok(plane)
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
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

    /// A number for a stream.
    pub fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
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
        let listing = self.store.list()?;
        let wanted = Wanted::read(listing.resources);
        let mut state = self.state();
        state.wanted = wanted;
        state.revision = listing.revision;
        drop(state);
        self.touch();
        Ok(())
    }

    /// Compiles whenever something changed: at once when it is quiet, in a storm every 20 ms.
    /// Runs until the task is dropped.
    pub async fn keep_compiled(self: Arc<Self>) {
        let mut dirty = self.dirty.subscribe();
        let mut stored = self.store.watch();
        let mut expire = tokio::time::interval(EXPIRE_EVERY);
        self.compile_now().await;
        loop {
            tokio::select! {
                Ok(()) = dirty.changed() => {}
                Ok(()) = stored.changed() => {
                    if let Err(error) = self.load_documents() {
                        tracing::error!(%error, "resources not read");
                    }
                }
                _ = expire.tick() => {
                    self.expire().await;
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
        let entries: Vec<Entry> = state.registry.iter().cloned().collect();
        let config = self.mesh_config(&state);
        let bundle = self.bundle(&state);
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
            let Change { key, document, .. } = change;
            let Some(document) = document else {
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
        let entries: Vec<Entry> = state.registry.iter().cloned().collect();
        let mut addresses = state.addresses.clone();
        let mut config = self.mesh_config(&state);
        config.unknown_destinations = wanted.config.unknown_destinations;
        let bundle = self.bundle(&state);
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
            trust_domain: self.authority.trust_domain().clone(),
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

    fn bundle(&self, state: &State) -> TrustBundle {
        let now = unix_seconds();
        let revoked = state.instances.values();
        let revoked = revoked.filter(|i| i.revoked.is_some() && i.last_not_after > now);
        TrustBundle {
            trust_domain: self.authority.trust_domain().clone(),
            roots: vec![self.authority.root().to_vec()],
            revoked_instances: revoked.map(|i| i.instance.clone()).collect(),
        }
    }

    // --- Registry.

    /// Begins a stream of registrations of an instance. It is over once another one of the instance
    /// has taken its place.
    pub fn begin_registering(&self, peer: &PeerIdentity) -> LiveStream {
        let stream = self.next_stream();
        self.registering.begin(&peer.instance, stream, usize::MAX)
    }

    /// How long a stream whose place was taken is left to end by itself: the sidecar that moves to
    /// another connection ends it as soon as it has heard of that. Shorter than the grace, in which
    /// a sidecar that did not move has to register anew.
    pub fn superseded_kept(&self) -> Duration {
        SUPERSEDED_KEPT.min(self.settings.grace / 2)
    }

    /// Takes a registration of an instance; durable when it answers.
    pub async fn register(
        &self,
        peer: &PeerIdentity,
        stream: u64,
        registration: Registration,
    ) -> Result<u64, PlaneError> {
        let entry = Entry {
            instance: Arc::clone(&peer.instance),
            identity: peer.identity.clone(),
            registration,
            stream: Some(stream),
            expires: 0,
        };
        let name = entry.registration.workload.clone();
        let written = {
            let state = self.state();
            self.may_register(&state, &entry)?;
            let record = record(ENTRIES, &name.to_string(), Some(&entry));
            self.store.write(vec![record])
        };
        written.await?;
        if let Err(refused) = self.put(entry) {
            // The record is not ours: what is registered under the name is written once more.
            let kept = {
                let state = self.state();
                let kept = state.registry.get(&name);
                self.store
                    .write(vec![record(ENTRIES, &name.to_string(), kept)])
            };
            kept.await?;
            return Err(refused);
        }
        self.touch();
        Ok(self.compiled.load().generation + 1)
    }

    /// Another one may have come, or this one may have been revoked, while it was written.
    fn put(&self, entry: Entry) -> Result<(), PlaneError> {
        let mut state = self.state();
        self.may_register(&state, &entry)?;
        let instance = Arc::clone(&entry.instance);
        let older = state.registry.put(entry);
        drop(state);
        if let Some(older) = older {
            self.registering.end(&instance, older);
        }
        Ok(())
    }

    fn may_register(&self, state: &State, entry: &Entry) -> Result<(), PlaneError> {
        let instance = state.instances.get(&*entry.instance);
        let instance = instance.ok_or(TokenError::UnknownInstance)?;
        if instance.revoked.is_some() {
            return Err(TokenError::Revoked(instance.instance.clone()).into());
        }
        check_binding(&instance.binding, &entry.registration)?;
        check_values(&entry.registration, &virtual_ranges())?;
        let stream = entry.stream.unwrap_or_default();
        let registration = &entry.registration;
        Ok(state
            .registry
            .check(&entry.instance, stream, registration)?)
    }

    /// A registration's stream has ended: its grace begins.
    pub fn disconnected(&self, stream: u64) {
        let grace = millis(self.settings.grace);
        self.state()
            .registry
            .handle_disconnect(stream, unix_millis(), grace);
    }

    /// Takes out what a stream registered and waits until every sidecar knows; false when that
    /// took too long.
    pub async fn leave(&self, stream: u64) -> bool {
        let (change, written) = {
            let mut state = self.state();
            let grace = millis(self.settings.grace);
            let removed = state.registry.remove_stream(stream, unix_millis(), grace);
            let Some(entry) = removed else {
                return true;
            };
            let name = entry.registration.workload.to_string();
            let written = self
                .store
                .write(vec![record::<Entry>(ENTRIES, &name, None)]);
            drop(state);
            (self.touch(), written)
        };
        if let Err(error) = written.await {
            tracing::error!(%error, "goodbye not kept");
        }
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

    async fn expire(&self) {
        self.forget_observed();
        let (gone, tokens) = {
            let mut state = self.state();
            let gone = state.registry.expire(unix_millis());
            let limit = unix_seconds() - TOKEN_KEPT;
            let old: Vec<String> = state
                .tokens
                .values()
                .filter(|token| token.expires < limit)
                .map(|token| token.id.clone())
                .collect();
            for id in &old {
                state.tokens.remove(id);
            }
            (gone, old)
        };
        let mut records: Vec<RecordWrite> = Vec::new();
        for entry in &gone {
            let workload = &entry.registration.workload;
            tracing::info!(%workload, "gone for longer than the grace: taken out");
            records.push(record::<Entry>(ENTRIES, &workload.to_string(), None));
        }
        records.extend(
            tokens
                .iter()
                .map(|id| record::<TokenRecord>(TOKENS, id, None)),
        );
        if records.is_empty() {
            return;
        }
        if !gone.is_empty() {
            self.touch();
        }
        if let Err(error) = self.store.write(records).await {
            tracing::error!(%error, "expiry not kept");
        }
    }

    /// Everybody who is there.
    pub fn entries(&self) -> Vec<Entry> {
        self.state().registry.iter().cloned().collect()
    }

    // --- Identity.

    /// Makes a join token; its text is given once.
    pub async fn create_token(
        &self,
        binding: Binding,
        ttl: Duration,
    ) -> Result<(String, TokenRecord), PlaneError> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        if !(1..=7 * 86_400).contains(&ttl) {
            return Err(PlaneError::Invalid(format!(
                "ttl: found {ttl} s; allowed: 1 s to 7 days"
            )));
        }
        let (text, token) = token::create(
            self.authority.trust_domain(),
            &self.authority.root_digest(),
            binding,
            unix_seconds(),
            ttl,
            random(),
        );
        self.store
            .write(vec![record(TOKENS, &token.id, Some(&token))])
            .await?;
        self.state().tokens.insert(token.id.clone(), token.clone());
        Ok((text, token))
    }

    /// Tokens that are kept.
    pub fn tokens(&self) -> Vec<TokenRecord> {
        self.state().tokens.values().cloned().collect()
    }

    /// Instances that were attested.
    pub fn instances(&self) -> Vec<InstanceRecord> {
        self.state().instances.values().cloned().collect()
    }

    /// Signs a certificate for whoever proves to be somebody.
    pub async fn sign(&self, credential: Credential, csr: &[u8]) -> Result<Signed, PlaneError> {
        self.take_signature()?;
        let key_hash = ca::public_key_hash(csr)?;
        let now = unix_seconds();
        // Decided, signed and noted under one lock: two redemptions at the same moment must not
        // both succeed, and a renewal must not undo a revocation that comes meanwhile.
        let (signed, token, written) = {
            let mut state = self.state();
            let (mut instance, token, key) = self.attest(&state, &credential, &key_hash, now)?;
            let (leaf, identity) = self.sign_for(&instance, csr)?;
            instance.last_used = now;
            instance.last_not_after = instance.last_not_after.max(leaf.not_after);
            let name = instance.instance.clone();
            let mut records = vec![record(INSTANCES, &name, Some(&instance))];
            if let Some(token) = &token {
                records.push(record(TOKENS, &token.id, Some(token)));
                state.tokens.insert(token.id.clone(), token.clone());
            }
            let signed = Signed {
                leaf,
                identity,
                instance: name.clone(),
                binding: instance.binding.clone(),
                instance_key: key,
            };
            state.instances.insert(name, instance);
            (signed, token, self.store.write(records))
        };
        if let Err(error) = written.await {
            if let Some(token) = token {
                self.unredeem(&token);
            }
            // A renewal only notes times: a full disk must not stop it, or it stops the mesh.
            if signed.instance_key.is_some() {
                return Err(error.into());
            }
            tracing::error!(%error, "renewal not kept");
        }
        self.counters.signed.fetch_add(1, Ordering::Relaxed);
        Ok(signed)
    }

    fn sign_for(
        &self,
        instance: &InstanceRecord,
        csr: &[u8],
    ) -> Result<(SignedLeaf, SpiffeId), PlaneError> {
        let binding = &instance.binding;
        let namespace = binding.workload.namespace();
        let trust_domain = self.authority.trust_domain();
        let identity = SpiffeId::new(trust_domain, namespace, &binding.service_account)
            .map_err(|error| PlaneError::Invalid(error.to_string()))?;
        let ttl = self.settings.leaf_ttl;
        let name = &instance.instance;
        let leaf = self
            .authority
            .sign(csr, &identity, name, ttl, SystemTime::now())?;
        Ok((leaf, identity))
    }

    /// A redemption that is not durable has not happened: the token is as good as before.
    fn unredeem(&self, token: &TokenRecord) {
        let mut state = self.state();
        if let Some(held) = state.tokens.get_mut(&token.id)
            && held.redeemed == token.redeemed
        {
            held.redeemed = None;
        }
        if let Some(redeemed) = &token.redeemed {
            state.instances.remove(&redeemed.instance);
        }
    }

    /// Who it is, by its credential; with the token as it is to be kept, and a new instance key.
    fn attest(
        &self,
        state: &State,
        credential: &Credential,
        key_hash: &str,
        now: i64,
    ) -> Result<(InstanceRecord, Option<TokenRecord>, Option<String>), PlaneError> {
        match credential {
            Credential::JoinToken(text) => {
                let parsed = token::parse(text)?;
                let record = state.tokens.get(&parsed.id);
                let redemption = token::redeem(record, &parsed, key_hash, now)?;
                let mut token = record.cloned().ok_or(TokenError::Unknown)?;
                let first = redemption == Redemption::First;
                let name = match redemption {
                    Redemption::First => format!("i-{}", crate::hex(&random::<8>())),
                    Redemption::Again(instance) => instance,
                };
                // Also on a repetition: the lost reply had the first one in it.
                let secret = crate::hex(&random::<32>());
                let before = state.instances.get(&name);
                let instance = InstanceRecord {
                    instance: name.clone(),
                    key_hash: sha256_hex(secret.as_bytes()),
                    binding: token.binding.clone(),
                    created: before.map_or(now, |before| before.created),
                    last_used: now,
                    last_not_after: before.map_or(0, |before| before.last_not_after),
                    revoked: before.and_then(|before| before.revoked),
                };
                token::reattest(Some(&instance), now)?;
                token.redeemed = Some(Redeemed {
                    public_key_hash: key_hash.to_owned(),
                    instance: name.clone(),
                });
                let key = format!("{name}.{secret}");
                Ok((instance, first.then_some(token), Some(key)))
            }
            Credential::InstanceKey(text) => {
                let (name, secret) = text.split_once('.').ok_or(TokenError::UnknownInstance)?;
                let hash = sha256_hex(secret.as_bytes());
                let record = state.instances.get(name).filter(|i| i.key_hash == hash);
                token::reattest(record, now)?;
                let record = record.cloned().ok_or(TokenError::UnknownInstance)?;
                Ok((record, None, None))
            }
            Credential::Certificate(peer) => {
                if peer.not_after <= now {
                    return Err(TokenError::Ended.into());
                }
                let record = state.instances.get(&*peer.instance).cloned();
                let record = record.ok_or(TokenError::UnknownInstance)?;
                if record.revoked.is_some() {
                    return Err(TokenError::Revoked(record.instance).into());
                }
                Ok((record, None, None))
            }
        }
    }

    /// A token bucket: a thousand workloads come through in seconds, a loop does not.
    fn take_signature(&self) -> Result<(), PlaneError> {
        let mut bucket = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = unix_millis();
        let elapsed = (now - bucket.1).max(0) as f64 / 1000.0;
        bucket.0 = (bucket.0 + elapsed * SIGN_PER_SECOND).min(SIGN_BURST);
        bucket.1 = now;
        if bucket.0 < 1.0 {
            return Err(PlaneError::RateLimited);
        }
        bucket.0 -= 1.0;
        Ok(())
    }

    /// Revokes an instance: its streams are cut, nothing is signed for it any more, and peers
    /// refuse its certificate. Or an operator's certificate: it opens the API no more.
    pub async fn revoke(&self, instance: &str) -> Result<(), PlaneError> {
        let written = self.note_revoked(instance)?;
        // Refused from this moment on, even if it cannot be written down.
        self.touch();
        self.revoked.send_modify(|count| *count += 1);
        Ok(written.await?)
    }

    /// Notes a revocation; what is returned is done when it is written down. Both under one lock, so
    /// that nothing noted later is written before it.
    fn note_revoked(
        &self,
        instance: &str,
    ) -> Result<impl Future<Output = Result<(), StoreError>>, PlaneError> {
        let mut state = self.state();
        if let Some(operator) = state.operators.get_mut(instance) {
            operator.revoked = operator.revoked.or_else(|| Some(unix_seconds()));
            let records = vec![record(OPERATORS, instance, Some(&*operator))];
            return Ok(self.store.write(records));
        }
        let Some(found) = state.instances.get_mut(instance) else {
            return Err(PlaneError::Invalid(format!(
                "{instance:?} is unknown; see `weft certs list` and `weft operator list`"
            )));
        };
        found.revoked = found.revoked.or_else(|| Some(unix_seconds()));
        let mut records = vec![record(INSTANCES, instance, Some(&*found))];
        if let Some(entry) = state.registry.remove(instance) {
            let name = entry.registration.workload.to_string();
            records.push(record::<Entry>(ENTRIES, &name, None));
        }
        Ok(self.store.write(records))
    }

    /// Signs a certificate for an operator. Records of certificates that have ended are cleared
    /// away.
    pub async fn sign_operator(
        &self,
        name: &str,
        csr: &[u8],
        ttl: Duration,
    ) -> Result<(OperatorRecord, SignedLeaf), PlaneError> {
        if !(operator::TTL_MIN..=operator::TTL_MAX).contains(&ttl) {
            let text = format!(
                "ttl: found {} s; allowed: 1 minute to 90 days",
                ttl.as_secs()
            );
            return Err(PlaneError::Invalid(text));
        }
        self.take_signature()?;
        let id = format!("o-{}", crate::hex(&random::<8>()));
        let now = SystemTime::now();
        let leaf = self.authority.sign_operator(csr, name, &id, ttl, now)?;
        let operator = OperatorRecord {
            id: id.clone(),
            name: name.to_owned(),
            created: leaf.issued,
            not_after: leaf.not_after,
            revoked: None,
        };
        let written = {
            let mut state = self.state();
            let over = state
                .operators
                .extract_if(|_id, o| o.not_after < leaf.issued);
            let mut records: Vec<RecordWrite> = over
                .map(|(id, _)| record::<OperatorRecord>(OPERATORS, &id, None))
                .collect();
            records.push(record(OPERATORS, &id, Some(&operator)));
            state.operators.insert(id, operator.clone());
            self.store.write(records)
        };
        written.await?;
        self.counters.signed.fetch_add(1, Ordering::Relaxed);
        Ok((operator, leaf))
    }

    /// Operators' certificates.
    pub fn operators(&self) -> Vec<OperatorRecord> {
        self.state().operators.values().cloned().collect()
    }

    /// The operator with a certificate, unless that was revoked.
    pub fn operator(&self, id: &str) -> Option<OperatorRecord> {
        let state = self.state();
        let operator = state.operators.get(id)?;
        operator.revoked.is_none().then(|| operator.clone())
    }

    /// Whether an instance was revoked.
    pub fn is_revoked(&self, instance: &str) -> bool {
        let state = self.state();
        state
            .instances
            .get(instance)
            .is_some_and(|i| i.revoked.is_some())
    }

    /// Services that an instance may serve.
    pub fn services_of(&self, instance: &str) -> Vec<ServiceName> {
        let state = self.state();
        let instance = state.instances.get(instance);
        instance.map_or_else(Vec::new, |i| i.binding.services.clone())
    }

    /// Changes whenever an instance or an operator is revoked. One who watches for a revocation
    /// subscribes before looking whether there was one already.
    pub fn watch_revoked(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
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

    /// Begins a stream of observations of an instance; its oldest ends where there are too many.
    pub fn begin_observing(&self, peer: &PeerIdentity) -> LiveStream {
        let stream = self.next_stream();
        self.observing.begin(&peer.instance, stream, OBSERVING_MAX)
    }

    /// Notes what a sidecar sees; `None` when its stream has ended: the view is kept for a moment.
    pub fn note_observed(
        &self,
        stream: u64,
        peer: &PeerIdentity,
        breakers: Option<Vec<ObservedBreaker>>,
    ) {
        let mut all = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(breakers) = breakers else {
            return all.end(&peer.instance, stream, Instant::now());
        };
        let view = ObservedView {
            peer: peer.clone(),
            told: unix_millis(),
            breakers,
            ended: None,
        };
        all.tell(stream, view);
    }

    /// Forgets what was told on streams that ended a while ago.
    fn forget_observed(&self) {
        let mut all = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        all.forget(Instant::now());
    }

    /// What every sidecar sees.
    pub fn observed(&self) -> Vec<ObservedView> {
        let all = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        all.newest()
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
fn virtual_ranges() -> Vec<Cidr> {
    let ranges = ["240.240.0.0/16", "fd77:6566:7400:1::/64"];
    ranges.into_iter().filter_map(Cidr::parse).collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn record<T: serde::Serialize>(table: &'static str, key: &str, value: Option<&T>) -> RecordWrite {
    RecordWrite {
        table,
        key: key.to_owned(),
        // Plain structures with string keys: their JSON cannot fail.
        value: value.map(|value| serde_json::to_vec(value).unwrap_or_default()),
        expect: RecordExpect::Any,
    }
}
