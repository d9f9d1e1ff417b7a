//! What exists in the mesh: services, their endpoints, workloads, trust and mesh-wide settings.
//!
//! These are the domain types on both sides of the wire; `weft-proto` converts them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::breaker::StateView;
pub use crate::endpoint::{Endpoint, EndpointPort, Placement, Transport};
use crate::external::External;
use crate::locality::{Distribution, Locality};
use crate::name::{ServiceName, SpiffeId, TrustDomain, WorkloadName};
use crate::policy::TrafficPolicy;
use crate::route::Route;
pub use crate::slices::{EndpointSlice, slice_of, slices_for};

/// What is spoken on a port. The declared one beats detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// Not declared: read the first bytes and see.
    #[default]
    Detect,
    /// HTTP/1.x.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC, hence HTTP/2.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// The application's own TLS, carried opaquely.
    Tls,
}

impl AppProtocol {
    /// Every spelling that [`AppProtocol::parse`] takes, for error messages.
    pub const ALLOWED: &'static str = "http, http2, grpc, tcp, tls";

    /// Reads an `appProtocol` or `protocol` value; Kubernetes' standard names are understood too
    /// (KEP-3726: `kubernetes.io/h2c`, `kubernetes.io/ws`).
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "http" | "http1" | "kubernetes.io/ws" => Some(Self::Http),
            "http2" | "h2c" | "kubernetes.io/h2c" => Some(Self::Http2),
            "grpc" => Some(Self::Grpc),
            "tcp" => Some(Self::Tcp),
            "tls" | "https" => Some(Self::Tls),
            _ => None,
        }
    }

    /// Whether requests are declared to be spoken, in plain HTTP.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    /// Whether requests can be seen: declared, or found out from the first bytes.
    pub const fn may_be_http(self) -> bool {
        self.is_http() || matches!(self, Self::Detect)
    }

    /// The lower-case name, as users write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// The port on the service's virtual address, 1 to 65535.
    pub port: u16,
    /// What is spoken there.
    pub protocol: AppProtocol,
}

/// A service with everything a caller needs to reach it.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its virtual addresses: IPv4 and IPv6.
    pub addresses: Vec<IpAddr>,
    /// Its ports, ascending, each once.
    pub ports: Vec<ServicePort>,
    /// Who serves it, ordered by instance. On the wire they are apart, in [`EndpointSlice`]s: this is
    /// empty until they are put together with it.
    pub endpoints: Vec<Endpoint>,
    /// How many slices its endpoints are in; 0 where it has none in the mesh.
    pub endpoint_slices: u32,
    /// How callers treat its ports; those without a policy have the default.
    pub policies: BTreeMap<u16, Arc<TrafficPolicy>>,
    /// How far its callers go for an endpoint.
    pub distribution: Distribution,
    /// Where requests to it go, for callers whose own namespace does not say.
    pub routes: Vec<Arc<Route>>,
    /// What is particular to one outside the mesh, whose `endpoints` are found by each sidecar.
    pub external: Option<Arc<External>>,
}

impl Service {
    /// The declaration of `port`, if the service has it.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

impl Service {
    /// The service with the endpoints of these slices, ordered by instance.
    #[must_use]
    pub fn with_endpoints<'a>(&self, slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Self {
        let endpoints = slices.into_iter().flat_map(|slice| &slice.endpoints);
        let mut endpoints: Vec<Endpoint> = endpoints.cloned().collect();
        endpoints.sort_by(|a, b| a.instance.cmp(&b.instance));
        endpoints.dedup_by(|a, b| a.instance == b.instance);
        Self {
            endpoints,
            ..self.clone()
        }
    }
}

/// What holds for the callers of one namespace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Routes that its callers go by, in the place of the services' own.
    pub routes: BTreeMap<ServiceName, Vec<Arc<Route>>>,
    /// What happens to destinations outside the mesh, where that is not the mesh's choice.
    pub unknown_destinations: Option<UnknownDestinations>,
    /// Names outside the mesh, lower case, that lead its callers to services of their own namespace,
    /// also where the mesh has another service of such a name.
    pub external_hosts: BTreeMap<Arc<str>, ServiceName>,
    /// Addresses outside the mesh that do the same.
    pub external_addresses: BTreeMap<SocketAddr, ServiceName>,
}

/// A workload reached by its own address rather than through a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its name.
    pub name: WorkloadName,
    /// The instance that runs now.
    pub instance: Arc<str>,
    /// Who has to answer there.
    pub identity: SpiffeId,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The application's ports that some service leads to, or that were declared.
    pub ports: Vec<ServicePort>,
    /// How it is reached.
    pub transport: Transport,
    /// The services that it serves.
    pub services: Vec<ServiceName>,
    /// Where it runs.
    pub place: Locality,
}

/// One port that a workload announces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredPort {
    /// The application's port, and the service's unless the Service maps it.
    pub port: u16,
    /// What is spoken there.
    pub protocol: AppProtocol,
    /// Where clients' sidecars dial for it.
    pub advertised: SocketAddr,
    /// Whether the application accepts connections there.
    pub ready: bool,
}

