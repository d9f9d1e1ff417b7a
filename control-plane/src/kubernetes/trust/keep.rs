//! Watches what [`decide`] looks at, and writes what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::decide::{NamespaceFacts, Observed, Step, Written, decide};
use crate::kubernetes::leader::Leader;
use crate::kubernetes::names::{
    FIELD_MANAGER, INJECTED, MANAGED_BY_LABEL, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY, WEBHOOK,
};
use crate::kubernetes::retry::{Attempts, Pauses};
use crate::kubernetes::told;
use crate::kubernetes::watches::{self, Watches};

/// Changes that come this close together are answered at once.
const SETTLE: Duration = Duration::from_millis(50);
/// Pauses between writes of one object.
const WRITTEN_AGAIN: Pauses = Pauses {
    first: Duration::from_millis(500),
    longest: Duration::from_secs(30),
};
/// How long one write may take.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// What is kept current, and whether by this replica.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The mesh's roots, PEM.
    pub roots: watch::Receiver<String>,
    /// Whether this replica writes.
    pub leader: Leader,
    /// How its watches fare is said there.
    pub watches: Arc<Watches>,
}

/// What was seen of one of the watches.
enum Seen {
    Namespace(Event<Namespace>),
    Pod(Event<PartialObjectMeta<Pod>>),
    Map(Event<ConfigMap>),
    Webhook(Event<MutatingWebhookConfiguration>),
}

/// Keeps the roots current in the cluster while it leads; ends when whoever knows them has ended.
pub async fn keep(client: Client, mut trust: Trust) {
    let mut seen = Watched::default();
    let mut events = events(&client, &trust.watches);
    let mut attempts = Attempts::new(WRITTEN_AGAIN);
    let mut due = None::<Instant>;
    loop {
        let now = Instant::now();
        let wake = due.unwrap_or(now);
        tokio::select! {
            event = events.next() => {
                let Some(event) = event else { return };
                seen.handle(event);
                due = Some(due.map_or(now + SETTLE, |due| due.min(now + SETTLE)));
            }
            changed = trust.roots.changed() => {
                if changed.is_err() { return }
                due = Some(now);
            }
            decided = trust.leader.changed() => {
                if !decided { return }
                due = Some(now);
            }
            () = sleep_until(wake), if due.is_some() => {
                due = None;
                if trust.leader.leads() && seen.is_whole() {
                    let roots = trust.roots.borrow().clone();
                    let steps = decide(&seen.observed, &roots);
                    carry_out(&client, &trust.leader, &steps, &roots, &mut attempts).await;
                    let wanted = |of: &Written| steps.iter().any(|step| step.writes() == *of);
                    due = attempts.next_due(wanted).map(Instant::from_std);
                    attempts.forget(std::time::Instant::now(), wanted);
                }
            }
        }
    }
}

/// All watches; each begins anew after an error, later each time.
fn events(client: &Client, watches: &Arc<Watches>) -> BoxStream<'static, Seen> {
    let everything = watcher::Config::default;
    let named = |name: &str| everything().fields(&format!("metadata.name={name}"));
    let namespaces = Api::<Namespace>::all;
    let of_namespaces = watches.begin("namespaces");
    let namespaces = watches::follow(client, namespaces, everything(), of_namespaces);
    let pods = Api::<PartialObjectMeta<Pod>>::all;
    let of_pods = watches.begin("injected-pods");
    let pods = watches::follow(client, pods, everything(), of_pods);
    let maps = Api::<ConfigMap>::all;
    let of_maps = watches.begin("roots-configmaps");
    let maps = watches::follow(client, maps, named(TRUST_BUNDLE_CONFIG_MAP), of_maps);
    let webhooks = Api::<MutatingWebhookConfiguration>::all;
    let of_webhooks = watches.begin("webhooks");
    let webhooks = watches::follow(client, webhooks, named(WEBHOOK), of_webhooks);
    let streams: [BoxStream<'static, Seen>; 4] = [
        namespaces.map(Seen::Namespace).boxed(),
        pods.map(Seen::Pod).boxed(),
        maps.map(Seen::Map).boxed(),
        webhooks.map(Seen::Webhook).boxed(),
    ];
    futures_util::stream::select_all(streams).boxed()
}

/// What the watches have said, and which of them have said everything once.
#[derive(Default)]
struct Watched {
    observed: Observed,
    /// What a list that has not ended has said.
    namespaces: BTreeMap<String, NamespaceFacts>,
    injected: BTreeMap<String, BTreeSet<String>>,
    maps: BTreeMap<String, ConfigMap>,
    whole: [bool; 4],
}

impl Watched {
    /// Before that, what is missing may only not have been told yet.
    fn is_whole(&self) -> bool {
        self.whole.iter().all(|whole| *whole)
    }

    fn handle(&mut self, seen: Seen) {
        match seen {
            Seen::Namespace(event) => self.namespace(event),
            Seen::Pod(event) => self.pod(event),
            Seen::Map(event) => self.map(event),
            Seen::Webhook(event) => self.webhook(event),
        }
    }

    fn namespace(&mut self, event: Event<Namespace>) {
        let facts = |n: &Namespace| (n.name_any(), NamespaceFacts::from(n));
        match event {
            Event::Init => self.namespaces.clear(),
            Event::InitApply(namespace) => self.namespaces.extend([facts(&namespace)]),
            Event::InitDone => {
                self.observed.namespaces = std::mem::take(&mut self.namespaces);
                self.whole[0] = true;
            }
            Event::Apply(namespace) => self.observed.namespaces.extend([facts(&namespace)]),
            Event::Delete(namespace) => {
                self.observed.namespaces.remove(&namespace.name_any());
            }
        }
    }

