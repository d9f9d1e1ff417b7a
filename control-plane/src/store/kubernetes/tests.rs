//! The engine against a real API server: the contract's engine, and what is its own.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::kubernetes::leader::election;
use crate::kubernetes::testing::ApiServer;

/// The group of the contract's kinds.
const GROUP: &str = "contract.weft-mesh.io";
/// What documents of the contract do not say.
const REFUSED: u64 = 1_000_000;
/// The contract's kinds, which may hold anything.
const KINDS: [&str; 3] = ["Service", "A", "B"];
/// The namespaces of the contract's documents.
const NAMESPACES: [&str; 4] = ["shop", "b", "b-c", "a"];

/// One API server for all cases, and the runtime that its clients' and stores' tasks run on.
struct Site {
    server: ApiServer,
    runtime: Runtime,
}

static SITE: OnceLock<Site> = OnceLock::new();
/// Cases use the same documents.
static TURN: Mutex<()> = Mutex::new(());

/// Runs something on the site's runtime, from wherever.
fn on_site<T: Send>(work: impl AsyncFnOnce(&'static Site) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            let site = SITE.get_or_init(|| {
                let runtime = Runtime::new().unwrap();
                let server = runtime.block_on(ApiServer::start()).unwrap();
                runtime.block_on(prepare(&server));
                Site { server, runtime }
            });
            site.runtime.block_on(work(site))
        });
        working.join().unwrap()
    })
}

async fn prepare(server: &ApiServer) {
    let client = server.client().await;
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for kind in KINDS {
        let crd = serde_json::from_value(definition(kind, &["v1"])).unwrap();
        crds.create(&PostParams::default(), &crd).await.unwrap();
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in NAMESPACES {
        let namespace = json!({"metadata": {"name": name}});
        let namespace = serde_json::from_value(namespace).unwrap();
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
    }
    for kind in KINDS {
        until_served(&client, &resource(kind)).await;
    }
}

/// A kind that may hold anything, and the versions that are served, of v1 and v2.
fn definition(kind: &str, served: &[&str]) -> Value {
    let plural = plural(kind);
    let versions = ["v1", "v2"].map(|name| {
        json!({
            "name": name,
            "served": served.contains(&name),
            "storage": name == "v1",
            "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
            }},
        })
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": versions,
        },
    })
}

/// A definition is served a moment after it was made.
async fn until_served(client: &Client, resource: &ApiResource) {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let began = Instant::now();
    while let Err(error) = api.list(&ListParams::default()).await {
        assert!(began.elapsed() < Duration::from_secs(60), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn plural(kind: &str) -> String {
    format!("{}s", kind.to_lowercase())
}

fn resource(kind: &str) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{GROUP}/v1"),
        kind: kind.to_owned(),
        plural: plural(kind),
    }
}

/// The contract's engine: a store with a namespace of its own and none of the documents of others.
pub(in crate::store) struct Cluster {
    options: KubernetesOptions,
    store: Option<Arc<KubernetesStore>>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    pub(in crate::store) fn start(clock: Arc<dyn Clock>) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let namespace = on_site(async |site| {
            let client = site.server.client().await;
            for kind in KINDS {
                let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource(kind));
                let namespaces = all.list(&ListParams::default()).await.unwrap();
                for object in namespaces {
                    let namespace = object.metadata.namespace.unwrap();
                    let name = object.metadata.name.unwrap();
                    let api: Api<DynamicObject> =
                        Api::namespaced_with(client.clone(), &namespace, &resource(kind));
                    let deleted = api.delete(&name, &DeleteParams::default()).await;
                    deleted.unwrap();
                }
            }
            let namespaces: Api<Namespace> = Api::all(client);
            let namespace = json!({"metadata": {"generateName": "system-"}});
            let namespace = serde_json::from_value(namespace).unwrap();
            let made = namespaces.create(&PostParams::default(), &namespace).await;
            made.unwrap().metadata.name.unwrap()
        });
        let kinds = KINDS.map(|kind| KindApi {
            kind: kind.to_owned(),
            plural: plural(kind),
            versions: vec![format!("{GROUP}/v1")],
        });
        let options = KubernetesOptions {
            namespace,
            kinds: kinds.to_vec(),
            accept: |document| match document["n"].as_u64() {
                Some(REFUSED) => Err("it is refused".to_owned()),
                _ => Ok(()),
            },
            revision: 0,
            clock,
            watches: Arc::default(),
        };
        let mut cluster = Self {
            options,
            store: None,
            _turn: turn,
        };
        cluster.open();
        cluster
    }

    pub(in crate::store) fn open(&mut self) {
        self.store = None;
        let options = self.options.clone();
        let store = on_site(async move |site| {
            let client = site.server.client().await;
            KubernetesStore::open(client, options).await.unwrap()
        });
        self.store = Some(store);
    }

    pub(in crate::store) fn opened(&self) -> &Arc<KubernetesStore> {
        self.store.as_ref().unwrap()
    }
}

