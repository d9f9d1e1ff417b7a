//! The discovery client: asks the control plane for what connections need, takes what it sends,
//! keeps the last good state on disk, and reconnects.

mod composed;
mod grpc;
mod held;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use weft_proto::resource::Kind;

use crate::config::LimitConfig;
use crate::control_plane::{Backoff, Line, Lines, Moves};
use crate::identity::{IdentityError, Manager};
use crate::mesh::{Demand, Mesh};
use crate::state::StateDir;
use crate::telemetry::metrics::Metrics;
use held::Holdings;

/// The file's name in the state directory.
const FILE: &str = "snapshot.bin";
/// A subscription that nobody used for this long is dropped.
const UNUSED_AFTER: Duration = Duration::from_secs(600);
/// How often unused subscriptions are looked for, and state is written when it changed.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
const SAVE_EVERY: Duration = Duration::from_millis(200);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("{} ({:?})", .0.message(), .0.code())]
    Status(Box<tonic::Status>),
    #[error("the control plane ended the stream")]
    Closed,
}

impl StreamEnd {
    /// Whether what is held could not be told, because it is too much.
    fn is_too_much_held(&self) -> bool {
        match self {
            Self::Status(status) => status.code() == tonic::Code::OutOfRange,
            Self::Closed => false,
        }
    }
}

impl From<tonic::Status> for StreamEnd {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Opens a stream that says what is held and wanted now.
fn opening(
    line: Line,
    identity: &Manager,
    holdings: &Holdings,
) -> impl Future<Output = Result<grpc::Stream, tonic::Status>> + Send + use<> {
    let current = identity.subscribe();
    let node = {
        let own = current.borrow();
        own.as_ref().map(|own| own.credentials.instance.to_string())
    };
    grpc::Stream::open(line, &node.unwrap_or_default(), holdings)
}

/// The client with everything it holds.
#[derive(Debug)]
pub struct Client {
    lines: Lines,
    mesh: Arc<Mesh>,
    identity: Arc<Manager>,
    state: StateDir,
    demanded: mpsc::Receiver<Demand>,
    /// Names asked for at most; beyond that a connection fails as if unanswered.
    destinations_max: usize,
    metrics: Metrics,
    holdings: Holdings,
    connected: watch::Sender<bool>,
    unsaved: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        // A short-lived sidecar ends before the next regular save. What `weft run` made for it
        // alone is gone by now.
        if self.state.exists() {
            self.save();
        }
    }
}

impl Client {
    /// Nothing held yet, and nothing asked for but what holds for the sidecar's own namespace and
    /// for those who serve what its workload serves.
    /// `demanded` is the other end of [`Mesh`]'s demand.
    pub fn new(
        lines: Lines,
        mesh: Arc<Mesh>,
        identity: Arc<Manager>,
        state: StateDir,
        demanded: mpsc::Receiver<Demand>,
        limits: &LimitConfig,
        metrics: Metrics,
    ) -> Self {
        let destinations_max = limits.max_destinations;
        // What is known always has the larger part.
        let unknown_max = limits.max_unknown_destinations.min(destinations_max / 2);
        let mut holdings = Holdings::new(unknown_max);
        holdings.subscribe(Kind::Namespace, mesh.namespace());
        for service in mesh.services() {
            holdings.subscribe(Kind::ServerPolicy, &service.to_string());
        }
        if let Some(own) = mesh.followed() {
            holdings.subscribe(Kind::Workload, own);
        }
        Self {
            lines,
            mesh,
            identity,
            state,
            demanded,
            destinations_max,
            metrics,
            holdings,
            connected: watch::Sender::new(false),
            unsaved: false,
        }
    }

    /// Whether the stream is open.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Takes up the last state from disk.
    pub fn restore(&mut self) -> Result<(), IdentityError> {
        let Some(bytes) = self.state.read(FILE)? else {
            return Ok(());
        };
        for reason in grpc::from_bytes(&bytes, &mut self.holdings) {
            tracing::warn!(reason, "left out of the restored snapshot");
        }
        self.mesh.publish(self.holdings.world());
        self.follow_own();
        Ok(())
    }

