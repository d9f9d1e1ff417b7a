//! The wiring of a sidecar, from top to bottom: the only place that knows everybody.

mod admin;
mod announcement;
mod enrolment;
mod error;
mod leaving;
mod plan;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use weft_core::leaving::LeavingTime;
use weft_core::model::Registration;
use weft_core::name::ServiceName;

use crate::admin::Readiness;
use crate::config::{ProxyArgs, ProxyConfig, load};
use crate::connections::{Connections, within_open_files};
use crate::control_plane::Keeper;
use crate::discovery;
use crate::dns::{Resolver, nameservers};
use crate::drain::Drain;
use crate::identity::Manager;
use crate::interception;
use crate::leases;
use crate::memory;
use crate::mesh::Mesh;
use crate::names;
use crate::nest::{self, NestAddresses, NestListeners, SocketFactory};
use crate::observe;
use crate::outbound;
use crate::registration::{Registrar, RegistrationState};
use crate::shared::{HostAccess, Shared};
use crate::state::StateDir;
use crate::telemetry::access_log::{self, AccessLog};
use crate::telemetry::log::{self, LogHandle};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tracing::{Tracer, TracerConfig};
use crate::tls::TlsContext;
use crate::vital::Vital;
use admin::{AdminListeners, State};
use announcement::{first_registration, probe_ports};
use enrolment::{check_workload, enrol, proof};
pub use error::AppError;
use plan::{NestDns, listeners};

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
    nest::seal()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut sidecar = Sidecar::start(config, None, &[], Some(log)).await?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let lost = sidecar.vital().clone();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = sidecar.asked_to_drain() => {}
            part = lost.lost() => {
                sidecar.stop().await;
                return Err(AppError::Lost(part));
            }
        }
        tracing::info!("leaving");
        let leaving = async {
            sidecar.leave().await;
            sidecar.depart().await;
        };
        tokio::select! {
            () = leaving => {}
            // A second signal cuts.
            _ = terminate.recv() => sidecar.cut(),
            _ = interrupt.recv() => sidecar.cut(),
            _ = lost.lost() => sidecar.cut(),
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
    standing: watch::Receiver<RegistrationState>,
    registration: watch::Receiver<Registration>,
    admin: CancellationToken,
    tracer: Option<Tracer>,
    access_log_writer: access_log::Writer,
    vital: Vital,
    /// The time for leaving, once it has begun.
    leaving_time: Option<LeavingTime>,
    log: Option<LogHandle>,
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
        if let Some(log) = &log {
            log.write_behind(config.limits.log_queue, &metrics)?;
        }
        let vital = Vital::default();
        let state = StateDir::open(&config.state_dir)?;
        let tls = Arc::new(TlsContext::new(config.timeouts.expired_grace));
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
            proof(&config)?,
            state.clone(),
            Arc::clone(&tls),
            metrics.clone(),
        ));
        let keeper = Keeper::new(address, identity.presented(), metrics.clone());
        let lines = keeper.lines();
        let mut client = discovery::Client::new(
            lines.clone(),
            Arc::clone(&mesh),
            Arc::clone(&identity),
            state,
            demanded,
            &config.limits,
            metrics.clone(),
        );
        client.restore()?;
        enrol(&identity, config.is_in_pod()).await?;
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
        let connections = Connections::new(
            within_open_files(config.limits.connections()),
            metrics.clone(),
        );
        let shared = Arc::new(Shared {
            limited: Arc::default(),
            resets: Arc::default(),
            config: Arc::new(config),
            mesh: Arc::clone(&mesh),
            tls,
            metrics: metrics.clone(),
            tracer: tracer.clone(),
            access_log,
            drain: Drain::default(),
            nest,
            host,
            connections,
            own_answer: Arc::default(),
        });
        let (mut plan, nest_dns) = listeners(&shared, nest_listeners, addresses)?;
        plan.publish(published, shared.config.limits.listen_backlog)?;
        let admin_listeners = AdminListeners::open(&shared.config.listeners)?;
        let scraped = admin_listeners.metrics_address();
        let first = first_registration(&shared, &plan, scraped)?;
        let (registration, registered) = watch::channel(first);
        let registrar = Registrar::new(lines.clone(), registered.clone());
        let standing = registrar.standing();
        let (leave, left) = oneshot::channel();
        if !registered.borrow().ports.is_empty() || !registered.borrow().services.is_empty() {
            vital.spawn("registration", registrar.run(left));
        }
        vital.spawn("connection", keeper.run());
        let seen = Arc::clone(&shared.mesh);
        let (prove, proved) = watch::channel(None);
        vital.spawn("observation", observe::run(lines.clone(), seen, proved));
        let limited = Arc::clone(&shared.mesh);
        vital.spawn("leases", leases::run(lines.clone(), limited));
        if shared.config.proves_interception() {
            let own = Arc::clone(&shared.own_answer);
            let proving = interception::prove(own, readiness.clone(), metrics.clone(), prove);
            vital.spawn("interception", proving);
        }
        watch_discovery(&shared, client.connected(), &readiness);
        watch_enforcement(&shared, &readiness);
        vital.spawn("discovery", client.run());
        let renewing = Arc::clone(&identity);
        vital.spawn("renewal", async move { renewing.keep_fresh(lines).await });
        let peers = Arc::clone(shared.tls.standing());
        vital.spawn("expiry", peers.end_expired(shared.config.timeouts.drain));
        let proving = outbound::prove_again(
            Arc::clone(&shared.mesh),
            Arc::clone(&shared.tls),
            Arc::clone(&shared.config),
            metrics.clone(),
        );
        vital.spawn("proofs", proving);
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
        let admin = admin_listeners.serve(&admin::server(state, metrics, log.clone()));
        serve_dns(&shared, nest_dns)?;
        let workers = plan.spawn(&shared, &vital)?;
        let released = release_memory(readiness.clone(), Arc::clone(&shared));
        tokio::spawn(released);
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
            vital,
            leaving_time: None,
            log,
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
        let decided = standing.wait_for(|now| *now != RegistrationState::Pending);
        match timeout(limit, decided).await {
            Ok(Ok(now)) => match &*now {
                RegistrationState::Refused(reason) => Err(reason.clone()),
                RegistrationState::Accepted | RegistrationState::Pending => Ok(()),
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

    /// What is lost of the sidecar while it runs.
    pub fn vital(&self) -> &Vital {
        &self.vital
    }
}

/// Lets go of what only starting needed, once it is over, and of what bursts of requests needed.
async fn release_memory(readiness: Readiness, shared: Arc<Shared>) {
    readiness.wait().await;
    sleep(memory::RELEASE_AFTER).await;
    match memory::release_startup_pages() {
        Ok(kib) => tracing::debug!(kib, "let go of pages that starting needed"),
        Err(error) => tracing::debug!(%error, "kept all pages that starting needed"),
    }
    let mut trimming = memory::Trimming::default();
    loop {
        sleep(memory::TRIM_EVERY).await;
        let open = shared.connections.inbound() + shared.connections.outbound();
        let released = tokio::task::spawn_blocking(move || {
            let released = memory::release_freed(&mut trimming, open);
            (trimming, released)
        });
        let Ok((kept, released)) = released.await else {
            return;
        };
        trimming = kept;
        if let Some(bytes) = released {
            tracing::debug!(bytes, "gave back memory that was freed");
        }
    }
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

/// Not ready while what the control plane asks for cannot be enforced and nobody is let in: a rollout
/// stops before it has replaced all that work.
fn watch_enforcement(shared: &Shared, readiness: &Readiness) {
    let (mesh, readiness) = (Arc::clone(&shared.mesh), readiness.clone());
    let mut changes = mesh.changes();
    tokio::spawn(async move {
        let mut _block = None;
        loop {
            let asked = mesh.unenforceable();
            _block = asked.map(|asked| {
                readiness.block(format!(
                    "enforcement: {asked} asks for what is not known here"
                ))
            });
            if changes.changed().await.is_err() {
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
