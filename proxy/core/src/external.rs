//! Destinations outside the mesh that programs reach by their ordinary names.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::endpoint::{Endpoint, EndpointPort, Transport};
use crate::name::{CLUSTER_DOMAIN, MESH_SUFFIX, ServiceName, WorkloadName, check_label};

/// Longest host name, bytes (RFC 1035 section 2.3.4).
const HOST_MAX_BYTES: usize = 253;
/// Addresses of one name that are used; the others of a longer answer are left.
pub const ADDRESSES_MAX: usize = 64;

/// What is particular to a service outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The names that programs call it by, lower case, at least one.
    pub hosts: Vec<Arc<str>>,
    /// Ports whose connections get TLS on the way out, ascending.
    pub tls: Vec<(u16, Origination)>,
    /// Who serves it.
    pub endpoints: Vec<ExternalEndpoint>,
}

/// TLS that the sidecar makes, in the place of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origination {
    /// Sent as SNI, and what the server's certificate has to name.
    pub server_name: Arc<str>,
    /// Roots that are believed, DER; none stands for those of the sidecar's system.
    pub roots: Vec<Vec<u8>>,
}

/// One server, or one name of servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalEndpoint {
    /// Where it is.
    pub host: EndpointHost,
    /// Where it runs; empty when unknown.
    pub zone: String,
    /// Its share in balancing, 1 to 1000; 100 is ordinary. A name's is that of each address.
    pub weight: u32,
    /// The service's ports with those that are dialled, ascending.
    pub ports: Vec<(u16, u16)>,
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointHost {
    /// At an address.
    Address(IpAddr),
    /// At the addresses that the sidecar finds for a name.
    Name(Arc<str>),
}

impl EndpointHost {
    /// Reads an address, or a name as [`check_host`] has it.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        check_host(text).then(|| Self::Name(text.into()))
    }
}

impl std::fmt::Display for EndpointHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Whether `text` is a host name outside the mesh: at least two labels (RFC 1123 section 2.1), lower
/// case, no address, nothing below `.mesh`, and no name of a cluster's DNS, which would take a service's
/// callers away from it.
pub fn check_host(text: &str) -> bool {
    let labels: Vec<&str> = text.split('.').collect();
    let last = labels.last().copied().unwrap_or_default();
    text.len() <= HOST_MAX_BYTES
        && labels.len() >= 2
        && labels.iter().all(|label| check_label(label).is_ok())
        // Whose last label is a number is an address (WHATWG URL section 3.5).
        && !last.bytes().all(|byte| byte.is_ascii_digit())
        && last != MESH_SUFFIX
        && last != "svc"
        && text != CLUSTER_DOMAIN
        && !text.ends_with(".cluster.local")
}

