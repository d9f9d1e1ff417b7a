//! Everything that is behind the listeners, made and started.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use weft_core::name::TrustDomain;

use super::AppError;
use crate::args::Settings;
use crate::budget::Limits;
use crate::clock::SystemClock;
use crate::cluster::Cluster;
use crate::health::{Health, Pulse};
use crate::identity::ca::Authority;
use crate::identity::{self, Attestor, Identities};
use crate::kubernetes::ClusterTokens;
use crate::kubernetes::events::PodCounters;
use crate::missing_sidecar::Candidates;
use crate::model::Document;
use crate::peers::Peers;
use crate::pipeline::{self, Pipeline};
use crate::publish::Publisher;
use crate::ratelimit::{KeeperElection, Leases, MeshLimits};
use crate::registry::{self, Observations, Registrations};
use crate::replicas::Replicas;
use crate::sources::kubernetes::ClusterStatus;
use crate::sources::{
    AddressSource, DepartedPods, IdentitySource, KubernetesSource, RegistrySource, Source,
    StoreSource,
};
use crate::store::{RedbStore, Store, StoreError};
use crate::supervise::Supervisor;

/// What a control plane consists of; each part knows only those that it needs.
#[derive(Debug)]
pub(crate) struct Parts {
    /// What was asked for.
    pub(crate) store: Arc<dyn Store>,
    /// Who somebody is.
    pub(crate) identities: Arc<Identities>,
    /// Who is connected, and what they may use.
    pub(crate) peers: Arc<Peers>,
    /// Who is there.
    pub(crate) registrations: Arc<Registrations>,
    /// What sidecars see.
    pub(crate) observations: Arc<Observations>,
    /// What follows from all that.
    pub(crate) pipeline: Arc<Pipeline>,
    /// Who is told of it.
    pub(crate) publisher: Arc<Publisher>,
    /// Shares of global limits.
    pub(crate) leases: Arc<Leases>,
    /// What other control planes tell of their sidecars.
    pub(crate) replicas: Arc<Replicas>,
    /// How far the cluster's objects have come; nothing outside of a cluster.
    pub(crate) cluster: Option<Arc<ClusterStatus>>,
    /// Pods of the cluster without a sidecar.
    pub(crate) candidates: Option<Arc<Candidates>>,
    /// What was said of pods of the cluster, and done to them.
    pub(crate) pod_counters: PodCounters,
}

/// Everything that is behind the listeners; its tasks run when it is returned. `cluster` is the one
/// that it runs in, if any; `election` says which of several processes keeps the books of global limits.
pub(crate) fn assemble(
    tasks: &mut Supervisor,
    settings: Settings,
    limits: Limits,
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    (cluster, election): (Option<Cluster>, Arc<dyn KeeperElection>),
) -> Result<Parts, AppError> {
    let trust_domain = authority.trust_domain().clone();
    let writer = Arc::clone(&store);
    tasks.spawn("store", async move { writer.died().await });
    let identities = Identities::open(
        Arc::clone(&store),
        authority,
        attestors(cluster.as_ref()),
        settings.leaf_ttl,
        Arc::new(SystemClock),
    )?;
    let peers = Peers::new(limits);
    let registrations = Registrations::open(
        Arc::clone(&store),
        Arc::clone(&identities),
        Arc::clone(&peers),
        registry::Settings {
            grace: settings.grace,
            restart_grace: settings.restart_grace,
            virtual_ranges: settings.virtual_ranges.clone(),
        },
        Arc::new(SystemClock),
    )?;
    let observations = Arc::<Observations>::default();
    let publisher = Arc::<Publisher>::default();
    let (mut sources, followed, candidates) = sources_of(
        &store,
        &identities,
        &registrations,
        cluster.as_ref(),
        &trust_domain,
    );
    let (virtual_ranges, workload_ranges) = (settings.virtual_ranges, settings.workload_ranges);
    let config = pipeline::settings(trust_domain, virtual_ranges, workload_ranges);
    let pipeline = Pipeline::open(
        Arc::clone(&store),
        Arc::clone(&publisher),
        config,
        cluster.as_ref().map(Cluster::namespace),
        &mut sources,
    )?;
    tasks.spawn("clearing", Arc::clone(&identities).keep_cleared());
    tasks.spawn("following", Arc::clone(&identities).keep_followed());
    tasks.spawn("peers", Arc::clone(&peers).keep(Arc::clone(&identities)));
    tasks.spawn("registrations", Arc::clone(&registrations).keep());
    tasks.spawn("observations", Arc::clone(&observations).keep());
    tasks.spawn("pipeline", followed_by(Arc::clone(&pipeline), sources));
    let known = Arc::new(MeshLimits::new(&pipeline, &identities));
    let leases = Leases::new(known, election, settings.grace);
    tasks.spawn("leases", Arc::clone(&leases).keep());
    let replicas = Replicas::new(
        Arc::clone(&publisher),
        Arc::clone(&observations),
        Arc::clone(&store),
        Arc::clone(&leases),
    );
    Ok(Parts {
        store,
        leases,
        replicas,
        identities,
        peers,
        registrations,
        observations,
        pipeline,
        publisher,
        cluster: followed,
        candidates,
        pod_counters: PodCounters::default(),
    })
}

async fn followed_by(pipeline: Arc<Pipeline>, sources: Vec<Box<dyn Source>>) {
    let error = pipeline.run(sources).await;
    tracing::error!(%error, "a source has failed");
}

