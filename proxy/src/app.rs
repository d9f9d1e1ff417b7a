//! The wiring of a sidecar, from top to bottom: the only place that knows everybody.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use weft_core::model::{RegisteredPort, Registration};
use weft_core::name::{NameError, ServiceName, WorkloadName};

use crate::admin::{self, AdminServer, AdminState, Readiness, Serves, bind_tcp, bind_unix};
use crate::config::{ConfigError, ListenerConfig, ProxyArgs, ProxyConfig, load};
use crate::discovery;
use crate::dns::{Resolver, nameservers};
use crate::drain::{Drain, Phase};
use crate::identity::{IdentityError, Manager};
use crate::inbound::Application;
use crate::leases;
use crate::memory;
use crate::mesh::Mesh;
use crate::names;
use crate::nest::{NestAddresses, NestListeners, SocketFactory};
use crate::observe;
use crate::registration::{Registrar, Standing};
use crate::state::{StateDir, StateError};
use crate::telemetry::access_log::{self, AccessLog};
use crate::telemetry::log::{self, LogError, LogHandle};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tracing::{Tracer, TracerConfig, TracingError};
use crate::tls::TlsContext;
use crate::worker::{self, HostAccess, Listener, Listening, Shared};

/// Signing is tried again after this long while there is no certificate.
const SIGN_RETRY: Duration = Duration::from_millis(250);
const SIGN_RETRY_MAX: Duration = Duration::from_secs(5);
/// How often ports that are not ready yet are tried.
const PROBE_EVERY: Duration = Duration::from_millis(20);
const PROBE_LATER: Duration = Duration::from_millis(500);
/// Between telling clients to go elsewhere and closing listeners.
const LEAVE_PAUSE: Duration = Duration::from_millis(50);
/// Stack of a worker, bytes: futures live on the heap.
const WORKER_STACK: usize = 1 << 20;

/// Why a sidecar does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Its configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A name in it is not one.
    #[error("configuration: {0}")]
    Name(#[from] NameError),
    /// It has nowhere to keep its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// It has no certificate, and none is to be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Spans cannot be exported.
    #[error(transparent)]
    Tracing(#[from] TracingError),
    /// The log cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A socket cannot be opened.
    #[error("listening on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The credential is somebody else's.
    #[error(
        "the credential is good for workload {allowed}, not for {found}; create one with `weft token create --workload {found}`"
    )]
    OtherWorkload {
        /// Who we are told to be.
        found: WorkloadName,
        /// Who the credential says we are.
        allowed: WorkloadName,
    },
    /// A file that was named cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Runs `weft proxy` until it is told to stop.
pub fn run(args: &ProxyArgs) -> Result<(), AppError> {
    let config = load(args)?;
    if args.check_config {
        #[expect(clippy::print_stdout, reason = "this is what was asked for")]
        {
            println!("{}", config.to_yaml());
        }
        return Ok(());
    }
    let log = log::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut sidecar = Sidecar::start(config, None, &[], Some(log)).await?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = sidecar.asked_to_drain() => {}
        }
        tracing::info!("leaving");
        tokio::select! {
            () = sidecar.leave() => {}
            // A second signal cuts.
            _ = terminate.recv() => sidecar.cut(),
            _ = interrupt.recv() => sidecar.cut(),
        }
        sidecar.stop().await;
        Ok(())
    })
}

/// What a program's own namespace brings.
#[derive(Debug)]
pub struct Inside {
    /// Sockets that listen there.
    pub listeners: NestListeners,
    /// Fresh sockets to dial the program with.
    pub sockets: SocketFactory,
    /// The program's addresses.
    pub addresses: NestAddresses,
    /// Ports of the host's loopback that the program may reach as `host.mesh`.
    pub host_ports: Vec<u16>,
}

/// What `host.mesh` stands for: next to the range of virtual addresses, and nobody's.
const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(240, 239, 255, 254);

