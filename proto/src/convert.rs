//! Wire to domain and back. Everything is checked here, once, whole or not at all.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::locality::Locality;
use weft_core::model::{
    AppProtocol, Cidr, MeshConfig, Service, ServicePort, Transport, TrustBundle,
    UnknownDestinations, Workload,
};
use weft_core::name::{NameError, ServiceName, WorkloadName};

use weft_core::invalid::PolicyError;
use weft_core::policy::TrafficPolicy;
use weft_core::registration::Exceeded;

use crate::endpoints::{distribution, endpoint_slices, wire_distribution};
use crate::external::{external, own_addresses, own_hosts};
use crate::mesh;
use crate::route::routes;

/// Why a resource from the wire is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// Its type is not one of ours.
    #[error("unknown resource type {type_url:?}")]
    UnknownType {
        /// What was given.
        type_url: String,
    },
    /// Its bytes are not a message of its type.
    #[error("not decodable: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A name in it is not one.
    #[error("{field}: {source}")]
    Name {
        /// The path of the field.
        field: &'static str,
        /// What is wrong with it.
        source: NameError,
    },
    /// A value in it is not allowed.
    #[error("{field}: {found:?} is not {allowed}")]
    Value {
        /// The path of the field.
        field: &'static str,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// It has more of something than is allowed.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// A route in it is not one.
    #[error("routes: {field}: {reason}")]
    Route {
        /// The path of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// What a rule of a route says is not allowed.
    #[error("routes.rules.{0}")]
    Rule(PolicyError),
    /// A policy in it is not allowed.
    #[error("policies.policy.{0}")]
    Policy(#[from] PolicyError),
    /// A limit in it is not allowed.
    #[error("rate_limits.{0}")]
    RateLimit(PolicyError),
    /// What is shed is said in a way that is not allowed.
    #[error("adaptive_concurrency.{0}")]
    Shedding(PolicyError),
}

/// Of a text that is refused, so many characters are shown.
const FOUND_MAX: usize = 80;

const PORT: &str = "a port from 1 to 65535";

pub(crate) fn name<T>(field: &'static str, parsed: Result<T, NameError>) -> Result<T, Rejection> {
    parsed.map_err(|source| Rejection::Name { field, source })
}

pub(crate) fn parse<T: std::str::FromStr>(
    field: &'static str,
    text: &str,
    allowed: &'static str,
) -> Result<T, Rejection> {
    text.parse().map_err(|_ignored| Rejection::Value {
        field,
        found: text.chars().take(FOUND_MAX).collect(),
        allowed,
    })
}

/// A port from the wire: 1 to 65535.
pub(crate) fn port(field: &'static str, wire: u32) -> Result<u16, Rejection> {
    u16::try_from(wire)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Rejection::Value {
            field,
            found: wire.to_string(),
            allowed: PORT,
        })
}

fn cidrs(field: &'static str, wire: &[String]) -> Result<Vec<Cidr>, Rejection> {
    wire.iter()
        .map(|text| {
            Cidr::parse(text).ok_or_else(|| Rejection::Value {
                field,
                found: text.clone(),
                allowed: "a range ADDRESS/PREFIX",
            })
        })
        .collect()
}

pub(crate) fn addresses(field: &'static str, wire: &[String]) -> Result<Vec<IpAddr>, Rejection> {
    wire.iter()
        .map(|text| parse(field, text, "an IP address"))
        .collect()
}

/// A protocol from the wire.
pub(crate) fn protocol(field: &'static str, wire: i32) -> Result<AppProtocol, Rejection> {
    let wire = mesh::Protocol::try_from(wire).map_err(|_ignored| Rejection::Value {
        field,
        found: wire.to_string(),
        allowed: "a known Protocol",
    })?;
    Ok(wire.into())
}

impl From<mesh::Protocol> for AppProtocol {
    fn from(wire: mesh::Protocol) -> Self {
        match wire {
            mesh::Protocol::Unspecified => Self::Detect,
            mesh::Protocol::Http => Self::Http,
            mesh::Protocol::Http2 => Self::Http2,
            mesh::Protocol::Grpc => Self::Grpc,
            mesh::Protocol::Tcp => Self::Tcp,
            mesh::Protocol::Tls => Self::Tls,
        }
    }
}

impl From<AppProtocol> for mesh::Protocol {
    fn from(protocol: AppProtocol) -> Self {
        match protocol {
            AppProtocol::Detect => Self::Unspecified,
            AppProtocol::Http => Self::Http,
            AppProtocol::Http2 => Self::Http2,
            AppProtocol::Grpc => Self::Grpc,
            AppProtocol::Tcp => Self::Tcp,
            AppProtocol::Tls => Self::Tls,
        }
    }
}

impl From<&ServicePort> for mesh::ServicePort {
    fn from(port: &ServicePort) -> Self {
        Self {
            port: port.port.into(),
            protocol: mesh::Protocol::from(port.protocol).into(),
        }
    }
}

impl TryFrom<mesh::ServicePort> for ServicePort {
    type Error = Rejection;

    fn try_from(wire: mesh::ServicePort) -> Result<Self, Rejection> {
        Ok(Self {
            port: port("ports.port", wire.port)?,
            protocol: protocol("ports.protocol", wire.protocol)?,
        })
    }
}

/// How an endpoint or workload is reached, from the wire.
pub(crate) fn transport(field: &'static str, wire: i32) -> Result<Transport, Rejection> {
    match mesh::Transport::try_from(wire) {
        Ok(mesh::Transport::Mesh) => Ok(Transport::Mesh),
        Ok(mesh::Transport::Plain) => Ok(Transport::Plain),
        // Unset is refused: taking it for plaintext would be the worst of guesses.
        Ok(mesh::Transport::Unspecified) | Err(_) => Err(Rejection::Value {
            field,
            found: wire.to_string(),
            allowed: "TRANSPORT_MESH or TRANSPORT_PLAIN",
        }),
    }
}

/// How an endpoint or workload is reached.
pub(crate) fn wire_transport(transport: Transport) -> i32 {
    match transport {
        Transport::Mesh => mesh::Transport::Mesh,
        Transport::Plain => mesh::Transport::Plain,
    }
    .into()
}

impl From<&Service> for mesh::Service {
    fn from(service: &Service) -> Self {
        Self {
            namespace: service.name.namespace().to_owned(),
            name: service.name.name().to_owned(),
            addresses: service.addresses.iter().map(ToString::to_string).collect(),
            ports: service.ports.iter().map(Into::into).collect(),
            endpoint_slices: service.endpoint_slices,
            distribution: wire_distribution(service.distribution),
            policies: service
                .policies
                .iter()
                .map(|(port, policy)| mesh::PortPolicy {
                    port: u32::from(*port),
                    policy: Some((&**policy).into()),
                })
                .collect(),
            routes: service
                .routes
                .iter()
                .map(|route| (&**route).into())
                .collect(),
            external: service.external.as_deref().map(Into::into),
            requires: Vec::new(),
        }
    }
}

impl TryFrom<mesh::Service> for Service {
    type Error = Rejection;

    fn try_from(wire: mesh::Service) -> Result<Self, Rejection> {
        known(wire.requires)?;
        let ports = wire.ports.into_iter().map(ServicePort::try_from);
        let policies = wire.policies.into_iter().map(|wire| {
            let policy = TrafficPolicy::try_from(wire.policy.unwrap_or_default())?;
            Ok((port("policies.port", wire.port)?, Arc::new(policy)))
        });
        Ok(Self {
            policies: policies.collect::<Result<_, Rejection>>()?,
            routes: routes(wire.routes)?,
            name: name("name", ServiceName::new(&wire.namespace, &wire.name))?,
            addresses: addresses("addresses", &wire.addresses)?,
            ports: ports.collect::<Result<_, _>>()?,
            endpoints: Vec::new(),
            endpoint_slices: endpoint_slices(wire.endpoint_slices, wire.external.is_some())?,
            distribution: distribution(wire.distribution)?,
            external: external(wire.external)?,
        })
    }
}

impl From<&Workload> for mesh::Workload {
    fn from(workload: &Workload) -> Self {
        Self {
            namespace: workload.name.namespace().to_owned(),
            name: workload.name.name().to_owned(),
            instance: workload.instance.to_string(),
            identity: workload.identity.to_string(),
            addresses: workload.addresses.iter().map(ToString::to_string).collect(),
            ports: workload.ports.iter().map(Into::into).collect(),
            transport: wire_transport(workload.transport),
            services: workload.services.iter().map(ToString::to_string).collect(),
            node: workload.place.node.clone(),
            zone: workload.place.zone.clone(),
            requires: Vec::new(),
        }
    }
}

impl TryFrom<mesh::Workload> for Workload {
    type Error = Rejection;

    fn try_from(wire: mesh::Workload) -> Result<Self, Rejection> {
        known(wire.requires)?;
        let ports = wire.ports.into_iter().map(ServicePort::try_from);
        let services = wire.services.iter();
        let services = services.map(|service| name("services", service.parse()));
        Ok(Self {
            services: services.collect::<Result<_, _>>()?,
            name: name("name", WorkloadName::new(&wire.namespace, &wire.name))?,
            instance: wire.instance.into(),
            identity: name("identity", wire.identity.parse())?,
            addresses: addresses("addresses", &wire.addresses)?,
            ports: ports.collect::<Result<_, _>>()?,
            transport: transport("transport", wire.transport)?,
            place: Locality {
                node: wire.node,
                zone: wire.zone,
            },
        })
    }
}

impl From<&TrustBundle> for mesh::TrustBundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain.to_string(),
            roots: bundle.roots.clone(),
            revoked_instances: bundle.revoked_instances.iter().cloned().collect(),
            requires: Vec::new(),
        }
    }
}

