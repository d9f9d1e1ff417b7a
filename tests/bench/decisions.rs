//! What decisions cost: which rule among many routes, which endpoint among many, a breaker's permit.
//!
//! `cargo bench --bench decisions`; tests/bench/README.md has what was measured.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use http::{HeaderMap, Method};
use weft_core::balance::hash::{Maglev, Ring, hash};
use weft_core::balance::{Candidates, Policy};
use weft_core::breaker::{Breaker, BreakerConfig, CallClass, CallOutcome, Standing};
use weft_core::choice::{self, Terms, choose};
use weft_core::path::NormalPath;
use weft_core::policy::TrafficPolicy;
use weft_core::retry::RetryBudget;
use weft_core::route::{
    About, Backend, HttpMatch, PathMatch, RequestHead, Route, RouteName, RouteTable, Rule,
};
use weft_core::time::Instant;

const ROUTES: [usize; 3] = [1, 100, 10_000];
const ENDPOINTS: [usize; 3] = [1, 10, 1000];

fn main() {
    divan::main();
}

/// Routes of one rule each, by paths of their own.
fn table(routes: usize, path: fn(&str) -> PathMatch) -> RouteTable {
    let routes = (0..routes).map(|number| {
        let backend = Backend {
            service: "shop/web".parse().ok(),
            port: 80,
            weight: 1,
            filters: Arc::default(),
        };
        Arc::new(Route {
            name: RouteName {
                namespace: "shop".into(),
                name: format!("route-{number}").into(),
            },
            ports: Vec::new(),
            about: About::Requests,
            created: 0,
            rules: vec![Rule {
                matches: vec![HttpMatch::of(path(&format!("/api/v1/item-{number}")))],
                backends: vec![backend],
                ..Rule::default()
            }],
        })
    });
    RouteTable::new(routes.collect())
}

/// Asks for the last route, and for none.
fn find(bencher: Bencher<'_, '_>, table: &RouteTable, routes: usize, below: &str) {
    let headers = HeaderMap::new();
    let path = format!("/api/v1/item-{}{below}", routes - 1);
    let head = RequestHead {
        method: &Method::GET,
        path: NormalPath::new(&path),
        query: None,
        headers: &headers,
    };
    assert!(table.find(&head).is_some());
    bencher.bench(|| table.decide(black_box(&head), || 7).is_some());
}

#[divan::bench(args = ROUTES)]
fn route_by_exact_path(bencher: Bencher<'_, '_>, routes: usize) {
    let table = table(routes, |path| PathMatch::exact(path).expect("a path"));
    find(bencher, &table, routes, "");
}

#[divan::bench(args = ROUTES)]
fn route_by_prefix(bencher: Bencher<'_, '_>, routes: usize) {
    let table = table(routes, |path| PathMatch::prefix(path).expect("a path"));
    find(bencher, &table, routes, "/a/b/c");
}

/// By the host that a ClientHello names, which only a wildcard covers.
#[divan::bench(args = ROUTES)]
fn route_by_host(bencher: Bencher<'_, '_>, routes: usize) {
    let named = (0..routes).map(|number| {
        Arc::new(Route {
            name: RouteName {
                namespace: "shop".into(),
                name: format!("route-{number}").into(),
            },
            ports: Vec::new(),
            about: About::Hosts(vec![format!("*.host-{number}.example.com").into()]),
            created: 0,
            rules: vec![Rule::default()],
        })
    });
    let table = RouteTable::new(named.collect());
    let host = format!("a.b.host-{}.example.com", routes - 1);
    assert!(table.connection(Some(&host), 7).is_some());
    bencher.bench(|| table.connection(black_box(Some(&host)), 7).is_some());
}

/// Endpoints of which one has twice the weight of the others.
#[divan::bench(args = ENDPOINTS)]
fn pick_peak_ewma_by_weight(bencher: Bencher<'_, '_>, endpoints: usize) {
    let mut endpoints = Endpoints::new(endpoints);
    endpoints.0[0].2 = 200;
    let mut random: u64 = 0;
    bencher.bench_local(|| {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        Policy::PeakEwma.pick(black_box(&endpoints), random, 0)
    });
}

/// Endpoints that are all well: score, requests under way, weight.
struct Endpoints(Vec<(f64, u32, u32)>);

