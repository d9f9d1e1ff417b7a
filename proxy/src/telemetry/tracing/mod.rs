//! Spans of sampled requests, to a collector over OTLP/gRPC.
//!
//! Whether a request is sampled, and its identifiers, are core's decision (`weft_core::trace`); the
//! spans exported have exactly those that went out in `traceparent`. An unsampled request makes no span and costs a comparison. A sampled one makes a server
//! span inbound, or one outbound with a client span per attempt; a span ends when its
//! [`RequestSpan`] is dropped, which is at the end of the stream.
//!
//! Spans have a subscriber of their own, so that they neither pass the log's filter nor appear in
//! the log. They are sent by a thread of its own (`export`).

use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::{Dispatch, Level, Span, dispatcher};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use weft_core::breaker::Transition;
use weft_core::reason::Reason;
use weft_core::trace::{Parent, TraceContext};

use super::metrics::Metrics;
use crate::config::ProxyConfig;

mod export;
mod ids;

pub use export::TracingError;

use export::Exporter;

/// The target of our spans; nothing else reaches the spans' subscriber.
const TARGET: &str = "weft::span";

/// Where spans go, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracerConfig {
    /// `http://HOST:PORT` of an OTLP/gRPC collector.
    pub endpoint: String,
    /// `service.name`.
    pub service_name: String,
    /// `service.namespace`.
    pub namespace: String,
    /// `service.instance.id`: the workload.
    pub instance: String,
    /// Ended spans that wait for export; more are dropped and counted.
    pub max_queued: usize,
    /// How often a batch is sent at the latest.
    pub interval: Duration,
}

impl TracerConfig {
    /// What a sidecar's configuration says; none where nothing is traced.
    pub fn of(config: &ProxyConfig) -> Option<Self> {
        let ProxyConfig {
            tracing, workload, ..
        } = config;
        let first_service = workload.services.first();
        let service_name = tracing.service_name.clone();
        Some(Self {
            endpoint: tracing.otlp_endpoint.clone()?,
            service_name: service_name
                .or_else(|| first_service.map(|s| s.name().to_owned()))
                .unwrap_or_else(|| workload.name.clone()),
            namespace: workload.namespace.clone(),
            instance: workload.name.clone(),
            max_queued: tracing.max_queued_spans,
            interval: tracing.export_interval,
        })
    }
}

/// A request as the server side of it is seen.
#[derive(Debug, Clone, Copy)]
pub struct ServerRequest<'a> {
    /// The method.
    pub method: &'a http::Method,
    /// The path; a query is cut off.
    pub path: &'a str,
    /// `host` or `:authority`.
    pub authority: &'a str,
    /// The version.
    pub version: http::Version,
    /// Where the connection comes from.
    pub client: Option<SocketAddr>,
    /// The caller's verified identity.
    pub peer: Option<&'a str>,
    /// The service that is called, `NAMESPACE/NAME`.
    pub service: &'a str,
}

/// One attempt, as the client side of it is seen.
#[derive(Debug, Clone, Copy)]
pub struct ClientRequest<'a> {
    /// The method.
    pub method: &'a http::Method,
    /// The path; a query is cut off.
    pub path: &'a str,
    /// The version.
    pub version: http::Version,
    /// The endpoint that is tried.
    pub endpoint: Option<SocketAddr>,
    /// The service that is called, `NAMESPACE/NAME`.
    pub service: &'a str,
    /// 0 for the first attempt.
    pub attempt: u32,
}

/// Makes spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer {
    dispatch: Dispatch,
    exporter: Exporter,
}