/// A port of the application that is opened on the host, for clients outside the mesh.
#[derive(Debug, Clone, Copy)]
pub struct Publish {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The application's port.
    pub port: u16,
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<io::Result<()>>>,
    leave: Option<oneshot::Sender<oneshot::Sender<bool>>>,
    drain_asked: Arc<tokio::sync::Notify>,
    readiness: Readiness,
    standing: watch::Receiver<Standing>,
    registration: watch::Receiver<Registration>,
    admin: CancellationToken,
    tracer: Option<Tracer>,
    access_log_writer: access_log::Writer,
}

impl Sidecar {
    #[expect(clippy::too_many_lines, reason = "the wiring, read from top to bottom")]
    /// Starts everything; returns when there is a certificate and every listener is open. Has to
    /// be called within a tokio runtime, which becomes the control thread's.
    pub async fn start(
        config: ProxyConfig,
        inside: Option<Inside>,
        published: &[Publish],
        log: Option<LogHandle>,
    ) -> Result<Self, AppError> {
        let metrics = Metrics::new(config.limits.max_metric_series);
        let state = StateDir::open(&config.state_dir)?;
        let tls = Arc::new(TlsContext::default());
        let (mesh, demanded) = Mesh::new(metrics.clone(), &config);
        // Weakly: the mesh has the metrics too.
        let seen = Arc::downgrade(&mesh);
        metrics.set_breaker_source(Box::new(move || {
            let mesh = seen.upgrade();
            mesh.map(|mesh| observe::samples(&mesh)).unwrap_or_default()
        }));
        let seen = Arc::downgrade(&mesh);
        metrics.set_rate_source(Box::new(move || {
            let mesh = seen.upgrade();
            mesh.map(|mesh| mesh.rate_samples()).unwrap_or_default()
        }));
        let seen = Arc::downgrade(&mesh);
        metrics.set_concurrency_source(Box::new(move || {
            let mesh = seen.upgrade();
            mesh.map(|mesh| observe::limits(&mesh)).unwrap_or_default()
        }));
        let readiness = Readiness::default();
        let address = config.control_plane.address.clone();
        let identity = Arc::new(Manager::new(
            address.clone(),
            token(&config)?,
            state.clone(),
            Arc::clone(&tls),
            metrics.clone(),
        ));
        let mut client = discovery::Client::new(
            address.clone(),
            Arc::clone(&mesh),
            Arc::clone(&identity),
            state,
            demanded,
            config.limits.max_destinations,
            metrics.clone(),
        );
        client.restore()?;
        enrol(&identity).await?;
        check_workload(&config, &identity)?;
        let tracer = match TracerConfig::of(&config) {
            Some(tracing) => Some(Tracer::start(&tracing, &metrics)?),
            None => None,
        };
        let (access_log, access_log_writer) =
            AccessLog::start(&config.access_log, config.limits.access_log_queue, &metrics)?;
        let (nest_listeners, nest, addresses, host) = match inside {
            Some(inside) => (
                Some(inside.listeners),
                Some(inside.sockets),
                Some(inside.addresses),
                Some(HostAccess {
                    address: HOST_ADDRESS.into(),
                    ports: inside.host_ports,
                }),
            ),
            None => (None, None, None, None),
        };
        let shared = Arc::new(Shared {
            limited: Arc::default(),
            config: Arc::new(config),
            mesh: Arc::clone(&mesh),
            tls,
            metrics: metrics.clone(),
            tracer: tracer.clone(),
            access_log,
            drain: Drain::default(),
            nest,
            host,
            connections: AtomicUsize::new(0),
        });
        let (mut plan, nest_dns) = listeners(&shared, nest_listeners, addresses)?;
        plan.publish(published, shared.config.limits.listen_backlog)?;
        let admin_listeners = AdminListeners::open(&shared.config.listeners)?;
        let scraped = admin_listeners.metrics_address();
        let first = first_registration(&shared, &plan, scraped)?;
        let (registration, registered) = watch::channel(first);
        let observed_by = address.clone();
        let registrar = Registrar::new(address, Arc::clone(&identity), registered.clone());
        let standing = registrar.standing();
        let (leave, left) = oneshot::channel();
        if !registered.borrow().ports.is_empty() || !registered.borrow().services.is_empty() {
            tokio::spawn(registrar.run(left));
        }
        let (seen, known) = (Arc::clone(&shared.mesh), Arc::clone(&identity));
        tokio::spawn(observe::run(observed_by.clone(), seen, known));
        let (limited, known) = (Arc::clone(&shared.mesh), Arc::clone(&identity));
        tokio::spawn(leases::run(observed_by, limited, known));
        watch_discovery(&shared, client.connected(), &readiness);
        tokio::spawn(client.run());
        let renewing = Arc::clone(&identity);
        tokio::spawn(async move { renewing.keep_fresh().await });
        tokio::spawn(probe_ports(
            Arc::clone(&shared),
            plan.applications(),
            registration,
        ));
        let drain_asked = Arc::new(tokio::sync::Notify::new());
        let state = Arc::new(State {
            shared: Arc::clone(&shared),
            identity: Arc::clone(&identity),
            readiness: readiness.clone(),
            drain: Arc::clone(&drain_asked),
        });
        let admin = admin_listeners.serve(&AdminServer::new(state, metrics, log));
        serve_dns(&shared, nest_dns)?;
        let workers = plan.spawn(&shared)?;
        tokio::spawn(release_memory(readiness.clone()));
        Ok(Self {
            shared,
            workers,
            leave: Some(leave),
            drain_asked,
            readiness,
            standing,
            registration: registered,
            admin,
            tracer,
            access_log_writer,
        })
    }

