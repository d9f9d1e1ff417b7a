//! Events about pods: what `kubectl describe pod` shows.

use k8s_openapi::api::core::v1::Event;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde_json::json;

use super::names::{CONTROL_PLANE, FIELD_MANAGER};
use crate::sha256_hex;

/// Longest text of an Event, bytes (the API server takes 1 KiB of `events.k8s.io`).
const MESSAGE_MAX_BYTES: usize = 1000;
/// Longest name of an object (RFC 1123 subdomain).
const NAME_MAX: usize = 253;

/// A pod that an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodRef {
    /// Its namespace, which is the Event's.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Its uid: another pod of this name is another pod.
    pub(crate) uid: String,
}

/// How loud an Event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventType {
    /// Something is as it should be again.
    Normal,
    /// Somebody has to do something.
    Warning,
}

/// What was said of pods in Events, and which were evicted.
#[derive(Debug, Clone, Default)]
pub struct PodCounters {
    events: Family<[(&'static str, &'static str); 2], Counter>,
    evictions: Family<[(&'static str, &'static str); 1], Counter>,
}

impl PodCounters {
    /// Adds them to what Prometheus reads.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weft_pod_events",
            "Events about pods, by their reason, and whether the API server has taken them",
            self.events.clone(),
        );
        registry.register(
            "weft_pod_evictions",
            "Pods without a sidecar that were to be evicted, by what became of that",
            self.evictions.clone(),
        );
    }

    fn count_event(&self, reason: &'static str, is_written: bool) {
        let outcome = if is_written { "written" } else { "failed" };
        let labels = [("reason", reason), ("outcome", outcome)];
        self.events.get_or_create(&labels).inc();
    }

    /// Something became of an eviction.
    pub(crate) fn count_eviction(&self, outcome: &'static str) {
        self.evictions.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// All Events of a reason that were written.
    #[cfg(test)]
    pub(crate) fn written(&self, reason: &'static str) -> u64 {
        let labels = [("reason", reason), ("outcome", "written")];
        self.events.get_or_create(&labels).get()
    }

    /// All evictions with an outcome.
    #[cfg(test)]
    pub(crate) fn evictions(&self, outcome: &'static str) -> u64 {
        self.evictions.get_or_create(&[("outcome", outcome)]).get()
    }
}

/// Writes Events.
#[derive(Clone)]
pub(crate) struct PodEvents {
    client: Client,
    counters: PodCounters,
}

impl std::fmt::Debug for PodEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodEvents").finish_non_exhaustive()
    }
}

impl PodEvents {
    pub(crate) fn new(client: Client, counters: PodCounters) -> Self {
        Self { client, counters }
    }

    /// Writes the Event of a pod and a reason, or writes it anew: there is one of each, whoever writes
    /// it and however often. Times are seconds since the Unix epoch.
    pub(crate) async fn write(
        &self,
        pod: &PodRef,
        event_type: EventType,
        reason: &'static str,
        message: &str,
        [since, now]: [i64; 2],
    ) -> Result<(), kube::Error> {
        let name = event_name(pod, reason);
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": pod.namespace,
                "name": pod.name,
                "uid": pod.uid,
            },
            "type": match event_type {
                EventType::Normal => "Normal",
                EventType::Warning => "Warning",
            },
            "reason": reason,
            "message": shortened(message, MESSAGE_MAX_BYTES),
            "source": {"component": CONTROL_PLANE},
            "firstTimestamp": rfc3339(since),
            "lastTimestamp": rfc3339(now),
        });
        let api: Api<Event> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        // One that is given up counts as one that was not written.
        let mut counted = Counted {
            counters: &self.counters,
            reason,
            is_written: false,
        };
        api.patch(&name, &params, &Patch::Apply(event)).await?;
        counted.is_written = true;
        Ok(())
    }
}

/// Counts an Event at its end.
struct Counted<'a> {
    counters: &'a PodCounters,
    reason: &'static str,
    is_written: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.counters.count_event(self.reason, self.is_written);
    }
}

/// One name for each pod and reason.
fn event_name(pod: &PodRef, reason: &str) -> String {
    let hash = sha256_hex(format!("{}/{reason}", pod.uid).as_bytes());
    let hash = &hash[..16];
    let name = shortened(&pod.name, NAME_MAX - 1 - hash.len());
    format!("{}.{hash}", name.trim_end_matches(['.', '-']))
}

/// A text without what exceeds so many bytes.
fn shortened(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn rfc3339(seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(seconds);
    time.unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing::ApiServer;

    fn pod(name: &str) -> PodRef {
        PodRef {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: "u-1".to_owned(),
        }
    }

    #[test]
    fn a_pod_and_a_reason_have_one_name_that_the_api_takes() {
        let web = pod("web");
        assert_eq!(event_name(&web, "A"), event_name(&web, "A"));
        assert_ne!(event_name(&web, "A"), event_name(&web, "B"));
        let long = event_name(
            &pod(&format!("{}.{}", "a".repeat(235), "b".repeat(17))),
            "A",
        );
        assert!(long.len() <= NAME_MAX && !long.contains(".."), "{long}");
        assert_eq!(shortened("aä", 2), "a");
    }

    #[tokio::test]
    async fn an_event_is_written_once_however_often_it_is_told() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let (made, said) = server.kubectl(&["create", "namespace", "shop"], "");
        assert!(made, "{said}");
        let counters = PodCounters::default();
        let events = PodEvents::new(server.client().await, counters.clone());
        let web = pod("web");
        for (message, now) in [("first", 1000), ("second", 2000)] {
            let told = events.write(&web, EventType::Warning, "Told", message, [1000, now]);
            told.await.unwrap();
        }
        let list = "-o=jsonpath={range .items[*]}{.involvedObject.name} {.reason} {.message} {.lastTimestamp}\n{end}";
        let (_, said) = server.kubectl(&["-n", "shop", "get", "events", list], "");
        assert_eq!(said, "web Told second 1970-01-01T00:33:20Z\n");
        let nowhere = PodRef {
            namespace: "nowhere".to_owned(),
            ..web
        };
        let told = events.write(&nowhere, EventType::Warning, "Told", "third", [1000, 3000]);
        assert!(told.await.is_err());
        assert_eq!(counters.written("Told"), 2);
    }
}
