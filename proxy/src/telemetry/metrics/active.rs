//! How many connections of the pools carry something.
//!
//! Every set of connections has a cell of its own, which it alone writes: a request costs a store into
//! memory that no other thread writes, and a scrape adds them up.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, Weak};

use super::lock;

/// One set's connections that carry something. It counts no longer when it is dropped.
#[derive(Debug)]
pub(crate) struct Active(Arc<AtomicU32>);

impl Active {
    /// Sets their number.
    pub(crate) fn set(&self, n: u32) {
        self.0.store(n, Relaxed);
    }
}

/// Those of all sets of one kind.
#[derive(Debug, Default)]
pub(crate) struct AllActive(Mutex<Cells>);

#[derive(Debug, Default)]
struct Cells {
    cells: Vec<Weak<AtomicU32>>,
    /// Cells of sets that are gone are removed when there are so many.
    clean_at: usize,
}

/// Cells below which nothing is cleaned.
const FEW: usize = 64;

impl AllActive {
    /// A set that counts from now on.
    pub(crate) fn register(&self) -> Active {
        let cell = Arc::<AtomicU32>::default();
        let mut all = lock(&self.0);
        if all.cells.len() >= all.clean_at.max(FEW) {
            all.cells.retain(|cell| cell.strong_count() > 0);
            all.clean_at = 2 * all.cells.len();
        }
        all.cells.push(Arc::downgrade(&cell));
        Active(cell)
    }

    /// Their number now.
    pub(super) fn get(&self) -> i64 {
        let all = lock(&self.0);
        let cells = all.cells.iter().filter_map(Weak::upgrade);
        cells.map(|cell| i64::from(cell.load(Relaxed))).sum()
    }

    #[cfg(test)]
    pub(super) fn register_for_good(&self, n: u32) {
        let active = self.register();
        active.set(n);
        std::mem::forget(active);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_that_are_gone_count_no_longer() {
        let all = AllActive::default();
        let (one, other) = (all.register(), all.register());
        one.set(3);
        other.set(4);
        assert_eq!(all.get(), 7);
        one.set(1);
        drop(other);
        assert_eq!(all.get(), 1);
        for _ in 0..10 * FEW {
            all.register().set(5);
        }
        assert_eq!(all.get(), 1);
        assert!(lock(&all.0).cells.len() <= FEW);
    }
}