/// The facts of a cluster, and its pods without a sidecar.
fn cluster_source(
    cluster: &Cluster,
    trust_domain: &TrustDomain,
) -> (KubernetesSource, Arc<Candidates>) {
    let candidates = Arc::new(Candidates::new(cluster.settings.injector.clone()));
    let pods = Arc::clone(&candidates);
    let too = move |event: &_| pods.handle(event);
    let domain = &cluster.settings.domain;
    let (client, watches) = (&cluster.client, &cluster.watches);
    let source = KubernetesSource::new(client, watches, trust_domain, domain, too);
    (source, candidates)
}

/// What [`sources_of`] gives.
type Sources = (
    Vec<Box<dyn Source>>,
    Option<Arc<ClusterStatus>>,
    Option<Arc<Candidates>>,
);

/// Where facts come from, what of a cluster's pods is without a sidecar, and how far those of a cluster have come. Of batches that come at the same time
/// those of the first are compiled first: revocations.
fn sources_of(
    store: &Arc<dyn Store>,
    identities: &Arc<Identities>,
    registrations: &Registrations,
    cluster: Option<&Cluster>,
    trust_domain: &TrustDomain,
) -> Sources {
    let mut sources: Vec<Box<dyn Source>> = vec![
        Box::new(IdentitySource::new(Arc::clone(identities))),
        Box::new(StoreSource::new(Arc::clone(store))),
        Box::new(RegistrySource::new(Arc::clone(registrations.changes()))),
        Box::new(AddressSource::new(Arc::clone(store))),
    ];
    let (mut followed, mut candidates) = (None, None);
    if let Some(cluster) = cluster {
        let (source, pods) = cluster_source(cluster, trust_domain);
        (followed, candidates) = (Some(Arc::clone(source.status())), Some(pods));
        sources.push(Box::new(DepartedPods::new(source, Arc::clone(identities))));
    }
    (sources, followed, candidates)
}

/// What is taken for a proof of who somebody is.
fn attestors(cluster: Option<&Cluster>) -> Vec<Box<dyn Attestor>> {
    match cluster {
        Some(cluster) => {
            let reviews = ClusterTokens::new(cluster.client.clone());
            identity::with_cluster(Arc::new(reviews))
        }
        None => identity::on_record(),
    }
}

/// Opens the store, without rows that the operator gives up. A document that cannot be used stops
/// the start: the mesh would otherwise run without a policy that was asked for.
pub(super) fn open_store(dir: &Path, discard: &[String]) -> Result<Arc<RedbStore>, AppError> {
    for row in discard {
        let kept = RedbStore::discard(dir, row)?;
        tracing::warn!(row, kept = %kept.display(), "an unreadable row was discarded");
    }
    let store = RedbStore::open(dir)?;
    for resource in store.list()?.resources {
        if let Err(problems) = Document::from_value(resource.document.clone()) {
            let problem = problems.first().map(ToString::to_string);
            return Err(resource.unreadable(&problem.unwrap_or_default()).into());
        }
    }
    Ok(store)
}

/// What has to work, and what has to have happened before sidecars are told anything.
pub(super) fn health_of(tasks: &mut Supervisor, parts: &Parts) -> Health {
    let store = Arc::clone(&parts.store);
    let writer = Arc::new(Pulse::default());
    tasks.spawn(
        "store pulse",
        asked(Arc::clone(&store), Arc::clone(&writer)),
    );
    let pipeline = Arc::clone(&parts.pipeline);
    let mut health = Health::default();
    if let Some(cluster) = parts.cluster.clone() {
        let noted = Arc::clone(&cluster);
        health = health
            .with_ready("kubernetes", move || {
                std::future::ready(cluster.missing().map_or(Ok(()), Err))
            })
            .with_notes(move || noted.watches().notes(Instant::now()));
    }
    health
        .with_pulse("pipeline", Arc::clone(parts.pipeline.pulse()))
        .with_pulse("store", writer)
        .with_alive("store", move || {
            let died = store.died().now_or_never().is_some();
            std::future::ready(match died {
                true => Err("its writer has died".to_owned()),
                false => Ok(()),
            })
        })
        .with_ready("pipeline", move || {
            std::future::ready(match pipeline.snapshot().compiled.generation {
                0 => Err("nothing has been compiled yet".to_owned()),
                _ => Ok(()),
            })
        })
}

/// Has the store's writer answer again and again: a disk that hangs stops it, without its end.
async fn asked(store: Arc<dyn Store>, pulse: Arc<Pulse>) {
    let nothing = || async {
        // It is no change, and needs no disk.
        match store.commit("health", Vec::new()).await {
            // The queue has no place: nobody has asked the writer.
            Err(StoreError::Busy { .. } | StoreError::Closed) => false,
            // A refusal of the writer's is an answer.
            Ok(_) | Err(_) => true,
        }
    };
    pulse.keep_asking(nothing).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::health::PULSE_MAX;
    use crate::store::{Fault, FaultyStore};

    /// Whether the pulse beats while the store has a fault; for a minute of the paused clock.
    async fn beats_with(fault: Fault) -> bool {
        let store = FaultyStore::new();
        store.set(fault);
        let pulse = Arc::new(Pulse::default());
        let made = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        let asking = asked(store, Arc::clone(&pulse));
        let minute = tokio::time::timeout(Duration::from_secs(60), asking).await;
        assert!(minute.is_err(), "it asks on");
        pulse
            .stands_still(made + PULSE_MAX + Duration::from_millis(10))
            .is_none()
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_answer_of_the_writer_shows_that_it_lives() {
        assert!(beats_with(Fault::None).await);
        assert!(beats_with(Fault::DiskFull).await, "a refusal is an answer");
        assert!(!beats_with(Fault::StandsStill).await);
        assert!(!beats_with(Fault::QueueFull).await);
    }
}
