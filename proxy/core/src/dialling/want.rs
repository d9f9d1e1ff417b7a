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
    /// Like [`Self::MadeSince`], and no other request is given a place on it. It may be kept for as
    /// long as its request likes: those that want one have [`own_share`] of the connections.
    Own(Instant),
}

/// One of so many connections, and of so many places in the queue, is kept for requests that do not
/// want a connection of their own.
const RESERVED_SHARE: u32 = 4;

/// The part of `most` connections that requests with a connection of their own may have at a time,
/// and of `most` waiting requests those that wait for one. At least one is kept from them, unless it
/// is the only one.
pub const fn own_share(most: u32) -> u32 {
    match most {
        0 | 1 => most,
        2..RESERVED_SHARE => most - 1,
        _ => most - most / RESERVED_SHARE,
    }
}

/// Requests that wait with the same kind of want: each can use what the first of them can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Any,
    Used,
    /// Takes a connection that is made, each of them one.
    Made,
    /// Like [`Self::Made`], and keeps it.
    Own,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Any, Self::Used, Self::Made, Self::Own];
}

impl Want {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Any => Kind::Any,
            Self::UsedSince(_) => Kind::Used,
            Self::MadeSince(_) => Kind::Made,
            Self::Own(_) => Kind::Own,
        }
    }
}
