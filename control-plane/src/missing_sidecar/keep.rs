//! Carries out what [`Decider`] says, in the control plane that leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, EvictParams, ListParams, Preconditions};
use kube::core::{PartialObjectMeta, Status};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use tokio::time::{sleep, timeout};

use super::candidates::Candidates;
use super::decide::{Decider, Evicted, Eviction, Step, Told};
use super::webhook::{self, Labels, NotInjected};
use crate::injector::{self, Membership, Settings, membership};
use crate::kubernetes::events::{EventType, PodCounters, PodEvents, PodRef};
use crate::kubernetes::leader::Leader;
use crate::kubernetes::names::WEBHOOK;
use crate::kubernetes::told;
use crate::kubernetes::watches::{self, Watch};
use crate::unix_seconds;

/// How often it is looked what is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one call of the API may take.
const CALL_MAX: Duration = Duration::from_secs(5);
/// The time from one step to the next.
const PAUSE: Duration = Duration::from_millis(20);

/// The reasons of Events.
const MISSING: &str = "SidecarMissing";
const REFUSED: &str = "SidecarRefused";
const EVICTED: &str = "EvictedForSidecar";

/// Tells of pods without a sidecar, and evicts them where that is allowed.
pub struct Keeper {
    client: Client,
    watch: Watch,
    events: PodEvents,
    counters: PodCounters,
    settings: Settings,
    candidates: Arc<Candidates>,
    eviction: Option<Eviction>,
    leader: Leader,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Keeper");
        debug
            .field("eviction", &self.eviction)
            .finish_non_exhaustive()
    }
}

/// The labels of every namespace, as the watch tells of them.
#[derive(Debug, Default)]
struct Namespaces {
    labels: BTreeMap<String, Labels>,
    listing: BTreeMap<String, Labels>,
    is_whole: bool,
}

impl Namespaces {
    fn handle(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        let labelled = |namespace: PartialObjectMeta<Namespace>| {
            let name = namespace.name_any();
            (name, namespace.metadata.labels.unwrap_or_default())
        };
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(namespace) => self.listing.extend([labelled(namespace)]),
            Event::InitDone => {
                self.labels = std::mem::take(&mut self.listing);
                self.is_whole = true;
            }
            Event::Apply(namespace) => self.labels.extend([labelled(namespace)]),
            Event::Delete(namespace) => {
                self.labels.remove(&namespace.name_any());
            }
        }
    }
}

impl Keeper {
    /// Works while this replica leads. `settings` are those of the webhook; `eviction` is nothing where pods
    /// are only told of. How the watch of namespaces fares is said there.
    pub fn new(
        (client, watch): (Client, Watch),
        counters: PodCounters,
        settings: Settings,
        candidates: Arc<Candidates>,
        eviction: Option<Eviction>,
        leader: Leader,
    ) -> Self {
        Self {
            events: PodEvents::new(client.clone(), counters.clone()),
            counters,
            client,
            watch,
            settings,
            candidates,
            eviction,
            leader,
        }
    }

    /// Works while this process leads.
    pub async fn keep(mut self) {
        // What was evicted in vain is not forgotten with a lease.
        let mut decider = Decider::new(self.eviction, Instant::now());
        loop {
            self.leader.elected().await;
            let leader = self.leader.clone();
            let ended = async {
                // A lease may run out without anybody telling of it.
                while leader.leads() {
                    sleep(LOOK_EVERY).await;
                }
            };
            tokio::select! {
                () = ended => {}
                () = self.lead(&mut decider) => {}
            }
        }
    }

    /// Works until it is dropped.
    async fn lead(&self, decider: &mut Decider) {
        let mut namespaces = Namespaces::default();
        let mut events = namespace_events(&self.client, self.watch.clone());
        let mut changed = true;
        loop {
            if changed && namespaces.is_whole {
                changed = false;
                self.look(decider, &namespaces);
            }
            while namespaces.is_whole
                && let Some(step) = decider.poll(Instant::now())
            {
                self.carry_out(decider, &namespaces, step).await;
                sleep(PAUSE).await;
            }
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return };
                    namespaces.handle(event);
                    changed = true;
                }
                () = self.candidates.changed.notified() => changed = true,
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn look(&self, decider: &mut Decider, namespaces: &Namespaces) {
        let asks = |namespace: &str| {
            let labels = namespaces.labels.get(namespace);
            labels.is_some_and(injector::asks)
        };
        let all = self.candidates.all(asks);
        if let Some(pod) = decider.handle_pods(all, Instant::now()) {
            let PodRef {
                namespace, name, ..
            } = pod;
            tracing::error!(
                namespace,
                name,
                "a pod has come without a sidecar in the place of an evicted one: nothing of its \
                 namespace is evicted for 10 min"
            );
        }
    }

