//! What rules are met by, from the Gateway API's types to core's.

use gateway_api::experimental::grpcroutes::{
    GrpcRouteRulesMatches, GrpcRouteRulesMatchesHeadersType, GrpcRouteRulesMatchesMethodType,
};
use gateway_api::experimental::httproutes::{
    HttpRouteRulesMatches, HttpRouteRulesMatchesHeadersType, HttpRouteRulesMatchesMethod,
    HttpRouteRulesMatchesPath, HttpRouteRulesMatchesPathType, HttpRouteRulesMatchesQueryParamsType,
};
use http::{HeaderName, Method};
use weft_core::route::{HttpMatch, PathMatch, RouteError, ValueMatch};

use super::{filter, limit};
use crate::model::check::Check;

/// Matches of a rule (Gateway API's own limit).
const MATCHES_MAX: usize = 64;
/// Fields, or parameters of the query, of a match.
const FIELDS_MAX: usize = 16;

/// The matches of an HTTPRoute's rule.
///
/// `CONNECT` is no method to match: it names no path and no host that routes could look at, and
/// callers' sidecars ask no route about it.
pub(super) fn read_http_matches(
    check: &mut Check<'_>,
    at: &str,
    matches: &[HttpRouteRulesMatches],
) -> Vec<HttpMatch> {
    let read = read_matches(check, at, matches);
    for (index, matched) in matches.iter().take(MATCHES_MAX).enumerate() {
        if matched.method == Some(HttpRouteRulesMatchesMethod::Connect) {
            let allowed = "GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE or PATCH: routes are not \
                           asked about CONNECT, which goes to the service itself; a WebSocket over \
                           HTTP/2 is matched as GET";
            check.add(format!("{at}.matches[{index}].method"), "CONNECT", allowed);
        }
    }
    read
}

/// The matches of an HTTPRoute's rule, or of another that has such.
pub(in crate::model) fn read_matches(
    check: &mut Check<'_>,
    at: &str,
    matches: &[HttpRouteRulesMatches],
) -> Vec<HttpMatch> {
    limit(check, &format!("{at}.matches"), matches.len(), MATCHES_MAX);
    let read = matches.iter().take(MATCHES_MAX).enumerate();
    let read = read.filter_map(|(index, matched)| {
        read_match(check, &format!("{at}.matches[{index}]"), matched)
    });
    read.collect()
}

/// A match of an HTTPRoute's rule.
fn read_match(
    check: &mut Check<'_>,
    at: &str,
    matched: &HttpRouteRulesMatches,
) -> Option<HttpMatch> {
    let path = read_path(check, &format!("{at}.path"), matched.path.as_ref());
    let method = matched.method.as_ref().and_then(|method| {
        // The enum's names are the methods'.
        let method = serde_json::to_value(method).ok()?;
        Method::from_bytes(method.as_str()?.as_bytes()).ok()
    });
    let headers = matched.headers.as_deref().unwrap_or_default().iter();
    let headers = headers.map(|header| {
        let pattern = header.r#type == Some(HttpRouteRulesMatchesHeadersType::RegularExpression);
        (&*header.name, pattern, &*header.value)
    });
    let headers = read_headers(check, &format!("{at}.headers"), headers);
    let mut queries: Vec<(Box<str>, ValueMatch)> = Vec::new();
    let params = matched.query_params.as_deref().unwrap_or_default();
    limit(
        check,
        &format!("{at}.queryParams"),
        params.len(),
        FIELDS_MAX,
    );
    for (index, query) in params.iter().take(FIELDS_MAX).enumerate() {
        let at = format!("{at}.queryParams[{index}]");
        let pattern = query.r#type == Some(HttpRouteRulesMatchesQueryParamsType::RegularExpression);
        if queries.iter().any(|(name, _)| **name == *query.name) {
            let found = format!("{:?} again", query.name);
            check.add(format!("{at}.name"), found, "each parameter once");
        }
        let value = read_value(check, &at, pattern, &query.value);
        queries.extend(value.map(|value| (query.name.as_str().into(), value)));
    }
    Some(HttpMatch {
        path: path?,
        method,
        headers,
        queries,
    })
}

