//! Revisions of which a sidecar has not applied what concerns it. Pure.

use weft_proto::replicas::{LACKS_MAX, RevisionSpan};

use crate::store::Revision;

/// Spans of revisions, ascending, at most [`LACKS_MAX`]. Of more the two oldest are made one, with what
/// is between them: the newest revisions are those that somebody waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lacking(Vec<RevisionSpan>);

impl Lacking {
    /// Something of a span concerns the sidecar and is not in force there.
    pub(super) fn add(&mut self, span: RevisionSpan) {
        let Self(spans) = self;
        let at = spans.partition_point(|one| one.until <= span.after);
        let touched = spans[at..].partition_point(|one| one.after < span.until);
        let of_both = spans[at..at + touched].iter().fold(span, hull);
        spans.splice(at..at + touched, [of_both]);
        if spans.len() > LACKS_MAX {
            let oldest = spans.remove(0);
            spans[0] = hull(oldest, &spans[0]);
        }
    }

    /// Everything up to a revision is in force.
    pub(super) fn apply(&mut self, revision: Revision) {
        self.0.retain(|span| span.until > revision);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether a revision is in one of the spans.
    pub(super) fn contains(&self, revision: Revision) -> bool {
        self.0.iter().any(|span| span.contains(revision))
    }

    pub(super) fn into_spans(self) -> Vec<RevisionSpan> {
        self.0
    }
}

fn hull(one: RevisionSpan, other: &RevisionSpan) -> RevisionSpan {
    RevisionSpan {
        after: one.after.min(other.after),
        until: one.until.max(other.until),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(spans: &[(u64, u64)]) -> Lacking {
        let mut lacking = Lacking::default();
        for (after, until) in spans {
            let (after, until) = (*after, *until);
            lacking.add(RevisionSpan { after, until });
        }
        lacking
    }

    #[test]
    fn spans_are_ascending_and_apart() {
        for (added, expected) in [
            (&[(5, 6), (1, 2)][..], &[(1, 2), (5, 6)][..]),
            // Those that only touch are two publications.
            (&[(1, 2), (2, 3)], &[(1, 2), (2, 3)]),
            (&[(1, 3), (2, 4)], &[(1, 4)]),
            (&[(1, 2), (5, 6), (8, 9), (0, 7)], &[(0, 7), (8, 9)]),
            (&[(1, 2), (1, 2)], &[(1, 2)]),
        ] {
            let spans = lacking(added).into_spans().into_iter();
            let found: Vec<_> = spans.map(|span| (span.after, span.until)).collect();
            assert_eq!(found, expected, "{added:?}");
        }
    }

    #[test]
    fn of_many_spans_the_oldest_are_one() {
        let many: Vec<_> = (0..100).map(|n| (2 * n, 2 * n + 1)).collect();
        let mut lacking = lacking(&many);
        assert_eq!(lacking.0.len(), LACKS_MAX);
        assert!(lacking.contains(2) && lacking.contains(199) && !lacking.contains(198));
        lacking.apply(197);
        assert_eq!(lacking.0.len(), 1);
        lacking.clear();
        assert!(!lacking.contains(199));
    }
}
