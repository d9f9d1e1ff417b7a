//! Who may use which share of a limit that holds for all sidecars of a service together. The books
//! are core's; here they meet streams and a clock. Nothing of it is kept: after a restart, sidecars
//! say what they use, and until the grace is over nothing is raised.

pub mod grpc;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Clock};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_core::rate::lease::{Allocator, Grant, Lease, Report};
use weft_core::rate::{RateScope, RuleName};
use weft_core::time::Instant;
use weft_proto::resource::{Kind, Resource};

use crate::compile::Compiled;
use crate::identity::Identities;
use crate::pipeline::Pipeline;

/// How often it is looked for who has been out of touch for too long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The books of every shared limit.
#[derive(Debug)]
pub struct Leases {
    pipeline: Arc<Pipeline>,
    identities: Arc<Identities>,
    grace: Duration,
    began: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    limits: BTreeMap<RuleName, Allocator>,
    streams: HashMap<u64, Stream>,
}

/// Where leases of one stream go.
#[derive(Debug)]
struct Stream {
    grants: mpsc::Sender<Vec<Grant>>,
    /// Ends it: a sidecar that takes nothing has to begin anew.
    end: CancellationToken,
}

impl Leases {
    /// Nobody is known, and nothing is raised before the grace is over.
    pub fn new(pipeline: Arc<Pipeline>, identities: Arc<Identities>, grace: Duration) -> Arc<Self> {
        Arc::new(Self {
            pipeline,
            identities,
            grace,
            began: Clock::now(),
            state: Mutex::default(),
        })
    }

    /// Moves on what only time moves. Runs until the task is dropped.
    pub async fn keep(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let shared = shared_limits(&self.pipeline.snapshot().compiled);
            let now = self.now();
            let mut state = self.state();
            state.limits.retain(|name, _| shared.contains_key(name));
            let names: Vec<RuleName> = state.limits.keys().cloned().collect();
            state.poll(&names, now);
        }
    }

    /// A stream has begun; what is to be sent on it goes to `grants`.
    fn open(&self, stream: u64, grants: mpsc::Sender<Vec<Grant>>) -> CancellationToken {
        let end = CancellationToken::new();
        let stream_end = end.clone();
        let entry = Stream { grants, end };
        self.state().streams.insert(stream, entry);
        stream_end
    }

    /// A stream has ended.
    fn close(&self, instance: &str, stream: u64) {
        let now = self.now();
        let mut state = self.state();
        state.streams.remove(&stream);
        for books in state.limits.values_mut() {
            books.handle_disconnect(instance, stream, now);
        }
    }

    /// Takes what a sidecar says, of limits of services that it may serve.
    fn handle(&self, instance: &Arc<str>, stream: u64, reports: Vec<Report>) {
        let snapshot = self.pipeline.snapshot();
        let services = self.identities.services_of(instance);
        let own = services.iter().filter_map(|service| {
            let found = snapshot
                .compiled
                .find(Kind::ServerPolicy, &service.to_string())?;
            Some(&found.resource)
        });
        let own = limits_of(own);
        let opens = self.opens();
        let now = self.now();
        let mut state = self.state();
        let mut names = Vec::with_capacity(reports.len());
        for report in reports {
            let Some(keyed) = own.get(&report.rule) else {
                continue;
            };
            let books = state.limits.entry(report.rule.clone());
            let books = books.or_insert_with(|| Allocator::new(*keyed, opens));
            books.handle_report(
                (instance, stream),
                report.version,
                report.holds,
                report.demand,
            );
            names.push(report.rule);
        }
        state.poll(&names, now);
    }

    fn now(&self) -> Instant {
        let elapsed = self.began.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    fn opens(&self) -> Instant {
        Instant::from_nanos(0) + self.grace
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sends what is due of these limits.
    fn poll(&mut self, names: &[RuleName], now: Instant) {
        let mut due: BTreeMap<u64, Vec<Grant>> = BTreeMap::new();
        for name in names {
            let Some(books) = self.limits.get_mut(name) else {
                continue;
            };
            for lease in books.poll(now) {
                let Lease {
                    stream,
                    version,
                    shares,
                    ..
                } = lease;
                due.entry(stream).or_default().push(Grant {
                    rule: name.clone(),
                    version,
                    shares,
                });
            }
        }
        for (stream, grants) in due {
            let Some(stream) = self.streams.get(&stream) else {
                continue;
            };
            if stream.grants.try_send(grants).is_err() {
                stream.end.cancel();
            }
        }
    }
}

/// Every limit that is shared, and whether it has keys.
fn shared_limits(compiled: &Compiled) -> BTreeMap<RuleName, bool> {
    let policies = compiled.of_kind(Kind::ServerPolicy);
    limits_of(policies.map(|encoded| &encoded.resource))
}

fn limits_of<'a>(policies: impl Iterator<Item = &'a Resource>) -> BTreeMap<RuleName, bool> {
    let policies = policies.filter_map(|resource| match resource {
        Resource::ServerPolicy(policy) => Some(policy),
        Resource::EndpointSlice(_)
        | Resource::Service(_)
        | Resource::Workload(_)
        | Resource::TrustBundle(_)
        | Resource::MeshConfig(_)
        | Resource::Namespace(_) => None,
    });
    let ports = policies.flat_map(|policy| policy.ports.values());
    let limits = ports.flat_map(|port| &port.rate_limits);
    let shared = limits.filter(|limit| limit.scope == RateScope::Global);
    shared
        .map(|limit| (limit.name.clone(), !limit.key.is_empty()))
        .collect()
}
