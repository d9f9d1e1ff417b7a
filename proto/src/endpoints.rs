//! Endpoints and their slices: wire to domain and back.

use std::net::SocketAddr;

use weft_core::locality::Distribution;
use weft_core::model::{Endpoint, EndpointPort, EndpointSlice, Placement, Transport};
use weft_core::name::ServiceName;
use weft_core::slices::{ENDPOINTS_MAX, SLICES_MAX};

use crate::convert::{Rejection, known, name, parse, port, transport, wire_transport};
use crate::mesh;

impl From<&Endpoint> for mesh::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            instance: endpoint.instance.to_string(),
            workload: endpoint.workload.to_string(),
            identity: endpoint
                .identity
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            zone: endpoint.zone.clone(),
            node: endpoint.placement.node.clone(),
            zone_hints: endpoint.placement.zone_hints.clone(),
            weight: endpoint.weight,
            transport: wire_transport(endpoint.transport),
            ports: endpoint
                .ports
                .iter()
                .map(|port| mesh::EndpointPort {
                    service_port: port.service_port.into(),
                    address: port.address.to_string(),
                })
                .collect(),
        }
    }
}

impl TryFrom<mesh::Endpoint> for Endpoint {
    type Error = Rejection;

    fn try_from(wire: mesh::Endpoint) -> Result<Self, Rejection> {
        if !(1..=1000).contains(&wire.weight) {
            return Err(Rejection::Value {
                field: "endpoints.weight",
                found: wire.weight.to_string(),
                allowed: "a weight from 1 to 1000",
            });
        }
        let ports = wire.ports.into_iter().map(|wire| {
            let address: SocketAddr = parse(
                "endpoints.ports.address",
                &wire.address,
                "an address ADDRESS:PORT",
            )?;
            Ok(EndpointPort {
                service_port: port("endpoints.ports.service_port", wire.service_port)?,
                address,
            })
        });
        let transport = transport("endpoints.transport", wire.transport)?;
        let identity = match (transport, wire.identity.as_str()) {
            (Transport::Plain, "") => None,
            (Transport::Mesh | Transport::Plain, text) => {
                Some(name("endpoints.identity", text.parse())?)
            }
        };
        Ok(Self {
            instance: wire.instance.into(),
            workload: name("endpoints.workload", wire.workload.parse())?,
            identity,
            zone: wire.zone,
            placement: Placement {
                node: wire.node,
                zone_hints: wire.zone_hints,
            },
            weight: wire.weight,
            transport,
            ports: ports.collect::<Result<_, Rejection>>()?,
        })
    }
}

/// How far callers go for an endpoint.
pub(crate) fn wire_distribution(distribution: Distribution) -> i32 {
    match distribution {
        Distribution::Anywhere => mesh::Distribution::Unspecified,
        Distribution::PreferZone => mesh::Distribution::PreferZone,
        Distribution::PreferNode => mesh::Distribution::PreferNode,
        Distribution::NodeOnly => mesh::Distribution::NodeOnly,
    }
    .into()
}

/// How far callers go for an endpoint, from the wire.
pub(crate) fn distribution(wire: i32) -> Result<Distribution, Rejection> {
    match mesh::Distribution::try_from(wire) {
        Ok(mesh::Distribution::Unspecified) => Ok(Distribution::Anywhere),
        Ok(mesh::Distribution::PreferZone) => Ok(Distribution::PreferZone),
        Ok(mesh::Distribution::PreferNode) => Ok(Distribution::PreferNode),
        Ok(mesh::Distribution::NodeOnly) => Ok(Distribution::NodeOnly),
        Err(_) => Err(Rejection::Value {
            field: "distribution",
            found: wire.to_string(),
            allowed: "UNSPECIFIED, PREFER_ZONE, PREFER_NODE or NODE_ONLY",
        }),
    }
}

/// How many slices a service's endpoints are in, from the wire.
pub(crate) fn endpoint_slices(wire: u32, external: bool) -> Result<u32, Rejection> {
    let allowed = match external {
        true if wire != 0 => "0: a service outside the mesh has no slices",
        false if wire > SLICES_MAX => "0 to 4096 slices",
        true | false => return Ok(wire),
    };
    Err(Rejection::Value {
        field: "endpoint_slices",
        found: wire.to_string(),
        allowed,
    })
}

impl From<&EndpointSlice> for mesh::EndpointSlice {
    fn from(slice: &EndpointSlice) -> Self {
        Self {
            namespace: slice.service.namespace().to_owned(),
            name: slice.service.name().to_owned(),
            index: slice.index,
            count: slice.count,
            endpoints: slice.endpoints.iter().map(Into::into).collect(),
            requires: Vec::new(),
        }
    }
}

impl TryFrom<mesh::EndpointSlice> for EndpointSlice {
    type Error = Rejection;

