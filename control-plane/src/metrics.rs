//! What Prometheus reads on 15014.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::{scrape_targets, serve_tcp};
use crate::health::{self, Health};
use crate::identity::Identities;
use crate::injector::serve::Counters;
use crate::kubernetes::events::PodCounters;
use crate::peers::Peers;
use crate::pipeline::Pipeline;
use crate::publish::Publisher;
use crate::ratelimit::{Leases, Whereabouts};
use crate::registry::Registrations;
use crate::sources::kubernetes::ClusterStatus;
use crate::store::Store;

/// The parts that are measured.
#[derive(Debug)]
pub struct Measured {
    /// Revisions.
    pub store: Arc<dyn Store>,
    /// Signatures.
    pub identities: Arc<Identities>,
    /// Connections, and what was refused on them.
    pub peers: Arc<Peers>,
    /// Workloads.
    pub registrations: Arc<Registrations>,
    /// Compilations.
    pub pipeline: Arc<Pipeline>,
    /// Discovery streams.
    pub publisher: Arc<Publisher>,
    /// Objects of the cluster; nothing outside of one.
    pub cluster: Option<Arc<ClusterStatus>>,
    /// Where the books of global limits are.
    pub leases: Arc<Leases>,
    /// Pods that the API server asked about, in a cluster.
    pub injector: Option<Counters>,
    /// What was said of pods, and done to them, in a cluster.
    pub pods: Option<PodCounters>,
}

/// Serves `/metrics`, `/targets`, `/healthz` and `/readyz` until `stop`.
pub async fn serve(
    listener: TcpListener,
    measured: Measured,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    let registrations = Arc::clone(&measured.registrations);
    let measured = Arc::new(measured);
    let router = Router::new()
        .route("/metrics", get(move || async move { render(&measured) }))
        .route(
            "/targets",
            get(move || async move { Json(scrape_targets(&*registrations)) }),
        )
        .merge(health::router(&health));
    serve_tcp(router, listener, stop).await;
}

