//! Routes of the Gateway API, attached to Services (GAMMA): from its types to core's. What needs to
//! know what exists is left to compilation.
//!
//! Each kind of route has a file. All but their matches are read as those of an HTTPRoute are.

mod filter;
mod grpc;
mod http;
mod matching;
mod reference;
mod rule;
mod tcp;
mod tls;

use std::collections::BTreeSet;

use gateway_api::experimental::grpcroutes::GrpcRouteSpec;
use gateway_api::experimental::httproutes::{HttpRouteParentRefs, HttpRouteRules, HttpRouteSpec};
use gateway_api::experimental::tcproutes::TcpRouteSpec;
use gateway_api::experimental::tlsroutes::TlsRouteSpec;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_api::reader;
use weft_core::name::ServiceName;
use weft_core::route::{About, Filter, Rule};

use reference::read_parents;
use rule::{check_names, read_rule};

pub(super) use matching::{note, read_headers, read_matches};

use super::check::Check;
use super::key::ObjectName;
use super::kind::{Attachment, Reference, Relations, Spec};

/// The group of the Gateway API's kinds.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Rules of a route (Gateway API's own limit).
const RULES_MAX: usize = 16;
const NO_GATEWAYS: &str = "nothing: there are no gateways here";
const NO_HOSTNAMES: &str =
    "nothing: a route of a Service takes requests to it under every name that it has";

/// A route as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteSpec {
    /// An HTTPRoute.
    Http(Box<HttpRouteSpec>),
    /// A GRPCRoute.
    Grpc(Box<GrpcRouteSpec>),
    /// A TLSRoute.
    Tls(Box<TlsRouteSpec>),
    /// A TCPRoute.
    Tcp(Box<TcpRouteSpec>),
}

/// Kinds of routes, the most specific last: of several kinds at one port only that one counts
/// (GEP-1426).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Connections as they are.
    Tcp,
    /// Connections by the host that their ClientHello names.
    Tls,
    /// By path, method, fields and query.
    Http,
    /// By service, method and fields of a gRPC call.
    Grpc,
}

impl RouteKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Http, Self::Grpc];

    /// The kind of a name, if it is one of these.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCPRoute",
            Self::Tls => "TLSRoute",
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }
}

impl RouteSpec {
    /// Its kind.
    pub const fn kind(&self) -> RouteKind {
        match self {
            Self::Tcp(_) => RouteKind::Tcp,
            Self::Tls(_) => RouteKind::Tls,
            Self::Http(_) => RouteKind::Http,
            Self::Grpc(_) => RouteKind::Grpc,
        }
    }

    /// What it comes to. It was checked when it was read: nothing of it is left out.
    pub fn draft(&self, name: &ObjectName) -> RouteDraft {
        let check = &mut Check::new("the store", 1);
        match self {
            Self::Tcp(spec) => tcp::draft(check, name, spec),
            Self::Tls(spec) => tls::draft(check, name, spec),
            Self::Http(spec) => http::draft(check, name, spec),
            Self::Grpc(spec) => grpc::draft(check, name, spec),
        }
    }

    fn spec(&self) -> &dyn Spec {
        match self {
            Self::Tcp(spec) => spec,
            Self::Tls(spec) => spec,
            Self::Http(spec) => spec,
            Self::Grpc(spec) => spec,
        }
    }
}

impl Spec for RouteSpec {
    fn kind(&self) -> &'static str {
        self.spec().kind()
    }

    fn value(&self) -> Value {
        self.spec().value()
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        self.draft(own).relations(own)
    }
}

/// A route that has been read: what it refers to may or may not exist.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteDraft {
    /// What it is about.
    pub about: About,
    /// What it is attached to.
    pub parents: Vec<Parent>,
    /// Its rules.
    pub rules: Vec<RuleDraft>,
    /// What of all that it refers to as ExternalServices.
    pub externals: BTreeSet<ServiceName>,
}

/// A rule that has been read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleDraft {
    /// The rule, with every service that it names.
    pub rule: Rule,
    /// FaultInjections of the route's namespace that it names.
    pub faults: Vec<String>,
}

