//! Tells of pods whose interception is lost, in Events: a sidecar has no rights in the cluster and says
//! it here.
//!
//! A sidecar is believed about its own pod only, which its certificate names, and says nothing but yes or
//! no. How often it may cause an Event is bounded: for each pod, each namespace, and all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::time::{sleep, timeout};
use weft_core::interception::Standing;

use crate::kubernetes::events::{EventType, PodEvents, PodRef};
use crate::kubernetes::pace::{EVENTS, Pace};
use crate::kubernetes::told;
use crate::pipeline::Pipeline;
use crate::registry::Observations;
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
const LOST: &str = "InterceptionLost";
const RESTORED: &str = "InterceptionRestored";

/// What was told of a pod last.
#[derive(Debug, Clone, Copy)]
struct LastTold {
    standing: Standing,
    at: Instant,
}

/// What was told of which pods: pure.
#[derive(Debug)]
struct Lapses {
    told: BTreeMap<PodRef, LastTold>,
    pace: Pace,
}

impl Lapses {
    fn new(now: Instant) -> Self {
        Self {
            told: BTreeMap::new(),
            pace: Pace::new(EVENTS[0], EVENTS[1], now),
        }
    }

    /// Takes what sidecars say now; what is to be told of it. That of which nothing was said before is
    /// told of only when it is lost.
    fn due(&mut self, seen: Vec<(PodRef, Standing)>, now: Instant) -> Vec<(PodRef, Standing)> {
        let age = |told: &LastTold| now.saturating_duration_since(told.at);
        // What is forgotten may be told of anew, so it is kept for as long as it may not.
        self.told.retain(|_, told| age(told) < TELL_AGAIN_AFTER);
        let mut due = Vec::new();
        for (pod, standing) in seen {
            let is_due = match self.told.get(&pod) {
                None => standing == Standing::Lapsed,
                Some(told) => told.standing != standing && age(told) >= BETWEEN,
            };
            if is_due && self.pace.take(&pod.namespace, now) {
                let at = now;
                self.told.insert(pod.clone(), LastTold { standing, at });
                due.push((pod, standing));
            }
        }
        due
    }

    /// An Event was not written: what was to be told still is, after the time that every pod waits.
    fn on_failed(&mut self, pod: &PodRef) {
        if let Some(told) = self.told.get_mut(pod) {
            told.standing = match told.standing {
                Standing::InForce => Standing::Lapsed,
                Standing::Lapsed => Standing::InForce,
            };
        }
    }
}

/// Tells of the sidecars that are connected to this replica.
#[derive(Debug)]
pub(crate) struct Teller {
    events: PodEvents,
    observations: Arc<Observations>,
    pipeline: Arc<Pipeline>,
}

impl Teller {
    pub(crate) fn new(
        client: Client,
        observations: Arc<Observations>,
        pipeline: Arc<Pipeline>,
    ) -> Self {
        Self {
            events: PodEvents::new(client),
            observations,
            pipeline,
        }
    }

    /// Runs until the task is dropped.
    pub(crate) async fn keep(self) {
        let mut changes = self.observations.watch_interception();
        let mut lapses = Lapses::new(Instant::now());
        loop {
            for (pod, standing) in lapses.due(self.seen(), Instant::now()) {
                if let Err(error) = self.tell(&pod, standing).await {
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
            // A pod that the cluster has not told of yet, or whose turn has not come, is looked for again.
            let _changed = timeout(LOOK_EVERY * 10, changes.changed()).await;
            sleep(LOOK_EVERY).await;
        }
    }

    /// What sidecars of pods say. Which pod it is says its certificate, and the cluster.
    fn seen(&self) -> Vec<(PodRef, Standing)> {
        let snapshot = self.pipeline.snapshot();
        let all = self.observations.interception().into_iter();
        let all = all.filter_map(|(peer, standing)| {
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

    async fn tell(&self, pod: &PodRef, standing: Standing) -> Result<(), String> {
        let (kind, reason, message) = match standing {
            Standing::Lapsed => (
                EventType::Warning,
                LOST,
                "The application's connections are not redirected to the sidecar any more: they go past it, \
                 unprotected, and the pod is not ready. The rules in the pod's network namespace were taken \
                 away (a flushed table, a restarted node). Delete the pod, so that it is made anew.",
            ),
            Standing::InForce => (
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

    fn due(lapses: &mut Lapses, standing: Standing, now: Instant) -> Vec<Standing> {
        let due = lapses.due(vec![(pod("web"), standing)], now);
        due.into_iter().map(|(_, standing)| standing).collect()
    }

    #[test]
    fn what_is_lost_is_told_and_what_comes_back_and_no_more() {
        use Standing::{InForce, Lapsed};
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
    fn many_pods_of_one_namespace_have_a_rate() {
        let begin = Instant::now();
        let mut lapses = Lapses::new(begin);
        let all: Vec<_> = (0..100)
            .map(|n| (pod(&n.to_string()), Standing::Lapsed))
            .collect();
        assert_eq!(lapses.due(all.clone(), begin).len(), 30);
        assert_eq!(lapses.due(all.clone(), begin).len(), 0);
        let told = lapses.due(all, begin + Duration::from_secs(60)).len();
        assert_eq!(told, 30, "those that had to wait");
    }
}
