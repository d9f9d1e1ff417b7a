//! What another control plane has told, and what follows from it: pure, `now` is an argument.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_proto::replicas::{PublishedReport, ReplicaReport, SidecarReport};

use crate::store::{POSITIONS_MAX, Position, Revision};

/// A control plane that was not heard for this long is not known any more: what it told last is held
/// for nothing.
pub const EXPIRES: Duration = Duration::from_secs(10);
/// Sidecars that one control plane may tell of.
pub const SIDECARS_MAX: usize = 100_000;

/// Tells of too many sidecars.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it tells of more than {SIDECARS_MAX} sidecars")]
pub(super) struct TooMany;

/// The words of one control plane.
#[derive(Debug, Default)]
pub(super) struct Told {
    sidecars: BTreeMap<Arc<str>, SidecarReport>,
    published: Revision,
    positions: Positions,
    /// Sidecars of a stream that has not told all of them yet.
    begun: Option<BTreeMap<Arc<str>, SidecarReport>>,
    heard: Option<Instant>,
}

/// The states of the documents at another process's revisions.
#[derive(Debug, Default)]
struct Positions {
    newest: VecDeque<Position>,
    /// The latest revision of each state.
    by_state: HashMap<u128, Revision>,
}

impl Told {
    /// A stream begins, which tells everything anew.
    pub(super) fn begin(&mut self) {
        self.begun = Some(BTreeMap::new());
    }

    /// A message of the stream; whether it says something new, and is not only a sign of life.
    pub(super) fn take(&mut self, report: ReplicaReport, now: Instant) -> Result<bool, TooMany> {
        let mut is_news = self.begun.is_some() || self.sidecars(now).is_none();
        is_news |= !report.gone.is_empty() || !report.sidecars.is_empty();
        let sidecars = self.begun.as_mut().unwrap_or(&mut self.sidecars);
        for gone in &report.gone {
            sidecars.remove(gone);
        }
        for sidecar in report.sidecars {
            sidecars.insert(Arc::clone(&sidecar.instance), sidecar);
        }
        if sidecars.len() > SIDECARS_MAX {
            return Err(TooMany);
        }
        let Some(PublishedReport {
            published,
            positions,
        }) = report.whole
        else {
            return Ok(is_news);
        };
        is_news |= published != self.published || !positions.is_empty();
        if let Some(sidecars) = self.begun.take() {
            self.sidecars = sidecars;
            self.positions = Positions::default();
        }
        self.published = published;
        for (revision, state) in positions {
            self.positions.push(Position { revision, state });
        }
        self.heard = Some(now);
        Ok(is_news)
    }

    /// Whether a message says something else of the interception of a sidecar than was told.
    pub(super) fn interception_changes(&self, report: &ReplicaReport) -> bool {
        let of = |sidecar: &SidecarReport| sidecar.observed.as_ref()?.interception;
        report.sidecars.iter().any(|sidecar| {
            let before = self.sidecars.get(&sidecar.instance).and_then(of);
            of(sidecar) != before
        })
    }

    /// What it tells of sidecars, unless it was not heard for too long.
    pub(super) fn sidecars(&self, now: Instant) -> Option<&BTreeMap<Arc<str>, SidecarReport>> {
        let heard = self.heard?;
        (now.saturating_duration_since(heard) < EXPIRES).then_some(&self.sidecars)
    }

    /// When it is known no longer, if nothing more is heard.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.heard.map(|heard| heard + EXPIRES)
    }

    /// Its first revision, as far as that is known, that has everything of a revision of ours: a state
    /// that both were in at or after it. `ours` are our states, the oldest first.
    pub(super) fn reached(&self, ours: &[Position], revision: Revision) -> Option<Revision> {
        let since = ours.iter().filter(|position| position.revision >= revision);
        let mut common = since.filter_map(|position| self.positions.by_state.get(&position.state));
        common.next().copied()
    }

    /// Whether a sidecar has everything up to a revision of this control plane, as
    /// [`reached`](Self::reached) gives it.
    pub(super) fn has_applied(&self, sidecar: &SidecarReport, reached: Option<Revision>) -> bool {
        let applied = sidecar.behind.unwrap_or(self.published).min(self.published);
        !sidecar.begins && reached.is_some_and(|reached| applied >= reached)
    }

    /// Our newest revision that a sidecar has, as far as that is known; 0 where nothing is.
    pub(super) fn applied(&self, sidecar: &SidecarReport, ours: &[Position]) -> Revision {
        let mut newest = ours.iter().rev().filter(|position| {
            let reached = self.positions.by_state.get(&position.state);
            self.has_applied(sidecar, reached.copied())
        });
        newest.next().map_or(0, |position| position.revision)
    }
}

