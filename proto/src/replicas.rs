//! What control planes tell each other of the sidecars that are connected to them, wire to domain and
//! back.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use weft_core::interception::InterceptionReport;
use weft_core::model::ObservedBreaker;
use weft_core::name::SpiffeId;

use crate::convert::{Rejection, name};
use crate::observed::interception;
use crate::refusals::{self, NamespaceRefusals};
use crate::{registry, replica};

/// Bytes of sidecars in one message; a message has at least one.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// Instances that one message names as gone.
const GONE_AT_ONCE: usize = 4096;
/// Longest name of a replica, an instance or a resource, and longest version, characters.
pub(crate) const NAME_MAX: usize = 512;
/// Rejected resources that are told of one sidecar.
pub const REJECTED_MAX: usize = 16;
/// Spans of revisions that are told of one sidecar.
pub const LACKS_MAX: usize = 16;
/// Kinds of documents that one position may name.
const KINDS_MAX: usize = 64;
/// Longest reason of a rejection, characters.
const REASON_MAX: usize = 512;
/// Breakers that are told of one sidecar.
const BREAKERS_MAX: usize = 100;

/// The revisions after `after`, up to `until`, by the count of the control plane that they are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RevisionSpan {
    /// The last revision before them.
    pub after: u64,
    /// The last of them.
    pub until: u64,
}

impl RevisionSpan {
    /// Whether a revision is among them.
    pub fn contains(&self, revision: u64) -> bool {
        self.after < revision && revision <= self.until
    }

    /// Whether any revision is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.after < other.until && other.after < self.until
    }
}

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
    /// Revisions with something that concerns it and is not in force there, at most [`LACKS_MAX`] spans.
    pub lacks: Vec<RevisionSpan>,
    /// Resources that it rejected, KIND/NAME, with the reason; of many the first [`REJECTED_MAX`].
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
    pub interception: Option<InterceptionReport>,
}

/// What is published, and what was seen of the documents' history at its revisions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishedReport {
    /// The newest revision that sidecars are told.
    pub published: u64,
    /// Revisions since the last one, the oldest first, each with the greatest `resourceVersion` of each
    /// kind up to which everything was seen.
    pub positions: Vec<(u64, BTreeMap<Arc<str>, u64>)>,
    /// The term in which the control plane keeps the books of global limits, if it does.
    pub books_term: Option<u64>,
    /// Whether it tells what it refuses.
    pub tells_refused: bool,
    /// Whether there are more namespaces with refused documents than it tells of.
    pub refuses_more: bool,
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
    /// Namespaces of which something else is refused than was told, with all that is refused of each.
    pub refused: BTreeMap<Arc<str>, NamespaceRefusals>,
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
        for (namespace, of) in self.refused {
            let of = refusals::into_wire(&namespace, of);
            let len = of.encoded_len();
            if bytes > 0 && bytes + len > MESSAGE_BYTES {
                messages.push(std::mem::replace(&mut message, empty()));
                bytes = 0;
            }
            bytes += len;
            message.refused.push(of);
        }
        if let Some(whole) = self.whole {
            message.whole = true;
            message.tells_refused = whole.tells_refused;
            message.refuses_more = whole.refuses_more;
            message.published = whole.published;
            message.books_term = whole.books_term;
            let positions = whole.positions.into_iter();
            let positions = positions.map(|(revision, seen)| replica::Position {
                revision,
                // Revisions are never the same in two processes, and none is a sum of hashes.
                state: [u64::MAX, revision].map(u64::to_be_bytes).concat(),
                seen: { seen.into_iter() }
                    .map(|(kind, version)| replica::SeenKind {
                        kind: kind.to_string(),
                        version,
                    })
                    .collect(),
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
            let seen = position.seen.into_iter().take(KINDS_MAX);
            let seen = seen.map(|of| (cut(&of.kind, NAME_MAX).into(), of.version));
            (position.revision, seen.collect())
        });
        let positions = positions.collect();
        Ok(Self {
            replica: cut(&wire.replica, NAME_MAX).into(),
            sidecars: sidecars.collect::<Result<_, _>>()?,
            gone: wire.gone.iter().map(|gone| (**gone).into()).collect(),
            refused: wire.refused.into_iter().map(refusals::from_wire).collect(),
            whole: wire.whole.then_some(PublishedReport {
                published: wire.published,
                positions,
                books_term: wire.books_term,
                tells_refused: wire.tells_refused,
                refuses_more: wire.refuses_more,
            }),
        })
    }
}

