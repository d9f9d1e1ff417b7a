//! Reports and grants of shared limits that one control plane relays to another one, wire to domain
//! and back.

use std::sync::Arc;

use prost::Message as _;
use weft_core::name::ServiceName;
use weft_core::rate::lease::{Demand, Grant, HOT_KEYS_MAX, Report};

use crate::convert::{Rejection, name};
use crate::replica;

/// Bytes of grants in one message; a message has those of one stream at least.
const GRANTS_BYTES: usize = 256 * 1024;
/// Streams, and reports of all of them, in one message.
pub const RELAYED_MAX: usize = 4096;
/// Longest name of an instance, bytes.
const INSTANCE_MAX: usize = 512;

/// What a sidecar says of a limit, and the service that the limit is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayedReport {
    /// What it says.
    pub report: Report,
    /// It serves this service.
    pub service: ServiceName,
}

impl RelayedReport {
    /// Takes a later one of the same limit: what it was asked for meanwhile is added up.
    pub fn follow(&mut self, later: Self) {
        let earlier = self.report.demand.take();
        *self = later;
        let Some(mut earlier) = earlier else { return };
        if let Some(demand) = self.report.demand.take() {
            earlier.base = earlier.base.saturating_add(demand.base);
            for (key, asked) in demand.keys {
                let wanted = earlier.keys.entry(key).or_default();
                *wanted = wanted.saturating_add(asked);
            }
        }
        self.report.demand = Some(earlier);
    }

    /// Roughly how long it is on the wire, bytes.
    pub fn wire_len(&self) -> usize {
        let Report { rule, holds, .. } = &self.report;
        let keys = self.report.demand.as_ref().map_or(0, |d| d.keys.len());
        let names = rule.namespace.len() + rule.policy.len();
        64 + names + 300 + 16 * holds.keys.len() + 24 * keys.min(HOT_KEYS_MAX)
    }
}

/// What is new of a sidecar's stream at the control plane that relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReports {
    /// Names it.
    pub stream: u64,
    /// Who opened it.
    pub instance: Arc<str>,
    /// What it says, of each limit once.
    pub reports: Vec<RelayedReport>,
    /// It has ended with this.
    pub ended: bool,
}

/// What is granted on a sidecar's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamGrants {
    /// Names it.
    pub stream: u64,
    /// Of each limit one at most.
    pub grants: Vec<Grant>,
}

/// A message that relays reports.
pub fn relayed_reports(streams: Vec<StreamReports>) -> replica::RelayedReports {
    let streams = streams.into_iter().map(|of| replica::StreamReports {
        stream: of.stream,
        instance: of.instance.to_string(),
        reports: { of.reports.iter() }
            .map(|relayed| replica::RelayedReport {
                report: Some((&hottest(&relayed.report)).into()),
                service: relayed.service.to_string(),
            })
            .collect(),
        ended: of.ended,
    });
    replica::RelayedReports {
        streams: streams.collect(),
    }
}

/// No more keys than count.
fn hottest(report: &Report) -> Report {
    let mut report = report.clone();
    if let Some(demand) = &mut report.demand
        && demand.keys.len() > HOT_KEYS_MAX
    {
        let mut keys: Vec<(u64, u64)> = demand.keys.iter().map(|(k, d)| (*d, *k)).collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys.truncate(HOT_KEYS_MAX);
        *demand = Demand {
            base: demand.base,
            keys: keys.into_iter().map(|(asked, key)| (key, asked)).collect(),
        };
    }
    report
}

/// Reads a message that relays reports.
pub fn read_reports(wire: replica::RelayedReports) -> Result<Vec<StreamReports>, Rejection> {
    let reports: usize = wire.streams.iter().map(|of| of.reports.len()).sum();
    let found = reports.max(wire.streams.len());
    if found > RELAYED_MAX {
        return Err(Rejection::Value {
            field: "streams",
            found: format!("{found} streams or reports"),
            allowed: "4096 at most",
        });
    }
    let streams = wire.streams.into_iter().map(|of| {
        if of.instance.is_empty() || of.instance.len() > INSTANCE_MAX {
            return Err(Rejection::Value {
                field: "streams.instance",
                found: of.instance.chars().take(INSTANCE_MAX).collect(),
                allowed: "a name of 1 to 512 bytes",
            });
        }
        let reports = of.reports.into_iter().map(|relayed| {
            Ok(RelayedReport {
                report: relayed.report.unwrap_or_default().try_into()?,
                service: name("streams.reports.service", relayed.service.parse())?,
            })
        });
        Ok(StreamReports {
            stream: of.stream,
            instance: of.instance.into(),
            reports: reports.collect::<Result<_, Rejection>>()?,
            ended: of.ended,
        })
    });
    streams.collect()
}

