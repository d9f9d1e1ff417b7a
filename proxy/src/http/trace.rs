//! Spans of requests: core decides, spans are made only for what is sampled.

use std::net::SocketAddr;

use http::HeaderMap;
use http::header::HOST;
use http::request::Parts;
use weft_core::trace::{Format, Sampler, TraceContext, decide, incoming, inject};

use crate::telemetry::tracing::{ClientRequest, RequestSpan, ServerRequest};
use crate::worker::Shared;

/// The trace that a request belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace {
    parent: Option<TraceContext>,
    came_as: Option<Format>,
}

impl Trace {
    /// What the request brought.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let (parent, came_as) = incoming(headers).unzip();
        Self { parent, came_as }
    }

    fn own(&mut self, ratio: f64, headers: &mut HeaderMap) -> TraceContext {
        let random = [fastrand::u64(..), fastrand::u64(..), fastrand::u64(..)];
        let own = decide(self.parent, random, Sampler { ratio });
        inject(&own, self.came_as, headers);
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
    let mut trace = Trace::of(&parts.headers);
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
    Some(tracer.server_span(&own, trace.parent.as_ref(), &request))
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
    if trace.parent.is_none() {
        // Later attempts are in the same trace, with the same decision.
        trace.parent = Some(own);
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
    let parent = trace.parent.filter(|parent| *parent != own);
    Some(tracer.client_span(&own, parent.as_ref(), &request))
}
