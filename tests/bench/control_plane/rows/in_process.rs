//! World, compilation, publication and the session machines of many sidecars in this process, without
//! sockets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use weft_control_plane::compile::Snapshot;
use weft_control_plane::discovery::{Answer, Push, Request, Session};
use weft_control_plane::peer::PeerIdentity;
use weft_control_plane::pipeline;
use weft_control_plane::publish::{Publisher, Subscription};
use weft_control_plane::world::addresses::VirtualAddresses;
use weft_control_plane::world::{Delta, World as Facts};
use weft_core::model::TrustBundle;
use weft_core::name::{SpiffeId, TrustDomain};
use weft_proto::resource::Kind;

use crate::options::Options;
use crate::stock::{ENDPOINTS_EACH, deltas, endpoint};
use crate::table::{Row, mebi, micros, size, span};
use crate::usage::pss_kib;
use crate::world::{NAMESPACE, World};

/// Services that a session asks for.
const CALLED: usize = 10;
/// What one change may take beside the subscribers' pushes.
const TARGET_MICROS: u64 = 1_000;
/// Changes of the largest world at least: each of another service.
const CHANGES_MIN: usize = 1_000;

/// One sidecar's stream, without its bytes.
struct Sidecar {
    session: Session,
    subscription: Subscription,
    /// A push that is not answered yet.
    unanswered: Vec<Push>,
}

impl Sidecar {
    fn open(publisher: &Arc<Publisher>, number: usize, services: usize) -> Self {
        let trust_domain: TrustDomain = "weft.local".parse().expect("a trust domain");
        let name = format!("caller{number}");
        let peer = PeerIdentity {
            identity: SpiffeId::new(&trust_domain, NAMESPACE, &name).expect("an identity"),
            instance: format!("c{number}").into(),
            not_after: i64::MAX,
        };
        let mut sidecar = Self {
            session: Session::default(),
            subscription: publisher.open(peer, 0),
            unanswered: Vec::new(),
        };
        for kind in Kind::ALL {
            let first = number * CALLED;
            let called = first..first + CALLED;
            let subscribe = if kind == Kind::Service {
                called
                    .map(|called| World::service(called % services))
                    .collect()
            } else if kind == Kind::Namespace {
                vec![NAMESPACE.to_owned()]
            } else if kind == Kind::ServerPolicy {
                vec![World::service(number % services)]
            } else {
                Vec::new()
            };
            let request = Request {
                subscribe,
                ..Request::default()
            };
            let handled = sidecar.session.handle_request(kind, request);
            let handled = handled.expect("names are asked for");
            if !kind.on_demand() {
                sidecar.subscription.subscribe_kind(kind);
            }
            sidecar.subscription.subscribe(kind, &handled.subscribed);
        }
        sidecar
    }

    /// Makes what is due; its bytes.
    fn push(&mut self, snapshot: &Snapshot) -> usize {
        for (kind, name) in self.subscription.take_due() {
            self.session.mark(kind, name);
        }
        let mut bytes = 0;
        while let Some(push) = self.session.poll_push(&snapshot.compiled) {
            let resources = push.resources.iter();
            bytes += resources
                .map(|encoded| encoded.envelope.len())
                .sum::<usize>();
            self.unanswered.push(push);
        }
        bytes
    }

    /// Acknowledges everything; how many pushes those were.
    fn acknowledge(&mut self) -> usize {
        let pushes = std::mem::take(&mut self.unanswered);
        let many = pushes.len();
        for push in pushes {
            let request = Request {
                answer: Some(Answer {
                    nonce: push.nonce,
                    error: None,
                }),
                ..Request::default()
            };
            let handled = self.session.handle_request(push.kind, request);
            handled.expect("an acknowledgment is taken");
        }
        let (is_idle, applied) = (self.session.is_idle(), self.session.applied());
        self.subscription.report(is_idle, applied);
        many
    }

    /// Pushes and acknowledges until there is nothing to say; pushes and their bytes.
    fn settle(&mut self, snapshot: &Snapshot) -> (usize, usize) {
        let (mut pushes, mut bytes) = (0, 0);
        loop {
            bytes += self.push(snapshot);
            match self.acknowledge() {
                0 => return (pushes, bytes),
                more => pushes += more,
            }
        }
    }
}

