//! An answer that holds for a while: whoever asks meanwhile gets the same.

use std::time::Duration;

use crate::time::Instant;

/// The last answer, and until when it holds.
#[derive(Debug, Clone)]
pub struct Hold<T> {
    lifetime: Duration,
    last: Option<(Instant, T)>,
}

impl<T: Clone> Hold<T> {
    /// Nothing yet; an answer holds for `lifetime` from when it was given.
    pub const fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            last: None,
        }
    }

    /// The answer that holds now.
    pub fn get(&self, now: Instant) -> Option<T> {
        let (given, answer) = self.last.as_ref()?;
        (now.saturating_since(*given) < self.lifetime).then(|| answer.clone())
    }

    /// A new answer.
    pub fn put(&mut self, now: Instant, answer: T) {
        self.last = Some((now, answer));
    }

    /// Forgets an answer that does not hold any more, and gives its memory back.
    pub fn expire(&mut self, now: Instant) {
        if self.get(now).is_none() {
            self.last = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_until_its_lifetime_has_passed() {
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let mut hold = Hold::new(Duration::from_millis(500));
        assert_eq!(hold.get(at(0)), None);
        hold.put(at(1000), 'a');
        for (millis, expected) in [
            // A clock that went back: the answer is not older than now.
            (0, Some('a')),
            (1000, Some('a')),
            (1499, Some('a')),
            (1500, None),
            (9000, None),
        ] {
            assert_eq!(hold.get(at(millis)), expected, "{millis}");
        }
        hold.expire(at(1499));
        assert_eq!(hold.get(at(1499)), Some('a'));
        hold.expire(at(1500));
        assert_eq!(hold.get(at(1499)), None);
        hold.put(at(2000), 'b');
        hold.put(at(2400), 'c');
        assert_eq!(hold.get(at(2600)), Some('c'));
    }
}
