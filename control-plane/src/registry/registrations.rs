//! Registrations with their records and streams.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_core::model::{Cidr, Registration};
use weft_core::name::WorkloadName;

use super::changes::{Changes, RegistryDelta};
use super::machine::{Entry, Refused, Registry, check_binding, check_values};
use super::ownership::{Origin, check_addresses, may_be_scraped};
use super::writing::State;
use crate::budget::StreamKind;
use crate::clock::Clock;
use crate::identity::service_account::is_pod;
use crate::identity::token::TokenError;
use crate::identity::{Identities, IdentityError};
use crate::peer::PeerIdentity;
use crate::peers::Peers;
use crate::store::{RecordWrite, Store, StoreError, read_records, record};

/// The table of the store.
const ENTRIES: &str = "registration";
/// A registration's stream whose place another one of its instance has taken ends after this long.
const SUPERSEDED_KEPT: Duration = Duration::from_secs(2);
/// How often the registry is looked through for those whose grace is over.
const EXPIRE_EVERY: Duration = Duration::from_millis(250);
/// How long after records could not be written it is tried again.
const WRITE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Records that are written again in one write.
const WRITE_AGAIN_MAX: usize = 1_000;

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

/// What registrations are kept by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a workload is kept after its stream has ended.
    pub grace: Duration,
    /// How long after the start a workload is kept that is on record and has not come back.
    pub restart_grace: Duration,
    /// Ranges of virtual addresses, which are nobody's own.
    pub virtual_ranges: Vec<Cidr>,
}

/// Owns the registry and its records on disk. A registration is durable before it is answered and
/// before others hear of it.
///
/// Invariant: records are written in the order in which the registry changes, so that the last
/// record of a workload says what the registry says of it. A write that failed, or whose answer nobody
/// waited for, is made up for by [`Registrations::keep`].
#[derive(Debug)]
pub struct Registrations {
    store: Arc<dyn Store>,
    identities: Arc<Identities>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    state: Mutex<State>,
    peers: Arc<Peers>,
    changes: Arc<Changes>,
    /// Told when there are records to be written again.
    unwritten: Notify,
}

