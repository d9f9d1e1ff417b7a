//! Looks at namespaces side by side, each on a thread of its own: none of them waits for another, however
//! long that takes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::pods::Target;

/// Namespaces that are looked at side by side.
const AT_ONCE: usize = 32;

/// A pod that was looked at, and what was found; the error says why it could not be looked at.
type Outcome<T> = (Target, Result<T, String>);

/// What is looked at now, and what was when.
#[derive(Debug)]
pub(super) struct Looks<T> {
    sender: Sender<Outcome<T>>,
    found: Receiver<Outcome<T>>,
    /// When the last look at a pod was begun, and whether it has not ended.
    pods: BTreeMap<String, (Instant, bool)>,
    running: usize,
}

impl<T> Default for Looks<T> {
    fn default() -> Self {
        let (sender, found) = channel();
        Self {
            sender,
            found,
            pods: BTreeMap::new(),
            running: 0,
        }
    }
}

impl<T: Send + 'static> Looks<T> {
    /// Those that can be looked at, the one first that was not for the longest time. Forgets all other pods.
    pub(super) fn waiting(&mut self, targets: Vec<Target>) -> VecDeque<Target> {
        let mut waiting: Vec<_> = { targets.into_iter() }
            .map(|target| (self.pods.get(&target.pod).copied(), target))
            .collect();
        let of_now: BTreeMap<_, _> = { waiting.iter() }
            .filter_map(|(last, target)| Some((target.pod.clone(), (*last)?)))
            .collect();
        self.pods
            .retain(|pod, (_, runs)| *runs || of_now.contains_key(pod));
        waiting.retain(|(last, _)| last.is_none_or(|(_, runs)| !runs));
        waiting.sort_by_key(|(last, _)| last.map(|(at, _)| at));
        waiting.into_iter().map(|(_, target)| target).collect()
    }

    /// Whether one more may be looked at.
    pub(super) fn has_room(&self) -> bool {
        self.running < AT_ONCE
    }

    /// Looks at one.
    pub(super) fn start(
        &mut self,
        target: Target,
        now: Instant,
        look: impl FnOnce(&Target) -> Result<T, String> + Send + 'static,
    ) {
        self.running += 1;
        self.pods.insert(target.pod.clone(), (now, true));
        let report = Report {
            sender: self.sender.clone(),
            outcome: Some((
                target.clone(),
                Err("it ended before it was done".to_owned()),
            )),
        };
        // Where there is no thread, the report is dropped, and says so.
        let _ends_by_itself = thread::Builder::new().spawn(move || {
            let mut report = report;
            let found = look(&target);
            report.outcome = Some((target, found));
        });
    }

    /// Waits for the next that was found, so long at most; nothing when nobody is looked at.
    pub(super) fn wait(&mut self, left: Duration) -> Option<Outcome<T>> {
        if self.running == 0 {
            return None;
        }
        let (target, found) = self.found.recv_timeout(left).ok()?;
        self.running = self.running.saturating_sub(1);
        if let Some((_, runs)) = self.pods.get_mut(&target.pod) {
            *runs = false;
        }
        Some((target, found))
    }
}

/// Says what was found when it is dropped: by a look that panicked, too.
struct Report<T> {
    sender: Sender<Outcome<T>>,
    outcome: Option<Outcome<T>>,
}

impl<T> Drop for Report<T> {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            let _nobody_waits = self.sender.send(outcome);
        }
    }
}

/// How many could be looked at.
#[derive(Debug, Default)]
pub(super) struct Tally {
    good: u32,
    failed: u32,
    why: Option<String>,
}

impl Tally {
    pub(super) fn add<T>(&mut self, found: &Result<T, String>) {
        match found {
            Ok(_) => self.good += 1,
            Err(why) => {
                self.failed += 1;
                self.why = Some(why.clone());
            }
        }
    }

    /// The error says why the node's pods cannot be looked at: none of several could. One alone may have its
    /// own reason, and is told of by itself.
    pub(super) fn verdict(self) -> Result<(), String> {
        match self.why {
            Some(why) if self.good == 0 && self.failed > 1 => Err(why),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::intercept::InterceptArgs;

    const LIMIT: Duration = Duration::from_secs(60);

    fn targets(pods: std::ops::Range<usize>) -> Vec<Target> {
        let target = |pod: usize| Target {
            pod: format!("{pod:04}"),
            netns: PathBuf::from("/proc/7/ns/net"),
            namespace: (4, 5),
            rules: Arc::new(InterceptArgs::default()),
        };
        pods.map(target).collect()
    }

    fn names(targets: &VecDeque<Target>) -> Vec<&str> {
        targets.iter().map(|target| &*target.pod).collect()
    }

    #[test]
    fn nobody_waits_for_a_pod_whose_look_does_not_end() {
        let begin = Instant::now();
        let mut looks = Looks::default();
        let held = Arc::new(Mutex::new(()));
        let holds = held.lock().unwrap();
        let mut waiting = looks.waiting(targets(0..3));
        assert_eq!(names(&waiting), ["0000", "0001", "0002"]);
        let slow = Arc::clone(&held);
        looks.start(waiting.pop_front().unwrap(), begin, move |_| {
            drop(slow.lock());
            Ok(0)
        });
        looks.start(waiting.pop_front().unwrap(), begin, |_| Ok(1));
        let (target, found) = looks.wait(LIMIT).unwrap();
        assert_eq!((&*target.pod, found), ("0001", Ok(1)));
        assert!(looks.wait(Duration::ZERO).is_none(), "the other runs");
        // It is left out; the one that was not looked at is first.
        assert_eq!(names(&looks.waiting(targets(0..3))), ["0002", "0001"]);
        drop(holds);
        assert_eq!(looks.wait(LIMIT).unwrap().1, Ok(0));
        assert!(looks.wait(LIMIT).is_none(), "nobody is looked at");
        assert_eq!(names(&looks.waiting(targets(0..1))), ["0000"]);
        assert_eq!(looks.pods.len(), 1, "all others are forgotten");
    }

    #[test]
    fn a_look_that_panics_has_failed_and_so_many_run_at_once() {
        let begin = Instant::now();
        let mut looks = Looks::<()>::default();
        let mut waiting = looks.waiting(targets(0..AT_ONCE + 1));
        while looks.has_room() {
            let target = waiting.pop_front().unwrap();
            looks.start(target, begin, |_| panic!("one of a test"));
        }
        assert_eq!(waiting.len(), 1);
        let mut tally = Tally::default();
        while let Some((_, found)) = looks.wait(LIMIT) {
            tally.add(&found);
        }
        assert_eq!(tally.failed as usize, AT_ONCE);
        assert!(looks.has_room() && tally.verdict().is_err());
    }

    #[test]
    fn one_pod_does_not_speak_for_the_node() {
        let (good, bad) = (Ok(()), Err("no".to_owned()));
        for (found, expected) in [
            (vec![], Ok(())),
            (vec![&good], Ok(())),
            (vec![&bad], Ok(())),
            (vec![&bad, &good, &bad], Ok(())),
            (vec![&bad, &bad], Err("no".to_owned())),
        ] {
            let mut tally = Tally::default();
            for one in &found {
                tally.add(one);
            }
            assert_eq!(tally.verdict(), expected, "{found:?}");
        }
    }
}
