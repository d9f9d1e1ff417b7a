//! The facts of the world: documents as they were read, and what each of them refers to.

use std::sync::Arc;

use weft_core::external::External;
use weft_core::model::ServicePort;
use weft_core::name::ServiceName;
use weft_core::policy::TrafficPolicy;
use weft_core::rate::RateLimit;

use crate::model::{
    Document, DocumentKind, ObjectName, RateLimitPolicySpec, Relations, RouteDraft, RouteKind,
    RouteSpec, TrafficPolicySpec,
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
    /// What it is for, and what it names.
    pub relations: Relations,
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
            relations: spec.relations(&name),
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
    pub relations: Relations,
    /// What it says.
    pub limits: Vec<Arc<RateLimit>>,
}

impl RateLimitEntry {
    /// Reads a policy.
    pub fn new(name: ObjectName, spec: &RateLimitPolicySpec) -> Self {
        Self {
            relations: spec.relations(&name),
            limits: spec.resolve(&name),
            name,
        }
    }
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
    /// What it is attached to, and what it names.
    pub relations: Relations,
}

impl RouteEntry {
    /// Reads a route.
    pub fn new(name: ObjectName, created: i64, generation: u64, spec: &RouteSpec) -> Self {
        let draft = spec.draft(&name);
        Self {
            kind: spec.kind(),
            relations: draft.relations(&name),
            draft: Arc::new(draft),
            name,
            created,
            generation,
        }
    }

    /// What it goes by.
    pub fn key(&self) -> RouteKey {
        (self.kind, self.name.clone())
    }
}

/// Whose callers reach an ExternalService by its hosts and own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExternalScope<'a> {
    /// Everybody's.
    Mesh,
    /// Those of one namespace, for whom it counts before one of the mesh.
    Namespace(&'a str),
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
