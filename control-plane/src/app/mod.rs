//! The wiring of the control plane, from top to bottom: the only place that knows everybody.

mod assemble;
mod backend;
mod cluster;
mod files;
mod injection;
mod listeners;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::DumpableBehavior;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weft_api::client::{ADMIN_SOCKET, JOIN_SOCKET, default_data_dir};
use weft_core::model::Cidr;
use weft_core::name::TrustDomain;

use crate::api::{Socket, Status};
use crate::args::{ArgumentError, ControlPlaneArgs, Settings};
use crate::budget::Limits;
use crate::cluster::{Cluster, ClusterSettings};
use crate::identity::ca::{Authority, AuthorityError, CaError};
use crate::kubernetes::ClientError;
use crate::kubernetes::leader;
use crate::kubernetes::ranges::{self, PRIVATE_RANGES, RangesError};
use crate::panics;
use crate::ratelimit;
use crate::store::{KubernetesStore, REDB_FILE, RedbStore, Store, StoreError};
use crate::supervise::{Supervisor, TaskEnded};

pub(crate) use assemble::assemble;
use assemble::{health_of, open_store};
use cluster::InCluster;
use files::{init_log, lock, make_dir, write_private};
use injection::Injector;
use listeners::{Listeners, OwnCertificate, bind, listen};

/// Tasks that end by themselves when they are told to stop.
const LISTENING: [&str; 7] = [
    "sidecars",
    "operators",
    "admin socket",
    "join socket",
    "metrics",
    "webhook",
    "election",
];
/// Threads that serve sidecars and operators, at most.
const WORKERS_MAX: usize = 4;
/// How long streams may take to end when the control plane stops.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Why the control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Another one runs.
    #[error("{}: another control plane uses this data directory", .0.display())]
    Locked(PathBuf),
    /// Something in the data directory cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A socket cannot be opened.
    #[error("listening on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// An argument cannot be used.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The cluster's API.
    #[error(transparent)]
    Cluster(#[from] ClientError),
    /// The addresses of the cluster's Services.
    #[error(transparent)]
    Ranges(#[from] RangesError),
    /// The authority of a cluster's mesh.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A task that is needed has ended.
    #[error(transparent)]
    Task(#[from] TaskEnded),
    /// One part of the data directory is there and the other is not.
    #[error(
        "{} is missing, although {} is there: put it back, or restore a backup into an empty directory \
         with `weft restore`; a new mesh begins in an empty directory, too",
        missing.display(), found.display()
    )]
    Incomplete {
        /// What is missing.
        missing: PathBuf,
        /// What is there.
        found: PathBuf,
    },
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Runs the control plane until it is told to stop.
pub fn run(args: &ControlPlaneArgs) -> Result<(), AppError> {
    init_log(&args.log_level)?;
    panics::end_process();
    // A program of the same user must not read the authority's keys from this process's memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(io::Error::from)?;
    // What the process may run on: threads that share a core wake each other for nothing.
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.min(WORKERS_MAX))
        .thread_name("weft-control")
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(args));
    runtime.shutdown_timeout(STOP_MAX);
    result
}

/// Raises how many files the process may have open to what the system permits; how many that is.
fn descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: found.maximum,
        ..found
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Opens the store, unless the mesh's authority or what belongs to it is missing: a new store would
/// know of no revocation, and a new authority would be believed by nobody.
fn open_whole(dir: &Path, discard: &[String]) -> Result<Arc<RedbStore>, AppError> {
    let (file, authority) = (dir.join(REDB_FILE), dir.join("ca"));
    let [has_store, has_root, has_key] = [
        file.try_exists()?,
        authority.join("root.pem").try_exists()?,
        authority.join("root.key").try_exists()?,
    ];
    let has_authority = has_root || has_key;
    if has_authority && !has_store {
        let (missing, found) = (file, authority);
        return Err(AppError::Incomplete { missing, found });
    }
    let store = open_store(dir, discard)?;
    // A first start that was interrupted leaves a store in which nothing is.
    if has_store && !has_authority && !is_empty(&*store)? {
        let (missing, found) = (authority, file);
        return Err(AppError::Incomplete { missing, found });
    }
    Ok(store)
}