impl TryFrom<mesh::TrustBundle> for TrustBundle {
    type Error = Rejection;

    fn try_from(wire: mesh::TrustBundle) -> Result<Self, Rejection> {
        known(wire.requires)?;
        if wire.roots.is_empty() {
            return Err(Rejection::Value {
                field: "roots",
                found: String::new(),
                allowed: "at least one root certificate: an empty bundle would cut every connection",
            });
        }
        Ok(Self {
            trust_domain: name("trust_domain", wire.trust_domain.parse())?,
            roots: wire.roots,
            revoked_instances: wire.revoked_instances.into_iter().collect(),
        })
    }
}

const UNKNOWN: &str = "PASSTHROUGH or REFUSE";

/// A choice for unknown destinations, or none.
pub(crate) fn wire_unknown(choice: Option<UnknownDestinations>) -> i32 {
    match choice {
        None => mesh::UnknownDestinations::Unspecified,
        Some(UnknownDestinations::Passthrough) => mesh::UnknownDestinations::Passthrough,
        Some(UnknownDestinations::Refuse) => mesh::UnknownDestinations::Refuse,
    }
    .into()
}

/// A choice for unknown destinations from the wire, or none.
pub(crate) fn unknown(wire: i32) -> Result<Option<UnknownDestinations>, Rejection> {
    match mesh::UnknownDestinations::try_from(wire) {
        Ok(mesh::UnknownDestinations::Unspecified) => Ok(None),
        Ok(mesh::UnknownDestinations::Passthrough) => Ok(Some(UnknownDestinations::Passthrough)),
        Ok(mesh::UnknownDestinations::Refuse) => Ok(Some(UnknownDestinations::Refuse)),
        Err(_) => Err(Rejection::Value {
            field: "unknown_destinations",
            found: wire.to_string(),
            allowed: UNKNOWN,
        }),
    }
}

