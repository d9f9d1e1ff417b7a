//! What servers' sidecars enforce, wire to domain and back.

use std::sync::Arc;
use std::time::Duration;

use weft_core::name::ServiceName;
use weft_core::path::PathNormalization;
use weft_core::rate::{RateKey, RateLimit, RateScope, RuleName};
use weft_core::server::{ServerPolicy, ServerPort};

use crate::convert::{Rejection, known, name, parse, port};
use crate::mesh::{self, rate_key::Part};
use crate::policy::nanos;

impl From<&ServerPolicy> for mesh::ServerPolicy {
    fn from(policy: &ServerPolicy) -> Self {
        let ports = policy.ports.iter();
        Self {
            namespace: policy.service.namespace().to_owned(),
            name: policy.service.name().to_owned(),
            ports: ports
                .map(|(port, of_port)| mesh::ServerPort {
                    port: u32::from(*port),
                    rate_limits: of_port.rate_limits.iter().map(|l| (&**l).into()).collect(),
                    adaptive_concurrency: of_port.shedding.as_deref().map(Into::into),
                    path_normalization: Some(of_port.path_normalization.into()),
                })
                .collect(),
            instances: policy.instances,
            requires: Vec::new(),
        }
    }
}

impl TryFrom<mesh::ServerPolicy> for ServerPolicy {
    type Error = Rejection;

    fn try_from(wire: mesh::ServerPolicy) -> Result<Self, Rejection> {
        known(wire.requires)?;
        if wire.instances == 0 {
            return Err(Rejection::Value {
                field: "instances",
                found: "0".to_owned(),
                allowed: "at least 1",
            });
        }
        let ports = wire.ports.into_iter().map(|wire| {
            let limits = wire.rate_limits.into_iter();
            let of_port = ServerPort {
                rate_limits: limits
                    .map(|limit| limit.try_into().map(Arc::new))
                    .collect::<Result<_, Rejection>>()?,
                shedding: wire
                    .adaptive_concurrency
                    .map(|wire| wire.try_into().map(Arc::new))
                    .transpose()?,
                path_normalization: wire.path_normalization.map(Into::into).unwrap_or_default(),
            };
            Ok((port("ports.port", wire.port)?, Arc::new(of_port)))
        });
        Ok(Self {
            service: name("name", ServiceName::new(&wire.namespace, &wire.name))?,
            instances: wire.instances,
            ports: ports.collect::<Result<_, Rejection>>()?,
        })
    }
}

impl From<PathNormalization> for mesh::PathNormalization {
    fn from(server: PathNormalization) -> Self {
        Self {
            decode_slashes: server.decode_slashes,
            decode_twice: server.decode_twice,
            convert_backslashes: server.convert_backslashes,
            drop_parameters: server.drop_parameters,
            drop_trailing_slash: server.drop_trailing_slash,
        }
    }
}

impl From<mesh::PathNormalization> for PathNormalization {
    fn from(wire: mesh::PathNormalization) -> Self {
        Self {
            decode_slashes: wire.decode_slashes,
            decode_twice: wire.decode_twice,
            convert_backslashes: wire.convert_backslashes,
            drop_parameters: wire.drop_parameters,
            drop_trailing_slash: wire.drop_trailing_slash,
        }
    }
}

impl From<&RateLimit> for mesh::RateLimit {
    fn from(limit: &RateLimit) -> Self {
        let scope = match limit.scope {
            RateScope::Local => mesh::RateScope::Local,
            RateScope::Global => mesh::RateScope::Global,
        };
        let key = limit.key.iter().map(|part| mesh::RateKey {
            part: Some(match part {
                RateKey::Caller => Part::Caller(true),
                RateKey::Header(name) => Part::Header(name.as_str().to_owned()),
                RateKey::Claim(name) => Part::Claim(name.to_string()),
            }),
        });
        Self {
            namespace: limit.name.namespace.to_string(),
            policy: limit.name.policy.to_string(),
            rule: limit.name.rule,
            scope: scope.into(),
            matches: limit.matches.iter().map(Into::into).collect(),
            key: key.collect(),
            requests: limit.requests,
            per: nanos(limit.per),
            burst: limit.burst,
        }
    }
}

impl TryFrom<mesh::RateLimit> for RateLimit {
    type Error = Rejection;

