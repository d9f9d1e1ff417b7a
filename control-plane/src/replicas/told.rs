//! What another control plane has reported, and what follows from it: pure, `now` is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_proto::refusals::{Refusal, Refusals};
use weft_proto::replicas::{PublishedReport, ReplicaReport, RevisionSpan, SidecarReport};

use crate::model::ResourceKey;
use crate::store::{POSITIONS_MAX, Position, Revision, SeenVersions};

/// A control plane that was not heard for this long is not known any more: what it told last is held
/// for nothing.
pub const EXPIRES: Duration = Duration::from_secs(10);
/// Sidecars that one control plane may tell of.
pub const SIDECARS_MAX: usize = 100_000;

/// Tells of too many sidecars.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it tells of more than {SIDECARS_MAX} sidecars")]
pub(super) struct TooMany;

/// What one control plane has reported of itself and of its sidecars.
#[derive(Debug, Default)]
pub(super) struct ReplicaState {
    sidecars: BTreeMap<Arc<str>, SidecarReport>,
    published: Revision,
    /// Its newest revisions, ascending, each with what it had seen of the documents at it.
    seen: VecDeque<SeenRevision>,
    refusals: Refusals,
    /// Whether it tells what it refuses.
    tells_refused: bool,
    /// What a stream has told that has not told everything yet.
    begun: Option<Begun>,
    heard: Option<Instant>,
    /// The name that it has given itself.
    replica: Arc<str>,
}

/// What the first messages of a stream have told.
#[derive(Debug, Default)]
struct Begun {
    sidecars: BTreeMap<Arc<str>, SidecarReport>,
    refusals: Refusals,
}

/// A revision of it.
#[derive(Debug)]
struct SeenRevision {
    revision: Revision,
    /// What it had seen of the documents at it.
    seen: SeenVersions,
    /// When it was told first by this replica, on whichever stream.
    heard: Instant,
}

/// Where another control plane has what a revision of ours changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reached {
    /// Its revisions with the change: in some of the span, and all of it at its end.
    pub(super) span: RevisionSpan,
    /// When the last of these was heard of; `None` while its sidecars were not told of it.
    pub(super) published: Option<Instant>,
}

impl ReplicaState {
    /// A stream begins, which tells everything anew.
    pub(super) fn begin(&mut self) {
        self.begun = Some(Begun::default());
    }