impl Tracer {
    /// Starts the exporting thread. A collector that cannot be reached is no error: spans are then
    /// counted as failed until it is there.
    pub fn start(config: &TracerConfig, metrics: &Metrics) -> Result<Self, TracingError> {
        let (exporter, processor) = Exporter::start(config, metrics.clone())?;
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_id_generator(ids::Ids)
            .with_span_processor(processor)
            .build();
        let tracer = provider.tracer("weft-proxy");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_level(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(
                filter_fn(|metadata| metadata.target() == TARGET)
                    .with_max_level_hint(LevelFilter::INFO),
            );
        Ok(Self {
            dispatch: Dispatch::new(tracing_subscriber::registry().with(layer)),
            exporter,
        })
    }

    /// The span of a request that arrived: `own`, a child of `parent`, or the beginning of its trace.
    /// Nothing where `own` is not sampled.
    pub fn server_span(
        &self,
        own: &TraceContext,
        parent: Option<&Parent>,
        request: &ServerRequest<'_>,
    ) -> RequestSpan {
        if !own.sampled {
            return RequestSpan::none();
        }
        self.span(own, parent, Kind::Server, request.method, |span| {
            http_attributes(span, request.method, request.path, request.version);
            let (host, port) = split_authority(request.authority);
            span.set_attribute("server.address", host.to_owned());
            if let Some(port) = port {
                span.set_attribute("server.port", i64::from(port));
            }
            if let Some(client) = request.client {
                span.set_attribute("client.address", client.ip().to_string());
                span.set_attribute("client.port", i64::from(client.port()));
            }
            if let Some(peer) = request.peer {
                span.set_attribute("weft.peer", peer.to_owned());
            }
            span.set_attribute("weft.service", request.service.to_owned());
        })
    }

    /// The span of an attempt: `own`, a child of `parent`, or the beginning of its trace. Nothing
    /// where `own` is not sampled.
    pub fn client_span(
        &self,
        own: &TraceContext,
        parent: Option<&Parent>,
        request: &ClientRequest<'_>,
    ) -> RequestSpan {
        if !own.sampled {
            return RequestSpan::none();
        }
        self.span(own, parent, Kind::Client, request.method, |span| {
            http_attributes(span, request.method, request.path, request.version);
            if let Some(endpoint) = request.endpoint {
                span.set_attribute("server.address", endpoint.ip().to_string());
                span.set_attribute("server.port", i64::from(endpoint.port()));
            }
            if request.attempt > 0 {
                let count = i64::from(request.attempt);
                span.set_attribute("http.request.resend_count", count);
            }
            span.set_attribute("weft.service", request.service.to_owned());
        })
    }

    /// Sends what is queued and ends the exporting thread; spans that end later are dropped and
    /// counted. Returns whether that was done within `timeout`. Blocks: not for async code.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        self.exporter.shutdown(timeout)
    }

