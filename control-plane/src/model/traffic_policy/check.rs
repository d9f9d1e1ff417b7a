//! What is wrong with a TrafficPolicy.

use super::{FallbackSpec, HealthCheckSpec, HedgeSpec, PathNormalizationSpec, TrafficPolicySpec};
use crate::model::check::Check;

/// Adds everything that is wrong with a policy of this namespace to `check`.
pub(super) fn check_policy(check: &mut Check<'_>, namespace: &str, spec: &TrafficPolicySpec) {
    spec.target_ref.check(check);
    for (field, allowed) in spec.idle_fields() {
        check.add(format!("spec.{field}"), "a value", allowed);
    }
    for (field, found, allowed) in spec.health_check.iter().flat_map(HealthCheckSpec::misfits) {
        check.add(format!("spec.healthCheck{field}"), found, allowed);
    }
    let hash_on = spec.load_balancer.as_ref();
    let hash_on = hash_on.and_then(|balancer| balancer.hash_on.as_ref());
    if let Some(header) = hash_on.filter(|hash_on| hash_on.resolve().is_none()) {
        let found = format!("{header:?}");
        check.add(
            "spec.loadBalancer.hashOn.header",
            found,
            "the name of a header field",
        );
    }
    let fallback = spec.circuit_breaker.as_ref();
    let fallback = fallback.and_then(|breaker| breaker.fallback.as_ref());
    if let Some(FallbackSpec::Backend(backend)) = fallback
        && (FallbackSpec::Backend(backend.clone())
            .resolve(namespace)
            .is_none()
            || backend.port == 0)
    {
        let found = format!("{}:{}", backend.name, backend.port);
        let path = "spec.circuitBreaker.fallback.backend";
        check.add(
            path,
            found,
            "the name of a Service and a port from 1 to 65535",
        );
    }
    for (path, found, allowed) in spec.hedge.iter().flat_map(HedgeSpec::problems) {
        check.add(path, found, allowed);
    }
    if spec.path_normalization.is_some() {
        PathNormalizationSpec::check(check, spec.target_ref.kind);
    }
    if let Some(adaptive) = &spec.adaptive_concurrency {
        adaptive.check(check, spec.target_ref.kind);
    }
    for error in spec.resolve(namespace).validate() {
        let path = format!("spec.{}", error.field);
        check.add(path, error.found, error.allowed);
    }
}
