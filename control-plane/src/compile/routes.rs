//! Which route is attached to what, and whether what it refers to exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gateway_api::experimental::referencegrants::ReferenceGrantSpec;
use weft_core::name::ServiceName;
use weft_core::policy::Fallback;
use weft_core::route::{Backend, Fault, Filter, Route, RouteName, Rule};

use crate::model::{
    GATEWAY_GROUP, ObjectName, Parent, RouteDraft, RouteKind, TargetKind, TargetRef,
    TrafficPolicySpec,
};

/// A route that was asked for.
#[derive(Debug, Clone)]
pub struct RouteEntry {
    /// Its kind.
    pub kind: RouteKind,
    /// Its name.
    pub name: ObjectName,
    /// When it was made, milliseconds since the Unix epoch.
    pub created: i64,
    /// Counts its changes.
    pub generation: u64,
    /// What it says.
    pub draft: Arc<RouteDraft>,
}

/// What a route's references are looked up in.
#[derive(Debug, Clone, Copy)]
pub struct References<'a> {
    /// Services that exist, with their ports.
    pub services: &'a BTreeMap<ServiceName, BTreeSet<u16>>,
    /// Those of them that are outside the mesh: ExternalServices.
    pub externals: &'a BTreeSet<ServiceName>,
    /// Faults that routes may name.
    pub faults: &'a BTreeMap<ObjectName, Fault>,
    /// What routes of other namespaces may refer to, with the namespace that says so.
    pub grants: &'a [(ObjectName, ReferenceGrantSpec)],
}

impl<'a> References<'a> {
    /// The ports of a service that is referred to as what it is; or what was found instead.
    fn find(&self, name: &ServiceName, external: bool) -> Result<&'a BTreeSet<u16>, String> {
        find(self.services, self.externals, name, external)
    }
}

fn find<'a>(
    services: &'a BTreeMap<ServiceName, BTreeSet<u16>>,
    externals: &BTreeSet<ServiceName>,
    name: &ServiceName,
    external: bool,
) -> Result<&'a BTreeSet<u16>, String> {
    let (kind, other) = match external {
        true => ("ExternalService", "a Service"),
        false => ("Service", "an ExternalService"),
    };
    match services.get(name) {
        None => Err(format!("the {kind} {name}, which does not exist")),
        Some(_) if externals.contains(name) != external => {
            Err(format!("the {kind} {name}, which is {other}"))
        }
        Some(ports) => Ok(ports),
    }
}

/// One thing that a route refers to and that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: found {found}; allowed: {allowed}")]
pub struct Dangling {
    /// The path of the field.
    pub path: String,
    /// The word for it: a reason of the Gateway API where it has one.
    pub reason: &'static str,
    /// What was found.
    pub found: String,
    /// What to do.
    pub allowed: String,
}

/// How a route stands to one of its parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentStatus {
    /// The parent.
    pub parent: Parent,
    /// Whether it is referred to as an ExternalService.
    pub external: bool,
    /// Why the parent does not take it; `None` where it does.
    pub refused: Option<Dangling>,
    /// The route's change that this is about.
    pub generation: u64,
}

/// What has been found out about a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteStatus {
    /// For each of its parents.
    pub parents: Vec<ParentStatus>,
    /// What of its rules leads nowhere.
    pub unresolved: Vec<Dangling>,
}

/// Every route where it belongs.
#[derive(Debug, Default)]
pub struct Attached {
    /// By service: for every caller.
    pub producers: BTreeMap<ServiceName, Vec<Arc<Route>>>,
    /// By the callers' namespace and service.
    pub consumers: BTreeMap<String, BTreeMap<ServiceName, Vec<Arc<Route>>>>,
    /// What has been found out, by kind and name.
    pub statuses: BTreeMap<(RouteKind, ObjectName), RouteStatus>,
}

