//! Registrations with their records and streams.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use weft_core::model::{Cidr, Registration};

use super::changes::{Changes, RegistryDelta};
use super::machine::{Entry, Refused, Registry, check_binding, check_values};
use crate::budget::StreamKind;
use crate::identity::token::TokenError;
use crate::identity::{Identities, IdentityError};
use crate::peers::Peers;
use crate::store::{RecordWrite, Store, StoreError, read_records, record};
use crate::tls::PeerIdentity;
use crate::unix_millis;

/// The table of the store.
const ENTRIES: &str = "registration";
/// A registration's stream whose place another one of its instance has taken ends after this long.
const SUPERSEDED_KEPT: Duration = Duration::from_secs(2);
/// How often the registry is looked through for those whose grace is over.
const EXPIRE_EVERY: Duration = Duration::from_millis(250);

/// Why a registration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The registration is refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The instance is unknown or revoked.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Not kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A workload that was taken out because it leaves.
#[derive(Debug)]
pub struct Departed {
    /// What it had registered.
    pub entry: Entry,
    /// The number of the change, as [`Changes`] counts.
    pub change: u64,
}

/// Tells others that a workload leaves.
pub trait Departures: std::fmt::Debug + Send + Sync {
    /// Waits until everybody whom it concerns knows; false when that took too long.
    fn told(&self, departed: Departed) -> BoxFuture<'_, bool>;
}

/// Owns the registry and its records on disk. A registration is durable before it is answered and
/// before others hear of it.
#[derive(Debug)]
pub struct Registrations {
    store: Arc<dyn Store>,
    identities: Arc<Identities>,
    grace: Duration,
    virtual_ranges: Vec<Cidr>,
    registry: Mutex<Registry>,
    peers: Arc<Peers>,
    changes: Arc<Changes>,
}

impl Registrations {
    /// Takes up what the store holds. A workload without a stream is kept for `grace`; nobody may
    /// register an address in `virtual_ranges`.
    pub fn open(
        store: Arc<dyn Store>,
        identities: Arc<Identities>,
        peers: Arc<Peers>,
        grace: Duration,
        virtual_ranges: Vec<Cidr>,
    ) -> Result<Arc<Self>, StoreError> {
        let entries = read_records::<Entry>(&*store, ENTRIES)?.into_iter();
        let entries = entries.map(|(_, entry)| entry).collect();
        let registry = Registry::restore(entries, unix_millis(), millis(grace));
        let changes = Changes::default();
        for entry in registry.iter() {
            changes.changed(RegistryDelta::Put(Arc::new(entry.clone())));
        }
        Ok(Arc::new(Self {
            store,
            identities,
            grace,
            virtual_ranges,
            registry: Mutex::new(registry),
            peers,
            changes: Arc::new(changes),
        }))
    }

