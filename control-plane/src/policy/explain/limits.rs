//! Which limits on the rate of requests would be asked, at the sidecars of who is called.

use http::{HeaderMap, Method, Uri};
use weft_core::name::ServiceName;
use weft_core::path::PathNormalization;
use weft_core::reason::Reason;
use weft_core::route::{Decision, RequestHead, Rule};

use super::{Compiled, Known, Question, Steps, answered};
use crate::model::limit_text;

/// A request as it arrives at the service.
pub(super) struct Arriving<'a> {
    method: &'a Method,
    uri: Uri,
    headers: HeaderMap,
}

impl<'a> Arriving<'a> {
    /// As it was made, but for what a route's filters change.
    pub(super) fn of(question: &'a Question, decision: Option<&Decision<'_>>) -> Self {
        let (mut uri, mut headers) = (question.url.clone(), question.headers.clone());
        if question.method == Method::CONNECT
            && let Some(authority) = question.url.authority()
        {
            // Its target has no path (RFC 9112 section 3.2.3).
            uri = authority.clone().into();
        }
        if let Some(decision) = decision {
            // One that would be no URI is answered by the caller's sidecar, and arrives nowhere.
            let _as_it_was = decision.edit_request(&mut uri, &mut headers);
        }
        Self {
            method: &question.method,
            uri,
            headers,
        }
    }

    /// What rules look at.
    pub(super) fn head(&self) -> RequestHead<'_> {
        RequestHead::new(self.method, &self.uri, &self.headers)
    }

    /// Limits of every backend that gets anything.
    pub(super) fn at_backends(&self, known: Known<'_>, rule: &Rule, steps: &mut Steps) {
        for backend in rule.backends.iter().filter(|backend| backend.weight > 0) {
            if let Some(service) = &backend.service {
                self.at(known, service, backend.port, steps);
            }
        }
    }

    /// Limits of a service's port.
    pub(super) fn at(&self, known: Known<'_>, service: &ServiceName, port: u16, steps: &mut Steps) {
        let head = self.head();
        let path = head.readings(path_normalization(known.compiled, service, port));
        for limit in known.world.limits_for(service, port) {
            let name = &limit.name;
            let by = format!("RateLimitPolicy {}/{}", name.namespace, name.policy);
            match limit.applies(&head, &path) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(ambiguity) => {
                    let answer = answered(Reason::PathAmbiguous, &ambiguity.to_string());
                    steps.add("rate limit", by, format!("rule {}: {answer}", name.rule));
                    continue;
                }
            }
            let result = format!(
                "rule {}: {}; one too many is answered with {} and {}",
                name.rule,
                limit_text(&limit),
                Reason::RateLimited.http_status(),
                Reason::RateLimited,
            );
            steps.add("rate limit", by, result);
        }
    }
}

/// Which readings of a path the servers of a port may have.
fn path_normalization(compiled: &Compiled, service: &ServiceName, port: u16) -> PathNormalization {
    let service = compiled.service_policy(&service.to_string());
    let policy = service.and_then(|service| service.policies.get(&port).cloned());
    policy
        .map(|policy| policy.path_normalization)
        .unwrap_or_default()
}