    /// Until the first configuration has come; the list of what is missing when it took longer
    /// than `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<(), Vec<String>> {
        let _elapsed_is_checked_below = timeout(limit, self.readiness.wait()).await;
        self.readiness.check()
    }

    /// Where peers' sidecars reach each declared port.
    pub fn ports(&self) -> BTreeMap<u16, SocketAddr> {
        let registration = self.registration.borrow();
        let ports = registration.ports.iter();
        ports.map(|port| (port.port, port.advertised)).collect()
    }

    /// Until every declared port of the application accepts connections.
    pub async fn announced(&self) {
        let mut registration = self.registration.clone();
        let all_ready = |now: &Registration| now.ports.iter().all(|port| port.ready);
        let _sender_lives_with_us = registration.wait_for(all_ready).await;
    }

    /// Waits until the control plane has the registration on record; `Err` says why it refuses it.
    pub async fn accepted(&self, limit: Duration) -> Result<(), String> {
        let registers = {
            let registration = self.registration.borrow();
            !registration.ports.is_empty() || !registration.services.is_empty()
        };
        if !registers {
            return Ok(());
        }
        let mut standing = self.standing.clone();
        let decided = standing.wait_for(|now| *now != Standing::Pending);
        match timeout(limit, decided).await {
            Ok(Ok(now)) => match &*now {
                Standing::Refused(reason) => Err(reason.clone()),
                Standing::Accepted | Standing::Pending => Ok(()),
            },
            Ok(Err(_)) | Err(_) => Err(format!("no answer from the registry in {limit:?}")),
        }
    }

    /// Waits until somebody serves every port of a service, `limit` at most.
    pub async fn wait_for(&self, service: &ServiceName, limit: Duration) -> bool {
        let name = service.to_string();
        let deadline = Instant::now() + limit;
        let mut changes = self.shared.mesh.changes();
        loop {
            changes.mark_unchanged();
            let found = self.shared.mesh.service(&name).await;
            if let Ok(Some(view)) = found
                && view.ports().any(|port| !port.endpoints.is_empty())
            {
                return true;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(deadline) => return false,
            }
        }
    }

    /// Until somebody asks for the leaving sequence through the admin interface.
    pub async fn asked_to_drain(&self) {
        self.drain_asked.notified().await;
    }

    /// The leaving sequence: out of the registry, acknowledged, still accepting; then clients are
    /// told to go elsewhere, listeners close, what runs finishes.
    pub async fn leave(&mut self) {
        if let Some(leave) = self.leave.take() {
            let (done, left) = oneshot::channel();
            if leave.send(done).is_ok() {
                let limit = self.shared.config.timeouts.deregister + Duration::from_millis(500);
                let _at_most_so_long = timeout(limit, left).await;
            }
        }
        self.shared.drain.advance(Phase::Leaving);
        sleep(LEAVE_PAUSE).await;
        self.shared.drain.advance(Phase::Closing);
        let deadline = Instant::now() + self.shared.config.timeouts.drain;
        let mut tick = interval(Duration::from_millis(10));
        while self.workers.iter().any(|worker| !worker.is_finished()) {
            if Instant::now() >= deadline {
                break;
            }
            tick.tick().await;
        }
    }

    /// Says goodbye when the program has ended by itself: nothing is left to be drained.
    pub async fn leave_briefly(&mut self) {
        self.shared.drain.advance(Phase::Closing);
        if let Some(leave) = self.leave.take() {
            let (done, left) = oneshot::channel();
            if leave.send(done).is_ok() {
                let _at_most_so_long = timeout(self.shared.config.timeouts.deregister, left).await;
            }
        }
    }

    /// Cuts what is left.
    pub fn cut(&self) {
        self.shared.drain.advance(Phase::Cut);
    }

    /// Ends what is left: connections, admin, telemetry.
    pub async fn stop(self) {
        self.cut();
        self.admin.cancel();
        let ending = tokio::task::spawn_blocking(move || {
            for worker in self.workers {
                match worker.join() {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%error, "worker"),
                    Err(_panic) => tracing::error!("a worker has panicked"),
                }
            }
            if let Some(tracer) = self.tracer {
                tracer.shutdown(Duration::from_secs(2));
            }
            // Other holders of the log live as long as the runtime: what was handed over by now is
            // written within this.
            drop(self.shared);
            self.access_log_writer.wait(Duration::from_millis(100));
        });
        let _at_most_so_long = timeout(Duration::from_secs(5), ending).await;
    }
}

