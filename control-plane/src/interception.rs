//! Tells of pods whose interception is lost, in Events: a sidecar has no rights in the cluster and says
//! it here.
//!
//! A sidecar is believed about its own pod only, which its certificate names, and says nothing but yes or
//! no. How often it may cause an Event is bounded: for each pod, each namespace, and all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use weft_core::interception::InterceptionReport;

use crate::kubernetes::events::{EventType, PodEvents, PodRef};
use crate::kubernetes::leader::Leader;
use crate::kubernetes::pace::{EVENTS, Pace};
use crate::kubernetes::told;
use crate::pipeline::Pipeline;
use crate::registry::Observations;
use crate::replicas::Replicas;
use crate::unix_seconds;

/// From one Event of a pod to the next at least, whatever its sidecar says meanwhile.
const BETWEEN: Duration = Duration::from_secs(60);
/// An Event is written again while interception is lost: API servers forget Events after an hour.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether something is to be told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long writing one Event may take.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// The reasons of Events.
pub(crate) const LOST: &str = "InterceptionLost";
pub(crate) const RESTORED: &str = "InterceptionRestored";

/// What was told of a pod last.
#[derive(Debug, Clone, Copy)]
struct LastTold {
    standing: InterceptionReport,
    at: Instant,
    /// Not by this replica, which did not lead: the one that did may have ended before. `at` is when it was
    /// seen last, or changed.
    is_hearsay: bool,
}

/// What was told of which pods: pure.
#[derive(Debug)]
struct Lapses {
    told: BTreeMap<PodRef, LastTold>,
    pace: Pace,
    /// Since when this replica leads.
    leads_since: Option<Instant>,
}

impl Lapses {
    fn new(now: Instant) -> Self {
        Self {
            told: BTreeMap::new(),
            pace: Pace::new(EVENTS[0], EVENTS[1], now),
            leads_since: None,
        }
    }

    /// Takes what sidecars say while another replica leads, who tells of it: what this one goes on with, if
    /// it comes to lead. What this one has told itself holds while it is still so.
    fn handle_as_follower(&mut self, seen: Vec<(PodRef, InterceptionReport)>, now: Instant) {
        self.leads_since = None;
        for (pod, standing) in seen {
            let has_changed = match self.told.get(&pod) {
                None => standing == InterceptionReport::Lapsed,
                Some(told) if told.is_hearsay => {
                    told.standing != standing || standing == InterceptionReport::Lapsed
                }
                Some(told) => told.standing != standing,
            };
            if has_changed {
                let told = LastTold {
                    standing,
                    at: now,
                    is_hearsay: true,
                };
                self.told.insert(pod, told);
            }
        }
        let age = |told: &LastTold| now.saturating_duration_since(told.at);
        // The one that leads tells of a change a minute after what it told before, at the latest, and whoever
        // comes to lead another minute later.
        self.told.retain(|_, told| match told.is_hearsay {
            true => age(told) < BETWEEN * 2,
            false => age(told) < TELL_AGAIN_AFTER,
        });
    }

    /// Takes what sidecars say now; what is to be told of it. That of which nothing was said before is
    /// told of only when it is lost. Of what another replica may have told just now nothing is, for the time
    /// between two Events. Namespaces have their turns, and in each the pod is first that was not told of for
    /// the longest time.
    fn due(
        &mut self,
        seen: Vec<(PodRef, InterceptionReport)>,
        now: Instant,
    ) -> Vec<(PodRef, InterceptionReport)> {
        let leads_since = *self.leads_since.get_or_insert(now);
        let led = now.saturating_duration_since(leads_since);
        let age = |told: &LastTold| now.saturating_duration_since(told.at);
        // What is lost is told of again, and that it is restored is told of the pods that are kept here.
        let of_now: BTreeSet<&PodRef> = seen.iter().map(|(pod, _)| pod).collect();
        self.told.retain(|pod, told| {
            let is_lost = told.standing == InterceptionReport::Lapsed && of_now.contains(pod);
            is_lost || age(told) < TELL_AGAIN_AFTER
        });
        let is_due = |(pod, standing): &(PodRef, InterceptionReport)| match self.told.get(pod) {
            None => *standing == InterceptionReport::Lapsed,
            // Before it led another one may have told of it last.
            Some(told) if age(told).min(led) < BETWEEN => false,
            Some(told) if told.is_hearsay || told.standing != *standing => true,
            Some(told) => *standing == InterceptionReport::Lapsed && age(told) >= TELL_AGAIN_AFTER,
        };
        let mut waiting: Vec<_> = seen.into_iter().filter(is_due).collect();
        waiting.sort_by_cached_key(|(pod, _)| {
            let told = self.told.get(pod).filter(|told| !told.is_hearsay);
            (told.map(|told| told.at), pod.clone())
        });
        let mut by_namespace: BTreeMap<String, VecDeque<(PodRef, InterceptionReport)>> =
            BTreeMap::new();
        for (pod, standing) in waiting {
            let of_namespace = by_namespace.entry(pod.namespace.clone()).or_default();
            of_namespace.push_back((pod, standing));
        }
        let mut due = Vec::new();
        loop {
            let waiting = by_namespace
                .iter_mut()
                .map(|(name, pods)| (name.as_str(), pods));
            let Some(pods) = self.pace.take_turn(waiting.collect(), now) else {
                return due;
            };
            if let Some((pod, standing)) = pods.pop_front() {
                let told = LastTold {
                    standing,
                    at: now,
                    is_hearsay: false,
                };
                self.told.insert(pod.clone(), told);
                due.push((pod, standing));
            }
            by_namespace.retain(|_, pods| !pods.is_empty());
        }
    }

