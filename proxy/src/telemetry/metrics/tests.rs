use weft_core::adaptive::View;
use weft_core::rate::RuleName;

use super::*;
use std::time::Duration;

use super::table::EXPIRY;

fn key(direction: Direction, service: &str, peer: &str) -> HttpKey {
    HttpKey {
        direction,
        service: service.into(),
        peer: peer.into(),
    }
}

fn done(status: u16, reason: Option<&'static str>, millis: u64) -> RequestDone {
    RequestDone {
        wire: Wire::Mtls,
        status: Some(status),
        reason,
        grpc_status: None,
        duration: Duration::from_millis(millis),
    }
}

/// Every line of `expected` is in the exposition.
fn check(metrics: &Metrics, expected: &[&str]) {
    let text = metrics.encode();
    for line in expected {
        assert!(text.lines().any(|l| l == *line), "no {line:?} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn requests_by_class_reason_and_transport() {
    let metrics = Metrics::new(10);
    let stats = metrics.http(key(Direction::Outbound, "shop/orders", "10.0.0.1:80"));
    stats.record(&done(200, None, 1));
    stats.record(&done(204, None, 1));
    stats.record(&done(503, Some("no-endpoints"), 2));
    stats.record(&done(503, Some("no-endpoints"), 2));
    stats.record(&RequestDone {
        wire: Wire::Plaintext,
        status: None,
        reason: None,
        grpc_status: Some(4),
        duration: Duration::from_secs(100),
    });
    stats.retried();
    stats.hedged();
    stats.hedged();
    stats.hedge_won();
    let running = stats.begin();
    let base = "direction=\"outbound\",service=\"shop/orders\",peer=\"10.0.0.1:80\"";
    check(
        &metrics,
        &[
            &format!(
                "weft_requests_total{{{base},status_class=\"2xx\",reason=\"\",transport=\"mtls\"}} 2"
            ),
            &format!(
                "weft_requests_total{{{base},status_class=\"5xx\",reason=\"no-endpoints\",transport=\"mtls\"}} 2"
            ),
            &format!(
                "weft_requests_total{{{base},status_class=\"none\",reason=\"\",transport=\"plaintext\"}} 1"
            ),
            &format!("weft_request_retries_total{{{base}}} 1"),
            &format!("weft_request_hedges_total{{{base}}} 2"),
            &format!("weft_request_hedges_won_total{{{base}}} 1"),
            &format!("weft_grpc_responses_total{{{base},grpc_status=\"DEADLINE_EXCEEDED\"}} 1"),
            "http_client_active_requests{service=\"shop/orders\",peer=\"10.0.0.1:80\"} 1",
            "http_client_request_duration_seconds_count{service=\"shop/orders\",peer=\"10.0.0.1:80\"} 5",
            "http_client_request_duration_seconds_bucket{le=\"0.001\",service=\"shop/orders\",peer=\"10.0.0.1:80\"} 2",
            "http_client_request_duration_seconds_bucket{le=\"0.0015\",service=\"shop/orders\",peer=\"10.0.0.1:80\"} 2",
            "http_client_request_duration_seconds_bucket{le=\"0.002\",service=\"shop/orders\",peer=\"10.0.0.1:80\"} 4",
            "http_client_request_duration_seconds_bucket{le=\"60.0\",service=\"shop/orders\",peer=\"10.0.0.1:80\"} 4",
            "http_client_request_duration_seconds_bucket{le=\"+Inf\",service=\"shop/orders\",peer=\"10.0.0.1:80\"} 5",
            "weft_transport_requests_total{direction=\"outbound\",transport=\"mtls\"} 4",
            "weft_transport_requests_total{direction=\"inbound\",transport=\"mtls\"} 0",
        ],
    );
    drop(running);
    check(
        &metrics,
        &["http_client_active_requests{service=\"shop/orders\",peer=\"10.0.0.1:80\"} 0"],
    );
    assert_eq!(metrics.requests(Direction::Outbound, Wire::Mtls), 4);
}

#[test]
fn threads_write_their_own_counters_and_the_scrape_adds_them() {
    let metrics = Metrics::new(10);
    let key = key(Direction::Inbound, "shop/web", "spiffe://a/ns/b/sa/c");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let stats = metrics.http(key.clone());
                for _ in 0..1000 {
                    stats.record(&done(200, None, 3));
                }
            });
        }
    });
    let labels = "direction=\"inbound\",service=\"shop/web\",peer=\"spiffe://a/ns/b/sa/c\"";
    check(
        &metrics,
        &[
            &format!(
                "weft_requests_total{{{labels},status_class=\"2xx\",reason=\"\",transport=\"mtls\"}} 4000"
            ),
            "http_server_request_duration_seconds_count{service=\"shop/web\",peer=\"spiffe://a/ns/b/sa/c\"} 4000",
        ],
    );
}

