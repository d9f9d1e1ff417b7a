//! Spans of requests: core decides, spans are made only for what is sampled.

use std::net::SocketAddr;

use http::HeaderMap;
use http::header::HOST;
use http::request::Parts;
use weft_core::name::ServiceName;
use weft_core::trace::{Incoming, Parent, Sampler, TraceContext, decide, inject};

use super::tracing::{ClientRequest, RequestSpan, ServerRequest, Tracer};

/// Makes spans, where the sidecar traces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spans<'a> {
    /// Where spans go; `None`: nothing is traced.
    pub(crate) tracer: Option<&'a Tracer>,
    /// The share of new traces that is sampled.
    pub(crate) ratio: f64,
}

/// The trace that a request belongs to: what it brought, and what later attempts are to be part of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace(Incoming);

/// One attempt of a request, as its span describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAttempt<'a> {
    /// Who is asked; `None` where the request is refused before an endpoint was chosen.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The service that is called.
    pub(crate) service: &'a ServiceName,
    /// How many attempts were made before.
    pub(crate) number: u32,
    /// How many of those had failed; the others are under way.
    pub(crate) retries: u32,
}

impl Trace {
    /// What the request brought.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self(Incoming::of(headers))
    }

    /// A span of ours in it, and whether it is sampled.
    fn own(&self, ratio: f64) -> TraceContext {
        let random = [fastrand::u64(..), fastrand::u64(..), fastrand::u64(..)];
        decide(self.0, random, Sampler { ratio })
    }

    /// Tells the next hop of our span.
    fn tell(&self, own: &TraceContext, headers: &mut HeaderMap) {
        inject(own, self.0.formats, headers);
    }
}

impl Spans<'_> {
    /// The span of a request that arrived here for the application; `None` where it is not sampled.
    /// The application is told of it. `service_at` says which service is called under an authority.
    pub(crate) fn server(
        self,
        parts: &mut Parts,
        peer: Option<&str>,
        service_at: impl FnOnce(&str) -> String,
    ) -> Option<RequestSpan> {
        let tracer = self.tracer?;
        let trace = Trace::of(&parts.headers);
        let own = trace.own(self.ratio);
        trace.tell(&own, &mut parts.headers);
        if !own.sampled {
            return None;
        }
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = parts.uri.authority().map(http::uri::Authority::as_str);
        let authority = authority.or(host).unwrap_or_default();
        let request = ServerRequest {
            method: &parts.method,
            path: parts.uri.path(),
            authority,
            version: parts.version,
            client: None,
            peer,
            service: &service_at(authority),
        };
        Some(tracer.server_span(&own, trace.0.parent.as_ref(), &request))
    }

    /// The span of one attempt of the application's request; `None` where it is not sampled. The
    /// peer is told of it.
    pub(crate) fn client(
        self,
        trace: &mut Trace,
        parts: &mut Parts,
        attempt: ClientAttempt<'_>,
    ) -> Option<RequestSpan> {
        let tracer = self.tracer?;
        let own = trace.own(self.ratio);
        trace.tell(&own, &mut parts.headers);
        let parent = trace.0.parent;
        if parent.is_none() {
            // Later attempts are in the same trace, with the same decision.
            trace.0.parent = Some(own.into());
            trace.0.sampled = Some(own.sampled);
        }
        if !own.sampled {
            return None;
        }
        Some(client_span(tracer, &own, parent.as_ref(), parts, attempt))
    }

    /// The span of a request that is answered before it was sent, with the trace that it is in;
    /// `None` where it is not sampled. Nobody is told of it.
    pub(crate) fn unsent(
        self,
        parts: &Parts,
        attempt: ClientAttempt<'_>,
    ) -> Option<(RequestSpan, [u8; 16])> {
        let tracer = self.tracer?;
        let trace = Trace::of(&parts.headers);
        let own = trace.own(self.ratio);
        if !own.sampled {
            return None;
        }
        let parent = trace.0.parent.as_ref();
        let span = client_span(tracer, &own, parent, parts, attempt);
        Some((span, own.trace_id))
    }
}

fn client_span(
    tracer: &Tracer,
    own: &TraceContext,
    parent: Option<&Parent>,
    parts: &Parts,
    attempt: ClientAttempt<'_>,
) -> RequestSpan {
    let request = ClientRequest {
        method: &parts.method,
        path: parts.uri.path(),
        version: parts.version,
        endpoint: attempt.endpoint,
        service: &attempt.service.to_string(),
        attempt: attempt.number,
    };
    let span = tracer.client_span(own, parent, &request);
    if attempt.retries > 0 {
        span.set_retries(attempt.retries);
    }
    span
}
