//! Whether one more connection is dialled to a destination for the requests that wait for one.

/// The load of one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    /// Requests that wait for a connection.
    pub(super) waiting: u32,
    /// Dials in flight.
    pub(super) dialling: u32,
    /// Concurrent requests that a new connection is expected to take.
    pub(super) per_connection: u32,
}

impl Demand {
    /// The number of waiting requests that the dials in flight will serve, if more have to be
    /// dialled for the rest and at most `dials_max` may be in flight; else `None`.
    pub(super) fn uncovered(&self, dials_max: u32) -> Option<u32> {
        let covered = self.dialling.saturating_mul(self.per_connection.max(1));
        (covered < self.waiting && self.dialling < dials_max).then_some(covered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIALS_MAX: u32 = 4;

    #[test]
    fn as_many_dials_as_it_takes_within_the_bound() {
        // (waiting, dialling, per connection) → requests that are covered
        for ((waiting, dialling, per_connection), expected) in [
            ((0, 0, 1), None),
            ((1, 0, 1), Some(0)),
            ((1, 1, 1), None),
            ((3, 1, 1), Some(1)),
            // One connection is enough for all.
            ((50, 0, 100), Some(0)),
            ((50, 1, 100), None),
            ((6, 2, 2), Some(4)),
            ((101, 1, 100), Some(100)),
            // Not known yet: the first connection shows it.
            ((50, 0, u32::MAX), Some(0)),
            ((50, 1, u32::MAX), None),
            // The bound on dials in flight.
            ((50, 3, 1), Some(3)),
            ((50, 4, 1), None),
            ((5, 0, 0), Some(0)),
        ] {
            let demand = Demand {
                waiting,
                dialling,
                per_connection,
            };
            assert_eq!(demand.uncovered(DIALS_MAX), expected, "{demand:?}");
        }
    }

    proptest! {
        #[test]
        fn never_beyond_the_bound(
            waiting in 0u32..1000,
            dialling in 0u32..8,
            per_connection in 0u32..300,
        ) {
            let demand = Demand { waiting, dialling, per_connection };
            let uncovered = demand.uncovered(DIALS_MAX);
            prop_assert!(uncovered.is_none_or(|covered| covered < waiting && dialling < DIALS_MAX));
        }
    }
}
