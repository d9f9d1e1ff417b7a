//! What a rule does with a request, and where it sends it.

use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::cors::Cors;
use super::fault::Fault;
use super::matching::{RouteError, normal_path};
use crate::balance::pick_random;
use crate::headers::remove_in_order;
use crate::name::ServiceName;
use crate::path::NormalPath;

/// Something that a rule does.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Changes fields of the request.
    RequestHeaders(HeaderModifier),
    /// Changes fields of the response.
    ResponseHeaders(HeaderModifier),
    /// Answers with another place to ask.
    Redirect(Redirect),
    /// Changes what is asked for.
    Rewrite(UrlRewrite),
    /// Sends a copy elsewhere.
    Mirror(Mirror),
    /// Lets browsers ask from other origins.
    Cors(Cors),
    /// Delays or fails on purpose.
    Fault(Fault),
}

/// Changes of a message's fields (Gateway API, `HTTPHeaderFilter`): first set, then added, then
/// removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderModifier {
    /// In the place of what was there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside what was there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Taken away.
    pub remove: Vec<HeaderName>,
}

impl HeaderModifier {
    /// Changes the fields.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            remove_in_order(headers, name);
        }
    }
}

/// Another path (Gateway API, `HTTPPathModifier`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// In the place of the whole path; the query stays.
    Full(Box<str>),
    /// In the place of the prefix that was matched; the rest and the query stay.
    Prefix(Box<str>),
}

impl PathRewrite {
    /// This path in the place of the whole; an empty one is `/`.
    ///
    /// # Errors
    ///
    /// When no request has such a path.
    pub fn full(path: &str) -> Result<Self, RouteError> {
        replacement(path).map(Self::Full)
    }

    /// This path in the place of the prefix; an empty one drops the prefix.
    ///
    /// # Errors
    ///
    /// When no request has such a path.
    pub fn prefix(path: &str) -> Result<Self, RouteError> {
        replacement(path).map(Self::Prefix)
    }

    /// The path that takes the place of `path`, which was matched by `prefix` (without its last
    /// slash), in its normal form; without a prefix nothing of it is replaced.
    pub fn apply(&self, path: &NormalPath<'_>, prefix: Option<&str>) -> String {
        let path = path.as_str();
        let replacement = match self {
            Self::Full(path) if path.is_empty() => return "/".to_owned(),
            Self::Full(path) => return path.to_string(),
            Self::Prefix(replacement) => replacement,
        };
        let Some(rest) = prefix.and_then(|prefix| path.strip_prefix(prefix)) else {
            return path.to_owned();
        };
        // `/foo/bar` by `/foo` to `/xyz/` is `/xyz/bar`: one slash in between, whoever brings it.
        let whole = match rest {
            "" => replacement.to_string(),
            rest => format!("{}{rest}", replacement.trim_end_matches('/')),
        };
        if whole.is_empty() {
            return "/".to_owned();
        }
        whole
    }
}

/// A path that takes the place of another, or of its prefix.
fn replacement(path: &str) -> Result<Box<str>, RouteError> {
    if path.is_empty() {
        return Ok(Box::default());
    }
    let normal = normal_path(path)?;
    match PathAndQuery::try_from(&*normal) {
        Ok(_valid) => Ok(normal),
        Err(_invalid) => Err(RouteError::Path {
            found: path.chars().take(200).collect(),
        }),
    }
}

/// The status of a redirection (Gateway API, `HTTPRequestRedirectFilter.statusCode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedirectStatus {
    /// 301.
    MovedPermanently,
    /// 302, where nothing is said.
    #[default]
    Found,
    /// 303.
    SeeOther,
    /// 307.
    TemporaryRedirect,
    /// 308.
    PermanentRedirect,
}

impl RedirectStatus {
    /// The number.
    pub const fn code(self) -> u16 {
        match self {
            Self::MovedPermanently => 301,
            Self::Found => 302,
            Self::SeeOther => 303,
            Self::TemporaryRedirect => 307,
            Self::PermanentRedirect => 308,
        }
    }

