//! Requests at the scrape: how many have ended, how long they took, how many run.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::encode::{Out, Series, labels, merge, pair_labels, pairs, with};
use super::stats::{CLASSES, GRPC_CODES, Histogram, HistogramSnapshot, HttpStats};
use super::table::Totals;
use super::{Direction, Wire};

/// All that is said of requests; `retired` is what those series had counted that are gone.
pub(super) fn encode(
    out: &mut Out<'_>,
    series: &Series<HttpStats>,
    retired: Totals,
) -> fmt::Result {
    requests(out, series)?;
    durations(out, series)?;
    in_flight(out, series)?;
    by_transport(out, series, retired)
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
fn by_transport(out: &mut Out<'_>, series: &Series<HttpStats>, mut sums: Totals) -> fmt::Result {
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
