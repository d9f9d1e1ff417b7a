//! How often something is done for the whole mesh, and for one namespace of it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Instant;

use crate::budget::{Bucket, Rate};

/// A bucket's unit is the 60th part of one time, so that rates in a minute are whole numbers.
const UNITS: u64 = 60;

/// Times in a minute, and how many of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PerMinute(Rate);

impl PerMinute {
    /// So many in a minute, at most `burst` of them at once.
    pub(crate) const fn new(times: u32, burst: u32) -> Self {
        Self(Rate::new(times as u64, burst as u64 * UNITS))
    }
}

/// Events about pods in a minute: all of one kind, and those of one namespace.
pub(crate) const EVENTS: [PerMinute; 2] = [PerMinute::new(120, 60), PerMinute::new(30, 30)];

/// What has been used of a rate of the mesh, and of the rate of each namespace: one namespace does not
/// use up what the others need. Namespaces that wait have their turns one after the other, so that none
/// waits for ever when all together want more than there is.
#[derive(Debug)]
pub(crate) struct Pace {
    mesh: PerMinute,
    namespace: PerMinute,
    of_mesh: Bucket,
    by_namespace: BTreeMap<String, Bucket>,
    /// The namespace that had its turn last.
    last: Option<String>,
}

impl Pace {
    pub(crate) fn new(mesh: PerMinute, namespace: PerMinute, now: Instant) -> Self {
        Self {
            mesh,
            namespace,
            of_mesh: Bucket::full(now),
            by_namespace: BTreeMap::new(),
            last: None,
        }
    }

    /// Takes one time for one of the namespaces that wait: the first after the one that had its turn last,
    /// in the order of their names, that both rates allow. Gives what waits there.
    pub(crate) fn take_turn<T>(
        &mut self,
        mut waiting: BTreeMap<&str, T>,
        now: Instant,
    ) -> Option<T> {
        self.by_namespace.retain(|_, bucket| !bucket.is_full(now));
        let later = match &self.last {
            Some(last) => {
                let bounds = (Bound::Excluded(last.as_str()), Bound::Unbounded);
                waiting
                    .range::<str, _>(bounds)
                    .map(|(name, _)| *name)
                    .collect()
            }
            None => Vec::new(),
        };
        let all: Vec<&str> = waiting.keys().copied().collect();
        let namespace = later
            .into_iter()
            .chain(all)
            .find(|name| self.take(name, now))?;
        self.last = Some(namespace.to_owned());
        waiting.remove(namespace)
    }

    /// Takes one time for a namespace, if both rates allow it; nothing is taken otherwise.
    fn take(&mut self, namespace: &str, now: Instant) -> bool {
        let own = self.by_namespace.get(namespace).copied();
        let mut own = own.unwrap_or_else(|| Bucket::full(now));
        let taken = own.take(self.namespace.0, UNITS, now).is_ok()
            && self.of_mesh.take(self.mesh.0, UNITS, now).is_ok();
        if taken {
            self.by_namespace.insert(namespace.to_owned(), own);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_namespace_has_its_own_rate_and_all_have_one_together() {
        let now = Instant::now();
        let mut pace = Pace::new(PerMinute::new(6, 3), PerMinute::new(2, 1), now);
        assert!(pace.take("a", now));
        assert!(!pace.take("a", now), "a has had its one");
        assert!(pace.take("b", now) && pace.take("c", now));
        assert!(!pace.take("d", now), "all have had their three");
        let later = now + Duration::from_secs(10);
        assert!(!pace.take("a", later), "a has two in a minute");
        assert!(pace.take("d", later), "all have one in ten seconds");
        assert!(pace.take("a", now + Duration::from_secs(30)));
    }

    #[test]
    fn namespaces_that_want_more_than_there_is_have_their_turns() {
        let begin = Instant::now();
        let mut pace = Pace::new(PerMinute::new(60, 1), PerMinute::new(30, 30), begin);
        let waiting = || ["a", "b", "c", "d"].map(|name| (name, name)).into();
        let mut turns = Vec::new();
        for second in 0..10 {
            let now = begin + Duration::from_secs(second);
            while let Some(name) = pace.take_turn(waiting(), now) {
                turns.push(name);
            }
        }
        assert_eq!(turns.concat(), "abcdabcdab");
        // One that waits no more, and another whose rate is used up, keep nobody.
        let mut pace = Pace::new(PerMinute::new(600, 10), PerMinute::new(1, 1), begin);
        assert_eq!(pace.take_turn(waiting(), begin), Some("a"));
        let without_b = [("a", "a"), ("c", "c")].into();
        assert_eq!(pace.take_turn(without_b, begin), Some("c"));
        let before = [("a", "a"), ("b", "b"), ("c", "c")].into();
        assert_eq!(pace.take_turn(before, begin), Some("b"));
        assert_eq!(pace.take_turn(waiting(), begin), Some("d"));
        assert_eq!(pace.take_turn(waiting(), begin), None);
    }
}
