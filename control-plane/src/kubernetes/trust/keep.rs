//! Watches what [`decide`] looks at, and writes what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::decide::{NamespaceFacts, Observed, Step, decide};
use crate::kubernetes::names::{
    FIELD_MANAGER, INJECTED, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY, WEBHOOK,
};

/// Changes that come this close together are answered at once.
const SETTLE: Duration = Duration::from_millis(50);
/// After a write that failed the next one waits this long, doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// At most this long.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What is kept current, and whether by this replica.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The mesh's roots, PEM.
    pub roots: watch::Receiver<String>,
    /// Whether this replica writes.
    pub leads: watch::Receiver<bool>,
}

/// What was seen of one of the watches.
enum Seen {
    Namespace(Event<Namespace>),
    Pod(Event<PartialObjectMeta<Pod>>),
    Map(Event<ConfigMap>),
    Webhook(Event<MutatingWebhookConfiguration>),
}

/// Keeps the roots current in the cluster; ends when whoever knows them has ended.
pub async fn keep(client: Client, mut trust: Trust) {
    let mut seen = Watched::default();
    let mut events = events(&client);
    let (mut due, mut pause) = (None::<Instant>, RETRY_MIN);
    loop {
        let now = Instant::now();
        let wake = due.unwrap_or(now);
        tokio::select! {
            event = events.next() => {
                let Some(event) = event else { return };
                seen.handle(event);
                due.get_or_insert(now + SETTLE);
            }
            changed = trust.roots.changed() => {
                if changed.is_err() { return }
                due = Some(now);
            }
            changed = trust.leads.changed() => {
                if changed.is_err() { return }
                due = Some(now);
            }
            () = sleep_until(wake), if due.is_some() => {
                due = None;
                if !*trust.leads.borrow() || !seen.is_whole() {
                    continue;
                }
                let roots = trust.roots.borrow().clone();
                let steps = decide(&seen.observed, &roots);
                match carry_out(&client, &steps, &roots).await {
                    Ok(()) => pause = RETRY_MIN,
                    Err(error) => {
                        tracing::warn!(%error, "the mesh's roots are not current in the cluster");
                        due = Some(Instant::now() + pause);
                        pause = (pause * 2).min(RETRY_MAX);
                    }
                }
            }
        }
    }
}

/// All watches; each begins anew after an error, later each time.
fn events(client: &Client) -> BoxStream<'static, Seen> {
    let namespaces = watcher(
        Api::<Namespace>::all(client.clone()),
        watcher::Config::default(),
    );
    let pods = watcher(
        Api::<PartialObjectMeta<Pod>>::all(client.clone()),
        watcher::Config::default(),
    );
    let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let maps = watcher(
        Api::<ConfigMap>::all(client.clone()),
        named(TRUST_BUNDLE_CONFIG_MAP),
    );
    let webhooks = watcher(
        Api::<MutatingWebhookConfiguration>::all(client.clone()),
        named(WEBHOOK),
    );
    let streams: [BoxStream<'static, Seen>; 4] = [
        kept("namespaces", namespaces, Seen::Namespace),
        kept("pods", pods, Seen::Pod),
        kept("config maps", maps, Seen::Map),
        kept("webhooks", webhooks, Seen::Webhook),
    ];
    futures_util::stream::select_all(streams).boxed()
}

fn kept<K: Send + 'static>(
    what: &'static str,
    events: impl futures_util::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    seen: fn(Event<K>) -> Seen,
) -> BoxStream<'static, Seen> {
    let events = events.default_backoff();
    let events = events.filter_map(move |event| {
        if let Err(error) = &event {
            tracing::warn!(%error, "the {what} of the cluster cannot be watched");
        }
        std::future::ready(event.ok().map(seen))
    });
    events.boxed()
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

/// Carries out every step; the error of the last that failed. What has changed meanwhile is no error:
/// the watch tells of it.
async fn carry_out(client: &Client, steps: &[Step], roots: &str) -> Result<(), kube::Error> {
    let mut failed = None;
    for step in steps {
        match carry_out_one(client, step, roots).await {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
            // An unmet `test` of a JSON patch.
            Err(kube::Error::Api(status)) if status.code == 422 => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
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
                "app.kubernetes.io/managed-by".to_owned(),
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
