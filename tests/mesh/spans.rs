//! Each attribute of spans that the guide names is told: two sidecars send their spans to a collector,
//! and every one is provoked and found on the kind of span that the guide says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio_stream::wrappers::TcpListenerStream;

use crate::support::{Machine, Mesh, Workload, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/guide/telemetry.md");

/// Where an attribute is found: its column in the guide.
type Place = (&'static str, String);

/// What the guide promises: each attribute with each place that it names for it.
fn promised() -> BTreeSet<Place> {
    let text = std::fs::read_to_string(GUIDE).expect("read the guide");
    let table = text.split("| attribute | span |").nth(1);
    let rows = table.expect("a table of attributes").lines().skip(2);
    let rows = rows.map_while(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
    let places = cells.flat_map(|cells| {
        let name = cells[0].trim_end_matches('`').to_owned();
        let places = cells[1].split(", ").map(place).collect::<Vec<_>>();
        places.into_iter().map(move |place| (place, name.clone()))
    });
    places.collect()
}

fn place(word: &str) -> &'static str {
    let known = ["client", "server", "event"];
    let found = known.into_iter().find(|known| *known == word);
    found.unwrap_or_else(|| panic!("{word:?} is none of {known:?}"))
}

/// One span: its sidecar's service, its kind and its attributes as text.
#[derive(Debug, Clone)]
struct Span {
    service: String,
    kind: &'static str,
    attributes: BTreeMap<String, String>,
    events: Vec<BTreeMap<String, String>>,
}

impl Span {
    fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// A collector that keeps all that it is sent.
#[derive(Debug, Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Serves on a thread of its own until the process ends; where, as a URL.
    fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("nonblocking");
        let service = TraceServiceServer::new(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let serving = tonic::transport::Server::builder()
                    .add_service(service)
                    .serve_with_incoming(TcpListenerStream::new(listener));
                serving.await.expect("serve");
            });
        });
        format!("http://{address}")
    }

    fn spans(&self) -> MutexGuard<'_, Vec<Span>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was told, and where.
    fn told(&self) -> BTreeSet<Place> {
        let spans = self.spans();
        let of_span = |span: &Span| {
            let own = span.attributes.keys().map(|name| (span.kind, name.clone()));
            let events = span.events.iter().flat_map(BTreeMap::keys);
            let events = events.map(|name| ("event", name.clone()));
            own.chain(events).collect::<Vec<_>>()
        };
        spans.iter().flat_map(of_span).collect()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        for resource in request.into_inner().resource_spans {
            let of_resource = resource.resource.unwrap_or_default().attributes;
            let service = texts(&of_resource).remove("service.name");
            let service = service.unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|s| s.spans);
            let spans = spans.map(|span| Span {
                service: service.clone(),
                kind: kind(span.kind()),
                attributes: texts(&span.attributes),
                events: span.events.iter().map(|e| texts(&e.attributes)).collect(),
            });
            self.spans().extend(spans);
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn kind(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Unspecified | SpanKind::Internal | SpanKind::Producer | SpanKind::Consumer => {
            panic!("a span of kind {kind:?}")
        }
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| {
        let value = attribute.value.clone().and_then(|value| value.value);
        let text = match value {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::DoubleValue(number)) => number.to_string(),
            Some(Value::BoolValue(value)) => value.to_string(),
            other => panic!("{}: {other:?}", attribute.key),
        };
        (attribute.key.clone(), text)
    };
    attributes.iter().map(text).collect()
}

/// A request at a time is let through, one that is slow or fails is made again, a breaker opens, and
/// there are limits on the rate.
const POLICIES: &str = "\
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  loadBalancer: {type: roundRobin}
  hedge: {delay: 50ms}
  limits: {concurrentRequests: 1, pendingRequests: 10}
  retry: {attempts: 2, statuses: [503]}
  circuitBreaker: {consecutiveFailures: 1, openTime: 1s}
---
apiVersion: weft-mesh.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  rules: [{requests: 1, per: 24h, matches: [{path: {type: Exact, value: /limited}}]}]
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRef: {kind: Service, name: closed}
  circuitBreaker: {mode: forceOpen}