    fn pod(&mut self, event: Event<PartialObjectMeta<Pod>>) {
        match event {
            Event::Init => self.injected.clear(),
            Event::InitApply(pod) => note(&mut self.injected, &pod, is_injected(&pod)),
            Event::InitDone => {
                self.observed.injected = std::mem::take(&mut self.injected);
                self.whole[1] = true;
            }
            Event::Apply(pod) => note(&mut self.observed.injected, &pod, is_injected(&pod)),
            Event::Delete(pod) => note(&mut self.observed.injected, &pod, false),
        }
    }

    fn map(&mut self, event: Event<ConfigMap>) {
        let keyed = |map: ConfigMap| (map.namespace().unwrap_or_default(), map);
        match event {
            Event::Init => self.maps.clear(),
            Event::InitApply(map) => self.maps.extend([keyed(map)]),
            Event::InitDone => {
                self.observed.maps = std::mem::take(&mut self.maps);
                self.whole[2] = true;
            }
            Event::Apply(map) => self.observed.maps.extend([keyed(map)]),
            Event::Delete(map) => {
                let namespace = map.namespace().unwrap_or_default();
                self.observed.maps.remove(&namespace);
            }
        }
    }

    fn webhook(&mut self, event: Event<MutatingWebhookConfiguration>) {
        match event {
            Event::Init => self.observed.webhook = None,
            Event::InitApply(webhook) | Event::Apply(webhook) => {
                self.observed.webhook = Some(webhook);
            }
            Event::InitDone => self.whole[3] = true,
            Event::Delete(_) => self.observed.webhook = None,
        }
    }
}

fn is_injected(pod: &PartialObjectMeta<Pod>) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(INJECTED))
}

fn note(
    injected: &mut BTreeMap<String, BTreeSet<String>>,
    pod: &PartialObjectMeta<Pod>,
    is_injected: bool,
) {
    let namespace = pod.namespace().unwrap_or_default();
    if is_injected {
        injected
            .entry(namespace)
            .or_default()
            .insert(pod.name_any());
    } else if let Some(pods) = injected.get_mut(&namespace) {
        pods.remove(&pod.name_any());
        if pods.is_empty() {
            injected.remove(&namespace);
        }
    }
}

/// Carries out every step whose object may be written now, while this replica leads. What has changed
/// meanwhile is no error: the watch tells of it.
async fn carry_out(
    client: &Client,
    leader: &Leader,
    steps: &[Step],
    roots: &str,
    attempts: &mut Attempts<Written>,
) {
    for step in steps {
        let written = step.writes();
        if !leader.leads() || !attempts.is_due(&written, std::time::Instant::now()) {
            continue;
        }
        let answer = timeout(WRITE_MAX, carry_out_one(client, step, roots)).await;
        let now = std::time::Instant::now();
        let error = match answer {
            Ok(Ok(())) => None,
            Ok(Err(kube::Error::Api(status))) if is_outdated(&status) => None,
            Ok(Err(error)) => Some(told(&error)),
            Err(_elapsed) => Some(format!("no answer within {WRITE_MAX:?}")),
        };
        match error {
            None => attempts.succeeded(written, now),
            Some(error) => {
                let again_in = attempts.failed(written.clone(), now);
                tracing::warn!(%written, error, ?again_in, "the mesh's roots are not current");
            }
        }
    }
}

/// Whether a write was refused because the object is another than the one that was seen. 422 is an
/// unmet `test` of a JSON patch.
fn is_outdated(status: &kube::core::Status) -> bool {
    status.is_conflict()
        || status.is_not_found()
        || status.is_already_exists()
        || status.code == 422
}

async fn carry_out_one(client: &Client, step: &Step, roots: &str) -> Result<(), kube::Error> {
    let maps = |namespace: &str| Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let post = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match step {
        Step::Create(namespace) => {
            maps(namespace).create(&post, &map(roots, None)).await?;
        }
        Step::Replace(namespace, version) => {
            let map = map(roots, Some(version.clone()));
            let maps = maps(namespace);
            maps.replace(TRUST_BUNDLE_CONFIG_MAP, &post, &map).await?;
        }
        Step::Remove(namespace, version) => {
            let unchanged = Preconditions {
                resource_version: Some(version.clone()),
                uid: None,
            };
            let params = DeleteParams::default().preconditions(unchanged);
            maps(namespace)
                .delete(TRUST_BUNDLE_CONFIG_MAP, &params)
                .await?;
        }
        Step::PatchWebhook(patch) => {
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let patch = Patch::Json::<()>(patch.clone());
            let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone());
            webhooks.patch(WEBHOOK, &params, &patch).await?;
            tracing::info!("the injector's webhook has the mesh's roots");
        }
    }
    Ok(())
}

fn map(roots: &str, resource_version: Option<String>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(TRUST_BUNDLE_CONFIG_MAP.to_owned()),
            labels: Some(BTreeMap::from([(
                MANAGED_BY_LABEL.to_owned(),
                FIELD_MANAGER.to_owned(),
            )])),
            resource_version,
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            TRUST_BUNDLE_KEY.to_owned(),
            roots.to_owned(),
        )])),
        ..ConfigMap::default()
    }
}
