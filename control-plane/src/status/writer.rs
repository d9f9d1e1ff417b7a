//! Writes statuses, in the control plane that holds the lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::Client;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::merge;
use super::standing::standing;
use crate::api::{Proxies, Snapshots};
use crate::kubernetes::names::{CONTROL_PLANE, FIELD_MANAGER};
use crate::publish::Progress;
use crate::store::{KubernetesStore, Lease, Revision, Store, Subject};

/// For how long the lease of the writer is taken.
const LEASE: Duration = Duration::from_secs(15);
/// How often the lease is renewed, and asked for by those who do not have it.
const RENEW: Duration = Duration::from_secs(5);
/// Changes within this time are written together.
const TOGETHER: Duration = Duration::from_millis(250);
/// How long until everything is compared again, whatever has changed.
const COMPARE: Duration = Duration::from_secs(5);
/// The time from one write to the next: 20 in a second.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one write may take.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// Compares what statuses are with what they are to be, and writes the difference.
#[derive(Debug)]
pub struct StatusWriter {
    client: ClientOf,
    store: Arc<KubernetesStore>,
    snapshots: Arc<dyn Snapshots>,
    proxies: Arc<dyn Proxies>,
    /// Who holds the lease, if this process does.
    holder: String,
    /// Whether it does.
    leads: watch::Sender<bool>,
}

#[derive(Clone)]
struct ClientOf(Client);

impl std::fmt::Debug for ClientOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl StatusWriter {
    /// A writer that is one of several by this name.
    pub fn new(
        client: Client,
        store: Arc<KubernetesStore>,
        snapshots: Arc<dyn Snapshots>,
        proxies: Arc<dyn Proxies>,
        holder: String,
    ) -> Self {
        Self {
            client: ClientOf(client),
            store,
            snapshots,
            proxies,
            holder,
            leads: watch::Sender::new(false),
        }
    }

    /// Whether this process holds the lease: the lease elects and does not fence.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Takes the lease whenever it is free, and writes while it has it.
    pub async fn keep(self) {
        loop {
            match self.store.lease(CONTROL_PLANE, &self.holder, LEASE).await {
                Ok(lease) => {
                    tracing::info!(holder = self.holder, "leads: statuses are written here");
                    self.leads.send_replace(true);
                    self.lead(lease).await;
                    self.leads.send_replace(false);
                }
                Err(error) => tracing::debug!(%error, "does not lead"),
            }
            sleep(RENEW).await;
        }
    }

    /// Writes until the lease is lost.
    async fn lead(&self, lease: Lease) {
        let mut revisions = self.store.watch();
        let mut progress = self.proxies.watch();
        let mut renewed = Instant::now();
        loop {
            if renewed.elapsed() >= RENEW {
                if let Err(error) = self.store.renew(&lease).await {
                    tracing::warn!(%error, "leads no longer");
                    return;
                }
                renewed = Instant::now();
            }
            if !self.write_all(&lease, &mut renewed).await {
                return;
            }
            let changed = async {
                tokio::select! {
                    changed = revisions.changed() => changed.is_ok(),
                    changed = progress.changed() => changed.is_ok(),
                }
            };
            let _elapsed_compares_anyway = timeout(COMPARE, changed).await;
            sleep(TOGETHER).await;
        }
    }

    /// Writes every status that is not what it is to be; whether the lease is held still.
    async fn write_all(&self, lease: &Lease, renewed: &mut Instant) -> bool {
        let subjects = self.store.subjects();
        let newest = subjects.iter().map(|subject| subject.revision).max();
        // What is said of a document is said of the version that was compiled.
        let compiled = self.snapshots.at_least(newest.unwrap_or_default());
        let Ok(snapshot) = timeout(COMPARE, compiled).await else {
            return true;
        };
        let mut progress: BTreeMap<Revision, Progress> = BTreeMap::new();
        for subject in subjects {
            let revision = subject.revision;
            let progress = progress.entry(revision);
            let progress = progress.or_insert_with(|| self.proxies.progress(revision));
            let standing = standing(&snapshot, &subject, revision, progress);
            let now = jiff::Timestamp::now().round(jiff::Unit::Second);
            let now = now.map(|now| now.to_string()).unwrap_or_default();
            let status = merge(&subject.status, &standing, subject.generation, &now);
            let Some(status) = status else { continue };
            if renewed.elapsed() >= RENEW {
                if let Err(error) = self.store.renew(lease).await {
                    tracing::warn!(%error, "leads no longer");
                    return false;
                }
                *renewed = Instant::now();
            }
            self.write(&subject, status).await;
            sleep(PAUSE).await;
        }
        true
    }

    /// Writes a status on the version that was read. One that has moved on is looked at again.
    async fn write(&self, subject: &Subject, status: Value) {
        let key = &subject.key;
        let client = self.client.0.clone();
        let api: Api<DynamicObject> =
            Api::namespaced_with(client, &key.namespace, &subject.resource);
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": subject.version},
            "status": status,
        }));
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match timeout(WRITE_MAX, api.patch_status(&key.name, &params, &patch)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(%key, %error, "a status was not written; tried again")
            }
            Err(_elapsed) => tracing::debug!(%key, "a status was not written in time; tried again"),
        }
    }
}