    /// A message of the stream; whether it says something new, and is not only a sign of life.
    pub(super) fn take(&mut self, report: ReplicaReport, now: Instant) -> Result<bool, TooMany> {
        let mut is_news = self.begun.is_some() || self.sidecars(now).is_none();
        is_news |= !report.gone.is_empty() || !report.sidecars.is_empty();
        is_news |= !report.refused.is_empty();
        let (sidecars, refusals) = match &mut self.begun {
            Some(begun) => (&mut begun.sidecars, &mut begun.refusals),
            None => (&mut self.sidecars, &mut self.refusals),
        };
        refusals.apply(report.refused);
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
            books_term: _,
            tells_refused,
            refuses_more,
        }) = report.whole
        else {
            return Ok(is_news);
        };
        is_news |= published != self.published || !positions.is_empty();
        let mut earlier = VecDeque::new();
        if let Some(begun) = self.begun.take() {
            self.sidecars = begun.sidecars;
            self.refusals = begun.refusals;
            // A stream that begins gives its sidecars no more time; the revisions of another process of
            // the same address are others.
            let seen = std::mem::take(&mut self.seen);
            if self.replica == report.replica {
                earlier = seen;
            }
            self.replica = report.replica;
        }
        self.tells_refused = tells_refused;
        self.refusals.end(refuses_more);
        self.published = published;
        for (revision, seen) in positions {
            let heard = earlier.iter().find(|one| one.revision == revision);
            self.push(revision, seen, heard.map_or(now, |one| one.heard));
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

    fn push(&mut self, revision: Revision, seen: SeenVersions, heard: Instant) {
        match self.seen.back_mut() {
            Some(newest) if newest.revision == revision => newest.seen = seen,
            Some(_) | None => self.seen.push_back(SeenRevision {
                revision,
                seen,
                heard,
            }),
        }
        if self.seen.len() > POSITIONS_MAX {
            self.seen.pop_front();
        }
    }

    /// What it tells of sidecars, unless it was not heard for too long.
    pub(super) fn sidecars(&self, now: Instant) -> Option<&BTreeMap<Arc<str>, SidecarReport>> {
        let heard = self.heard?;
        (now.saturating_duration_since(heard) < EXPIRES).then_some(&self.sidecars)
    }

    /// Whether it had sidecars when it was heard last, or was never heard.
    pub(super) fn may_have_sidecars(&self) -> bool {
        self.heard.is_none() || !self.sidecars.is_empty()
    }

    /// Whether what was heard is of another process than the one of this name.
    pub(super) fn is_another(&self, replica: &str) -> bool {
        self.heard.is_some() && *self.replica != *replica
    }

    /// When it is known no longer, if nothing more is heard.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.heard.map(|heard| heard + EXPIRES)
    }

    /// Whether it refuses a generation of a document, as far as it was heard lately.
    pub(super) fn refusal(
        &self,
        key: &ResourceKey,
        generation: u64,
        now: Instant,
    ) -> Option<Refusal<'_>> {
        self.sidecars(now)?;
        let ResourceKey {
            kind,
            namespace,
            name,
        } = key;
        self.refusals.find(kind, namespace, name, generation)
    }

    /// In which of its revisions is what a revision of ours changed. `None` while it has not seen all of
    /// it, or does not tell what of it it refuses. A change is told by the versions of the documents, so
    /// one that leads back to an earlier state is not taken for that.
    pub(super) fn reached(&self, ours: &Position) -> Option<Reached> {
        if !self.tells_refused {
            return None;
        }
        let mut before = 0;
        for one in &self.seen {
            if ours.is_within(&one.seen) {
                let (after, until) = (before, one.revision);
                return Some(Reached {
                    span: RevisionSpan { after, until },
                    published: (self.published >= until).then_some(one.heard),
                });
            }
            if ours.is_beyond(&one.seen) {
                before = one.revision;
            }
        }
        None
    }

    /// Whether a sidecar has applied everything of some revisions, as [`reached`](Self::reached) gives
    /// them, or none of it concerns it.
    pub(super) fn has_applied(&self, sidecar: &SidecarReport, reached: Option<Reached>) -> bool {
        reached.is_some_and(|Reached { span, published }| {
            let lacks = sidecar.lacks.iter().any(|lacks| lacks.overlaps(&span));
            published.is_some() && !lacks
        })
    }

    /// Our newest revision up to which a sidecar has everything, as far as that is known; 0 where
    /// nothing is. `ours` are our positions, the oldest first.
    pub(super) fn applied(&self, sidecar: &SidecarReport, ours: &[Arc<Position>]) -> Revision {
        let applied = sidecar.behind.unwrap_or(self.published).min(self.published);
        let mut there = self.seen.iter().rev();
        let there = there.find(|one| one.revision <= applied);
        let Some(SeenRevision { seen, .. }) = there.filter(|_| !sidecar.begins) else {
            return 0;
        };
        let has = ours.iter().take_while(|position| position.is_within(seen));
        has.last().map_or(0, |position| position.revision)
    }
}

#[cfg(test)]
mod tests {
    use weft_proto::refusals::RefusedDocument;