/// Lets go of what only starting needed, once it is over, and of what bursts of requests needed.
async fn release_memory(readiness: Readiness) {
    readiness.wait().await;
    sleep(memory::RELEASE_AFTER).await;
    match memory::release_startup_pages() {
        Ok(kib) => tracing::debug!(kib, "let go of pages that starting needed"),
        Err(error) => tracing::debug!(%error, "kept all pages that starting needed"),
    }
    loop {
        sleep(memory::TRIM_EVERY).await;
        let released = tokio::task::spawn_blocking(memory::release_freed).await;
        if let Ok(Some(bytes)) = released {
            tracing::debug!(bytes, "gave back memory that was freed");
        }
    }
}

/// Gets the first certificate, or takes up the one on disk.
async fn enrol(identity: &Manager) -> Result<(), AppError> {
    let restored = identity.restore()?;
    let valid = |identity: &Manager| {
        let current = identity.subscribe();
        let current = current.borrow();
        current
            .as_ref()
            .is_some_and(crate::identity::Identity::is_valid)
    };
    if restored && valid(identity) {
        return Ok(());
    }
    let mut wait = SIGN_RETRY;
    loop {
        match identity.sign().await {
            Ok(()) => return Ok(()),
            // What the control plane has refused, it will refuse again.
            Err(
                error @ (IdentityError::Refused(_)
                | IdentityError::NoCredential
                | IdentityError::Token),
            ) if !is_passing(&error) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, retry_in = ?wait, "no certificate yet");
                sleep(wait).await;
                wait = (wait * 2).min(SIGN_RETRY_MAX);
            }
        }
    }
}

