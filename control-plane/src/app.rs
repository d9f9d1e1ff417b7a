//! The wiring of the control plane, from top to bottom: the only place that knows everybody.

mod files;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Args;
use futures_util::FutureExt as _;
use rustix::process::DumpableBehavior;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use weft_api::client::{ADMIN_SOCKET, JOIN_SOCKET, default_data_dir};
use weft_core::model::Cidr;
use weft_core::name::{NameError, TrustDomain};
use weft_proto::identity::identity_server::IdentityServer;
use weft_proto::ratelimit::rate_limits_server::RateLimitsServer;
use weft_proto::registry::registry_server::RegistryServer;

use crate::api::{self, Status, Who};
use crate::budget::{Limits, MESSAGE_MAX_BYTES, SIGN_MESSAGE_MAX_BYTES};
use crate::clock::SystemClock;
use crate::discovery::DiscoveryServer;
use crate::discovery::grpc::DiscoveryService;
use crate::health::{self, Health};
use crate::identity::Identities;
use crate::identity::ca::{Authority, CaError, LEAF_TTL_MAX, LEAF_TTL_MIN};
use crate::identity::grpc::IdentityService;
use crate::metrics;
use crate::model::{Document, parse_duration};
use crate::parts::Parts;
use crate::peers::Peers;
use crate::pipeline::{self, Pipeline, virtual_ranges};
use crate::publish::Publisher;
use crate::ratelimit::Leases;
use crate::ratelimit::grpc::RateLimitService;
use crate::registry::grpc::RegistryService;
use crate::registry::{self, Departures, Observations, Registrations};
use crate::sources::{IdentitySource, RegistrySource, Source, StoreSource};
use crate::store::{RedbStore, Store, StoreError};
use crate::supervise::{Supervisor, TaskEnded};
use crate::tls::{self, Purpose};
use crate::transport::{self, Sidecars};

use files::{init_log, lock, make_dir, write_private};

