//! From counters to text, at the scrape.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::stats::Stats;
use super::stats::{CLASSES, GRPC_CODES, Histogram, HistogramSnapshot, HttpStats, TcpStats};
use super::table::Table;
use super::{Direction, HttpKey, Inner, PoolKind, PoolStats, Wire, lock, rates};

/// Reads everything anew at each scrape.
pub(super) struct Scrape(pub(super) Arc<Inner>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let http = series(&lock(&self.0.http));
        let retired = *lock(&self.0.http).retired();
        requests(&mut out, &http)?;
        durations(&mut out, &http)?;
        in_flight(&mut out, &http)?;
        by_transport(&mut out, &http, retired)?;
        tcp(&mut out, &series(&lock(&self.0.tcp)))?;
        connections(&mut out, &self.0)?;
        breakers(&mut out, &self.0)?;
        rates::encode(&mut out, &self.0)?;
        super::concurrency::encode(&mut out, &self.0)?;
        control_plane(&mut out, &self.0)?;
        pools(&mut out, &self.0.pools)?;
        totals(&mut out, &self.0)
    }
}

/// Series in a stable order, each with one set of counters per thread.
type Series<S> = Vec<(HttpKey, Vec<Arc<S>>)>;

/// The labels of one sample.
pub(super) type Labels<'a> = Vec<(&'static str, &'a str)>;

fn series<S: Stats>(table: &Table<S>) -> Series<S> {
    let mut series: Series<S> = table.iter().map(|(k, s)| (k.clone(), s)).collect();
    series.sort_by(|a, b| a.0.cmp(&b.0));
    series
}

fn labels(key: &HttpKey) -> Labels<'_> {
    vec![
        ("direction", key.direction.as_str()),
        ("service", &*key.service),
        ("peer", &*key.peer),
    ]
}

fn with<'a>(mut labels: Labels<'a>, more: &[(&'static str, &'a str)]) -> Labels<'a> {
    labels.extend_from_slice(more);
    labels
}

/// The encoder, with families that have no samples left out.
pub(super) struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    /// `_total` is appended to the name.
    pub(super) fn counter(
        &mut self,
        name: &str,
        help: &str,
        samples: Vec<(Labels<'_>, u64)>,
    ) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                family.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
            } else {
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, f64>(&value, None)?;
            }
        }
        Ok(())
    }

    pub(super) fn gauge<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: Vec<(Labels<'_>, V)>,
    ) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

fn requests(out: &mut Out<'_>, series: &Series<HttpStats>) -> fmt::Result {
    let mut requests = Vec::new();
    let (mut retries, mut hedges, mut won) = (Vec::new(), Vec::new(), Vec::new());
    let mut grpc = Vec::new();
    let made: Vec<_> = series
        .iter()
        .map(|(key, shards)| (key, merge(shards.iter().flat_map(|s| s.made()))))
        .collect();
    for (key, shards) in series {
        for wire in Wire::ALL {
            for (class, name) in CLASSES.iter().enumerate() {
                let n: u64 = shards.iter().map(|s| s.passed(wire, class)).sum();
                if n > 0 {
                    let more = [
                        ("status_class", *name),
                        ("reason", ""),
                        ("transport", wire.as_str()),
                    ];
                    requests.push((with(labels(key), &more), n));
                }
            }
        }
        let sum = |part: fn(&HttpStats) -> &AtomicU64| -> u64 {
            shards.iter().map(|s| part(s).load(Relaxed)).sum()
        };
        for (samples, n) in [
            (&mut retries, sum(|s| &s.retries)),
            (&mut hedges, sum(|s| &s.hedges)),
            (&mut won, sum(|s| &s.hedges_won)),
        ] {
            if n > 0 {
                samples.push((labels(key), n));
            }
        }
        for (code, name) in GRPC_NAMES.iter().enumerate() {
            let n: u64 = shards.iter().map(|s| s.grpc[code].load(Relaxed)).sum();
            if n > 0 {
                grpc.push((with(labels(key), &[("grpc_status", *name)]), n));
            }
        }
    }
    for (key, kinds) in &made {
        for (kind, n) in kinds {
            let more = [
                ("status_class", CLASSES[kind.class]),
                ("reason", kind.reason),
                ("transport", kind.wire.as_str()),
            ];
            requests.push((with(labels(key), &more), *n));
        }
    }
    out.counter("weft_requests", "Requests that ended", requests)?;
    out.counter("weft_request_retries", "Attempts after the first", retries)?;
    let help = "Attempts made beside one that was slow";
    out.counter("weft_request_hedges", help, hedges)?;
    let help = "Those of them that were answered first";
    out.counter("weft_request_hedges_won", help, won)?;
    out.counter("weft_grpc_responses", "gRPC calls by status", grpc)
}