/// A token that was made for another workload gives its certificate, not ours.
fn check_workload(config: &ProxyConfig, identity: &Manager) -> Result<(), AppError> {
    let found = config.workload_name()?;
    let current = identity.subscribe();
    let allowed = current
        .borrow()
        .as_ref()
        .map(|identity| identity.workload.clone());
    match allowed {
        Some(allowed) if allowed != found => Err(AppError::OtherWorkload { found, allowed }),
        Some(_) | None => Ok(()),
    }
}

fn is_passing(error: &IdentityError) -> bool {
    matches!(error, IdentityError::Refused(status)
        if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::ResourceExhausted
            | tonic::Code::Cancelled | tonic::Code::Unknown | tonic::Code::DeadlineExceeded))
}

fn token(config: &ProxyConfig) -> Result<Option<String>, AppError> {
    if let Some(token) = &config.control_plane.token {
        return Ok(Some(token.expose().trim().to_owned()));
    }
    let Some(path) = &config.control_plane.token_file else {
        return Ok(None);
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // A sidecar that has been here before does not need it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AppError::File {
            path: path.clone(),
            source,
        }),
    }
}

/// Every listener of every worker, and what is announced of it.
struct Plan {
    per_worker: Vec<Vec<Listener>>,
    /// Declared ports with the application behind them and where clients' sidecars dial.
    declared: Vec<(RegisteredPort, Application)>,
    own_addresses: Vec<IpAddr>,
}

type NestDns = (Vec<std::net::UdpSocket>, Vec<std::net::TcpListener>);

#[expect(clippy::too_many_lines, reason = "one listener after the other")]
fn listeners(
    shared: &Arc<Shared>,
    nest: Option<NestListeners>,
    addresses: Option<NestAddresses>,
) -> Result<(Plan, NestDns), AppError> {
    let config = &shared.config;
    let count = config.worker_count();
    let mut plan = Plan {
        per_worker: (0..count).map(|_| Vec::new()).collect(),
        declared: Vec::new(),
        own_addresses: Vec::new(),
    };
    let mut dns = (Vec::new(), Vec::new());
    if let Some(nest) = nest {
        let each = nest.outbound.len() / count;
        for (index, socket) in nest.outbound.into_iter().enumerate() {
            if let Some(worker) = plan.per_worker.get_mut(index / each.max(1)) {
                worker.push(Listener {
                    socket,
                    listening: Listening::Outbound,
                });
            }
        }
        dns = (nest.dns_udp, nest.dns_tcp);
    } else {
        if let Some(address) = config.listeners.outbound {
            plan.listen(address, config.limits.listen_backlog, &Listening::Outbound)?;
        }
        if let Some(address) = config.listeners.inbound {
            plan.listen(address, config.limits.listen_backlog, &Listening::Inbound)?;
        }
    }
    for upstream in &config.upstreams {
        let service = upstream.service.resolve(&config.workload.namespace)?;
        let listening = Listening::Upstream(service, upstream.port);
        plan.listen(upstream.listen, config.limits.listen_backlog, &listening)?;
    }
    let own = own_address(config);
    let local: Vec<IpAddr> = match (addresses, config.application_address) {
        (Some(addresses), _) => vec![addresses.v4.into(), addresses.v6.into()],
        (None, Some(address)) => vec![address],
        (None, None) => vec![own],
    };
    if config.listeners.inbound.is_some() && addresses.is_none() {
        plan.own_addresses = local.clone();
    }
    for port in &config.workload.ports {
        let application = Application {
            service: format!("{}/{}", config.workload.namespace, config.workload.name).into(),
            port: port.port,
            protocol: port.protocol,
            addresses: local.clone().into(),
            loopback: port.loopback,
        };
        let bound = match port.listen {
            Some(address) => {
                let listening = Listening::Mesh(application.clone());
                plan.listen(address, config.limits.listen_backlog, &listening)?
            }
            None => SocketAddr::new(local.first().copied().unwrap_or(own), port.port),
        };
        let advertised = match port.advertise {
            Some(advertise) if advertise.port() == 0 => {
                SocketAddr::new(advertise.ip(), bound.port())
            }
            Some(advertise) => advertise,
            None if bound.ip().is_unspecified() => SocketAddr::new(own, bound.port()),
            None => bound,
        };
        let registered = RegisteredPort {
            port: port.port,
            protocol: port.protocol,
            advertised,
            ready: false,
        };
        plan.declared.push((registered, application));
    }
    Ok((plan, dns))
}

