//! Limits that follow how long answers take, and what their own sidecars refuse last.

use weft_core::adaptive::AdaptiveConfig;
use weft_core::name::SpiffeId;
use weft_core::policy::TrafficPolicy;

use super::limits::Arriving;
use super::{Kind, Known, Reason, Resource, ServiceName, Steps, WorkloadName};

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

/// What the request is to the sidecar of whoever gets it.
pub(super) fn explain_priority(
    known: Known<'_>,
    from: &WorkloadName,
    arriving: &Arriving<'_>,
    (target, port): (&ServiceName, u16),
    steps: &mut Steps,
) {
    let target = known.compiled.service_policy(&target.to_string());
    let policy = target.and_then(|target| target.policies.get(&port).cloned());
    let Some(policy) = policy else { return };
    let Some(shedding) = &policy.shedding else {
        return;
    };
    if shedding.critical.is_empty() {
        return;
    }
    let caller = identity(known, from);
    let by = match &caller {
        Some(caller) => caller.to_string(),
        None => "a caller that the mesh does not know".to_owned(),
    };
    let paths = policy.path_normalization;
    let priority = shedding.priority_of(caller.as_ref(), &arriving.head(), paths);
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
        Resource::EndpointSlice(_)
        | Resource::Service(_)
        | Resource::TrustBundle(_)
        | Resource::MeshConfig(_)
        | Resource::Namespace(_)
        | Resource::ServerPolicy(_) => None,
    }
}
