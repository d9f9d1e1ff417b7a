//! How requests are hedged, wire to domain and back.

use std::time::Duration;

use weft_core::hedge::{After, HedgePolicy};

use crate::convert::Rejection;
use crate::mesh::{self, hedge};
use crate::policy::nanos;

impl From<&HedgePolicy> for mesh::Hedge {
    fn from(policy: &HedgePolicy) -> Self {
        let after = match policy.after {
            After::Delay(delay) => hedge::After::Delay(nanos(delay)),
            After::Percentile {
                percentile,
                min_delay,
            } => hedge::After::Percentile(mesh::HedgePercentile {
                percentile,
                min_delay: nanos(min_delay),
            }),
        };
        Self {
            after: Some(after),
            max_attempts: policy.max_attempts,
            methods: policy.methods.iter().map(ToString::to_string).collect(),
            grpc_methods: policy.grpc_methods.to_vec(),
        }
    }
}

impl TryFrom<mesh::Hedge> for HedgePolicy {
    type Error = Rejection;

    fn try_from(wire: mesh::Hedge) -> Result<Self, Rejection> {
        let after = match wire.after {
            Some(hedge::After::Delay(delay)) => After::Delay(Duration::from_nanos(delay)),
            Some(hedge::After::Percentile(of)) => After::Percentile {
                percentile: of.percentile,
                min_delay: Duration::from_nanos(of.min_delay),
            },
            None => {
                return Err(Rejection::Value {
                    field: "policies.policy.hedge.after",
                    found: String::new(),
                    allowed: "a delay or a percentile",
                });
            }
        };
        let methods = wire.methods.into_iter().map(|method| {
            let parsed = http::Method::from_bytes(method.as_bytes());
            parsed.map_err(|_invalid| Rejection::Value {
                field: "policies.policy.hedge.methods",
                found: method,
                allowed: "methods of HTTP",
            })
        });
        let methods: Vec<http::Method> = methods.collect::<Result<_, _>>()?;
        Ok(Self {
            after,
            max_attempts: wire.max_attempts,
            methods: methods.into(),
            grpc_methods: wire.grpc_methods.into(),
        })
    }
}
