//! The living state: who is there, what was asked for, and what follows from it. One lock around
//! plain machines; every change is durable before it shows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use weft_core::model::{Cidr, MeshConfig, Registration, TrustBundle};
use weft_core::name::{ServiceName, SpiffeId};

use crate::ca::{self, Authority, CaError, SignedLeaf};
use crate::compile::{Assigned, Compiled, VirtualAddresses, World, compile, service_names};
use crate::document::{Document, MeshConfigSpec, ServiceSpec};
use crate::operator::{self, OperatorRecord};
use crate::registry::{Entry, Refused, Registry, check_binding};
use crate::store::{RecordWrite, Revision, Store, StoreError};
use crate::tls::PeerIdentity;
use crate::token::{self, Binding, InstanceRecord, Redeemed, Redemption, TokenError, TokenRecord};
use crate::{random, sha256_hex, unix_millis, unix_seconds};

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
    revoked: watch::Sender<u64>,
    proxies: Mutex<HashMap<u64, ProxyView>>,
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

#[derive(Debug, Default)]
struct State {
    registry: Registry,
    tokens: HashMap<String, TokenRecord>,
    instances: HashMap<String, InstanceRecord>,
    operators: HashMap<String, OperatorRecord>,
    addresses: VirtualAddresses,
    services: BTreeMap<ServiceName, ServiceSpec>,
    config: MeshConfigSpec,
    revision: Revision,
}

