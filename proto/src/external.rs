//! What is particular to services outside the mesh: wire to domain and back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_core::external::{EndpointHost, External, ExternalEndpoint, Origination, check_host};
use weft_core::name::ServiceName;

use crate::convert::{Rejection, name, parse, port};
use crate::mesh;

const HOST: &str = "a host name as in api.example.com";
const ENDPOINT: &str = "an address, or a host name as in api.example.com";

impl From<&External> for mesh::External {
    fn from(external: &External) -> Self {
        let tls = external.tls.iter().map(|(port, tls)| mesh::Origination {
            port: u32::from(*port),
            server_name: tls.server_name.to_string(),
            roots: tls.roots.clone(),
        });
        let endpoints = external.endpoints.iter().map(|e| mesh::ExternalEndpoint {
            host: e.host.to_string(),
            zone: e.zone.clone(),
            weight: e.weight,
            ports: e
                .ports
                .iter()
                .map(|(service_port, port)| mesh::ExternalPort {
                    service_port: u32::from(*service_port),
                    port: u32::from(*port),
                })
                .collect(),
        });
        Self {
            hosts: external.hosts.iter().map(ToString::to_string).collect(),
            tls: tls.collect(),
            endpoints: endpoints.collect(),
        }
    }
}

/// What is particular to a service outside the mesh, from the wire.
pub(crate) fn external(wire: Option<mesh::External>) -> Result<Option<Arc<External>>, Rejection> {
    let Some(wire) = wire else {
        return Ok(None);
    };
    let hosts = wire
        .hosts
        .into_iter()
        .map(|text| host("external.hosts", text));
    let tls = wire.tls.into_iter().map(|wire| {
        let origination = Origination {
            server_name: host("external.tls.server_name", wire.server_name)?,
            roots: wire.roots,
        };
        Ok((port("external.tls.port", wire.port)?, origination))
    });
    let endpoints = wire.endpoints.into_iter().map(endpoint);
    let external = External {
        hosts: hosts.collect::<Result<_, Rejection>>()?,
        tls: tls.collect::<Result<_, Rejection>>()?,
        endpoints: endpoints.collect::<Result<_, Rejection>>()?,
    };
    if external.hosts.is_empty() {
        return Err(Rejection::Value {
            field: "external.hosts",
            found: String::new(),
            allowed: "at least one",
        });
    }
    Ok(Some(Arc::new(external)))
}

fn endpoint(wire: mesh::ExternalEndpoint) -> Result<ExternalEndpoint, Rejection> {
    if !(1..=1000).contains(&wire.weight) {
        return Err(Rejection::Value {
            field: "external.endpoints.weight",
            found: wire.weight.to_string(),
            allowed: "a weight from 1 to 1000",
        });
    }
    let ports = wire.ports.iter().map(|wire| {
        let own = port("external.endpoints.ports.service_port", wire.service_port)?;
        Ok((own, port("external.endpoints.ports.port", wire.port)?))
    });
    let ports = ports.collect::<Result<_, Rejection>>()?;
    let host = EndpointHost::parse(&wire.host).ok_or_else(|| Rejection::Value {
        field: "external.endpoints.host",
        found: wire.host.clone(),
        allowed: ENDPOINT,
    })?;
    Ok(ExternalEndpoint {
        host,
        zone: wire.zone,
        weight: wire.weight,
        ports,
    })
}

fn host(field: &'static str, text: String) -> Result<Arc<str>, Rejection> {
    if check_host(&text) {
        return Ok(text.into());
    }
    Err(Rejection::Value {
        field,
        found: text,
        allowed: HOST,
    })
}

/// Names outside the mesh that services go by, ascending.
pub(crate) fn own_hosts(wire: Vec<String>) -> Result<Vec<Arc<str>>, Rejection> {
    let hosts = wire.into_iter().map(|text| host("external_hosts", text));
    let hosts = hosts.collect::<Result<BTreeSet<_>, _>>()?;
    Ok(hosts.into_iter().collect())
}

