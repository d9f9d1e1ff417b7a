//! What a request is compared with.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use regex::{Regex, RegexBuilder};

use crate::path::{NormalPath, PathAmbiguity, PathNormalization, Readings, decoded_bytes};

/// Longest path and longest value that can be asked for, in characters (Gateway API).
const PATH_MAX: usize = 1024;
const VALUE_MAX: usize = 4096;
/// What a compiled pattern may take, in bytes.
const PATTERN_MAX_BYTES: usize = 256 * 1024;
/// A pattern takes a whole text.
const WHOLE_BEGINS: &str = "^(?:";
const WHOLE_ENDS: &str = ")$";

/// Why a match is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The path is none that a request could have.
    #[error("found the path {found:?}; allowed: {}", Self::PATHS)]
    Path {
        /// What it was.
        found: String,
    },
    /// The pattern is none.
    #[error("found the pattern {found:?}: {reason}; allowed: RE2 syntax, matched as a whole")]
    Pattern {
        /// What it was.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The value is too long.
    #[error("found a value of {found} characters; allowed: {VALUE_MAX} at most")]
    Value {
        /// Its length.
        found: usize,
    },
}

impl RouteError {
    /// Which paths are allowed.
    pub const PATHS: &str = "one that begins with /, of at most 1024 characters, without //, /./, \
                             /../, %2F, ? and #, whose escapes are of visible characters in UTF-8";
}

/// The head of a request, as far as routes look at it.
#[derive(Debug, Clone)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, without the query.
    pub path: NormalPath<'a>,
    /// The query, without the question mark.
    pub query: Option<&'a str>,
    /// The fields.
    pub headers: &'a HeaderMap,
}

impl<'a> RequestHead<'a> {
    /// The head of a request. Normalises its path: to be made once per request.
    pub fn new(method: &'a Method, uri: &'a Uri, headers: &'a HeaderMap) -> Self {
        Self {
            method,
            path: NormalPath::new(uri.path()),
            query: uri.query(),
            headers,
        }
    }

    /// What a server may take the path for.
    pub const fn readings(&self, server: PathNormalization) -> Readings<'_> {
        Readings::of(&self.path, server)
    }
}

/// What a match is for, which decides about requests that can be read in several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Choosing a route: the path's normal form, all values of a field joined, the first parameter.
    Routing,
    /// It matches if any reading does.
    Restriction,
    /// It matches if all readings do.
    Permission,
}

/// A regular expression that takes a whole text.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

/// Two are the same when they were written the same.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// When it is no regular expression, or one that takes too much memory.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let bad = |reason: String| RouteError::Pattern {
            found: text.chars().take(200).collect(),
            reason,
        };
        if text.chars().count() > VALUE_MAX {
            return Err(bad(format!("longer than {VALUE_MAX} characters")));
        }
        // Compiled alone first: `a)(b` is no pattern, although the whole below is one.
        let alone = RegexBuilder::new(text)
            .size_limit(PATTERN_MAX_BYTES)
            .build();
        alone.map_err(|error| bad(last_line(&error)))?;
        let whole = RegexBuilder::new(&format!("{WHOLE_BEGINS}{text}{WHOLE_ENDS}"))
            .size_limit(PATTERN_MAX_BYTES)
            .build();
        whole.map(Self).map_err(|error| bad(last_line(&error)))
    }

    /// The pattern, as it was written.
    pub fn as_str(&self) -> &str {
        let whole = self.0.as_str();
        let text = whole.strip_prefix(WHOLE_BEGINS);
        let text = text.and_then(|text| text.strip_suffix(WHOLE_ENDS));
        text.unwrap_or(whole)
    }

    /// Whether it takes all of the text.
    pub fn takes(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// What is wrong, without the drawing of where.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default();
    line.trim_start_matches("error: ").to_owned()
}

/// Which paths.
#[derive(Debug, Clone, PartialEq)]
pub enum PathMatch {
    /// This one.
    Exact(Box<str>),
    /// This one and all below it, by whole segments: `/v2` takes `/v2/a` and not `/v2a`. Kept
    /// without its last slash, so that `/` is empty.
    Prefix(Box<str>),
    /// Those that it takes.
    Pattern(Pattern),
    /// This method of whatever gRPC service: `/SERVICE/METHOD`.
    Method(Box<str>),
}

impl PathMatch {
    /// Exactly this path.
    ///
    /// # Errors
    ///
    /// When no request has it.
    pub fn exact(path: &str) -> Result<Self, RouteError> {
        Ok(Self::Exact(normal_path(path)?))
    }

