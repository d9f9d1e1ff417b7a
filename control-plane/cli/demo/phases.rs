//! When the bad instance is bad: a schedule, decided from the time that has passed.

use std::time::Duration;

use serde::Serialize;

/// How the bad instance behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// As the other one.
    Well,
    /// Slow and failing.
    Bad,
    /// As the other one, after having been bad.
    WellAgain,
}

impl Phase {
    /// In the order in which they happen.
    pub(super) const ALL: [Self; 3] = [Self::Well, Self::Bad, Self::WellAgain];

    /// What a person is told.
    pub(super) const fn description(self) -> &'static str {
        match self {
            Self::Well => "both instances of stock are well",
            Self::Bad => "stock-2 is slow, and fails a third of its requests",
            Self::WellAgain => "stock-2 is well again",
        }
    }
}

/// The phases one after the other, once or again and again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    round: Duration,
    repeats: bool,
}

/// One round, where the demo has no end of its own.
const ROUND: Duration = Duration::from_secs(40);
/// Shares of a round, in percent.
const WELL: u32 = 25;
const BAD: u32 = 40;

impl Schedule {
    /// All phases once in `total`; without it they repeat until the demo is ended.
    pub(super) fn new(total: Option<Duration>) -> Self {
        Self {
            round: total.unwrap_or(ROUND),
            repeats: total.is_none(),
        }
    }

    /// The phase after `elapsed`.
    pub(super) fn phase(self, elapsed: Duration) -> Phase {
        let round = self.round.as_nanos().max(1);
        let passed = elapsed.as_nanos();
        let (again, passed) = match self.repeats {
            true => (passed >= round, passed % round),
            false => (false, passed),
        };
        let percent = passed * 100 / round;
        if percent < u128::from(WELL) {
            // What follows a bad phase is told apart from the beginning.
            if again { Phase::WellAgain } else { Phase::Well }
        } else if percent < u128::from(WELL + BAD) {
            Phase::Bad
        } else {
            Phase::WellAgain
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other() {
        let seconds = Duration::from_secs;
        let once = Schedule::new(Some(seconds(20)));
        let cases = [
            (0, Phase::Well),
            (4, Phase::Well),
            (5, Phase::Bad),
            (12, Phase::Bad),
            (13, Phase::WellAgain),
            (20, Phase::WellAgain),
            (2000, Phase::WellAgain),
        ];
        for (at, expected) in cases {
            assert_eq!(once.phase(seconds(at)), expected, "{at} s");
        }
        let forever = Schedule::new(None);
        let cases = [
            (9, Phase::Well),
            (10, Phase::Bad),
            (26, Phase::WellAgain),
            (40, Phase::WellAgain),
            (50, Phase::Bad),
        ];
        for (at, expected) in cases {
            assert_eq!(forever.phase(seconds(at)), expected, "{at} s");
        }
        assert_eq!(
            Schedule::new(Some(Duration::ZERO)).phase(seconds(1)),
            Phase::WellAgain
        );
    }
}
