use super::*;
use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Exported;
use tokio_stream::wrappers::TcpListenerStream;

#[derive(Clone, Default)]
struct Collector {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.requests.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves on a thread of its own until the test ends.
    fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = tonic::transport::Server::builder().add_service(service);
                server
                    .serve_with_incoming(TcpListenerStream::new(listener))
                    .await
            })
        });
        format!("http://{address}")
    }

    fn spans(&self) -> Vec<Exported> {
        let requests = self.requests.lock().unwrap();
        let resources = requests.iter().flat_map(|r| r.resource_spans.clone());
        let scopes = resources.flat_map(|r| r.scope_spans);
        scopes.flat_map(|s| s.spans).collect()
    }
}

fn tracer(endpoint: String, max_queued: usize, metrics: &Metrics) -> Tracer {
    let config = TracerConfig {
        endpoint,
        service_name: "orders".to_owned(),
        namespace: "shop".to_owned(),
        instance: "orders-1".to_owned(),
        max_queued,
        interval: Duration::from_millis(20),
    };
    Tracer::start(&config, metrics).unwrap()
}

fn server_request() -> ServerRequest<'static> {
    ServerRequest {
        method: &http::Method::GET,
        path: "/items?token=secret",
        authority: "orders.shop.mesh:8080",
        version: http::Version::HTTP_11,
        client: Some("10.0.0.7:4000".parse().unwrap()),
        peer: Some("spiffe://weft.local/ns/shop/sa/web"),
        service: "shop/orders",
    }
}

fn client_request(attempt: u32) -> ClientRequest<'static> {
    ClientRequest {
        method: &http::Method::GET,
        path: "/items?token=secret",
        version: http::Version::HTTP_2,
        endpoint: Some("10.0.0.9:8080".parse().unwrap()),
        service: "shop/stock",
        attempt,
    }
}

fn sampled(span_id: u64) -> TraceContext {
    TraceContext {
        trace_id: 0xabcd_0000_0000_0000_0000_0000_0000_1234_u128.to_be_bytes(),
        span_id: span_id.to_be_bytes(),
        sampled: true,
    }
}

/// A span of no matter what.
fn any_span(tracer: &Tracer) -> RequestSpan {
    tracer.server_span(&sampled(1), None, &server_request())
}

fn attributes(span: &Exported) -> HashMap<&str, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(n) => n.to_string(),
        Value::DoubleValue(n) => n.to_string(),
        Value::BoolValue(_)
        | Value::ArrayValue(_)
        | Value::KvlistValue(_)
        | Value::BytesValue(_)
        | Value::StringValueStrindex(_) => format!("{value:?}"),
    };
    let pairs = span.attributes.iter();
    pairs
        .filter_map(|a| Some((a.key.as_str(), text(a.value.as_ref()?.value.as_ref()?))))
        .collect()
}

