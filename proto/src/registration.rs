//! Registrations, wire to domain and back.

use weft_core::model::{RegisteredPort, Registration};
use weft_core::registration::{
    ADDRESSES_MAX, METRICS_TARGET_MAX_BYTES, PORTS_MAX, SERVICES_MAX, VERSION_MAX_BYTES,
    ZONE_MAX_BYTES, check_count, check_labels, check_text,
};

use crate::convert::{Rejection, addresses, name, parse, port, protocol};
use crate::{mesh, registry};

impl From<&Registration> for registry::Registration {
    fn from(registration: &Registration) -> Self {
        Self {
            workload: registration.workload.to_string(),
            services: registration
                .services
                .iter()
                .map(ToString::to_string)
                .collect(),
            addresses: registration
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
            ports: registration
                .ports
                .iter()
                .map(|port| registry::RegisteredPort {
                    port: port.port.into(),
                    protocol: mesh::Protocol::from(port.protocol).into(),
                    advertised_address: port.advertised.to_string(),
                    ready: port.ready,
                })
                .collect(),
            labels: registration.labels.clone().into_iter().collect(),
            zone: registration.zone.clone(),
            weight: registration.weight,
            metrics_target: registration.metrics_target.clone(),
            version: registration.version.clone(),
        }
    }
}

impl TryFrom<registry::RegisteredPort> for RegisteredPort {
    type Error = Rejection;

    fn try_from(wire: registry::RegisteredPort) -> Result<Self, Rejection> {
        Ok(Self {
            port: port("ports.port", wire.port)?,
            protocol: protocol("ports.protocol", wire.protocol)?,
            advertised: parse(
                "ports.advertised_address",
                &wire.advertised_address,
                "an address ADDRESS:PORT",
            )?,
            ready: wire.ready,
        })
    }
}

impl TryFrom<registry::Registration> for Registration {
    type Error = Rejection;

    fn try_from(wire: registry::Registration) -> Result<Self, Rejection> {
        check_count("services", wire.services.len(), SERVICES_MAX)?;
        check_count("addresses", wire.addresses.len(), ADDRESSES_MAX)?;
        check_count("ports", wire.ports.len(), PORTS_MAX)?;
        check_labels("labels", wire.labels.iter())?;
        check_text("zone", &wire.zone, ZONE_MAX_BYTES)?;
        check_text("version", &wire.version, VERSION_MAX_BYTES)?;
        let target = &wire.metrics_target;
        check_text("metrics_target", target, METRICS_TARGET_MAX_BYTES)?;
        let weight = match wire.weight {
            0 => 100,
            weight @ 1..=1000 => weight,
            other => {
                return Err(Rejection::Value {
                    field: "weight",
                    found: other.to_string(),
                    allowed: "a weight from 1 to 1000",
                });
            }
        };
        let services = wire
            .services
            .iter()
            .map(|text| name("services", text.parse()));
        let ports = wire.ports.into_iter().map(RegisteredPort::try_from);
        Ok(Self {
            workload: name("workload", wire.workload.parse())?,
            services: services.collect::<Result<_, _>>()?,
            addresses: addresses("addresses", &wire.addresses)?,
            ports: ports.collect::<Result<_, _>>()?,
            labels: wire.labels.into_iter().collect(),
            zone: wire.zone,
            weight,
            metrics_target: wire.metrics_target,
            version: wire.version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> registry::Registration {
        let port = |port: u32| registry::RegisteredPort {
            port,
            protocol: mesh::Protocol::Http.into(),
            advertised_address: format!("192.0.2.1:{port}"),
            ready: true,
        };
        registry::Registration {
            workload: "shop/web".to_owned(),
            services: (0..64).map(|n| format!("shop/s{n}")).collect(),
            addresses: (0..16).map(|n| format!("192.0.2.{n}")).collect(),
            ports: (1..=64).map(port).collect(),
            labels: (0..64).map(|n| (format!("l{n}"), "v".repeat(63))).collect(),
            zone: "z".repeat(63),
            weight: 100,
            metrics_target: "m".repeat(256),
            version: "v".repeat(64),
        }
    }

    #[test]
    fn what_is_within_its_limits_is_taken_whole() {
        let registration = Registration::try_from(wire()).unwrap();
        assert_eq!(registry::Registration::from(&registration), wire());
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_with_the_field() {
        type Change = fn(&mut registry::Registration);
        let cases: [(Change, &str); 11] = [
            (
                |r| r.services.push("shop/more".to_owned()),
                "services: found 65 items; allowed: 64 at most",
            ),
            (
                |r| r.addresses.push("192.0.2.99".to_owned()),
                "addresses: found 17 items; allowed: 16 at most",
            ),
            (
                |r| r.ports.push(r.ports[0].clone()),
                "ports: found 65 items; allowed: 64 at most",
            ),
            (
                |r| drop(r.labels.insert("more".to_owned(), String::new())),
                "labels: found 65 items; allowed: 64 at most",
            ),
            (
                |r| r.labels = [("k".repeat(64), String::new())].into(),
                "labels: found \"kkk",
            ),
            (
                |r| r.labels = [("k".to_owned(), "v".repeat(64))].into(),
                "labels.k: found \"vvv",
            ),
            (
                |r| r.zone = "z".repeat(1 << 20),
                "zone: found 1048576 bytes; allowed: 63 bytes at most",
            ),
            (
                |r| r.version = "v".repeat(65),
                "version: found 65 bytes; allowed: 64 bytes at most",
            ),
            (
                |r| r.metrics_target = "m".repeat(257),
                "metrics_target: found 257 bytes; allowed: 256 bytes at most",
            ),
            (
                |r| r.ports[0].advertised_address = "1".repeat(1 << 20),
                "ports.advertised_address: \"111",
            ),
            (|r| r.workload = "w".repeat(1 << 20), "workload: \"www"),
        ];
        for (change, expected) in cases {
            let mut wire = wire();
            change(&mut wire);
            let error = Registration::try_from(wire).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error:.200}");
            assert!(error.len() < 400, "{} bytes: {error:.200}", error.len());
        }
    }
}
