//! How the rest of the control plane hears of changes of the registry.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use weft_core::name::WorkloadName;

use super::machine::Entry;

/// A change of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryDelta {
    /// A workload is there, as in this entry.
    Put(Arc<Entry>),
    /// A workload is no more.
    Removed(WorkloadName),
}

impl RegistryDelta {
    /// The workload that changed.
    pub fn workload(&self) -> &WorkloadName {
        match self {
            Self::Put(entry) => &entry.registration.workload,
            Self::Removed(workload) => workload,
        }
    }
}

/// A queue of changes for one consumer. Of a workload only the newest change is kept, so it never
/// holds more than one change a workload, however slow the consumer.
///
/// Changes are given in the order in which each workload changed last. The consumer has to apply all
/// that [`Changes::take`] gives before it shows any: an address that moved from one workload to
/// another is with both in between.
#[derive(Debug, Default)]
pub struct Changes {
    pending: Mutex<Pending>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// The number of the last change.
    newest: u64,
    by_number: BTreeMap<u64, RegistryDelta>,
    numbers: HashMap<WorkloadName, u64>,
}

impl Changes {
    /// Adds a change. To be called under the lock of the state that changed, so that the order of
    /// changes is the order of calls. Returns the number of the change.
    pub fn changed(&self, delta: RegistryDelta) -> u64 {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.newest += 1;
        let number = pending.newest;
        if let Some(older) = pending.numbers.insert(delta.workload().clone(), number) {
            pending.by_number.remove(&older);
        }
        pending.by_number.insert(number, delta);
        drop(pending);
        self.changed.notify_one();
        number
    }

    /// Waits for changes and takes all of them, with the number of the last one. A call that is dropped has taken nothing.
    pub async fn take(&self) -> (Vec<RegistryDelta>, u64) {
        loop {
            let (taken, newest) = self.try_take();
            if !taken.is_empty() {
                return (taken, newest);
            }
            self.changed.notified().await;
        }
    }

    /// Takes all changes that there are, with the number of the last one that ever was.
    pub fn try_take(&self) -> (Vec<RegistryDelta>, u64) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.numbers.clear();
        let taken = std::mem::take(&mut pending.by_number).into_values();
        (taken.collect(), pending.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(name: &str) -> RegistryDelta {
        RegistryDelta::Removed(name.parse().unwrap())
    }

    #[tokio::test]
    async fn one_change_a_workload_in_the_order_of_the_last() {
        let changes = Changes::default();
        for name in ["shop/a", "shop/b", "shop/a"] {
            changes.changed(removed(name));
        }
        let (taken, newest) = changes.take().await;
        assert_eq!(taken, [removed("shop/b"), removed("shop/a")]);
        assert_eq!(newest, 3);
        assert!(changes.try_take().0.is_empty());
        assert_eq!(changes.changed(removed("shop/b")), 4);
        assert_eq!(changes.take().await, (vec![removed("shop/b")], 4));
    }
}
