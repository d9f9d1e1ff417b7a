//! What policies and states come to, in words.

use std::time::Duration;

use http::Method;
use weft_core::balance::hash::HashOn;
use weft_core::model::ObservedBreaker;
use weft_core::policy::TrafficPolicy;
use weft_core::retry::{RetryPolicy, is_idempotent};
use weft_core::route::{Decision, PathRewrite, Redirect};
use weft_core::terms::Terms;

use super::Question;

/// How endpoints are picked.
pub(super) fn balancing(policy: &TrafficPolicy) -> String {
    let mut text = policy.balancing.as_str().to_owned();
    if let Some(on) = &policy.hash_on {
        let on = match on {
            HashOn::Header(name) => format!("the field {name}"),
            HashOn::Query(name) => format!("the query's {name}"),
            HashOn::Cookie { name, issue: None } => format!("the cookie {name}"),
            HashOn::Cookie {
                name,
                issue: Some(life),
            } => format!("the cookie {name}, given to who has none for {life:?}"),
            HashOn::Source => "the calling workload".to_owned(),
        };
        text.push_str(&format!(" on {on}"));
    }
    if let Some(time) = policy.slow_start {
        text.push_str(&format!(", new endpoints grow over {time:?}"));
    }
    if policy.prefer_zone {
        text.push_str(", the caller's zone first");
    }
    text
}

/// What is limited; `None` where nothing is.
pub(super) fn limits(policy: &TrafficPolicy) -> Option<String> {
    let limits = [
        ("requests", policy.max_requests),
        ("of them waiting", policy.max_pending),
        ("retries", policy.max_retries),
        ("opaque connections", policy.max_connections),
        ("requests of a connection", policy.requests_per_connection),
    ];
    let limits = limits.into_iter().filter_map(|(what, limit)| {
        let limit = limit?;
        Some(format!("{limit} {what}"))
    });
    let limits: Vec<String> = limits.collect();
    (!limits.is_empty()).then(|| format!("at most {}, of this sidecar", limits.join(", ")))
}

/// What is repeated of a request with this method.
pub(super) fn retries(retry: &RetryPolicy, policy: &TrafficPolicy, method: &Method) -> String {
    if retry.attempts == 0 {
        return "never".to_owned();
    }
    let mut on = Vec::new();
    if is_idempotent(method) {
        on.extend(retry.statuses.iter().map(ToString::to_string));
        on.push("a reset".to_owned());
        on.push("no answer in time".to_owned());
    }
    let codes = retry.grpc_codes.iter();
    on.extend(codes.map(|code| format!("gRPC code {code}")));
    on.push("what was provably not sent".to_owned());
    let mut text = format!(
        "up to {} more attempts on {}, waiting {:?} to {:?}; budget {} of the requests and {} a second",
        retry.attempts,
        on.join(", "),
        if retry.backoff_is_minimum {
            retry.backoff
        } else {
            Duration::ZERO
        },
        retry.backoff_max,
        policy.budget.ratio,
        policy.budget.minimum_per_second,
    );
    if !is_idempotent(method) {
        text.push_str(&format!("; to repeat a {method} that was sent may do harm"));
    }
    text
}

/// How long everything may take, with who says so.
pub(super) fn timeouts(terms: &Terms<'_>) -> String {
    format!(
        "request: {}; attempt: {}; connecting: {}; on the caller's side: idle connection: {}; idle \
         stream: {} (the called one's sidecar cuts a silent stream of bytes at its own \
         timeouts.tcp_idle)",
        terms.request, terms.attempt, terms.connect, terms.idle, terms.stream_idle
    )
}

/// The state of a breaker, since when, why, and when it is tried again.
pub(super) fn state(breaker: &ObservedBreaker) -> String {
    let short = |time: Duration| match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min", time.as_secs() / 60),
        _ => format!("{} h", time.as_secs() / 3600),
    };
    let state = breaker.state.as_str();
    let mut text = format!("{state} ({}; for {}", breaker.cause, short(breaker.since));
    if let Some(wait) = breaker.next_probe {
        text.push_str(&format!("; next probe in {}", short(wait)));
    }
    text.push(')');
    text
}

/// How a request is sent on, where filters change what is asked for.
pub(super) fn sent(decision: &Decision<'_>, question: &Question) -> Option<String> {
    let (mut uri, mut headers) = (question.url.clone(), question.headers.clone());
    match decision.edit_request(&mut uri, &mut headers) {
        Err(error) => Some(format!("no URL can be made of it: {error}")),
        Ok(()) if uri == question.url => None,
        Ok(()) => Some(format!("sent as {} {uri}", question.method)),
    }
}

/// The answer of a redirection.
pub(super) fn redirected(
    redirect: &Redirect,
    question: &Question,
    port: u16,
    prefix: Option<&str>,
) -> String {
    let url = &question.url;
    let host = url.host().unwrap_or_default();
    let location = redirect.location(host, port, url.path(), url.query(), prefix);
    let code = redirect.status.code();
    format!("answered with {code}, Location: {location}")
}

/// What a redirection changes.
pub(super) fn redirect(redirect: &Redirect) -> String {
    let path = redirect.path.as_ref().map(|path| match path {
        PathRewrite::Full(path) => format!("path {path}"),
        PathRewrite::Prefix(path) => format!("prefix {path}"),
    });
    let parts = [
        redirect
            .scheme
            .map(|scheme| format!("scheme {}", scheme.as_str())),
        redirect
            .hostname
            .as_ref()
            .map(|host| format!("host {host}")),
        redirect.port.map(|port| format!("port {port}")),
        path,
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match parts.is_empty() {
        true => "redirects to the same place".to_owned(),
        false => format!("redirects to {}", parts.join(", ")),
    }
}