/// Attaches routes to their services. A route in the service's own namespace is for every caller
/// (a producer's), one in another namespace for the callers there (a consumer's).
pub fn attach(routes: &[RouteEntry], references: References<'_>) -> Attached {
    let mut attached = Attached::default();
    let mut taken = Taken::default();
    let mut ordered: Vec<&RouteEntry> = routes.iter().collect();
    // The most specific kind first: the others get the ports that it leaves.
    ordered.sort_by_key(|entry| (std::cmp::Reverse(entry.kind), &entry.name));
    for entry in ordered {
        let (rules, unresolved) = resolve(entry, references);
        let mut status = RouteStatus {
            parents: Vec::new(),
            unresolved,
        };
        let mut ports: BTreeMap<&ServiceName, Ports> = BTreeMap::new();
        for (index, parent) in entry.draft.parents.iter().enumerate() {
            let refused = match accept(entry, parent, references, &taken) {
                Ok(accepted) => {
                    ports.entry(&parent.service).or_default().add(accepted);
                    None
                }
                Err((reason, found)) => Some(Dangling {
                    path: format!("spec.parentRefs[{index}]"),
                    reason,
                    found,
                    allowed: "a port of a Service or ExternalService that exists and that no more specific route has"
                        .to_owned(),
                }),
            };
            status.parents.push(ParentStatus {
                parent: parent.clone(),
                external: entry.draft.externals.contains(&parent.service),
                refused,
                generation: entry.generation,
            });
        }
        for (service, ports) in ports {
            taken.note(entry, service, &ports);
            let route = Arc::new(Route {
                name: RouteName {
                    namespace: entry.name.namespace.as_str().into(),
                    name: entry.name.name.as_str().into(),
                },
                ports: ports.listed(),
                about: entry.draft.about.clone(),
                created: entry.created.div_euclid(1000),
                rules: rules.clone(),
            });
            let of_service = if service.namespace() == entry.name.namespace {
                &mut attached.producers
            } else {
                let namespace = entry.name.namespace.clone();
                attached.consumers.entry(namespace).or_default()
            };
            of_service.entry(service.clone()).or_default().push(route);
        }
        let key = (entry.kind, entry.name.clone());
        attached.statuses.insert(key, status);
    }
    attached
}

/// Ports of one service.
#[derive(Debug, Default)]
struct Ports {
    all: bool,
    some: BTreeSet<u16>,
}

impl Ports {
    /// No list is all of them.
    fn add(&mut self, ports: Option<BTreeSet<u16>>) {
        match ports {
            Some(ports) => self.some.extend(ports),
            None => self.all = true,
        }
    }

    fn listed(&self) -> Vec<u16> {
        if self.all {
            Vec::new()
        } else {
            self.some.iter().copied().collect()
        }
    }
}

/// Ports that routes of a more specific kind have, by the routes' namespace and the service.
#[derive(Debug, Default)]
struct Taken(BTreeMap<(String, ServiceName), BTreeMap<RouteKind, Ports>>);

impl Taken {
    fn note(&mut self, entry: &RouteEntry, service: &ServiceName, ports: &Ports) {
        let key = (entry.name.namespace.clone(), service.clone());
        let of_kind = self.0.entry(key).or_default();
        let of_kind = of_kind.entry(entry.kind).or_default();
        of_kind.add((!ports.all).then(|| ports.some.clone()));
    }

    /// Whether a more specific kind has the port.
    fn has(&self, entry: &RouteEntry, service: &ServiceName, port: u16) -> bool {
        let key = (entry.name.namespace.clone(), service.clone());
        let more_specific = self.0.get(&key).into_iter().flatten();
        let mut more_specific = more_specific.filter(|(kind, _)| **kind > entry.kind);
        more_specific.any(|(_, ports)| ports.all || ports.some.contains(&port))
    }
}