/// Whether a sidecar may dial an address outside the mesh: not one that means the sidecar's own
/// machine, where its administration and other programs trust whoever comes from there.
pub fn is_dialable(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

impl External {
    /// What makes TLS of a port's connections, if anything does.
    pub fn origination(&self, port: u16) -> Option<&Origination> {
        let found = self.tls.iter().find(|(of, _)| *of == port)?;
        Some(&found.1)
    }

    /// The names that have to be resolved.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.endpoints.iter().filter_map(|e| match &e.host {
            EndpointHost::Name(name) => Some(name),
            EndpointHost::Address(_) => None,
        })
    }

    /// The endpoints, where names have these addresses: one for each address, ordered by instance.
    /// Where several give the same address and ports, the first counts.
    pub fn endpoints<'a>(
        &self,
        service: &ServiceName,
        addresses: impl Fn(&str) -> &'a [IpAddr],
    ) -> Vec<Endpoint> {
        // A Service's name is a Workload's too: both are labels.
        let Ok(workload) = WorkloadName::new(service.namespace(), service.name()) else {
            return Vec::new();
        };
        let mut seen = BTreeSet::new();
        let mut endpoints = Vec::new();
        for endpoint in &self.endpoints {
            let found = match &endpoint.host {
                EndpointHost::Address(address) => std::slice::from_ref(address),
                EndpointHost::Name(name) => addresses(name),
            };
            let found = found.iter().filter(|address| is_dialable(**address));
            for address in found.take(ADDRESSES_MAX) {
                let instance = match endpoint.ports.as_slice() {
                    [(_, target)] => SocketAddr::new(*address, *target).to_string(),
                    _ => address.to_string(),
                };
                if !seen.insert(instance.clone()) {
                    continue;
                }
                let ports = endpoint.ports.iter().map(|(port, target)| EndpointPort {
                    service_port: *port,
                    address: SocketAddr::new(*address, *target),
                });
                endpoints.push(Endpoint {
                    instance: instance.into(),
                    workload: workload.clone(),
                    identity: None,
                    zone: endpoint.zone.clone(),
                    placement: Default::default(),
                    weight: endpoint.weight,
                    transport: Transport::Plain,
                    ports: ports.collect(),
                });
            }
        }
        endpoints.sort_by(|a, b| a.instance.cmp(&b.instance));
        endpoints
    }

    /// Addresses that stand for a port when they are dialled themselves: those of endpoints with an
    /// address, where nothing is changed on the way out. A program that dials such an address where
    /// TLS is made for it speaks TLS itself.
    pub fn own_addresses(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        self.endpoints.iter().flat_map(move |endpoint| {
            let address = match &endpoint.host {
                EndpointHost::Address(address) => Some(*address),
                EndpointHost::Name(_) => None,
            };
            let plain = endpoint.ports.iter();
            let plain = plain.filter(move |(port, _)| self.origination(*port).is_none());
            plain
                .filter_map(move |(port, target)| Some((SocketAddr::new(address?, *target), *port)))
        })
    }

    /// The port that an address of [`External::own_addresses`] stands for.
    pub fn port_at(&self, address: SocketAddr) -> Option<u16> {
        let found = self.own_addresses().find(|(own, _)| *own == address)?;
        Some(found.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: &str, ports: &[(u16, u16)]) -> ExternalEndpoint {
        ExternalEndpoint {
            host: EndpointHost::parse(host).unwrap(),
            zone: String::new(),
            weight: 100,
            ports: ports.to_vec(),
        }
    }

    fn external(endpoints: Vec<ExternalEndpoint>) -> External {
        let origination = Origination {
            server_name: "api.example.com".into(),
            roots: Vec::new(),
        };
        External {
            hosts: vec!["api.example.com".into()],
            tls: vec![(443, origination)],
            endpoints,
        }
    }

    #[test]
    fn hosts() {
        for good in [
            "api.example.com",
            "a.b",
            "1.example",
            "xn--bcher-kva.example",
        ] {
            assert!(check_host(good), "{good}");
        }
        let long = format!("{}.example", ["a"; 130].join("."));
        for bad in [
            "",
            "localhost",
            "a.b.mesh",
            "db-0.db.shop.svc.cluster.local",
            "web.shop.svc",
            "cluster.local",
            "Api.example.com",
            "10.0.0.1",
            "a.1",
            "::1",
            "*.example.com",
            "a..b",
            ".a.b",
            "a.b.",
            "a b.c",
            &long,
        ] {
            assert!(!check_host(bad), "{bad}");
        }
    }

    #[test]
    fn an_endpoint_for_each_address() {
        let service = "shop/api".parse().unwrap();
        let found: Vec<IpAddr> = ["10.0.0.2", "10.0.0.1"].map(|a| a.parse().unwrap()).into();
        let external = external(vec![
            endpoint("api.example.com", &[(80, 8080)]),
            endpoint("10.0.0.1", &[(80, 8080)]),
            endpoint("10.0.0.1", &[(80, 9090)]),
            endpoint("gone.example.com", &[(80, 8080)]),
        ]);
        let endpoints = external.endpoints(&service, |name| match name {
            "api.example.com" => &found,
            _ => &[],
        });
        let dialled = endpoints
            .iter()
            .map(|e| e.address_for(80).unwrap().to_string());
        let dialled: Vec<String> = dialled.collect();
        assert_eq!(dialled, ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:8080"]);
        let instances: BTreeSet<&str> = endpoints.iter().map(|e| &*e.instance).collect();
        assert_eq!(instances.len(), 3);
        let names: Vec<&str> = external.names().map(|name| &**name).collect();
        assert_eq!(names, ["api.example.com", "gone.example.com"]);
    }

    #[test]
    fn a_name_does_not_lead_back_to_the_sidecar() {
        let service = "shop/api".parse().unwrap();
        let found = [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "10.0.0.1",
        ];
        let found = found.map(|address| address.parse().unwrap());
        let external = external(vec![endpoint("api.example.com", &[(80, 15000)])]);
        let endpoints = external.endpoints(&service, |_| &found);
        let dialled: Vec<_> = endpoints
            .iter()
            .map(|e| e.address_for(80).unwrap())
            .collect();
        assert_eq!(dialled, ["10.0.0.1:15000".parse().unwrap()]);
    }

    #[test]
    fn an_answer_without_end_is_cut() {
        let service = "shop/api".parse().unwrap();
        let found: Vec<IpAddr> = (0..=255u8).map(|n| [10, 0, 0, n].into()).collect();
        let external = external(vec![endpoint("api.example.com", &[(80, 80)])]);
        assert_eq!(
            external.endpoints(&service, |_| &found).len(),
            ADDRESSES_MAX
        );
    }

    #[test]
    fn addresses_that_are_dialled_themselves() {
        let external = external(vec![
            endpoint("203.0.113.5", &[(80, 8080), (443, 8443)]),
            endpoint("fd00::5", &[(80, 8080), (443, 8443)]),
            endpoint("api.example.com", &[(80, 8080), (443, 8443)]),
        ]);
        let cases = [
            ("203.0.113.5:8080", Some(80)),
            ("[fd00::5]:8080", Some(80)),
            ("203.0.113.5:8443", None),
            ("203.0.113.5:80", None),
            ("203.0.113.6:8080", None),
        ];
        for (address, expected) in cases {
            assert_eq!(
                external.port_at(address.parse().unwrap()),
                expected,
                "{address}"
            );
        }
    }
}