impl Plane {
    /// Takes up what the store holds.
    pub fn open(
        store: Arc<dyn Store>,
        authority: Authority,
        settings: Settings,
    ) -> Result<Arc<Self>, PlaneError> {
        fn read<T: for<'de> serde::Deserialize<'de>>(
            store: &dyn Store,
            table: &'static str,
        ) -> Result<Vec<(String, T)>, StoreError> {
            let records = store.records(table)?.into_iter();
            let read = |(key, bytes): (String, Vec<u8>)| {
                let value = serde_json::from_slice(&bytes).ok()?;
                Some((key, value))
            };
            Ok(records.filter_map(read).collect())
        }
        let entries = read::<Entry>(&*store, ENTRIES)?.into_iter().map(|(_, e)| e);
        let addresses = read::<Assigned>(&*store, ADDRESSES)?.into_iter();
        let addresses =
            addresses.filter_map(|(name, assigned)| Some((name.parse().ok()?, assigned)));
        let grace = millis(settings.grace);
        let state = State {
            registry: Registry::restore(entries.collect(), unix_millis(), grace),
            tokens: read(&*store, TOKENS)?.into_iter().collect(),
            instances: read(&*store, INSTANCES)?.into_iter().collect(),
            operators: read(&*store, OPERATORS)?.into_iter().collect(),
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
            revoked: watch::Sender::new(0),
            proxies: Mutex::default(),
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

    fn touch(&self) {
        self.dirty.send_modify(|count| *count += 1);
    }

    fn load_documents(&self) -> Result<(), StoreError> {
        let revision = *self.store.watch().borrow();
        let mut services = BTreeMap::new();
        let mut config = MeshConfigSpec::default();
        for resource in self.store.list()? {
            match Document::from_value(resource.document) {
                Ok(Document::Service(name, spec)) => {
                    services.insert(name, spec);
                }
                Ok(Document::MeshConfig(spec)) => config = spec,
                Err(problems) => {
                    let key = resource.key;
                    tracing::error!(%key, ?problems, "a stored resource is not readable: left out");
                }
            }
        }
        let mut state = self.state();
        state.services = services;
        state.config = config;
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
        let (compiled, changed) = {
            let mut state = self.state();
            let entries: Vec<Entry> = state.registry.iter().cloned().collect();
            let config = self.mesh_config(&state);
            let bundle = self.bundle(&state);
            let mut addresses = std::mem::take(&mut state.addresses);
            let names: BTreeSet<ServiceName> = {
                let world = World {
                    entries: &entries,
                    services: &state.services,
                    addresses: &addresses,
                    config: &config,
                    bundle: &bundle,
                };
                service_names(world).into_iter().cloned().collect()
            };
            let changed = addresses.assign(&names, unix_seconds());
            let world = World {
                entries: &entries,
                services: &state.services,
                addresses: &addresses,
                config: &config,
                bundle: &bundle,
            };
            let compiled = compile(world, &self.compiled.load(), state.revision);
            state.addresses = addresses;
            (compiled, changed)
        };
        if !changed.is_empty() {
            let records = changed
                .iter()
                .map(|(name, assigned)| record(ADDRESSES, &name.to_string(), Some(assigned)));
            if let Err(error) = self.store.write(records.collect()).await {
                tracing::error!(%error, "virtual addresses not kept; not announced");
                return;
            }
        }
        let generation = compiled.generation;
        self.compiled.store(Arc::new(compiled));
        self.published.send_replace(generation);
    }

    fn mesh_config(&self, state: &State) -> MeshConfig {
        let more = state.config.workload_ranges.iter();
        let more = more.filter_map(|text| Cidr::parse(text));
        MeshConfig {
            trust_domain: self.authority.trust_domain().clone(),
            virtual_ranges: ["240.240.0.0/16", "fd77:6566:7400:1::/64"]
                .into_iter()
                .filter_map(Cidr::parse)
                .collect(),
            workload_ranges: self
                .settings
                .workload_ranges
                .iter()
                .copied()
                .chain(more)
                .collect(),
            unknown_destinations: state.config.unknown_destinations,
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
        {
            let state = self.state();
            let instance = state.instances.get(&*peer.instance);
            let instance = instance.ok_or(TokenError::UnknownInstance)?;
            if instance.revoked.is_some() {
                return Err(TokenError::Revoked(instance.instance.clone()).into());
            }
            check_binding(&instance.binding, &entry.registration)?;
            state.registry.check(&peer.instance, &entry.registration)?;
        }
        let name = entry.registration.workload.to_string();
        self.store
            .write(vec![record(ENTRIES, &name, Some(&entry))])
            .await?;
        let mut state = self.state();
        // Another one may have come while this was being written.
        state.registry.check(&peer.instance, &entry.registration)?;
        state.registry.put(entry);
        drop(state);
        self.touch();
        Ok(self.compiled.load().generation + 1)
    }

    /// A registration's stream has ended: its grace begins.
    pub fn disconnected(&self, stream: u64) {
        let grace = millis(self.settings.grace);
        self.state()
            .registry
            .handle_disconnect(stream, unix_millis(), grace);
    }

    /// Takes an instance out and waits until every sidecar knows; false when that took too long.
    pub async fn leave(&self, instance: &str) -> bool {
        let removed = self.state().registry.remove(instance);
        let Some(entry) = removed else {
            return true;
        };
        let name = entry.registration.workload.to_string();
        let mut published = self.published.subscribe();
        let before = *published.borrow_and_update();
        self.touch();
        if let Err(error) = self
            .store
            .write(vec![record::<Entry>(ENTRIES, &name, None)])
            .await
        {
            tracing::error!(%error, "goodbye not kept");
        }
        let known = async {
            let compiled = published.wait_for(|generation| *generation > before).await;
            drop(compiled);
            let goal = before + 1;
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
        let (mut instance, token, key) = self.attest(&credential, &key_hash, now)?;
        let binding = instance.binding.clone();
        let identity = SpiffeId::new(
            self.authority.trust_domain(),
            binding.workload.namespace(),
            &binding.service_account,
        );
        let identity = identity.map_err(|error| PlaneError::Invalid(error.to_string()))?;
        let ttl = self.settings.leaf_ttl;
        let name = instance.instance.clone();
        let leaf = self
            .authority
            .sign(csr, &identity, &name, ttl, SystemTime::now())?;
        instance.last_used = now;
        instance.last_not_after = leaf.not_after;
        let mut records = vec![record(INSTANCES, &name, Some(&instance))];
        if let Some(token) = &token {
            records.push(record(TOKENS, &token.id, Some(token)));
        }
        self.store.write(records).await?;
        let mut state = self.state();
        if let Some(token) = token {
            // Two redemptions at the same moment: the first to get here has it.
            let holder = state.tokens.get(&token.id).and_then(|t| t.redeemed.clone());
            if holder.is_some_and(|holder| Some(holder) != token.redeemed) {
                return Err(TokenError::Redeemed.into());
            }
            state.tokens.insert(token.id.clone(), token);
        }
        state.instances.insert(name.clone(), instance);
        drop(state);
        self.counters.signed.fetch_add(1, Ordering::Relaxed);
        Ok(Signed {
            leaf,
            identity,
            instance: name,
            binding,
            instance_key: key,
        })
    }

    /// Who it is, by its credential; with the token as it is to be kept, and a new instance key.
    fn attest(
        &self,
        credential: &Credential,
        key_hash: &str,
        now: i64,
    ) -> Result<(InstanceRecord, Option<TokenRecord>, Option<String>), PlaneError> {
        let state = self.state();
        match credential {
            Credential::JoinToken(text) => {
                let parsed = token::parse(text)?;
                let record = state.tokens.get(&parsed.id);
                let redemption = token::redeem(record, &parsed, key_hash, now)?;
                let mut token = record.cloned().ok_or(TokenError::Unknown)?;
                let name = match redemption {
                    Redemption::First => format!("i-{}", crate::hex(&random::<8>())),
                    Redemption::Again(instance) => instance,
                };
                // Also on a repetition: the lost reply had the first one in it.
                let secret = crate::hex(&random::<32>());
                let instance = InstanceRecord {
                    instance: name.clone(),
                    key_hash: sha256_hex(secret.as_bytes()),
                    binding: token.binding.clone(),
                    created: now,
                    last_used: now,
                    last_not_after: 0,
                    revoked: state.instances.get(&name).and_then(|i| i.revoked),
                };
                token::reattest(Some(&instance), now)?;
                token.redeemed = Some(Redeemed {
                    public_key_hash: key_hash.to_owned(),
                    instance: name.clone(),
                });
                Ok((instance, Some(token), Some(format!("{name}.{secret}"))))
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
    /// refuse its certificate.
    pub async fn revoke(&self, instance: &str) -> Result<(), PlaneError> {
        let operator = self.state().operators.get(instance).cloned();
        if let Some(operator) = operator {
            return self.revoke_operator(operator).await;
        }
        let found = self.state().instances.get(instance).cloned();
        let Some(mut found) = found else {
            return Err(PlaneError::Invalid(format!(
                "instance {instance:?} is unknown; see `weft certs list` and `weft operator list`"
            )));
        };
        found.revoked = Some(unix_seconds());
        let mut records = vec![record(INSTANCES, instance, Some(&found))];
        let registered = self
            .entries()
            .into_iter()
            .find(|e| &*e.instance == instance);
        if let Some(entry) = registered {
            let name = entry.registration.workload.to_string();
            records.push(record::<Entry>(ENTRIES, &name, None));
        }
        self.store.write(records).await?;
        {
            let mut state = self.state();
            state.instances.insert(instance.to_owned(), found);
            state.registry.remove(instance);
        }
        self.touch();
        self.revoked.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn revoke_operator(&self, mut operator: OperatorRecord) -> Result<(), PlaneError> {
        operator.revoked = Some(unix_seconds());
        let write = record(OPERATORS, &operator.id, Some(&operator));
        self.store.write(vec![write]).await?;
        let mut state = self.state();
        state.operators.insert(operator.id.clone(), operator);
        drop(state);
        self.revoked.send_modify(|count| *count += 1);
        Ok(())
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
        let over: Vec<String> = {
            let state = self.state();
            let over = state
                .operators
                .values()
                .filter(|o| o.not_after < leaf.issued);
            over.map(|operator| operator.id.clone()).collect()
        };
        let mut records = vec![record(OPERATORS, &id, Some(&operator))];
        records.extend(
            over.iter()
                .map(|id| record::<OperatorRecord>(OPERATORS, id, None)),
        );
        self.store.write(records).await?;
        let mut state = self.state();
        for id in over {
            state.operators.remove(&id);
        }
        state.operators.insert(id, operator.clone());
        drop(state);
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

    /// Changes whenever an instance or an operator is revoked.
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

    /// Every connected proxy.
    pub fn proxies(&self) -> Vec<ProxyView> {
        let proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<ProxyView> = proxies.values().cloned().collect();
        all.sort_by(|a, b| a.peer.instance.cmp(&b.peer.instance));
        all
    }
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
    }
}
