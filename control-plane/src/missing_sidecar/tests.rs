//! On a real API server, which calls the real webhook.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use base64::Engine as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::identity::ca::Authority;
use crate::injector::Settings;
use crate::injector::serve::{Counters, Webhook, router, serve};
use crate::kubernetes::events::PodCounters;
use crate::kubernetes::leader::election;
use crate::kubernetes::testing::ApiServer;
use crate::kubernetes::watches::Watches;
use crate::sources::{KubernetesSource, Source as _};
use crate::tls::webhook_config;

/// Something that takes longer does not happen.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longer than the test.
const HOUR: Duration = Duration::from_secs(3600);

/// Pods of the namespace, each `NAME LABELS-AND-ANNOTATIONS OWNER`.
fn pod(name: &str, metadata: &str, owner: &str) -> String {
    let owner = match owner {
        "" => String::new(),
        kind => {
            let version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
            format!(
                ", ownerReferences: [{{apiVersion: {version}, kind: {kind}, name: web, uid: \
                 0b57e2a6-6bd4-4d5c-8f7b-1f5b6c8c9d10, controller: true}}]"
            )
        }
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop{metadata}{owner}}}\n\
         spec: {{containers: [{{name: web, image: web}}]}}\n---\n"
    )
}

const BEFORE: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft-mesh.io/inject: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: guarded, namespace: shop}
spec: {minAvailable: 1, selector: {matchLabels: {app: guarded}}}
---
";

struct Site {
    server: ApiServer,
}

impl Site {
    fn run(&self, args: &[&str], input: &str) -> String {
        let (done, said) = self.server.kubectl(args, input);
        assert!(done, "{args:?}: {said}");
        said
    }

    fn apply(&self, text: &str) {
        self.run(&["apply", "-f", "-"], text);
    }

    /// Pods that do not end.
    fn pods(&self) -> String {
        let pods =
            "-o=jsonpath={range .items[*]}{.metadata.name}{.metadata.deletionTimestamp} {end}";
        let all = self.run(&["-n", "shop", "get", "pods", pods], "");
        let there = all.split(' ').filter(|name| !name.contains(':'));
        there.collect::<Vec<_>>().join(" ").trim().to_owned()
    }

    fn events(&self) -> String {
        let events = "-o=jsonpath={range .items[*]}{.involvedObject.name} {.reason};{end}";
        let all = self.run(&["-n", "shop", "get", "events", events], "");
        let mut all: Vec<_> = all.split_terminator(';').collect();
        all.sort_unstable();
        all.join(";")
    }