    /// In a pod: asks for what is to be enforced for the services that the workload serves now, and
    /// for no others; the names that are new, and those that are none of them any more.
    fn follow_own(&mut self) -> (Vec<String>, Vec<String>) {
        if self.mesh.followed().is_none() {
            return (Vec::new(), Vec::new());
        }
        let services = self.mesh.services();
        let mut new: Vec<String> = services.iter().map(ToString::to_string).collect();
        let asked = self.holdings.subscriptions(Kind::ServerPolicy);
        let over = asked.into_iter().filter(|name| !new.contains(name));
        let mut gone = Vec::new();
        for name in over.collect::<Vec<_>>() {
            gone.extend(self.holdings.release(Kind::ServerPolicy, &name));
        }
        new.retain(|name| self.holdings.subscribe(Kind::ServerPolicy, name));
        (new, gone)
    }

    /// Runs until the task is dropped.
    pub async fn run(mut self) {
        let mut lines = self.lines.clone();
        let mut backoff = Backoff::new();
        loop {
            let line = self.noting(lines.current()).await;
            let opening = opening(line, &self.identity, &self.holdings);
            let end = match self.noting(opening).await {
                Ok(stream) => {
                    self.connected.send_replace(true);
                    let since = Instant::now();
                    let Err(end) = self.stream(stream, &mut lines).await;
                    backoff.stood(since.elapsed());
                    end
                }
                Err(status) => status.into(),
            };
            self.connected.send_replace(false);
            tracing::warn!(reason = %end, "discovery stream ended");
            if end.is_too_much_held() {
                self.holdings.forget_slices();
            }
            self.save();
            let wait = backoff.next(fastrand::f64());
            self.noting(lines.pause(wait)).await;
        }
    }

