//! What a request is compared with.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use regex::{Regex, RegexBuilder};

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
    #[error(
        "found the path {found:?}; allowed: one that begins with /, of at most {PATH_MAX} \
         characters, without //, /./, /../, %2F and #"
    )]
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

/// The head of a request, as far as routes look at it.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, without the query.
    pub path: &'a str,
    /// The query, without the question mark.
    pub query: Option<&'a str>,
    /// The fields.
    pub headers: &'a HeaderMap,
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
        check_path(path)?;
        Ok(Self::Exact(path.into()))
    }

    /// This path and all below it.
    ///
    /// # Errors
    ///
    /// When no request has it.
    pub fn prefix(path: &str) -> Result<Self, RouteError> {
        check_path(path)?;
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
        check_path(&format!("/service/{method}"))?;
        if method.is_empty() || method.contains('/') {
            let found = method.chars().take(200).collect();
            return Err(RouteError::Path { found });
        }
        Ok(Self::Method(method.into()))
    }
}

/// Gateway API, `HTTPPathMatch`: such a path would be compared with one that was normalised.
fn check_path(path: &str) -> Result<(), RouteError> {
    let inside = ["//", "/./", "/../", "%2f", "%2F", "#"];
    let bad = !path.starts_with('/')
        || path.chars().count() > PATH_MAX
        || inside.iter().any(|part| path.contains(part))
        || path.ends_with("/.")
        || path.ends_with("/..");
    if bad {
        let found = path.chars().take(200).collect();
        return Err(RouteError::Path { found });
    }
    Ok(())
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

    /// Whether it takes a request.
    pub fn takes(&self, request: &RequestHead<'_>) -> bool {
        let path = match &self.path {
            PathMatch::Exact(path) => **path == *request.path,
            PathMatch::Prefix(prefix) => {
                let rest = request.path.strip_prefix(&**prefix);
                prefix.is_empty()
                    || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            PathMatch::Method(method) => {
                let called = super::grpc_call(request.path);
                called.is_some_and(|(_service, called)| called == &**method)
            }
            // Looked at below.
            PathMatch::Pattern(_) => true,
        };
        path && self.meets(request)
    }

    /// Whether everything but an exact path, a prefix or a method holds: those were looked up.
    pub(super) fn meets(&self, request: &RequestHead<'_>) -> bool {
        let path = match &self.path {
            PathMatch::Exact(_) | PathMatch::Prefix(_) | PathMatch::Method(_) => true,
            PathMatch::Pattern(pattern) => pattern.takes(request.path),
        };
        let method = self.method.as_ref();
        path && method.is_none_or(|method| method == request.method)
            && self
                .headers
                .iter()
                .all(|(name, wanted)| has_header(request.headers, name, wanted))
            && self
                .queries
                .iter()
                .all(|(name, wanted)| has_query(request.query, name, wanted))
    }
}

/// A field that is there more than once counts as one with its values joined by commas (RFC 9110
/// section 5.2).
pub(super) fn has_header(headers: &HeaderMap, name: &HeaderName, wanted: &ValueMatch) -> bool {
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
    wanted.takes(&joined)
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// The first parameter of the name counts, decoded.
fn has_query(query: Option<&str>, name: &str, wanted: &ValueMatch) -> bool {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let found = pairs.find(|(found, _)| found == name);
    found.is_some_and(|(_, value)| wanted.takes(&value))
}