impl Plan {
    /// One listener for each worker on the same port; where it is bound.
    fn listen(
        &mut self,
        address: SocketAddr,
        backlog: u32,
        listening: &Listening,
    ) -> Result<SocketAddr, AppError> {
        let mut address = address;
        for worker in &mut self.per_worker {
            let socket = bind(address, backlog).map_err(|source| AppError::Listen {
                address: address.to_string(),
                source,
            })?;
            address = socket.local_addr()?;
            worker.push(Listener {
                socket,
                listening: listening.clone(),
            });
        }
        Ok(address)
    }

    fn publish(&mut self, published: &[Publish], backlog: u32) -> Result<(), AppError> {
        for Publish { listen, port } in published {
            let declared = self.applications();
            let found = declared.into_iter().find(|a| a.port == *port);
            let application = found.ok_or_else(|| AppError::Listen {
                address: listen.to_string(),
                source: io::Error::other(format!(
                    "port {port} is to be published but is not declared with --port"
                )),
            })?;
            self.listen(*listen, backlog, &Listening::Publish(application))?;
        }
        Ok(())
    }

    fn applications(&self) -> Vec<Application> {
        self.declared
            .iter()
            .map(|(_, application)| application.clone())
            .collect()
    }

    fn spawn(self, shared: &Arc<Shared>) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
        let workers = self.per_worker.into_iter().enumerate();
        let spawn = |(index, listeners): (usize, Vec<Listener>)| {
            let shared = Arc::clone(shared);
            std::thread::Builder::new()
                .name(format!("weft-worker-{index}"))
                .stack_size(WORKER_STACK)
                .spawn(move || worker::run(index, shared, listeners))
        };
        workers.map(spawn).collect()
    }
}

fn bind(address: SocketAddr, backlog: u32) -> io::Result<std::net::TcpListener> {
    let open = |address: SocketAddr| {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok::<_, io::Error>(socket.into())
    };
    match open(address) {
        // A host without IPv6.
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            open(SocketAddr::new(
                Ipv4Addr::UNSPECIFIED.into(),
                address.port(),
            ))
        }
        opened => opened,
    }
}