    use super::*;
    use crate::store::testing::{changed, seen};

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
            lacks: Vec::new(),
            rejected: BTreeMap::new(),
            observed: None,
        }
    }

    /// One that lacks what is in the revisions after one up to another.
    fn lacking(instance: &str, after: Revision, until: Revision) -> SidecarReport {
        SidecarReport {
            lacks: vec![RevisionSpan { after, until }],
            ..sidecar(instance, Some(after))
        }
    }

    /// Their revisions, each with what was seen of kind A.
    fn report(sidecars: &[SidecarReport], whole: Option<(u64, &[(u64, u64)])>) -> ReplicaReport {
        ReplicaReport {
            replica: "them".into(),
            sidecars: sidecars.to_vec(),
            gone: Vec::new(),
            whole: whole.map(|(published, positions)| PublishedReport {
                published,
                positions: { positions.iter() }
                    .map(|(revision, version)| (*revision, seen(&[("A", *version)])))
                    .collect(),
                books_term: None,
                tells_refused: true,
                refuses_more: false,
            }),
            refused: BTreeMap::new(),
        }
    }

    fn applied_by<'a>(told: &'a ReplicaState, ours: &Position, now: Instant) -> Vec<&'a str> {
        let reached = told.reached(ours);
        let all = told.sidecars(now).unwrap().values();
        let found = all.filter(|sidecar| told.has_applied(sidecar, reached));
        found.map(|sidecar| &*sidecar.instance).collect()
    }

    #[test]
    fn who_is_waited_for_is_whom_the_change_concerns() {
        let now = Instant::now();
        let mut told = ReplicaState::default();
        told.begin();
        // Version 11 is in 101, 12 and 13 together in 102.
        let theirs = [(100, 10), (101, 11), (102, 13)];
        let all = [
            sidecar("current", None),
            // Stands still since 100: what came then concerns it, and what comes now does not.
            lacking("stalled", 100, 101),
        ];
        told.take(report(&all, Some((102, &theirs))), now).unwrap();
        let everybody = ["current", "stalled"].as_slice();
        for (version, reached, applied) in [
            (10, Some((0, 100)), everybody),
            (11, Some((100, 101)), &["current"]),
            (12, Some((101, 102)), everybody),
            (13, Some((101, 102)), everybody),
            // They have not seen it yet.
            (14, None, &[]),
        ] {
            let ours = changed(1, &[("A", version)]);
            let reached = reached.map(|(after, until)| RevisionSpan { after, until });
            let found = told.reached(&ours).map(|reached| reached.span);
            assert_eq!(found, reached, "{version}");
            assert_eq!(applied_by(&told, &ours, now), applied, "{version}");
        }
        let ours: Vec<_> = (10..15)
            .map(|n| Arc::new(changed(n, &[("A", n)])))
            .collect();
        let all = told.sidecars(now).unwrap();
        assert_eq!(told.applied(&all["current"], &ours), 13);
        assert_eq!(told.applied(&all["stalled"], &ours), 10);
        // It has seen the document, and has not told its sidecars yet.
        told.take(report(&[], Some((102, &[(103, 14)]))), now)
            .unwrap();
        assert!(applied_by(&told, &ours[4], now).is_empty());
        assert_eq!(told.reached(&ours[4]).unwrap().published, None);
        let later = now + Duration::from_secs(1);
        told.take(report(&[], Some((103, &[]))), later).unwrap();
        assert_eq!(told.reached(&ours[4]).unwrap().published, Some(now));
        assert_eq!(applied_by(&told, &ours[4], now), everybody);
    }

    /// The time that sidecars have does not begin anew with a stream, and does with another process.
    #[test]
    fn a_stream_that_begins_gives_sidecars_no_more_time() {
        let start = Instant::now();
        let later = start + Duration::from_secs(50);
        let (old, new) = (changed(1, &[("A", 10)]), changed(2, &[("A", 11)]));
        for (replica, expected) in [("them", start), ("others", later)] {
            let mut told = ReplicaState::default();
            told.begin();
            told.take(report(&[], Some((100, &[(100, 10)]))), start)
                .unwrap();
            told.begin();
            let mut again = report(&[], Some((101, &[(100, 10), (101, 11)])));
            again.replica = replica.into();
            told.take(again, later).unwrap();
            let published = |ours| told.reached(ours).unwrap().published;
            assert_eq!(published(&old), Some(expected), "{replica}");
            assert_eq!(published(&new), Some(later), "{replica}");
        }
    }

    /// A document that is made and deleted again leaves the documents as they were.
    #[test]
    fn a_deletion_is_not_the_state_before() {
        let now = Instant::now();
        let mut told = ReplicaState::default();
        told.begin();
        let all = [sidecar("a", None)];
        told.take(report(&all, Some((100, &[(100, 10)]))), now)
            .unwrap();
        let (made, deleted) = (changed(1, &[("A", 11)]), changed(2, &[("A", 12)]));
        assert_eq!(applied_by(&told, &deleted, now), [""; 0]);
        told.take(report(&[], Some((101, &[(101, 11)]))), now)
            .unwrap();
        assert_eq!(applied_by(&told, &made, now), ["a"]);
        assert_eq!(applied_by(&told, &deleted, now), [""; 0]);
        // At the same revision of theirs more is seen: what changed was nothing for them.
        told.take(report(&[], Some((101, &[(101, 12)]))), now)
            .unwrap();
        assert_eq!(applied_by(&told, &deleted, now), ["a"]);
    }

    /// What a stream tells first counts with the rest of it, and until a later one tells otherwise.
    #[test]
    fn what_it_refuses_is_known_while_it_is_heard() {
        let start = Instant::now();
        let key = |name: &str| ResourceKey {
            kind: "HTTPRoute".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        let refusing = |name: &str, whole| {
            let mut refusals = Refusals::default();
            refusals.add(
                "shop",
                RefusedDocument {
                    kind: "HTTPRoute".into(),
                    name: name.into(),
                    generation: 3,
                    word: "Invalid".into(),
                    reason: "odd".into(),
                },
            );
            ReplicaReport {
                refused: refusals.namespaces,
                ..report(&[], whole)
            }
        };
        let mut told = ReplicaState::default();
        told.begin();
        told.take(refusing("web", None), start).unwrap();
        assert_eq!(told.refusal(&key("web"), 3, start), None, "not whole");
        told.take(report(&[], Some((1, &[(1, 10)]))), start)
            .unwrap();
        for (name, generation, is_refused) in
            [("web", 3, true), ("web", 4, false), ("api", 3, false)]
        {
            let found = told.refusal(&key(name), generation, start);
            assert_eq!(found.is_some(), is_refused, "{name} {generation}");
        }
        assert!(
            told.take(refusing("api", Some((1, &[]))), start).unwrap(),
            "news"
        );
        assert_eq!(told.refusal(&key("web"), 3, start), None);
        assert_eq!(told.refusal(&key("api"), 3, start + EXPIRES), None);
        told.begin();
        told.take(report(&[], Some((1, &[]))), start).unwrap();
        assert_eq!(told.refusal(&key("api"), 3, start), None);
        // More than it tells of.
        let mut more = report(&[], Some((1, &[])));
        more.whole.as_mut().unwrap().refuses_more = true;
        told.take(more, start).unwrap();
        assert_eq!(told.refusal(&key("api"), 3, start), Some(Refusal::Untold));
    }

    /// One of a version that does not tell it may refuse what it has seen.
    #[test]
    fn one_that_does_not_tell_what_it_refuses_has_reached_nothing() {
        let now = Instant::now();
        let mut told = ReplicaState::default();
        told.begin();
        let mut old = report(&[sidecar("a", None)], Some((100, &[(100, 10)])));
        old.whole.as_mut().unwrap().tells_refused = false;
        told.take(old, now).unwrap();
        assert_eq!(applied_by(&told, &changed(1, &[("A", 10)]), now), [""; 0]);
        told.take(report(&[], Some((100, &[]))), now).unwrap();
        assert_eq!(applied_by(&told, &changed(1, &[("A", 10)]), now), ["a"]);
    }

    #[test]
    fn one_that_begins_has_nothing_of_what_concerns_it() {
        let now = Instant::now();
        let mut told = ReplicaState::default();
        told.begin();
        let begins = SidecarReport {
            begins: true,
            ..lacking("a", 4, 5)
        };
        let theirs = [(4, 1), (5, 2), (6, 3)];
        told.take(report(&[begins], Some((6, &theirs))), now)
            .unwrap();
        assert_eq!(applied_by(&told, &changed(1, &[("A", 2)]), now), [""; 0]);
        assert_eq!(applied_by(&told, &changed(2, &[("A", 3)]), now), ["a"]);
        let all = told.sidecars(now).unwrap();
        let ours = [Arc::new(changed(1, &[("A", 1)]))];
        assert_eq!(told.applied(&all["a"], &ours), 0);
    }

    #[test]
    fn what_was_told_counts_when_it_is_whole_and_until_it_expires() {
        let start = Instant::now();
        let mut told = ReplicaState::default();
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
    fn positions_are_bounded() {
        let mut told = ReplicaState::default();
        for n in 0..3 * POSITIONS_MAX as u64 {
            told.push(n / 2, seen(&[("A", n)]), Instant::now());
        }
        assert_eq!(told.seen.len(), POSITIONS_MAX);
    }

    #[test]
    fn a_sign_of_life_is_no_news() {
        let start = Instant::now();
        let mut told = ReplicaState::default();
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