#[test]
fn tcp_connections_and_bytes() {
    let metrics = Metrics::new(10);
    let stats = metrics.tcp(key(Direction::Inbound, "shop/db", "x"));
    let open = stats.open(Wire::Mtls);
    drop(stats.open(Wire::Mtls));
    open.received(10);
    open.sent(1 << 40);
    stats.refused("not-allowed");
    let base = "direction=\"inbound\",service=\"shop/db\",peer=\"x\"";
    check(
        &metrics,
        &[
            &format!("weft_tcp_connections_opened_total{{{base},transport=\"mtls\"}} 2"),
            &format!("weft_tcp_connections_closed_total{{{base},transport=\"mtls\"}} 1"),
            &format!("weft_tcp_connections_active{{{base},transport=\"mtls\"}} 1"),
            &format!("weft_tcp_received_bytes_total{{{base}}} 10"),
            &format!("weft_tcp_sent_bytes_total{{{base}}} 1099511627776"),
            &format!("weft_tcp_connections_refused_total{{{base},reason=\"not-allowed\"}} 1"),
        ],
    );
}

#[test]
fn a_full_table_counts_under_other() {
    let metrics = Metrics::new(2);
    for i in 0..10 {
        let key = key(Direction::Outbound, &format!("shop/s{i}"), "p");
        metrics.http(key).record(&done(200, None, 1));
    }
    check(
        &metrics,
        &[
            "weft_requests_total{direction=\"outbound\",service=\"shop/s1\",peer=\"p\",status_class=\"2xx\",reason=\"\",transport=\"mtls\"} 1",
            "weft_requests_total{direction=\"outbound\",service=\"other\",peer=\"other\",status_class=\"2xx\",reason=\"\",transport=\"mtls\"} 8",
        ],
    );
}

#[test]
fn unused_series_expire_and_sums_remain() {
    let mut table: Table<HttpStats> = Table::new(2);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let names = |table: &Table<HttpStats>| {
        let mut names: Vec<String> = table.iter().map(|(k, _)| k.service.to_string()).collect();
        names.sort();
        names
    };
    let held = table.handle(key(Direction::Inbound, "held", ""), at(0));
    let used = table.handle(key(Direction::Inbound, "used", ""), at(0));
    used.record(&done(200, None, 1));
    drop(used);
    // Seen at the first sweep as changed, hence kept for as long again.
    table.sweep(at(100));
    table.sweep(at(100 + EXPIRY.as_secs() - 1));
    assert_eq!(names(&table), ["held", "used"]);
    // A full table makes room by itself.
    let late = at(100 + EXPIRY.as_secs());
    drop(table.handle(key(Direction::Inbound, "new", ""), late));
    assert_eq!(names(&table), ["held", "new"]);
    assert_eq!(table.retired()[0][Wire::Mtls as usize], 1);
    drop(held);
    table.sweep(at(10_000));
    assert_eq!(names(&table), Vec::<String>::new());
}

