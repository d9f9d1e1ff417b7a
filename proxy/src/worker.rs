//! One worker: a thread with its own runtime, its own listeners, connections and pools. Nothing is
//! handed between workers while a request is served, but for connections to ports that limit them
//! (`pool/limited.rs`).

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{interval, sleep};
use weft_core::connections::ConnectionKind;
use weft_core::name::ServiceName;
use weft_core::resets::ResetPolicy;

use crate::config::ProxyConfig;
use crate::connections::{Connections, Permit, keep_alive};
use crate::drain::{Drain, Phase, Side};
use crate::http::{Resets, resets};
use crate::inbound::{self, Application, Applications};
use crate::mesh::{EndpointKey, Mesh};
use crate::nest::SocketFactory;
use crate::outbound::{self, Pool};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::Spans;
use crate::telemetry::tracing::Tracer;
use crate::tls::TlsContext;

/// How often idle connections are looked for. Policies have times from a second on.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Every so many times it is also asked which endpoints are gone, which means to look at them all.
const SWEEPS_WHOLE: u64 = 5;
/// After a failed accept (too many open files), the listener waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all workers and the control thread share.
#[derive(Debug)]
pub struct Shared {
    /// The bootstrap configuration.
    pub config: Arc<ProxyConfig>,
    /// What is known of the mesh.
    pub mesh: Arc<Mesh>,
    /// Certificates in force.
    pub tls: Arc<TlsContext>,
    /// Counters.
    pub metrics: Metrics,
    /// Spans; `None` where nothing is traced.
    pub tracer: Option<Tracer>,
    /// One line per request, where they are kept.
    pub access_log: AccessLog,
    /// Leaving.
    pub drain: Drain,
    /// Sockets inside the program's namespace, where it has one.
    pub nest: Option<SocketFactory>,
    /// What of the host the program may reach.
    pub host: Option<HostAccess>,
    /// Connections to ports that limit them.
    pub limited: Arc<outbound::Limited>,
    /// Accepted connections, all workers together.
    pub connections: Arc<Connections>,
}

impl Shared {
    /// Makes spans, where the sidecar traces.
    pub(crate) fn spans(&self) -> Spans<'_> {
        Spans {
            tracer: self.tracer.as_ref(),
            ratio: self.config.tracing.sample_ratio,
        }
    }
}

/// The host's loopback, as a program in a namespace of its own reaches it.
#[derive(Debug, Clone)]
pub struct HostAccess {
    /// What `host.mesh` stands for.
    pub address: IpAddr,
    /// Ports that were opened to the program.
    pub ports: Vec<u16>,
}

/// What a listener's connections are.
#[derive(Debug, Clone)]
pub enum Listening {
    /// Redirected by interception: the original destination says where to.
    Outbound,
    /// A local listener that leads to a service.
    Upstream(ServiceName, Option<u16>),
    /// Redirected by interception, towards the application.
    Inbound,
    /// A port of the application on the host, for clients outside the mesh.
    Publish(Application),
    /// Mutual TLS only, for one port of the application.
    Mesh(Application),
}

/// A listener that belongs to one worker.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: std::net::TcpListener,
    /// What its connections are.
    pub listening: Listening,
}

/// The state of one worker.
#[derive(Debug)]
pub struct Worker {
    /// What all share.
    pub shared: Arc<Shared>,
    /// Connections to peers.
    pub pool: Pool,
    /// Connections to the application.
    pub applications: Applications,
    /// What the workload's program may reset of its requests.
    pub(crate) resets: Resets,
    /// Copies of requests that are under way.
    pub copying: Cell<usize>,
    /// Connections being served here, upgraded ones included.
    serving: Arc<AtomicUsize>,
}

/// Runs a worker until it has drained; the first also checks the health of endpoints. Blocks its
/// thread.
///
/// # Errors
///
/// When a part of it has ended while it should serve: the worker would serve less than it says.
pub fn run(index: usize, shared: Arc<Shared>, listeners: Vec<Listener>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(serve(index, shared, listeners))
}

async fn serve(index: usize, shared: Arc<Shared>, listeners: Vec<Listener>) -> io::Result<()> {
    let worker = Rc::new(Worker {
        pool: Pool::new(
            Arc::clone(&shared.limited),
            Arc::clone(&shared.tls),
            Arc::clone(&shared.config),
            shared.metrics.clone(),
        ),
        applications: Applications::new(Arc::clone(&shared)),
        resets: resets(ResetPolicy::PROGRAM),
        copying: Cell::new(0),
        serving: Arc::default(),
        shared,
    });
    let mut accepting = JoinSet::new();
    for Listener { socket, listening } in listeners {
        keep_alive(&socket);
        let listener = TcpListener::from_std(socket)?;
        accepting.spawn_local(accept(Rc::clone(&worker), listener, listening));
    }
    let mut helping = JoinSet::new();
    helping.spawn_local(sweep(Rc::clone(&worker)));
    if index == 0 {
        helping.spawn_local(outbound::check_health(Rc::clone(&worker)));
    }
    loop {
        let ended = tokio::select! {
            Some(ended) = helping.join_next() => ended.map(|()| "a task without end"),
            ended = accepting.join_next() => match ended {
                Some(ended) => ended.map(|()| "a listener"),
                None => break,
            },
        };
        let leaving = worker.shared.drain.phase() > Phase::Running;
        match ended {
            Ok(_listener) if leaving => {}
            Ok(what) => return Err(io::Error::other(format!("{what} has ended"))),
            Err(panic) => return Err(io::Error::other(panic)),
        }
    }
    worker.drained().await;
    Ok(())
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, listening: Listening) {
    let drain = &worker.shared.drain;
    let stop = drain.stop_accepting(listening.side());
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            // First: a flood of connections would keep it from being looked at.
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => worker.admit(stream, client, &listening),
                Err(error) => {
                    tracing::warn!(%error, "accepting failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Closing one of several listeners on a port resets what is queued on it: take it first.
    while let Ok((stream, client)) = poll_once(listener.accept()).await {
        worker.admit(stream, client, &listening);
    }
}

/// What is ready at once; `Err` when nothing is.
async fn poll_once<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(result) => std::task::Poll::Ready(result),
        std::task::Poll::Pending => std::task::Poll::Ready(Err(io::ErrorKind::WouldBlock.into())),
    })
    .await
}