/// Whether nobody was let in yet, and nothing was asked for.
fn is_empty(store: &dyn Store) -> Result<bool, StoreError> {
    for table in ["token", "instance", "operator"] {
        if !store.records(table)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(store.list()?.resources.is_empty())
}

/// What the mesh is kept in.
struct Kept {
    store: Arc<dyn Store>,
    authority: Authority,
    /// The store again, if it is a cluster's.
    in_cluster: Option<Arc<KubernetesStore>>,
}

/// Opens what the mesh is kept in: the data directory, or the cluster.
async fn open_kept(
    args: &ControlPlaneArgs,
    cluster: Option<&Cluster>,
    dir: &Path,
    trust_domain: TrustDomain,
) -> Result<Kept, AppError> {
    let authority = dir.join("ca");
    let Some(cluster) = cluster else {
        return Ok(Kept {
            store: open_whole(dir, &args.discard_unreadable)?,
            authority: Authority::open(&authority, trust_domain)?,
            in_cluster: None,
        });
    };
    let store = cluster::open_store(cluster).await?;
    let opened = cluster::open_authority(cluster, &authority, trust_domain).await?;
    Ok(Kept {
        store: Arc::clone(&store) as _,
        authority: opened,
        in_cluster: Some(store),
    })
}

/// Connects to the cluster; adds its ranges of addresses to the settings.
async fn join_cluster(
    of_cluster: ClusterSettings,
    settings: &mut Settings,
) -> Result<Cluster, AppError> {
    let cluster = Cluster::connect(of_cluster).await?;
    if settings.workload_ranges.is_empty() {
        let private = PRIVATE_RANGES.iter().filter_map(|text| Cidr::parse(text));
        settings.workload_ranges.extend(private);
    }
    let mut services = cluster.settings.service_ranges.clone();
    if services.is_empty() {
        services = ranges::wait_for_service_ranges(&cluster.client).await?;
    }
    settings.virtual_ranges.extend(services);
    let namespace = &cluster.settings.namespace;
    tracing::info!(namespace, "runs in a cluster");
    Ok(cluster)
}

/// Listens where somebody wants it.
async fn listen_if(address: Option<SocketAddr>) -> Result<Option<TcpListener>, AppError> {
    match address {
        Some(address) => Ok(Some(listen(address).await?)),
        None => Ok(None),
    }
}

async fn serve(args: &ControlPlaneArgs) -> Result<(), AppError> {
    let dir = args.data_dir.clone().unwrap_or_else(default_data_dir);
    make_dir(&dir)?;
    let _held_until_the_end = lock(&dir)?;
    let mut settings = args.settings()?;
    let trust_domain = args.trust_domain()?;
    let cluster = match args.kubernetes.settings()? {
        Some(of_cluster) => Some(join_cluster(of_cluster, &mut settings).await?),
        None => None,
    };
    let opened = open_kept(args, cluster.as_ref(), &dir, trust_domain.clone());
    let kept = Box::pin(opened).await?;
    let authority = Arc::new(kept.authority);
    let own = OwnCertificate {
        authority: Arc::clone(&authority),
        ttl: args.leaf_ttl.max(Duration::from_secs(3600)),
    };
    let mut tasks = Supervisor::default();
    let limits = Limits::for_descriptors(descriptors());
    let injector = match &cluster {
        Some(cluster) => Some(Injector::open(cluster.clone(), &args.kubernetes).await?),
        None => None,
    };
    let stop = CancellationToken::new();
    let of_injector = injector.as_ref().map(Injector::settings);
    let in_cluster = cluster.clone().zip(kept.in_cluster).zip(of_injector);
    let in_cluster = in_cluster.map(|((cluster, store), injected)| InCluster {
        cluster,
        store,
        injection: (injected, args.kubernetes.eviction()),
        election: leader::election(),
    });
    let joined = (cluster, keeps_books(in_cluster.as_ref()));
    let parts = assemble(&mut tasks, settings, limits, kept.store, authority, joined)?;
    let leader = in_cluster.map(|found| found.begin(&mut tasks, &parts, &own, stop.clone()));
    let health = Arc::new(health_of(&mut tasks, &parts));

    let listener = listen(args.listen).await?;
    let address = listener.local_addr()?;
    let metrics_listener = listen(args.metrics_listen).await?;
    let metrics_address = metrics_listener.local_addr()?;
    let admin_listener = listen_if(args.admin_listen).await?;
    let admin_address = admin_listener.as_ref().map(TcpListener::local_addr);

    let addresses = [address, metrics_address].map(|address| address.to_string());
    let admin_address = admin_address.transpose()?;
    let status = status(args, &own.authority, &dir, addresses, admin_address);
    let listeners = Listeners {
        parts,
        own,
        health,
        stop,
        injector: injector.as_ref().map(Injector::counters),
    };
    let sockets = announce(&dir, &status)?;
    listeners.serve_api(&mut tasks, sockets, &status, admin_listener)?;
    listeners.serve_metrics(&mut tasks, metrics_listener);
    listeners.serve_sidecars(&mut tasks, listener).await?;
    if let Some((injector, leader)) = injector.zip(leader) {
        injector.serve(&mut tasks, &listeners, leader)?;
    }
    listeners.health.set_listening(true);

    tracing::info!(%address, %metrics_address, data_dir = %dir.display(), "ready");
    until_stopped(tasks, listeners).await
}

/// Which of several processes keeps the books of global limits: in a cluster the one that leads.
fn keeps_books(in_cluster: Option<&InCluster>) -> Arc<dyn ratelimit::KeeperElection> {
    match in_cluster {
        Some(found) => Arc::new(found.election.1.clone()),
        None => Arc::new(ratelimit::Alone),
    }
}

/// Binds the admin socket and the join socket, and writes where this control plane is reached. Whoever
/// finds a socket, or the file, finds a control plane that goes on: what may fail comes before anything
/// is answered.
fn announce(dir: &Path, status: &Status) -> Result<[Socket; 2], AppError> {
    let sockets = [
        bind(&dir.join(ADMIN_SOCKET))?,
        bind(&dir.join(JOIN_SOCKET))?,
    ];
    let text = serde_json::to_vec_pretty(status).map_err(io::Error::other)?;
    write_private(&dir.join("addresses.json"), &text)?;
    Ok(sockets)
}

/// Serves until it is told to stop, or something that is needed ends.
async fn until_stopped(mut tasks: Supervisor, listeners: Listeners) -> Result<(), AppError> {
    tokio::select! {
        ended = tasks.ended() => return Err(ended.into()),
        () = stopped() => tracing::info!("stopping"),
    }
    listeners.health.set_listening(false);
    listeners.stop.cancel();
    // Streams have no end of their own: they are cut when the time for it is over.
    tasks.stop(STOP_MAX, &LISTENING).await;
    Ok(())
}

/// What is told about this control plane: where it listens, and where operators reach it.
fn status(
    args: &ControlPlaneArgs,
    authority: &Authority,
    dir: &Path,
    [address, metrics_address]: [String; 2],
    admin_address: Option<SocketAddr>,
) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: authority.trust_domain().to_string(),
        root_digest: authority.root_digest(),
        data_dir: dir.display().to_string(),
        advertised: args.advertise.clone().unwrap_or_else(|| address.clone()),
        address,
        metrics_address,
        admin_address: admin_address.map(|address| address.to_string()),
    }
}

async fn stopped() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