/// The row, and the one of its beginning.
pub(super) fn run(options: &Options) -> Vec<Row> {
    let world = World {
        services: options.worlds[1],
        proxies: options.sessions,
    };
    let before = own_kib();
    let facts = deltas(world);
    let began = Instant::now();
    let trust_domain: TrustDomain = "weft.local".parse().expect("a trust domain");
    let settings = pipeline::settings(trust_domain.clone(), pipeline::virtual_ranges(), Vec::new());
    let bundle = TrustBundle {
        trust_domain,
        roots: Vec::new(),
        revoked_instances: BTreeSet::new(),
    };
    let facts_world = Facts::new(settings, bundle, VirtualAddresses::default());
    let mut snapshot = Snapshot::new(facts_world);
    let publisher = Arc::<Publisher>::default();
    let (changes, _addresses) = snapshot.apply(facts, 0);
    publisher.publish(&snapshot.compiled, &changes.names);
    let compiled_in = began.elapsed();
    let compiled_kib = own_kib();

    let began = Instant::now();
    let opened = (0..world.proxies).map(|number| Sidecar::open(&publisher, number, world.services));
    let mut sidecars: Vec<Sidecar> = opened.collect();
    let mut connected = (0, 0);
    for sidecar in &mut sidecars {
        let (pushes, bytes) = sidecar.settle(&snapshot);
        connected = (connected.0 + pushes, connected.1 + bytes);
    }
    let connected_in = began.elapsed();
    let connected_kib = own_kib();
    let endpoints = world.services * ENDPOINTS_EACH;
    let size_of = format!(
        "{} sessions, {} services with a policy each, {endpoints} endpoints, in process",
        world.proxies, world.services
    );
    vec![
        Row {
            what: format!("{size_of}: compiled anew, then all connect"),
            found: format!("{}; {}", span(compiled_in), span(connected_in)),
            memory: format!(
                "{} for the world, {} KiB per session (this process)",
                mebi(compiled_kib.saturating_sub(before)),
                connected_kib.saturating_sub(compiled_kib) / world.proxies.max(1) as u64
            ),
            bytes: size(connected.1 as u64),
            ..Row::default()
        },
        one_change(options, world, snapshot, &publisher, &mut sidecars, size_of),
    ]
}

/// Endpoints change, each of another service; whoever is concerned is pushed to.
fn one_change(
    options: &Options,
    world: World,
    snapshot: Snapshot,
    publisher: &Arc<Publisher>,
    sidecars: &mut [Sidecar],
    size_of: String,
) -> Row {
    let mut held = Arc::new(snapshot);
    let mut times = Histogram::<u64>::new(3).expect("a histogram");
    let (mut pushing, mut pushes, mut bytes, mut compiled) = (Duration::ZERO, 0, 0, 0);
    let changes = options.rounds.max(CHANGES_MIN);
    for round in 0..changes {
        // Far apart, so that nothing is in a cache that would not be.
        let service = round * 7_919 % world.services;
        let weight = 1 + (round / world.services) as u32 % 99;
        let changed = Delta::Workload(Arc::new(endpoint(service, round % ENDPOINTS_EACH, weight)));
        let began = Instant::now();
        // As the pipeline does it: readers keep the snapshot that they have.
        let mut next = Snapshot::clone(&held);
        let (counted, _addresses) = next.apply([changed], 0);
        let next = Arc::new(next);
        let before = std::mem::replace(&mut held, next);
        let publication = publisher.publish(&held.compiled, &counted.names);
        drop(before);
        let took = began.elapsed();
        times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        compiled += counted.compiled;
        let began = Instant::now();
        for stream in publication.concerned.iter() {
            // Streams are numbered from 1 in the order in which they were opened.
            let sidecar = &mut sidecars[*stream as usize - 1];
            let (more, more_bytes) = sidecar.settle(&held);
            (pushes, bytes) = (pushes + more, bytes + more_bytes);
        }
        pushing += began.elapsed();
    }
    assert_eq!(
        pushes,
        changes * world.proxies * CALLED / world.services,
        "each subscriber of a service that changed is told once, and nobody else"
    );
    let p99 = times.value_at_quantile(0.99);
    Row {
        what: format!("{size_of}: one endpoint changes, {changes} times"),
        target: format!("≤ {} beside the pushes", micros(TARGET_MICROS)),
        found: format!(
            "{}; {:.1} resources compiled, {:.1} sessions woken",
            micros(p99),
            compiled as f64 / changes as f64,
            pushes as f64 / changes as f64
        ),
        reached: Some(p99 <= TARGET_MICROS),
        own_cpu: format!(
            "{:.1} µs per push, without its encoding",
            pushing.as_secs_f64() * 1e6 / pushes.max(1) as f64
        ),
        memory: format!("{} (this process)", mebi(own_kib())),
        bytes: size(bytes as u64),
        ..Row::default()
    }
    .percentiles(&times)
}

fn own_kib() -> u64 {
    pss_kib(&[std::process::id()])
}
