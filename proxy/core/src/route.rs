//! Which rule of which route a request meets (Gateway API `HTTPRoute` and `GRPCRoute`).
//!
//! All routes of one service and port are one [`RouteTable`]. Which of two matches goes first is
//! the order of [`Precedence`] and nothing else; the table only finds it faster than looking at all
//! of them: by the exact path, then the patterns, then by the longest of the path's prefixes.

mod connection;
mod cors;
mod decision;
mod fault;
mod filter;
mod matching;
#[cfg(test)]
mod tests;
mod validate;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::retry::RetryPolicy;

pub use connection::{About, Connection};
pub use cors::Cors;
pub use decision::{Decision, Outcome};
pub use fault::{Abort, Delay, Fault, PARTS};
pub use filter::{
    Backend, Filter, HeaderModifier, Mirror, PathRewrite, Redirect, RedirectStatus, Scheme,
    UrlRewrite, check_hostname, pick_backend,
};
pub use matching::{HttpMatch, PathMatch, Pattern, RequestHead, RouteError, ValueMatch};

/// Names a route: namespace, then name. Its order is the alphabet's, which decides last between
/// routes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

/// One route, as it is attached to a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its name.
    pub name: RouteName,
    /// The service's ports that it is for; none is for all.
    pub ports: Vec<u16>,
    /// What it is about.
    pub about: About,
    /// When it came into being, seconds since the Unix epoch: the older goes first.
    pub created: i64,
    /// Its rules, in the order of its document.
    pub rules: Vec<Rule>,
}

/// One rule: when it is met, and what happens then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rule {
    /// Its own name, where it has one.
    pub name: Option<Arc<str>>,
    /// Met when one of them is; without any, always.
    pub matches: Vec<HttpMatch>,
    /// In the order of the document.
    pub filters: Vec<Filter>,
    /// Where requests go; none is for rules that answer by themselves.
    pub backends: Vec<Backend>,
    /// How long a request may take until its response begins, with all attempts; `None`: what the
    /// backend's policy says. Zero is no limit (Gateway API, `HTTPRouteTimeouts`).
    pub request_timeout: Option<Duration>,
    /// How long one attempt may take; `None`: what the backend's policy says.
    pub backend_timeout: Option<Duration>,
    /// What is repeated, in the place of what the backend's policy says. The budget stays the
    /// policy's.
    pub retry: Option<RetryPolicy>,
}

impl Route {
    /// Whether it is for a port.
    pub fn is_for(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

/// The routes of a service's port for some callers: those that their own namespace has for it take
/// the place of the service's.
pub fn in_force(
    port: u16,
    own: Option<&[Arc<Route>]>,
    of_service: &[Arc<Route>],
) -> Vec<Arc<Route>> {
    let of_port = |routes: &[Arc<Route>]| -> Vec<Arc<Route>> {
        let of_port = routes.iter().filter(|route| route.is_for(port));
        of_port.cloned().collect()
    };
    let consumers = of_port(own.unwrap_or_default());
    if consumers.is_empty() {
        of_port(of_service)
    } else {
        consumers
    }
}

/// How specific a match is. The smaller goes first (Gateway API, `HTTPRouteRule.matches`, which leaves
/// the place of patterns open, and `GRPCRouteRule.matches`): exact paths, then patterns, then the
/// longest prefix, then a gRPC method of any service, then the prefix `/`, which is what a rule
/// without matches comes to; with a method; with more headers; with more query
/// parameters; of the older route; of the route first in the alphabet; first in the document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precedence {
    path: PathKind,
    path_length: Reverse<usize>,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    queries: Reverse<usize>,
    created: i64,
    route: RouteName,
    place: Place,
}

/// Kinds of paths, the most specific first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PathKind {
    Exact,
    Pattern,
    Prefix,
    Method,
    Any,
}

/// Where a match stands: route, rule and match by their indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    route: usize,
    rule: usize,
    matched: usize,
}

