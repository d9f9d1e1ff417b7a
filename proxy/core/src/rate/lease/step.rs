//! How one share moves.

use crate::rate::WHOLE;

/// Changes below this part of a share are not worth a message.
const SMALL_PART: u32 = 20;

/// One share on its way to where it should be.
pub(super) struct Step {
    pub(super) current: u32,
    pub(super) target: u32,
    /// By all together.
    pub(super) used: u64,
    pub(super) open: bool,
    /// Whether it has to become the target, however little is missing.
    pub(super) exact: bool,
}

impl Step {
    pub(super) fn next(&self) -> u32 {
        let whole = u64::from(WHOLE);
        let over = self.used > whole;
        let difference = self.current.abs_diff(self.target);
        let large = self.current.max(self.target) / SMALL_PART;
        let worth = self.exact || difference > large;
        if self.target <= self.current {
            let down = over || (self.open && worth);
            return if down { self.target } else { self.current };
        }
        if !self.open || !worth || over {
            return self.current;
        }
        let free = u32::try_from(whole - self.used).unwrap_or(0);
        let raise = difference.min(free);
        // Little by little would be a message each.
        let enough = self.exact || raise > large || raise == difference;
        if enough {
            self.current + raise
        } else {
            self.current
        }
    }
}