    /// This path and all below it.
    ///
    /// # Errors
    ///
    /// When no request has it.
    pub fn prefix(path: &str) -> Result<Self, RouteError> {
        let path = normal_path(path)?;
        Ok(Self::Prefix(path.trim_end_matches('/').into()))
    }

    /// Paths that a pattern takes.
    ///
    /// # Errors
    ///
    /// See [`Pattern::parse`].
    pub fn pattern(text: &str) -> Result<Self, RouteError> {
        Pattern::parse(text).map(Self::Pattern)
    }

    /// The paths of gRPC methods whose service and method patterns take; what is left out may be
    /// any.
    ///
    /// # Errors
    ///
    /// See [`Pattern::parse`].
    pub fn grpc_pattern(service: Option<&str>, method: Option<&str>) -> Result<Self, RouteError> {
        let any = "[^/]+";
        for pattern in [service, method].into_iter().flatten() {
            // Each alone: together, what one opens the other could close.
            Pattern::parse(pattern)?;
        }
        let (service, method) = (service.unwrap_or(any), method.unwrap_or(any));
        Self::pattern(&format!("/(?:{service})/(?:{method})"))
    }

    /// The paths of a gRPC service's methods (`GRPCRoute`, `/SERVICE/METHOD`); what is left out may
    /// be any.
    ///
    /// # Errors
    ///
    /// When there can be no such method.
    pub fn grpc(service: Option<&str>, method: Option<&str>) -> Result<Self, RouteError> {
        match (service, method) {
            (Some(service), Some(method)) => Self::exact(&format!("/{service}/{method}")),
            (Some(service), None) => Self::prefix(&format!("/{service}")),
            (None, Some(method)) => Self::grpc_method(method),
            (None, None) => Self::prefix("/"),
        }
    }

    /// The paths of a method of whatever gRPC service.
    ///
    /// # Errors
    ///
    /// When there can be no such method.
    pub fn grpc_method(method: &str) -> Result<Self, RouteError> {
        let path = normal_path(&format!("/service/{method}"))?;
        if method.is_empty() || method.contains('/') {
            let found = method.chars().take(200).collect();
            return Err(RouteError::Path { found });
        }
        let method = path.strip_prefix("/service/").unwrap_or(method);
        Ok(Self::Method(method.into()))
    }

    /// Whether it takes every path.
    pub fn is_any(&self) -> bool {
        match self {
            Self::Prefix(prefix) => prefix.is_empty(),
            Self::Exact(_) | Self::Pattern(_) | Self::Method(_) => false,
        }
    }

    /// Whether it takes a path, which may be decoded.
    fn takes(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => rest_after(wanted, path) == Some(""),
            Self::Prefix(prefix) => {
                let rest = rest_after(prefix, path);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) || self.is_any()
            }
            Self::Method(method) => {
                let called = super::grpc_call(path);
                called.is_some_and(|(_service, called)| rest_after(method, called) == Some(""))
            }
            Self::Pattern(pattern) => pattern.takes(path),
        }
    }

    /// Whether it takes a path without the slash at its end, to a server that does not mind it.
    fn takes_trimmed(&self, path: &str) -> bool {
        let trimmed = path.trim_end_matches('/');
        match self {
            Self::Exact(wanted) => rest_after(wanted.trim_end_matches('/'), trimmed) == Some(""),
            Self::Pattern(pattern) => pattern.takes(trimmed),
            Self::Prefix(_) | Self::Method(_) => false,
        }
    }
}

/// What follows `wanted` in a path that has it in the beginning. The path may be decoded where
/// `wanted` has escapes.
fn rest_after<'p>(wanted: &str, path: &'p str) -> Option<&'p str> {
    if let Some(rest) = path.strip_prefix(wanted) {
        return Some(rest);
    }
    if !wanted.contains('%') {
        return None;
    }
    let mut rest = path.bytes();
    let same = decoded_bytes(wanted).all(|byte| rest.next() == Some(byte));
    same.then(|| path.get(path.len() - rest.len()..)).flatten()
}

/// A path that requests may have, in its normal form (Gateway API, `HTTPPathMatch`).
pub(super) fn normal_path(path: &str) -> Result<Box<str>, RouteError> {
    let inside = ["//", "/./", "/../", "%2f", "%2F", "#", "?"];
    let normal = NormalPath::new(path);
    let bad = !path.starts_with('/')
        || path.chars().count() > PATH_MAX
        || inside.iter().any(|part| path.contains(part))
        || path.ends_with("/.")
        || path.ends_with("/..")
        || Readings::of(&normal, PathNormalization::default())
            .any(|_| true)
            .is_err();
    if bad {
        let found = path.chars().take(200).collect();
        return Err(RouteError::Path { found });
    }
    Ok(normal.as_str().into())
}

