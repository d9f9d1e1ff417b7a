//! Why a request has no answer but one of the mesh.

use weft_core::fault::Fault;
use weft_core::outcome::{self, Progress};
use weft_core::reason::Reason;

/// A request that the mesh answers with a reason of its own.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Why.
    pub(crate) reason: Reason,
    /// More of it, for people.
    pub(crate) detail: String,
    /// Whose fault it is: what breakers of the rule and of the port learn.
    pub(crate) fault: Fault,
}

impl Failed {
    /// Nothing but the reason says whose fault it is.
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            fault: reason.fault(),
        }
    }

    /// So far had the request come.
    pub(super) fn after(mut self, progress: Progress) -> Self {
        self.fault = outcome::of_request(self.reason, progress);
        self
    }
}
