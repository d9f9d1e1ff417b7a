//! The last changes of a breaker's state, for people.

use std::collections::VecDeque;

use super::{Cause, StateView, Transition};
use crate::time::Instant;

/// Changes that are kept; older ones are forgotten.
pub const CHANGES_MAX: usize = 16;

/// One change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When it happened.
    pub at: Instant,
    /// From which state to which.
    pub transition: Transition,
    /// Why the breaker opened; `None` for every other change.
    pub cause: Option<Cause>,
}

/// At most [`CHANGES_MAX`] changes, oldest first. Empty, and without memory of its own, until the
/// first.
#[derive(Debug, Clone, Default)]
pub(super) struct History(VecDeque<Change>);

impl History {
    pub(super) fn push(&mut self, at: Instant, transition: Transition, cause: Option<Cause>) {
        if self.0.len() == CHANGES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Change {
            at,
            transition,
            cause: cause.filter(|_| transition.to == StateView::Open),
        });
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Change> {
        self.0.iter()
    }
}