/// Rejects what has a protection that this version cannot give. There is none yet that the first
/// version did not have, so every name is unknown.
pub(crate) fn known(requires: Vec<String>) -> Result<(), Rejection> {
    match requires.into_iter().next() {
        None => Ok(()),
        Some(found) => Err(Rejection::Value {
            field: "requires",
            found,
            allowed: "known to this version of the sidecar: upgrade it",
        }),
    }
}

impl From<&MeshConfig> for mesh::MeshConfig {
    fn from(config: &MeshConfig) -> Self {
        let text = |ranges: &[Cidr]| ranges.iter().map(ToString::to_string).collect();
        let text_of = |own: &[SocketAddr]| own.iter().map(ToString::to_string).collect();
        Self {
            trust_domain: config.trust_domain.to_string(),
            virtual_ranges: text(&config.virtual_ranges),
            workload_ranges: text(&config.workload_ranges),
            unknown_destinations: wire_unknown(Some(config.unknown_destinations)),
            external_hosts: config
                .external_hosts
                .iter()
                .map(ToString::to_string)
                .collect(),
            external_addresses: text_of(&config.external_addresses),
            requires: Vec::new(),
        }
    }
}

impl TryFrom<mesh::MeshConfig> for MeshConfig {
    type Error = Rejection;