impl Positions {
    fn push(&mut self, position: Position) {
        if self.newest.len() == POSITIONS_MAX
            && let Some(oldest) = self.newest.pop_front()
            && self.by_state.get(&oldest.state) == Some(&oldest.revision)
        {
            self.by_state.remove(&oldest.state);
        }
        self.newest.push_back(position);
        self.by_state.insert(position.state, position.revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar(instance: &str, behind: Option<Revision>) -> SidecarReport {
        SidecarReport {
            instance: instance.into(),
            identity: "spiffe://weft.local/ns/shop/sa/web".parse().unwrap(),
            not_after: 9,
            version: String::new(),
            since: 5,
            holds: 3,
            behind,
            begins: false,
            rejected: BTreeMap::new(),
            observed: None,
        }
    }

    fn report(sidecars: &[SidecarReport], whole: Option<(u64, &[(u64, u128)])>) -> ReplicaReport {
        ReplicaReport {
            replica: "them".into(),
            sidecars: sidecars.to_vec(),
            gone: Vec::new(),
            whole: whole.map(|(published, positions)| PublishedReport {
                published,
                positions: positions.to_vec(),
            }),
        }
    }

    fn ours(positions: &[(u64, u128)]) -> Vec<Position> {
        let positions = positions.iter();
        let positions = positions.map(|(revision, state)| Position {
            revision: *revision,
            state: *state,
        });
        positions.collect()
    }

    #[test]
    fn a_state_that_both_were_in_says_which_revision_is_which() {
        let now = Instant::now();
        let mut told = Told::default();
        told.begin();
        // State 2 was passed by the two in another order: they have 1, 4 and 5 in common.
        let theirs = [(100, 1), (101, 3), (102, 4)];
        let [current, slow] = [sidecar("a", None), sidecar("b", Some(101))];
        told.take(report(&[current, slow], Some((102, &theirs))), now)
            .unwrap();
        let ours = ours(&[(10, 1), (11, 2), (12, 4), (13, 5)]);
        for (revision, reached, applied) in [
            (10, Some(100), ["a", "b"].as_slice()),
            (11, Some(102), &["a"]),
            (12, Some(102), &["a"]),
            // They have not seen it yet.
            (13, None, &[]),
            (14, None, &[]),
        ] {
            assert_eq!(told.reached(&ours, revision), reached, "{revision}");
            let all = told.sidecars(now).unwrap().values();
            let found = all.filter(|sidecar| told.has_applied(sidecar, reached));
            let found: Vec<&str> = found.map(|sidecar| &*sidecar.instance).collect();
            assert_eq!(found, applied, "{revision}");
        }
        let all = told.sidecars(now).unwrap();
        assert_eq!(told.applied(&all["a"], &ours), 12);
        assert_eq!(told.applied(&all["b"], &ours), 10);
        // It has seen the document, and has not told its sidecars yet.
        told.take(report(&[], Some((102, &[(103, 5)]))), now)
            .unwrap();
        let reached = told.reached(&ours, 13);
        assert_eq!(reached, Some(103));
        let all = told.sidecars(now).unwrap();
        assert!(!told.has_applied(&all["a"], reached));
        told.take(report(&[], Some((103, &[]))), now).unwrap();
        let all = told.sidecars(now).unwrap();
        assert!(told.has_applied(&all["a"], reached));
    }

    #[test]
    fn one_that_begins_has_applied_nothing() {
        let now = Instant::now();
        let mut told = Told::default();
        told.begin();
        let begins = SidecarReport {
            begins: true,
            ..sidecar("a", None)
        };
        told.take(report(&[begins], Some((5, &[(5, 1)]))), now)
            .unwrap();
        let all = told.sidecars(now).unwrap();
        assert!(!told.has_applied(&all["a"], Some(5)));
    }

    #[test]
    fn what_was_told_counts_when_it_is_whole_and_until_it_expires() {
        let start = Instant::now();
        let mut told = Told::default();
        told.begin();
        told.take(report(&[sidecar("a", None)], None), start)
            .unwrap();
        assert!(told.sidecars(start).is_none(), "there may be more");
        told.take(report(&[sidecar("b", None)], Some((1, &[]))), start)
            .unwrap();
        assert_eq!(told.sidecars(start).unwrap().len(), 2);
        let late = start + EXPIRES;
        assert!(told.sidecars(late).is_none());
        // Another stream tells everything anew; until it has, the words of the last one count.
        told.take(report(&[], Some((1, &[]))), late).unwrap();
        told.begin();
        told.take(report(&[sidecar("c", None)], None), late)
            .unwrap();
        assert_eq!(told.sidecars(late).unwrap().len(), 2);
        told.take(report(&[], Some((1, &[]))), late).unwrap();
        let names: Vec<_> = told.sidecars(late).unwrap().keys().cloned().collect();
        assert_eq!(names, ["c".into()]);
        let mut less = report(&[], Some((1, &[])));
        less.gone = vec!["c".into()];
        told.take(less, late).unwrap();
        assert!(told.sidecars(late).unwrap().is_empty());
    }

    #[test]
    fn states_are_bounded() {
        let mut positions = Positions::default();
        for n in 0..3 * POSITIONS_MAX as u64 {
            positions.push(Position {
                revision: n,
                state: u128::from(n % 2 + n),
            });
        }
        assert_eq!(positions.newest.len(), POSITIONS_MAX);
        assert!(positions.by_state.len() <= POSITIONS_MAX);
    }

    #[test]
    fn a_sign_of_life_is_no_news() {
        let start = Instant::now();
        let mut told = Told::default();
        told.begin();
        let mut news = |report, now| told.take(report, now).unwrap();
        assert!(news(report(&[sidecar("a", None)], Some((1, &[]))), start));
        let alive = || report(&[], Some((1, &[])));
        assert!(!news(alive(), start));
        assert!(news(report(&[], Some((2, &[]))), start), "a revision");
        let mut less = report(&[], Some((2, &[])));
        less.gone.push("a".into());
        assert!(news(less, start), "one is gone");
        let late = start + EXPIRES;
        let alive = report(&[], Some((2, &[])));
        assert!(news(alive, late), "it is known again");
    }
}