impl Registrations {
    /// Takes up what the store holds.
    pub fn open(
        store: Arc<dyn Store>,
        identities: Arc<Identities>,
        peers: Arc<Peers>,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StoreError> {
        let entries = read_records::<Entry>(&*store, ENTRIES)?.into_iter();
        let entries = entries.map(|(_, entry)| entry).collect();
        let registry = Registry::restore(entries, clock.now(), settings.restart_grace);
        let changes = Changes::default();
        for entry in registry.iter() {
            changes.changed(RegistryDelta::Put(Arc::new(entry.clone())));
        }
        let state = State {
            registry,
            ..State::default()
        };
        let registrations = Arc::new(Self {
            store,
            identities,
            clock,
            settings,
            state: Mutex::new(state),
            peers,
            changes: Arc::new(changes),
            unwritten: Notify::new(),
        });
        registrations.take_out_revoked();
        Ok(registrations)
    }

    /// A revocation and the end of what its instance registered are written one after the other: a
    /// crash in between leaves the second to be done. [`Registrations::keep`] writes it down.
    fn take_out_revoked(&self) {
        for entry in self.entries() {
            if let Err(error) = self.identities.binding_of(&entry.instance) {
                let workload = &entry.registration.workload;
                tracing::warn!(%workload, %error, "on record, but not attested: taken out");
                let mut state = self.state();
                if let Some(entry) = state.registry.remove(&entry.instance) {
                    self.removed(&mut state, &entry);
                    state.note_unwritten(entry.registration.workload);
                }
            }
        }
        self.unwritten.notify_one();
    }

    /// The queue of changes, for one consumer. It begins with everybody who was on record.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// Takes out workloads whose grace is over, and writes records again that could not be written.
    /// Runs until the task is dropped.
    pub async fn keep(self: Arc<Self>) {
        let mut expire = tokio::time::interval(EXPIRE_EVERY);
        let mut write_again_at = Instant::now();
        loop {
            tokio::select! {
                _ = expire.tick() => self.expire().await,
                () = self.unwritten.notified() => {}
            }
            if write_again_at <= Instant::now()
                && let Err(error) = self.write_again().await
            {
                tracing::error!(%error, "registrations not kept; tried again");
                write_again_at = Instant::now() + WRITE_AGAIN_AFTER;
            }
        }
    }

    /// Writes what the registry says of workloads whose record may say something else.
    async fn write_again(&self) -> Result<(), StoreError> {
        loop {
            let (numbers, written) = {
                let mut state = self.state();
                let numbers = state.unwritten.iter().take(WRITE_AGAIN_MAX);
                let numbers = numbers.map(|(workload, number)| (workload.clone(), *number));
                let numbers: Vec<(WorkloadName, u64)> = numbers.collect();
                if numbers.is_empty() {
                    return Ok(());
                }
                let mut writes = Vec::with_capacity(numbers.len());
                for (workload, _number) in &numbers {
                    state.note_write(workload);
                    let kept = state.registry.get(workload);
                    writes.push(record(ENTRIES, &workload.to_string(), kept));
                }
                (numbers, self.store.write(writes))
            };
            written.await?;
            let mut state = self.state();
            for (workload, number) in numbers {
                // Another write may have failed meanwhile.
                if state.unwritten.get(&workload) == Some(&number) {
                    state.unwritten.remove(&workload);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is connected.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// How long a stream whose place was taken is left to end by itself: the sidecar that moves to
    /// another connection ends it as soon as it has heard of that. Shorter than the grace, in which
    /// a sidecar that did not move has to register anew.
    pub fn superseded_kept(&self) -> Duration {
        SUPERSEDED_KEPT.min(self.settings.grace / 2)
    }

    /// Takes a registration of an instance that came over a connection from `address`; durable when
    /// it answers. Returns the number of the change, as [`Changes`] counts.
    pub async fn register(
        &self,
        peer: &PeerIdentity,
        address: SocketAddr,
        stream: u64,
        mut registration: Registration,
    ) -> Result<u64, RegisterError> {
        if is_pod(&peer.instance) {
            return Err(Refused::Value {
                field: "workload",
                found: registration.workload.to_string(),
                allowed: "workloads outside the cluster: where a pod is and what it serves is said by the cluster's API",
            }
            .into());
        }
        let binding = self.identities.binding_of(&peer.instance)?;
        check_binding(&binding, &registration)?;
        binding.check_names().map_err(Refused::from)?;
        check_values(&registration, &self.settings.virtual_ranges)?;
        let origin = Origin::of(address, &registration);
        check_addresses(&registration, &binding.addresses, &origin)?;
        if !may_be_scraped(&registration, &binding.addresses, &origin) {
            // A sidecar that serves its metrics on its own loopback says so: that is no fault.
            registration.metrics_target.clear();
        }
        let entry = Entry {
            instance: Arc::clone(&peer.instance),
            identity: peer.identity.clone(),
            registration,
            stream: Some(stream),
            expires: Default::default(),
        };
        let (mut under_way, written) = self.begin_writing(&entry)?;
        written.await?;
        let (change, written_again) = under_way.put(entry)?;
        if let Some(written_again) = written_again {
            written_again.done().await?;
        }
        Ok(change)
    }

    fn begin_writing(
        &self,
        entry: &Entry,
    ) -> Result<(UnderWay<'_>, BoxFuture<'_, Result<(), StoreError>>), RegisterError> {
        let mut state = self.state();
        self.may_register(&state, entry)?;
        let workload = entry.registration.workload.clone();
        let number = state.begin_writing(&workload);
        let written = self.store.write(vec![write_of(entry)]);
        let under_way = UnderWay {
            all: self,
            workload,
            number: Some(number),
        };
        Ok((under_way, written))
    }

    fn may_register(&self, state: &State, entry: &Entry) -> Result<(), RegisterError> {
        self.identities.binding_of(&entry.instance)?;
        let stream = entry.stream.unwrap_or_default();
        let registration = &entry.registration;
        Ok(state
            .registry
            .check(&entry.instance, stream, registration)?)
    }

    /// A registration's stream has ended: its grace begins.
    pub fn disconnected(&self, stream: u64) {
        let now = self.clock.now();
        let grace = self.settings.grace;
        self.state().registry.handle_disconnect(stream, now, grace);
    }

    /// Takes out what a stream registered, if that was anything. Durable when it answers, or told
    /// in the log.
    pub async fn leave(&self, stream: u64) -> Option<Departed> {
        let (departed, written) = {
            let mut state = self.state();
            let (now, grace) = (self.clock.now(), self.settings.grace);
            let entry = state.registry.remove_stream(stream, now, grace)?;
            let change = self.removed(&mut state, &entry);
            let written = self.write_removals(std::slice::from_ref(&entry));
            (Departed { entry, change }, written)
        };
        if let Err(error) = written.done().await {
            tracing::error!(%error, "goodbye not kept; tried again");
        }
        Some(departed)
    }

    /// Revokes an instance, or an operator's certificate, and takes out what the instance
    /// registered. In force even if it cannot be written down.
    pub async fn revoke(&self, id: &str) -> Result<(), IdentityError> {
        let revoked = self.identities.revoke(id)?;
        let removed = {
            let mut state = self.state();
            let entry = state.registry.remove(id);
            entry.map(|entry| {
                self.removed(&mut state, &entry);
                self.write_removals(&[entry])
            })
        };
        revoked.await?;
        if let Some(removed) = removed {
            removed.done().await?;
        }
        Ok(())
    }

    async fn expire(&self) {
        let written = {
            let mut state = self.state();
            let gone = state.registry.expire(self.clock.now());
            if gone.is_empty() {
                return;
            }
            for entry in &gone {
                let workload = &entry.registration.workload;
                tracing::info!(%workload, "gone for longer than the grace: taken out");
                self.removed(&mut state, entry);
            }
            // Queued under the lock: a registration that comes next is written after it.
            self.write_removals(&gone)
        };
        if let Err(error) = written.done().await {
            tracing::error!(%error, "expiry not kept; tried again");
        }
    }

    /// Tells that an entry was taken out; the number of the change. Its record is to be removed
    /// under the same lock.
    fn removed(&self, state: &mut State, entry: &Entry) -> u64 {
        let workload = entry.registration.workload.clone();
        state.note_write(&workload);
        self.changes.changed(RegistryDelta::Removed(workload))
    }

    fn write_removals(&self, gone: &[Entry]) -> Queued<'_> {
        let names = gone.iter().map(|entry| entry.registration.workload.clone());
        let workloads: Vec<WorkloadName> = names.collect();
        let removal = |name: &WorkloadName| record::<Entry>(ENTRIES, &name.to_string(), None);
        let written = self.store.write(workloads.iter().map(removal).collect());
        Queued {
            all: self,
            workloads,
            written,
        }
    }

    /// Everybody who is there.
    pub fn entries(&self) -> Vec<Entry> {
        self.state().registry.iter().cloned().collect()
    }

    /// How many are there.
    pub fn len(&self) -> usize {
        self.state().registry.len()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.state().registry.is_empty()
    }
}

/// A registration that is being written down. Whatever becomes of it, the record of the workload
/// says in the end what the registry says, also when the caller goes away.
#[derive(Debug)]
struct UnderWay<'a> {
    all: &'a Registrations,
    workload: WorkloadName,
    /// The number of its write; `None` once it has ended.
    number: Option<u64>,
}

impl<'a> UnderWay<'a> {
    /// Puts the entry, now that it is durable. Another one may have come, or the instance may have
    /// been revoked, meanwhile. Where the record was written by others meanwhile it is written
    /// again, which is returned with the number of the change.
    fn put(&mut self, entry: Entry) -> Result<(u64, Option<Queued<'a>>), RegisterError> {
        let all = self.all;
        let mut state = all.state();
        // Refused, it is undone when this is dropped.
        all.may_register(&state, &entry)?;
        let number = self.number.take();
        let is_newest = number.is_none_or(|number| state.end_writing(&self.workload, number));
        let again = (!is_newest).then(|| {
            state.note_write(&self.workload);
            Queued {
                all,
                workloads: vec![self.workload.clone()],
                written: all.store.write(vec![write_of(&entry)]),
            }
        });
        let instance = Arc::clone(&entry.instance);
        let older = state.registry.put(entry.clone());
        let put = RegistryDelta::Put(Arc::new(entry));
        let change = all.changes.changed(put);
        drop(state);
        if let Some(older) = older {
            all.peers
                .supersede(&instance, StreamKind::Registration, older);
        }
        Ok((change, again))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number.take() else {
            return;
        };
        let mut state = self.all.state();
        if state.end_writing(&self.workload, number) {
            state.note_write(&self.workload);
            let kept = state.registry.get(&self.workload);
            let write = record(ENTRIES, &self.workload.to_string(), kept);
            let queued = Queued {
                all: self.all,
                workloads: vec![self.workload.clone()],
                written: self.all.store.write(vec![write]),
            };
            drop(state);
            // Queued by the call, so that it is made even if the process ends. Nobody waits for it:
            // it is noted as one that may have failed.
            drop(queued);
        }
    }
}

/// Records that are being written. Where that fails, or nobody waits for it, they are written again.
struct Queued<'a> {
    all: &'a Registrations,
    /// Whose records, as long as they are not durable.
    workloads: Vec<WorkloadName>,
    written: BoxFuture<'a, Result<(), StoreError>>,
}

impl Queued<'_> {
    /// Waits until the records are durable.
    async fn done(mut self) -> Result<(), StoreError> {
        (&mut self.written).await?;
        self.workloads.clear();
        Ok(())
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if self.workloads.is_empty() {
            return;
        }
        let mut state = self.all.state();
        for workload in self.workloads.drain(..) {
            state.note_unwritten(workload);
        }
        self.all.unwritten.notify_one();
    }
}

fn write_of(entry: &Entry) -> RecordWrite {
    let name = entry.registration.workload.to_string();
    record(ENTRIES, &name, Some(entry))
}

#[cfg(test)]
#[path = "registrations_tests.rs"]
mod tests;