/// Tasks that end by themselves when they are told to stop.
const LISTENING: [&str; 5] = [
    "sidecars",
    "operators",
    "admin socket",
    "join socket",
    "metrics",
];
/// How long streams may take to end when the control plane stops.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Starts the control plane.
///
/// Examples:
///   weft control-plane
///   weft control-plane --data-dir /var/lib/weft --listen 0.0.0.0:15010 --advertise mesh.example:15010
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct ControlPlaneArgs {
    /// Where everything is kept [default: /var/lib/weft as root, else ~/.local/state/weft].
    #[arg(long, env = "WEFT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where sidecars connect (discovery, identity, registry); port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:15010")]
    pub listen: SocketAddr,
    /// What sidecars are told to connect to, HOST:PORT [default: what is listened on].
    #[arg(long)]
    pub advertise: Option<String>,
    /// Where Prometheus reads; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:15014")]
    pub metrics_listen: SocketAddr,
    /// Where operators with certificates reach the admin API from elsewhere, 0.0.0.0:15080 for
    /// instance [default: nowhere; the socket in the data directory is always there].
    #[arg(long)]
    pub admin_listen: Option<SocketAddr>,
    /// The trust domain of this mesh; it can't be changed later.
    #[arg(long, default_value = "weft.local")]
    pub trust_domain: String,
    /// Life of a workload's certificate: 10s to 7days.
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub leaf_ttl: Duration,
    /// How long a workload is kept whose sidecar has lost its stream. More than twice the 3 s in
    /// which sidecars reconnect.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub grace: Duration,
    /// Ranges of workloads' own addresses (pods); dialled directly they are mesh traffic.
    #[arg(long, value_delimiter = ',')]
    pub workload_range: Vec<String>,
    /// Starts without a row of the store that cannot be read, named as the error names it. What it
    /// held is lost to the mesh: of a token, an instance or an operator also that it was revoked.
    #[arg(long, value_name = "TABLE/KEY@DIGEST")]
    pub discard_unreadable: Vec<String>,
    /// What is logged.
    #[arg(long, default_value = "info", env = "WEFT_LOG")]
    pub log_level: String,
}

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
    /// An argument is not usable.
    #[error("{0}")]
    Argument(String),
    /// The trust domain is not one.
    #[error("--trust-domain: {0}")]
    TrustDomain(#[from] NameError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A task that is needed has ended.
    #[error(transparent)]
    Task(#[from] TaskEnded),
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Runs the control plane until it is told to stop.
pub fn run(args: &ControlPlaneArgs) -> Result<(), AppError> {
    init_log(&args.log_level)?;
    // A program of the same user must not read the authority's keys from this process's memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(io::Error::from)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weft-control")
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(args));
    runtime.shutdown_timeout(STOP_MAX);
    result
}

fn settings(args: &ControlPlaneArgs) -> Result<Settings, AppError> {
    if !(LEAF_TTL_MIN..=LEAF_TTL_MAX).contains(&args.leaf_ttl) {
        let text = format!(
            "--leaf-ttl: found {:?}; allowed: 10s to 7 days",
            args.leaf_ttl
        );
        return Err(AppError::Argument(text));
    }
    let ranges = args.workload_range.iter().map(|text| {
        let bad = || format!("--workload-range: found {text:?}; allowed: ADDRESS/PREFIX");
        Cidr::parse(text).ok_or_else(|| AppError::Argument(bad()))
    });
    Ok(Settings {
        leaf_ttl: args.leaf_ttl,
        grace: args.grace,
        workload_ranges: ranges.collect::<Result<_, _>>()?,
    })
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

async fn serve(args: &ControlPlaneArgs) -> Result<(), AppError> {
    let dir = args.data_dir.clone().unwrap_or_else(default_data_dir);
    make_dir(&dir)?;
    let _held_until_the_end = lock(&dir)?;
    let settings = settings(args)?;
    let trust_domain: TrustDomain = args.trust_domain.parse()?;
    let store = open_store(&dir, &args.discard_unreadable)?;
    let authority = Arc::new(Authority::open(&dir.join("ca"), trust_domain.clone())?);
    let own = OwnCertificate {
        authority: Arc::clone(&authority),
        ttl: args.leaf_ttl.max(Duration::from_secs(3600)),
    };
    let mut tasks = Supervisor::default();
    let grace = settings.grace;
    let limits = Limits::for_descriptors(descriptors());
    let parts = assemble(&mut tasks, settings, limits, store, authority)?;
    let health = Arc::new(health_of(&parts));

    let listener = listen(args.listen).await?;
    let address = listener.local_addr()?;
    let metrics_listener = listen(args.metrics_listen).await?;
    let metrics_address = metrics_listener.local_addr()?;
    let advertised = args
        .advertise
        .clone()
        .unwrap_or_else(|| address.to_string());
    let stop = CancellationToken::new();
    let admin_listener = match args.admin_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let admin_address = admin_listener.as_ref().map(TcpListener::local_addr);

    let status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: trust_domain.to_string(),
        root_digest: own.authority.root_digest(),
        data_dir: dir.display().to_string(),
        address: address.to_string(),
        advertised,
        metrics_address: metrics_address.to_string(),
        admin_address: admin_address
            .transpose()?
            .map(|address| address.to_string()),
    };
    let context = Context {
        parts,
        grace,
        own,
        health,
        stop,
    };
    // Whoever finds a socket, or the file, finds a control plane that goes on: what may fail comes
    // before anything is answered.
    let sockets = [
        bind(&dir.join(ADMIN_SOCKET))?,
        bind(&dir.join(JOIN_SOCKET))?,
    ];
    let text = serde_json::to_vec_pretty(&status).map_err(io::Error::other)?;
    write_private(&dir.join("addresses.json"), &text)?;
    context.serve_api(&mut tasks, sockets, &status, admin_listener)?;
    context.serve_metrics(&mut tasks, metrics_listener);
    context.serve_sidecars(&mut tasks, listener).await?;
    context.health.set_listening(true);

    tracing::info!(%address, %metrics_address, data_dir = %dir.display(), "ready");
    tokio::select! {
        ended = tasks.ended() => return Err(ended.into()),
        () = stopped() => tracing::info!("stopping"),
    }
    context.health.set_listening(false);
    context.stop.cancel();
    // Streams have no end of their own: they are cut when the time for it is over.
    tasks.stop(STOP_MAX, &LISTENING).await;
    Ok(())
}

/// What has to work, and what has to have happened before sidecars are told anything.
fn health_of(parts: &Arc<Parts>) -> Health {
    let store = Arc::clone(&parts.store);
    let pipeline = Arc::clone(&parts.pipeline);
    Health::default()
        .with_pulse("pipeline", Arc::clone(parts.pipeline.pulse()))
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

/// Opens the store, without rows that the operator gives up. A document that cannot be used stops
/// the start: the mesh would otherwise run without a policy that was asked for.
fn open_store(dir: &Path, discard: &[String]) -> Result<Arc<RedbStore>, AppError> {
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

/// How workloads and the mesh are looked after.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Life of a workload's certificate.
    pub leaf_ttl: Duration,
    /// How long a workload without a stream is kept.
    pub grace: Duration,
    /// Ranges of workloads' own addresses.
    pub workload_ranges: Vec<Cidr>,
}

/// Everything that is behind the listeners; its tasks run when it is returned.
pub fn assemble(
    tasks: &mut Supervisor,
    settings: Settings,
    limits: Limits,
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
) -> Result<Arc<Parts>, AppError> {
    let trust_domain = authority.trust_domain().clone();
    let writer = Arc::clone(&store);
    tasks.spawn("store", async move { writer.died().await });
    let identities = Identities::open(
        Arc::clone(&store),
        authority,
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
            virtual_ranges: virtual_ranges(),
        },
        Arc::new(SystemClock),
    )?;
    let observations = Arc::<Observations>::default();
    let publisher = Arc::<Publisher>::default();
    // A new source is one more line here.
    let mut sources: Vec<Box<dyn Source>> = vec![
        Box::new(StoreSource::new(Arc::clone(&store))),
        Box::new(RegistrySource::new(Arc::clone(registrations.changes()))),
        Box::new(IdentitySource::new(Arc::clone(&identities))),
    ];
    let config = pipeline::settings(trust_domain, settings.workload_ranges);
    let pipeline = Pipeline::open(
        Arc::clone(&store),
        Arc::clone(&publisher),
        config,
        &mut sources,
    )?;
    tasks.spawn("clearing", Arc::clone(&identities).keep_cleared());
    tasks.spawn("peers", Arc::clone(&peers).keep(Arc::clone(&identities)));
    tasks.spawn("expiry", Arc::clone(&registrations).keep_expired());
    tasks.spawn("observations", Arc::clone(&observations).keep());
    let following = Arc::clone(&pipeline);
    tasks.spawn("pipeline", async move {
        let error = following.run(sources).await;
        tracing::error!(%error, "a source has failed");
    });
    Ok(Arc::new(Parts {
        store,
        identities,
        peers,
        registrations,
        observations,
        pipeline,
        publisher,
    }))
}

/// What every listener is served with.
struct Context {
    parts: Arc<Parts>,
    grace: Duration,
    own: OwnCertificate,
    health: Arc<Health>,
    stop: CancellationToken,
}

impl Context {
    /// The admin API on its socket, the first, and, where operators are listened for, over TLS; and
    /// the join socket.
    fn serve_api(
        &self,
        tasks: &mut Supervisor,
        [admin_socket, join_socket]: [api::Socket; 2],
        status: &Status,
        operators: Option<TcpListener>,
    ) -> Result<(), AppError> {
        let (parts, stop) = (&self.parts, &self.stop);
        let admin = api::admin_router(Arc::clone(parts), status.clone());
        let admin = admin.merge(health::router(&self.health));
        let join = api::join_router(Arc::clone(parts), status.advertised.clone());
        if let Some(listener) = operators {
            let tls = self.own.tls(tasks, Purpose::Operators)?;
            let operators = api::Operators {
                router: admin.clone(),
                identities: Arc::clone(&parts.identities),
                peers: Arc::clone(&parts.peers),
            };
            let ends = stop.clone();
            let serve = move |connection| operators.clone().serve(connection, ends.clone());
            let peers = Arc::clone(&parts.peers);
            let accepting = transport::accept(listener, tls, peers, stop.clone(), serve);
            tasks.spawn("operators", accepting);
        }
        let serving = api::serve_unix(admin, admin_socket, Who::OwnerOnly, stop.clone());
        tasks.spawn("admin socket", serving);
        let serving = api::serve_unix(join, join_socket, Who::AnyPeer, stop.clone());
        tasks.spawn("join socket", serving);
        Ok(())
    }

    fn serve_metrics(&self, tasks: &mut Supervisor, listener: TcpListener) {
        let (parts, health) = (Arc::clone(&self.parts), Arc::clone(&self.health));
        let serving = metrics::serve(listener, parts, health, self.stop.clone());
        tasks.spawn("metrics", serving);
    }

    async fn serve_sidecars(
        &self,
        tasks: &mut Supervisor,
        listener: TcpListener,
    ) -> Result<(), AppError> {
        let tls = self.own.tls(tasks, Purpose::Sidecars)?;
        let pipeline = Arc::clone(&self.parts.pipeline);
        let identities = Arc::clone(&self.parts.identities);
        let leases = Leases::new(pipeline, identities, self.grace);
        tasks.spawn("leases", Arc::clone(&leases).keep());
        let peers = Arc::clone(&self.parts.peers);
        let sidecars = Sidecars {
            routes: services(&self.parts, leases).await,
            peers: Arc::clone(&peers),
            identities: Arc::clone(&self.parts.identities),
        };
        let ends = self.stop.clone();
        let serve = move |connection| transport::serve(connection, sidecars.clone(), ends.clone());
        let accepting = transport::accept(listener, tls, peers, self.stop.clone(), serve);
        tasks.spawn("sidecars", accepting);
        Ok(())
    }
}

/// What sidecars may call.
async fn services(parts: &Arc<Parts>, leases: Arc<Leases>) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<DiscoveryServer>().await;
    let identity = IdentityServer::new(IdentityService {
        identities: Arc::clone(&parts.identities),
    });
    let registry = RegistryServer::new(RegistryService {
        registrations: Arc::clone(&parts.registrations),
        identities: Arc::clone(&parts.identities),
        observations: Arc::clone(&parts.observations),
        departures: Arc::clone(&parts.pipeline) as Arc<dyn Departures>,
    });
    let rate_limits = RateLimitsServer::new(RateLimitService {
        peers: Arc::clone(&parts.peers),
        identities: Arc::clone(&parts.identities),
        leases,
    });
    let discovery = DiscoveryServer::new(DiscoveryService {
        pipeline: Arc::clone(&parts.pipeline),
        publisher: Arc::clone(&parts.publisher),
        peers: Arc::clone(&parts.peers),
        identities: Arc::clone(&parts.identities),
    });
    Routes::new(health_service)
        .add_service(identity.max_decoding_message_size(SIGN_MESSAGE_MAX_BYTES))
        .add_service(registry.max_decoding_message_size(MESSAGE_MAX_BYTES))
        .add_service(rate_limits.max_decoding_message_size(MESSAGE_MAX_BYTES))
        .add_service(discovery)
        .prepare()
}

