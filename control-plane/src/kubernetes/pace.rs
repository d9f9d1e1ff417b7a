//! How often something is done for the whole mesh, and for one namespace of it.

use std::collections::BTreeMap;
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
/// use up what the others need.
#[derive(Debug)]
pub(crate) struct Pace {
    mesh: PerMinute,
    namespace: PerMinute,
    of_mesh: Bucket,
    by_namespace: BTreeMap<String, Bucket>,
}

impl Pace {
    pub(crate) fn new(mesh: PerMinute, namespace: PerMinute, now: Instant) -> Self {
        Self {
            mesh,
            namespace,
            of_mesh: Bucket::full(now),
            by_namespace: BTreeMap::new(),
        }
    }

    /// Takes one time for a namespace, if both rates allow it; nothing is taken otherwise.
    pub(crate) fn take(&mut self, namespace: &str, now: Instant) -> bool {
        self.by_namespace.retain(|_, bucket| !bucket.is_full(now));
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
}
