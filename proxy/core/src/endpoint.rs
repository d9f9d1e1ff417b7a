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
