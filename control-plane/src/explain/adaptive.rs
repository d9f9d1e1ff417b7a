//! Limits that follow how long answers take, and what their own sidecars refuse last.

use weft_core::adaptive::AdaptiveConfig;
use weft_core::name::SpiffeId;

use super::{
    Decision, Kind, Known, Outcome, Question, Reason, RequestHead, Resource, Service, ServiceName,
    Steps, TrafficPolicy, WorkloadName, service,
};

/// The limits of a port, where it has any.
pub(super) fn explain_limits(policy: &TrafficPolicy, by: &str, steps: &mut Steps) {
    if let Some(limit) = &policy.adaptive {
        let result = format!(
            "from each calling sidecar {}; one more is refused with {}",
            limit_text(limit),
            Reason::ConcurrencyLimit
        );
        steps.add("concurrency", by, result);
    }
    if let Some(shedding) = &policy.shedding {
        let mut result = format!(
            "each workload's own sidecar lets through {}; one more is refused with {}",
            limit_text(&shedding.limit),
            Reason::LoadShed
        );
        if !shedding.critical.is_empty() {
            let share = shedding.limit.critical_share * 100.0;
            result.push_str(&format!("; {share:.0} % are kept for critical requests"));
        }
        steps.add("shedding", by, result);
    }
}

/// What the request is to the sidecar of whoever gets it: as the route's filters leave it.
pub(super) fn explain_priority(
    known: Known<'_>,
    question: &Question,
    (own, port): (&Service, u16),
    decision: Option<&Decision<'_>>,
    steps: &mut Steps,
) {
    let (mut url, mut headers) = (question.url.clone(), question.headers.clone());
    let target = match decision.map(|decision| (decision, &decision.outcome)) {
        None => Some((own.clone(), port)),
        Some((decision, Outcome::Forward(backend))) => {
            let _edited = decision.edit_request(&mut url, &mut headers);
            let name = backend.service.as_ref().map(ServiceName::to_string);
            let target = name.and_then(|name| service(known.compiled, &name));
            target.map(|target| (target, backend.port))
        }
        Some(_) => None,
    };
    let shedding = target.and_then(|(target, port)| target.policies.get(&port)?.shedding.clone());
    let Some(shedding) = shedding.filter(|shedding| !shedding.critical.is_empty()) else {
        return;
    };
    let head = RequestHead {
        method: &question.method,
        path: url.path(),
        query: url.query(),
        headers: &headers,
    };
    let caller = identity(known, &question.from);
    let by = match &caller {
        Some(caller) => caller.to_string(),
        None => "a caller that the mesh does not know".to_owned(),
    };
    let priority = shedding.priority(caller.as_ref(), &head);
    steps.add("priority", by, priority.as_str());
}

fn limit_text(limit: &AdaptiveConfig) -> String {
    format!(
        "{} to {} at a time, as many as are answered within {} times the normal time",
        limit.min, limit.max, limit.tolerance
    )
}

fn identity(known: Known<'_>, workload: &WorkloadName) -> Option<SpiffeId> {
    let name = workload.to_string();
    match &known.compiled.find(Kind::Workload, &name)?.resource {
        Resource::Workload(workload) => Some(workload.identity.clone()),
        Resource::Service(_)
        | Resource::TrustBundle(_)
        | Resource::MeshConfig(_)
        | Resource::Namespace(_)
        | Resource::ServerPolicy(_) => None,
    }
}
