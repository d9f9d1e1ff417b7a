//! Streams that this side has reset, whose frames may still be under way.

use std::collections::{HashSet, VecDeque};

use super::super::frame::StreamId;
use super::streams::HashIds;

/// Streams that are remembered.
const STREAMS_MAX: usize = 1_024;

/// The streams that this side has reset last. What the peer sent on them before it saw the
/// RST_STREAM is to be ignored (RFC 9113 section 5.1, "closed").
#[derive(Debug, Default)]
pub(super) struct RecentResets {
    /// In their order.
    streams: VecDeque<StreamId>,
    index: HashSet<StreamId, HashIds>,
    /// Whether some were forgotten.
    incomplete: bool,
}

impl RecentResets {
    pub(super) fn insert(&mut self, stream: StreamId) {
        if !self.index.insert(stream) {
            return;
        }
        if self.streams.len() == STREAMS_MAX
            && let Some(oldest) = self.streams.pop_front()
        {
            self.index.remove(&oldest);
            self.incomplete = true;
        }
        self.streams.push_back(stream);
    }

    pub(super) fn contains(&self, stream: StreamId) -> bool {
        self.index.contains(&stream)
    }

    /// Whether a stream that is not remembered may have been reset all the same.
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let id = |number: usize| StreamId::new(number as u32 * 2 + 1).unwrap();
        let mut resets = RecentResets::default();
        (0..STREAMS_MAX).for_each(|number| resets.insert(id(number)));
        assert!(resets.contains(id(0)) && !resets.contains(id(STREAMS_MAX)));
        assert!(!resets.is_incomplete());
        resets.insert(id(STREAMS_MAX));
        assert!(!resets.contains(id(0)) && resets.contains(id(1)));
        assert!(resets.contains(id(STREAMS_MAX)) && resets.is_incomplete());
    }
}
