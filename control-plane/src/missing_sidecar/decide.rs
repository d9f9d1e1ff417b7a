//! When a pod without a sidecar is told of, and when it is evicted: pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kubernetes::events::PodRef;
use crate::kubernetes::pace::{EVENTS, Pace, PerMinute};

/// Evictions in a minute, unless the operator says otherwise.
pub const EVICTIONS_PER_MINUTE: u32 = 6;
/// Evictions in a minute that an operator may allow.
pub const EVICTIONS_PER_MINUTE_MAX: u32 = 600;

/// A namespace has this part of the evictions of the mesh, but at least one in a minute.
const NAMESPACE_PART: u32 = 3;
/// An Event is written again while the pod has no sidecar: API servers forget Events after an hour.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(30 * 60);
/// After something failed for a pod it is tried again, doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(30);
/// At most this long.
const RETRY_MAX: Duration = Duration::from_secs(30 * 60);
/// Nothing is evicted for this long after the injector was found not to work.
const HALT_WHILE_NOT_INJECTED: Duration = Duration::from_secs(60);
/// Nothing of a namespace is evicted for this long after a pod of it came without a sidecar although one
/// had just been evicted: whatever keeps the injector from working, more evictions would not mend it.
const HALT_AFTER_IN_VAIN: Duration = Duration::from_secs(600);
/// A pod that comes this long after an eviction in its namespace may be the one in its place.
const REPLACED_WITHIN: Duration = Duration::from_secs(120);

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    /// How long a pod has wanted a sidecar before.
    pub after: Duration,
    /// Pods in a minute: 1 to [`EVICTIONS_PER_MINUTE_MAX`].
    pub per_minute: u32,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Look at the pod, and write an Event if it has no sidecar.
    Tell(PodRef),
    /// Look at the pod, and evict it if it has no sidecar and would get one.
    Evict(PodRef),
}

/// What was found when a pod was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It has no sidecar, and would get one if its controller made it anew.
    Replaceable,
    /// It has none, and nobody would make it anew with one.
    ForPeople,
    /// It is gone, or wants none.
    Nothing,
    /// The API did not answer.
    Failed,
}

/// What became of an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evicted {
    /// The pod ends.
    Done,
    /// A PodDisruptionBudget does not allow it now, the injector is not asked about it, or the API did not
    /// answer.
    NotNow,
    /// The injector does not work: no pod would get its sidecar now.
    NotInjected,
    /// It is gone, or is another, or not to be evicted any more.
    Nothing,
}

impl Evicted {
    /// The word in metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "evicted",
            Self::NotNow => "refused",
            Self::NotInjected => "not-injected",
            Self::Nothing => "not-needed",
        }
    }
}

/// A pod without a sidecar.
#[derive(Debug)]
struct Tracked {
    /// Since when it wants one; nothing while it wants none.
    wants: Option<Instant>,
    tell_at: Instant,
    /// Not before.
    evict_at: Option<Instant>,
    failures: u32,
}

/// All pods without a sidecar, and what was done about them.
#[derive(Debug)]
pub(super) struct Decider {
    eviction: Option<Eviction>,
    pods: BTreeMap<PodRef, Tracked>,
    /// Whether the first of what the watch says was taken: it is of any age.
    begun: bool,
    events: Pace,
    evictions: Pace,
    /// When a pod of a namespace was evicted last.
    evicted: BTreeMap<String, Instant>,
    /// Until when nothing is evicted: all, and of a namespace.
    halted: Option<Instant>,
    halted_namespaces: BTreeMap<String, Instant>,
}

impl Decider {
    pub(super) fn new(eviction: Option<Eviction>, now: Instant) -> Self {
        let per_minute = eviction.map_or(1, |eviction| eviction.per_minute);
        let of_namespace = (per_minute / NAMESPACE_PART).max(1);
        Self {
            eviction,
            pods: BTreeMap::new(),
            begun: false,
            events: Pace::new(EVENTS[0], EVENTS[1], now),
            evictions: Pace::new(
                PerMinute::new(per_minute, 1),
                PerMinute::new(of_namespace, 1),
                now,
            ),
            evicted: BTreeMap::new(),
            halted: None,
            halted_namespaces: BTreeMap::new(),
        }
    }