/// What our own certificates come from.
struct OwnCertificate {
    authority: Arc<Authority>,
    ttl: Duration,
}

impl OwnCertificate {
    /// Our own certificate, renewed at half life without a restart.
    fn tls(&self, tasks: &mut Supervisor, purpose: Purpose) -> Result<tls::ServerTls, AppError> {
        let ttl = self.ttl;
        let current = tls::server_config(&self.authority, purpose, ttl)?;
        let current: tls::ServerTls = Arc::new(ArcSwap::from_pointee(current));
        let (authority, renewed) = (Arc::clone(&self.authority), Arc::clone(&current));
        tasks.spawn("own certificate", async move {
            loop {
                tokio::time::sleep(ttl / 2).await;
                // By one of the two listeners.
                if purpose == Purpose::Sidecars
                    && let Err(error) = authority.renew(std::time::SystemTime::now())
                {
                    tracing::error!(%error, "intermediate not renewed");
                }
                match tls::server_config(&authority, purpose, ttl) {
                    Ok(fresh) => renewed.store(Arc::new(fresh)),
                    Err(error) => tracing::error!(%error, "own certificate not renewed"),
                }
            }
        });
        Ok(current)
    }
}

fn bind(path: &Path) -> Result<api::Socket, AppError> {
    api::bind_unix(path).map_err(|source| AppError::Listen {
        address: path.display().to_string(),
        source,
    })
}

async fn listen(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AppError::Listen {
            address: address.to_string(),
            source,
        })
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
