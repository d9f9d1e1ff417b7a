//! How near the endpoints of a port are, where that decides who gets requests.

/// How near the endpoints of a port are, in their order.
#[derive(Debug, Clone, Default)]
pub struct Tiers {
    /// None where all are as near.
    each: Vec<u8>,
    farthest: u8,
    /// The node that this sidecar is on, and how many endpoints there are on others, where callers go
    /// to none of those.
    pub(in crate::mesh) left_out: Option<(String, usize)>,
}

impl Tiers {
    pub(in crate::mesh) fn new(each: Vec<u8>, left_out: Option<(String, usize)>) -> Self {
        let farthest = each.iter().copied().max().unwrap_or_default();
        Self {
            each: if farthest == 0 { Vec::new() } else { each },
            farthest,
            left_out,
        }
    }

    /// Of one endpoint.
    pub fn of(&self, index: usize) -> u8 {
        self.each.get(index).copied().unwrap_or_default()
    }

    /// The largest.
    pub fn farthest(&self) -> u8 {
        self.farthest
    }
}
