//! Metrics, in Prometheus' text form.
//!
//! The path of a request holds handles ([`HttpStats`], [`TcpStats`]) and does nothing but relaxed
//! atomic additions on cache lines that its own thread writes; names and labels come into being at
//! the scrape. `deploy/guide/metrics.md` documents every name; a test holds the two together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use prometheus_client::registry::Registry;

mod active;
mod application;
mod concurrency;
mod encode;
mod process;
mod rates;
mod requests;
mod stats;
mod table;

pub(crate) use active::{Active, AllActive};
pub use application::{ApplicationScrapes, ScrapeResult};
pub use concurrency::{ConcurrencySample, ConcurrencySource};
pub use rates::{RateSample, RateSource};
pub use stats::{HttpStats, InFlight, RequestDone, TcpOpen, TcpStats};

use table::Table;

/// The media type of what [`Metrics::encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where traffic comes from, seen from the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

impl Direction {
    /// Both, in the order of their numbers.
    pub(crate) const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How bytes travel between this sidecar and the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wire {
    /// Mutual TLS of the mesh.
    Mtls,
    /// Anything else, the application's own TLS included.
    Plaintext,
    /// TLS that this sidecar makes, to a server outside the mesh.
    Tls,
}

impl Wire {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Mtls, Self::Plaintext, Self::Tls];

    /// The value of the label `transport`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::Plaintext => "plaintext",
            Self::Tls => "tls",
        }
    }
}

/// Whom a series is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpKey {
    /// Inbound or outbound.
    pub direction: Direction,
    /// The service that is called, `NAMESPACE/NAME`, or what stands for it.
    pub service: Arc<str>,
    /// The other side: the caller's identity inbound, the endpoint outbound.
    pub peer: Arc<str>,
}

/// Whom a series about TCP is about.
pub type TcpKey = HttpKey;

/// Whose connections a pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolKind {
    /// To other sidecars.
    Mesh,
    /// To the workload's own application.
    Application,
    /// Out of the mesh.
    External,
}

impl PoolKind {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Mesh, Self::Application, Self::External];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Application => "application",
            Self::External => "external",
        }
    }
}

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Probes pass.
    HalfOpen,
    /// Nothing passes.
    Open,
}

impl BreakerState {
    /// The gauge's value.
    pub const fn value(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// One breaker, as a scrape sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerSample {
    /// The service, `NAMESPACE/NAME`.
    pub service: String,
    /// The endpoint; empty for the breakers of the service.
    pub endpoint: String,
    /// The rule of a route, `NAMESPACE/ROUTE/RULE`; empty unless it is a rule's breaker.
    pub route: String,
    /// Its state.
    pub state: BreakerState,
    /// How often it has opened.
    pub opened: u64,
}

/// Asks every breaker for its state; called at each scrape.
pub type BreakerSource = Box<dyn Fn() -> Vec<BreakerSample> + Send + Sync>;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }

    /// Adds, or takes away.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Connections of one kind of pool, all workers together.
#[derive(Debug, Default)]
pub struct PoolStats {
    /// Open connections.
    pub connections: Gauge,
    /// Those of them that carry something.
    pub(crate) active: AllActive,
    /// Requests that wait for one.
    pub pending: Gauge,
    /// Connections opened.
    pub opened: Counter,
    /// Attempts that failed.
    pub failed: Counter,
    /// Requests refused because too many were waiting, or for too long.
    pub overflowed: Counter,
    /// Requests sent again because their connection was closed, or did not take them.
    pub replayed: Counter,
}

/// Everything that is counted once for the whole sidecar.
#[derive(Debug, Default)]
pub struct Totals {
    /// Detections that ran into their timeout.
    pub detection_timeouts: Counter,
    /// Connections refused or closed because of a limit on connections.
    pub connections_refused: Counter,
    /// DNS queries answered by the mesh itself.
    pub dns_answered: Counter,
    /// DNS queries passed on.
    pub dns_forwarded: Counter,
    /// DNS queries that failed.
    pub dns_failed: Counter,
    /// Connections to the control plane that were made.
    pub control_plane_connected: Counter,
    /// Attempts to connect to the control plane that failed.
    pub control_plane_failures: Counter,
    /// Resources of the control plane put into force.
    pub discovery_accepted: Counter,
    /// Resources of the control plane refused.
    pub discovery_rejected: Counter,
    /// Certificates received.
    pub certificates_renewed: Counter,
    /// Renewals that failed.
    pub certificate_failures: Counter,
    /// Spans the collector has taken.
    pub spans_exported: Counter,
    /// Spans that found the queue full.
    pub spans_dropped: Counter,
    /// Spans the collector has not taken.
    pub spans_failed: Counter,
    /// Health checks of others that passed.
    pub health_checks_passed: Counter,
    /// Health checks of others that failed.
    pub health_checks_failed: Counter,
    /// Health checks by others.
    pub health_checks_received: Counter,
    /// Lines of the sidecar's own log that found the queue full.
    pub log_dropped: Counter,
    /// Access log lines written.
    pub access_log_written: Counter,
    /// Access log lines that found the queue full, or could not be written.
    pub access_log_dropped: Counter,
}

/// Every metric of a sidecar. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
    registry: Arc<Registry>,
}