impl From<SidecarReport> for replica::Sidecar {
    fn from(report: SidecarReport) -> Self {
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
            begins: report.begins,
            lacks: { report.lacks.iter() }
                .map(|span| replica::RevisionSpan {
                    after: span.after,
                    until: span.until,
                })
                .collect(),
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
            lacks: lacks(&wire.lacks),
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

/// Spans of the wire. Those beyond the limit are one with the last that is kept.
fn lacks(wire: &[replica::RevisionSpan]) -> Vec<RevisionSpan> {
    let spans = wire.iter().map(|span| RevisionSpan {
        after: span.after,
        until: span.until,
    });
    let mut kept: Vec<RevisionSpan> = Vec::new();
    for span in spans {
        let is_full = kept.len() == LACKS_MAX;
        match kept.last_mut() {
            Some(last) if is_full => {
                last.after = last.after.min(span.after);
                last.until = last.until.max(span.until);
            }
            Some(_) | None => kept.push(span),
        }
    }
    kept
}

pub(crate) fn cut(text: &str, max: usize) -> String {
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
            lacks: vec![RevisionSpan { after: 7, until: 8 }],
            rejected: BTreeMap::from([("Service/shop/web".to_owned(), reason.into())]),
            observed: Some(ObservedReport {
                told: 8,
                breakers: Vec::new(),
                interception: Some(InterceptionReport::Lapsed),
            }),
        }
    }

    fn refused(name: &str) -> NamespaceRefusals {
        NamespaceRefusals {
            documents: vec![refusals::RefusedDocument {
                kind: "HTTPRoute".into(),
                name: name.into(),
                generation: 4,
                word: "Invalid".into(),
                reason: "odd".into(),
            }],
            has_more: true,
        }
    }

    #[test]
    fn a_report_comes_out_as_it_went_in() {
        let report = ReplicaReport {
            replica: "a".into(),
            sidecars: vec![sidecar("i", "bad")],
            gone: vec!["j".into()],
            refused: BTreeMap::from([("shop".into(), refused("web"))]),
            whole: Some(PublishedReport {
                published: 8,
                positions: vec![
                    (7, BTreeMap::from([("HTTPRoute".into(), 41)])),
                    (8, BTreeMap::from([("HTTPRoute".into(), u64::MAX)])),
                ],
                books_term: Some(3),
                tells_refused: true,
                refuses_more: true,
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
            refused: (0..5000)
                .map(|n| (format!("n-{n}").into(), refused(&long)))
                .collect(),
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
        let refused: usize = messages.iter().map(|m| m.refused.len()).sum();
        assert_eq!(refused, 5000);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let bad = replica::Report {
            sidecars: vec![replica::Sidecar::default()],
            ..replica::Report::default()
        };
        assert!(ReplicaReport::try_from(bad).is_err());
    }

    #[test]
    fn spans_beyond_the_limit_are_told_as_one() {
        let many = (0..40).map(|n| replica::RevisionSpan {
            after: 10 * n,
            until: 10 * n + 5,
        });
        let kept = lacks(&many.collect::<Vec<_>>());
        assert_eq!(kept.len(), LACKS_MAX);
        assert_eq!(kept[LACKS_MAX - 1].after, 150);
        assert!(kept[LACKS_MAX - 1].contains(395) && kept[0].contains(1) && !kept[0].contains(6));
        let [a, b] = [(1, 3), (3, 4)].map(|(after, until)| RevisionSpan { after, until });
        assert!(!a.overlaps(&b) && a.overlaps(&a));
    }
}