#[test]
fn labels_are_escaped() {
    let metrics = Metrics::new(2);
    let stats = metrics.http(key(Direction::Inbound, "a\"b\\c\nd", ""));
    stats.record(&done(200, None, 1));
    let text = metrics.encode();
    assert!(text.contains(r#"service="a\"b\\c\nd""#), "{text}");
}

/// Uses everything once, so that every name is in the exposition.
fn everything() -> Metrics {
    let metrics = Metrics::new(10);
    for direction in Direction::ALL {
        let stats = metrics.http(key(direction, "s", "p"));
        stats.record(&RequestDone {
            grpc_status: Some(0),
            ..done(200, None, 1)
        });
        stats.retried();
        stats.hedged();
        stats.hedge_won();
        let tcp = metrics.tcp(key(direction, "s", "p"));
        drop(tcp.open(Wire::Plaintext));
        tcp.refused("x");
    }
    metrics.handshake_failed(Direction::Inbound, "expired");
    metrics.connection(Direction::Inbound, Wire::Mtls);
    metrics.set_interception_lapsed(true);
    metrics.set_control_plane_connected(true);
    metrics.totals().control_plane_connected.add(2);
    metrics.set_discovery_connected(true);
    metrics.set_certificate_expiry(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    metrics.set_breaker_source(Box::new(|| {
        vec![BreakerSample {
            service: "shop/orders".to_owned(),
            endpoint: "10.0.0.1:80".to_owned(),
            route: String::new(),
            state: BreakerState::Open,
            opened: 3,
        }]
    }));
    metrics.set_rate_source(Box::new(|| {
        vec![RateSample {
            name: RuleName {
                namespace: "shop".into(),
                policy: "web".into(),
                rule: 1,
            },
            allowed: 5,
            refused: 2,
            keys: 4,
            share: 250_000,
        }]
    }));
    metrics.set_concurrency_source(Box::new(|| {
        vec![ConcurrencySample {
            direction: Direction::Inbound,
            service: "shop/orders".to_owned(),
            port: "80".to_owned(),
            view: View {
                limit: 12,
                in_flight: 5,
                normal: Some(Duration::from_millis(50)),
                recent: None,
                refused: [7, 1],
            },
        }]
    }));
    metrics.pool(PoolKind::Mesh).connections.add(3);
    metrics.pool(PoolKind::Mesh).active.register_for_good(2);
    metrics.totals().spans_exported.add(5);
    let scrapes = metrics.application_scrapes();
    scrapes.record(ScrapeResult::Timeout);
    scrapes.record(ScrapeResult::Success);
    scrapes.dropped(3);
    metrics
}

#[test]
fn the_rest() {
    check(
        &everything(),
        &[
            "weft_handshake_failures_total{direction=\"inbound\",reason=\"expired\"} 1",
            "weft_connections_total{direction=\"inbound\",transport=\"mtls\"} 1",
            "weft_interception_lapsed 1",
            "weft_control_plane_connected 1",
            "weft_control_plane_connections_total{result=\"success\"} 2",
            "weft_discovery_connected 1",
            "weft_certificate_expiry_timestamp_seconds 1700000000",
            "weft_breaker_state{service=\"shop/orders\",endpoint=\"10.0.0.1:80\",route=\"\"} 2",
            "weft_breaker_opened_total{service=\"shop/orders\",endpoint=\"10.0.0.1:80\",route=\"\"} 3",
            "weft_rate_limit_requests_total{policy=\"shop/web\",rule=\"1\",result=\"allowed\"} 5",
            "weft_rate_limit_requests_total{policy=\"shop/web\",rule=\"1\",result=\"refused\"} 2",
            "weft_rate_limit_keys{policy=\"shop/web\",rule=\"1\"} 4",
            "weft_rate_limit_share{policy=\"shop/web\",rule=\"1\"} 0.25",
            "weft_concurrency_limit{direction=\"inbound\",service=\"shop/orders\",port=\"80\"} 12.0",
            "weft_concurrency_in_flight{direction=\"inbound\",service=\"shop/orders\",port=\"80\"} 5.0",
            "weft_concurrency_normal_latency_seconds{direction=\"inbound\",service=\"shop/orders\",port=\"80\"} 0.05",
            "weft_concurrency_refused_total{direction=\"inbound\",service=\"shop/orders\",port=\"80\",priority=\"default\"} 7",
            "weft_concurrency_refused_total{direction=\"inbound\",service=\"shop/orders\",port=\"80\",priority=\"critical\"} 1",
            "weft_pool_connections{pool=\"mesh\",state=\"active\"} 2",
            "weft_pool_connections{pool=\"mesh\",state=\"idle\"} 1",
            "weft_spans_total{result=\"exported\"} 5",
            "weft_application_metrics_up 1",
            "weft_application_scrapes_total{result=\"timeout\"} 1",
            "weft_application_metrics_lines_dropped_total 3",
            "# TYPE http_server_request_duration_seconds histogram",
        ],
    );
}

/// Every name, with its labels, has a row in the guide, and every row a name.
#[test]
fn the_guide_documents_every_metric() {
    let guide = include_str!("../../../../deploy/guide/metrics.md");
    let rows: Vec<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let text = everything().encode();
    let mut names = Vec::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        names.push(format!("{name}{suffix}"));
    }
    for name in &names {
        assert!(rows.contains(&name.as_str()), "{name} is not in the guide");
    }
    for row in rows {
        assert!(names.iter().any(|n| n == row), "{row} is not a metric");
    }
}
