//! The facts of the world: documents as they were read, and what each of them refers to.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_core::external::External;
use weft_core::model::ServicePort;
use weft_core::name::ServiceName;
use weft_core::policy::TrafficPolicy;
use weft_core::rate::RateLimit;
use weft_core::route::Filter;

use crate::model::{
    Document, ObjectName, RateLimitPolicySpec, RouteDraft, RouteKind, TargetRef, TrafficPolicySpec,
};

/// What a route goes by.
pub type RouteKey = (RouteKind, ObjectName);

/// A document with what the store knows of it.
#[derive(Debug, Clone)]
pub struct Stated {
    /// When it was made, milliseconds since the Unix epoch.
    pub created: i64,
    /// Counts its changes.
    pub generation: u64,
    /// What it says.
    pub document: Document,
}

/// A TrafficPolicy, read once: patterns are not compiled again when something else changes.
#[derive(Debug, Clone)]
pub struct PolicyEntry {
    /// Its name.
    pub name: ObjectName,
    /// When it was made: of two for the same port the older one is in force.
    pub created: i64,
    /// What it is for.
    pub target: TargetRef,
    /// What it says, as written.
    pub spec: Arc<TrafficPolicySpec>,
    /// The same, as sidecars are told.
    pub policy: Arc<TrafficPolicy>,
}

impl PolicyEntry {
    /// Reads a policy.
    pub fn new(name: ObjectName, created: i64, spec: TrafficPolicySpec) -> Self {
        Self {
            created,
            target: spec.target_ref.clone(),
            policy: Arc::new(spec.resolve(&name.namespace)),
            spec: Arc::new(spec),
            name,
        }
    }
}

/// A RateLimitPolicy, read.
#[derive(Debug, Clone)]
pub struct RateLimitEntry {
    /// Its name.
    pub name: ObjectName,
    /// What it is for.
    pub target: TargetRef,
    /// What it says.
    pub limits: Vec<Arc<RateLimit>>,
}

impl RateLimitEntry {
    /// Reads a policy.
    pub fn new(name: ObjectName, spec: &RateLimitPolicySpec) -> Self {
        Self {
            target: spec.target_ref.clone(),
            limits: spec.resolve(&name),
            name,
        }
    }
}

/// The service of a policy's own namespace that it is for.
pub fn target_service(name: &ObjectName, target: &TargetRef) -> Option<ServiceName> {
    ServiceName::new(&name.namespace, &target.name).ok()
}

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

impl RouteEntry {
    /// What it goes by.
    pub fn key(&self) -> RouteKey {
        (self.kind, self.name.clone())
    }

    /// Services that it is attached to.
    pub fn parents(&self) -> BTreeSet<&ServiceName> {
        let parents = self.draft.parents.iter();
        parents.map(|parent| &parent.service).collect()
    }

    /// Services that it sends requests to, or copies of them.
    pub fn targets(&self) -> BTreeSet<&ServiceName> {
        let mut targets = BTreeSet::new();
        for rule in self.draft.rules.iter().map(|draft| &draft.rule) {
            targets.extend(rule.filters.iter().filter_map(mirrored));
            for backend in &rule.backends {
                targets.extend(&backend.service);
                targets.extend(backend.filters.iter().filter_map(mirrored));
            }
        }
        targets
    }

    /// FaultInjections that it names.
    pub fn faults(&self) -> BTreeSet<ObjectName> {
        let names = self.draft.rules.iter().flat_map(|rule| &rule.faults);
        let named = names.map(|name| ObjectName {
            namespace: self.name.namespace.clone(),
            name: name.clone(),
        });
        named.collect()
    }
}

fn mirrored(filter: &Filter) -> Option<&ServiceName> {
    if let Filter::Mirror(mirror) = filter {
        Some(&mirror.backend)
    } else {
        None
    }
}

/// An ExternalService that was asked for.
#[derive(Debug, Clone)]
pub struct ExternalEntry {
    /// Its name.
    pub name: ServiceName,
    /// When it was made, milliseconds since the Unix epoch.
    pub created: i64,
    /// Counts its changes.
    pub generation: u64,
    /// Its ports, ascending.
    pub ports: Vec<ServicePort>,
    /// What is particular to it.
    pub external: Arc<External>,
}