impl Endpoints {
    fn new(count: usize) -> Self {
        let all = (0..count).map(|n| (n as f64 % 7.0 + 1.0, n as u32 % 5, 100));
        Self(all.collect())
    }

    fn named(&self) -> Vec<(String, u32)> {
        let all = self.0.iter().enumerate();
        all.map(|(n, (_, _, weight))| (format!("i-{n}"), *weight))
            .collect()
    }
}

impl Candidates for Endpoints {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn excluded(&self, _index: usize) -> bool {
        false
    }

    fn score(&self, index: usize) -> f64 {
        self.0[index].0
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.0[index].1
    }

    fn weight(&self, index: usize) -> u32 {
        self.0[index].2
    }

    fn heaviest(&self) -> Option<u32> {
        // One that differs is the first.
        (self.0[0].2 != 100).then_some(self.0[0].2)
    }
}

impl choice::Endpoints for Endpoints {
    fn standing(&self, _index: usize) -> Standing {
        Standing::Available
    }

    fn is_tried(&self, _index: usize) -> bool {
        false
    }

    fn zone(&self, _index: usize) -> &str {
        ""
    }
}

/// All of the choice: zones, breakers and panic as by default, and the cheaper of two.
#[divan::bench(args = ENDPOINTS)]
fn choose_by_default(bencher: Bencher<'_, '_>, endpoints: usize) {
    let (endpoints, policy) = (Endpoints::new(endpoints), TrafficPolicy::default());
    let mut turn: u64 = 0;
    bencher.bench_local(|| {
        turn += 1;
        let terms = Terms {
            policy: &policy,
            key: None,
            zone: "a",
            random: turn.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            turn,
            last_resort: true,
        };
        choose(black_box(&endpoints), &terms)
    });
}

fn pick(bencher: Bencher<'_, '_>, policy: Policy, endpoints: usize) {
    let endpoints = Endpoints::new(endpoints);
    let mut turn: u64 = 0;
    bencher.bench_local(|| {
        turn += 1;
        policy.pick(
            black_box(&endpoints),
            turn.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            turn,
        )
    });
}

#[divan::bench(args = ENDPOINTS)]
fn pick_peak_ewma(bencher: Bencher<'_, '_>, endpoints: usize) {
    pick(bencher, Policy::PeakEwma, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn pick_least_request(bencher: Bencher<'_, '_>, endpoints: usize) {
    pick(bencher, Policy::LeastRequest, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn pick_round_robin(bencher: Bencher<'_, '_>, endpoints: usize) {
    pick(bencher, Policy::RoundRobin, endpoints);
}

#[divan::bench(args = ENDPOINTS)]
fn pick_ring(bencher: Bencher<'_, '_>, endpoints: usize) {
    let named = Endpoints::new(endpoints).named();
    let named: Vec<(&str, u32)> = named.iter().map(|(n, w)| (&**n, *w)).collect();
    let ring = Ring::new(&named);
    bencher.bench(|| ring.pick(hash(black_box(b"a user's key")), |_| false));
}

#[divan::bench(args = ENDPOINTS)]
fn pick_maglev(bencher: Bencher<'_, '_>, endpoints: usize) {
    let named = Endpoints::new(endpoints).named();
    let named: Vec<(&str, u32)> = named.iter().map(|(n, w)| (&**n, *w)).collect();
    let maglev = Maglev::new(&named);
    bencher.bench(|| maglev.pick(hash(black_box(b"a user's key")), |_| false));
}

#[divan::bench]
fn breaker_call(bencher: Bencher<'_, '_>) {
    let mut breaker = Breaker::new(BreakerConfig::default());
    let mut nanos = 0;
    let outcome = CallOutcome {
        class: CallClass::Success,
        latency: Duration::from_millis(1),
    };
    bencher.bench_local(|| {
        nanos += 10_000;
        let now = Instant::from_nanos(nanos);
        let permit = breaker.try_acquire(now).expect("it is closed");
        breaker.on_result(permit, outcome, now, 7)
    });
}

#[divan::bench]
fn retry_budget(bencher: Bencher<'_, '_>) {
    let mut budget = RetryBudget::default();
    let mut nanos = 0;
    bencher.bench_local(|| {
        nanos += 10_000;
        let now = Instant::from_nanos(nanos);
        budget.on_request(now);
        budget.try_retry(now)
    });
}
