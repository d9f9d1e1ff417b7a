//! Which route a connection goes by, where routes are about connections rather than requests
//! (Gateway API, `TCPRoute` and `TLSRoute`).

use std::collections::HashMap;
use std::sync::Arc;

use super::{Backend, Route, RouteTable, pick_backend};

/// What a route is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum About {
    /// Requests (`HTTPRoute`, `GRPCRoute`).
    #[default]
    Requests,
    /// Connections as they are (`TCPRoute`): one rule without matches and filters.
    Connections,
    /// Connections that begin with TLS and name one of these hosts (`TLSRoute`; RFC 6066 section
    /// 3), in lower case: `HOST`, or `*.HOST` for all below it. One rule without matches and
    /// filters.
    Hosts(Vec<Arc<str>>),
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Connection<'a> {
    /// By this route.
    pub route: &'a Route,
    /// To this backend; `None` where the rule has none that takes anything.
    pub backend: Option<&'a Backend>,
}

/// Which route takes which connections, found without looking at all of them. Places are indices of
/// routes.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// By the host that is named.
    named: HashMap<Arc<str>, usize>,
    /// By what follows the wildcard: `.example.com` for `*.example.com`.
    below: HashMap<Box<str>, usize>,
    /// What takes every connection.
    every: Option<usize>,
    /// Whether there is a route about connections at all.
    any: bool,
    /// Whether there is one about hosts.
    some_host: bool,
}

impl Hosts {
    /// Between routes for the same the older counts, then the first in the alphabet.
    pub(super) fn of(routes: &[Arc<Route>]) -> Self {
        let mut hosts = Self::default();
        let mut places: Vec<usize> = (0..routes.len()).collect();
        places.sort_by_key(|place| (routes[*place].created, &routes[*place].name));
        for place in places {
            let of_route = match &routes[place].about {
                About::Requests => continue,
                About::Connections => {
                    hosts.every.get_or_insert(place);
                    &[][..]
                }
                About::Hosts(of_route) => {
                    hosts.some_host = true;
                    of_route
                }
            };
            hosts.any = true;
            for host in of_route {
                match host.strip_prefix('*') {
                    Some(rest) => hosts.below.entry(rest.into()).or_insert(place),
                    None => hosts.named.entry(Arc::clone(host)).or_insert(place),
                };
            }
        }
        hosts
    }

    fn find(&self, host: Option<&str>) -> Option<usize> {
        let host = host.filter(|_| self.some_host).map(str::to_ascii_lowercase);
        let named = host.as_deref().and_then(|host| {
            self.named.get(host).or_else(|| {
                let dots = host.match_indices('.');
                // What the wildcard stands for is not empty: `*.a.b` is not for `.a.b`.
                let mut endings = dots.filter(|(at, _)| *at > 0).map(|(at, _)| &host[at..]);
                endings.find_map(|ending| self.below.get(ending))
            })
        });
        named.copied().or(self.every)
    }
}

impl RouteTable {
    /// Whether the routes are about connections.
    pub fn is_about_connections(&self) -> bool {
        self.hosts.any
    }

    /// Whether a connection's first bytes decide about it.
    pub fn reads_hosts(&self) -> bool {
        self.hosts.some_host
    }

    /// Where a connection goes whose ClientHello names `host`; `None` where no route takes it. A
    /// host that is named goes before one that a wildcard covers, of which the longest goes first;
    /// then the oldest route, then the first in the alphabet. Takes time with the dots in the host.
    pub fn connection(&self, host: Option<&str>, random: u64) -> Option<Connection<'_>> {
        let route = &self.routes[self.hosts.find(host)?];
        let backends = route.rules.first().map_or(&[][..], |rule| &rule.backends);
        let backend = pick_backend(backends, random).map(|index| &backends[index]);
        Some(Connection { route, backend })
    }
}
