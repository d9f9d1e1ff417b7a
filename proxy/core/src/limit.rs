//! An exact limit on how many of something there are at the same time.

use std::sync::atomic::{AtomicU32, Ordering};

/// The largest limit on requests at the same time.
pub const MAX_REQUESTS: u32 = 1_000_000;
/// Without a limit; what is in use is counted all the same.
pub const UNLIMITED: u32 = u32::MAX;

/// A concurrency limit that is never exceeded, not even for a moment: a slot is taken by
/// compare-and-swap, never added first and taken back. It is shared by reference; who waits for a
/// slot, and in which order, is the caller's business.
#[derive(Debug)]
pub struct Limit {
    in_use: AtomicU32,
    max: AtomicU32,
}

impl Limit {
    /// At most `max` at a time; [`UNLIMITED`] for no limit.
    pub const fn new(max: u32) -> Self {
        Self {
            in_use: AtomicU32::new(0),
            max: AtomicU32::new(max),
        }
    }

    /// Takes a slot; false when there is none. Each slot has to be given back by
    /// [`Limit::release`], once.
    #[must_use = "a slot that was taken has to be released"]
    pub fn try_acquire(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        // Acquire pairs with the release of the slot: what its last holder did has happened before.
        let taken = self
            .in_use
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |in_use| {
                (in_use < max).then(|| in_use.checked_add(1)).flatten()
            });
        taken.is_ok()
    }

    /// Gives a slot back. One too many is ignored: it would let in more than the limit later.
    pub fn release(&self) {
        let released = self
            .in_use
            .fetch_update(Ordering::Release, Ordering::Relaxed, |in_use| {
                in_use.checked_sub(1)
            });
        debug_assert!(released.is_ok(), "a slot was released twice");
    }

    /// Slots taken now.
    pub fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// The limit now.
    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    /// Changes the limit in place. Below what is in use nothing is taken away: no slot is given
    /// until enough came back.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    #[test]
    fn exactly_so_many() {
        for max in [0, 1, 2, 7] {
            let limit = Limit::new(max);
            let given = (0..10).filter(|_| limit.try_acquire()).count();
            assert_eq!(given, max as usize);
            assert_eq!(limit.in_use(), max);
        }
    }

    #[test]
    fn unlimited_still_counts() {
        let limit = Limit::new(UNLIMITED);
        assert!((0..1000).all(|_| limit.try_acquire()));
        assert_eq!(limit.in_use(), 1000);
    }

    #[test]
    fn a_lower_limit_takes_nothing_away() {
        let limit = Limit::new(3);
        assert!((0..3).all(|_| limit.try_acquire()));
        limit.set_max(1);
        assert_eq!((limit.in_use(), limit.max()), (3, 1));
        limit.release();
        limit.release();
        assert!(!limit.try_acquire());
        limit.release();
        assert!(limit.try_acquire());
        limit.set_max(2);
        assert!(limit.try_acquire());
    }

    #[test]
    fn threads_never_exceed_it() {
        const MAX: u32 = 3;
        let limit = Limit::new(MAX);
        let inside = AtomicU32::new(0);
        let most = AtomicU32::new(0);
        thread::scope(|scope| {
            for _thread in 0..8 {
                scope.spawn(|| {
                    for _round in 0..20_000 {
                        assert!(limit.in_use() <= MAX);
                        if limit.try_acquire() {
                            let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            limit.release();
                        }
                    }
                });
            }
        });
        assert!((1..=MAX).contains(&most.load(Ordering::SeqCst)));
        assert_eq!(limit.in_use(), 0);
    }

    proptest! {
        #[test]
        fn like_a_counter(
            max in 0u32..5,
            steps in proptest::collection::vec(prop_oneof![Just(None), Just(Some(false)), Just(Some(true))], 0..100),
            lower in 0u32..5,
        ) {
            let limit = Limit::new(max);
            let (mut held, mut now) = (0, max);
            for step in steps {
                match step {
                    Some(true) => {
                        let given = limit.try_acquire();
                        prop_assert_eq!(given, held < now);
                        held += u32::from(given);
                    }
                    Some(false) if held > 0 => { limit.release(); held -= 1; }
                    Some(false) => {}
                    None => { now = lower; limit.set_max(lower); }
                }
                prop_assert_eq!(limit.in_use(), held);
            }
        }
    }
}
