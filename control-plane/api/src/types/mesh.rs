//! What there is: services, workloads, their sidecars, and their breakers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use weft_core::model::{AppProtocol, RegisteredPort, ServicePort};
use weft_core::name::{ServiceName, WorkloadName};

use super::resource::{ResourceInfo, ResourceStatus, Revision};

/// A connected sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyInfo {
    /// Its workload; its identity, while it has not registered.
    pub workload: String,
    /// Its instance.
    pub instance: String,
    /// Its identity.
    pub identity: String,
    /// Its version.
    pub version: String,
    /// Connected since, milliseconds.
    pub since: i64,
    /// How many resources it holds.
    pub holds: usize,
    /// It has acknowledged everything up to this revision.
    pub applied_revision: Revision,
    /// It has acknowledged everything that there is.
    pub current: bool,
    /// What it rejected, by name, with the reason.
    pub rejected: BTreeMap<String, String>,
    /// Whether the application's connections are redirected to it: `in-force` or `lapsed`; nothing
    /// where it does not prove that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interception: Option<String>,
    /// The control plane that it is connected to, where that is not the one that was asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub control_plane: String,
}

/// Every connected sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyList {
    /// The sidecars.
    pub items: Vec<ProxyInfo>,
    /// Other control planes that have not been heard: their sidecars may be missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// A breaker of a sidecar that has opened at least once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerInfo {
    /// The calling workload; its identity, while it has not registered.
    pub caller: String,
    /// Its instance.
    pub instance: String,
    /// The service that it calls, NAMESPACE/NAME.
    pub service: String,
    /// At which port.
    pub port: u16,
    /// The endpoint's workload; empty for the breaker of the whole port.
    pub workload: String,
    /// Where it is dialled; empty for the breaker of the whole port.
    pub address: String,
    /// The rule of a route that it is for, NAMESPACE/ROUTE/RULE; empty where it is for all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub route: String,
    /// closed, open or half-open.
    pub state: String,
    /// Since when, milliseconds since the Unix epoch.
    pub since: i64,
    /// Why it opened the last time.
    pub cause: String,
    /// While open: when the next probe may be made, milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_probe: Option<i64>,
}

/// A service as sidecars see it; without a document, `spec` is what its workloads declare.
pub type ServiceInfo = ResourceInfo<ServiceStatus>;

/// What is known about a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What programs call it.
    pub hostname: String,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports, with the protocols that are in force.
    pub ports: Vec<ServicePort>,
    /// Who serves it.
    pub endpoints: Vec<EndpointInfo>,
    /// Its document, where there is one.
    pub document: Option<ResourceStatus>,
}

/// An endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// The instance.
    pub instance: String,
    /// Its workload.
    pub workload: WorkloadName,
    /// Its identity.
    pub identity: String,
    /// Where it runs; empty when unknown.
    pub zone: String,
    /// Its share in balancing.
    pub weight: u32,
    /// Where callers' sidecars dial.
    pub addresses: Vec<SocketAddr>,
}

/// A registered workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadInfo {
    /// Its name, NAMESPACE/NAME.
    pub name: WorkloadName,
    /// The instance that runs.
    pub instance: String,
    /// Its identity.
    pub identity: String,
    /// Its sidecar is connected; otherwise its grace runs.
    pub connected: bool,
    /// Services that it serves.
    pub services: Vec<ServiceName>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<RegisteredPort>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Where it runs; empty when unknown.
    pub zone: String,
    /// Its sidecar's version.
    pub version: String,
    /// Where its sidecar serves metrics; empty when nowhere.
    pub metrics_target: String,
}

/// One entry of Prometheus' HTTP service discovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// HOST:PORT, one.
    pub targets: Vec<String>,
    /// Labels, `__metrics_path__` among them.
    pub labels: BTreeMap<String, String>,
}

/// A protocol as people read it: what is not declared shows as `detect`.
pub fn port_text(port: u16, protocol: AppProtocol) -> String {
    format!("{port}/{}", protocol.as_str())
}
