//! Tokens, instances and operators: who gets a certificate, and who no more.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use weft_core::model::TrustBundle;
use weft_core::name::{ServiceName, SpiffeId, WorkloadName};

use super::attest::{Attested, Attestor, Credential, ProveError};
use super::budget::{Budgets, Exceeded};
use super::ca::{self, CaError, SignedLeaf};
use super::operator::{self, OperatorRecord};
use super::records::{INSTANCES, OPERATORS, Records, TOKENS};
use super::service_account::is_pod;
use super::signer::Signer;
use super::token::{self, Binding, InstanceRecord, Reserved, TokenError, TokenRecord};
use crate::clock::Clock;
use crate::store::{RecordWrite, Store, StoreError, record};
use crate::{random, sha256_hex};

/// How often records that are of no use any more are cleared away.
const CLEAR_EVERY: Duration = Duration::from_secs(1);
/// Records that are cleared away in one write.
const CLEAR_AT_ONCE_MAX: usize = 1_000;

/// Why no identity is given, or a change of one not made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The credential is refused.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Not kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not signed.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Too much is asked for.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// A name of the mesh's own.
    #[error(transparent)]
    Reserved(#[from] Reserved),
    /// There is no room for another record.
    #[error("{max} {what} are on record, and no more are kept: let some end, or revoke them")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// How many are kept.
        max: usize,
    },
    /// What the credential proves cannot be found out now.
    #[error("{0}")]
    Unproved(String),
    /// Only a cluster can say what the token of a service account proves.
    #[error(
        "this control plane looks after no cluster: it takes join tokens, not tokens of service accounts"
    )]
    NoCluster,
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
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

/// An instance that is being signed for.
#[derive(Debug)]
struct Reservation {
    attested: Attested,
    /// The instance that was forgotten to make room for it.
    forgotten: Option<InstanceRecord>,
}

/// What is counted of signatures.
#[derive(Debug, Default)]
pub struct Counters {
    /// Certificates signed.
    pub signed: AtomicU64,
    /// Signatures refused.
    pub refused: AtomicU64,
}

/// Owns tokens, instances and operators; attests, signs and revokes. Every change is durable before
/// it is answered.
#[derive(Debug)]
pub struct Identities {
    pub(super) store: Arc<dyn Store>,
    signer: Arc<dyn Signer>,
    attestors: Vec<Box<dyn Attestor>>,
    leaf_ttl: Duration,
    records: Mutex<Records>,
    pub(super) revoked: watch::Sender<u64>,
    /// Counts changes of which pods have departed.
    departed: watch::Sender<usize>,
    budgets: Mutex<Budgets>,
    clock: Arc<dyn Clock>,
    /// Counters for metrics.
    pub counters: Counters,
}