/// What a sidecar announces of its workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The workload.
    pub workload: WorkloadName,
    /// The services that it serves.
    pub services: Vec<ServiceName>,
    /// Its own addresses, if others may dial them.
    pub addresses: Vec<IpAddr>,
    /// Its ports, each once.
    pub ports: Vec<RegisteredPort>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Where it runs; empty when unknown.
    pub zone: String,
    /// Its share in balancing, 1 to 1000; 100 is ordinary.
    pub weight: u32,
    /// Where the sidecar serves its metrics, `http://ADDRESS:PORT/metrics`; empty when nowhere.
    pub metrics_target: String,
    /// The sidecar's version.
    pub version: String,
}

/// A breaker of a sidecar that has opened at least once, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedBreaker {
    /// The service that is called.
    pub service: ServiceName,
    /// At which port.
    pub port: u16,
    /// The endpoint's workload and where it is dialled; `None` for a breaker of the port.
    pub endpoint: Option<(WorkloadName, SocketAddr)>,
    /// The rule of a route, `NAMESPACE/ROUTE/RULE`, whose requests it is for; `None` where it is
    /// for all.
    pub route: Option<String>,
    /// Its state.
    pub state: StateView,
    /// For how long it has been in it.
    pub since: Duration,
    /// Why it opened the last time.
    pub cause: String,
    /// While open: in how long the next probe may be made.
    pub next_probe: Option<Duration>,
}

/// Whom to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    /// The trust domain these roots speak for.
    pub trust_domain: TrustDomain,
    /// Root certificates, DER.
    pub roots: Vec<Vec<u8>>,
    /// Instances whose certificates are refused although they have not expired.
    pub revoked_instances: BTreeSet<String>,
}

/// What happens to a destination that the control plane has declared to be outside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownDestinations {
    /// It passes through untouched.
    #[default]
    Passthrough,
    /// It is refused.
    Refuse,
}

/// A range of addresses; as text `ADDRESS/PREFIX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// Any address in the range; bits past the prefix are ignored.
    pub address: IpAddr,
    /// Leading bits that count: 0 to 32 or 0 to 128.
    pub prefix: u8,
}

impl Cidr {
    /// Reads `ADDRESS/PREFIX`, or a single address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address.parse().ok()?, Some(prefix.parse::<u8>().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let max = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let prefix = prefix.unwrap_or(max);
        (prefix <= max).then_some(Self { address, prefix })
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(range), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
                u32::from(range) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(range), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                u128::from(range) & mask == u128::from(address) & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("found {text:?}; allowed: ADDRESS or ADDRESS/PREFIX");
        Self::parse(&text).ok_or_else(bad)
    }
}

impl From<Cidr> for String {
    fn from(range: Cidr) -> Self {
        range.to_string()
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What every sidecar has to know of the mesh as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// The trust domain of this mesh.
    pub trust_domain: TrustDomain,
    /// Ranges of the services' virtual addresses.
    pub virtual_ranges: Vec<Cidr>,
    /// Ranges of the workloads' own addresses: dialled directly, they are still mesh traffic.
    pub workload_ranges: Vec<Cidr>,
    /// What happens to everything else.
    pub unknown_destinations: UnknownDestinations,
    /// Names outside the mesh that services go by for everybody, ascending. Nothing is asked about any
    /// other but those of a [`Namespace`].
    pub external_hosts: Vec<Arc<str>>,
    /// Addresses outside the mesh that services go by for everybody, ascending.
    pub external_addresses: Vec<SocketAddr>,
}

impl MeshConfig {
    /// Whether a service goes by this name, lower case, outside the mesh.
    pub fn is_external_host(&self, name: &str) -> bool {
        let hosts = &self.external_hosts;
        hosts.binary_search_by(|host| (**host).cmp(name)).is_ok()
    }

    /// Whether a service goes by this address outside the mesh.
    pub fn is_external_address(&self, address: SocketAddr) -> bool {
        self.external_addresses.binary_search(&address).is_ok()
    }

    /// Whether `address` can only belong to a service.
    pub fn is_virtual(&self, address: IpAddr) -> bool {
        self.virtual_ranges.iter().any(|r| r.contains(address))
    }

    /// Whether `address` may belong to a workload.
    pub fn is_workload(&self, address: IpAddr) -> bool {
        self.workload_ranges.iter().any(|r| r.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidr_contains() {
        let cases = [
            ("240.240.0.0/16", "240.240.255.1", true),
            ("240.240.0.0/16", "240.241.0.0", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("fd00::/8", "fdff::1", true),
            ("::/0", "fe80::1", true),
            ("fd00::1/128", "fd00::2", false),
        ];
        for (range, address, expected) in cases {
            let cidr = Cidr::parse(range).unwrap();
            assert_eq!(
                cidr.contains(address.parse().unwrap()),
                expected,
                "{range} {address}"
            );
        }
        for bad in ["10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1", ""] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }
}
