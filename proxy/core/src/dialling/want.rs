//! Which of the connections to a destination a request may use.

use crate::time::Instant;

/// Which of the connections that stand a request may use. Any request may use one that is made
/// for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Each.
    Any,
    /// Those that a request has left, or that were made, at this time or later, and those in use:
    /// for a request that cannot be sent again should the server close an idle connection.
    UsedSince(Instant),
    /// Those that were made at this time or later and have carried nothing.
    MadeSince(Instant),
    /// Like [`Self::MadeSince`], and no other request is given a place on it.
    Own(Instant),
}

/// Requests that wait with the same kind of want: each can use what the first of them can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Any,
    Used,
    /// Takes a connection that is made, each of them one.
    Alone,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Any, Self::Used, Self::Alone];
}

impl Want {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Any => Kind::Any,
            Self::UsedSince(_) => Kind::Used,
            Self::MadeSince(_) | Self::Own(_) => Kind::Alone,
        }
    }
}