fn read_path(
    check: &mut Check<'_>,
    at: &str,
    path: Option<&HttpRouteRulesMatchesPath>,
) -> Option<PathMatch> {
    let value = path.and_then(|path| path.value.as_deref());
    let value = value.unwrap_or("/");
    let read = match path.and_then(|path| path.r#type.as_ref()) {
        Some(HttpRouteRulesMatchesPathType::Exact) => PathMatch::exact(value),
        Some(HttpRouteRulesMatchesPathType::RegularExpression) => PathMatch::pattern(value),
        Some(HttpRouteRulesMatchesPathType::PathPrefix) | None => PathMatch::prefix(value),
    };
    note(check, &format!("{at}.value"), read)
}

/// A value, or a problem with it.
pub(in crate::model) fn note<T>(
    check: &mut Check<'_>,
    at: &str,
    read: Result<T, RouteError>,
) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            let text = text.strip_prefix("found ").unwrap_or(&text);
            let (found, allowed) = text.split_once("; allowed: ").unwrap_or((text, ""));
            check.add(at, found, allowed);
            None
        }
    }
}

fn read_value(check: &mut Check<'_>, at: &str, pattern: bool, value: &str) -> Option<ValueMatch> {
    let read = match pattern {
        true => ValueMatch::pattern(value),
        false => ValueMatch::exact(value),
    };
    note(check, &format!("{at}.value"), read)
}

/// Fields that a request has to have: name, whether the value is a pattern, value.
pub(in crate::model) fn read_headers<'a>(
    check: &mut Check<'_>,
    at: &str,
    headers: impl ExactSizeIterator<Item = (&'a str, bool, &'a str)>,
) -> Vec<(HeaderName, ValueMatch)> {
    limit(check, at, headers.len(), FIELDS_MAX);
    let mut read: Vec<(HeaderName, ValueMatch)> = Vec::new();
    for (index, (name, pattern, value)) in headers.take(FIELDS_MAX).enumerate() {
        let at = format!("{at}[{index}]");
        let Some(name) = filter::read_name(check, &format!("{at}.name"), name) else {
            continue;
        };
        if read.iter().any(|(other, _)| *other == name) {
            let found = format!("{name} again");
            check.add(format!("{at}.name"), found, "each field once");
        }
        let value = read_value(check, &at, pattern, value);
        read.extend(value.map(|value| (name, value)));
    }
    read
}

/// Whether a service or method may be called so (Gateway API, `GRPCMethodMatch`).
fn is_grpc_name(text: &str, dots: bool) -> bool {
    let is_word = |word: &str| {
        let bytes = word.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        bytes.first().is_some_and(|first| !first.is_ascii_digit()) && bytes.iter().all(plain)
    };
    match dots {
        true => text.split('.').all(is_word),
        false => is_word(text),
    }
}

/// The matches of a GRPCRoute's rule.
pub(super) fn read_grpc_matches(
    check: &mut Check<'_>,
    at: &str,
    matches: &[GrpcRouteRulesMatches],
) -> Vec<HttpMatch> {
    limit(check, &format!("{at}.matches"), matches.len(), MATCHES_MAX);
    let mut read = Vec::new();
    for (index, matched) in matches.iter().take(MATCHES_MAX).enumerate() {
        let at = format!("{at}.matches[{index}]");
        let method = matched.method.as_ref();
        let pattern = method.is_some_and(|method| {
            method.r#type == Some(GrpcRouteRulesMatchesMethodType::RegularExpression)
        });
        let service = method.and_then(|method| method.service.as_deref());
        let name = method.and_then(|method| method.method.as_deref());
        if method.is_some() && service.is_none() && name.is_none() {
            let path = format!("{at}.method");
            check.add(path, "neither", "service, method or both");
        }
        let fields = [("service", service, true), ("method", name, false)];
        for (field, text, dots) in fields {
            let Some(text) = text.filter(|text| !pattern && !is_grpc_name(text, dots)) else {
                continue;
            };
            let allowed = match dots {
                true => "a name as in shop.Orders",
                false => "a name as in Get",
            };
            check.add(format!("{at}.method.{field}"), format!("{text:?}"), allowed);
        }
        let path = match pattern {
            true => PathMatch::grpc_pattern(service, name),
            false => PathMatch::grpc(service, name),
        };
        let path = note(check, &format!("{at}.method"), path);
        let headers = matched.headers.as_deref().unwrap_or_default().iter();
        let headers = headers.map(|header| {
            let pattern =
                header.r#type == Some(GrpcRouteRulesMatchesHeadersType::RegularExpression);
            (&*header.name, pattern, &*header.value)
        });
        let headers = read_headers(check, &format!("{at}.headers"), headers);
        read.extend(path.map(|path| HttpMatch {
            headers,
            ..HttpMatch::of(path)
        }));
    }
    read
}
