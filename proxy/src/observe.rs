//! Tells the control plane what people want to see of this sidecar: which breakers have opened, and
//! why; and whether interception is in force.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_core::breaker::{Change, StateView, View};
use weft_core::interception::InterceptionReport;
use weft_core::model::ObservedBreaker;
use weft_core::name::WorkloadName;
use weft_core::time::Instant;
use weft_proto::registry::registry_client::RegistryClient;
use weft_proto::registry::{InterceptionState, ObserveEnd, Observed};

use crate::control_plane::{Backoff, Line, Lines, Moves, described, end_status, ended, opened};
use crate::mesh::{Endpoint, Mesh, PortView};
use crate::telemetry::metrics::{BreakerSample, BreakerState, ConcurrencySample, Direction};

/// How often it is looked whether something changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Breakers told of at most; the open ones first.
const BREAKERS_MAX: usize = 1000;

/// Runs until the task is dropped.
pub async fn run(
    mut lines: Lines,
    mesh: Arc<Mesh>,
    interception: watch::Receiver<Option<InterceptionReport>>,
) {
    let seen = Seen { mesh, interception };
    let mut backoff = Backoff::new();
    loop {
        let line = lines.current().await;
        let status = match Stream::open(line).await {
            Ok(stream) => {
                let since = tokio::time::Instant::now();
                let status = session(stream, &mut lines, &seen).await;
                backoff.stood(since.elapsed());
                status
            }
            Err(status) => status,
        };
        let reason = described(&status);
        tracing::info!(reason, "observation stream ended");
        lines.pause(backoff.next(fastrand::f64())).await;
    }
}

/// What is told of.
struct Seen {
    mesh: Arc<Mesh>,
    interception: watch::Receiver<Option<InterceptionReport>>,
}

/// The stream on one connection.
struct Stream {
    told: mpsc::Sender<Observed>,
    end: Streaming<ObserveEnd>,
    /// What was told last, without times: they pass without being told.
    before: (Vec<ObservedBreaker>, Option<InterceptionReport>),
}

impl Stream {
    async fn open(line: Line) -> Result<Self, Status> {
        let (told, outgoing) = mpsc::channel(1);
        let mut client = RegistryClient::new(line);
        let end = opened(client.observe(ReceiverStream::new(outgoing))).await?;
        Ok(Self {
            told,
            end: end.into_inner(),
            before: (Vec::new(), None),
        })
    }
}

/// Tells to the end of the stream, over more than one connection where that is renewed; why it
/// ended.
async fn session(mut stream: Stream, lines: &mut Lines, seen: &Seen) -> Status {
    let mut moves = Moves::new("observation", lines);
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Of a stream before, the control plane keeps what was told for longer than this takes.
        let goes_on = tokio::select! {
            end = stream.end.next() => return match end {
                Some(Err(status)) => status,
                Some(Ok(_)) | None => ended(),
            },
            next = moves.next(Stream::open) => {
                stream = next;
                tell(&mut stream, seen).await
            }
            _ = look.tick() => tell(&mut stream, seen).await,
        };
        if !goes_on {
            return end_status(&mut stream.end).await;
        }
    }
}

/// Tells what has changed; false when the stream has ended.
async fn tell(stream: &mut Stream, seen: &Seen) -> bool {
    let breakers = observed(&seen.mesh);
    let standing = *seen.interception.borrow();
    let now = (breakers.iter().map(without_times).collect(), standing);
    if now == stream.before {
        return true;
    }
    stream.before = now;
    let breakers = breakers.iter().map(Into::into).collect();
    let observed = Observed {
        breakers,
        interception: InterceptionState::from(standing).into(),
    };
    stream.told.send(observed).await.is_ok()
}

fn without_times(breaker: &ObservedBreaker) -> ObservedBreaker {
    ObservedBreaker {
        since: Duration::ZERO,
        next_probe: None,
        ..breaker.clone()
    }
}

/// Breakers that have ever opened: those of endpoints those of rules and those of whole ports.
fn observed(mesh: &Mesh) -> Vec<ObservedBreaker> {
    let now = crate::clock::now();
    let snapshot = mesh.snapshot();
    let breakers = snapshot.ports().flat_map(|port| of_port(port, now));
    let mut all: Vec<ObservedBreaker> = breakers.collect();
    all.sort_by(|a, b| {
        let key = |one: &ObservedBreaker| one.state == StateView::Closed;
        let name = |one: &ObservedBreaker| {
            let of = (one.endpoint.clone(), one.route.clone());
            (one.service.clone(), one.port, of)
        };
        (key(a), name(a)).cmp(&(key(b), name(b)))
    });
    all.truncate(BREAKERS_MAX);
    all
}

