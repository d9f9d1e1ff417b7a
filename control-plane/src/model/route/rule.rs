//! Rules of routes.

use std::collections::BTreeSet;
use std::time::Duration;

use gateway_api::experimental::httproutes::{
    HttpRouteRules, HttpRouteRulesBackendRefs, HttpRouteRulesFilters, HttpRouteRulesRetry,
    HttpRouteRulesTimeouts,
};
use weft_core::name::check_subdomain;
use weft_core::retry::RetryPolicy;
use weft_core::route::{Backend, Rule};

use super::matching::read_http_matches;
use super::reference::{Target, read_target};
use super::{RuleDraft, again, filter, limit, refuse};
use crate::model::check::Check;
use crate::model::kind::SUBDOMAIN;

/// Backends of a rule (Gateway API's own limit).
const BACKENDS_MAX: usize = 16;
/// The largest weight.
const WEIGHT_MAX: i32 = 1_000_000;

/// Names of rules: DNS subdomains, each once (Gateway API, `SectionName`).
pub(super) fn check_names(check: &mut Check<'_>, rules: &[RuleDraft]) {
    let mut seen = BTreeSet::new();
    for (index, draft) in rules.iter().enumerate() {
        let Some(name) = &draft.rule.name else {
            continue;
        };
        let path = format!("spec.rules[{index}].name");
        if check_subdomain(name).is_err() {
            check.add(path, format!("{name:?}"), SUBDOMAIN);
        } else if !seen.insert(name) {
            check.add(path, format!("{name} again"), "each name once");
        }
    }
}

/// Reads a rule, and adds what is wrong with it to `check`.
pub(super) fn read_rule(
    check: &mut Check<'_>,
    namespace: &str,
    at: &str,
    rule: &HttpRouteRules,
) -> RuleDraft {
    let persistence = rule.session_persistence.is_some();
    let allowed = "nothing: not there yet";
    refuse(
        check,
        &format!("{at}.sessionPersistence"),
        persistence,
        allowed,
    );
    let read = read_http_matches(check, at, rule.matches.as_deref().unwrap_or_default());
    let place = filter::Place {
        namespace,
        matches: &read,
        backend: false,
    };
    let filters = rule.filters.as_deref().unwrap_or_default();
    let (filters, faults) = filter::read(check, &format!("{at}.filters"), place, filters);
    let refs = rule.backend_refs.as_deref().unwrap_or_default();
    let path = format!("{at}.backendRefs");
    limit(check, &path, refs.len(), BACKENDS_MAX);
    let answers = filters.iter().any(filter::answers_itself);
    if answers && !refs.is_empty() {
        check.add(
            &path,
            format!("{} beside a RequestRedirect", refs.len()),
            "none",
        );
    }
    let backends = refs.iter().take(BACKENDS_MAX).enumerate();
    let backends = backends.filter_map(|(index, backend)| {
        read_backend(check, place, &format!("{path}[{index}]"), backend)
    });
    let backends = backends.collect();
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let (request, backend) = read_timeouts(check, &format!("{at}.timeouts"), &timeouts);
    let retry = rule.retry.as_ref();
    let rule = Rule {
        name: rule.name.as_deref().map(Into::into),
        matches: read,
        filters,
        backends,
        request_timeout: request,
        backend_timeout: backend,
        retry: retry.map(|retry| read_retry(check, &format!("{at}.retry"), retry)),
    };
    // Filters and backends were checked where they stand in the document.
    let mut errors = rule.validate_retry();
    errors.extend(rule.validate_timeouts());
    for error in errors {
        check.add(format!("{at}.{}", error.field), error.found, error.allowed);
    }
    RuleDraft { rule, faults }
}

fn read_backend(
    check: &mut Check<'_>,
    place: filter::Place<'_>,
    at: &str,
    backend: &HttpRouteRulesBackendRefs,
) -> Option<Backend> {
    let weight = backend.weight.unwrap_or(1);
    if !(0..=WEIGHT_MAX).contains(&weight) {
        check.add(format!("{at}.weight"), weight, "0 to 1000000");
    }
    let filters: Vec<HttpRouteRulesFilters> = again(&backend.filters);
    let place = filter::Place {
        backend: true,
        ..place
    };
    let (filters, _none) = filter::read(check, &format!("{at}.filters"), place, &filters);
    let (service, port) = read_target(
        check,
        at,
        place.namespace,
        &Target {
            group: backend.group.as_deref(),
            kind: backend.kind.as_deref(),
            namespace: backend.namespace.as_deref(),
            name: &backend.name,
            port: backend.port,
        },
    )?;
    Some(Backend {
        service: Some(service),
        port,
        weight: u32::try_from(weight).unwrap_or_default(),
        filters: filters.into(),
    })
}

/// A time of the Gateway API (GEP-2257).
fn read_time(check: &mut Check<'_>, at: &str, text: &str) -> Option<Duration> {
    match text.parse::<gateway_api::Duration>() {
        Ok(time) => Some(Duration::new(time.as_secs(), time.subsec_nanos())),
        Err(_error) => {
            let allowed = "a time as in 250ms, 10s or 1m30s";
            check.add(at, format!("{text:?}"), allowed);
            None
        }
    }
}

fn read_timeouts(
    check: &mut Check<'_>,
    at: &str,
    timeouts: &HttpRouteRulesTimeouts,
) -> (Option<Duration>, Option<Duration>) {
    let request = timeouts.request.as_deref();
    let request = request.and_then(|text| read_time(check, &format!("{at}.request"), text));
    let path = format!("{at}.backendRequest");
    let backend = timeouts.backend_request.as_deref();
    let backend = backend.and_then(|text| read_time(check, &path, text));
    (request, backend)
}

fn read_retry(check: &mut Check<'_>, at: &str, retry: &HttpRouteRulesRetry) -> RetryPolicy {
    let defaults = RetryPolicy::default();
    let backoff = retry.backoff.as_deref();
    let backoff = backoff.and_then(|text| read_time(check, &format!("{at}.backoff"), text));
    let backoff_is_minimum = backoff.is_some();
    let backoff = backoff.unwrap_or(defaults.backoff);
    let codes = retry.codes.as_ref().map(|codes| {
        let codes = codes.iter().map(|code| u16::try_from(*code));
        codes.map(Result::unwrap_or_default).collect::<Vec<u16>>()
    });
    let attempts = retry.attempts.map(u32::try_from);
    RetryPolicy {
        attempts: attempts.map_or(defaults.attempts, |read| read.unwrap_or(u32::MAX)),
        statuses: codes.map_or(defaults.statuses, Into::into),
        grpc_codes: defaults.grpc_codes,
        backoff,
        // It doubles: ten times the first is the third.
        backoff_max: defaults.backoff_max.max(backoff.saturating_mul(10)),
        backoff_is_minimum,
        body_max: defaults.body_max,
    }
}
