//! What routes take and do, in words.

use std::fmt::Write as _;

use weft_core::route::{Filter, HeaderModifier, HttpMatch, PathMatch, PathRewrite, ValueMatch};

use super::words;

/// What a match takes.
pub(super) fn match_text(matched: &HttpMatch) -> String {
    let mut text = match &matched.path {
        PathMatch::Exact(path) => format!("the path {path}"),
        PathMatch::Prefix(prefix) => format!("paths below {prefix}/"),
        PathMatch::Method(method) => format!("the gRPC method {method} of any service"),
        PathMatch::Pattern(pattern) => format!("paths like {}", pattern.as_str()),
    };
    if let Some(method) = &matched.method {
        let _infallible = write!(text, ", {method}");
    }
    for (name, value) in &matched.headers {
        let _infallible = write!(text, ", {name}: {}", value_text(value));
    }
    for (name, value) in &matched.queries {
        let _infallible = write!(text, ", ?{name}={}", value_text(value));
    }
    text
}

fn value_text(value: &ValueMatch) -> &str {
    match value {
        ValueMatch::Exact(text) => text,
        ValueMatch::Pattern(pattern) => pattern.as_str(),
    }
}

/// What a filter does.
pub(super) fn filter_text(filter: &Filter) -> String {
    let path = |path: &Option<PathRewrite>| match path {
        None => "the same path".to_owned(),
        Some(PathRewrite::Full(path)) => format!("path {path}"),
        Some(PathRewrite::Prefix(path)) => format!("prefix {path}"),
    };
    match filter {
        Filter::RequestHeaders(modifier) => format!("request fields: {}", names(modifier)),
        Filter::ResponseHeaders(modifier) => format!("response fields: {}", names(modifier)),
        Filter::Redirect(redirect) => words::redirect(redirect),
        Filter::Rewrite(rewrite) => {
            let host = rewrite.hostname.as_deref().unwrap_or("the same host");
            format!("rewrites to {host}, {}", path(&rewrite.path))
        }
        Filter::Mirror(mirror) => format!(
            "copies {} of {} to {}:{}",
            mirror.numerator, mirror.denominator, mirror.backend, mirror.port
        ),
        Filter::Cors(cors) => format!("CORS for {}", cors.allow_origins.join(", ")),
        Filter::Fault(fault) => {
            let delay = fault.delay.map(|d| format!("delay {:?}", d.time));
            let abort = fault.abort.map(|a| format!("abort with {}", a.status));
            let parts: Vec<String> = delay.into_iter().chain(abort).collect();
            format!("a fault on purpose: {}", parts.join(", "))
        }
    }
}

fn names(modifier: &HeaderModifier) -> String {
    let set = modifier.set.iter().map(|(name, _)| format!("sets {name}"));
    let add = modifier.add.iter().map(|(name, _)| format!("adds {name}"));
    let remove = modifier.remove.iter().map(|name| format!("removes {name}"));
    set.chain(add).chain(remove).collect::<Vec<_>>().join(", ")
}