/// The names of gRPC's codes, in the order of their numbers.
const GRPC_NAMES: [&str; GRPC_CODES] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Sums what has the same key, in the keys' order.
fn merge<K: Ord>(parts: impl Iterator<Item = (K, u64)>) -> Vec<(K, u64)> {
    let mut sums = std::collections::BTreeMap::new();
    for (key, n) in parts {
        *sums.entry(key).or_insert(0) += n;
    }
    sums.into_iter().collect()
}

fn durations(out: &mut Out<'_>, series: &Series<HttpStats>) -> fmt::Result {
    let families = [
        (Direction::Inbound, "http_server_request_duration"),
        (Direction::Outbound, "http_client_request_duration"),
    ];
    for (direction, name) in families {
        let histograms: Vec<_> = series
            .iter()
            .filter(|(key, _)| key.direction == direction)
            .map(|(key, s)| (key, Histogram::snapshot(s.iter().map(|s| &s.duration))))
            .filter(|(_, histogram)| histogram.count > 0)
            .collect();
        if histograms.is_empty() {
            continue;
        }
        let mut family = out.0.encode_descriptor(
            name,
            "From the head of the request to the end of the response",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (key, histogram) in histograms {
            let HistogramSnapshot {
                buckets,
                sum,
                count,
            } = histogram;
            family
                .encode_family(&labels(key)[1..].to_vec())?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    Ok(())
}

fn in_flight(out: &mut Out<'_>, series: &Series<HttpStats>) -> fmt::Result {
    let families = [
        (Direction::Inbound, "http_server_active_requests"),
        (Direction::Outbound, "http_client_active_requests"),
    ];
    for (direction, name) in families {
        let series = series.iter().filter(|(k, _)| k.direction == direction);
        let samples = series.map(|(key, shards)| {
            let n: i64 = shards.iter().map(|s| s.in_flight.load(Relaxed)).sum();
            (labels(key)[1..].to_vec(), n)
        });
        out.gauge(name, "Requests that run now", samples.collect())?;
    }
    Ok(())
}

/// Sums that do not shrink when series expire.
fn by_transport(
    out: &mut Out<'_>,
    series: &Series<HttpStats>,
    mut sums: super::table::Totals,
) -> fmt::Result {
    for (key, shards) in series {
        for wire in Wire::ALL {
            let n: u64 = shards.iter().map(|s| s.requests(wire)).sum();
            sums[key.direction as usize][wire as usize] += n;
        }
    }
    let samples = pairs().map(|(d, w)| (pair_labels(d, w), sums[d as usize][w as usize]));
    out.counter(
        "weft_transport_requests",
        "Requests that ended, by how they travelled",
        samples.collect(),
    )
}

fn pairs() -> impl Iterator<Item = (Direction, Wire)> {
    Direction::ALL
        .into_iter()
        .flat_map(|d| Wire::ALL.into_iter().map(move |w| (d, w)))
}

fn pair_labels(direction: Direction, wire: Wire) -> Labels<'static> {
    vec![
        ("direction", direction.as_str()),
        ("transport", wire.as_str()),
    ]
}

fn tcp(out: &mut Out<'_>, series: &Series<TcpStats>) -> fmt::Result {
    let (mut opened, mut closed, mut active) = (Vec::new(), Vec::new(), Vec::new());
    let (mut received, mut sent, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (key, shards) in series {
        for wire in Wire::ALL {
            // Closed is read first: a connection that ends in between still counts as active,
            // rather than making the gauge negative.
            let sum = |part: fn(&TcpStats, usize) -> u64| {
                let parts = shards.iter().map(|s| part(s, wire as usize));
                parts.sum::<u64>()
            };
            let ended = sum(|s, wire| s.closed[wire].load(Relaxed));
            let begun = sum(|s, wire| s.opened[wire].load(Relaxed));
            if begun > 0 {
                let labels = with(labels(key), &[("transport", wire.as_str())]);
                opened.push((labels.clone(), begun));
                closed.push((labels.clone(), ended));
                active.push((labels, begun.saturating_sub(ended)));
            }
        }
        let n: u64 = shards.iter().map(|s| s.received.load(Relaxed)).sum();
        received.push((labels(key), n));
        let n: u64 = shards.iter().map(|s| s.sent.load(Relaxed)).sum();
        sent.push((labels(key), n));
        for (reason, n) in merge(shards.iter().flat_map(|s| s.refusals())) {
            refused.push((with(labels(key), &[("reason", reason)]), n));
        }
    }
    let active = active
        .into_iter()
        .map(|(labels, n)| (labels, i64::try_from(n).unwrap_or(i64::MAX)));
    out.counter("weft_tcp_connections_opened", "Connections begun", opened)?;
    out.counter("weft_tcp_connections_closed", "Connections ended", closed)?;
    out.gauge(
        "weft_tcp_connections_active",
        "Connections that are open now",
        active.collect(),
    )?;
    out.counter("weft_tcp_received_bytes", "Bytes from the client", received)?;
    out.counter("weft_tcp_sent_bytes", "Bytes to the client", sent)?;
    out.counter(
        "weft_tcp_connections_refused",
        "Connections that the mesh closed, and why",
        refused,
    )
}

fn connections(out: &mut Out<'_>, inner: &Inner) -> fmt::Result {
    let samples = pairs().map(|(d, w)| {
        let n = inner.connections[d as usize][w as usize].get();
        (pair_labels(d, w), n)
    });
    out.counter(
        "weft_connections",
        "Connections between this sidecar and the other side",
        samples.collect(),
    )?;
    let failures = lock(&inner.handshake_failures).clone();
    let samples = failures.into_iter().map(|((direction, reason), n)| {
        let labels = vec![("direction", direction.as_str()), ("reason", reason)];
        (labels, n)
    });
    out.counter(
        "weft_handshake_failures",
        "TLS handshakes that failed, and why",
        samples.collect(),
    )
}

fn breakers(out: &mut Out<'_>, inner: &Inner) -> fmt::Result {
    let Some(source) = inner.breakers.get() else {
        return Ok(());
    };
    let mut samples = source();
    if samples.len() > inner.series_max {
        tracing::warn!(
            breakers = samples.len(),
            shown = inner.series_max,
            "more breakers than limits.max_metric_series; the rest is not shown"
        );
        samples.truncate(inner.series_max);
    }
    let labels = |sample: usize| {
        let sample = &samples[sample];
        vec![
            ("service", sample.service.as_str()),
            ("endpoint", sample.endpoint.as_str()),
            ("route", sample.route.as_str()),
        ]
    };
    let states = samples.iter().enumerate();
    let states = states.map(|(i, s)| (labels(i), s.state.value()));
    out.gauge(
        "weft_breaker_state",
        "0 closed, 1 half-open, 2 open",
        states.collect(),
    )?;
    let opened = samples
        .iter()
        .enumerate()
        .map(|(i, s)| (labels(i), s.opened));
    out.counter(
        "weft_breaker_opened",
        "How often the breaker has opened",
        opened.collect(),
    )
}

fn control_plane(out: &mut Out<'_>, inner: &Inner) -> fmt::Result {
    out.gauge(
        "weft_discovery_connected",
        "1 while the stream to the control plane stands",
        vec![(vec![], i64::from(inner.discovery_connected.load(Relaxed)))],
    )?;
    let totals = &inner.totals;
    out.counter(
        "weft_discovery_resources",
        "Resources from the control plane",
        results(&[
            ("accepted", totals.discovery_accepted.get()),
            ("rejected", totals.discovery_rejected.get()),
        ]),
    )?;
    let expiry = inner.certificate_expiry.load(Relaxed);
    let samples = if expiry == 0 {
        Vec::new()
    } else {
        vec![(vec![], i64::try_from(expiry).unwrap_or(i64::MAX))]
    };
    out.gauge(
        "weft_certificate_expiry_timestamp_seconds",
        "When the certificate in use ends",
        samples,
    )?;
    out.counter(
        "weft_certificate_renewals",
        "Certificates asked for",
        results(&[
            ("success", totals.certificates_renewed.get()),
            ("failure", totals.certificate_failures.get()),
        ]),
    )
}

/// Samples that differ in `result`.
fn results(values: &[(&'static str, u64)]) -> Vec<(Labels<'static>, u64)> {
    values
        .iter()
        .map(|(result, n)| (vec![("result", *result)], *n))
        .collect()
}

fn pools(out: &mut Out<'_>, pools: &[PoolStats; PoolKind::ALL.len()]) -> fmt::Result {
    let each = |read: fn(&PoolStats) -> u64| {
        PoolKind::ALL
            .map(|kind| (vec![("pool", kind.as_str())], read(&pools[kind as usize])))
            .to_vec()
    };
    out.counter(
        "weft_pool_connections_opened",
        "Connections that the pools opened",
        each(|pool| pool.opened.get()),
    )?;
    out.counter(
        "weft_pool_connection_failures",
        "Connections that the pools could not open",
        each(|pool| pool.failed.get()),
    )?;
    out.counter(
        "weft_pool_overflows",
        "Requests refused because too many were waiting, or for too long",
        each(|pool| pool.overflowed.get()),
    )?;
    out.counter(
        "weft_pool_replays",
        "Requests sent again because their connection was closed or did not take them",
        each(|pool| pool.replayed.get()),
    )?;
    let samples = PoolKind::ALL.into_iter().flat_map(|kind| {
        let pool = &pools[kind as usize];
        let (open, idle) = (pool.connections.get(), pool.idle.get());
        [("active", open - idle), ("idle", idle)]
            .map(|(state, n)| (vec![("pool", kind.as_str()), ("state", state)], n))
    });
    out.gauge(
        "weft_pool_connections",
        "Open connections of the pools",
        samples.collect(),
    )?;
    let pending =
        PoolKind::ALL.map(|k| (vec![("pool", k.as_str())], pools[k as usize].pending.get()));
    out.gauge(
        "weft_pool_pending_requests",
        "Requests that wait for a connection",
        pending.to_vec(),
    )
}

fn totals(out: &mut Out<'_>, inner: &Inner) -> fmt::Result {
    let totals = &inner.totals;
    out.counter(
        "weft_detection_timeouts",
        "Protocol detections that gave up",
        vec![(vec![], totals.detection_timeouts.get())],
    )?;
    out.counter(
        "weft_connections_refused",
        "Connections refused or closed because of a limit on connections",
        vec![(vec![], totals.connections_refused.get())],
    )?;
    out.counter(
        "weft_dns_queries",
        "DNS queries of the application",
        results(&[
            ("answered", totals.dns_answered.get()),
            ("forwarded", totals.dns_forwarded.get()),
            ("failed", totals.dns_failed.get()),
        ]),
    )?;
    out.counter(
        "weft_health_checks",
        "Health checks of endpoints",
        results(&[
            ("passed", totals.health_checks_passed.get()),
            ("failed", totals.health_checks_failed.get()),
        ]),
    )?;
    out.counter(
        "weft_health_checks_received",
        "Health checks by callers' sidecars",
        vec![(vec![], totals.health_checks_received.get())],
    )?;
    out.counter(
        "weft_spans",
        "Spans that ended",
        results(&[
            ("exported", totals.spans_exported.get()),
            ("dropped", totals.spans_dropped.get()),
            ("failed", totals.spans_failed.get()),
        ]),
    )?;
    out.counter(
        "weft_access_log_lines",
        "Lines of the access log",
        results(&[
            ("written", totals.access_log_written.get()),
            ("dropped", totals.access_log_dropped.get()),
        ]),
    )?;
    out.counter(
        "weft_log_lines_dropped",
        "Lines of the sidecar's own log that found the queue full",
        vec![(vec![], totals.log_dropped.get())],
    )
}
