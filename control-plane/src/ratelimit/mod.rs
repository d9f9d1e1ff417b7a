//! Who may use which share of a limit that holds for all sidecars of a service together. The books
//! are core's; here they meet streams and a clock. Nothing of it is kept: after a restart, sidecars
//! say what they use, and until the grace is over nothing is raised.

pub mod grpc;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Clock};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_core::name::ServiceName;
use weft_core::rate::lease::{Allocator, Grant, Lease, Report};
use weft_core::rate::{RateScope, RuleName};
use weft_core::time::Instant;
use weft_proto::resource::{Kind, Resource};

use crate::compile::Compiled;
use crate::identity::Identities;
use crate::identity::service_account::is_pod;
use crate::peer::PeerIdentity;
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
    limits: BTreeMap<RuleName, Books>,
    streams: HashMap<u64, Stream>,
}

/// The books of one limit.
#[derive(Debug)]
struct Books {
    /// The service that the limit is of.
    service: ServiceName,
    allocator: Allocator,
}

/// The shared limits of one service, and whether each has keys.
type Shared = BTreeMap<RuleName, bool>;

/// Where leases of one stream go.
#[derive(Debug)]
struct Stream {
    grants: mpsc::Sender<Vec<Grant>>,
    /// Ends it: a sidecar that takes nothing has to begin anew.
    end: CancellationToken,
    /// Limits that it has told of.
    told: BTreeSet<RuleName>,
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
            let snapshot = self.pipeline.snapshot();
            let now = self.now();
            let mut state = self.state();
            state.forget_ended(|service| shared_limits(&snapshot.compiled, service));
            let names: Vec<RuleName> = state.limits.keys().cloned().collect();
            state.poll(&names, now);
        }
    }

    /// A stream has begun; what is to be sent on it goes to `grants`.
    fn open(&self, stream: u64, grants: mpsc::Sender<Vec<Grant>>) -> CancellationToken {
        let end = CancellationToken::new();
        let stream_end = end.clone();
        let entry = Stream {
            grants,
            end,
            told: BTreeSet::new(),
        };
        self.state().streams.insert(stream, entry);
        stream_end
    }

    /// A stream has ended.
    fn close(&self, instance: &str, stream: u64) {
        let now = self.now();
        self.state().close(instance, stream, now);
    }

    /// Takes what a sidecar says, of limits of services that it may serve.
    fn handle(&self, peer: &PeerIdentity, stream: u64, reports: Vec<Report>) {
        let snapshot = self.pipeline.snapshot();
        let instance = &peer.instance;
        let services = match is_pod(instance) {
            // What a pod serves is in the cluster's facts, also when this process has just begun.
            true => {
                let pod = snapshot.world.pod_of(peer).into_iter();
                let served = pod.flat_map(|pod| snapshot.world.services_of(pod));
                served.map(|served| served.service.name.clone()).collect()
            }
            false => self.identities.services_of(instance),
        };
        let own = services.iter().flat_map(|service| {
            let shared = shared_limits(&snapshot.compiled, service).into_iter();
            shared.map(move |(rule, keyed)| (rule, (service, keyed)))
        });
        let own: BTreeMap<RuleName, (&ServiceName, bool)> = own.collect();
        let opens = self.opens();
        let now = self.now();
        let mut state = self.state();
        let mut names = Vec::with_capacity(reports.len());
        for report in reports {
            let Some((service, keyed)) = own.get(&report.rule) else {
                continue;
            };
            names.push(report.rule.clone());
            state.handle((instance, stream), report, service, || {
                Allocator::new(*keyed, opens)
            });
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
    /// Takes what a sidecar says of a limit of a service; `begin` makes its books.
    fn handle(
        &mut self,
        (instance, stream): (&Arc<str>, u64),
        report: Report,
        service: &ServiceName,
        begin: impl FnOnce() -> Allocator,
    ) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.told.insert(report.rule.clone());
        }
        let books = self.limits.entry(report.rule).or_insert_with(|| Books {
            service: service.clone(),
            allocator: begin(),
        });
        // A policy may be for another service now.
        books.service.clone_from(service);
        let by = (instance, stream);
        let (version, holds, demand) = (report.version, report.holds, report.demand);
        books.allocator.handle_report(by, version, holds, demand);
    }

    /// A stream has ended.
    fn close(&mut self, instance: &str, stream: u64, now: Instant) {
        let Some(closed) = self.streams.remove(&stream) else {
            return;
        };
        for rule in &closed.told {
            if let Some(books) = self.limits.get_mut(rule) {
                books.allocator.handle_disconnect(instance, stream, now);
            }
        }
    }

    /// Closes the books of limits that are in force no more. `shared` says what a service has; only
    /// services that books are kept of are looked at.
    fn forget_ended(&mut self, shared: impl Fn(&ServiceName) -> Shared) {
        let services: BTreeSet<&ServiceName> = self.limits.values().map(|b| &b.service).collect();
        let in_force = services.into_iter().flat_map(shared);
        let in_force: Shared = in_force.collect();
        let before = self.limits.len();
        self.limits.retain(|rule, _| in_force.contains_key(rule));
        if self.limits.len() < before {
            for stream in self.streams.values_mut() {
                stream.told.retain(|rule| self.limits.contains_key(rule));
            }
        }
    }

    /// Sends what is due of these limits.
    fn poll(&mut self, names: &[RuleName], now: Instant) {
        let mut due: BTreeMap<u64, Vec<Grant>> = BTreeMap::new();
        for name in names {
            let Some(books) = self.limits.get_mut(name) else {
                continue;
            };
            for lease in books.allocator.poll(now) {
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

/// The limits of a service that are shared.
fn shared_limits(compiled: &Compiled, service: &ServiceName) -> Shared {
    let found = compiled.find(Kind::ServerPolicy, &service.to_string());
    match found.map(|found| &found.resource) {
        Some(Resource::ServerPolicy(policy)) => {
            let limits = policy.ports.values().flat_map(|port| &port.rate_limits);
            let shared = limits.filter(|limit| limit.scope == RateScope::Global);
            let shared = shared.map(|limit| (limit.name.clone(), !limit.key.is_empty()));
            shared.collect()
        }
        Some(
            Resource::EndpointSlice(_)
            | Resource::Service(_)
            | Resource::Workload(_)
            | Resource::TrustBundle(_)
            | Resource::MeshConfig(_)
            | Resource::Namespace(_),
        )
        | None => Shared::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use weft_core::rate::lease::Shares;

    use super::*;

    const NOW: Instant = Instant::from_nanos(0);

    fn rule(policy: &str) -> RuleName {
        RuleName {
            namespace: "shop".into(),
            policy: policy.into(),
            rule: 0,
        }
    }

    fn tell(state: &mut State, stream: u64, policy: &str, service: &str) {
        let report = Report {
            rule: rule(policy),
            version: 0,
            holds: Shares::even(2),
            demand: None,
        };
        let service = service.parse().unwrap();
        let begin = || Allocator::new(false, NOW);
        state.handle((&"a".into(), stream), report, &service, begin);
    }

    #[test]
    fn only_services_with_books_are_looked_at() {
        let mut state = State::default();
        tell(&mut state, 1, "p", "shop/web");
        tell(&mut state, 1, "q", "shop/web");
        tell(&mut state, 1, "r", "shop/db");
        let looked_at = RefCell::new(Vec::new());
        let sweep = |state: &mut State, in_force: &[(&str, &str)]| {
            looked_at.take();
            state.forget_ended(|service| {
                let service = service.to_string();
                let of_service = in_force.iter().filter(|(of, _)| *of == service);
                let shared = of_service
                    .map(|(_, policy)| (rule(policy), false))
                    .collect();
                looked_at.borrow_mut().push(service);
                shared
            });
            let kept: Vec<String> = state.limits.keys().map(|r| r.policy.to_string()).collect();
            kept.concat()
        };
        let all = [("shop/db", "r"), ("shop/web", "p"), ("shop/web", "q")];
        assert_eq!(sweep(&mut state, &all), "pqr");
        assert_eq!(*looked_at.borrow(), ["shop/db", "shop/web"]);
        assert_eq!(sweep(&mut state, &all[1..2]), "p");
        // Its policy is for another service now.
        tell(&mut state, 1, "p", "shop/api");
        assert_eq!(sweep(&mut state, &[("shop/api", "p")]), "p");
        assert_eq!(*looked_at.borrow(), ["shop/api"]);
        assert_eq!(sweep(&mut state, &[]), "");
        assert_eq!(sweep(&mut state, &[]), "");
        assert!(looked_at.borrow().is_empty());
    }

    #[test]
    fn a_stream_that_ends_gives_up_what_it_told_of() {
        let mut state = State::default();
        let (grants, _granted) = mpsc::channel(1);
        let stream = Stream {
            grants,
            end: CancellationToken::new(),
            told: BTreeSet::new(),
        };
        state.streams.insert(1, stream);
        tell(&mut state, 1, "p", "shop/web");
        tell(&mut state, 2, "q", "shop/web");
        state.close("a", 1, NOW);
        let later = NOW + weft_core::rate::lease::LOST_AFTER;
        state.poll(&[rule("p"), rule("q")], later);
        let limits = state.limits.values();
        let empty: Vec<bool> = limits.map(|books| books.allocator.is_empty()).collect();
        assert_eq!(empty, [true, false]);
    }
}
