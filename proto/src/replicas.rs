//! What control planes tell each other of the sidecars that are connected to them, wire to domain and
//! back.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use weft_core::interception::Standing;
use weft_core::model::ObservedBreaker;
use weft_core::name::SpiffeId;

use crate::convert::{Rejection, name};
use crate::observed::interception;
use crate::{registry, replica};

/// Bytes of sidecars in one message; a message has at least one.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// Instances that one message names as gone.
const GONE_AT_ONCE: usize = 4096;
/// Longest name of a replica, an instance or a resource, and longest version, characters.
const NAME_MAX: usize = 512;
/// Rejected resources that are told of one sidecar.
const REJECTED_MAX: usize = 16;
/// Longest reason of a rejection, characters.
const REASON_MAX: usize = 512;
/// Breakers that are told of one sidecar.
const BREAKERS_MAX: usize = 100;

/// A sidecar, as the control plane that it is connected to tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SidecarReport {
    /// Its instance.
    pub instance: Arc<str>,
    /// Who it is.
    pub identity: SpiffeId,
    /// When its certificate ends, seconds since the Unix epoch.
    pub not_after: i64,
    /// Its version.
    pub version: String,
    /// When its stream began, milliseconds since the Unix epoch.
    pub since: i64,
    /// Resources that it holds.
    pub holds: usize,
    /// Everything up to this revision is in force there; `None` where everything published is.
    pub behind: Option<u64>,
    /// Whether it has not had everything yet that it asked for since it connected.
    pub begins: bool,
    /// Resources that it rejected, KIND/NAME, with the reason; of many some.
    pub rejected: BTreeMap<String, Arc<str>>,
    /// What it has told of itself.
    pub observed: Option<ObservedReport>,
}

/// What a sidecar has told of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedReport {
    /// When, milliseconds since the Unix epoch.
    pub told: i64,
    /// Its breakers; of many some.
    pub breakers: Vec<ObservedBreaker>,
    /// Whether interception is in force, where it is proved.
    pub interception: Option<Standing>,
}

/// What is published, and the states of the documents at its revisions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishedReport {
    /// The newest revision that sidecars are told.
    pub published: u64,
    /// New states since the last one, the oldest first, each with its revision.
    pub positions: Vec<(u64, u128)>,
}

/// What a control plane tells of its sidecars: all of them first, then what has changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReplicaReport {
    /// Names the process that reports.
    pub replica: Arc<str>,
    /// Sidecars that are new or have changed.
    pub sidecars: Vec<SidecarReport>,
    /// Instances that are not connected any more.
    pub gone: Vec<Arc<str>>,
    /// Where it is whole with this message.
    pub whole: Option<PublishedReport>,
}

impl ReplicaReport {
    /// The messages that tell it; of these the last is whole, if it is.
    pub fn into_messages(self) -> Vec<replica::Report> {
        let name = self.replica.to_string();
        let empty = || replica::Report {
            replica: name.clone(),
            ..replica::Report::default()
        };
        let mut messages = Vec::new();
        let (mut message, mut bytes) = (empty(), 0);
        for sidecar in self.sidecars {
            let sidecar = replica::Sidecar::from(sidecar);
            let len = sidecar.encoded_len();
            if bytes > 0 && bytes + len > MESSAGE_BYTES {
                messages.push(std::mem::replace(&mut message, empty()));
                bytes = 0;
            }
            bytes += len;
            message.sidecars.push(sidecar);
        }
        for gone in self.gone {
            if message.gone.len() == GONE_AT_ONCE {
                messages.push(std::mem::replace(&mut message, empty()));
            }
            message.gone.push(gone.to_string());
        }
        if let Some(whole) = self.whole {
            message.whole = true;
            message.published = whole.published;
            let positions = whole.positions.into_iter();
            let positions = positions.map(|(revision, state)| replica::Position {
                revision,
                state: state.to_be_bytes().to_vec(),
            });
            message.positions = positions.collect();
        }
        messages.push(message);
        messages
    }
}

impl TryFrom<replica::Report> for ReplicaReport {
    type Error = Rejection;

    fn try_from(wire: replica::Report) -> Result<Self, Rejection> {
        let sidecars = wire.sidecars.into_iter().map(SidecarReport::try_from);
        let positions = wire.positions.into_iter().map(|position| {
            let state = <[u8; 16]>::try_from(&*position.state);
            let state = state.map_err(|_| Rejection::Value {
                field: "positions.state",
                found: format!("{} bytes", position.state.len()),
                allowed: "16 bytes",
            })?;
            Ok((position.revision, u128::from_be_bytes(state)))
        });
        let positions: Vec<_> = positions.collect::<Result<_, Rejection>>()?;
        Ok(Self {
            replica: cut(&wire.replica, NAME_MAX).into(),
            sidecars: sidecars.collect::<Result<_, _>>()?,
            gone: wire.gone.iter().map(|gone| (**gone).into()).collect(),
            whole: wire.whole.then_some(PublishedReport {
                published: wire.published,
                positions,
            }),
        })
    }
}