/// Addresses outside the mesh that services go by, ascending.
pub(crate) fn own_addresses(wire: &[String]) -> Result<Vec<SocketAddr>, Rejection> {
    let allowed = "an address ADDRESS:PORT";
    let addresses = wire
        .iter()
        .map(|text| parse("external_addresses", text, allowed));
    let addresses = addresses.collect::<Result<BTreeSet<SocketAddr>, _>>()?;
    Ok(addresses.into_iter().collect())
}

/// Names outside the mesh with the services that they lead to.
pub(crate) fn wire_hosts_of(hosts: &BTreeMap<Arc<str>, ServiceName>) -> Vec<mesh::ExternalName> {
    let all = hosts.iter().map(|(host, service)| mesh::ExternalName {
        host: host.to_string(),
        service: service.to_string(),
    });
    all.collect()
}

/// Names outside the mesh, from the wire.
pub(crate) fn hosts_of(
    wire: Vec<mesh::ExternalName>,
) -> Result<BTreeMap<Arc<str>, ServiceName>, Rejection> {
    let all = wire.into_iter().map(|wire| {
        let service = name("external_hosts.service", wire.service.parse())?;
        Ok((host("external_hosts.host", wire.host)?, service))
    });
    all.collect()
}

/// Addresses outside the mesh with the services that they lead to.
pub(crate) fn wire_addresses_of(
    addresses: &BTreeMap<SocketAddr, ServiceName>,
) -> Vec<mesh::ExternalAddress> {
    let all = addresses.iter();
    let all = all.map(|(address, service)| mesh::ExternalAddress {
        address: address.to_string(),
        service: service.to_string(),
    });
    all.collect()
}

/// Addresses outside the mesh, from the wire.
pub(crate) fn addresses_of(
    wire: Vec<mesh::ExternalAddress>,
) -> Result<BTreeMap<SocketAddr, ServiceName>, Rejection> {
    let all = wire.into_iter().map(|wire| {
        let service = name("external_addresses.service", wire.service.parse())?;
        let allowed = "an address ADDRESS:PORT";
        let address = parse("external_addresses.address", &wire.address, allowed)?;
        Ok((address, service))
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> mesh::External {
        mesh::External {
            hosts: vec!["api.example.com".to_owned()],
            tls: vec![mesh::Origination {
                port: 80,
                server_name: "api.example.com".to_owned(),
                roots: vec![vec![1, 2, 3]],
            }],
            endpoints: vec![
                mesh::ExternalEndpoint {
                    host: "203.0.113.5".to_owned(),
                    zone: "a".to_owned(),
                    weight: 50,
                    ports: vec![mesh::ExternalPort {
                        service_port: 80,
                        port: 443,
                    }],
                },
                mesh::ExternalEndpoint {
                    host: "api.example.com".to_owned(),
                    zone: String::new(),
                    weight: 100,
                    ports: Vec::new(),
                },
            ],
        }
    }

    #[test]
    fn there_and_back() {
        let domain = external(Some(wire())).unwrap().unwrap();
        assert_eq!(mesh::External::from(&*domain), wire());
    }

    #[test]
    fn what_is_not_allowed_is_rejected() {
        type Spoil = fn(&mut mesh::External);
        let cases: [(&str, Spoil); 8] = [
            ("external.hosts", |w| w.hosts.clear()),
            ("external.hosts", |w| w.hosts[0] = "a.b.mesh".to_owned()),
            ("external.tls.server_name", |w| w.tls[0].server_name.clear()),
            ("external.tls.port", |w| w.tls[0].port = 0),
            ("external.endpoints.host", |w| {
                w.endpoints[0].host = "A B".to_owned()
            }),
            ("external.endpoints.weight", |w| {
                w.endpoints[0].weight = 1001
            }),
            ("external.endpoints.ports.port", |w| {
                w.endpoints[0].ports[0].port = 65_536
            }),
            ("external.endpoints.ports.service_port", |w| {
                w.endpoints[0].ports[0].service_port = 0;
            }),
        ];
        for (field, spoil) in cases {
            let mut wire = wire();
            spoil(&mut wire);
            let rejected = external(Some(wire)).unwrap_err().to_string();
            assert!(rejected.starts_with(field), "{field}: {rejected}");
        }
        assert!(own_hosts(vec!["x".to_owned()]).is_err());
        assert!(own_addresses(&["1.2.3.4".to_owned()]).is_err());
    }
}