/// The messages that relay grants; of nothing one, which is a sign of life.
pub fn relayed_grants(term: u64, streams: Vec<StreamGrants>) -> Vec<replica::RelayedGrants> {
    let empty = || replica::RelayedGrants {
        term,
        streams: Vec::new(),
    };
    let (mut messages, mut message, mut bytes) = (Vec::new(), empty(), 0);
    for of in streams {
        let of = replica::StreamGrants {
            stream: of.stream,
            grants: of.grants.iter().map(Into::into).collect(),
        };
        let len = of.encoded_len();
        if bytes > 0 && bytes + len > GRANTS_BYTES {
            messages.push(std::mem::replace(&mut message, empty()));
            bytes = 0;
        }
        bytes += len;
        message.streams.push(of);
    }
    messages.push(message);
    messages
}

/// Reads a message that relays grants: the term, and what is granted.
pub fn read_grants(wire: replica::RelayedGrants) -> Result<(u64, Vec<StreamGrants>), Rejection> {
    let streams = wire.streams.into_iter().map(|of| {
        let grants = of.grants.into_iter().map(Grant::try_from);
        Ok(StreamGrants {
            stream: of.stream,
            grants: grants.collect::<Result<_, Rejection>>()?,
        })
    });
    Ok((wire.term, streams.collect::<Result<_, Rejection>>()?))
}

#[cfg(test)]
mod tests {
    use weft_core::rate::RuleName;
    use weft_core::rate::lease::Shares;

    use super::*;

    fn report(version: u64, demand: Option<(u64, &[(u64, u64)])>) -> RelayedReport {
        RelayedReport {
            report: Report {
                rule: RuleName {
                    namespace: "shop".into(),
                    policy: "web".into(),
                    rule: 2,
                },
                version,
                holds: Shares::even(3),
                demand: demand.map(|(base, keys)| Demand {
                    base,
                    keys: keys.iter().copied().collect(),
                }),
            },
            service: "shop/web".parse().unwrap(),
        }
    }

    fn stream(reports: Vec<RelayedReport>) -> StreamReports {
        StreamReports {
            stream: 7,
            instance: "i".into(),
            reports,
            ended: false,
        }
    }

    #[test]
    fn reports_and_grants_come_out_as_they_went_in() {
        let streams = vec![
            stream(vec![report(5, Some((9, &[(1, 2)]))), report(6, None)]),
            StreamReports {
                ended: true,
                ..stream(Vec::new())
            },
        ];
        let read = read_reports(relayed_reports(streams.clone()));
        assert_eq!(read.unwrap(), streams);
        let grant = Grant {
            rule: report(0, None).report.rule,
            version: 4,
            shares: Shares::even(2),
        };
        let streams = vec![
            StreamGrants {
                stream: 7,
                grants: vec![grant],
            };
            20_000
        ];
        let messages = relayed_grants(3, streams.clone());
        assert!(messages.len() > 1);
        assert!(messages.iter().all(|m| m.encoded_len() < 2 * GRANTS_BYTES));
        let read = messages
            .into_iter()
            .map(|message| read_grants(message).unwrap());
        let read: Vec<StreamGrants> = read
            .flat_map(|(term, streams)| {
                assert_eq!(term, 3);
                streams
            })
            .collect();
        assert_eq!(read, streams);
        assert_eq!(relayed_grants(3, Vec::new()).len(), 1);
    }

    #[test]
    fn reports_of_one_limit_add_up() {
        for (earlier, later, demand) in [
            (None, None, None),
            (Some((3, &[(1, 2)][..])), None, Some((3, &[(1, 2)][..]))),
            (None, Some((4, &[][..])), Some((4, &[][..]))),
            (
                Some((3, &[(1, 2), (2, 1)][..])),
                Some((u64::MAX, &[(1, 5)][..])),
                Some((u64::MAX, &[(1, 7), (2, 1)][..])),
            ),
        ] {
            let mut both = report(1, earlier);
            both.follow(report(2, later));
            assert_eq!(both, report(2, demand));
        }
        let many: Vec<(u64, u64)> = (0..100).map(|key| (key, key)).collect();
        let told = relayed_reports(vec![stream(vec![report(1, Some((1, &many)))])]);
        let told = read_reports(told).unwrap().remove(0).reports.remove(0);
        let keys = told.report.demand.unwrap().keys;
        assert_eq!((keys.len(), keys.get(&99)), (HOT_KEYS_MAX, Some(&99)));
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        type Change = fn(&mut replica::RelayedReports);
        let cases: [(&str, Change); 5] = [
            ("streams.instance", |wire| wire.streams[0].instance.clear()),
            ("streams.reports.service", |wire| {
                wire.streams[0].reports[0].service = "web".to_owned();
            }),
            ("rule.namespace", |wire| {
                wire.streams[0].reports[0].report = None;
            }),
            ("streams", |wire| {
                wire.streams = vec![replica::StreamReports::default(); RELAYED_MAX + 1];
            }),
            ("streams", |wire| {
                let report = wire.streams[0].reports[0].clone();
                wire.streams[0].reports = vec![report; RELAYED_MAX + 1];
            }),
        ];
        for (field, change) in cases {
            let mut wire = relayed_reports(vec![stream(vec![report(1, None)])]);
            change(&mut wire);
            let refused = read_reports(wire).unwrap_err().to_string();
            assert!(refused.contains(field), "{field}: {refused}");
        }
    }
}