fn render(measured: &Measured) -> String {
    let mut registry = Registry::default();
    register_counters(&mut registry, measured);
    register_gauges(&mut registry, measured);
    register_peers(&mut registry, &measured.peers);
    register_books(&mut registry, measured.leases.whereabouts());
    if let Some(cluster) = &measured.cluster {
        let partial = measured.pipeline.snapshot().world.partial().count();
        register_cluster(&mut registry, cluster, partial);
    }
    if let Some(counters) = &measured.injector {
        counters.register(&mut registry);
    }
    if let Some(counters) = &measured.pods {
        counters.register(&mut registry);
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _infallible = encode(&mut text, &registry);
    text
}

fn register_counters(registry: &mut Registry, measured: &Measured) {
    let (identities, counters) = (&measured.identities, &measured.publisher.counters);
    let counted: [(&str, &str, &AtomicU64); 9] = [
        (
            "weft_certificates_signed",
            "Certificates signed",
            &identities.counters.signed,
        ),
        (
            "weft_certificates_refused",
            "Certificates refused",
            &identities.counters.refused,
        ),
        (
            "weft_resources_compiled",
            "Resources made after changes, whether they came out different or not",
            &counters.compiled,
        ),
        (
            "weft_resources_changed",
            "Resources that came, changed or went",
            &counters.changed,
        ),
        (
            "weft_discovery_woken",
            "Streams of sidecars that a change concerned",
            &counters.woken,
        ),
        (
            "weft_discovery_sent_bytes",
            "Bytes of responses to sidecars",
            &counters.bytes,
        ),
        (
            "weft_discovery_pushes",
            "Responses sent to sidecars",
            &counters.pushes,
        ),
        (
            "weft_discovery_acks",
            "Responses that sidecars took",
            &counters.acks,
        ),
        (
            "weft_discovery_nacks",
            "Responses that sidecars rejected",
            &counters.nacks,
        ),
    ];
    for (name, help, counter) in counted {
        registry.register(
            name,
            help,
            ConstCounter::new(counter.load(Ordering::Relaxed)),
        );
    }
}

fn register_gauges(registry: &mut Registry, measured: &Measured) {
    let snapshot = measured.pipeline.snapshot();
    let gauges: [(&str, &str, u64); 4] = [
        (
            "weft_proxies_connected",
            "Sidecars with a discovery stream",
            measured.publisher.len() as u64,
        ),
        (
            "weft_registrations",
            "Workloads on record",
            measured.registrations.len() as u64,
        ),
        (
            "weft_store_revision",
            "The store's newest revision",
            *measured.store.watch().borrow(),
        ),
        (
            "weft_compilations",
            "Compilations since the start",
            snapshot.compiled.generation,
        ),
    ];
    for (name, help, value) in gauges {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        registry.register(name, help, ConstGauge::new(value));
    }
}

fn register_books(registry: &mut Registry, found: Whereabouts) {
    let books = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    for (state, whereabouts) in [
        ("kept", Whereabouts::Kept),
        ("relayed", Whereabouts::Relayed),
        ("unreached", Whereabouts::Unreached),
    ] {
        let gauge = books.get_or_create(&[("state", state)]);
        gauge.set(i64::from(found == whereabouts));
    }
    registry.register(
        "weft_control_plane_global_limits",
        "1 at where the books of global limits are: kept here, at another control plane that this one \
         relays to, or not reached",
        books,
    );
}

fn register_cluster(registry: &mut Registry, cluster: &ClusterStatus, partial: usize) {
    let objects = Family::<[(&'static str, String); 1], Gauge>::default();
    let stale = Family::<[(&'static str, String); 1], Gauge>::default();
    let lists = Family::<[(&'static str, String); 1], Counter>::default();
    for watch in cluster.watches().view(Instant::now()) {
        let labels = [("kind", watch.name.to_string())];
        if let Some(many) = watch.objects {
            let many = i64::try_from(many).unwrap_or(i64::MAX);
            objects.get_or_create(&labels).set(many);
        }
        if watch.is_absent {
            continue;
        }
        lists.get_or_create(&labels).inc_by(watch.lists);
        let seconds = i64::try_from(watch.stale.as_secs()).unwrap_or(i64::MAX);
        stale.get_or_create(&labels).set(seconds);
    }
    registry.register(
        "weft_kubernetes_objects",
        "Objects of the cluster that are facts of the mesh",
        objects,
    );
    registry.register(
        "weft_kubernetes_lists",
        "Listings of the cluster's objects: one, and one more whenever a watch could not go on",
        lists,
    );
    let partial = i64::try_from(partial).unwrap_or(i64::MAX);
    registry.register(
        "weft_kubernetes_partial_services",
        "Services of the cluster with more EndpointSlices than are used",
        ConstGauge::new(partial),
    );
    registry.register(
        "weft_kubernetes_stale_seconds",
        "How long the cluster's API has not been followed: what is in force may be that old",
        stale,
    );
}

fn register_peers(registry: &mut Registry, peers: &Peers) {
    let refused = Family::<[(&'static str, &'static str); 1], Counter>::default();
    for (reason, count) in peers.refused() {
        let counter = refused.get_or_create(&[("reason", reason.as_str())]);
        counter.inc_by(count);
    }
    registry.register(
        "weft_control_plane_refused",
        "What peers were refused because they exceeded a limit",
        refused,
    );
    let (connections, anonymous, names) = peers.totals();
    let gauges = [
        (
            "weft_control_plane_connections",
            "Connections of sidecars and operators with a certificate",
            connections,
        ),
        (
            "weft_control_plane_anonymous_connections",
            "Connections without a certificate, those in their handshake included",
            anonymous,
        ),
        (
            "weft_control_plane_names",
            "Names that sidecars have subscribed to, and resources that they hold",
            names,
        ),
    ];
    for (name, help, value) in gauges {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        registry.register(name, help, ConstGauge::new(value));
    }
}
