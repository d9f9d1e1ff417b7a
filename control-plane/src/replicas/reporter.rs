//! What another control plane is told next: the difference from what it was told. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::refusals::Refusals;
use weft_proto::replicas::{PublishedReport, ReplicaReport, SidecarReport};

use crate::store::{Position, Revision, SeenVersions};

/// What one of the others was told.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    sidecars: BTreeMap<Arc<str>, SidecarReport>,
    /// The newest revision that was told, and what was seen at it then.
    position: Option<(Revision, SeenVersions)>,
    refusals: Arc<Refusals>,
}

/// What is told of the control plane itself.
#[derive(Debug)]
pub(super) struct OwnState<'a> {
    /// The newest revision that sidecars are told.
    pub(super) published: u64,
    /// Our newest positions, the oldest first.
    pub(super) positions: &'a [Arc<Position>],
    /// Documents that it refuses, read after the positions.
    pub(super) refusals: Arc<Refusals>,
    /// The term in which it keeps the books of global limits, if it does.
    pub(super) books_term: Option<u64>,
}

impl Reporter {
    /// What has changed since.
    pub(super) fn report(
        &mut self,
        replica: &Arc<str>,
        sidecars: Vec<SidecarReport>,
        standing: &OwnState<'_>,
    ) -> ReplicaReport {
        let sidecars = sidecars.into_iter();
        let current: BTreeMap<_, _> = sidecars
            .map(|sidecar| (Arc::clone(&sidecar.instance), sidecar))
            .collect();
        let before = std::mem::replace(&mut self.sidecars, current);
        let changed: Vec<_> = { self.sidecars.iter() }
            .filter(|(instance, sidecar)| before.get(*instance) != Some(*sidecar))
            .map(|(_, sidecar)| sidecar.clone())
            .collect();
        let gone = before.into_keys();
        let gone = gone.filter(|instance| !self.sidecars.contains_key(instance));
        let is_news = |position: &&Arc<Position>| match &self.position {
            Some((revision, seen)) => {
                (*revision, seen) != (position.revision, &position.seen)
                    && *revision <= position.revision
            }
            None => true,
        };
        let news = standing.positions.iter().filter(is_news);
        let news = news.map(|position| (position.revision, position.seen.clone()));
        let news: Vec<_> = news.collect();
        self.position = news.last().cloned().or_else(|| self.position.take());
        let refused_before = std::mem::replace(&mut self.refusals, Arc::clone(&standing.refusals));
        ReplicaReport {
            replica: Arc::clone(replica),
            sidecars: changed,
            gone: gone.collect(),
            refused: self.refusals.changes(&refused_before),
            whole: Some(PublishedReport {
                published: standing.published,
                positions: news,
                books_term: standing.books_term,
                tells_refused: true,
                refuses_more: standing.refusals.has_more,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::changed;

    fn sidecar(instance: &str, holds: usize) -> SidecarReport {
        SidecarReport {
            instance: instance.into(),
            identity: "spiffe://weft.local/ns/shop/sa/web".parse().unwrap(),
            not_after: 9,
            version: String::new(),
            since: 5,
            holds,
            behind: None,
            begins: false,
            lacks: Vec::new(),
            rejected: BTreeMap::new(),
            observed: None,
        }
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let position = |revision, version| Arc::new(changed(revision, &[("A", version)]));
        let mut reporter = Reporter::default();
        let us = "us".into();
        let mut told = |sidecars: &[(&str, usize)], positions: &[&Arc<Position>]| {
            let positions: Vec<_> = positions.iter().copied().cloned().collect();
            let sidecars = sidecars.iter().map(|(name, holds)| sidecar(name, *holds));
            let standing = OwnState {
                published: 1,
                positions: &positions,
                refusals: Arc::default(),
                books_term: None,
            };
            let report = reporter.report(&us, sidecars.collect(), &standing);
            let names = |all: Vec<Arc<str>>| all.join(" ");
            let changed = report.sidecars.into_iter().map(|sidecar| sidecar.instance);
            let positions = report.whole.unwrap().positions.len();
            (names(changed.collect()), names(report.gone), positions)
        };
        let text = |a: &str, b: &str, n| (a.to_owned(), b.to_owned(), n);
        let [one, two, more, three] = [(1, 7), (2, 8), (2, 9), (3, 10)]
            .map(|(revision, version)| position(revision, version));
        let both = [("a", 1), ("b", 1)];
        assert_eq!(told(&both, &[&one, &two]), text("a b", "", 2));
        assert_eq!(told(&both, &[&one, &two]), text("", "", 0));
        // More was seen at the newest revision.
        assert_eq!(told(&both, &[&one, &more]), text("", "", 1));
        assert_eq!(
            told(&[("a", 2), ("c", 1)], &[&more, &three]),
            text("a c", "b", 1)
        );
        assert_eq!(told(&[], &[&three]), text("", "a c", 0));
    }
}