impl From<SidecarReport> for replica::Sidecar {
    fn from(report: SidecarReport) -> Self {
        let is_all_told = report.rejected.len() <= REJECTED_MAX;
        let rejected = report.rejected.into_iter().take(REJECTED_MAX);
        let told = report.observed.as_ref().map_or(0, |one| one.told);
        let observed = report.observed.map(|one| registry::Observed {
            breakers: { one.breakers.iter().take(BREAKERS_MAX) }
                .map(Into::into)
                .collect(),
            interception: registry::InterceptionState::from(one.interception).into(),
        });
        Self {
            instance: report.instance.to_string(),
            identity: report.identity.to_string(),
            not_after: report.not_after,
            version: cut(&report.version, NAME_MAX),
            since: report.since,
            holds: u64::try_from(report.holds).unwrap_or(u64::MAX),
            behind: report.behind,
            // Where not all is told, it is not held for settled.
            begins: report.begins || !is_all_told,
            rejected: rejected
                .map(|(resource, reason)| replica::Rejected {
                    resource: cut(&resource, NAME_MAX),
                    reason: cut(&reason, REASON_MAX),
                })
                .collect(),
            told,
            observed,
        }
    }
}

impl TryFrom<replica::Sidecar> for SidecarReport {
    type Error = Rejection;

    fn try_from(wire: replica::Sidecar) -> Result<Self, Rejection> {
        let rejected = wire.rejected.iter().take(REJECTED_MAX);
        let observed = wire.observed.map(|observed| {
            let interception = interception(&observed);
            let breakers = observed.breakers.into_iter().take(BREAKERS_MAX);
            Ok::<_, Rejection>(ObservedReport {
                told: wire.told,
                interception,
                breakers: { breakers.map(ObservedBreaker::try_from) }.collect::<Result<_, _>>()?,
            })
        });
        Ok(Self {
            instance: cut(&wire.instance, NAME_MAX).into(),
            identity: name("sidecars.identity", wire.identity.parse())?,
            not_after: wire.not_after,
            version: cut(&wire.version, NAME_MAX),
            since: wire.since,
            holds: usize::try_from(wire.holds).unwrap_or(usize::MAX),
            behind: wire.behind,
            begins: wire.begins,
            rejected: rejected
                .map(|one| {
                    let reason = cut(&one.reason, REASON_MAX);
                    (cut(&one.resource, NAME_MAX), reason.into())
                })
                .collect(),
            observed: observed.transpose()?,
        })
    }
}

fn cut(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar(instance: &str, reason: &str) -> SidecarReport {
        SidecarReport {
            instance: instance.into(),
            identity: "spiffe://weft.local/ns/shop/sa/web".parse().unwrap(),
            not_after: 9,
            version: "1".to_owned(),
            since: 5,
            holds: 3,
            behind: Some(7),
            begins: false,
            rejected: BTreeMap::from([("Service/shop/web".to_owned(), reason.into())]),
            observed: Some(ObservedReport {
                told: 8,
                breakers: Vec::new(),
                interception: Some(Standing::Lapsed),
            }),
        }
    }

    #[test]
    fn a_report_comes_out_as_it_went_in() {
        let report = ReplicaReport {
            replica: "a".into(),
            sidecars: vec![sidecar("i", "bad")],
            gone: vec!["j".into()],
            whole: Some(PublishedReport {
                published: 8,
                positions: vec![(7, 1), (8, u128::MAX)],
            }),
        };
        let messages = report.clone().into_messages();
        assert_eq!(messages.len(), 1);
        let read = messages.into_iter().map(ReplicaReport::try_from);
        assert_eq!(read.collect::<Result<Vec<_>, _>>().unwrap(), [report]);
    }

    #[test]
    fn many_sidecars_are_several_messages_of_which_the_last_is_whole() {
        let long = "x".repeat(REASON_MAX);
        let sidecars = (0..4000).map(|n| sidecar(&format!("i-{n}"), &long));
        let report = ReplicaReport {
            replica: "a".into(),
            sidecars: sidecars.collect(),
            gone: (0..5000).map(|n| format!("g-{n}").into()).collect(),
            whole: Some(PublishedReport::default()),
        };
        let messages = report.clone().into_messages();
        assert!(messages.len() >= 3, "{}", messages.len());
        let (last, before) = messages.split_last().unwrap();
        assert!(last.whole && before.iter().all(|message| !message.whole));
        assert!(messages.iter().all(|m| m.encoded_len() < 2 * MESSAGE_BYTES));
        let count: usize = messages.iter().map(|m| m.sidecars.len()).sum();
        assert_eq!(count, 4000);
        let gone: usize = messages.iter().map(|m| m.gone.len()).sum();
        assert_eq!(gone, 5000);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let bad = replica::Report {
            sidecars: vec![replica::Sidecar::default()],
            ..replica::Report::default()
        };
        assert!(ReplicaReport::try_from(bad).is_err());
        let bad = replica::Report {
            positions: vec![replica::Position::default()],
            ..replica::Report::default()
        };
        assert!(ReplicaReport::try_from(bad).is_err());
    }
}