    /// Takes all pods without a sidecar, each with whether it wants one. Returns the first that came in
    /// the place of an evicted one without a sidecar: then nothing of its namespace is evicted for a while.
    pub(super) fn handle_pods(
        &mut self,
        all: BTreeMap<PodRef, bool>,
        now: Instant,
    ) -> Option<PodRef> {
        self.pods.retain(|pod, _| all.contains_key(pod));
        let recent = |at: &Instant| now.saturating_duration_since(*at) < REPLACED_WITHIN;
        self.evicted.retain(|_, at| recent(at));
        let mut in_vain = None;
        for (pod, wants) in all {
            let is_new = !self.pods.contains_key(&pod);
            if is_new && wants && self.begun && self.evicted.contains_key(&pod.namespace) {
                let until = now + HALT_AFTER_IN_VAIN;
                self.halted_namespaces.insert(pod.namespace.clone(), until);
                in_vain.get_or_insert_with(|| pod.clone());
            }
            let tracked = self.pods.entry(pod).or_insert(Tracked {
                wants: None,
                tell_at: now,
                evict_at: None,
                failures: 0,
            });
            match (wants, tracked.wants) {
                (true, None) => {
                    tracked.wants = Some(now);
                    tracked.tell_at = now;
                }
                (false, Some(_)) => (tracked.wants, tracked.evict_at) = (None, None),
                (true, Some(_)) | (false, None) => {}
            }
        }
        self.begun = true;
        in_vain
    }

    /// The next thing that is due. Of a namespace the pod is first that has waited longest, and namespaces
    /// have their turns.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Step> {
        let told = self
            .pods
            .iter()
            .filter(|(_, tracked)| tracked.wants.is_some());
        let told = told.map(|(pod, tracked)| (pod, tracked.tell_at));
        if let Some(pod) = self.events.take_turn(longest(told, now), now).cloned() {
            if let Some(tracked) = self.pods.get_mut(&pod) {
                tracked.tell_at = now + TELL_AGAIN_AFTER;
            }
            return Some(Step::Tell(pod));
        }
        let eviction = self.eviction?;
        self.halted_namespaces.retain(|_, until| now < *until);
        if self.halted.is_some_and(|until| now < until) {
            return None;
        }
        let evicted = self.pods.iter().filter_map(|(pod, tracked)| {
            let wanted = now.saturating_duration_since(tracked.wants?);
            let may =
                wanted >= eviction.after && !self.halted_namespaces.contains_key(&pod.namespace);
            may.then_some((pod, tracked.evict_at?))
        });
        let waiting = longest(evicted, now);
        let pod = self.evictions.take_turn(waiting, now)?.clone();
        if let Some(tracked) = self.pods.get_mut(&pod) {
            tracked.evict_at = None;
        }
        Some(Step::Evict(pod))
    }

    /// For how long a pod has wanted a sidecar.
    pub(super) fn wanting(&self, pod: &PodRef, now: Instant) -> Duration {
        let since = self.pods.get(pod).and_then(|tracked| tracked.wants);
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// [`Step::Tell`] was carried out.
    pub(super) fn on_told(&mut self, pod: &PodRef, told: Told, now: Instant) {
        let Some(tracked) = self.pods.get_mut(pod) else {
            return;
        };
        match told {
            Told::Replaceable => {
                tracked.evict_at.get_or_insert(now);
            }
            Told::ForPeople | Told::Nothing => tracked.evict_at = None,
            Told::Failed => {
                tracked.tell_at = now + retry(tracked.failures);
                tracked.failures = tracked.failures.saturating_add(1);
                return;
            }
        }
        tracked.failures = 0;
    }

    /// [`Step::Evict`] was carried out.
    pub(super) fn on_evicted(&mut self, pod: &PodRef, evicted: Evicted, now: Instant) {
        if evicted == Evicted::NotInjected {
            self.halted = Some(now + HALT_WHILE_NOT_INJECTED);
        }
        if evicted == Evicted::Done {
            self.evicted.insert(pod.namespace.clone(), now);
        }
        let Some(tracked) = self.pods.get_mut(pod) else {
            return;
        };
        match evicted {
            // It is told of once more before anything else is done, should it still be there.
            Evicted::Done | Evicted::Nothing => {}
            Evicted::NotInjected => tracked.evict_at = Some(now),
            Evicted::NotNow => {
                tracked.evict_at = Some(now + retry(tracked.failures));
                tracked.failures = tracked.failures.saturating_add(1);
            }
        }
    }
}

/// Of pods for which something is due since a time, the one of each namespace that has waited longest.
fn longest<'a>(
    pods: impl Iterator<Item = (&'a PodRef, Instant)>,
    now: Instant,
) -> BTreeMap<&'a str, &'a PodRef> {
    let mut longest: BTreeMap<&str, (Instant, &PodRef)> = BTreeMap::new();
    for (pod, since) in pods.filter(|(_, since)| *since <= now) {
        let first = longest.entry(&pod.namespace).or_insert((since, pod));
        *first = (since, pod).min(*first);
    }
    let first = longest
        .into_iter()
        .map(|(namespace, (_, pod))| (namespace, pod));
    first.collect()
}