/// The ports that a parent gives a route, `None` for all that it has; or why it gives none.
fn accept(
    entry: &RouteEntry,
    parent: &Parent,
    references: References<'_>,
    taken: &Taken,
) -> Result<Option<BTreeSet<u16>>, (&'static str, String)> {
    let service = &parent.service;
    let ports = references.find(service, entry.draft.externals.contains(service));
    let ports = ports.map_err(|found| ("NoMatchingParent", found))?;
    let wanted: BTreeSet<u16> = match parent.port {
        Some(port) if !ports.contains(&port) => {
            let found = format!("port {port}, which {service} does not have");
            return Err(("NoMatchingParent", found));
        }
        Some(port) => BTreeSet::from([port]),
        None => ports.clone(),
    };
    let free: BTreeSet<u16> = wanted
        .iter()
        .copied()
        .filter(|port| !taken.has(entry, service, *port))
        .collect();
    if free.is_empty() && !wanted.is_empty() {
        let found = format!("a more specific route at the same port of {service}");
        return Err(("Conflicted", found));
    }
    let whole = parent.port.is_none() && free == wanted;
    Ok((!whole).then_some(free))
}

/// What of a policy leads nowhere: its target, and the fallback.
pub fn check_policy(
    services: &BTreeMap<ServiceName, BTreeSet<u16>>,
    externals: &BTreeSet<ServiceName>,
    namespace: &str,
    spec: &TrafficPolicySpec,
) -> Vec<Dangling> {
    let mut dangling = check_target(services, externals, namespace, &spec.target_ref);
    if let Some(Fallback::Backend { service, port }) = spec.resolve(namespace).fallback {
        let path = "spec.circuitBreaker.fallback.backend";
        // It is referred to by its name alone.
        let external = externals.contains(&service);
        dangling.extend(missing(
            services,
            externals,
            (path, service, Some(port)),
            external,
        ));
    }
    dangling
}

/// What of a policy's target is not there.
pub fn check_target(
    services: &BTreeMap<ServiceName, BTreeSet<u16>>,
    externals: &BTreeSet<ServiceName>,
    namespace: &str,
    target: &TargetRef,
) -> Vec<Dangling> {
    let Ok(service) = ServiceName::new(namespace, &target.name) else {
        return Vec::new();
    };
    let external = target.kind == TargetKind::ExternalService;
    let wanted = ("spec.targetRef", service, target.port);
    missing(services, externals, wanted, external)
        .into_iter()
        .collect()
}

/// A Service or port that is not there, for what is at this path.
fn missing(
    services: &BTreeMap<ServiceName, BTreeSet<u16>>,
    externals: &BTreeSet<ServiceName>,
    (path, service, port): (&str, ServiceName, Option<u16>),
    external: bool,
) -> Option<Dangling> {
    let found = find(services, externals, &service, external);
    let (found, allowed) = match (found, port) {
        (Err(found), _) => (found, "a Service or ExternalService that exists".to_owned()),
        (Ok(ports), Some(port)) if !ports.contains(&port) => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let found = format!("port {port}, which {service} does not have");
            (found, ports.join(", "))
        }
        (Ok(_), _) => return None,
    };
    Some(Dangling {
        path: path.to_owned(),
        reason: "TargetNotFound",
        found,
        allowed,
    })
}