/// What a route is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The service.
    pub service: ServiceName,
    /// One of its ports; `None` is all of them.
    pub port: Option<u16>,
}

impl RouteDraft {
    /// The relations of the route of this name.
    pub fn relations(&self, own: &ObjectName) -> Relations {
        Relations {
            attachments: self.attachments(),
            references: self.references(own),
        }
    }

    fn attachments(&self) -> Vec<Attachment> {
        let parents = self.parents.iter();
        let attachments = parents.map(|parent| Attachment {
            external: self.externals.contains(&parent.service),
            service: parent.service.clone(),
            port: parent.port,
        });
        attachments.collect()
    }

    /// Services that requests go to, faults, and the grants that services of other namespaces need.
    fn references(&self, own: &ObjectName) -> Vec<Reference> {
        let mut references = BTreeSet::new();
        let mut lead_to = |service: &ServiceName, port: u16| {
            references.insert(Reference::Service {
                service: service.clone(),
                port,
            });
            if service.namespace() != own.namespace {
                references.insert(Reference::Grants(service.namespace().to_owned()));
            }
        };
        for draft in &self.rules {
            let backends = draft.rule.backends.iter();
            for backend in backends.clone() {
                if let Some(service) = &backend.service {
                    lead_to(service, backend.port);
                }
            }
            let of_backends = backends.flat_map(|backend| backend.filters.iter());
            for filter in draft.rule.filters.iter().chain(of_backends) {
                if let Filter::Mirror(mirror) = filter {
                    lead_to(&mirror.backend, mirror.port);
                }
            }
        }
        let faults = self.rules.iter().flat_map(|draft| &draft.faults);
        references.extend(faults.map(|name| {
            Reference::Fault(ObjectName {
                namespace: own.namespace.clone(),
                name: name.clone(),
            })
        }));
        references.into_iter().collect()
    }
}

/// Reads what routes of all kinds have, as an HTTPRoute has it; `then` reads what else a rule has.
fn read_common(
    check: &mut Check<'_>,
    own: &ObjectName,
    parents: Option<Vec<HttpRouteParentRefs>>,
    rules: Option<Vec<HttpRouteRules>>,
    mut then: impl FnMut(&mut Check<'_>, usize, &mut Rule),
) -> RouteDraft {
    let parents = read_parents(check, &own.namespace, &parents.unwrap_or_default());
    let mut rules = rules.unwrap_or_else(|| vec![HttpRouteRules::default()]);
    limit(check, "spec.rules", rules.len(), RULES_MAX);
    rules.truncate(RULES_MAX);
    let drafts = rules.iter().enumerate().map(|(index, rule)| {
        let at = format!("spec.rules[{index}]");
        let mut draft = read_rule(check, &own.namespace, &at, rule);
        then(check, index, &mut draft.rule);
        draft
    });
    let rules: Vec<RuleDraft> = drafts.collect();
    check_names(check, &rules);
    RouteDraft {
        about: About::default(),
        parents,
        rules,
        externals: std::mem::take(&mut check.externals),
    }
}

/// A type of the generated ones as another of the same shape: they are made anew for every place
/// where they occur.
fn again<T: Serialize, U: DeserializeOwned + Default>(value: &T) -> U {
    let value = serde_json::to_value(value).unwrap_or_default();
    reader::read(&value).value.unwrap_or_default()
}

fn refuse(check: &mut Check<'_>, path: &str, there: bool, allowed: &str) {
    if there {
        check.add(path, "a value", allowed);
    }
}

fn limit(check: &mut Check<'_>, path: &str, found: usize, most: usize) {
    if found > most {
        check.add(path, format!("{found} of them"), format!("{most} at most"));
    }
}

/// What is about connections has one rule.
fn one_rule(check: &mut Check<'_>, found: usize) {
    if found != 1 {
        let found = format!("{found} of them");
        check.add("spec.rules", found, "one: nothing tells connections apart");
    }
}