/// What a request met.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The route.
    pub route: &'a Route,
    /// Which of its rules.
    pub index: usize,
    /// The rule.
    pub rule: &'a Rule,
    /// Which of the rule's matches; `None` where the rule has none and takes everything.
    pub matched: Option<&'a HttpMatch>,
}

/// Names a rule for what is remembered of it: by its own name, else by its number in its route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey {
    /// The route.
    pub route: RouteName,
    /// The rule.
    pub rule: RuleId,
}

/// Which rule of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleId {
    /// The one of this name.
    Named(Arc<str>),
    /// The one without a name at this place.
    Numbered(usize),
}

/// `NAMESPACE/ROUTE/RULE`.
impl fmt::Display for RuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.route.namespace, self.route.name)?;
        match &self.rule {
            RuleId::Named(name) => f.write_str(name),
            RuleId::Numbered(index) => write!(f, "{index}"),
        }
    }
}

impl Found<'_> {
    /// What is remembered of the rule goes by this.
    pub fn key(&self) -> RuleKey {
        let named = self.rule.name.clone().map(RuleId::Named);
        RuleKey {
            route: self.route.name.clone(),
            rule: named.unwrap_or(RuleId::Numbered(self.index)),
        }
    }

    /// The prefix that the path was matched by, for rewriting it; a rule without matches is met by
    /// the prefix `/`.
    pub fn prefix(&self) -> Option<&str> {
        match self.matched.map(|matched| &matched.path) {
            None => Some(""),
            Some(PathMatch::Prefix(prefix)) => Some(prefix),
            Some(PathMatch::Exact(_) | PathMatch::Pattern(_) | PathMatch::Method(_)) => None,
        }
    }
}

/// All routes of a service's port.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    exact: HashMap<Box<str>, Vec<Place>>,
    /// By the prefix without its last slash: `/` is the empty one.
    prefixes: HashMap<Box<str>, Vec<Place>>,
    /// Segments of the deepest prefix: no longer part of a path is looked up.
    deepest: usize,
    patterns: Vec<Place>,
    /// By the name of a gRPC method, of whatever service.
    methods: HashMap<Box<str>, Vec<Place>>,
    hosts: connection::Hosts,
}

impl RouteTable {
    /// A table of these routes.
    pub fn new(routes: Vec<Arc<Route>>) -> Self {
        let mut table = Self {
            hosts: connection::Hosts::of(&routes),
            routes,
            ..Self::default()
        };
        let mut all = table.all();
        all.sort();
        for Precedence { place, .. } in all {
            match table.path(place) {
                Some(PathMatch::Exact(path)) => {
                    let path = path.clone();
                    table.exact.entry(path).or_default().push(place);
                }
                Some(PathMatch::Prefix(prefix)) => {
                    let prefix = prefix.clone();
                    table.deepest = table.deepest.max(segments(&prefix));
                    table.prefixes.entry(prefix).or_default().push(place);
                }
                None => table.prefixes.entry("".into()).or_default().push(place),
                Some(PathMatch::Method(method)) => {
                    let method = method.clone();
                    table.methods.entry(method).or_default().push(place);
                }
                Some(PathMatch::Pattern(_)) => table.patterns.push(place),
            }
        }
        table
    }