    fn span(
        &self,
        own: &TraceContext,
        parent: Option<&Parent>,
        kind: Kind,
        method: &http::Method,
        attributes: impl FnOnce(&Span),
    ) -> RequestSpan {
        let name = span_name(method);
        let span = dispatcher::with_default(&self.dispatch, || {
            let kind = kind.as_str();
            tracing::span!(target: TARGET, parent: None, Level::INFO, "request", otel.name = name, otel.kind = kind)
        });
        if let Some(parent) = parent {
            let remote = SpanContext::new(
                TraceId::from_bytes(parent.trace_id),
                SpanId::from_bytes(parent.span_id),
                TraceFlags::SAMPLED,
                true,
                TraceState::NONE,
            );
            // The span has just been made by our own subscriber: this cannot be refused.
            span.set_parent(Context::new().with_remote_span_context(remote))
                .ok();
        }
        attributes(&span);
        // Asking for the context starts the span, under the identifiers that were decided.
        drop(ids::with_decided(own, || span.context()));
        RequestSpan { span, kind }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Client,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// A running request's span, or nothing where it is not sampled. It ends when its last clone is
/// dropped.
#[derive(Debug, Clone)]
pub struct RequestSpan {
    span: Span,
    kind: Kind,
}

impl RequestSpan {
    /// No span.
    pub const fn none() -> Self {
        Self {
            span: Span::none(),
            kind: Kind::Server,
        }
    }

    /// Whether there is a span at all.
    pub fn is_recording(&self) -> bool {
        !self.span.is_none()
    }

    /// The response's status.
    pub fn set_status(&self, status: u16) {
        if !self.is_recording() {
            return;
        }
        self.span
            .set_attribute("http.response.status_code", i64::from(status));
        let failed = match self.kind {
            Kind::Server => status >= 500,
            Kind::Client => status >= 400,
        };
        if failed {
            self.span.set_attribute("error.type", status.to_string());
            self.span.set_status(Status::error(""));
        }
    }

    /// The status of a gRPC call, from its trailers.
    pub fn set_grpc_status(&self, code: u8) {
        /// What a server has to answer for: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL,
        /// UNAVAILABLE, DATA_LOSS (semantic conventions for gRPC).
        const SERVER_ERRORS: [u8; 6] = [2, 4, 12, 13, 14, 15];
        if !self.is_recording() {
            return;
        }
        self.span.set_attribute("rpc.system", "grpc");
        self.span
            .set_attribute("rpc.grpc.status_code", i64::from(code));
        let failed = match self.kind {
            Kind::Server => SERVER_ERRORS.contains(&code),
            Kind::Client => code != 0,
        };
        if failed {
            self.span.set_attribute("error.type", code.to_string());
            self.span.set_status(Status::error(""));
        }
    }

    /// This attempt was made beside one that was slow.
    pub fn set_hedge(&self) {
        if self.is_recording() {
            self.span.set_attribute("weft.hedge", true);
        }
    }

    /// Another attempt was answered first, and this one was given up.
    pub fn set_given_up(&self) {
        if self.is_recording() {
            self.span.set_attribute("weft.given_up", true);
        }
    }

    /// What came of this request changed the state of a breaker.
    pub fn breaker_changed(&self, transition: &Transition) {
        let (from, to) = (transition.from.as_str(), transition.to.as_str());
        let attributes = vec![
            KeyValue::new("weft.breaker.from", from),
            KeyValue::new("weft.breaker.to", to),
        ];
        self.event("weft.breaker", attributes);
    }

    /// The mesh made the response or ended the request, and why.
    pub fn set_reason(&self, reason: Reason) {
        if self.is_recording() {
            let reason = reason.as_str();
            self.span.set_attribute("weft.reason", reason);
            self.span.set_attribute("error.type", reason);
            self.span.set_status(Status::error(reason));
        }
    }

    /// Attempts of the request that had failed before this one.
    pub fn set_retries(&self, retries: u32) {
        if self.is_recording() {
            self.span.set_attribute("weft.retries", i64::from(retries));
        }
    }

    /// How long the attempt waited for a place within limits and for a connection.
    pub fn set_queued(&self, queued: Duration) {
        if self.is_recording() {
            let millis = queued.as_secs_f64() * 1000.0;
            self.span.set_attribute("weft.queue_ms", millis);
        }
    }

    /// Something that happened on the way, as a span event.
    pub fn event(&self, name: &'static str, attributes: Vec<KeyValue>) {
        if self.is_recording() {
            self.span.add_event(name, attributes);
        }
    }
}

fn http_attributes(span: &Span, method: &http::Method, path: &str, version: http::Version) {
    span.set_attribute("http.request.method", span_name(method));
    if span_name(method) == OTHER_METHOD {
        let original = method.as_str().to_owned();
        span.set_attribute("http.request.method_original", original);
    }
    let path = path.split('?').next().unwrap_or_default();
    span.set_attribute("url.path", path.to_owned());
    // What applications see: between sidecars there is TLS, and that is not theirs.
    span.set_attribute("url.scheme", "http");
    span.set_attribute("network.protocol.name", "http");
    let version = match version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        http::Version::HTTP_3 => "3",
        _ => "1.1",
    };
    span.set_attribute("network.protocol.version", version);
}

/// The name for methods that semantic conventions do not know, so that callers cannot make up
/// names of spans.
const OTHER_METHOD: &str = "HTTP";

fn span_name(method: &http::Method) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE",
    ];
    let known = KNOWN.into_iter().find(|known| method.as_str() == *known);
    known.unwrap_or(OTHER_METHOD)
}

/// `HOST[:PORT]`, where HOST may be an IPv6 address in brackets (RFC 3986 section 3.2).
fn split_authority(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.ends_with(']') => (host, port.parse().ok()),
        Some(_) | None => (authority, None),
    }
}

#[cfg(test)]
mod tests;
