//! What has to be compiled anew after facts have changed.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::name::{ServiceName, WorkloadName};

use super::addresses::AddressRecord;
use super::facts::RouteKey;

/// What depends on facts that have changed. The compiler adds what follows from what it finds
/// changed in turn.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Services of which the existence or the ports may be different.
    pub shapes: BTreeSet<ServiceName>,
    /// Services of which anything else that callers are told may be different.
    pub services: BTreeSet<ServiceName>,
    /// Services whose own sidecars may have to enforce something else.
    pub servers: BTreeSet<ServiceName>,
    /// Endpoints that came, went or changed, by service: hashes of their instances.
    pub endpoints: BTreeMap<ServiceName, BTreeSet<u32>>,
    /// Services of which the endpoints in every slice may be different.
    pub recut: BTreeSet<ServiceName>,
    /// Routes of which the rules may be different.
    pub routes: BTreeSet<RouteKey>,
    /// Places where other routes may be attached: the routes' namespace and the service.
    pub groups: BTreeSet<(String, ServiceName)>,
    /// Namespaces whose callers may be told something else.
    pub namespaces: BTreeSet<String>,
    /// Workloads that are reached by their own addresses.
    pub workloads: BTreeSet<WorkloadName>,
    /// Whether other ExternalServices may be in force.
    pub externals: bool,
    /// Whether the mesh's settings may be different.
    pub config: bool,
    /// Whether others are to be believed.
    pub bundle: bool,
    /// Virtual addresses that are to be written down.
    pub addresses: Vec<AddressRecord>,
}