    async fn carry_out(&self, decider: &mut Decider, namespaces: &Namespaces, step: Step) {
        match step {
            Step::Tell(pod) => {
                let since = decider.wanting(&pod, Instant::now());
                let told = self.tell(&pod, namespaces, since).await;
                decider.on_told(&pod, told, Instant::now());
            }
            Step::Evict(pod) => {
                let evicted = self.evict(&pod, namespaces).await;
                self.counters.count_eviction(evicted.as_str());
                decider.on_evicted(&pod, evicted, Instant::now());
            }
        }
    }

    /// A pod as it is now, and how it stands to the mesh; nothing when it is gone.
    async fn found(
        &self,
        pod: &PodRef,
        namespaces: &Namespaces,
    ) -> Result<Option<(Pod, Membership)>, String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let found = timeout(CALL_MAX, api.get_opt(&pod.name)).await;
        let found = found.map_err(|_elapsed| "no answer".to_owned())?;
        let found = found.map_err(|error| told(&error))?;
        let found = found.filter(|found| {
            let is_it = found.metadata.uid.as_ref() == Some(&pod.uid);
            is_it && injector::wish(found, &self.settings).is_some()
        });
        Ok(found.map(|found| {
            let place = injector::Namespace {
                name: Some(&pod.namespace),
                labels: Some(labels_of(namespaces, &pod.namespace)),
            };
            let membership = membership(&found, place, &self.settings);
            (found, membership)
        }))
    }

    async fn tell(&self, pod: &PodRef, namespaces: &Namespaces, since: Duration) -> Told {
        let found = match self.found(pod, namespaces).await {
            Ok(Some(found)) => found,
            Ok(None) => return Told::Nothing,
            Err(error) => return failed(pod, "not looked at", &error),
        };
        let (reason, message, done) = match found {
            (_, Membership::Member | Membership::NotWanted(_)) => return Told::Nothing,
            (_, Membership::Refused(problems)) => {
                let problems = problems.join("; ");
                let message = format!(
                    "The pod wants a sidecar of the mesh and has none, and made anew it would be \
                     refused: {problems}"
                );
                (REFUSED, message, Told::ForPeople)
            }
            (found, Membership::Missing) => match controller(&found) {
                Controller::MakesAnew => (
                    MISSING,
                    missing("restart its controller"),
                    Told::Replaceable,
                ),
                Controller::Job => (
                    MISSING,
                    missing("its Job has to be run again"),
                    Told::ForPeople,
                ),
                Controller::Other => (
                    MISSING,
                    missing("whatever made it has to make it anew"),
                    Told::ForPeople,
                ),
                Controller::None => {
                    let how = "delete it and create it again, because it has no controller";
                    (MISSING, missing(how), Told::ForPeople)
                }
            },
        };
        let now = unix_seconds();
        let since = now.saturating_sub(i64::try_from(since.as_secs()).unwrap_or(0));
        let kind = EventType::Warning;
        let writing = self.events.write(pod, kind, reason, &message, [since, now]);
        match timeout(CALL_MAX, writing).await {
            Ok(Ok(())) => done,
            // Its namespace ends, and with it the pod.
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() || is_ending(&status) => {
                tracing::debug!(error = status.message, "no Event is written");
                done
            }
            Ok(Err(error)) => failed(pod, "not told of", &told(&error)),
            Err(_elapsed) => failed(pod, "not told of", "no answer"),
        }
    }

    async fn evict(&self, pod: &PodRef, namespaces: &Namespaces) -> Evicted {
        let (found, membership) = match self.found(pod, namespaces).await {
            Ok(Some(found)) => found,
            Ok(None) => return Evicted::Nothing,
            Err(error) => return not_now(pod, &error),
        };
        if membership != Membership::Missing || controller(&found) != Controller::MakesAnew {
            return Evicted::Nothing;
        }
        let labels = labels_of(namespaces, &pod.namespace);
        match self.would_be_injected(&found, labels).await {
            Ok(()) => {}
            Err(NotInjected::NotWorking(why)) => {
                tracing::warn!(why, "no pod is evicted: the injector does not work");
                return Evicted::NotInjected;
            }
            Err(why @ (NotInjected::NotSelected | NotInjected::Refused(_))) => {
                return not_now(pod, &why.to_string());
            }
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = EvictParams {
            delete_options: Some(DeleteParams::default().preconditions(Preconditions {
                uid: Some(pod.uid.clone()),
                // What was looked at is what is evicted.
                resource_version: found.metadata.resource_version.clone(),
            })),
            ..EvictParams::default()
        };
        match timeout(CALL_MAX, api.evict(&pod.name, &params)).await {
            Ok(Ok(_)) => {
                self.told_evicted(pod).await;
                Evicted::Done
            }
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => Evicted::Nothing,
            // Among what is refused is what a PodDisruptionBudget does not allow, with 429.
            Ok(Err(error)) => not_now(pod, &told(&error)),
            Err(_elapsed) => not_now(pod, "no answer"),
        }
    }

    async fn told_evicted(&self, pod: &PodRef) {
        let PodRef {
            namespace, name, ..
        } = pod;
        tracing::info!(namespace, name, "evicted: it wants a sidecar and has none");
        let message = "The pod wants a sidecar of the mesh and has none; it was evicted, so that its \
                       controller makes it anew with one.";
        let now = unix_seconds();
        let kind = EventType::Normal;
        let writing = self.events.write(pod, kind, EVICTED, message, [now, now]);
        if let Ok(Err(error)) = timeout(CALL_MAX, writing).await {
            tracing::debug!(error = told(&error), "no Event is written");
        }
    }

    async fn would_be_injected(&self, pod: &Pod, namespace: &Labels) -> Result<(), NotInjected> {
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        // A list of the one by its name: what the control plane may do anyway, for its watch.
        let named = ListParams::default().fields(&format!("metadata.name={WEBHOOK}"));
        let found = timeout(CALL_MAX, api.list(&named)).await;
        let not_working = |why: &str| NotInjected::NotWorking(why.to_owned());
        let found = found.map_err(|_elapsed| not_working("the API does not answer"))?;
        let found = found.map_err(|error| not_working(&told(&error)))?;
        let found = found.items.into_iter().next();
        let found = found.ok_or_else(|| not_working("it has no configuration"))?;
        let target = webhook::target(&found, namespace, pod.labels())?;
        webhook::ask(&target, pod).await
    }
}

