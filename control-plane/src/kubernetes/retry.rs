//! Pauses between attempts at what failed. [`Attempts`] is pure: `now` is an argument.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Pauses that double, from the first up to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pauses {
    /// After the first failure.
    pub(crate) first: Duration,
    /// After many.
    pub(crate) longest: Duration,
}

impl Pauses {
    /// The pause that follows one.
    fn after(self, pause: Duration) -> Duration {
        (pause * 2).clamp(self.first, self.longest)
    }
}

/// The pauses of one thing that is tried, each shortened by up to a quarter.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    pauses: Pauses,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(pauses: Pauses) -> Self {
        Self {
            pauses,
            next: pauses.first,
        }
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = self.pauses.after(pause);
        Some(pause.mul_f64(1.0 - fastrand::f64() / 4.0))
    }
}

/// The pauses of a watch. What it tells does not mean that it goes on: kube's watcher says that a list
/// begins before it has asked for it.
#[derive(Debug)]
pub(crate) struct WatchBackoff {
    backoff: Backoff,
    failed: Option<Instant>,
}

impl WatchBackoff {
    /// A watch that has not failed for this long begins again with the first pause.
    const GOES_ON_AFTER: Duration = Duration::from_secs(30);

    pub(crate) fn new(pauses: Pauses) -> Self {
        let backoff = Backoff::new(pauses);
        Self {
            backoff,
            failed: None,
        }
    }

    fn after_failure(&mut self, now: Instant) -> Option<Duration> {
        let before = self.failed.replace(now);
        if before.is_some_and(|failed| now.duration_since(failed) >= Self::GOES_ON_AFTER) {
            self.backoff = Backoff::new(self.backoff.pauses);
        }
        self.backoff.next()
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.after_failure(Instant::now())
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {}
}

/// How long one question may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Asks until there is an answer; each failure is logged, and so is no answer within 10 s.
pub(crate) async fn until_answered<T, E, F>(what: &str, pauses: Pauses, ask: impl Fn() -> F) -> T
where
    E: fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut backoff = Backoff::new(pauses);
    loop {
        match tokio::time::timeout(ANSWER_MAX, ask()).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => {
                tracing::warn!(%error, "{what}: no answer of the cluster's API; asked again");
            }
            Err(_elapsed) => {
                tracing::warn!(
                    "{what}: no answer within {ANSWER_MAX:?} of the cluster's API; asked again"
                );
            }
        }
        tokio::time::sleep(backoff.next().unwrap_or(pauses.longest)).await;
    }
}

/// When each of several objects may be tried again: one that fails does not hold up the others, and
/// one that is written over and over by somebody else is not written back at once each time.
#[derive(Debug)]
pub(crate) struct Attempts<K> {
    pauses: Pauses,
    held: BTreeMap<K, Held>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    pause: Duration,
    until: Instant,
}

impl<K: Ord> Attempts<K> {
    pub(crate) fn new(pauses: Pauses) -> Self {
        Self {
            pauses,
            held: BTreeMap::new(),
        }
    }

    /// Whether an object may be tried now.
    pub(crate) fn is_due(&self, key: &K, now: Instant) -> bool {
        self.held.get(key).is_none_or(|held| held.until <= now)
    }

    /// An attempt failed; how long until the next one.
    pub(crate) fn failed(&mut self, key: K, now: Instant) -> Duration {
        let before = self.held.get(&key);
        let pause = before.map_or(self.pauses.first, |held| self.pauses.after(held.pause));
        let until = now + pause;
        self.held.insert(key, Held { pause, until });
        pause
    }

    /// An attempt succeeded: the object rests for the first pause.
    pub(crate) fn succeeded(&mut self, key: K, now: Instant) {
        let held = Held {
            pause: Duration::ZERO,
            until: now + self.pauses.first,
        };
        self.held.insert(key, held);
    }

    /// Forgets objects that may be tried and are not wanted; those that are keep their pause.
    pub(crate) fn forget(&mut self, now: Instant, is_wanted: impl Fn(&K) -> bool) {
        self.held
            .retain(|key, held| held.until > now || is_wanted(key));
    }

    /// When the first of the objects that are wanted and have to wait may be tried.
    pub(crate) fn next_due(&self, is_wanted: impl Fn(&K) -> bool) -> Option<Instant> {
        let wanted = self.held.iter().filter(|(key, _)| is_wanted(key));
        wanted.map(|(_, held)| held.until).min()
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const PAUSES: Pauses = Pauses {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(5),
    };

    #[test]
    fn a_watch_that_goes_on_begins_with_the_first_pause() {
        let start = Instant::now();
        let mut backoff = WatchBackoff::new(PAUSES);
        let mut pause = |at: u64| {
            kube::runtime::utils::Backoff::reset(&mut backoff);
            let pause = backoff.after_failure(start + Duration::from_secs(at));
            pause.unwrap().as_secs_f64()
        };
        for (at, longest) in [(0, 1.0), (1, 2.0), (3, 4.0), (7, 5.0), (36, 5.0), (66, 1.0)] {
            let found = pause(at);
            assert!(found <= longest && found >= longest * 0.75, "{at}: {found}");
        }
    }

    #[test]
    fn each_object_has_pauses_of_its_own() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut attempts = Attempts::new(PAUSES);
        let pauses = [0, 1, 3, 7, 12].map(|now| attempts.failed("a", at(now)).as_secs());
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        assert!(!attempts.is_due(&"a", at(16)));
        assert!(attempts.is_due(&"a", at(17)));
        assert!(attempts.is_due(&"b", at(0)), "others do not wait");
        attempts.succeeded("b", at(16));
        assert!(!attempts.is_due(&"b", at(16)), "it rests");
        assert_eq!(attempts.next_due(|_key| true), Some(at(17)));
        assert_eq!(attempts.next_due(|key| *key == "c"), None);
        // What is wanted still keeps its pause, what rests its rest.
        attempts.forget(at(17), |key| *key == "a");
        assert_eq!(attempts.failed("a", at(17)).as_secs(), 5);
        attempts.forget(at(22), |_key| false);
        assert_eq!(attempts.failed("a", at(22)).as_secs(), 1);
        // After a success the pauses begin anew.
        attempts.succeeded("a", at(30));
        assert_eq!(attempts.failed("a", at(31)).as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_until_there_is_an_answer() {
        let began = tokio::time::Instant::now();
        let asked = AtomicU32::new(0);
        let answer = until_answered("a test", PAUSES, || {
            let asked = asked.fetch_add(1, Ordering::Relaxed) + 1;
            ready(if asked < 4 { Err("away") } else { Ok(asked) })
        });
        assert_eq!(answer.await, 4);
        let waited = began.elapsed().as_secs_f64();
        assert!((5.25..=7.1).contains(&waited), "{waited}");
    }
}