    fn try_from(wire: mesh::RateLimit) -> Result<Self, Rejection> {
        let bad = |field: &'static str, found: String, allowed: &'static str| Rejection::Value {
            field,
            found,
            allowed,
        };
        let scope = match mesh::RateScope::try_from(wire.scope) {
            Ok(mesh::RateScope::Local) => RateScope::Local,
            Ok(mesh::RateScope::Global) => RateScope::Global,
            Ok(mesh::RateScope::Unspecified) | Err(_) => {
                let found = wire.scope.to_string();
                return Err(bad("rate_limits.scope", found, "a known RateScope"));
            }
        };
        let key = wire.key.into_iter().map(|wire| match wire.part {
            Some(Part::Caller(_)) => Ok(RateKey::Caller),
            Some(Part::Header(name)) => {
                let allowed = "the name of a header field";
                parse("rate_limits.key.header", &name, allowed).map(RateKey::Header)
            }
            Some(Part::Claim(name)) => Ok(RateKey::Claim(name.into())),
            None => Err(bad("rate_limits.key", String::new(), "a known part")),
        });
        let matches = wire.matches.into_iter().map(TryInto::try_into);
        let limit = Self {
            name: RuleName {
                namespace: wire.namespace.into(),
                policy: wire.policy.into(),
                rule: wire.rule,
            },
            scope,
            matches: matches.collect::<Result<_, Rejection>>()?,
            key: key.collect::<Result<_, _>>()?,
            requests: wire.requests,
            per: Duration::from_nanos(wire.per),
            burst: wire.burst,
        };
        match limit.validate().into_iter().next() {
            None => Ok(limit),
            Some(error) => Err(Rejection::RateLimit(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Any, Kind, Resource};
    use prost::Message as _;
    use weft_core::route::{HttpMatch, PathMatch};

    fn limit() -> RateLimit {
        RateLimit {
            name: RuleName {
                namespace: "shop".into(),
                policy: "web".into(),
                rule: 3,
            },
            scope: RateScope::Global,
            matches: vec![HttpMatch::of(PathMatch::prefix("/v1").unwrap())],
            key: vec![
                RateKey::Caller,
                RateKey::Header("x-user".parse().unwrap()),
                RateKey::Claim("sub".into()),
            ],
            requests: 10,
            per: Duration::from_secs(1),
            burst: 20,
        }
    }

    /// What a newer control plane asks for is not enforced in part.
    #[test]
    fn a_protection_that_is_not_known_is_rejected() {
        let Resource::ServerPolicy(policy) = policy(limit()) else {
            panic!("a policy");
        };
        let mut wire = mesh::ServerPolicy::from(&policy);
        assert_eq!(ServerPolicy::try_from(wire.clone()).unwrap(), policy);
        wire.requires.push("authorization".to_owned());
        let said = ServerPolicy::try_from(wire).unwrap_err().to_string();
        assert!(
            said.contains("authorization") && said.contains("upgrade"),
            "{said}"
        );
    }

    /// Every kind of resource can ask for a protection, and is rejected for that before all else.
    #[test]
    fn each_kind_can_require_what_is_not_known() {
        macro_rules! of_kind {
            ($kind:ident) => {{
                let wire = mesh::$kind {
                    requires: vec!["authorization".to_owned()],
                    ..mesh::$kind::default()
                };
                (Kind::$kind, wire.encode_to_vec())
            }};
        }
        let all = [
            of_kind!(MeshConfig),
            of_kind!(TrustBundle),
            of_kind!(Namespace),
            of_kind!(ServerPolicy),
            of_kind!(EndpointSlice),
            of_kind!(Service),
            of_kind!(Workload),
        ];
        assert_eq!(all.clone().map(|(kind, _)| kind), Kind::ALL);
        for (kind, value) in all {
            let any = Any {
                type_url: kind.type_url().to_owned(),
                value,
            };
            let said = Resource::decode(&any).unwrap_err().to_string();
            assert!(
                said.contains("requires: \"authorization\""),
                "{kind:?}: {said}"
            );
        }
    }

    fn policy(limit: RateLimit) -> Resource {
        let port = ServerPort {
            rate_limits: vec![Arc::new(limit)],
            shedding: None,
            path_normalization: PathNormalization {
                decode_slashes: false,
                ..PathNormalization::default()
            },
        };
        Resource::ServerPolicy(ServerPolicy {
            service: "shop/web".parse().unwrap(),
            instances: 2,
            ports: [(8080, Arc::new(port))].into(),
        })
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let policy = policy(limit());
        assert_eq!(policy.name(), "shop/web");
        assert_eq!(Resource::decode(&policy.encode()).unwrap(), policy);
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        let bad = policy(RateLimit {
            requests: 0,
            ..limit()
        });
        let refused = Resource::decode(&bad.encode()).unwrap_err().to_string();
        assert!(refused.contains("rate_limits.requests"), "{refused}");
    }
}