/// Who makes a pod anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    /// A controller that keeps a number of pods.
    MakesAnew,
    /// A Job, which would count the pod as failed.
    Job,
    /// Something else, which may take the pod for a piece of work that has failed.
    Other,
    /// Nobody.
    None,
}

fn controller(pod: &Pod) -> Controller {
    let owners = pod.metadata.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    match controllers.next() {
        Some(owner) if owner.kind == "Job" => Controller::Job,
        Some(owner) => match (owner.api_version.as_str(), owner.kind.as_str()) {
            ("apps/v1", "ReplicaSet" | "StatefulSet" | "DaemonSet")
            | ("v1", "ReplicationController") => Controller::MakesAnew,
            _ => Controller::Other,
        },
        None => Controller::None,
    }
}

fn missing(how: &str) -> String {
    format!(
        "The pod wants a sidecar of the mesh (label weft-mesh.io/inject) and has none: it was made while \
         the injector was not asked. Its traffic is not protected. To mend it: {how}."
    )
}

fn labels_of<'a>(namespaces: &'a Namespaces, namespace: &str) -> &'a Labels {
    let none = const { &BTreeMap::new() };
    namespaces.labels.get(namespace).unwrap_or(none)
}

fn failed(pod: &PodRef, what: &str, error: &str) -> Told {
    let PodRef {
        namespace, name, ..
    } = pod;
    tracing::warn!(
        namespace,
        name,
        error,
        "a pod without a sidecar is {what}; tried again"
    );
    Told::Failed
}

fn not_now(pod: &PodRef, why: &str) -> Evicted {
    let PodRef {
        namespace, name, ..
    } = pod;
    tracing::info!(
        namespace,
        name,
        why,
        "a pod without a sidecar is not evicted now; tried again"
    );
    Evicted::NotNow
}

/// Whether something was refused because its namespace ends.
fn is_ending(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

fn namespace_events(
    client: &Client,
    watch: Watch,
) -> BoxStream<'static, Event<PartialObjectMeta<Namespace>>> {
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all;
    watches::follow(client, namespaces, watcher::Config::default(), watch)
}