struct Inner {
    http: Mutex<Table<HttpStats>>,
    tcp: Mutex<Table<TcpStats>>,
    totals: Totals,
    application_scrapes: ApplicationScrapes,
    pools: [PoolStats; PoolKind::ALL.len()],
    connections: [[Counter; Wire::ALL.len()]; Direction::ALL.len()],
    // A map, since the reasons are words; locked only when a handshake fails.
    handshake_failures: Mutex<BTreeMap<(Direction, &'static str), u64>>,
    control_plane_connected: AtomicBool,
    discovery_connected: AtomicBool,
    interception_lapsed: AtomicBool,
    /// Seconds since the epoch; 0 while there is no certificate.
    certificate_expiry: AtomicU64,
    breakers: OnceLock<BreakerSource>,
    rates: OnceLock<RateSource>,
    concurrency: OnceLock<ConcurrencySource>,
    series_max: usize,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics with at most `series_max` sets of labels for HTTP, as many for TCP, and as many
    /// breakers; what goes beyond is counted under `other`.
    pub fn new(series_max: usize) -> Self {
        let inner = Arc::new(Inner {
            http: Mutex::new(Table::new(series_max)),
            tcp: Mutex::new(Table::new(series_max)),
            totals: Totals::default(),
            application_scrapes: ApplicationScrapes::default(),
            pools: Default::default(),
            connections: Default::default(),
            handshake_failures: Mutex::default(),
            control_plane_connected: AtomicBool::new(false),
            discovery_connected: AtomicBool::new(false),
            interception_lapsed: AtomicBool::new(false),
            certificate_expiry: AtomicU64::new(0),
            breakers: OnceLock::new(),
            rates: OnceLock::new(),
            concurrency: OnceLock::new(),
            series_max,
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(encode::Scrape(Arc::clone(&inner))));
        registry.register_collector(Box::new(process::Process::new()));
        Self {
            inner,
            registry: Arc::new(registry),
        }
    }

    /// The handle for requests of `key`, made or returned: for the calling thread, which should be
    /// the one to use it. To be asked for once per connection or endpoint, not per request. Series
    /// without a handle and without change expire after 10 min.
    pub fn http(&self, key: HttpKey) -> Arc<HttpStats> {
        lock(&self.inner.http).handle(key, Instant::now())
    }

    /// The handle for TCP connections of `key`; otherwise as [`Metrics::http`].
    pub fn tcp(&self, key: TcpKey) -> Arc<TcpStats> {
        lock(&self.inner.tcp).handle(key, Instant::now())
    }

    /// What is counted once for the whole sidecar.
    pub fn totals(&self) -> &Totals {
        &self.inner.totals
    }

    /// What becomes of the application's own metrics.
    pub fn application_scrapes(&self) -> &ApplicationScrapes {
        &self.inner.application_scrapes
    }

    /// The gauges of one kind of pool.
    pub fn pool(&self, kind: PoolKind) -> &PoolStats {
        &self.inner.pools[kind as usize]
    }

    /// A connection has come into being: accepted and understood inbound, dialled outbound.
    pub fn connection(&self, direction: Direction, wire: Wire) {
        self.inner.connections[direction as usize][wire as usize].inc();
    }

    /// A TLS handshake has failed, and why, in a word that is one of few.
    pub fn handshake_failed(&self, direction: Direction, reason: &'static str) {
        let mut failures = lock(&self.inner.handshake_failures);
        *failures.entry((direction, reason)).or_default() += 1;
    }

    /// Whether the connection to the control plane stands.
    pub fn set_control_plane_connected(&self, connected: bool) {
        self.inner.control_plane_connected.store(connected, Relaxed);
    }

    /// Whether the discovery stream stands.
    pub fn set_discovery_connected(&self, connected: bool) {
        self.inner.discovery_connected.store(connected, Relaxed);
    }

    /// Whether interception is not in force, where that is proved.
    pub fn set_interception_lapsed(&self, lapsed: bool) {
        self.inner.interception_lapsed.store(lapsed, Relaxed);
    }

    /// When the certificate in use ends.
    pub fn set_certificate_expiry(&self, not_after: SystemTime) {
        let since_epoch = not_after.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since_epoch.map_or(0, |d| d.as_secs());
        self.inner.certificate_expiry.store(seconds, Relaxed);
    }

    /// Whom to ask for the limits that follow how long answers take. Only the first one counts.
    pub fn set_concurrency_source(&self, source: ConcurrencySource) {
        drop(self.inner.concurrency.set(source));
    }

    /// Whom to ask for the breakers. Only the first one counts.
    pub fn set_breaker_source(&self, source: BreakerSource) {
        drop(self.inner.breakers.set(source));
    }

    /// Whom to ask for the limits on the rate. Only the first one counts.
    pub fn set_rate_source(&self, source: RateSource) {
        drop(self.inner.rates.set(source));
    }

    /// Requests so far, expired series included, by direction and wire.
    pub fn requests(&self, direction: Direction, wire: Wire) -> u64 {
        let table = lock(&self.inner.http);
        let mut total = table.retired()[direction as usize][wire as usize];
        for (key, shards) in table.iter() {
            if key.direction == direction {
                total += shards.iter().map(|s| s.requests(wire)).sum::<u64>();
            }
        }
        total
    }

    /// The whole exposition, in the OpenMetrics text format (media type: [`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let now = Instant::now();
        lock(&self.inner.http).sweep(now);
        lock(&self.inner.tcp).sweep(now);
        let mut text = String::with_capacity(16 * 1024);
        let encoded = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        debug_assert!(encoded.is_ok(), "writing to a String does not fail");
        text
    }
}

/// Counters have no invariant that a panic elsewhere could have broken.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
