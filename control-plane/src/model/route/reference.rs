//! References of routes: what they are attached to, and where requests go.

use gateway_api::experimental::httproutes::HttpRouteParentRefs;
use weft_core::name::{ServiceName, check_label};

use super::{GATEWAY_GROUP, Parent, limit, refuse};
use crate::model::check::Check;
use crate::model::kind::{API_GROUP, LABEL, SERVICE_KINDS};

/// What a route is attached to (Gateway API's own limit).
const PARENTS_MAX: usize = 32;

/// Reads what a route is attached to.
pub(super) fn read_parents(
    check: &mut Check<'_>,
    namespace: &str,
    refs: &[HttpRouteParentRefs],
) -> Vec<Parent> {
    if refs.is_empty() {
        let allowed = "at least one, as in {group: \"\", kind: Service, name: orders}";
        check.add("spec.parentRefs", "none", allowed);
    }
    limit(check, "spec.parentRefs", refs.len(), PARENTS_MAX);
    let mut parents: Vec<Parent> = Vec::new();
    for (index, parent) in refs.iter().take(PARENTS_MAX).enumerate() {
        let at = format!("spec.parentRefs[{index}]");
        // In a cluster a route may be attached to Gateways as well, which others look after.
        if check.stored && is_others(parent) {
            continue;
        }
        let section = parent.section_name.is_some();
        let allowed = "nothing: ports of a Service have numbers; use port";
        refuse(check, &format!("{at}.sectionName"), section, allowed);
        let group = parent.group.as_deref();
        let kind = parent.kind.as_deref();
        let (group, kind) = (group.unwrap_or(GATEWAY_GROUP), kind.unwrap_or("Gateway"));
        let Some(service) = read_service(
            check,
            &at,
            (group, kind),
            parent.namespace.as_deref().unwrap_or(namespace),
            &parent.name,
        ) else {
            continue;
        };
        let port = parent.port.map(|port| read_port(check, &at, port));
        let parent = Parent {
            service,
            port: port.flatten(),
        };
        if parents.contains(&parent) {
            check.add(at, "the same Service and port again", "each once");
        } else {
            parents.push(parent);
        }
    }
    parents
}

/// Whether what a route is attached to is nothing that is looked after here.
fn is_others(parent: &HttpRouteParentRefs) -> bool {
    let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
    !group.is_empty() && group != API_GROUP
}

/// A reference to a Service.
fn read_service(
    check: &mut Check<'_>,
    at: &str,
    (group, kind): (&str, &str),
    namespace: &str,
    name: &str,
) -> Option<ServiceName> {
    let ours = group.is_empty() || group == API_GROUP;
    let external = group == API_GROUP && kind == "ExternalService";
    if !external && (!ours || kind != "Service") {
        let found = format!("group {group:?}, kind {kind:?}");
        check.add(at, found, SERVICE_KINDS);
        return None;
    }
    for (field, text) in [("namespace", namespace), ("name", name)] {
        if check_label(text).is_err() {
            let path = format!("{at}.{field}");
            check.add(path, format!("{text:?}"), LABEL);
        }
    }
    let service = ServiceName::new(namespace, name).ok()?;
    if external {
        check.externals.insert(service.clone());
    }
    Some(service)
}

/// Reads a port, which is not 0.
pub(super) fn read_port(check: &mut Check<'_>, at: &str, port: i32) -> Option<u16> {
    let read = u16::try_from(port).ok().filter(|port| *port != 0);
    if read.is_none() {
        check.add(format!("{at}.port"), port, "1 to 65535");
    }
    read
}

/// A reference to where requests go.
pub(super) struct Target<'a> {
    pub(super) group: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    pub(super) namespace: Option<&'a str>,
    pub(super) name: &'a str,
    pub(super) port: Option<i32>,
}

/// Reads where requests go: a service and its port.
pub(super) fn read_target(
    check: &mut Check<'_>,
    at: &str,
    namespace: &str,
    target: &Target<'_>,
) -> Option<(ServiceName, u16)> {
    let kind = (
        target.group.unwrap_or_default(),
        target.kind.unwrap_or("Service"),
    );
    let namespace = target.namespace.unwrap_or(namespace);
    let service = read_service(check, at, kind, namespace, target.name);
    let Some(port) = target.port else {
        check.add(format!("{at}.port"), "nothing", "a port of the Service");
        return None;
    };
    let port = read_port(check, at, port);
    Some((service?, port?))
}