    /// The routes, in the order in which they were given.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The rule that a request meets, if there is one. Takes time with the depth of the path, with
    /// the matches that share its path, and with the patterns, not with all that there are.
    pub fn find(&self, request: &RequestHead<'_>) -> Option<Found<'_>> {
        let path = request.path.as_str();
        let exact = self.exact.get(path);
        let first = |places: &[Place]| {
            let mut places = places.iter();
            places.find(|place| self.meets(**place, request)).copied()
        };
        let place = exact
            .and_then(|places| first(places))
            .or_else(|| first(&self.patterns))
            .or_else(|| {
                let prefixes = Prefixes::of(path, self.deepest);
                let prefixes = prefixes.filter(|prefix| !prefix.is_empty());
                let mut candidates = prefixes.filter_map(|prefix| self.prefixes.get(prefix));
                candidates.find_map(|places| first(places))
            })
            .or_else(|| first(self.of_method(path)?))
            .or_else(|| first(self.prefixes.get("")?))?;
        Some(self.found(place))
    }

    /// Matches by the method that a gRPC call's path names: `/SERVICE/METHOD`.
    fn of_method(&self, path: &str) -> Option<&[Place]> {
        if self.methods.is_empty() {
            return None;
        }
        let (_service, method) = grpc_call(path)?;
        self.methods.get(method).map(Vec::as_slice)
    }

    /// Every match with its precedence.
    fn all(&self) -> Vec<Precedence> {
        let mut all = Vec::new();
        for (route, of) in self.routes.iter().enumerate() {
            for (rule, Rule { matches, .. }) in of.rules.iter().enumerate() {
                // A rule without matches takes everything, as one with the prefix `/`.
                for matched in 0..matches.len().max(1) {
                    let place = Place {
                        route,
                        rule,
                        matched,
                    };
                    all.push(precedence(of, matches.get(matched), place));
                }
            }
        }
        all
    }

    fn found(&self, place: Place) -> Found<'_> {
        let route = &self.routes[place.route];
        let rule = &route.rules[place.rule];
        Found {
            route,
            index: place.rule,
            rule,
            matched: rule.matches.get(place.matched),
        }
    }

    fn path(&self, place: Place) -> Option<&PathMatch> {
        let found = self.found(place);
        found.matched.map(|matched| &matched.path)
    }

    /// Whether everything but what the table has looked up holds: an exact path, a prefix, or a gRPC
    /// method.
    fn meets(&self, place: Place, request: &RequestHead<'_>) -> bool {
        let found = self.found(place);
        found.matched.is_none_or(|matched| matched.meets(request))
    }
}

fn precedence(route: &Route, matched: Option<&HttpMatch>, place: Place) -> Precedence {
    let (path, path_length) = match matched.map(|matched| &matched.path) {
        Some(PathMatch::Exact(_)) => (PathKind::Exact, 0),
        Some(PathMatch::Prefix(prefix)) if prefix.is_empty() => (PathKind::Any, 0),
        Some(PathMatch::Prefix(prefix)) => (PathKind::Prefix, prefix.len()),
        Some(PathMatch::Method(method)) => (PathKind::Method, method.len()),
        Some(PathMatch::Pattern(_)) => (PathKind::Pattern, 0),
        None => (PathKind::Any, 0),
    };
    Precedence {
        path,
        path_length: Reverse(path_length),
        method: Reverse(matched.is_some_and(|m| m.method.is_some())),
        headers: Reverse(matched.map_or(0, |m| m.headers.len())),
        queries: Reverse(matched.map_or(0, |m| m.queries.len())),
        created: route.created,
        route: route.name.clone(),
        place,
    }
}

/// Service and method of a gRPC call's path.
fn grpc_call(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.contains('/')).then_some((service, method))
}

/// Segments of a prefix without its last slash.
fn segments(prefix: &str) -> usize {
    prefix.bytes().filter(|byte| *byte == b'/').count()
}

/// The prefixes of a path by whole segments, the longest first, down to the empty one.
struct Prefixes<'a>(Option<&'a str>);

impl<'a> Prefixes<'a> {
    /// None of them has more than `deepest` segments.
    fn of(path: &'a str, deepest: usize) -> Self {
        let mut slashes = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/');
        // A path begins with a slash: the one after the last segment that counts ends it.
        let end = slashes.nth(deepest).map_or(path.len(), |(end, _)| end);
        Self(Some(&path[..end]))
    }
}

impl<'a> Iterator for Prefixes<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let now = self.0?;
        self.0 = now.rfind('/').map(|slash| &now[..slash]);
        Some(now)
    }
}
