//! What another control plane is told next: the difference from what it was told. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::replicas::{PublishedReport, ReplicaReport, SidecarReport};

use crate::store::Position;

/// What one of the others was told.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    sidecars: BTreeMap<Arc<str>, SidecarReport>,
    position: Option<Position>,
}

impl Reporter {
    /// What has changed since. `positions` are the newest states of the documents, the oldest first.
    pub(super) fn report(
        &mut self,
        replica: &Arc<str>,
        sidecars: Vec<SidecarReport>,
        published: u64,
        positions: &[Position],
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
        let known = positions.iter().rposition(|p| Some(*p) == self.position);
        let news = &positions[known.map_or(0, |known| known + 1)..];
        self.position = positions.last().copied().or(self.position);
        ReplicaReport {
            replica: Arc::clone(replica),
            sidecars: changed,
            gone: gone.collect(),
            whole: Some(PublishedReport {
                published,
                positions: news.iter().map(|p| (p.revision, p.state)).collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            rejected: BTreeMap::new(),
            observed: None,
        }
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let position = |revision, state| Position { revision, state };
        let mut reporter = Reporter::default();
        let us = "us".into();
        let mut told = |sidecars: &[(&str, usize)], positions: &[Position]| {
            let sidecars = sidecars.iter().map(|(name, holds)| sidecar(name, *holds));
            let report = reporter.report(&us, sidecars.collect(), 1, positions);
            let names = |all: Vec<Arc<str>>| all.join(" ");
            let changed = report.sidecars.into_iter().map(|sidecar| sidecar.instance);
            let positions = report.whole.unwrap().positions.len();
            (names(changed.collect()), names(report.gone), positions)
        };
        let text = |a: &str, b: &str, n| (a.to_owned(), b.to_owned(), n);
        let [one, two, three] = [position(1, 7), position(2, 8), position(3, 7)];
        assert_eq!(told(&[("a", 1), ("b", 1)], &[one, two]), text("a b", "", 2));
        assert_eq!(told(&[("a", 1), ("b", 1)], &[one, two]), text("", "", 0));
        assert_eq!(
            told(&[("a", 2), ("c", 1)], &[two, three]),
            text("a c", "b", 1)
        );
        // So many that what was told is not among them any more.
        assert_eq!(told(&[], &[one, two]), text("", "a c", 2));
    }
}
