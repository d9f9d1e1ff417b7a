//! What is shown of a resource beside what was asked for: its metadata, and how it stands in the
//! world.

use std::net::IpAddr;

use weft_core::name::ServiceName;

use super::types::{
    ConditionInfo, Metadata, ParentInfo, ParentRefInfo, ResourceInfo, ResourceStatus,
};
use crate::compile::{Compiled, Dangling, Snapshot};
use crate::model::{API_GROUP, Parent, ResourceKey, version_of};
use crate::store::StoredResource;

/// Who looks after routes (Gateway API, `controllerName`).
const CONTROLLER: &str = "weft-mesh.io/control-plane";
/// A resource, and how it stands in a world.
pub(super) fn resource_info(snapshot: &Snapshot, mut resource: StoredResource) -> ResourceInfo {
    ResourceInfo {
        api_version: version_of(&resource.key.kind).to_owned(),
        metadata: metadata_of(&resource),
        spec: resource.document["spec"].take(),
        status: ResourceStatus {
            parents: parents_of(snapshot, &resource.key),
            conditions: conditions_of(&snapshot.compiled, &resource.key),
            addresses: addresses_of(&snapshot.compiled, &resource.key),
            ..status_of(&resource)
        },
        kind: resource.key.kind,
    }
}

/// The name, labels and annotations of a document.
pub(super) fn metadata_of(resource: &StoredResource) -> Metadata {
    let pairs = |field: &str| {
        let pairs = resource.document["metadata"][field].as_object();
        let pairs = pairs.into_iter().flatten();
        pairs
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    };
    Metadata {
        name: resource.key.name.clone(),
        namespace: resource.key.namespace.clone(),
        labels: pairs("labels"),
        annotations: pairs("annotations"),
        resource_version: Some(resource.revision.to_string()),
    }
}

/// What is known about a document.
pub(super) fn status_of(resource: &StoredResource) -> ResourceStatus {
    ResourceStatus {
        revision: resource.revision,
        generation: resource.generation,
        created: resource.created,
        changed: resource.changed,
        author: resource.author.clone(),
        parents: Vec::new(),
        conditions: Vec::new(),
        addresses: Vec::new(),
    }
}

fn condition(kind: &str, good: &str, wrong: &[&Dangling], generation: u64) -> ConditionInfo {
    let said = wrong.iter().map(|dangling| dangling.to_string());
    ConditionInfo {
        kind: kind.to_owned(),
        status: if wrong.is_empty() { "True" } else { "False" }.to_owned(),
        reason: wrong.first().map_or(good, |first| first.reason).to_owned(),
        message: said.collect::<Vec<_>>().join("; "),
        observed_generation: generation,
    }
}

fn external_name(key: &ResourceKey) -> Option<ServiceName> {
    let name = ServiceName::new(&key.namespace, &key.name).ok();
    name.filter(|_| key.kind == "ExternalService")
}

/// Whether an ExternalService is in force.
fn conditions_of(compiled: &Compiled, key: &ResourceKey) -> Vec<ConditionInfo> {
    let status = external_name(key);
    let status = status.and_then(|name| compiled.external_status(&name));
    let conditions = status.iter().map(|status| {
        let refused: Vec<&Dangling> = status.refused.iter().collect();
        condition("Accepted", "Accepted", &refused, status.generation)
    });
    conditions.collect()
}

/// The virtual addresses of an ExternalService that is in force.
fn addresses_of(compiled: &Compiled, key: &ResourceKey) -> Vec<IpAddr> {
    let name = external_name(key);
    let found = name.and_then(|name| compiled.service_policy(&name.to_string()));
    let found = found.filter(|service| service.external.is_some());
    found
        .map(|service| service.addresses.clone())
        .unwrap_or_default()
}

/// How a route stands to what it is attached to.
fn parents_of(snapshot: &Snapshot, key: &ResourceKey) -> Vec<ParentInfo> {
    let Some(status) = snapshot.route_status(key) else {
        return Vec::new();
    };
    let parents = status.parents.iter().map(|parent| {
        let refused: Vec<&Dangling> = parent.refused.iter().collect();
        let unresolved: Vec<&Dangling> = status.unresolved.iter().collect();
        let Parent { service, port } = &parent.parent;
        let (group, kind) = match parent.external {
            true => (API_GROUP, "ExternalService"),
            false => ("", "Service"),
        };
        ParentInfo {
            parent_ref: ParentRefInfo {
                group: group.to_owned(),
                kind: kind.to_owned(),
                namespace: service.namespace().to_owned(),
                name: service.name().to_owned(),
                port: *port,
            },
            controller_name: CONTROLLER.to_owned(),
            conditions: vec![
                condition("Accepted", "Accepted", &refused, parent.generation),
                condition(
                    "ResolvedRefs",
                    "ResolvedRefs",
                    &unresolved,
                    parent.generation,
                ),
            ],
        }
    });
    parents.collect()
}