    /// The queue of changes, for one consumer. It begins with everybody who was on record.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// Takes out workloads whose grace is over. Runs until the task is dropped.
    pub async fn keep_expired(self: Arc<Self>) {
        let mut expire = tokio::time::interval(EXPIRE_EVERY);
        loop {
            expire.tick().await;
            self.expire().await;
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is connected.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// How long a stream whose place was taken is left to end by itself: the sidecar that moves to
    /// another connection ends it as soon as it has heard of that. Shorter than the grace, in which
    /// a sidecar that did not move has to register anew.
    pub fn superseded_kept(&self) -> Duration {
        SUPERSEDED_KEPT.min(self.grace / 2)
    }

    /// Takes a registration of an instance; durable when it answers. Returns the number of the
    /// change, as [`Changes`] counts.
    pub async fn register(
        &self,
        peer: &PeerIdentity,
        stream: u64,
        registration: Registration,
    ) -> Result<u64, RegisterError> {
        let entry = Entry {
            instance: Arc::clone(&peer.instance),
            identity: peer.identity.clone(),
            registration,
            stream: Some(stream),
            expires: 0,
        };
        let name = entry.registration.workload.clone();
        let written = {
            let registry = self.registry();
            self.may_register(&registry, &entry)?;
            self.store.write(vec![write_of(&entry)])
        };
        written.await?;
        let refused = match self.put(entry) {
            Ok(change) => return Ok(change),
            Err(refused) => refused,
        };
        // The record is not ours: what is registered under the name is written once more.
        let kept = {
            let registry = self.registry();
            let kept = registry.get(&name);
            self.store
                .write(vec![record(ENTRIES, &name.to_string(), kept)])
        };
        kept.await?;
        Err(refused)
    }

    /// Another one may have come, or this one may have been revoked, while it was written.
    fn put(&self, entry: Entry) -> Result<u64, RegisterError> {
        let mut registry = self.registry();
        self.may_register(&registry, &entry)?;
        let instance = Arc::clone(&entry.instance);
        let older = registry.put(entry.clone());
        let put = RegistryDelta::Put(Arc::new(entry));
        let change = self.changes.changed(put);
        drop(registry);
        if let Some(older) = older {
            self.peers
                .supersede(&instance, StreamKind::Registration, older);
        }
        Ok(change)
    }

    fn may_register(&self, registry: &Registry, entry: &Entry) -> Result<(), RegisterError> {
        let binding = self.identities.binding_of(&entry.instance)?;
        let registration = &entry.registration;
        check_binding(&binding, registration)?;
        check_values(registration, &self.virtual_ranges)?;
        let stream = entry.stream.unwrap_or_default();
        Ok(registry.check(&entry.instance, stream, registration)?)
    }

    /// A registration's stream has ended: its grace begins.
    pub fn disconnected(&self, stream: u64) {
        let grace = millis(self.grace);
        self.registry()
            .handle_disconnect(stream, unix_millis(), grace);
    }

    /// Takes out what a stream registered, if that was anything. Durable when it answers, or told
    /// in the log.
    pub async fn leave(&self, stream: u64) -> Option<Departed> {
        let (departed, written) = {
            let mut registry = self.registry();
            let grace = millis(self.grace);
            let entry = registry.remove_stream(stream, unix_millis(), grace)?;
            let (write, change) = self.removed(&entry);
            (Departed { entry, change }, self.store.write(vec![write]))
        };
        if let Err(error) = written.await {
            tracing::error!(%error, "goodbye not kept");
        }
        Some(departed)
    }

    /// Revokes an instance, or an operator's certificate, and takes out what the instance
    /// registered. In force even if it cannot be written down.
    pub async fn revoke(&self, id: &str) -> Result<(), IdentityError> {
        let revoked = self.identities.revoke(id)?;
        let removed = {
            let mut registry = self.registry();
            let entry = registry.remove(id);
            entry.map(|entry| self.store.write(vec![self.removed(&entry).0]))
        };
        revoked.await?;
        if let Some(removed) = removed {
            removed.await?;
        }
        Ok(())
    }

    async fn expire(&self) {
        let written = {
            let mut registry = self.registry();
            let gone = registry.expire(unix_millis());
            if gone.is_empty() {
                return;
            }
            for entry in &gone {
                let workload = &entry.registration.workload;
                tracing::info!(%workload, "gone for longer than the grace: taken out");
            }
            let writes = gone.iter().map(|entry| self.removed(entry).0);
            self.store.write(writes.collect())
        };
        if let Err(error) = written.await {
            tracing::error!(%error, "expiry not kept");
        }
    }

    /// Tells that an entry was taken out; what is to be written, and the number of the change. To be
    /// called under the lock.
    fn removed(&self, entry: &Entry) -> (RecordWrite, u64) {
        let workload = entry.registration.workload.clone();
        let write = record::<Entry>(ENTRIES, &workload.to_string(), None);
        let change = self.changes.changed(RegistryDelta::Removed(workload));
        (write, change)
    }

    /// Everybody who is there.
    pub fn entries(&self) -> Vec<Entry> {
        self.registry().iter().cloned().collect()
    }

    /// How many are there.
    pub fn len(&self) -> usize {
        self.registry().iter().count()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.registry().iter().next().is_none()
    }
}

fn write_of(entry: &Entry) -> RecordWrite {
    let name = entry.registration.workload.to_string();
    record(ENTRIES, &name, Some(entry))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
