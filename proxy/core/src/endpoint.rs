//! One instance that serves a service, as the control plane describes it.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::{SpiffeId, WorkloadName};

/// Where one port of a service is served by an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// The service's port.
    pub service_port: u16,
    /// Where a client's sidecar dials for it.
    pub address: SocketAddr,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A sidecar stands there: mutual TLS, never anything else.
    Mesh,
    /// Outside the mesh, where nobody has an identity: as the application speaks, or with the TLS that
    /// an [`External`](crate::external::External) service asks for.
    Plain,
}

/// Where an endpoint runs beside its zone, and whose callers are to go to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Its node; empty when unknown, or where nobody asks for it.
    pub node: String,
    /// Zones whose callers are to go to it; none where that is not said.
    pub zone_hints: Vec<String>,
}

/// One instance that serves a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The instance, unique in the mesh and over time.
    pub instance: Arc<str>,
    /// The workload it is an instance of.
    pub workload: WorkloadName,
    /// Who has to answer there; `None` outside the mesh only.
    pub identity: Option<SpiffeId>,
    /// Where it runs; empty when unknown.
    pub zone: String,
    /// Where it runs within a cluster, and whose callers are to go to it.
    #[serde(default)]
    pub placement: Placement,
    /// Its share in balancing, 1 to 1000; 100 is ordinary.
    pub weight: u32,
    /// How it is reached.
    pub transport: Transport,
    /// The service's ports that it serves.
    pub ports: Vec<EndpointPort>,
}

impl Endpoint {
    /// Where this endpoint serves the service's `port`, if it does.
    pub fn address_for(&self, port: u16) -> Option<SocketAddr> {
        let found = self.ports.iter().find(|p| p.service_port == port)?;
        Some(found.address)
    }
}