fn of_port(port: &PortView, now: Instant) -> Vec<ObservedBreaker> {
    let own = port.breaker(now).map(|view| (None, None, view));
    let rules = port.breakers_by_rule(now).into_iter();
    let rules = rules.map(|(rule, view)| (None, Some(rule.to_string()), view));
    let endpoints = port.endpoints.iter();
    let endpoints = endpoints.filter_map(|endpoint| {
        let name = (endpoint.model.workload.clone(), endpoint.key.address);
        Some((Some(name), None, endpoint.live.breaker(now)?))
    });
    let recent = |endpoint: &(WorkloadName, SocketAddr)| {
        let of_address = |other: &&Arc<Endpoint>| other.key.address == endpoint.1;
        let found = port.endpoints.iter().find(of_address);
        found.map(|found| found.live.recent_failures())
    };
    let opened = own.into_iter().chain(rules).chain(endpoints);
    let opened = opened.filter_map(|(endpoint, route, view)| {
        Some(ObservedBreaker {
            service: port.service.clone(),
            port: port.port,
            route,
            cause: cause_text(&view, endpoint.as_ref().and_then(recent)),
            endpoint,
            state: view.state,
            since: view.since?,
            next_probe: view.next_probe,
        })
    });
    opened.collect()
}

/// Why a breaker opened, and what the last failures were.
fn cause_text(view: &View, recent: Option<String>) -> String {
    let cause = view.cause.map(|cause| cause.to_string());
    let cause = cause.unwrap_or_default();
    match recent.filter(|recent| !recent.is_empty()) {
        Some(recent) => format!("{cause}; last: {recent}"),
        None => cause,
    }
}

/// Changes of a breaker's state, each with its time in milliseconds since the Unix epoch.
pub fn changes(changes: Vec<Change>, now: Instant) -> Value {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let rows = changes.into_iter().map(|change| {
        let at = unix.saturating_sub(now.saturating_since(change.at));
        json!({
            "at": u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            "from": change.transition.from.as_str(),
            "to": change.transition.to.as_str(),
            "cause": change.cause.map(|cause| cause.to_string()),
        })
    });
    Value::Array(rows.collect())
}

/// Every breaker, as a scrape sees it.
pub fn samples(mesh: &Mesh) -> Vec<BreakerSample> {
    let now = crate::clock::now();
    let snapshot = mesh.snapshot();
    let mut samples = Vec::new();
    for port in snapshot.ports() {
        let none = String::new;
        let own = port.breaker(now).map(|view| (none(), none(), view));
        let rules = port.breakers_by_rule(now).into_iter();
        let rules = rules.map(|(rule, view)| (none(), rule.to_string(), view));
        let endpoints = port.endpoints.iter().filter_map(|endpoint| {
            let view = endpoint.live.breaker(now)?;
            Some((endpoint.key.address.to_string(), none(), view))
        });
        samples.extend(own.into_iter().chain(rules).chain(endpoints).map(
            |(endpoint, route, view)| BreakerSample {
                service: port.service.to_string(),
                endpoint,
                route,
                state: match view.state {
                    StateView::Closed => BreakerState::Closed,
                    StateView::HalfOpen => BreakerState::HalfOpen,
                    StateView::Open => BreakerState::Open,
                },
                opened: view.opened,
            },
        ));
    }
    samples
}

/// Every limit that follows how long answers take, as a scrape sees it.
pub fn limits(mesh: &Mesh) -> Vec<ConcurrencySample> {
    let snapshot = mesh.snapshot();
    let outbound = snapshot.ports().filter_map(|port| {
        Some(ConcurrencySample {
            direction: Direction::Outbound,
            service: port.service.to_string(),
            port: port.port.to_string(),
            view: port.concurrency()?.view(),
        })
    });
    let inbound = mesh.server_limits().into_iter();
    let inbound = inbound.map(|(port, limit)| ConcurrencySample {
        direction: Direction::Inbound,
        service: mesh.source().to_owned(),
        port: port.to_string(),
        view: limit.view(),
    });
    let mut samples: Vec<ConcurrencySample> = inbound.chain(outbound).collect();
    samples.sort_by(|a, b| {
        (a.direction, &a.service, &a.port).cmp(&(b.direction, &b.service, &b.port))
    });
    samples
}
