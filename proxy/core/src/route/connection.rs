//! Which route a connection goes by, where routes are about connections rather than requests
//! (Gateway API, `TCPRoute` and `TLSRoute`).

use std::cmp::Reverse;
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

impl RouteTable {
    /// Whether the routes are about connections.
    pub fn is_about_connections(&self) -> bool {
        let mut routes = self.routes.iter();
        routes.any(|route| route.about != About::Requests)
    }

    /// Whether a connection's first bytes decide about it.
    pub fn reads_hosts(&self) -> bool {
        let mut routes = self.routes.iter();
        routes.any(|route| matches!(route.about, About::Hosts(_)))
    }

    /// Where a connection goes whose ClientHello names `host`; `None` where no route takes it. A
    /// host that is named goes before one that a wildcard covers, of which the longest goes first;
    /// then the oldest route, then the first in the alphabet.
    pub fn connection(&self, host: Option<&str>, random: u64) -> Option<Connection<'_>> {
        let host = host.map(str::to_ascii_lowercase);
        let taken = self.routes.iter().filter_map(|route| {
            let fit = match &route.about {
                About::Requests => return None,
                About::Connections => 0,
                About::Hosts(hosts) => {
                    let host = host.as_deref()?;
                    hosts.iter().filter_map(|named| fit(named, host)).max()?
                }
            };
            Some((Reverse(fit), route.created, &route.name, route))
        });
        let (_, _, _, route) = taken.min_by(|a, b| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)))?;
        let backends = route.rules.first().map_or(&[][..], |rule| &rule.backends);
        let backend = pick_backend(backends, random).map(|index| &backends[index]);
        Some(Connection { route, backend })
    }
}

/// How well a name fits a host: the more the better, `None` where it does not.
fn fit(named: &str, host: &str) -> Option<usize> {
    match named.strip_prefix('*') {
        // What the wildcard stands for is not empty: `*.a.b` is not for `.a.b`.
        Some(rest) => {
            let covered = host.strip_suffix(rest)?;
            (!covered.is_empty()).then_some(rest.len())
        }
        None => (named == host).then_some(usize::MAX),
    }
}