impl Identities {
    /// Takes up what the store holds. `leaf_ttl` is the life of a workload's certificate.
    pub fn open(
        store: Arc<dyn Store>,
        signer: Arc<dyn Signer>,
        attestors: Vec<Box<dyn Attestor>>,
        leaf_ttl: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StoreError> {
        let records = Records::read(&*store)?;
        Ok(Arc::new(Self {
            store,
            signer,
            attestors,
            leaf_ttl,
            records: Mutex::new(records),
            revoked: watch::Sender::new(0),
            departed: watch::Sender::new(0),
            budgets: Mutex::new(Budgets::new(Instant::now())),
            clock,
            counters: Counters::default(),
        }))
    }

    /// What signs.
    pub fn signer(&self) -> &dyn Signer {
        &*self.signer
    }

    /// SHA-256 of the root, hexadecimal: what a join token carries.
    pub fn root_digest(&self) -> String {
        sha256_hex(self.signer.root())
    }

    /// Clears records away that are of no use any more. Runs until the task is dropped.
    pub async fn keep_cleared(self: Arc<Self>) {
        let mut clear = tokio::time::interval(CLEAR_EVERY);
        loop {
            clear.tick().await;
            let now = self.clock.unix_seconds();
            if self.records().forget_departed(now) {
                self.tell_departed();
            }
            let written = {
                let mut records = self.records();
                let writes = records.clear(self.clock.unix_seconds(), CLEAR_AT_ONCE_MAX);
                if writes.is_empty() {
                    continue;
                }
                self.store.write(writes)
            };
            if let Err(error) = written.await {
                tracing::error!(%error, "clearing away not kept");
            }
        }
    }

    pub(super) fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn budgets(&self) -> MutexGuard<'_, Budgets> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Trust bundle: roots and revoked instances.
    pub fn bundle(&self) -> TrustBundle {
        let now = self.clock.unix_seconds();
        let records = self.records();
        let revoked = records.instances.values();
        let revoked = revoked.filter(|i| token::revocation_holds(i, now));
        let revoked = revoked.map(|i| i.instance.clone());
        let departed = records.departed().map(|instance| instance.to_string());
        TrustBundle {
            trust_domain: self.signer.trust_domain().clone(),
            roots: vec![self.signer.root().to_vec()],
            revoked_instances: revoked.chain(departed).collect(),
        }
    }

    /// Makes a join token; its text is given once.
    pub async fn create_token(
        &self,
        binding: Binding,
        ttl: Duration,
    ) -> Result<(String, TokenRecord), IdentityError> {
        binding.check_names()?;
        binding.check_size().map_err(IdentityError::Invalid)?;
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        if !(1..=7 * 86_400).contains(&ttl) {
            return Err(IdentityError::Invalid(format!(
                "ttl: found {ttl} s; allowed: 1 s to 7 days"
            )));
        }
        let now = self.clock.unix_seconds();
        let (text, token) = token::create(
            self.signer.trust_domain(),
            &self.root_digest(),
            binding,
            now,
            ttl,
            random(),
        );
        let written = {
            let mut records = self.records();
            let mut writes = records.make_room_for_token(now)?;
            writes.push(record(TOKENS, &token.id, Some(&token)));
            self.store.write(writes)
        };
        written.await?;
        self.records()
            .tokens
            .insert(token.id.clone(), token.clone());
        Ok((text, token))
    }

    /// Makes a join token for a user of this machine, who is known by the socket.
    pub async fn create_join_token(
        &self,
        user: u32,
        binding: Binding,
        ttl: Duration,
    ) -> Result<(String, TokenRecord), IdentityError> {
        self.budgets().charge_join(user, Instant::now())?;
        self.create_token(binding, ttl).await
    }

    /// Tokens that are kept.
    pub fn tokens(&self) -> Vec<TokenRecord> {
        self.records().tokens.values().cloned().collect()
    }

    /// Instances that were attested; of pods, those of the time since this process began.
    pub fn instances(&self) -> Vec<InstanceRecord> {
        self.records().all_instances().cloned().collect()
    }

    /// Signs a certificate for the instance that a credential attests; `source` is the address that
    /// it comes from.
    pub async fn sign(
        &self,
        credential: Credential,
        csr: &[u8],
        source: IpAddr,
    ) -> Result<Signed, IdentityError> {
        let credential = self.prove(credential, source).await?;
        let account = self.authenticate(&credential, source)?;
        self.budgets().charge(&account, source, Instant::now())?;
        let key_hash = ca::public_key_hash(csr)?;
        let reserved = self.reserve(&credential, &key_hash)?;
        // No lock is held while a certificate is signed.
        let signed = self.sign_for(&reserved.attested.instance, csr);
        let committed = signed.and_then(|(leaf, identity)| self.commit(&reserved, leaf, identity));
        let (mut signed, written) = match committed {
            Ok(committed) => committed,
            Err(error) => {
                self.unreserve(reserved);
                return Err(error);
            }
        };
        let instance_key = reserved.attested.instance_key.clone();
        if let Err(error) = written.await {
            self.unreserve(reserved);
            // A renewal only notes times: a full disk must not stop it, or it stops the mesh.
            if instance_key.is_some() {
                return Err(error.into());
            }
            tracing::error!(%error, "renewal not kept");
        }
        signed.instance_key = instance_key;
        self.counters.signed.fetch_add(1, Ordering::Relaxed);
        Ok(signed)
    }

    /// Has attestors ask elsewhere what they have to.
    async fn prove(
        &self,
        mut credential: Credential,
        source: IpAddr,
    ) -> Result<Credential, IdentityError> {
        if matches!(credential, Credential::ServiceAccountToken(_)) {
            self.budgets().charge_review(source, Instant::now())?;
        }
        for attestor in &self.attestors {
            credential = match attestor.prove(credential).await {
                Ok(proved) => proved,
                Err(ProveError::Refused(error)) => {
                    self.budgets().charge_failed(source, Instant::now())?;
                    return Err(error.into());
                }
                Err(error @ ProveError::Unavailable(_)) => {
                    return Err(IdentityError::Unproved(error.to_string()));
                }
            };
        }
        match credential {
            Credential::ServiceAccountToken(_) => Err(IdentityError::NoCluster),
            Credential::JoinToken(_)
            | Credential::InstanceKey(_)
            | Credential::Certificate(_)
            | Credential::Pod(_) => Ok(credential),
        }
    }

    /// Checks the credential alone; gives the name of what a signature is charged to.
    fn authenticate(
        &self,
        credential: &Credential,
        source: IpAddr,
    ) -> Result<String, IdentityError> {
        let now = self.clock.unix_seconds();
        let authenticated = {
            let records = self.records();
            let mut attestors = self.attestors.iter();
            attestors.find_map(|attestor| attestor.authenticate(&records, credential, now))
        };
        match authenticated.ok_or_else(unknown_credential)? {
            Ok(account) => Ok(account),
            Err(error) => {
                self.budgets().charge_failed(source, Instant::now())?;
                Err(error.into())
            }
        }
    }

    /// Attests, and takes the token for this key: another key gets nothing for it from here on.
    fn reserve(
        &self,
        credential: &Credential,
        key_hash: &str,
    ) -> Result<Reservation, IdentityError> {
        let now = self.clock.unix_seconds();
        let mut records = self.records();
        let mut attestors = self.attestors.iter();
        let attested = attestors
            .find_map(|attestor| attestor.attest(&records, credential, key_hash, now))
            .ok_or_else(unknown_credential)??;
        let mut forgotten = None;
        if let Some(token) = &attested.redeemed {
            forgotten = records.make_room_for_instance(now)?;
            records.tokens.insert(token.id.clone(), token.clone());
            let (name, instance) = (&attested.instance.instance, &attested.instance);
            records.instances.insert(name.clone(), instance.clone());
        }
        Ok(Reservation {
            attested,
            forgotten,
        })
    }

    /// Notes what was signed, unless the instance was revoked meanwhile. What is returned is done
    /// when that is written down.
    fn commit(
        &self,
        reserved: &Reservation,
        leaf: SignedLeaf,
        identity: SpiffeId,
    ) -> Result<(Signed, BoxFuture<'_, Result<(), StoreError>>), IdentityError> {
        let now = self.clock.unix_seconds();
        let attested = &reserved.attested;
        let name = &attested.instance.instance;
        let mut records = self.records();
        if is_pod(name) {
            records.note_pod(&attested.instance, leaf.not_after)?;
            let signed = signed_for(&attested.instance, leaf, identity);
            return Ok((signed, Box::pin(std::future::ready(Ok(())))));
        }
        // An instance that was cleared away between is known again by its token only.
        let instance = match records.instances.get_mut(name) {
            Some(instance) => instance,
            None if attested.instance_key.is_some() => records
                .instances
                .entry(name.clone())
                .or_insert_with(|| attested.instance.clone()),
            None => return Err(TokenError::UnknownInstance.into()),
        };
        if instance.revoked.is_some() {
            return Err(TokenError::Revoked(name.clone()).into());
        }
        if attested.instance_key.is_some() {
            instance.key_hash.clone_from(&attested.instance.key_hash);
        }
        instance.last_used = instance.last_used.max(now);
        instance.last_not_after = instance.last_not_after.max(leaf.not_after);
        let signed = signed_for(instance, leaf, identity);
        let mut writes = vec![record(INSTANCES, name, Some(&*instance))];
        if let Some(token) = &attested.redeemed {
            writes.push(record(TOKENS, &token.id, Some(token)));
        }
        if let Some(forgotten) = &reserved.forgotten {
            writes.push(record::<InstanceRecord>(
                INSTANCES,
                &forgotten.instance,
                None,
            ));
        }
        // Queued under the lock: a revocation that comes next is written after it.
        Ok((signed, self.store.write(writes)))
    }

    fn sign_for(
        &self,
        instance: &InstanceRecord,
        csr: &[u8],
    ) -> Result<(SignedLeaf, SpiffeId), IdentityError> {
        let binding = &instance.binding;
        let namespace = binding.workload.namespace();
        let trust_domain = self.signer.trust_domain();
        let identity = SpiffeId::new(trust_domain, namespace, &binding.service_account)
            .map_err(|error| IdentityError::Invalid(error.to_string()))?;
        let name = &instance.instance;
        let now = self.clock.wall();
        let leaf = self.signer.sign(csr, &identity, name, self.leaf_ttl, now)?;
        Ok((leaf, identity))
    }

    /// A redemption that is not durable has not happened: the token is as good as before.
    fn unreserve(&self, reserved: Reservation) {
        let attested = &reserved.attested;
        let Some(token) = &attested.redeemed else {
            return;
        };
        let mut records = self.records();
        // Its record is on disk still: it is known as it will be after a restart.
        if let Some(forgotten) = reserved.forgotten {
            let name = forgotten.instance.clone();
            records.instances.entry(name).or_insert(forgotten);
        }
        if let Some(held) = records.tokens.get_mut(&token.id)
            && held.redeemed == token.redeemed
        {
            held.redeemed = None;
            let name = &attested.instance.instance;
            if records.instance(name).is_some_and(|i| i.revoked.is_none()) {
                records.instances.remove(name);
            }
        }
    }

    /// Revokes an instance: nothing is signed for it any more, whoever watches cuts its streams,
    /// and peers refuse its certificate. Or an operator's certificate: it opens the API no more.
    ///
    /// It is refused from this call on; what is returned is done when that is written down.
    pub fn revoke(
        &self,
        id: &str,
    ) -> Result<impl Future<Output = Result<(), StoreError>>, IdentityError> {
        let now = self.clock.unix_seconds();
        let written = {
            let mut records = self.records();
            // Written under the lock, so that nothing noted later is written before it.
            self.store.write(vec![note_revoked(&mut records, id, now)?])
        };
        self.revoked.send_modify(|count| *count += 1);
        Ok(written)
    }

    /// Pods are not there any more: whatever their certificates say, they are held for revoked until
    /// the last of them has ended.
    pub fn pods_are_gone(&self, instances: &[Arc<str>]) {
        let ttl = i64::try_from(self.leaf_ttl.as_secs()).unwrap_or(i64::MAX);
        let ends = self.clock.unix_seconds().saturating_add(ttl);
        let ends = ends.saturating_add(token::CLOCK_SKEW);
        let beyond = self.records().depart(instances, ends);
        if beyond > 0 {
            tracing::warn!(
                beyond,
                "too many pods have gone within the life of a certificate: of some the certificates are not revoked, and end by themselves"
            );
        }
        self.tell_departed();
    }

    fn tell_departed(&self) {
        let count = self.records().departed().count();
        self.departed.send_replace(count);
    }

    /// Changes when pods have gone, or those that had are forgotten: how many of them are revoked.
    pub fn watch_departed(&self) -> watch::Receiver<usize> {
        self.departed.subscribe()
    }

    /// Signs a certificate for an operator. Records of certificates that have ended are cleared
    /// away.
    pub async fn sign_operator(
        &self,
        name: &str,
        csr: &[u8],
        ttl: Duration,
    ) -> Result<(OperatorRecord, SignedLeaf), IdentityError> {
        if !(operator::TTL_MIN..=operator::TTL_MAX).contains(&ttl) {
            let text = format!(
                "ttl: found {} s; allowed: 1 minute to 90 days",
                ttl.as_secs()
            );
            return Err(IdentityError::Invalid(text));
        }
        let id = format!("o-{}", crate::hex(&random::<8>()));
        let now = self.clock.wall();
        let leaf = self.signer.sign_operator(csr, name, &id, ttl, now)?;
        let operator = OperatorRecord {
            id: id.clone(),
            name: name.to_owned(),
            created: leaf.issued,
            not_after: leaf.not_after,
            revoked: None,
        };
        let written = {
            let mut records = self.records();
            let over = records
                .operators
                .extract_if(|_id, o| o.not_after < leaf.issued);
            let mut writes: Vec<RecordWrite> = over
                .map(|(id, _)| record::<OperatorRecord>(OPERATORS, &id, None))
                .collect();
            writes.push(record(OPERATORS, &id, Some(&operator)));
            records.operators.insert(id, operator.clone());
            self.store.write(writes)
        };
        written.await?;
        self.counters.signed.fetch_add(1, Ordering::Relaxed);
        Ok((operator, leaf))
    }

    /// Operators' certificates.
    pub fn operators(&self) -> Vec<OperatorRecord> {
        self.records().operators.values().cloned().collect()
    }

    /// The operator with a certificate, unless that was revoked.
    pub fn operator(&self, id: &str) -> Option<OperatorRecord> {
        let records = self.records();
        let operator = records.operators.get(id)?;
        operator.revoked.is_none().then(|| operator.clone())
    }

    /// Whether an instance was revoked.
    pub fn is_revoked(&self, instance: &str) -> bool {
        let records = self.records();
        let found = records.instance(instance);
        found.is_some_and(|i| i.revoked.is_some()) || records.has_departed(instance)
    }

    /// What an instance may do, unless it is unknown or revoked.
    pub fn binding_of(&self, instance: &str) -> Result<Binding, TokenError> {
        let records = self.records();
        let instance = records.instance(instance);
        let instance = instance.ok_or(TokenError::UnknownInstance)?;
        if instance.revoked.is_some() {
            return Err(TokenError::Revoked(instance.instance.clone()));
        }
        Ok(instance.binding.clone())
    }

    /// The workload that an instance was attested as.
    pub fn workload_of(&self, instance: &str) -> Option<WorkloadName> {
        let records = self.records();
        let instance = records.instance(instance)?;
        Some(instance.binding.workload.clone())
    }

    /// Services that an instance may serve.
    pub fn services_of(&self, instance: &str) -> Vec<ServiceName> {
        let records = self.records();
        let instance = records.instance(instance);
        instance.map_or_else(Vec::new, |i| i.binding.services.clone())
    }

    /// Changes whenever an instance or an operator is revoked. Subscribe before looking whether
    /// there was a revocation already.
    pub fn watch_revoked(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }
}

fn signed_for(instance: &InstanceRecord, leaf: SignedLeaf, identity: SpiffeId) -> Signed {
    Signed {
        leaf,
        identity,
        instance: instance.instance.clone(),
        binding: instance.binding.clone(),
        instance_key: None,
    }
}

fn note_revoked(records: &mut Records, id: &str, now: i64) -> Result<RecordWrite, IdentityError> {
    if let Some(operator) = records.operators.get_mut(id) {
        operator.revoked = operator.revoked.or(Some(now));
        return Ok(record(OPERATORS, id, Some(&*operator)));
    }
    records.take_pod_on_record(id, now);
    let found = records.instances.get_mut(id).ok_or_else(|| {
        IdentityError::Invalid(format!(
            "{id:?} is unknown; see `weft certs list` and `weft operator list`"
        ))
    })?;
    found.revoked = found.revoked.or(Some(now));
    Ok(record(INSTANCES, id, Some(&*found)))
}

fn unknown_credential() -> IdentityError {
    IdentityError::Invalid("no attestor for a credential of this kind".to_owned())
}

#[cfg(test)]
#[path = "identities_tests.rs"]
mod tests;