/// How long until something is tried again that failed so many times before.
fn retry(failures: u32) -> Duration {
    RETRY_MIN
        .saturating_mul(2_u32.saturating_pow(failures.min(16)))
        .min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn pod(namespace: &str, name: &str) -> PodRef {
        PodRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("{namespace}-{name}"),
        }
    }

    fn all(pods: &[&PodRef]) -> BTreeMap<PodRef, bool> {
        pods.iter().map(|pod| ((*pod).clone(), true)).collect()
    }

    fn allowed(per_minute: u32) -> Option<Eviction> {
        Some(Eviction {
            after: MINUTE,
            per_minute,
        })
    }

    /// Everything that is due; every pod can be replaced, and evictions end so.
    fn steps(decider: &mut Decider, evicted: Evicted, now: Instant) -> (Vec<String>, Vec<String>) {
        let mut done = (Vec::new(), Vec::new());
        while let Some(step) = decider.poll(now) {
            match step {
                Step::Tell(pod) => {
                    decider.on_told(&pod, Told::Replaceable, now);
                    done.0.push(pod.name);
                }
                Step::Evict(pod) => {
                    decider.on_evicted(&pod, evicted, now);
                    done.1.push(pod.name);
                }
            }
        }
        done
    }

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_pod_is_told_of_at_once_and_again_and_evicted_only_where_that_is_allowed() {
        let begin = Instant::now();
        let web = pod("shop", "web");
        for (eviction, expected) in [(None, texts(&[])), (allowed(6), texts(&["web"]))] {
            let mut decider = Decider::new(eviction, begin);
            assert_eq!(decider.handle_pods(all(&[&web]), begin), None);
            let told = steps(&mut decider, Evicted::NotNow, begin);
            assert_eq!(told, (texts(&["web"]), texts(&[])));
            let early = steps(&mut decider, Evicted::NotNow, begin + MINUTE / 2);
            assert_eq!(early, (texts(&[]), texts(&[])));
            let due = steps(&mut decider, Evicted::NotNow, begin + MINUTE);
            assert_eq!(due, (texts(&[]), expected));
            let again = decider.poll(begin + TELL_AGAIN_AFTER);
            assert_eq!(again, Some(Step::Tell(web.clone())));
        }
    }

    #[test]
    fn what_nobody_makes_anew_or_wants_no_sidecar_any_more_is_not_evicted() {
        let begin = Instant::now();
        let (bare, calm) = (pod("shop", "bare"), pod("shop", "calm"));
        let mut decider = Decider::new(allowed(600), begin);
        decider.handle_pods(all(&[&bare, &calm]), begin);
        for expected in [&bare, &calm] {
            assert_eq!(decider.poll(begin), Some(Step::Tell(expected.clone())));
        }
        decider.on_told(&bare, Told::ForPeople, begin);
        decider.on_told(&calm, Told::Replaceable, begin);
        let unasked = [(bare.clone(), true), (calm.clone(), false)].into();
        decider.handle_pods(unasked, begin);
        assert_eq!(decider.poll(begin + 2 * MINUTE), None);
        // It is looked at anew when it wants one again.
        decider.handle_pods(all(&[&bare, &calm]), begin + 2 * MINUTE);
        let step = decider.poll(begin + 2 * MINUTE);
        assert_eq!(step, Some(Step::Tell(calm)));
    }

    #[test]
    fn evictions_have_a_rate_for_all_and_one_for_each_namespace() {
        let begin = Instant::now();
        let mut pods = BTreeMap::new();
        for namespace in ["a", "b"] {
            for n in 0..20 {
                pods.insert(pod(namespace, &format!("{namespace}{n:02}")), true);
            }
        }
        let mut decider = Decider::new(allowed(6), begin);
        decider.handle_pods(pods.clone(), begin);
        assert_eq!(steps(&mut decider, Evicted::Done, begin).0.len(), 40);
        let (mut of_a, mut of_b) = (0, 0);
        for second in 0..60 {
            let now = begin + MINUTE + Duration::from_secs(second);
            let (_, evicted) = steps(&mut decider, Evicted::NotNow, now);
            assert!(evicted.len() <= 1, "one at a time: {evicted:?}");
            of_a += evicted.iter().filter(|name| name.starts_with('a')).count();
            of_b += evicted.iter().filter(|name| name.starts_with('b')).count();
        }
        assert_eq!((of_a, of_b), (2, 2), "a third of six, each");
    }

    /// How often each pod was told of, looked at every so many seconds.
    fn told(pods: &[(&str, usize)], seconds: u64, step: usize) -> BTreeMap<String, u32> {
        let begin = Instant::now();
        let named = pods.iter().flat_map(|(namespace, many)| {
            (0..*many).map(move |n| (pod(namespace, &format!("{namespace}{n:04}")), true))
        });
        let mut decider = Decider::new(None, begin);
        decider.handle_pods(named.collect(), begin);
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        for second in (0..seconds).step_by(step) {
            let now = begin + Duration::from_secs(second);
            for name in steps(&mut decider, Evicted::NotNow, now).0 {
                *times.entry(name).or_default() += 1;
            }
        }
        times
    }

    #[test]
    fn no_namespace_waits_behind_others() {
        let namespaces = ["a", "b", "c", "d", "e", "f"];
        let times = told(&namespaces.map(|namespace| (namespace, 60)), 60, 1);
        for namespace in namespaces {
            let of_it = times.keys().filter(|name| name.starts_with(namespace));
            let of_it = of_it.count();
            assert!((29..=31).contains(&of_it), "{namespace}: {of_it}");
        }
    }

    #[test]
    fn no_pod_waits_behind_those_that_are_to_be_told_of_again() {
        // More than a namespace is told of in 30 min.
        let times = told(&[("a", 1100)], 2400, 10);
        assert_eq!(times.len(), 1100, "all were told of");
        assert!(times.values().all(|times| *times <= 2));
    }

    /// One namespace with many pods to evict, and others with a few.
    #[test]
    fn evictions_go_around_the_namespaces() {
        let begin = Instant::now();
        let mut pods = BTreeMap::new();
        for (namespace, many) in [("a", 50), ("b", 50), ("c", 50), ("d", 50), ("z", 1)] {
            for n in 0..many {
                pods.insert(pod(namespace, &format!("{namespace}{n:02}")), true);
            }
        }
        let mut decider = Decider::new(allowed(6), begin);
        decider.handle_pods(pods, begin);
        for second in 0..60 {
            steps(
                &mut decider,
                Evicted::NotNow,
                begin + Duration::from_secs(second),
            );
        }
        let mut evicted = Vec::new();
        for second in 60..120 {
            let now = begin + Duration::from_secs(second);
            evicted.extend(steps(&mut decider, Evicted::NotNow, now).1);
        }
        let namespaces: String = evicted.iter().map(|name| &name[..1]).collect();
        assert_eq!(namespaces, "abcdza");
    }

    #[test]
    fn what_a_budget_refuses_is_tried_later_each_time_and_keeps_nobody_else() {
        let begin = Instant::now();
        let (first, second) = (pod("a", "first"), pod("b", "second"));
        let mut decider = Decider::new(allowed(600), begin);
        decider.handle_pods(all(&[&first, &second]), begin);
        steps(&mut decider, Evicted::NotNow, begin);
        let mut times = Vec::new();
        for second in 60..600 {
            let now = begin + Duration::from_secs(second);
            let (_, evicted) = steps(&mut decider, Evicted::NotNow, now);
            if evicted.contains(&"first".to_owned()) {
                times.push(second);
            }
        }
        assert_eq!(times, [60, 90, 150, 270, 510]);
    }

    #[test]
    fn nothing_is_evicted_while_pods_are_not_injected() {
        let begin = Instant::now() + MINUTE;
        let (first, second) = (pod("shop", "first"), pod("shop", "second"));
        let mut decider = Decider::new(allowed(600), begin);
        decider.handle_pods(all(&[&first, &second]), begin);
        let now = begin + MINUTE;
        steps(&mut decider, Evicted::Done, begin);
        let (_, evicted) = steps(&mut decider, Evicted::NotInjected, now);
        assert_eq!(evicted, texts(&["first"]));
        let (_, halted) = steps(&mut decider, Evicted::Done, now + MINUTE / 2);
        assert_eq!(halted, texts(&[]));
        // The other one has waited longer by now.
        let (_, evicted) = steps(&mut decider, Evicted::Done, now + MINUTE);
        assert_eq!(evicted, texts(&["second"]));
        // What takes its place has none either.
        let later = now + MINUTE + Duration::from_secs(5);
        let third = pod("shop", "third");
        let in_vain = decider.handle_pods(all(&[&first, &third]), later);
        assert_eq!(in_vain, Some(third));
        let (_, halted) = steps(&mut decider, Evicted::Done, later + 5 * MINUTE);
        assert_eq!(halted, texts(&[]));
        let (_, evicted) = steps(&mut decider, Evicted::Done, later + 10 * MINUTE);
        assert_eq!(evicted.len(), 1);
    }
}
