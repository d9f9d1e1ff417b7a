//! Who may use the machine: many tests together, or one alone.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::new(());

/// A share of the machine, or all of it. Fixtures ask for it, so that no test forgets.
#[derive(Debug)]
pub(crate) struct Machine {
    _share: Share,
}

#[derive(Debug)]
enum Share {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

impl Machine {
    /// Beside other tests.
    pub(crate) fn shared() -> Self {
        let guard = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        Self {
            _share: Share::Shared { _guard: guard },
        }
    }

    /// Alone: for what measures time, kills at random moments, or moves gigabytes.
    pub(crate) fn alone() -> Self {
        let guard = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        Self {
            _share: Share::Alone { _guard: guard },
        }
    }
}