    /// Waits for something, still taking note of what connections want.
    async fn noting<T>(&mut self, waiting: impl Future<Output = T>) -> T {
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                done = &mut waiting => return done,
                Some(demand) = self.demanded.recv() => {
                    if self.want(&demand) && self.holdings.has_too_many_unknown() {
                        self.forget_unknown();
                    }
                }
            }
        }
    }

    /// One stream to its end, over more than one connection where that is renewed.
    async fn stream(
        &mut self,
        mut stream: grpc::Stream,
        lines: &mut Lines,
    ) -> Result<std::convert::Infallible, StreamEnd> {
        stream.catch_up(&self.holdings).await?;
        let mut moves = Moves::new("discovery", lines);
        let mut sweep = interval(SWEEP_EVERY);
        let mut save = interval(SAVE_EVERY);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                response = stream.next() => {
                    let response = response?.ok_or(StreamEnd::Closed)?;
                    let id = response.id();
                    let applied = self.take(response);
                    stream.acknowledge(&id, &applied).await?;
                    let (new, gone) = self.follow_own();
                    if !new.is_empty() || !gone.is_empty() {
                        stream.subscribe(Kind::ServerPolicy, new, gone).await?;
                    }
                }
                // The stream that stood ends when the next one is open.
                next = moves.next(|line| opening(line, &self.identity, &self.holdings)) => {
                    stream = next;
                    stream.catch_up(&self.holdings).await?;
                }
                Some(demand) = self.demanded.recv() => {
                    self.ask(demand, &mut stream).await?;
                }
                _ = sweep.tick() => self.drop_unused(&mut stream).await?,
                _ = save.tick() => self.save(),
            }
        }
    }

    fn take(&mut self, response: grpc::Response) -> held::Applied {
        let kind = response.kind;
        let received = response.received.len();
        let applied = self.holdings.handle_response(
            kind,
            response.received,
            response.removed,
            crate::clock::now(),
        );
        let totals = self.metrics.totals();
        let rejected = applied.rejected.len();
        totals.discovery_rejected.add(rejected as u64);
        let accepted = received.saturating_sub(rejected);
        totals.discovery_accepted.add(accepted as u64);
        for reason in &applied.rejected {
            tracing::error!(kind = kind.as_str(), reason, "resource rejected");
        }
        if kind == Kind::TrustBundle
            && let Some(bundle) = self.holdings.trust_bundle()
            && let Err(error) = self.identity.trust(bundle.clone())
        {
            tracing::error!(%error, "trust bundle not put in force");
        }
        if applied.changed {
            self.unsaved = true;
            self.mesh.publish(self.holdings.world());
        }
        applied
    }

    async fn ask(&mut self, first: Demand, stream: &mut grpc::Stream) -> Result<(), StreamEnd> {
        let mut wanted: Vec<Demand> = vec![first];
        while let Ok(more) = self.demanded.try_recv() {
            wanted.push(more);
        }
        wanted.retain(|demand| self.want(demand));
        let unwanted = match self.holdings.has_too_many_unknown() {
            true => self.forget_unknown(),
            false => Vec::new(),
        };
        for kind in Kind::ALL {
            let wanted = wanted.iter().filter(|demand| demand.kind == kind);
            let wanted: Vec<String> = wanted.map(|demand| demand.name.clone()).collect();
            let unwanted = unwanted.iter().filter(|(of, _)| *of == kind);
            let unwanted: Vec<String> = unwanted.map(|(_, name)| name.clone()).collect();
            if !wanted.is_empty() || !unwanted.is_empty() {
                stream.subscribe(kind, wanted, unwanted).await?;
            }
        }
        Ok(())
    }

    /// Takes note of a name that some connection waits for; whether it has to be asked for.
    fn want(&mut self, demand: &Demand) -> bool {
        if self.holdings.asked() >= self.destinations_max {
            let limit = self.destinations_max;
            tracing::warn!(
                limit,
                name = demand.name,
                "limits.max_destinations reached: not asked for"
            );
            return false;
        }
        let now = crate::clock::now();
        match self.holdings.demand(demand.kind, &demand.name, now) {
            Ok(new) => new,
            Err(error) => {
                tracing::debug!(%error, name = demand.name, "not asked for");
                false
            }
        }
    }

    /// Forgets names that lead nowhere, where nobody uses them or there are too many; those to
    /// unsubscribe from.
    fn forget_unknown(&mut self) -> Vec<(Kind, String)> {
        let mesh = &self.mesh;
        let now = crate::clock::now();
        let used = |name: &str| match mesh.followed() == Some(name) {
            // The control plane may hear of the pod later than of its sidecar.
            true => Some(now),
            false => mesh.absent_used(name),
        };
        self.holdings.forget_unknown(used, now)
    }

    async fn drop_unused(&mut self, stream: &mut grpc::Stream) -> Result<(), StreamEnd> {
        let unused = self.mesh.unused_since(UNUSED_AFTER);
        let unknown = self.forget_unknown();
        if unused.is_empty() && unknown.is_empty() {
            return Ok(());
        }
        for Demand { kind, name } in unused {
            let names = self.holdings.release(kind, &name);
            stream.subscribe(kind, Vec::new(), names).await?;
            self.unsaved = true;
        }
        for kind in Kind::ALL {
            let names = unknown.iter().filter(|(of, _)| *of == kind);
            let names: Vec<String> = names.map(|(_, name)| name.clone()).collect();
            if !names.is_empty() {
                stream.subscribe(kind, Vec::new(), names).await?;
            }
        }
        self.mesh.publish(self.holdings.world());
        Ok(())
    }

    /// Keeps what has changed since the last time.
    fn save(&mut self) {
        if !self.unsaved {
            return;
        }
        self.state.write_soon(FILE, grpc::to_bytes(&self.holdings));
        self.unsaved = false;
    }
}
