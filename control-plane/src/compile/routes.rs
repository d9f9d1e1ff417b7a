//! Which route is attached to what, and whether what it refers to exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_core::name::ServiceName;
use weft_core::route::{Backend, Filter, Route, RouteName, Rule};

use super::references::{Dangling, References, ports_text};
use crate::model::{GATEWAY_GROUP, ObjectName, Parent, RouteKind};
use crate::world::facts::{RouteEntry, RouteKey};

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

/// The rules of a route, where every reference leads somewhere or says that it does not.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The rules.
    pub rules: Vec<Rule>,
    /// What of them leads nowhere.
    pub unresolved: Vec<Dangling>,
}

/// Routes of one namespace that are attached to one service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// The routes, the most specific kind first.
    pub routes: Vec<Arc<Route>>,
    /// References to the service, by route and number, that it does not take.
    pub refused: BTreeMap<(RouteKey, usize), Dangling>,
}

/// Attaches the routes of a namespace to a service. A route in the service's own namespace is for
/// every caller (a producer's), one in another namespace for the callers there (a consumer's).
pub(super) fn attach<'a>(
    service: &ServiceName,
    entries: impl Iterator<Item = &'a Arc<RouteEntry>>,
    references: References<'_>,
    rules: impl Fn(&RouteKey) -> Vec<Rule>,
) -> Group {
    let mut group = Group::default();
    let mut taken = Taken::default();
    let mut ordered: Vec<&Arc<RouteEntry>> = entries.collect();
    // The most specific kind first: the others get the ports that it leaves.
    ordered.sort_by_key(|entry| (std::cmp::Reverse(entry.kind), &entry.name));
    for entry in ordered {
        let mut ports: Option<Ports> = None;
        let parents = entry.draft.parents.iter().enumerate();
        for (index, parent) in parents.filter(|(_, parent)| parent.service == *service) {
            match accept(entry, parent, references, &taken) {
                Ok(accepted) => ports.get_or_insert_default().add(accepted),
                Err((reason, found)) => {
                    let dangling = Dangling {
                        path: format!("spec.parentRefs[{index}]"),
                        reason,
                        found,
                        allowed: "a port of a Service or ExternalService that exists and that no more specific route has"
                            .to_owned(),
                    };
                    group.refused.insert((entry.key(), index), dangling);
                }
            }
        }
        let Some(ports) = ports else {
            continue;
        };
        taken.note(entry.kind, &ports);
        group.routes.push(Arc::new(Route {
            name: RouteName {
                namespace: entry.name.namespace.as_str().into(),
                name: entry.name.name.as_str().into(),
            },
            ports: ports.listed(),
            about: entry.draft.about.clone(),
            created: entry.created.div_euclid(1000),
            rules: rules(&entry.key()),
        }));
    }
    group
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

/// Ports of the service that routes of each kind have.
#[derive(Debug, Default)]
struct Taken(BTreeMap<RouteKind, Ports>);

impl Taken {
    fn note(&mut self, kind: RouteKind, ports: &Ports) {
        let of_kind = self.0.entry(kind).or_default();
        of_kind.add((!ports.all).then(|| ports.some.clone()));
    }

    /// Whether a more specific kind has the port.
    fn has(&self, kind: RouteKind, port: u16) -> bool {
        let mut more_specific = self.0.iter().filter(|(other, _)| **other > kind);
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
    let shape = references.find(service, entry.draft.externals.contains(service));
    let shape = shape.map_err(|found| ("NoMatchingParent", found))?;
    let wanted: BTreeSet<u16> = match parent.port {
        Some(port) if !shape.ports.contains_key(&port) => {
            let found = format!("port {port}, which {service} does not have");
            return Err(("NoMatchingParent", found));
        }
        Some(port) => BTreeSet::from([port]),
        None => shape.ports.keys().copied().collect(),
    };
    let free: BTreeSet<u16> = wanted
        .iter()
        .copied()
        .filter(|port| !taken.has(entry.kind, *port))
        .collect();
    if free.is_empty() && !wanted.is_empty() {
        let found = format!("a more specific route at the same port of {service}");
        return Err(("Conflicted", found));
    }
    let whole = parent.port.is_none() && free == wanted;
    Ok((!whole).then_some(free))
}

/// A route's rules, where every reference leads somewhere or says that it does not.
pub(super) fn resolve(entry: &RouteEntry, references: References<'_>) -> Resolved {
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
            match references.world.fault(&name) {
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
    Resolved {
        rules,
        unresolved: dangling,
    }
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
        Ok(shape) if !shape.ports.contains_key(&port) => {
            let found = format!("port {port}, which {wanted} does not have");
            lost("BackendNotFound", found, &ports_text(shape))
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
    let mut grants = references.world.grants(namespace);
    grants.any(|spec| {
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
        from && to
    })
}
