//! How many connections are made to a destination for the requests that wait for one.

/// What a destination has and needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Requests that wait for a connection.
    pub waiting: u32,
    /// Connections that are being made.
    pub dialling: u32,
    /// Connections that stand.
    pub open: u32,
    /// Requests that one connection is expected to take at a time.
    pub per_connection: u32,
}

/// What a destination may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections, those that are being made included.
    pub connections: u32,
    /// Connections that are being made at a time.
    pub dials: u32,
    /// Requests that wait for a connection.
    pub waiting: u32,
}

impl Demand {
    /// How many more connections are to be made now.
    pub fn dials(&self, bounds: &Bounds) -> u32 {
        let each = self.per_connection.max(1);
        let covered = self.dialling.saturating_mul(each);
        let short = self.waiting.saturating_sub(covered).div_ceil(each);
        let standing = self.open.saturating_add(self.dialling);
        short
            .min(bounds.dials.saturating_sub(self.dialling))
            .min(bounds.connections.saturating_sub(standing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds {
        connections: 8,
        dials: 4,
        waiting: 100,
    };

    #[test]
    fn as_many_as_it_takes_within_the_bounds() {
        // (waiting, dialling, open, per connection) → dials
        for ((waiting, dialling, open, per_connection), expected) in [
            ((0, 0, 0, 1), 0),
            ((1, 0, 0, 1), 1),
            ((1, 1, 0, 1), 0),
            ((3, 1, 0, 1), 2),
            // One connection is enough for all.
            ((50, 0, 0, 100), 1),
            ((50, 1, 0, 100), 0),
            ((6, 0, 1, 2), 3),
            ((101, 1, 0, 100), 1),
            // Not known yet: one shows.
            ((50, 0, 0, u32::MAX), 1),
            ((50, 1, 0, u32::MAX), 0),
            // Dials at a time, and connections.
            ((50, 0, 0, 1), 4),
            ((50, 4, 0, 1), 0),
            ((50, 2, 5, 1), 1),
            ((50, 0, 8, 1), 0),
            ((50, 0, 9, 1), 0),
            ((5, 0, 0, 0), 4),
        ] {
            let demand = Demand {
                waiting,
                dialling,
                open,
                per_connection,
            };
            assert_eq!(demand.dials(&BOUNDS), expected, "{demand:?}");
        }
    }

    proptest! {
        #[test]
        fn never_beyond_the_bounds(
            waiting in 0u32..1000,
            dialling in 0u32..8,
            open in 0u32..12,
            per_connection in 0u32..300,
        ) {
            let demand = Demand { waiting, dialling, open, per_connection };
            let dials = demand.dials(&BOUNDS);
            prop_assert!(dials <= waiting);
            prop_assert!(dials == 0 || dialling + dials <= BOUNDS.dials);
            prop_assert!(dials == 0 || open + dialling + dials <= BOUNDS.connections);
        }
    }
}
