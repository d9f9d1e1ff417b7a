//! From counters to text, at the scrape.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::stats::{Stats, TcpStats};
use super::table::Table;
use super::{Direction, HttpKey, Inner, PoolKind, PoolStats, Wire, lock, rates, requests};

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
        requests::encode(&mut out, &http, retired)?;
        tcp(&mut out, &series(&lock(&self.0.tcp)))?;
        connections(&mut out, &self.0)?;
        breakers(&mut out, &self.0)?;
        rates::encode(&mut out, &self.0)?;
        super::concurrency::encode(&mut out, &self.0)?;
        control_plane(&mut out, &self.0)?;
        super::application::encode(&mut out, &self.0)?;
        pools(&mut out, &self.0.pools)?;
        totals(&mut out, &self.0)
    }
}

/// Series in a stable order, each with one set of counters per thread.
pub(super) type Series<S> = Vec<(HttpKey, Vec<Arc<S>>)>;

/// The labels of one sample.
pub(super) type Labels<'a> = Vec<(&'static str, &'a str)>;

fn series<S: Stats>(table: &Table<S>) -> Series<S> {
    let mut series: Series<S> = table.iter().map(|(k, s)| (k.clone(), s)).collect();
    series.sort_by(|a, b| a.0.cmp(&b.0));
    series
}

pub(super) fn labels(key: &HttpKey) -> Labels<'_> {
    vec![
        ("direction", key.direction.as_str()),
        ("service", &*key.service),
        ("peer", &*key.peer),
    ]
}

pub(super) fn with<'a>(mut labels: Labels<'a>, more: &[(&'static str, &'a str)]) -> Labels<'a> {
    labels.extend_from_slice(more);
    labels
}

/// The encoder, with families that have no samples left out.
pub(super) struct Out<'a>(pub(super) DescriptorEncoder<'a>);

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

/// Sums what has the same key, in the keys' order.
pub(super) fn merge<K: Ord>(parts: impl Iterator<Item = (K, u64)>) -> Vec<(K, u64)> {
    let mut sums = std::collections::BTreeMap::new();
    for (key, n) in parts {
        *sums.entry(key).or_insert(0) += n;
    }
    sums.into_iter().collect()
}

pub(super) fn pairs() -> impl Iterator<Item = (Direction, Wire)> {
    Direction::ALL
        .into_iter()
        .flat_map(|d| Wire::ALL.into_iter().map(move |w| (d, w)))
}

pub(super) fn pair_labels(direction: Direction, wire: Wire) -> Labels<'static> {
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
    let connected = inner.control_plane_connected.load(Relaxed);
    out.gauge(
        "weft_control_plane_connected",
        "1 while the connection to the control plane stands",
        vec![(vec![], i64::from(connected))],
    )?;
    out.counter(
        "weft_control_plane_connections",
        "Attempts to connect to the control plane",
        results(&[
            ("success", inner.totals.control_plane_connected.get()),
            ("failure", inner.totals.control_plane_failures.get()),
        ]),
    )?;
    out.gauge(
        "weft_interception_lapsed",
        "1 while connections are not redirected to the sidecar, where it proves that they are",
        vec![(vec![], i64::from(inner.interception_lapsed.load(Relaxed)))],
    )?;
    out.gauge(
        "weft_discovery_connected",
        "1 while the discovery stream stands",
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
        // What carries something is asked first: it is given back before its connection is closed.
        let active = pool.active.get();
        let idle = (pool.connections.get() - active).max(0);
        [("active", active), ("idle", idle)]
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
