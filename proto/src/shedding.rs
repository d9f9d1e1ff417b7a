//! Adaptive limits and what is shed, wire to domain and back.

use std::time::Duration;

use weft_core::adaptive::AdaptiveConfig;
use weft_core::shedding::{Critical, Shedding};

use crate::convert::{Rejection, parse};
use crate::mesh;
use crate::policy::nanos;

impl From<&AdaptiveConfig> for mesh::AdaptiveLimit {
    fn from(config: &AdaptiveConfig) -> Self {
        Self {
            initial: config.initial,
            min: config.min,
            max: config.max,
            smoothing: config.smoothing,
            tolerance: config.tolerance,
            queue: config.queue,
            long_window: nanos(config.long_window),
            critical_share: config.critical_share,
        }
    }
}

/// Not validated: whoever has it does that.
impl From<mesh::AdaptiveLimit> for AdaptiveConfig {
    fn from(wire: mesh::AdaptiveLimit) -> Self {
        Self {
            initial: wire.initial,
            min: wire.min,
            max: wire.max,
            smoothing: wire.smoothing,
            tolerance: wire.tolerance,
            queue: wire.queue,
            long_window: Duration::from_nanos(wire.long_window),
            critical_share: wire.critical_share,
        }
    }
}

impl From<&Shedding> for mesh::Shedding {
    fn from(shedding: &Shedding) -> Self {
        let critical = shedding.critical.iter().map(|critical| mesh::Critical {
            callers: critical.callers.iter().map(ToString::to_string).collect(),
            r#match: Some((&critical.matched).into()),
        });
        Self {
            limit: Some((&shedding.limit).into()),
            critical: critical.collect(),
        }
    }
}

impl TryFrom<mesh::Shedding> for Shedding {
    type Error = Rejection;

    fn try_from(wire: mesh::Shedding) -> Result<Self, Rejection> {
        let missing = |field, allowed| Rejection::Value {
            field,
            found: String::new(),
            allowed,
        };
        let limit = wire.limit.map(AdaptiveConfig::from);
        let limit = limit.ok_or_else(|| missing("adaptive_concurrency.limit", "a limit"))?;
        let critical = wire.critical.into_iter().map(|wire| {
            let callers = wire.callers.iter().map(|caller| {
                let allowed = "NAMESPACE/SERVICE-ACCOUNT or NAMESPACE/*";
                parse("adaptive_concurrency.critical.callers", caller, allowed)
            });
            let matched = wire.r#match;
            let field = "adaptive_concurrency.critical.match";
            let matched = matched.ok_or_else(|| missing(field, "a match"))?;
            Ok(Critical {
                callers: callers.collect::<Result<_, Rejection>>()?,
                matched: matched.try_into()?,
            })
        });
        let shedding = Self {
            limit,
            critical: critical.collect::<Result<_, Rejection>>()?,
        };
        match shedding.validate().into_iter().next() {
            None => Ok(shedding),
            Some(error) => Err(Rejection::Shedding(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::route::{PathMatch, ValueMatch};

    fn shedding() -> Shedding {
        let mut critical = Critical::of(PathMatch::prefix("/pay").unwrap());
        critical.callers = vec!["shop/web".parse().unwrap(), "ops/*".parse().unwrap()];
        let urgent = ValueMatch::exact("u=0").unwrap();
        critical.matched.headers = vec![("priority".parse().unwrap(), urgent)];
        Shedding {
            limit: AdaptiveConfig {
                initial: 7,
                min: 3,
                max: 70,
                smoothing: 0.3,
                tolerance: 2.0,
                queue: 5,
                long_window: Duration::from_secs(61),
                critical_share: 0.2,
            },
            critical: vec![critical],
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let wire = mesh::Shedding::from(&shedding());
        assert_eq!(Shedding::try_from(wire).unwrap(), shedding());
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        type Change = fn(&mut mesh::Shedding);
        let cases: [(&str, Change); 5] = [
            ("adaptive_concurrency.limit", |wire| wire.limit = None),
            ("adaptive_concurrency.min", |wire| {
                wire.limit.as_mut().unwrap().min = 0;
            }),
            ("adaptive_concurrency.critical.match", |wire| {
                wire.critical[0].r#match = None;
            }),
            ("adaptive_concurrency.critical.callers", |wire| {
                wire.critical[0].callers = vec!["*".to_owned()];
            }),
            ("adaptive_concurrency.criticalShare", |wire| {
                wire.critical.clear();
            }),
        ];
        for (field, change) in cases {
            let mut wire = mesh::Shedding::from(&shedding());
            change(&mut wire);
            let refused = Shedding::try_from(wire).unwrap_err().to_string();
            assert!(refused.contains(field), "{field}: {refused}");
        }
    }
}
