//! Names that were asked for and lead nowhere so far: those that the control plane said do not
//! exist, and those it has not answered for.
//!
//! A program that asks for many such names cannot push out what is known: they have a bound of their
//! own, within which the one used least lately goes first, and only so many new ones are asked for
//! in a second. One that nobody uses is forgotten after a while, known or not to exist.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::time::Instant;

/// An unknown name that nobody asked for in this time is forgotten.
pub const UNUSED_AFTER: Duration = Duration::from_secs(60);
/// New unknown names that may be asked for in a second, over time.
pub const PER_SECOND: u32 = 100;
/// New unknown names that may be asked for at once after a quiet time: a program that starts
/// resolves everything that it needs.
pub const BURST: u32 = 1_000;
/// This share of the names goes at once when there are too many, so that each need not look for the
/// oldest.
const EVICTED_SHARE: usize = 8;

/// More new names than [`PER_SECOND`] and [`BURST`] allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {PER_SECOND} names that are not known were asked for in a second")]
pub struct TooMany;

/// The unknown names.
#[derive(Debug)]
pub struct UnknownNames<K> {
    max: usize,
    /// With the moment they were asked for.
    names: HashMap<K, Instant>,
    /// When the allowance of new names is whole again.
    whole_at: Instant,
}

impl<K: Clone + Eq + Hash> UnknownNames<K> {
    /// None yet, and `max` of them at most.
    pub fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            names: HashMap::new(),
            whole_at: Instant::from_nanos(0),
        }
    }

    /// A name is asked for that nothing is known of. One that is among them already costs nothing.
    ///
    /// # Errors
    ///
    /// When too many new ones came in a short time.
    pub fn handle_asked(&mut self, name: K, now: Instant) -> Result<(), TooMany> {
        if self.names.contains_key(&name) {
            return Ok(());
        }
        let each = Duration::from_secs(1) / PER_SECOND;
        let next = self.whole_at.max(now) + each;
        if next > now + each * BURST {
            return Err(TooMany);
        }
        self.whole_at = next;
        self.names.insert(name, now);
        Ok(())
    }

    /// A name that was known does not exist any more.
    pub fn handle_gone(&mut self, name: K, now: Instant) {
        self.names.entry(name).or_insert(now);
    }

    /// A name leads somewhere now, or is not asked for any more.
    pub fn handle_known(&mut self, name: &K) {
        self.names.remove(name);
    }

    /// Takes out the names that have to be forgotten: unused ones, and where there are too many, those
    /// used least lately. `used` is when a name was last used, if it was after it had been answered.
    pub fn poll_forgotten(&mut self, used: impl Fn(&K) -> Option<Instant>, now: Instant) -> Vec<K> {
        let last = |name: &K, asked: Instant| used(name).map_or(asked, |used| used.max(asked));
        let names = self.names.iter();
        let mut by_use: Vec<(Instant, K)> = names
            .map(|(name, asked)| (last(name, *asked), name.clone()))
            .collect();
        by_use.sort_by_key(|(last, _)| *last);
        let unused = by_use.partition_point(|(last, _)| now.saturating_since(*last) > UNUSED_AFTER);
        let room = self.max - self.max / EVICTED_SHARE;
        let too_many = match by_use.len() > self.max {
            true => by_use.len() - room,
            false => 0,
        };
        by_use.truncate(unused.max(too_many));
        let forgotten: Vec<K> = by_use.into_iter().map(|(_, name)| name).collect();
        for name in &forgotten {
            self.names.remove(name);
        }
        forgotten
    }

    /// Whether there are more than may be.
    pub fn is_over(&self) -> bool {
        self.names.len() > self.max
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn those_used_least_lately_go_first() {
        let mut names = UnknownNames::new(8);
        for number in 0..9u64 {
            names.handle_asked(number, at(number)).unwrap();
        }
        assert!(names.is_over());
        // The first two have been used since.
        let used = |name: &u64| (*name < 2).then(|| at(100));
        assert_eq!(names.poll_forgotten(used, at(100)), [2, 3]);
        assert_eq!(names.len(), 7);
        assert!(names.poll_forgotten(used, at(100)).is_empty());
    }

    #[test]
    fn an_unused_name_is_forgotten() {
        let mut names = UnknownNames::new(8);
        names.handle_asked("gone", at(0)).unwrap();
        names.handle_asked("used", at(0)).unwrap();
        names.handle_asked("known", at(0)).unwrap();
        names.handle_known(&"known");
        let used = |name: &&str| (*name == "used").then(|| at(30_000));
        assert!(names.poll_forgotten(used, at(60_000)).is_empty());
        assert_eq!(names.poll_forgotten(used, at(60_001)), ["gone"]);
        assert_eq!(names.poll_forgotten(used, at(90_001)), ["used"]);
        assert!(names.is_empty());
        names.handle_gone("known", at(100_000));
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn new_names_come_at_a_pace() {
        let mut names = UnknownNames::new(100_000);
        let ask = |names: &mut UnknownNames<u32>, from: u32, now: Instant| {
            (from..)
                .take_while(|name| names.handle_asked(*name, now).is_ok())
                .count()
        };
        assert_eq!(ask(&mut names, 0, at(1000)), BURST as usize);
        assert_eq!(
            names.handle_asked(0, at(1000)),
            Ok(()),
            "known to be unknown"
        );
        assert_eq!(ask(&mut names, 2000, at(1500)), PER_SECOND as usize / 2);
        assert_eq!(ask(&mut names, 5000, at(100_000)), BURST as usize);
    }

    proptest! {
        /// However many are asked for, so many are left.
        #[test]
        fn never_more_than_may_be(max in 1usize..50, asked in prop::collection::vec((0u16..200, 0u64..100_000), 0..400)) {
            let mut names = UnknownNames::new(max);
            let mut now = 0;
            for (name, later) in asked {
                now += later;
                let _at_a_pace = names.handle_asked(name, at(now));
                names.poll_forgotten(|_| None, at(now));
                prop_assert!(names.len() <= max);
            }
        }
    }
}
