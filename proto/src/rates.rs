//! Shares of limits, wire to domain and back.

use weft_core::rate::lease::{Demand, Grant, Report, Shares};
use weft_core::rate::{RuleName, WHOLE};

use crate::convert::Rejection;
use crate::ratelimit as wire;

/// Keys of one message.
const KEYS_MAX: usize = 1024;
/// Longest name of a namespace or a policy, bytes.
const NAME_MAX: usize = 253;

impl From<&RuleName> for wire::Rule {
    fn from(name: &RuleName) -> Self {
        Self {
            namespace: name.namespace.to_string(),
            policy: name.policy.to_string(),
            rule: name.rule,
        }
    }
}

fn rule(wire: Option<wire::Rule>) -> Result<RuleName, Rejection> {
    let wire = wire.unwrap_or_default();
    for (field, name) in [
        ("rule.namespace", &wire.namespace),
        ("rule.policy", &wire.policy),
    ] {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Rejection::Value {
                field,
                found: name.chars().take(NAME_MAX).collect(),
                allowed: "a name of 1 to 253 bytes",
            });
        }
    }
    Ok(RuleName {
        namespace: wire.namespace.into(),
        policy: wire.policy.into(),
        rule: wire.rule,
    })
}

fn few(field: &'static str, keys: usize) -> Result<(), Rejection> {
    if keys > KEYS_MAX {
        return Err(Rejection::Value {
            field,
            found: format!("{keys} keys"),
            allowed: "1024 keys at most",
        });
    }
    Ok(())
}

fn share(field: &'static str, share: u32) -> Result<u32, Rejection> {
    if share > WHOLE {
        return Err(Rejection::Value {
            field,
            found: share.to_string(),
            allowed: "a share from 0 to 1000000",
        });
    }
    Ok(share)
}

impl From<&Shares> for wire::Shares {
    fn from(shares: &Shares) -> Self {
        let keys = shares.keys.iter();
        let keys = keys.map(|(key, share)| wire::KeyShare {
            key: *key,
            share: *share,
        });
        Self {
            base: shares.base,
            keys: keys.collect(),
        }
    }
}

fn shares(wire: Option<wire::Shares>) -> Result<Shares, Rejection> {
    let wire = wire.ok_or(Rejection::Value {
        field: "shares",
        found: String::new(),
        allowed: "shares of the limit",
    })?;
    few("shares.keys", wire.keys.len())?;
    let keys = wire.keys.into_iter();
    let keys = keys.map(|wire| Ok((wire.key, share("shares.keys.share", wire.share)?)));
    Ok(Shares {
        base: share("shares.base", wire.base)?,
        keys: keys.collect::<Result<_, Rejection>>()?,
    })
}

impl From<&Demand> for wire::Demand {
    fn from(demand: &Demand) -> Self {
        let keys = demand.keys.iter();
        let keys = keys.map(|(key, requests)| wire::KeyDemand {
            key: *key,
            requests: *requests,
        });
        Self {
            base: demand.base,
            keys: keys.collect(),
        }
    }
}

impl TryFrom<wire::Demand> for Demand {
    type Error = Rejection;

    fn try_from(wire: wire::Demand) -> Result<Self, Rejection> {
        few("demand.keys", wire.keys.len())?;
        let keys = wire.keys.into_iter();
        Ok(Self {
            base: wire.base,
            keys: keys.map(|wire| (wire.key, wire.requests)).collect(),
        })
    }
}

impl From<&Report> for wire::Report {
    fn from(report: &Report) -> Self {
        Self {
            rule: Some((&report.rule).into()),
            version: report.version,
            holds: Some((&report.holds).into()),
            demand: report.demand.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<wire::Report> for Report {
    type Error = Rejection;

    fn try_from(wire: wire::Report) -> Result<Self, Rejection> {
        Ok(Self {
            rule: rule(wire.rule)?,
            version: wire.version,
            holds: shares(wire.holds)?,
            demand: wire.demand.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&Grant> for wire::Grant {
    fn from(grant: &Grant) -> Self {
        Self {
            rule: Some((&grant.rule).into()),
            version: grant.version,
            shares: Some((&grant.shares).into()),
        }
    }
}

impl TryFrom<wire::Grant> for Grant {
    type Error = Rejection;

    fn try_from(wire: wire::Grant) -> Result<Self, Rejection> {
        Ok(Self {
            rule: rule(wire.rule)?,
            version: wire.version,
            shares: shares(wire.shares)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            rule: RuleName {
                namespace: "shop".into(),
                policy: "web".into(),
                rule: 2,
            },
            version: 7,
            holds: Shares {
                base: 10,
                keys: [(u64::MAX, WHOLE)].into(),
            },
            demand: Some(Demand {
                base: 3,
                keys: [(1, 2)].into(),
            }),
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let report = report();
        let decoded = Report::try_from(wire::Report::from(&report)).unwrap();
        assert_eq!(decoded, report);
        let grant = Grant {
            rule: report.rule,
            version: 9,
            shares: report.holds,
        };
        let decoded = Grant::try_from(wire::Grant::from(&grant)).unwrap();
        assert_eq!(decoded, grant);
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        type Change = fn(&mut wire::Report);
        let cases: [(&str, Change); 5] = [
            ("rule.namespace", |wire| wire.rule = None),
            ("shares:", |wire| wire.holds = None),
            ("shares.base", |wire| {
                wire.holds = Some(wire::Shares {
                    base: WHOLE + 1,
                    keys: Vec::new(),
                });
            }),
            ("shares.keys", |wire| {
                wire.holds = Some(wire::Shares {
                    base: 0,
                    keys: vec![wire::KeyShare::default(); KEYS_MAX + 1],
                });
            }),
            ("demand.keys", |wire| {
                wire.demand = Some(wire::Demand {
                    base: 0,
                    keys: vec![wire::KeyDemand::default(); KEYS_MAX + 1],
                });
            }),
        ];
        for (field, change) in cases {
            let mut wire = wire::Report::from(&report());
            change(&mut wire);
            let refused = Report::try_from(wire).unwrap_err().to_string();
            assert!(refused.contains(field), "{field}: {refused}");
        }
    }
}