    fn try_from(wire: mesh::MeshConfig) -> Result<Self, Rejection> {
        known(wire.requires)?;
        let unknown = unknown(wire.unknown_destinations)?;
        let unknown_destinations = unknown.ok_or_else(|| Rejection::Value {
            field: "unknown_destinations",
            found: wire.unknown_destinations.to_string(),
            allowed: UNKNOWN,
        })?;
        Ok(Self {
            trust_domain: name("trust_domain", wire.trust_domain.parse())?,
            virtual_ranges: cidrs("virtual_ranges", &wire.virtual_ranges)?,
            workload_ranges: cidrs("workload_ranges", &wire.workload_ranges)?,
            unknown_destinations,
            external_hosts: own_hosts(wire.external_hosts)?,
            external_addresses: own_addresses(&wire.external_addresses)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::resource::Resource;
    use std::sync::Arc;
    use weft_core::locality::{Distribution, Locality};
    use weft_core::model::{AppProtocol, Service, ServicePort, Transport, TrustBundle, Workload};

    fn service() -> Service {
        Service {
            name: "shop/web".parse().unwrap(),
            addresses: vec!["240.240.0.1".parse().unwrap(), "fd77::1".parse().unwrap()],
            ports: vec![ServicePort {
                port: 80,
                protocol: AppProtocol::Http,
            }],
            endpoints: Vec::new(),
            endpoint_slices: 4,
            distribution: Distribution::PreferNode,
            policies: [(80, Arc::default())].into(),
            routes: Vec::new(),
            external: None,
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let resource = Resource::Service(service());
        assert_eq!(Resource::decode(&resource.encode()).unwrap(), resource);
        assert_eq!(
            resource.aliases(),
            ["web.shop.mesh", "240.240.0.1", "fd77::1"]
        );
        let resource = Resource::Workload(Workload {
            name: "shop/web-0".parse().unwrap(),
            instance: "pod-1".into(),
            identity: "spiffe://weft.local/ns/shop/sa/web".parse().unwrap(),
            addresses: vec!["10.1.1.1".parse().unwrap()],
            ports: service().ports,
            transport: Transport::Mesh,
            place: Locality {
                node: "n1".to_owned(),
                zone: "a".to_owned(),
            },
            services: vec!["shop/web".parse().unwrap(), "shop/all".parse().unwrap()],
        });
        assert_eq!(Resource::decode(&resource.encode()).unwrap(), resource);
    }

    #[test]
    fn rejected_with_the_field() {
        let mut wire = crate::mesh::Service::from(&service());
        wire.endpoint_slices = 5000;
        let error = Service::try_from(wire).unwrap_err().to_string();
        assert!(error.starts_with("endpoint_slices: \"5000\""), "{error}");

        let mut wire = crate::mesh::Service::from(&service());
        wire.ports[0].port = 70_000;
        let error = Service::try_from(wire).unwrap_err().to_string();
        assert!(error.contains("70000"), "{error}");

        let bundle = crate::mesh::TrustBundle {
            trust_domain: "weft.local".to_owned(),
            ..Default::default()
        };
        assert!(TrustBundle::try_from(bundle).is_err());
    }
}
