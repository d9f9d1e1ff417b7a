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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use weft_core::policy::TrafficPolicy;

    fn http() -> HttpCheck {
        HttpCheck {
            path: "/healthz?deep=1".into(),
            host: Some("orders:80".into()),
            statuses: [(200, 204), (301, 301)].into(),
            headers: [(
                http::HeaderName::from_static("x-probe"),
                http::HeaderValue::from_static("yes"),
            )]
            .into(),
        }
    }

    fn policy(check: Check) -> TrafficPolicy {
        TrafficPolicy {
            health_check: Some(Arc::new(HealthCheck {
                interval: Duration::from_millis(1500),
                timeout: Duration::from_millis(300),
                unhealthy_threshold: 4,
                healthy_threshold: 5,
                jitter: 0.25,
                initial: InitialState::Unhealthy,
                ..HealthCheck::new(check)
            })),
            panic_threshold: 0.3,
            breaker: None,
            ..TrafficPolicy::default()
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let bare = HttpCheck {
            host: None,
            headers: [].into(),
            ..http()
        };
        let grpc = Check::Grpc {
            service: "shop.Orders".into(),
        };
        for check in [Check::Http(http()), Check::Http(bare), grpc, Check::Tcp] {
            let policy = policy(check);
            let wire = mesh::TrafficPolicy::from(&policy);
            assert_eq!(TrafficPolicy::try_from(wire).unwrap(), policy);
        }
    }

    #[test]
    fn what_is_none_is_rejected() {
        type Change = fn(&mut mesh::HealthCheck, &mut mesh::HttpCheck);
        let cases: [(&str, Change); 5] = [
            ("healthCheck.http.path", |_, http| http.path.clear()),
            ("http.headers", |_, http| {
                http.headers[0].name = "a b".into()
            }),
            ("http.headers", |_, http| http.headers[0].value = vec![0]),
            ("http.statuses", |_, http| http.statuses[0].to = 70_000),
            ("healthCheck.interval", |check, _| check.interval = 0),
        ];
        for (field, change) in cases {
            let policy = policy(Check::Http(http()));
            let mut wire = mesh::TrafficPolicy::from(&policy);
            let mut check = wire.health_check.take().unwrap();
            let Some(health_check::Check::Http(mut http)) = check.check.take() else {
                panic!("another check");
            };
            change(&mut check, &mut http);
            check.check = Some(health_check::Check::Http(http));
            wire.health_check = Some(check);
            let error = TrafficPolicy::try_from(wire).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let mut wire = mesh::TrafficPolicy::from(&policy(Check::Tcp));
        wire.health_check.as_mut().unwrap().check = None;
        let error = TrafficPolicy::try_from(wire).unwrap_err().to_string();
        assert!(error.contains("http, grpc or tcp"), "{error}");
    }
}
