//! Writes statuses, in the control plane that leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Api;
use kube::Client;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::merge;
use super::standing::standing;
use crate::api::{Proxies, Snapshots};
use crate::kubernetes::leader::Leader;
use crate::kubernetes::names::FIELD_MANAGER;
use crate::kubernetes::retry::{Attempts, Pauses};
use crate::kubernetes::told;
use crate::model::ResourceKey;
use crate::publish::Progress;
use crate::store::{KubernetesStore, Revision, Store, Subject};

/// Changes within this time are written together.
const TOGETHER: Duration = Duration::from_millis(250);
/// How long until everything is compared again, whatever has changed.
const COMPARE: Duration = Duration::from_secs(5);
/// The time from one write to the next: 20 in a second.
const PAUSE: Duration = Duration::from_millis(50);
/// Pauses between writes of one status, whether they succeed or not: a sidecar whose answers change all
/// the time makes no load.
const WRITTEN_AGAIN: Pauses = Pauses {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(60),
};
/// How long one write may take.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// Compares what statuses are with what they are to be, and writes the difference.
#[derive(Debug)]
pub struct StatusWriter {
    client: ClientOf,
    store: Arc<KubernetesStore>,
    snapshots: Arc<dyn Snapshots>,
    proxies: Arc<dyn Proxies>,
    leader: Leader,
}

#[derive(Clone)]
struct ClientOf(Client);

impl std::fmt::Debug for ClientOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl StatusWriter {
    /// A writer that works while this process leads.
    pub fn new(
        client: Client,
        store: Arc<KubernetesStore>,
        snapshots: Arc<dyn Snapshots>,
        proxies: Arc<dyn Proxies>,
        leader: Leader,
    ) -> Self {
        Self {
            client: ClientOf(client),
            store,
            snapshots,
            proxies,
            leader,
        }
    }

    /// Writes while this process leads.
    pub async fn keep(mut self) {
        loop {
            self.leader.elected().await;
            self.lead().await;
        }
    }

    /// Writes until this process leads no longer.
    async fn lead(&self) {
        let mut revisions = self.store.watch();
        let mut progress = self.proxies.watch();
        let mut attempts = Attempts::new(WRITTEN_AGAIN);
        while self.leader.leads() {
            self.write_all(&mut attempts).await;
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

    /// Writes every status that is not what it is to be, and whose document may be written now.
    async fn write_all(&self, attempts: &mut Attempts<ResourceKey>) {
        let subjects = self.store.subjects();
        let newest = subjects.iter().map(|subject| subject.revision).max();
        // What is said of a document is said of the version that was compiled.
        let compiled = self.snapshots.at_least(newest.unwrap_or_default());
        let Ok(snapshot) = timeout(COMPARE, compiled).await else {
            return;
        };
        let mut progress: BTreeMap<Revision, Progress> = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        let (mut refused, mut refusals) = (None, 0_usize);
        for subject in subjects {
            let revision = subject.revision;
            let progress = progress.entry(revision);
            let progress = progress.or_insert_with(|| self.proxies.progress(revision));
            // Asked after the progress: whoever is said to have seen the document has said by then that it
            // refuses it.
            let elsewhere = self.proxies.refused(&subject.key, subject.generation);
            let standing = standing(&snapshot, &subject, progress, elsewhere.as_ref());
            let now = jiff::Timestamp::now().round(jiff::Unit::Second);
            let now = now.map(|now| now.to_string()).unwrap_or_default();
            let status = merge(&subject.status, &standing, subject.generation, &now);
            let Some(status) = status else { continue };
            wanted.insert(subject.key.clone());
            if !attempts.is_due(&subject.key, Instant::now()) {
                continue;
            }
            if !self.leader.leads() {
                return;
            }
            match self.write(&subject, status).await {
                Ok(()) => attempts.succeeded(subject.key, Instant::now()),
                Err(error) => {
                    let key = subject.key;
                    let again_in = attempts.failed(key.clone(), Instant::now());
                    tracing::debug!(%key, error.said, ?again_in, "a status was not written");
                    if !error.moved_on {
                        refused.get_or_insert((key, error.said));
                        refusals += 1;
                    }
                }
            }
            sleep(PAUSE).await;
        }
        // One line for all: there may be as many as documents.
        if let Some((key, error)) = refused {
            tracing::warn!(refusals, %key, error, "statuses are not written, this one first; tried again");
        }
        attempts.forget(Instant::now(), |key| wanted.contains(key));
    }

    /// Writes a status on the version that was read. One that has moved on is looked at again.
    async fn write(&self, subject: &Subject, status: Value) -> Result<(), NotWritten> {
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
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(NotWritten {
                moved_on: matches!(&error, kube::Error::Api(said) if [404, 409].contains(&said.code)),
                said: told(&error),
            }),
            Err(_elapsed) => Err(NotWritten {
                moved_on: false,
                said: format!("no answer within {WRITE_MAX:?}"),
            }),
        }
    }
}

/// Why a status was not written.
struct NotWritten {
    /// The document is another one by now, or gone.
    moved_on: bool,
    said: String,
}
