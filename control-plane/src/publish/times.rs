//! When revisions were published, to the second. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ACKNOWLEDGED_WITHIN;
use crate::store::Revision;

/// Revisions that are published within this time have one time.
const TOGETHER: Duration = Duration::from_secs(1);
/// Times that are remembered: of those before, it is known that they are longer ago than anybody asks.
const TIMES_MAX: usize = ACKNOWLEDGED_WITHIN.as_secs() as usize + 2;

/// Each time is that of the revisions after the one before it, up to its own. However often something is
/// published, what is old has an old time.
#[derive(Debug, Default)]
pub(super) struct PublishTimes(VecDeque<(Revision, Instant)>);

impl PublishTimes {
    /// A revision is published.
    pub(super) fn note(&mut self, revision: Revision, now: Instant) {
        let Self(times) = self;
        match times.back_mut() {
            Some((newest, at)) if now.saturating_duration_since(*at) < TOGETHER => {
                *newest = revision
            }
            Some(_) | None => times.push_back((revision, now)),
        }
        if times.len() > TIMES_MAX {
            times.pop_front();
        }
    }

    /// When a revision was published, or one after it where that is too long ago; `None` where it was not.
    pub(super) fn of(&self, revision: Revision) -> Option<Instant> {
        let mut times = self.0.iter();
        times
            .find(|(until, _)| *until >= revision)
            .map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::is_overdue;

    #[test]
    fn what_is_old_is_overdue_however_often_something_is_published() {
        let mut times = PublishTimes::default();
        let start = Instant::now();
        assert_eq!(times.of(1), None);
        let at = |n: u64| start + Duration::from_millis(100) * u32::try_from(n).unwrap();
        for revision in 1..=5_000 {
            let now = at(revision);
            times.note(revision, now);
            assert!(!is_overdue(times.of(revision), now));
            assert_eq!(times.of(revision + 1), None);
            for (ago, overdue) in [(590, false), (620, true), (4_000, true)] {
                if let Some(old) = revision.checked_sub(ago) {
                    assert_eq!(
                        is_overdue(times.of(old), now),
                        overdue,
                        "{revision} - {ago}"
                    );
                }
            }
        }
        assert_eq!(times.0.len(), TIMES_MAX);
    }
}