async fn sweep(worker: Rc<Worker>) {
    let mut tick = interval(SWEEP_EVERY);
    let timeouts = &worker.shared.config.timeouts;
    for number in 0u64.. {
        tick.tick().await;
        let whole = number.is_multiple_of(SWEEPS_WHOLE);
        let snapshot = worker.shared.mesh.snapshot();
        let policys = |key: &EndpointKey| snapshot.port_of(key)?.policy.idle_timeout;
        worker.pool.sweep(|key| match policys(key) {
            // One that is in no hurry is left alone until all are looked at.
            None if !whole => Some(Duration::MAX),
            _ if whole && !snapshot.holds(key) => None,
            own => Some(own.unwrap_or(timeouts.peer_idle)),
        });
        if whole {
            worker.applications.sweep(timeouts.application_idle);
        }
    }
}

impl Listening {
    fn side(&self) -> Side {
        match self {
            Self::Outbound | Self::Upstream(..) => Side::Outbound,
            Self::Inbound | Self::Publish(_) | Self::Mesh(_) => Side::Inbound,
        }
    }

    /// What is known of a client before it has sent anything.
    fn kind(&self) -> ConnectionKind {
        match self {
            Self::Outbound | Self::Upstream(..) => ConnectionKind::Application,
            Self::Inbound | Self::Mesh(_) => ConnectionKind::Unidentified,
            Self::Publish(_) => ConnectionKind::Plaintext,
        }
    }
}

impl Worker {
    fn admit(self: &Rc<Self>, stream: TcpStream, client: SocketAddr, listening: &Listening) {
        let connections = &self.shared.connections;
        let permit = connections.admit(listening.kind(), client.ip(), &self.serving);
        let Some(permit) = permit else {
            return reset(&stream);
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY not set");
        }
        let (worker, listening) = (Rc::clone(self), listening.clone());
        spawn_local(async move { worker.serve(stream, client, listening, permit).await });
    }

    async fn serve(
        self: &Rc<Self>,
        stream: TcpStream,
        client: SocketAddr,
        listening: Listening,
        permit: Permit,
    ) {
        match listening {
            Listening::Outbound => outbound::captured(self, stream, client, permit).await,
            Listening::Upstream(service, port) => {
                outbound::upstream(self, stream, &service, port, permit).await;
            }
            Listening::Inbound => inbound::captured(self, stream, client, permit).await,
            Listening::Publish(application) => {
                inbound::publish(self, stream, application, permit).await;
            }
            Listening::Mesh(application) => {
                inbound::mesh(self, stream, client, application, permit).await;
            }
        }
    }

    /// Until every connection has ended, or the time for it is over.
    async fn drained(&self) {
        let cut = self.shared.drain.cut();
        let mut cut = std::pin::pin!(cut);
        let mut tick = interval(Duration::from_millis(20));
        while self.serving.load(Ordering::Relaxed) > 0 {
            tokio::select! {
                () = &mut cut => return,
                _ = tick.tick() => {}
            }
        }
    }
}

/// Makes the peer see a reset rather than an orderly end.
pub fn reset(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "SO_LINGER not set");
    }
}

/// Where a redirected connection was meant to go, by the kernel's record of it. One that nobody
/// redirected is reset.
pub fn redirected(stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr> {
    match original_destination(stream) {
        Ok(Some(destination)) => return Some(destination),
        Ok(None) => tracing::debug!(%client, "a connection that nobody redirected: refused"),
        Err(error) => tracing::warn!(%client, %error, "original destination unknown"),
    }
    reset(stream);
    None
}

/// Whether a connection was made to the listener itself and not redirected there. Connection tracking
/// then records the listener's own address, and dialling that leads back here.
pub fn is_direct(stream: &TcpStream, destination: SocketAddr) -> bool {
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    stream.local_addr().map(canonical).ok() == Some(canonical(destination))
}

fn original_destination(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    let local = stream.local_addr()?;
    let mapped = match local.ip() {
        IpAddr::V6(address) => address.to_ipv4_mapped().is_some(),
        IpAddr::V4(_) => true,
    };
    crate::intercept::original_dst(stream, mapped)
}