/// A route's rules, where every reference leads somewhere or says that it does not.
fn resolve(entry: &RouteEntry, references: References<'_>) -> (Vec<Rule>, Vec<Dangling>) {
    let mut dangling = Vec::new();
    let mut rules = Vec::with_capacity(entry.draft.rules.len());
    for (index, draft) in entry.draft.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let mut rule = draft.rule.clone();
        for (index, backend) in rule.backends.iter_mut().enumerate() {
            let path = format!("{at}.backendRefs[{index}]");
            let service = backend.service.take();
            let (wanted, port) = (service.as_ref(), backend.port);
            backend.service = wanted
                .and_then(|wanted| target(entry, references, &path, wanted, port, &mut dangling));
            let mirrors = |filter: &Filter| matches!(filter, Filter::Mirror(_));
            if backend.filters.iter().any(mirrors) {
                let mut filters = backend.filters.to_vec();
                keep_mirrors(entry, references, &path, &mut filters, &mut dangling);
                backend.filters = filters.into();
            }
        }
        keep_mirrors(entry, references, &at, &mut rule.filters, &mut dangling);
        for name in &draft.faults {
            let name = ObjectName {
                namespace: entry.name.namespace.clone(),
                name: name.clone(),
            };
            match references.faults.get(&name) {
                Some(fault) => rule.filters.push(Filter::Fault(fault.clone())),
                None => {
                    dangling.push(Dangling {
                        path: format!("{at}.filters"),
                        reason: "FilterNotFound",
                        found: format!("the FaultInjection {}, which does not exist", name.name),
                        allowed: "a FaultInjection of the route's namespace".to_owned(),
                    });
                    // A filter that is not known must not be skipped (Gateway API,
                    // `HTTPRouteRule.filters`).
                    rule.backends = vec![Backend {
                        service: None,
                        port: 0,
                        weight: 1,
                        filters: Arc::default(),
                    }];
                }
            }
        }
        rules.push(rule);
    }
    (rules, dangling)
}

/// Leaves out copies for nobody.
fn keep_mirrors(
    entry: &RouteEntry,
    references: References<'_>,
    at: &str,
    filters: &mut Vec<Filter>,
    dangling: &mut Vec<Dangling>,
) {
    let mut index = 0;
    filters.retain(|filter| {
        let path = format!("{at}.filters[{index}].requestMirror.backendRef");
        index += 1;
        let Filter::Mirror(mirror) = filter else {
            return true;
        };
        let (wanted, port) = (&mirror.backend, mirror.port);
        target(entry, references, &path, wanted, port, dangling).is_some()
    });
}

/// The service that a reference leads to, if it does.
fn target(
    entry: &RouteEntry,
    references: References<'_>,
    path: &str,
    wanted: &ServiceName,
    port: u16,
    dangling: &mut Vec<Dangling>,
) -> Option<ServiceName> {
    let mut lost = |reason, found: String, allowed: &str| {
        dangling.push(Dangling {
            path: path.to_owned(),
            reason,
            found,
            allowed: allowed.to_owned(),
        });
        None
    };
    if !is_permitted(entry, references, wanted) {
        let found = format!("{wanted}, in a namespace that does not permit it");
        let allowed = "the route's namespace, its parents', or one with a ReferenceGrant for it";
        return lost("RefNotPermitted", found, allowed);
    }
    let external = entry.draft.externals.contains(wanted);
    match references.find(wanted, external) {
        Err(found) => {
            let allowed = "a Service or ExternalService that exists";
            lost("BackendNotFound", found, allowed)
        }
        Ok(ports) if !ports.contains(&port) => {
            let found = format!("port {port}, which {wanted} does not have");
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            lost("BackendNotFound", found, &ports.join(", "))
        }
        Ok(_) => Some(wanted.clone()),
    }
}

/// Whether a route may name a service: in its own namespace, in a parent's, which its callers call
/// anyway, or where a ReferenceGrant says so.
fn is_permitted(entry: &RouteEntry, references: References<'_>, wanted: &ServiceName) -> bool {
    let namespace = wanted.namespace();
    let of_parent = |parent: &Parent| parent.service.namespace() == namespace;
    if namespace == entry.name.namespace || entry.draft.parents.iter().any(of_parent) {
        return true;
    }
    references.grants.iter().any(|(grant, spec)| {
        let from = spec.from.iter().any(|from| {
            from.group == GATEWAY_GROUP
                && from.kind == entry.kind.as_str()
                && from.namespace == entry.name.namespace
        });
        let to = spec.to.iter().any(|to| {
            let name = to.name.as_deref();
            let external = to.kind == "ExternalService";
            if external != entry.draft.externals.contains(wanted) {
                return false;
            }
            name.is_none_or(|name| name == wanted.name())
        });
        grant.namespace == namespace && from && to
    })
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