    /// An Event was not written: what was to be told still is, after the time that every pod waits.
    fn on_failed(&mut self, pod: &PodRef) {
        if let Some(told) = self.told.get_mut(pod) {
            told.standing = match told.standing {
                InterceptionReport::InForce => InterceptionReport::Lapsed,
                InterceptionReport::Lapsed => InterceptionReport::InForce,
            };
        }
    }
}

/// Tells of the sidecars of all replicas, in the one that leads.
#[derive(Debug)]
pub(crate) struct Teller {
    events: PodEvents,
    observations: Arc<Observations>,
    replicas: Arc<Replicas>,
    pipeline: Arc<Pipeline>,
    leader: Leader,
}

impl Teller {
    pub(crate) fn new(
        events: PodEvents,
        observations: Arc<Observations>,
        replicas: Arc<Replicas>,
        pipeline: Arc<Pipeline>,
        leader: Leader,
    ) -> Self {
        Self {
            events,
            observations,
            replicas,
            pipeline,
            leader,
        }
    }

    /// Runs until the task is dropped.
    pub(crate) async fn keep(mut self) {
        let mut here = self.observations.watch_interception();
        let mut elsewhere = self.replicas.watch_interception();
        let mut lapses = Lapses::new(Instant::now());
        loop {
            match self.leader.leads() {
                true => self.lead(&mut lapses).await,
                false => lapses.handle_as_follower(self.seen(), Instant::now()),
            }
            tokio::select! {
                _ = here.changed() => {}
                _ = elsewhere.changed() => {}
                _ = self.leader.changed() => {}
                // A pod that the cluster has not told of yet, or whose turn has not come, is looked for again.
                () = sleep(LOOK_EVERY * 10) => {}
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn lead(&self, lapses: &mut Lapses) {
        for (pod, standing) in lapses.due(self.seen(), Instant::now()) {
            // Writing takes time, in which another may come to lead.
            let told = match self.leader.leads() {
                true => self.tell(&pod, standing).await,
                false => Err("another control plane leads".to_owned()),
            };
            if let Err(error) = told {
                let PodRef {
                    namespace, name, ..
                } = &pod;
                tracing::warn!(
                    namespace,
                    name,
                    error,
                    "an Event was not written; tried again"
                );
                lapses.on_failed(&pod);
            }
        }
    }

    /// What sidecars of pods say, to this replica or to another. Which pod it is says its certificate, and
    /// the cluster.
    fn seen(&self) -> Vec<(PodRef, InterceptionReport)> {
        let snapshot = self.pipeline.snapshot();
        let mut all = self.observations.interception();
        all.extend(self.replicas.interception(&all));
        let all = all.into_iter().filter_map(|(peer, standing)| {
            let pod = snapshot.world.pod_of(&peer)?;
            let uid = peer.instance.strip_prefix("pod-")?;
            let pod = PodRef {
                namespace: pod.namespace().to_owned(),
                name: pod.name().to_owned(),
                uid: uid.to_owned(),
            };
            Some((pod, standing))
        });
        all.collect()
    }

    async fn tell(&self, pod: &PodRef, standing: InterceptionReport) -> Result<(), String> {
        let (kind, reason, message) = match standing {
            InterceptionReport::Lapsed => (
                EventType::Warning,
                LOST,
                "The application's connections are not redirected to the sidecar any more: they go past it, \
                 unprotected, and the pod is not ready. The rules in the pod's network namespace were taken \
                 away (a flushed table, a restarted node). Delete the pod, so that it is made anew.",
            ),
            InterceptionReport::InForce => (
                EventType::Normal,
                RESTORED,
                "The application's connections are redirected to the sidecar again.",
            ),
        };
        let PodRef {
            namespace, name, ..
        } = pod;
        tracing::warn!(
            namespace,
            name,
            standing = standing.as_str(),
            "interception"
        );
        let now = unix_seconds();
        let writing = self.events.write(pod, kind, reason, message, [now, now]);
        match timeout(WRITE_MAX, writing).await {
            Ok(written) => written.map_err(|error| told(&error)),
            Err(_elapsed) => Err(format!("no answer within {WRITE_MAX:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> PodRef {
        PodRef {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
        }
    }

    fn due(
        lapses: &mut Lapses,
        standing: InterceptionReport,
        now: Instant,
    ) -> Vec<InterceptionReport> {
        let due = lapses.due(vec![(pod("web"), standing)], now);
        due.into_iter().map(|(_, standing)| standing).collect()
    }

    #[test]
    fn what_is_lost_is_told_and_what_comes_back_and_no_more() {
        use InterceptionReport::{InForce, Lapsed};
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut lapses = Lapses::new(begin);
        assert_eq!(due(&mut lapses, InForce, at(0)), [], "as it should be");
        assert_eq!(due(&mut lapses, Lapsed, at(1)), [Lapsed]);
        // A sidecar that says something else each second is told of once a minute.
        let mut told = 0;
        for second in 2..600 {
            let standing = if second % 2 == 0 { InForce } else { Lapsed };
            told += due(&mut lapses, standing, at(second)).len();
        }
        assert!((8..=10).contains(&told), "{told}");
        let begin = at(700);
        let mut lapses = Lapses::new(begin);
        assert_eq!(due(&mut lapses, Lapsed, begin), [Lapsed]);
        assert_eq!(due(&mut lapses, Lapsed, begin + BETWEEN), []);
        let again = begin + TELL_AGAIN_AFTER;
        assert_eq!(due(&mut lapses, Lapsed, again), [Lapsed]);
        lapses.on_failed(&pod("web"));
        assert_eq!(due(&mut lapses, Lapsed, again + BETWEEN), [Lapsed]);
    }

    #[test]
    fn whoever_comes_to_lead_goes_on_with_what_he_has_seen() {
        use InterceptionReport::{InForce, Lapsed};
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let seen = |standing| vec![(pod("web"), standing)];
        // It is lost still, and may not have been told, or just now.
        let mut lapses = Lapses::new(begin);
        lapses.handle_as_follower(seen(Lapsed), at(0));
        assert_eq!(due(&mut lapses, Lapsed, at(1)), []);
        assert_eq!(due(&mut lapses, Lapsed, at(60)), []);
        assert_eq!(due(&mut lapses, Lapsed, at(61)), [Lapsed]);
        assert_eq!(due(&mut lapses, Lapsed, at(62)), []);
        // It came back while nobody led.
        let mut lapses = Lapses::new(begin);
        lapses.handle_as_follower(seen(Lapsed), at(0));
        lapses.handle_as_follower(seen(InForce), at(30));
        assert_eq!(due(&mut lapses, InForce, at(40)), []);
        assert_eq!(due(&mut lapses, InForce, at(100)), [InForce]);
        // It came back long ago, or was never lost.
        let mut lapses = Lapses::new(begin);
        lapses.handle_as_follower(seen(Lapsed), at(0));
        lapses.handle_as_follower(seen(InForce), at(30));
        lapses.handle_as_follower(seen(InForce), at(150));
        assert!(lapses.told.is_empty());
        assert_eq!(due(&mut lapses, InForce, at(151)), []);
    }

    #[test]
    fn a_lease_that_moves_causes_no_more_events() {
        use InterceptionReport::{InForce, Lapsed};
        let begin = Instant::now();
        let mut replicas = [Lapses::new(begin), Lapses::new(begin)];
        let mut told = Vec::new();
        for second in 0..1200_u64 {
            let now = begin + Duration::from_secs(second);
            let standing = match second / 7 % 2 {
                0 => Lapsed,
                _ => InForce,
            };
            // Never for a minute, for two, and for longer.
            let leader = [second / 20, second / 100][usize::from(second >= 600)] % 2;
            for (replica, lapses) in (0..).zip(&mut replicas) {
                match replica == leader {
                    true => {
                        let count = due(lapses, standing, now).len();
                        told.extend(std::iter::repeat_n(second, count));
                    }
                    false => lapses.handle_as_follower(vec![(pod("web"), standing)], now),
                }
            }
        }
        let apart = told.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(told.len() > 5 && apart >= Some(60), "{told:?}");
        // What it has told itself it does not tell again, if it leads again.
        let mut lapses = Lapses::new(begin);
        assert_eq!(due(&mut lapses, Lapsed, begin), [Lapsed]);
        lapses.handle_as_follower(vec![(pod("web"), Lapsed)], begin + BETWEEN * 3);
        assert_eq!(due(&mut lapses, Lapsed, begin + BETWEEN * 4), []);
        assert_eq!(due(&mut lapses, InForce, begin + BETWEEN * 5), [InForce]);
    }

    #[test]
    fn that_it_is_restored_is_told_although_its_repetition_had_no_turn() {
        use InterceptionReport::{InForce, Lapsed};
        let begin = Instant::now();
        let mut lapses = Lapses::new(begin);
        assert_eq!(due(&mut lapses, Lapsed, begin), [Lapsed]);
        let again = begin + TELL_AGAIN_AFTER;
        // Others of its namespace use what may be told, of which nothing was told before.
        let others = (0..30).map(|n| pod(&n.to_string()));
        let all: Vec<_> = { others.chain([pod("web")]) }
            .map(|pod| (pod, Lapsed))
            .collect();
        let told = lapses.due(all, again);
        assert_eq!(told.len(), 30);
        assert!(told.iter().all(|(told, _)| *told != pod("web")));
        assert_eq!(due(&mut lapses, InForce, again + BETWEEN), [InForce]);
        assert_eq!(due(&mut lapses, InForce, again + BETWEEN * 2), []);
    }

    #[test]
    fn namespaces_have_their_turns_and_who_was_told_of_does_not_keep_others() {
        let begin = Instant::now();
        let of = |namespace: &str, name: String| PodRef {
            namespace: namespace.to_owned(),
            name: name.clone(),
            uid: name,
        };
        let mut lapses = Lapses::new(begin);
        let all = |standing: InterceptionReport| -> Vec<_> {
            let first = ["a", "b", "c"].into_iter();
            let first = first.flat_map(|place| (0..100).map(move |n| of(place, n.to_string())));
            let last = [of("z", "z".to_owned())];
            first.chain(last).map(|pod| (pod, standing)).collect()
        };
        let told = lapses.due(all(InterceptionReport::Lapsed), begin);
        assert_eq!(told.len(), 60);
        assert_eq!(told[3].0.namespace, "z", "after one of each before it");
        // Sidecars that say something else each time do not keep those that wait.
        let mut names: BTreeMap<PodRef, u32> = BTreeMap::new();
        for minute in 1..6 {
            let standing = match minute % 2 {
                0 => InterceptionReport::Lapsed,
                _ => InterceptionReport::InForce,
            };
            let mut seen = all(InterceptionReport::Lapsed);
            for (pod, said) in &mut seen {
                if names.contains_key(pod) || told.iter().any(|(told, _)| told == pod) {
                    *said = standing;
                }
            }
            let now = begin + minute * BETWEEN;
            for (pod, _) in lapses.due(seen, now) {
                *names.entry(pod).or_default() += 1;
            }
        }
        let waited = all(InterceptionReport::Lapsed)
            .into_iter()
            .map(|(pod, _)| pod);
        let waited = waited.filter(|pod| !told.iter().any(|(told, _)| told == pod));
        let untold: Vec<_> = waited.filter(|pod| !names.contains_key(pod)).collect();
        assert!(untold.is_empty(), "{untold:?}");
    }

    #[test]
    fn many_pods_of_one_namespace_have_a_rate() {
        let begin = Instant::now();
        let mut lapses = Lapses::new(begin);
        let all: Vec<_> = (0..100)
            .map(|n| (pod(&n.to_string()), InterceptionReport::Lapsed))
            .collect();
        assert_eq!(lapses.due(all.clone(), begin).len(), 30);
        assert_eq!(lapses.due(all.clone(), begin).len(), 0);
        let told = lapses.due(all, begin + Duration::from_secs(60)).len();
        assert_eq!(told, 30, "those that had to wait");
    }
}