";

#[test]
fn each_attribute_of_the_guide_is_told() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let collector = Collector::default();
    let endpoint = collector.start();
    let telling = |name: &str| {
        Workload::new(name)
            .flag("--otlp-endpoint", &endpoint)
            .flag("--sample-ratio", "1")
    };
    let server = |name: &str, bad: &str| {
        let web = telling(name).flag("--service", "web").port("8080:http");
        let web = web.flag("--service", "closed");
        mesh.run(&web, script("spans.py").args(["serve", bad]))
    };
    let _servers = [server("web-1", "bad"), server("web-2", "well")];
    for service in ["web", "closed"] {
        mesh.wait_for_service(service);
    }
    let file = mesh.scratch().file("policies.yaml", POLICIES);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
    let asking = telling("me").wait_for("web").wait_for("closed");
    let mut me = mesh.run(&asking, script("spans.py").arg("ask"));
    me.wait_until("everything was asked for", LIMIT, |me| {
        me.stdout().contains("asked")
    });

    let promised = promised();
    assert!(promised.len() > 30, "{promised:?}");
    let end = Instant::now() + LIMIT;
    let missing = wait_for("an answer about every attribute", 2 * LIMIT, || {
        let told = collector.told();
        let missing: Vec<&Place> = promised.difference(&told).collect();
        (missing.is_empty() || Instant::now() > end).then(|| format!("{missing:?}"))
    });
    assert_eq!(missing, "[]", "promised and not told");
    let told = collector.told();
    let unknown: Vec<&Place> = told.difference(&promised).collect();
    assert!(unknown.is_empty(), "told and not promised: {unknown:?}");
    values(&collector);
}

/// What the attributes say.
fn values(collector: &Collector) {
    let spans = collector.spans();
    let some = |what: &str, matches: &dyn Fn(&Span) -> bool| {
        assert!(spans.iter().any(matches), "{what}: {spans:#?}");
    };
    let every = |what: &str, matches: &dyn Fn(&Span) -> bool| {
        let other = spans.iter().find(|span| !matches(span));
        assert!(other.is_none(), "{what}: {other:#?}");
    };
    every("the service that is called", &|span| {
        ["shop/web", "shop/closed"].contains(&span.get("weft.service"))
    });
    every("the caller, where it is known", &|span| {
        let me = "spiffe://weft.local/ns/shop/sa/me";
        (span.kind == "server") == (span.get("weft.peer") == me)
    });
    every("no query", &|span| !span.get("url.path").contains('?'));
    every("an error has a type", &|span| {
        let status: u32 = span.get("http.response.status_code").parse().unwrap_or(0);
        let failed = status >= 500 || !span.get("weft.reason").is_empty();
        !failed || !span.get("error.type").is_empty()
    });
    some("the attempt that failed", &|span| {
        let status = span.get("http.response.status_code") == "503";
        status && span.get("url.path") == "/bad" && span.service == "me"
    });
    some("the attempt that came after it", &|span| {
        let good = span.get("http.response.status_code") == "200";
        good && span.get("weft.retries") == "1" && span.get("url.path") == "/bad"
    });
    some("the breaker that it opened", &|span| {
        let opened = |event: &BTreeMap<String, String>| {
            event.get("weft.breaker.to").is_some_and(|to| to == "open")
        };
        span.events.iter().any(opened)
    });
    some("a request that waited for another", &|span| {
        let millis: f64 = span.get("weft.queue_ms").parse().unwrap_or(0.0);
        millis > 50.0 && span.service == "me"
    });
    some("what an upgrade came to", &|span| {
        span.kind == "client" && span.get("http.response.status_code") == "101"
    });
    some("what was refused by the server's sidecar", &|span| {
        span.kind == "server" && span.get("weft.reason") == "rate-limited"
    });
    some("what was never sent", &|span| {
        let reason = span.get("weft.reason") == "circuit-open";
        reason && span.kind == "client" && span.get("weft.service") == "shop/closed"
    });
}
