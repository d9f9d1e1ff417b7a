//! The last failures of an endpoint, for people who ask why its breaker is open.

use weft_core::retry::Failure;

/// So many are kept.
const KEPT: usize = 5;

/// The last failures.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// In a ring; `next` is the oldest once it is full.
    failures: [Option<Failure>; KEPT],
    next: usize,
}

impl Recent {
    /// One more.
    pub(super) fn note(&mut self, failure: Failure) {
        self.failures[self.next] = Some(failure);
        self.next = (self.next + 1) % KEPT;
    }

    /// All of them, the newest first; empty where there was none.
    pub(super) fn text(&self) -> String {
        let (newer, older) = self.failures.split_at(self.next);
        let newest_first = newer.iter().rev().chain(older.iter().rev());
        let texts: Vec<String> = newest_first.flatten().map(ToString::to_string).collect();
        texts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_the_oldest_go() {
        let mut recent = Recent::default();
        assert_eq!(recent.text(), "");
        recent.note(Failure::ConnectFailed);
        recent.note(Failure::Status(503));
        assert_eq!(recent.text(), "503, no connection");
        for status in 500..506 {
            recent.note(Failure::Status(status));
        }
        assert_eq!(recent.text(), "505, 504, 503, 502, 501");
    }
}