    async fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is(self) {
            let seen = (self.pods(), self.events());
            assert!(began.elapsed() < DEADLINE, "not {what}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Pods of every kind, of which one is protected.
    fn make_pods(&self) {
        self.apply(BEFORE);
        let guarded = ", labels: {app: guarded}";
        let wrong = ", annotations: {weft-mesh.io/mtls: x}";
        self.apply(&pod("bare", "", ""));
        self.apply(&pod("guarded", guarded, "ReplicaSet"));
        self.apply(&pod("job", "", "Job"));
        self.apply(&pod(
            "unasked",
            ", labels: {weft-mesh.io/inject: disabled}",
            "ReplicaSet",
        ));
        self.apply(&pod("web", "", "ReplicaSet"));
        self.apply(&pod("wrong", wrong, "ReplicaSet"));
        // Only pods that run are protected by a budget.
        let running = r#"{"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}"#;
        let patch = [
            "-n",
            "shop",
            "patch",
            "pod",
            "guarded",
            "--subresource=status",
            "-p",
            running,
        ];
        self.run(&patch, "");
    }

    /// Asks the webhook about a pod, as it is asked before an eviction.
    async fn webhook_would_inject(&self, name: &str) {
        let client = self.server.client().await;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        let found = configurations.get("weft-injector").await.unwrap();
        let asking = [("weft-mesh.io/inject".to_owned(), "enabled".to_owned())].into();
        let target = webhook::target(&found, &asking, &Default::default()).unwrap();
        let web: Pod = Api::namespaced(client, "shop").get(name).await.unwrap();
        webhook::ask(&target, &web).await.unwrap();
    }

    /// Serves the webhook, and has the API server call it.
    async fn inject(&self, dir: &std::path::Path) {
        let domain = "weft.local".parse().unwrap();
        let authority = Authority::open(&dir.join("ca"), domain).unwrap();
        let ttl = Duration::from_secs(3600);
        let config = webhook_config(&authority, &["localhost"], ttl).unwrap();
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let webhook = Webhook::new(Settings::default(), Counters::default());
        let tls = Arc::new(ArcSwap::from_pointee(config));
        let stop = CancellationToken::new();
        tokio::spawn(serve(router(Arc::new(webhook)), listener, tls, stop));
        let root = pem::Pem::new("CERTIFICATE", authority.root().to_vec());
        let root = base64::engine::general_purpose::STANDARD.encode(pem::encode(&root));
        self.apply(&format!(
            "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\n\
             metadata: {{name: weft-injector}}\nwebhooks:\n- name: namespace.inject.weft-mesh.io\n  \
             admissionReviewVersions: [v1]\n  sideEffects: None\n  \
             clientConfig: {{url: \"https://localhost:{port}/inject\", caBundle: {root}}}\n  \
             namespaceSelector: {{matchLabels: {{weft-mesh.io/inject: enabled}}}}\n  \
             rules: [{{apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE], resources: [pods]}}]\n"
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_without_a_sidecar_are_told_of_and_evicted_as_far_as_budgets_allow() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let site = Site { server };
    site.make_pods();
    let client = site.server.client().await;
    let candidates = Arc::new(Candidates::new(Settings::default()));
    let following = Arc::clone(&candidates);
    let domain = "weft.local".parse().unwrap();
    let watches = Arc::<Watches>::default();
    let too = move |event: &_| following.handle(event);
    let mut source = KubernetesSource::new(&client, &watches, &domain, "cluster.local", too);
    tokio::spawn(async move { while source.next().await.is_ok() {} });
    let eviction = Eviction {
        after: Duration::ZERO,
        per_minute: 600,
    };
    let keep = || {
        let (election, leader) = election();
        let counters = PodCounters::default();
        let keeper = Keeper::new(
            (client.clone(), watches.begin("namespaces")),
            counters.clone(),
            Settings::default(),
            Arc::clone(&candidates),
            Some(eviction),
            leader,
        );
        (election, tokio::spawn(keeper.keep()), counters)
    };
    // It never leads.
    let (_never, _waits, of_another) = keep();
    let (election, first, counters) = keep();
    election.lead_for(HOUR);
    let all = "bare SidecarMissing;guarded SidecarMissing;job SidecarMissing;web SidecarMissing;\
               wrong SidecarRefused";
    site.until("told of", |site| site.events() == all).await;
    assert_eq!(counters.written("SidecarMissing"), 4);
    assert_eq!(counters.written("SidecarRefused"), 1);
    // Without a webhook their successors would have none either.
    let tried = |_: &Site| counters.evictions("not-injected") > 0;
    site.until("found not to be injected", tried).await;
    assert_eq!(site.pods(), "bare guarded job unasked web wrong");
    assert_eq!(counters.evictions("evicted"), 0);

    // The next leader finds a webhook that works.
    first.abort();
    site.inject(dir.path()).await;
    site.webhook_would_inject("web").await;
    let (election, _second, counters) = keep();
    election.lead_for(HOUR);
    let done = |_: &Site| counters.evictions("evicted") > 0 && counters.evictions("refused") > 0;
    site.until("evicted, and refused by the budget", done).await;
    site.until("gone", |site| {
        site.pods() == "bare guarded job unasked wrong"
    })
    .await;
    let events = site.events();
    assert_eq!(events.matches("EvictedForSidecar").count(), 1, "{events}");
    assert_eq!(counters.evictions("evicted"), 1);
    for reason in ["SidecarMissing", "SidecarRefused", "EvictedForSidecar"] {
        assert_eq!(of_another.written(reason), 0, "only the leader writes");
    }

    site.apply(&pod("next", "", "ReplicaSet"));
    let containers = "-o=jsonpath={.spec.initContainers[*].name}";
    let made = site.run(&["-n", "shop", "get", "pod", "next", containers], "");
    assert!(made.contains("weft-proxy"), "{made}");
}