#[test]
fn the_context_that_was_decided_is_the_one_exported() {
    let collector = Collector::default();
    let metrics = Metrics::new(10);
    let tracer = tracer(collector.start(), 100, &metrics);
    let (caller, own) = (sampled(77), sampled(1));
    let server = tracer.server_span(&own, Some(&caller.into()), &server_request());
    let first = tracer.client_span(&sampled(2), Some(&own.into()), &client_request(0));
    first.set_status(503);
    first.set_reason(Reason::ConnectFailed);
    drop(first);
    let second = tracer.client_span(&sampled(3), Some(&own.into()), &client_request(1));
    second.set_status(200);
    second.set_hedge();
    second.set_given_up();
    drop(second);
    server.set_status(200);
    server.set_retries(1);
    server.set_queued(Duration::from_micros(1500));
    server.event("breaker-opened", vec![KeyValue::new("endpoint", "a")]);
    drop(server);
    // A trace that begins here.
    drop(tracer.server_span(&sampled(4), None, &server_request()));
    assert!(tracer.shutdown(Duration::from_secs(10)));

    let spans = collector.spans();
    assert_eq!(spans.len(), 4);
    for span in &spans {
        assert_eq!(span.trace_id, caller.trace_id);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    let find = |id: u64| {
        let mut spans = spans.iter();
        spans.find(|s| s.span_id == id.to_be_bytes()).unwrap()
    };
    let server = find(1);
    assert_eq!(server.parent_span_id, 77_u64.to_be_bytes());
    assert_eq!(find(2).parent_span_id, server.span_id);
    assert_eq!(attributes(find(3))["http.request.resend_count"], "1");
    for mark in ["weft.hedge", "weft.given_up"] {
        let marked = |id: u64| find(id).attributes.iter().any(|a| a.key == mark);
        assert!(marked(3) && !marked(2), "{mark}");
    }
    assert!(find(4).parent_span_id.is_empty());
    assert_eq!((server.kind, find(2).kind), (2, 3));
    assert_eq!(server.name, "GET");
    let of_server = attributes(server);
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/items"),
        ("server.address", "orders.shop.mesh"),
        ("server.port", "8080"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("weft.peer", "spiffe://weft.local/ns/shop/sa/web"),
        ("weft.retries", "1"),
        ("weft.queue_ms", "1.5"),
    ] {
        assert_eq!(of_server.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(server.events[0].name, "breaker-opened");
    assert_eq!(server.status.clone().unwrap_or_default().code, 0);
    let failed = find(2);
    assert_eq!(failed.status.clone().unwrap().code, 2);
    assert_eq!(attributes(failed)["weft.reason"], "connect-failed");
    assert!(!format!("{spans:?}").contains("secret"));
    let resource = collector.requests.lock().unwrap()[0].resource_spans[0]
        .resource
        .clone();
    assert!(format!("{resource:?}").contains("orders-1"));
    assert_eq!(metrics.totals().spans_exported.get(), 4);
    assert_eq!(metrics.totals().spans_dropped.get(), 0);
}

#[test]
fn unsampled_requests_make_nothing() {
    let collector = Collector::default();
    let metrics = Metrics::new(10);
    let tracer = tracer(collector.start(), 100, &metrics);
    let own = TraceContext {
        sampled: false,
        ..sampled(1)
    };
    let span = tracer.server_span(&own, Some(&sampled(77).into()), &server_request());
    assert!(!span.is_recording());
    span.set_status(500);
    span.set_reason(Reason::CircuitOpen);
    drop(span);
    assert!(tracer.shutdown(Duration::from_secs(10)));
    assert_eq!(collector.spans().len(), 0);
}

#[test]
fn a_batch_leaves_without_waiting_for_more() {
    let collector = Collector::default();
    let metrics = Metrics::new(10);
    let tracer = tracer(collector.start(), 100, &metrics);
    drop(any_span(&tracer));
    let deadline = Instant::now() + Duration::from_secs(10);
    while metrics.totals().spans_exported.get() == 0 {
        assert!(Instant::now() < deadline, "nothing exported");
        std::thread::yield_now();
    }
    assert!(tracer.shutdown(Duration::from_secs(10)));
}

#[test]
fn what_the_collector_does_not_take_is_counted() {
    // A listener that never accepts is a collector that hangs; then the queue fills.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = Metrics::new(10);
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let hanging = tracer(endpoint, 10, &metrics);
    for _ in 0..2 * BATCH {
        drop(any_span(&hanging));
    }
    assert!(metrics.totals().spans_dropped.get() > 0);
    assert!(!hanging.shutdown(Duration::from_millis(1)));

    drop(silent);
    let metrics = Metrics::new(10);
    let absent = tracer("http://127.0.0.1:1".to_owned(), 10, &metrics);
    drop(any_span(&absent));
    assert!(absent.shutdown(Duration::from_secs(10)));
    assert_eq!(metrics.totals().spans_failed.get(), 1);
    // Too late.
    drop(any_span(&absent));
    assert_eq!(metrics.totals().spans_dropped.get(), 1);
}

/// More than a batch and a queue hold.
const BATCH: usize = 512;

#[test]
fn a_bad_endpoint_is_an_error() {
    let config = TracerConfig {
        endpoint: "not a url".to_owned(),
        service_name: String::new(),
        namespace: String::new(),
        instance: String::new(),
        max_queued: 1,
        interval: Duration::from_secs(1),
    };
    let error = Tracer::start(&config, &Metrics::new(1)).unwrap_err();
    assert!(error.to_string().contains("not a url"), "{error}");
}

#[test]
fn the_service_is_named_after_what_is_known() {
    let check = |name: Option<&str>, services: &[&str], expected: Option<&str>| {
        let mut config = ProxyConfig::default();
        config.workload.name = "web-1".to_owned();
        config.workload.services = services.iter().map(|s| s.parse().unwrap()).collect();
        config.tracing.service_name = name.map(str::to_owned);
        config.tracing.otlp_endpoint = expected.map(|_| "http://a:4317".to_owned());
        let found = TracerConfig::of(&config).map(|c| c.service_name);
        assert_eq!(found.as_deref(), expected);
    };
    check(None, &[], None);
    check(None, &[], Some("web-1"));
    check(None, &["shop/web", "api"], Some("web"));
    check(Some("front"), &["web"], Some("front"));
}

#[test]
fn authorities() {
    let check = |text, host, port| assert_eq!(split_authority(text), (host, port), "{text}");
    check("web.shop.mesh:80", "web.shop.mesh", Some(80));
    check("web", "web", None);
    check("[::1]", "[::1]", None);
    check("[::1]:80", "[::1]", Some(80));
    check("web:", "web", None);
    check("", "", None);
}
