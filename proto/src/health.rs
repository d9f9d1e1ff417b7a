//! Health checks of a traffic policy, wire to domain and back.

use std::time::Duration;

use weft_core::health::{Check, HealthCheck, HttpCheck, InitialState};

use crate::convert::Rejection;
use crate::mesh::{self, health_check};
use crate::policy::{nanos, status};

impl From<&HealthCheck> for mesh::HealthCheck {
    fn from(config: &HealthCheck) -> Self {
        let check = match &config.check {
            Check::Http(http) => health_check::Check::Http(http.into()),
            Check::Grpc { service } => health_check::Check::Grpc(mesh::GrpcCheck {
                service: service.to_string(),
            }),
            Check::Tcp => health_check::Check::Tcp(mesh::TcpCheck {}),
        };
        Self {
            check: Some(check),
            interval: nanos(config.interval),
            timeout: nanos(config.timeout),
            unhealthy_threshold: config.unhealthy_threshold,
            healthy_threshold: config.healthy_threshold,
            jitter: config.jitter,
            starts_unhealthy: config.initial == InitialState::Unhealthy,
        }
    }
}

impl TryFrom<mesh::HealthCheck> for HealthCheck {
    type Error = Rejection;

    fn try_from(wire: mesh::HealthCheck) -> Result<Self, Rejection> {
        let check = match wire.check {
            Some(health_check::Check::Http(http)) => Check::Http(http.try_into()?),
            Some(health_check::Check::Grpc(grpc)) => Check::Grpc {
                service: grpc.service.into(),
            },
            Some(health_check::Check::Tcp(mesh::TcpCheck {})) => Check::Tcp,
            None => {
                return Err(Rejection::Value {
                    field: "policies.policy.health_check",
                    found: String::new(),
                    allowed: "http, grpc or tcp",
                });
            }
        };
        Ok(Self {
            check,
            interval: Duration::from_nanos(wire.interval),
            timeout: Duration::from_nanos(wire.timeout),
            unhealthy_threshold: wire.unhealthy_threshold,
            healthy_threshold: wire.healthy_threshold,
            jitter: wire.jitter,
            initial: match wire.starts_unhealthy {
                true => InitialState::Unhealthy,
                false => InitialState::Healthy,
            },
        })
    }
}

impl From<&HttpCheck> for mesh::HttpCheck {
    fn from(http: &HttpCheck) -> Self {
        let headers = http.headers.iter();
        let statuses = http.statuses.iter();
        Self {
            path: http.path.to_string(),
            host: http.host.as_deref().unwrap_or_default().to_owned(),
            statuses: statuses
                .map(|(from, to)| mesh::StatusRange {
                    from: (*from).into(),
                    to: (*to).into(),
                })
                .collect(),
            headers: headers
                .map(|(name, value)| mesh::CheckHeader {
                    name: name.as_str().to_owned(),
                    value: value.as_bytes().to_vec(),
                })
                .collect(),
        }
    }
}

impl TryFrom<mesh::HttpCheck> for HttpCheck {
    type Error = Rejection;

    fn try_from(wire: mesh::HttpCheck) -> Result<Self, Rejection> {
        const STATUSES: &str = "policies.policy.health_check.http.statuses";
        let statuses = wire.statuses.iter();
        let statuses =
            statuses.map(|range| Ok((status(STATUSES, range.from)?, status(STATUSES, range.to)?)));
        let headers = wire.headers.into_iter().map(|header| {
            let bad = |found: String| Rejection::Value {
                field: "policies.policy.health_check.http.headers",
                found,
                allowed: "a header field",
            };
            let name = header.name.parse();
            let name = name.map_err(|_invalid| bad(header.name))?;
            let value = header.value.as_slice().try_into();
            let value = value.map_err(|_invalid| bad("a value".to_owned()))?;
            Ok((name, value))
        });
        Ok(Self {
            path: wire.path.into(),
            host: Some(wire.host)
                .filter(|host| !host.is_empty())
                .map(Into::into),
            statuses: statuses.collect::<Result<_, Rejection>>()?,
            headers: headers.collect::<Result<_, Rejection>>()?,
        })
    }
}