    /// The status with a number, if it is one of these.
    pub const fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            301 => Self::MovedPermanently,
            302 => Self::Found,
            303 => Self::SeeOther,
            307 => Self::TemporaryRedirect,
            308 => Self::PermanentRedirect,
            _ => return None,
        })
    }
}

/// An answer that names another place. What is left out stays as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Scheme>,
    /// The host.
    pub hostname: Option<Box<str>>,
    /// The path.
    pub path: Option<PathRewrite>,
    /// The port.
    pub port: Option<u16>,
    /// The status.
    pub status: RedirectStatus,
}

/// A scheme that a redirection may lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Port 80 need not be named.
    Http,
    /// Port 443 need not be named.
    Https,
}

impl Scheme {
    /// The scheme of a URL, if it is one of these.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https]
            .into_iter()
            .find(|scheme| scheme.as_str() == text)
    }

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Redirect {
    /// The `Location` for a request in plain HTTP to `host` (without a port) on the service's
    /// `port`, that was matched by `prefix`.
    ///
    /// Which port it names (Gateway API, `HTTPRequestRedirectFilter.port`): the one that is given;
    /// else, where a scheme is given, that scheme's; else the service's. The scheme's own is left
    /// out. What stays of the path is in its normal form.
    pub fn location(
        &self,
        host: &str,
        port: u16,
        path: &str,
        query: Option<&str>,
        prefix: Option<&str>,
    ) -> String {
        let scheme = self.scheme.unwrap_or(Scheme::Http);
        let host = self.hostname.as_deref().unwrap_or(host);
        let of_scheme = self.scheme.map(Scheme::port);
        let port = self.port.or(of_scheme).unwrap_or(port);
        let mut location = format!("{}://{host}", scheme.as_str());
        if port != scheme.port() {
            location.push_str(&format!(":{port}"));
        }
        let path = NormalPath::new(path);
        match &self.path {
            Some(rewrite) => location.push_str(&rewrite.apply(&path, prefix)),
            None => location.push_str(path.as_str()),
        }
        if let Some(query) = query {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

/// Changes of what is asked for, before it is sent on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UrlRewrite {
    /// The host.
    pub hostname: Option<Box<str>>,
    /// The path.
    pub path: Option<PathRewrite>,
}

/// Whether a rewrite or redirect may name such a host: without port, user and wildcard.
pub fn check_hostname(text: &str) -> bool {
    let authority = text.parse::<Authority>().ok();
    authority.is_some_and(|authority| authority.host() == text) && !text.contains('*')
}

/// A copy for somebody else, whose answer nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Who gets it.
    pub backend: ServiceName,
    /// On which port.
    pub port: u16,
    /// How many of `denominator` requests.
    pub numerator: u32,
    /// Not 0.
    pub denominator: u32,
}

impl Mirror {
    /// Whether this request is copied.
    pub fn takes(&self, random: u64) -> bool {
        chance(self.numerator, self.denominator, random)
    }
}

/// True for `numerator` of `denominator` random numbers.
pub(super) fn chance(numerator: u32, denominator: u32, random: u64) -> bool {
    let shares = [numerator, denominator.saturating_sub(numerator)];
    pick_random(shares.len(), random, |_| false, |index| shares[index]) == Some(0)
}

/// One of the places where a rule sends requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// The service; `None` where the reference leads nowhere, which answers 500 (Gateway API,
    /// `HTTPRouteRule.backendRefs`).
    pub service: Option<ServiceName>,
    /// Its port.
    pub port: u16,
    /// Its share, 0 to 1,000,000.
    pub weight: u32,
    /// For its requests only, after the rule's.
    pub filters: Arc<[Filter]>,
}

/// Chooses a backend by weight; `None` where there is none, or none has a weight.
pub fn pick_backend(backends: &[Backend], random: u64) -> Option<usize> {
    pick_random(
        backends.len(),
        random,
        |_| false,
        |index| backends[index].weight,
    )
}
