//! Spans of requests: core decides, spans are made only for what is sampled.

use std::net::SocketAddr;

use http::HeaderMap;
use http::header::HOST;
use http::request::Parts;
use weft_core::trace::{Incoming, Sampler, TraceContext, decide, inject};

use crate::telemetry::tracing::{ClientRequest, RequestSpan, ServerRequest};
use crate::worker::Shared;

/// The trace that a request belongs to: what it brought, and what later attempts are to be part of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace(Incoming);

impl Trace {
    /// What the request brought.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self(Incoming::of(headers))
    }

    fn own(&self, ratio: f64, headers: &mut HeaderMap) -> TraceContext {
        let random = [fastrand::u64(..), fastrand::u64(..), fastrand::u64(..)];
        let own = decide(self.0, random, Sampler { ratio });
        inject(&own, self.0.formats, headers);
        own
    }
}

/// The span of a request that arrived here for the application; `None` where it is not sampled.
/// The application is told of it.
pub(crate) fn begin_server(
    shared: &Shared,
    parts: &mut Parts,
    peer: Option<&str>,
    service: &str,
) -> Option<RequestSpan> {
    let tracer = shared.tracer.as_ref()?;
    let trace = Trace::of(&parts.headers);
    let own = trace.own(shared.config.tracing.sample_ratio, &mut parts.headers);
    if !own.sampled {
        return None;
    }
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let request = ServerRequest {
        method: &parts.method,
        path: parts.uri.path(),
        authority: authority.or(host).unwrap_or_default(),
        version: parts.version,
        client: None,
        peer,
        service,
    };
    Some(tracer.server_span(&own, trace.0.parent.as_ref(), &request))
}

/// The span of one attempt of the application's request; `None` where it is not sampled. The peer
/// is told of it.
pub(crate) fn begin_client(
    shared: &Shared,
    trace: &mut Trace,
    parts: &mut Parts,
    endpoint: SocketAddr,
    service: &str,
    attempt: u32,
) -> Option<RequestSpan> {
    let tracer = shared.tracer.as_ref()?;
    let own = trace.own(shared.config.tracing.sample_ratio, &mut parts.headers);
    let parent = trace.0.parent;
    if parent.is_none() {
        // Later attempts are in the same trace, with the same decision.
        trace.0.parent = Some(own.into());
        trace.0.sampled = Some(own.sampled);
    }
    if !own.sampled {
        return None;
    }
    let request = ClientRequest {
        method: &parts.method,
        path: parts.uri.path(),
        version: parts.version,
        endpoint: Some(endpoint),
        service,
        attempt,
    };
    Some(tracer.client_span(&own, parent.as_ref(), &request))
}
