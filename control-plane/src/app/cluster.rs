//! What a control plane in a cluster does besides: its store is the cluster, and one of several does
//! what only one is to do.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_core::name::TrustDomain;

use super::AppError;
use super::assemble::Parts;
use super::injection::InjectorSettings;
use super::listeners::OwnCertificate;
use crate::cluster::Cluster;
use crate::hex;
use crate::identity::ca::{self, Authority};
use crate::interception;
use crate::kubernetes::endpoints::follow_control_planes;
use crate::kubernetes::events::PodEvents;
use crate::kubernetes::leader::{Election, Leader};
use crate::kubernetes::names::CONTROL_PLANE;
use crate::kubernetes::watches::Watch;
use crate::missing_sidecar::{Eviction, Keeper};
use crate::ratelimit;
use crate::replicas::{self, Dialling};
use crate::status::StatusWriter;
use crate::store::{KubernetesOptions, KubernetesStore, StoreLease};
use crate::supervise::Supervisor;

/// The store of a cluster.
pub(super) async fn open_store(cluster: &Cluster) -> Result<Arc<KubernetesStore>, AppError> {
    let watches = Arc::clone(&cluster.watches);
    let options = KubernetesOptions::new(&cluster.settings.namespace, watches);
    Ok(KubernetesStore::open(cluster.client.clone(), options).await?)
}

/// Who leads keeps the books of global limits.
impl ratelimit::KeeperElection for Leader {
    fn term(&self) -> Option<ratelimit::KeeperTerm> {
        let (number, asked_at) = self.term()?;
        let asked_at = Some(asked_at);
        Some(ratelimit::KeeperTerm { number, asked_at })
    }
}

/// What a control plane in a cluster is begun with besides.
pub(super) struct InCluster {
    pub(super) cluster: Cluster,
    pub(super) store: Arc<KubernetesStore>,
    pub(super) injection: (InjectorSettings, Option<Eviction>),
    /// Of what only one is to do; it was not held yet.
    pub(super) election: (Election, Leader),
}

impl InCluster {
    /// Follows the other control planes. Has done what one of them does for all, the one that is elected:
    /// the statuses of documents are written, pods without a sidecar looked after, and lost interception
    /// told of. Gives who that is.
    pub(super) fn begin(
        self,
        tasks: &mut Supervisor,
        parts: &Parts,
        own: &OwnCertificate,
        stop: CancellationToken,
    ) -> Leader {
        let Self {
            cluster,
            store,
            injection,
            election: (election, leader),
        } = self;
        follow_others(tasks, &cluster, parts, own);
        let of_lease = cluster.watches.begin("leases");
        elect(tasks, election, (Arc::clone(&store), of_lease), stop);
        let telling = interception::Teller::new(
            PodEvents::new(cluster.client.clone(), parts.pod_counters.clone()),
            Arc::clone(&parts.observations),
            Arc::clone(&parts.replicas),
            Arc::clone(&parts.pipeline),
            leader.clone(),
        );
        tasks.spawn("interception", telling.keep());
        let backend = parts.backend();
        let writer = StatusWriter::new(
            cluster.client.clone(),
            store,
            backend.snapshots,
            backend.proxies,
            leader.clone(),
        );
        if let Some(candidates) = parts.candidates.clone() {
            let (settings, eviction) = injection;
            let watch = cluster.watches.begin("namespaces-without-sidecar");
            let (client, counters) = ((cluster.client, watch), parts.pod_counters.clone());
            let leader = leader.clone();
            tasks.spawn("pods without a sidecar", async move {
                let settings = settings.whole().await;
                let keeper = Keeper::new(client, counters, settings, candidates, eviction, leader);
                keeper.keep().await;
            });
        }
        tasks.spawn("statuses", writer.keep());
        leader
    }
}

/// Has one of the cluster's control planes elected for what only one is to do.
fn elect(
    tasks: &mut Supervisor,
    election: Election,
    (store, watch): (Arc<KubernetesStore>, Watch),
    stop: CancellationToken,
) {
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    let holder = format!("{pod}_{}", hex(&crate::random::<8>()));
    let lease = StoreLease::new(store, watch, CONTROL_PLANE, &holder);
    tasks.spawn("election", election.keep(lease, stop));
}

/// Follows the cluster's other control planes, and what they tell of their sidecars.
fn follow_others(tasks: &mut Supervisor, cluster: &Cluster, parts: &Parts, own: &OwnCertificate) {
    let Ok(identity) = replicas::identity(own.authority.trust_domain()) else {
        return;
    };
    let dialling = Dialling {
        authority: Arc::clone(&own.authority),
        ttl: own.ttl,
        identity,
    };
    let begun = std::time::Instant::now();
    parts.replicas.await_list(cluster.runs_in_pod, begun);
    let (sender, found) = watch::channel(None);
    let namespace = cluster.settings.namespace.clone();
    let watch = cluster.watches.begin("control-planes");
    let finding = follow_control_planes(cluster.client.clone(), namespace, watch, sender);
    tasks.spawn("finding control planes", finding);
    let following = Arc::clone(&parts.replicas).keep(found, dialling);
    tasks.spawn("control planes", following);
}

/// The authority of a cluster's mesh.
pub(super) async fn open_authority(
    cluster: &Cluster,
    dir: &Path,
    trust_domain: TrustDomain,
) -> Result<Authority, AppError> {
    let namespace = &cluster.settings.namespace;
    let opened = ca::open_in_cluster(&cluster.client, namespace, dir, trust_domain).await;
    Ok(opened?)
}