/// Which values of a header or a query parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueMatch {
    /// This one.
    Exact(Box<str>),
    /// Those that it takes.
    Pattern(Pattern),
}

impl ValueMatch {
    /// Exactly this value.
    ///
    /// # Errors
    ///
    /// When it is too long.
    pub fn exact(value: &str) -> Result<Self, RouteError> {
        let found = value.chars().count();
        if found > VALUE_MAX {
            return Err(RouteError::Value { found });
        }
        Ok(Self::Exact(value.into()))
    }

    /// Those that a pattern takes.
    ///
    /// # Errors
    ///
    /// See [`Pattern::parse`].
    pub fn pattern(text: &str) -> Result<Self, RouteError> {
        Pattern::parse(text).map(Self::Pattern)
    }

    fn takes(&self, value: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *value,
            Self::Pattern(pattern) => pattern.takes(value),
        }
    }
}

/// All of it has to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpMatch {
    /// Which paths.
    pub path: PathMatch,
    /// Which method, where it matters.
    pub method: Option<Method>,
    /// Fields that have to be there; each name once.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// Query parameters that have to be there; each name once.
    pub queries: Vec<(Box<str>, ValueMatch)>,
}

impl HttpMatch {
    /// Nothing but a path.
    pub const fn of(path: PathMatch) -> Self {
        Self {
            path,
            method: None,
            headers: Vec::new(),
            queries: Vec::new(),
        }
    }

    /// Whether it takes a request, where that restricts what the request may do.
    ///
    /// # Errors
    ///
    /// When it depends on the path, and that has no reading that could be relied on.
    pub fn restricts(
        &self,
        request: &RequestHead<'_>,
        path: &Readings<'_>,
    ) -> Result<bool, PathAmbiguity> {
        if !self.fields_match(request, Purpose::Restriction) {
            return Ok(false);
        }
        if self.path.is_any() {
            return Ok(true);
        }
        let trims = path.drops_trailing_slash();
        path.any(|path| self.path.takes(path) || (trims && self.path.takes_trimmed(path)))
    }

    /// Whether it takes a request, where that gives it something which others do not get.
    pub fn permits(&self, request: &RequestHead<'_>, path: &Readings<'_>) -> bool {
        self.fields_match(request, Purpose::Permission)
            && (self.path.is_any() || path.all(|path| self.path.takes(path)))
    }

    /// Whether a route's match takes a request whose path has been looked up, unless it is a pattern.
    pub(super) fn meets(&self, request: &RequestHead<'_>) -> bool {
        let path = match &self.path {
            PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::Method(_) => true,
            PathMatch::Pattern(pattern) => pattern.takes(request.path.as_str()),
        };
        path && self.fields_match(request, Purpose::Routing)
    }

    /// Whether everything but the path matches.
    fn fields_match(&self, request: &RequestHead<'_>, purpose: Purpose) -> bool {
        let method = self.method.as_ref();
        let mut headers = self.headers.iter();
        let mut queries = self.queries.iter();
        method.is_none_or(|method| method == request.method)
            && headers.all(|(name, wanted)| has_header(request.headers, name, wanted, purpose))
            && queries.all(|(name, wanted)| has_query(request.query, name, wanted, purpose))
    }
}

/// A field that is there more than once counts as one with its values joined by commas (RFC 9110
/// section 5.2); servers may also take one of the values.
pub(super) fn has_header(
    headers: &HeaderMap,
    name: &HeaderName,
    wanted: &ValueMatch,
    purpose: Purpose,
) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else {
        return false;
    };
    let mut joined = text(first);
    for more in values {
        let joined = joined.to_mut();
        joined.push(',');
        joined.push_str(&text(more));
    }
    let joined = wanted.takes(&joined);
    let mut each = headers
        .get_all(name)
        .iter()
        .map(|one| wanted.takes(&text(one)));
    match purpose {
        Purpose::Routing => joined,
        Purpose::Restriction => joined || each.any(|takes| takes),
        Purpose::Permission => joined && each.all(|takes| takes),
    }
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// Parameters are compared decoded. Of several with the name, servers take the first, the last or
/// all.
fn has_query(query: Option<&str>, name: &str, wanted: &ValueMatch, purpose: Purpose) -> bool {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let pairs = pairs.filter(|(found, _)| found == name);
    let mut each = pairs.map(|(_, value)| wanted.takes(&value)).peekable();
    match purpose {
        Purpose::Routing => each.next() == Some(true),
        Purpose::Restriction => each.any(|takes| takes),
        Purpose::Permission => each.peek().is_some() && each.all(|takes| takes),
    }
}