    fn try_from(wire: mesh::EndpointSlice) -> Result<Self, Rejection> {
        known(wire.requires)?;
        let refuse = |field, found: String, allowed| {
            Err(Rejection::Value {
                field,
                found,
                allowed,
            })
        };
        if !(1..=SLICES_MAX).contains(&wire.count) {
            return refuse("count", wire.count.to_string(), "1 to 4096 slices");
        }
        if wire.index >= wire.count {
            let found = format!("{} of {}", wire.index, wire.count);
            return refuse("index", found, "an index below the count of slices");
        }
        if wire.endpoints.len() > ENDPOINTS_MAX {
            let found = wire.endpoints.len().to_string();
            return refuse("endpoints", found, "at most 512 endpoints in a slice");
        }
        let endpoints = wire.endpoints.into_iter().map(Endpoint::try_from);
        let mut endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        endpoints.sort_by(|a, b| a.instance.cmp(&b.instance));
        let mut pairs = endpoints.windows(2);
        if let Some(twice) = pairs.find(|pair| pair[0].instance == pair[1].instance) {
            let found = twice[0].instance.to_string();
            return refuse(
                "endpoints.instance",
                found,
                "an instance that is there once",
            );
        }
        Ok(Self {
            service: name("name", ServiceName::new(&wire.namespace, &wire.name))?,
            index: wire.index,
            count: wire.count,
            endpoints,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Resource;

    fn slice() -> EndpointSlice {
        let endpoint = |instance: &str| Endpoint {
            instance: instance.into(),
            workload: "shop/web-1".parse().unwrap(),
            identity: Some("spiffe://weft.local/ns/shop/sa/web".parse().unwrap()),
            zone: "z".to_owned(),
            placement: Placement {
                node: "n1".to_owned(),
                zone_hints: vec!["z".to_owned()],
            },
            weight: 100,
            transport: Transport::Mesh,
            ports: vec![EndpointPort {
                service_port: 80,
                address: "[::1]:8080".parse().unwrap(),
            }],
        };
        EndpointSlice {
            service: "shop/web".parse().unwrap(),
            index: 2,
            count: 4,
            endpoints: vec![endpoint("i-1"), endpoint("i-2")],
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        for endpoints in [slice().endpoints, Vec::new()] {
            let resource = Resource::EndpointSlice(EndpointSlice {
                endpoints,
                ..slice()
            });
            assert_eq!(Resource::decode(&resource.encode()).unwrap(), resource);
            assert_eq!(resource.name(), "shop/web/2-4");
            assert!(resource.aliases().is_empty());
        }
        let mut wire = mesh::EndpointSlice::from(&slice());
        wire.endpoints.reverse();
        assert_eq!(EndpointSlice::try_from(wire).unwrap(), slice());
    }

    #[test]
    fn rejected_with_the_field() {
        type Change = fn(&mut mesh::EndpointSlice);
        let many = |number: usize| {
            let mut endpoint = mesh::Endpoint::from(&slice().endpoints[0]);
            endpoint.instance = format!("i-{number}");
            endpoint
        };
        let cases: [(Change, &str); 8] = [
            (|wire| wire.count = 0, "count: \"0\""),
            (|wire| wire.count = 4097, "count: \"4097\""),
            (|wire| wire.index = 4, "index: \"4 of 4\""),
            (|wire| wire.namespace = "A".to_owned(), "name: "),
            (
                |wire| wire.endpoints[0].transport = 0,
                "endpoints.transport: ",
            ),
            (
                |wire| wire.endpoints[0].identity.clear(),
                "endpoints.identity: ",
            ),
            (|wire| wire.endpoints[1].weight = 0, "endpoints.weight: "),
            (
                |wire| wire.endpoints[1].instance = "i-1".to_owned(),
                "endpoints.instance: \"i-1\"",
            ),
        ];
        for (change, expected) in cases {
            let mut wire = mesh::EndpointSlice::from(&slice());
            change(&mut wire);
            let error = EndpointSlice::try_from(wire).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error} is not {expected}");
        }
        let mut wire = mesh::EndpointSlice::from(&slice());
        wire.endpoints = (0..512).map(many).collect();
        assert!(EndpointSlice::try_from(wire.clone()).is_ok());
        wire.endpoints.push(many(512));
        let error = EndpointSlice::try_from(wire).unwrap_err().to_string();
        assert!(error.starts_with("endpoints: \"513\""), "{error}");
    }

    #[test]
    fn how_many_slices_a_service_may_have() {
        assert!(matches!(endpoint_slices(0, true), Ok(0)));
        assert!(matches!(endpoint_slices(4096, false), Ok(4096)));
        assert!(endpoint_slices(1, true).is_err());
        assert!(endpoint_slices(4097, false).is_err());
    }
}