/// A case, and the client of another program that writes to the cluster.
async fn with_another(clock: Arc<dyn Clock>) -> Option<(Cluster, Client)> {
    crate::kubernetes::testing::assets()?;
    let cluster = Cluster::start(clock);
    let client = SITE.get().unwrap().server.client().await;
    Some((cluster, client))
}

fn key(name: &str) -> ResourceKey {
    ResourceKey {
        kind: "Service".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn put(name: &str, n: u64) -> Change {
    Change::put(key(name), json!({ "n": n }))
}

async fn until(store: &KubernetesStore, what: impl Fn(&KubernetesStore) -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
    while !what(store) {
        assert!(tokio::time::Instant::now() < deadline, "never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_others_write_is_seen_and_conditions_see_it() {
    let clock = Arc::<MonotonicClock>::default();
    let Some((cluster, client)) = with_another(clock).await else {
        return;
    };
    let store = cluster.opened();
    let first = store.commit("alice", vec![put("web", 1)]).await.unwrap();
    let api: Api<DynamicObject> = Api::namespaced_with(client, "shop", &resource("Service"));
    let patch = Patch::Merge(json!({
        "n": 2,
        "metadata": {
            "labels": {"a": "b"},
            "finalizers": ["example.com/held"],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x"},
        },
        "status": {"seen": true},
    }));
    let params = PatchParams {
        field_manager: Some("kubectl".to_owned()),
        ..PatchParams::default()
    };
    api.patch("web", &params, &patch).await.unwrap();
    until(store, |store| {
        store.get(&key("web")).unwrap().unwrap().document["n"] == 2
    })
    .await;
    let web = store.get(&key("web")).unwrap().unwrap();
    assert_eq!(web.generation, 2);
    assert_eq!(web.document["metadata"]["labels"]["a"], "b");
    assert_eq!(web.document["metadata"].get("annotations"), None);
    assert_eq!(web.document.get("status"), None);
    let late = put("web", 3).expecting(super::super::Expect::Revision(first));
    let error = store.commit("alice", vec![late]).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict(_)), "{error}");
    // A write keeps what is not the document's, and a status is no change.
    store.commit("alice", vec![put("web", 3)]).await.unwrap();
    let object = api.get("web").await.unwrap();
    let hidden = "kubectl.kubernetes.io/last-applied-configuration";
    assert_eq!(object.metadata.annotations.unwrap()[hidden], "x");
    assert_eq!(object.metadata.finalizers.unwrap(), ["example.com/held"]);
    // What is being deleted does not count, whatever holds it.
    store
        .commit("alice", vec![Change::delete(key("web"))])
        .await
        .unwrap();
    assert_eq!(store.get(&key("web")).unwrap(), None);
    let unheld = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    api.patch("web", &PatchParams::default(), &unheld)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_document_that_is_refused_leaves_the_last_good_one_in_force() {
    let clock = Arc::<MonotonicClock>::default();
    let Some((mut cluster, client)) = with_another(clock).await else {
        return;
    };
    let store = Arc::clone(cluster.opened());
    store.commit("me", vec![put("web", 1)]).await.unwrap();
    let api: Api<DynamicObject> = Api::namespaced_with(client, "shop", &resource("Service"));
    let patch = Patch::Merge(json!({"n": REFUSED}));
    api.patch("web", &PatchParams::default(), &patch)
        .await
        .unwrap();
    until(&store, |store| !store.refused().is_empty()).await;
    assert!(store.refused()[&key("web")].older_in_force);
    assert_eq!(store.get(&key("web")).unwrap().unwrap().document["n"], 1);
    drop(store);
    cluster.open();
    let store = cluster.opened();
    assert_eq!(store.get(&key("web")).unwrap(), None);
    assert_eq!(store.refused()[&key("web")].reason, "it is refused");
    // A good one takes its place.
    store.commit("me", vec![put("web", 2)]).await.unwrap();
    assert!(store.refused().is_empty());
}

/// A definition that serves another version, none, and the first again.
#[tokio::test]
async fn a_kind_is_followed_in_the_version_that_is_served_and_gone_where_none_is() {
    let clock = Arc::<MonotonicClock>::default();
    let Some((mut cluster, client)) = with_another(clock).await else {
        return;
    };
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = serde_json::from_value(definition("C", &["v1"])).unwrap();
    crds.create(&PostParams::default(), &crd).await.unwrap();
    until_served(&client, &resource("C")).await;
    cluster.options.kinds.push(KindApi {
        kind: "C".to_owned(),
        plural: plural("C"),
        versions: vec![format!("{GROUP}/v2"), format!("{GROUP}/v1")],
    });
    cluster.open();
    let store = cluster.opened();
    let of_c = |name: &str| ResourceKey {
        kind: "C".to_owned(),
        ..key(name)
    };
    let change = Change::put(of_c("a"), json!({"n": 1}));
    store.commit("me", vec![change]).await.unwrap();
    let serve = async |versions: &[&str]| {
        let versions = definition("C", versions)["spec"]["versions"].clone();
        let patch = Patch::Merge(json!({"spec": {"versions": versions}}));
        let params = PatchParams::default();
        crds.patch(&format!("cs.{GROUP}"), &params, &patch)
            .await
            .unwrap();
    };
    let version = |store: &KubernetesStore| {
        let all = store.subjects();
        let mut all = all.iter().filter(|one| one.key == of_c("a"));
        all.next().map(|one| one.resource.version.clone())
    };
    let view = |store: &KubernetesStore| {
        let all = store.shared.watches.view(Instant::now());
        all.into_iter().find(|one| *one.name == *"cs").unwrap()
    };
    assert_eq!(version(store).as_deref(), Some("v1"));

    let before = store.get(&of_c("a")).unwrap().unwrap();
    serve(&["v2"]).await;
    until(store, |store| version(store).as_deref() == Some("v2")).await;
    until(store, |store| view(store).error.is_none()).await;
    let after = store.get(&of_c("a")).unwrap().unwrap();
    assert_eq!((&after.document["n"], &after.key), (&json!(1), &before.key));
    assert_eq!(after.document["apiVersion"], format!("{GROUP}/v2"));

    serve(&[]).await;
    until(store, |store| view(store).error.is_some()).await;
    assert!(store.get(&of_c("a")).unwrap().is_some(), "for now");
    until(store, |store| store.get(&of_c("a")).unwrap().is_none()).await;
    until(store, |store| view(store).is_absent).await;
    assert_eq!((view(store).error, store.missing_kinds().len()), (None, 1));
    let change = Change::put(of_c("b"), json!({"n": 1}));
    let error = store.commit("me", vec![change]).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSuchKind { .. }), "{error}");

    serve(&["v1"]).await;
    until(store, |store| version(store).as_deref() == Some("v1")).await;
    assert!(!view(store).is_absent && store.missing_kinds().is_empty());
    crds.delete(&format!("cs.{GROUP}"), &DeleteParams::default())
        .await
        .unwrap();
    until(store, |store| store.get(&of_c("a")).unwrap().is_none()).await;
}

#[tokio::test]
async fn a_commit_that_the_api_refuses_changes_nothing() {
    let clock = Arc::<MonotonicClock>::default();
    let Some((cluster, _client)) = with_another(clock).await else {
        return;
    };
    let store = cluster.opened();
    let nowhere = ResourceKey {
        namespace: "nowhere".to_owned(),
        ..key("web")
    };
    let changes = vec![put("web", 1), Change::put(nowhere, json!({"n": 1}))];
    let error = store.commit("me", changes).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    assert!(store.list().unwrap().resources.is_empty());
    let unknown = ResourceKey {
        kind: "Nothing".to_owned(),
        ..key("web")
    };
    let error = store
        .commit("me", vec![Change::put(unknown, json!({}))])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NoSuchKind { .. }), "{error}");
    let query = HistoryQuery {
        key: None,
        before: None,
        limit: 1,
    };
    let error = store.history(query).await.unwrap_err();
    assert_eq!(error.to_string(), NO_HISTORY);
    assert!(store.snapshot(&mut |_row| Ok(())).is_err());
}