/// The address that the control plane sees us come from.
fn own_address(config: &ProxyConfig) -> IpAddr {
    let find = || {
        use std::net::{ToSocketAddrs, UdpSocket};
        let target = config
            .control_plane
            .address
            .to_socket_addrs()
            .ok()?
            .next()?;
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        // Connecting a UDP socket sends nothing; it only chooses a route.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    find().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn first_registration(
    shared: &Shared,
    plan: &Plan,
    metrics: Option<SocketAddr>,
) -> Result<Registration, AppError> {
    let workload = &shared.config.workload;
    let services = workload.services.iter();
    let services = services.map(|service| service.resolve(&workload.namespace));
    Ok(Registration {
        workload: WorkloadName::new(&workload.namespace, &workload.name)?,
        services: services.collect::<Result<_, _>>()?,
        addresses: plan
            .own_addresses
            .iter()
            .copied()
            .filter(|a| !a.is_loopback())
            .collect(),
        ports: plan.declared.iter().map(|(port, _)| port.clone()).collect(),
        labels: workload.labels.clone(),
        zone: workload.zone.clone(),
        weight: workload.weight,
        metrics_target: metrics_target(&shared.config, metrics),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Where Prometheus reads; empty where it cannot. `listening` is where the metrics listener is.
fn metrics_target(config: &ProxyConfig, listening: Option<SocketAddr>) -> String {
    let Some(mut address) = listening else {
        return String::new();
    };
    if address.ip().is_unspecified() {
        address.set_ip(own_address(config));
    }
    format!("http://{address}/metrics")
}

/// Announces each declared port as soon as the application accepts connections on it.
async fn probe_ports(
    shared: Arc<Shared>,
    applications: Vec<Application>,
    registration: watch::Sender<Registration>,
) {
    let began = Instant::now();
    let mut waiting = applications;
    while !waiting.is_empty() {
        let mut still = Vec::new();
        for application in waiting {
            if accepts(&shared, &application).await {
                let port = application.port;
                tracing::info!(port, "the application accepts connections");
                registration.send_modify(|now| {
                    for registered in now.ports.iter_mut().filter(|p| p.port == port) {
                        registered.ready = true;
                    }
                });
            } else {
                still.push(application);
            }
        }
        waiting = still;
        let quick = began.elapsed() < Duration::from_secs(10);
        sleep(if quick { PROBE_EVERY } else { PROBE_LATER }).await;
    }
    // The sender has to stay: the registrar follows it.
    std::future::pending::<()>().await;
}

async fn accepts(shared: &Arc<Shared>, application: &Application) -> bool {
    let dialled = crate::inbound::dial(shared, application);
    matches!(timeout(Duration::from_secs(1), dialled).await, Ok(Ok(_)))
}

/// Follows the discovery stream. A sidecar that was restored from disk is ready without one.
fn watch_discovery(shared: &Shared, mut connected: watch::Receiver<bool>, readiness: &Readiness) {
    let metrics = shared.metrics.clone();
    let restored = shared.mesh.snapshot().config.is_some();
    let block = (!restored).then(|| readiness.block("discovery"));
    tokio::spawn(async move {
        let mut block = block;
        loop {
            let now = *connected.borrow_and_update();
            metrics.set_discovery_connected(now);
            if now {
                block.take();
            }
            if connected.changed().await.is_err() {
                return;
            }
        }
    });
}

fn serve_dns(shared: &Arc<Shared>, nest: NestDns) -> Result<(), AppError> {
    let listen = |address: SocketAddr, source: io::Error| AppError::Listen {
        address: address.to_string(),
        source,
    };
    let (mut udp, mut tcp) = nest;
    if let (Some(address), true) = (shared.config.listeners.dns, udp.is_empty()) {
        let socket = std::net::UdpSocket::bind(address).map_err(|e| listen(address, e))?;
        socket.set_nonblocking(true)?;
        let listener = std::net::TcpListener::bind(address).map_err(|e| listen(address, e))?;
        listener.set_nonblocking(true)?;
        udp.push(socket);
        tcp.push(listener);
    }
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let has_ipv6 = std::fs::read_to_string("/proc/net/if_inet6")
        .is_ok_and(|table| table.lines().any(|line| !line.ends_with(" lo")));
    let lookup = names::Lookup {
        nameservers: nameservers(&resolv_conf).into(),
        ipv6: has_ipv6,
    };
    tokio::spawn(names::run(Arc::clone(&shared.mesh), lookup));
    let resolver = Resolver::new(
        Arc::clone(&shared.mesh),
        nameservers(&resolv_conf),
        shared.host.iter().map(|host| host.address).collect(),
        !has_ipv6,
        shared.metrics.clone(),
    );
    for socket in udp {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        tokio::spawn(Arc::clone(&resolver).serve_udp(socket));
    }
    for listener in tcp {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(Arc::clone(&resolver).serve_tcp(listener));
    }
    Ok(())
}

/// The sidecar's own listeners, open and not served yet.
struct AdminListeners(Vec<(admin::Listener, Serves)>);

impl AdminListeners {
    fn open(config: &ListenerConfig) -> Result<Self, AppError> {
        let failed = |address: String| move |source| AppError::Listen { address, source };
        let tcp = [
            (config.admin, Serves::Everything),
            (config.metrics, Serves::Metrics),
        ];
        let mut listeners = Vec::new();
        for (address, serves) in tcp {
            let Some(address) = address else { continue };
            let listener = bind_tcp(address).map_err(failed(address.to_string()))?;
            listeners.push((listener, serves));
        }
        if let Some(path) = &config.admin_socket {
            let listener = bind_unix(path).map_err(failed(path.display().to_string()))?;
            listeners.push((listener, Serves::Everything));
        }
        Ok(Self(listeners))
    }

    fn metrics_address(&self) -> Option<SocketAddr> {
        let metrics = self.0.iter().find(|(_, serves)| *serves == Serves::Metrics);
        metrics.and_then(|(listener, _)| listener.local_addr())
    }

    /// Serves all of them until the token is cancelled.
    fn serve(self, server: &Arc<AdminServer>) -> CancellationToken {
        let stop = CancellationToken::new();
        for (listener, serves) in self.0 {
            tokio::spawn(Arc::clone(server).serve(listener, serves, stop.clone()));
        }
        stop
    }
}

struct State {
    shared: Arc<Shared>,
    identity: Arc<Manager>,
    readiness: Readiness,
    drain: Arc<tokio::sync::Notify>,
}

impl AdminState for State {
    fn config(&self) -> Value {
        let snapshot = self.shared.mesh.snapshot();
        let services: Vec<String> = snapshot.services.keys().map(ToString::to_string).collect();
        let workloads: Vec<String> = snapshot.workloads.keys().map(ToString::to_string).collect();
        json!({
            "bootstrap": serde_json::to_value(&*self.shared.config).unwrap_or_default(),
            "mesh": snapshot.config.as_ref().map(|config| json!({
                "trustDomain": config.trust_domain,
                "virtualRanges": config.virtual_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "workloadRanges": config.workload_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "unknownDestinations": config.unknown_destinations,
            })),
            "services": services,
            "workloads": workloads,
        })
    }

    fn certs(&self) -> Value {
        let current = self.identity.subscribe();
        let current = current.borrow();
        let Some(identity) = current.as_ref() else {
            return Value::Null;
        };
        json!({
            "identity": identity.credentials.identity,
            "instance": &*identity.credentials.instance,
            "workload": identity.workload,
            "issued": identity.issued,
            "notAfter": identity.credentials.not_after,
            "trustDomain": identity.bundle.trust_domain,
            "roots": identity.bundle.roots.iter().map(|der| crate::tls::sha256_hex(der)).collect::<Vec<_>>(),
            "revokedInstances": identity.bundle.revoked_instances,
        })
    }

    fn endpoints(&self) -> Value {
        let now = crate::clock::now();
        let snapshot = self.shared.mesh.snapshot();
        let rows = snapshot.ports().flat_map(|port| {
            port.endpoints.iter().map(move |endpoint| {
                json!({
                    "service": port.service,
                    "port": port.port,
                    "protocol": port.protocol,
                    "workload": endpoint.model.workload,
                    "instance": &*endpoint.key.instance,
                    "address": endpoint.key.address,
                    "identity": endpoint.model.identity,
                    "breaker": endpoint.live.breaker(now).map(|view| view.state.as_str()),
                    "changes": observe::changes(endpoint.live.breaker_changes(), now),
                    "score": endpoint.live.score(now),
                })
            })
        });
        Value::Array(rows.collect())
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        self.readiness.check()
    }

    fn drain(&self) {
        self.drain.notify_one();
    }
}