#[tokio::test]
async fn two_stores_agree_on_records_and_leases() {
    let clock = Arc::<MonotonicClock>::default();
    let Some((cluster, client)) = with_another(clock).await else {
        return;
    };
    let one = cluster.opened();
    let two = KubernetesStore::open(client.clone(), cluster.options.clone())
        .await
        .unwrap();
    let record = |value: &str, expect| {
        vec![RecordWrite {
            table: "token",
            key: "any Key/☃".to_owned(),
            value: Some(value.as_bytes().to_vec()),
            expect,
        }]
    };
    let absent = super::super::RecordExpect::Absent;
    // Both at once: neither mirror has the other's.
    let (first, second) = tokio::join!(
        one.write(record("one", absent.clone())),
        two.write(record("two", absent))
    );
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    until(one, |store| !store.records("token").unwrap().is_empty()).await;
    until(&two, |store| !store.records("token").unwrap().is_empty()).await;
    assert_eq!(one.records("token").unwrap(), two.records("token").unwrap());
    let secrets: Api<Secret> = Api::namespaced(client, &cluster.options.namespace);
    assert_eq!(
        secrets
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    let ttl = Duration::from_secs(10);
    let (first, second) = tokio::join!(one.lease("x", "one", ttl), two.lease("x", "two", ttl));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
}

#[tokio::test]
async fn one_of_two_leads_and_one_whose_lease_is_stolen_leads_no_longer() {
    let clock = Arc::<MonotonicClock>::default();
    let Some((cluster, client)) = with_another(clock).await else {
        return;
    };
    let two = KubernetesStore::open(client.clone(), cluster.options.clone());
    let stores = [Arc::clone(cluster.opened()), two.await.unwrap()];
    let mut tasks = tokio::task::JoinSet::new();
    let begin =
        |tasks: &mut tokio::task::JoinSet<()>, store: Arc<KubernetesStore>, holder: &str| {
            let (election, leader) = election();
            let stop = CancellationToken::new();
            let watch = Arc::<Watches>::default().begin("leases");
            let lease = StoreLease::new(store, watch, "leader", holder);
            tasks.spawn(election.keep(lease, stop.clone()));
            (leader, stop)
        };
    let [first, second] = stores;
    let (mut one, stop_one) = begin(&mut tasks, first, "one");
    one.elected().await;
    let (mut two, stop_two) = begin(&mut tasks, second, "two");
    let waits = timeout(Duration::from_secs(2), two.elected()).await;
    assert!(waits.is_err() && one.leads());
    // By hand, without a new number.
    let leases: Api<LeaseObject> = Api::namespaced(client, &cluster.options.namespace);
    let stolen = serde_json::json!({"spec": {"holderIdentity": "somebody"}});
    let params = PatchParams::default();
    leases
        .patch("leader", &params, &Patch::Merge(stolen))
        .await
        .unwrap();
    let lost = timeout(Duration::from_secs(10), one.changed()).await;
    assert!(lost.is_ok() && !one.leads());
    // It is taken again when the thief has let its time pass, by one of them.
    let taken = async {
        tokio::select! {
            () = one.elected() => {}
            () = two.elected() => {}
        }
    };
    timeout(Duration::from_secs(30), taken).await.unwrap();
    assert!(one.leads() != two.leads());
    // Who stops gives it back: nobody waits for its time to pass.
    let (stop, stopped, mut other) = match two.leads() {
        true => (stop_two, two, one),
        false => (stop_one, one, two),
    };
    stop.cancel();
    let elected = timeout(Duration::from_secs(10), other.elected()).await;
    assert!(elected.is_ok() && !stopped.leads());
}
