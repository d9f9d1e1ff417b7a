//! A control plane in a cluster: a real API server is its store.

use std::time::{Duration, Instant};

use gateway_api::experimental::httproutes::HttpRoute;
use kube::CustomResourceExt as _;
use serde_json::Value;
use weft_control_plane::model::crds_yaml;
use weft_proto::identity::sign_request::Credential;
use weft_proto::resource::Kind;

use crate::support::{ControlPlane, DEADLINE, Sidecar, wait_until};
use crate::testing::ApiServer;

const POLICY: &str = "apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec: {targetRef: {kind: Service, name: web}, retry: {attempts: 1}}
";
pub(crate) const FAULT: &str = "apiVersion: weft-mesh.io/v1alpha1
kind: FaultInjection
metadata: {name: slow, namespace: shop}
spec: {delay: {time: 1s}}
";
pub(crate) const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: web, port: 80}, {name: gateway}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
";

pub(crate) struct Site(pub(crate) ApiServer);

impl Site {
    pub(crate) async fn start() -> Option<Self> {
        let server = ApiServer::start().await?;
        let site = Self(server);
        site.run(&["apply", "--server-side", "-f", "-"], &crds_yaml());
        site.run(&["create", "namespace", "shop"], "");
        let established = ["wait", "--for=condition=Established", "crd", "--all"];
        site.run(&established, "");
        Some(site)
    }

    pub(crate) fn run(&self, args: &[&str], input: &str) -> String {
        let (done, said) = self.0.kubectl(args, input);
        assert!(done, "{args:?}: {said}");
        said
    }

    pub(crate) fn apply(&self, text: &str) -> String {
        self.run(&["apply", "-f", "-"], text)
    }

    pub(crate) async fn control_plane(&self) -> ControlPlane {
        ControlPlane::start_in_cluster(&self.0.kubeconfig()).await
    }

    /// Waits until the status of an object is as is wanted.
    pub(crate) async fn status(
        &self,
        kind: &str,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let began = Instant::now();
        loop {
            let args = ["get", kind, name, "-n", "shop", "-o", "json"];
            let object: Value = serde_json::from_str(&self.run(&args, "")).unwrap();
            if wanted(&object["status"]) {
                return object;
            }
            assert!(began.elapsed() < 2 * DEADLINE, "{object:#}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Status and reason of a condition.
pub(crate) fn condition<'a>(conditions: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let mut all = conditions.as_array().into_iter().flatten();
    let found = all.find(|condition| condition["type"] == kind);
    found.map_or(("", ""), |found| {
        let text = |field: &str| found[field].as_str().unwrap_or_default();
        (text("status"), text("reason"))
    })
}

pub(crate) const PROGRAMMED: &str = "weft-mesh.io/Programmed";

#[tokio::test]
async fn the_cluster_is_the_store_and_has_the_statuses() {
    let Some(site) = Site::start().await else {
        return;
    };
    let control_plane = site.control_plane().await;
    // What kubectl writes is read; what `weft apply` writes is in the cluster.
    site.apply(POLICY);
    control_plane.apply(FAULT).await.unwrap();
    let fault = site.status("fi", "slow", |status| {
        condition(&status["conditions"], PROGRAMMED).0 == "True"
    });
    let fault = fault.await;
    assert_eq!(fault["spec"]["delay"]["time"], "1s");
    assert_eq!(
        condition(&fault["status"]["conditions"], "Accepted").0,
        "True"
    );
    assert_eq!(fault["status"]["conditions"][0]["observedGeneration"], 1);
    let policy = site.status("tp", "web", |status| {
        !condition(&status["ancestors"][0]["conditions"], "Accepted")
            .0
            .is_empty()
    });
    let policy = policy.await;
    let conditions = &policy["status"]["ancestors"][0]["conditions"];
    assert_eq!(
        condition(conditions, "Accepted"),
        ("False", "TargetNotFound")
    );
    let listed = control_plane.get("/v1/resources").await;
    let mut kinds: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["kind"].clone())
        .collect();
    kinds.sort_by_key(ToString::to_string);
    assert_eq!(kinds, ["FaultInjection", "TrafficPolicy"]);
    // What only the mesh finds wrong is said, and the good version stays in force.
    site.apply(&FAULT.replace(
        "delay: {time: 1s}",
        "delay: {time: 1s}, headers: [{name: a, type: RegularExpression, value: '('}]",
    ));
    let fault = site.status("fi", "slow", |status| {
        condition(&status["conditions"], "Accepted") == ("False", "Invalid")
    });
    let fault = fault.await;
    assert_eq!(fault["status"]["conditions"][0]["observedGeneration"], 2);
    let in_force = control_plane.get("/v1/resources?kind=FaultInjection").await;
    assert_eq!(in_force[0]["spec"].get("headers"), None, "{in_force:#}");
    assert_eq!(in_force[0]["spec"]["delay"]["time"], "1s");
    // Nothing is written where nothing differs.
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let later = site.status("fi", "slow", |_status| true).await;
    assert_eq!(version(&later), version(&fault));
    let history = control_plane.client().get::<Value>("/v1/history").await;
    let said = history.unwrap_err().to_string();
    assert!(said.contains("Git repository"), "{said}");
}

#[tokio::test]
async fn a_restart_of_the_api_and_of_the_control_plane_loses_nothing() {
    let Some(mut site) = Site::start().await else {
        return;
    };
    let control_plane = site.control_plane().await;
    control_plane.apply(FAULT).await.unwrap();
    let token = control_plane.token("shop/web", &["shop/web"], &[80]).await;
    let root = control_plane.root();
    site.0.kill();
    // What is known stays in force, and writes say that they were not made.
    let listed = control_plane.get("/v1/resources").await;
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let another = FAULT.replace("slow", "slower");
    let error = control_plane.apply(&another).await.unwrap_err().to_string();
    assert!(error.contains("the cluster's API"), "{error}");
    refuses_forged(&control_plane).await;
    site.0.restart().await;
    let began = Instant::now();
    while let Err(error) = control_plane.apply(&another).await {
        assert!(began.elapsed() < DEADLINE, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Definitions that come later are found; Gateways are not ours.
    let crd = serde_json::to_string(&HttpRoute::crd()).unwrap();
    site.run(&["create", "-f", "-"], &crd.replace("\"metadata\":{", "\"metadata\":{\"annotations\":{\"api-approved.kubernetes.io\":\"unapproved, a test\"},"));
    let established = ["wait", "--for=condition=Established", "crd", "--all"];
    site.run(&established, "");
    // A new control plane with an empty directory has all of it, and so the same root.
    drop(control_plane);
    let control_plane = site.control_plane().await;
    assert_eq!(control_plane.root(), root);
    let listed = control_plane.get("/v1/resources").await;
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert!(!token.is_empty());
    let tokens = control_plane.get("/v1/tokens").await;
    assert_eq!(tokens.as_array().unwrap().len(), 1, "{tokens}");
    site.apply(ROUTE);
    let route = site.status("httproute", "web", |status| {
        !condition(&status["parents"][0]["conditions"], "Accepted")
            .0
            .is_empty()
    });
    let route = route.await;
    let parents = route["status"]["parents"].as_array().unwrap();
    assert_eq!(parents.len(), 1, "{parents:#?}");
    assert_eq!(parents[0]["controllerName"], "weft-mesh.io/control-plane");
    assert_eq!(parents[0]["parentRef"]["name"], "web");
}

#[tokio::test]
async fn what_one_control_plane_lets_in_or_revokes_the_other_does_too() {
    let Some(site) = Site::start().await else {
        return;
    };
    let (one, two) = tokio::join!(site.control_plane(), site.control_plane());
    assert_eq!(one.root(), two.root());
    one.apply(FAULT).await.unwrap();
    wait_until("the other has the document", async || {
        two.get("/v1/resources").await.as_array().unwrap().len() == 1
    })
    .await;
    let token = one.token("shop/web", &["shop/web"], &[80]).await;
    wait_until("the other has the token", async || {
        !two.get("/v1/tokens").await.as_array().unwrap().is_empty()
    })
    .await;
    // Redeemed at one, revoked at the other.
    let credential = Credential::JoinToken(token);
    let joined = Sidecar::new(&two).sign(credential).await.unwrap();
    let instance = joined.instance;
    wait_until("the first has the instance", async || {
        one.get("/v1/certs").await.to_string().contains(&instance)
    })
    .await;
    one.revoke(&instance).await.unwrap();
    wait_until("it is revoked at the other, too", async || {
        let certs = two.get("/v1/certs").await;
        let mut certs = certs.as_array().unwrap().iter();
        certs.any(|cert| cert["instance"] == *instance && !cert["revoked"].is_null())
    })
    .await;
}

/// Nobody is let in whose credential is forged, or whose token the cluster has not reviewed.
pub(crate) async fn refuses_forged(control_plane: &ControlPlane) {
    let forged = [
        Credential::JoinToken("weft-join-forged".to_owned()),
        Credential::ServiceAccountToken("e30.e30.forged".to_owned()),
    ];
    for credential in forged {
        let mut stranger = Sidecar::new(control_plane);
        let refused = stranger.sign(credential).await.unwrap_err();
        let codes = [tonic::Code::Unauthenticated, tonic::Code::Unavailable];
        assert!(codes.contains(&refused.code()), "{refused}");
        stranger.try_discover().await.map(drop).unwrap_err();
    }
}

pub(crate) const POD: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "shop"}},
  {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop"}, "spec": {
    "serviceAccountName": "web", "nodeName": "node1",
    "initContainers": [{"name": "weft-proxy", "image": "weft-proxy", "restartPolicy": "Always"}],
    "containers": [{"name": "app", "image": "app"}]}}
]}"#;

/// A pod that is deleted: its streams are cut, every sidecar is told to refuse its certificate, and
/// its token is worth nothing, at each of two control planes.
#[tokio::test]
async fn a_pod_that_is_deleted_is_revoked_everywhere() {
    let Some(site) = Site::start().await else {
        return;
    };
    site.apply(POD);
    let (one, two) = tokio::join!(site.control_plane(), site.control_plane());
    let token = |pod: &str| {
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", pod];
        let create = ["create", "token", "web", "-n", "shop", "--audience=weft"];
        let token = site.run(&[&create[..], &bound[..]].concat(), "");
        Credential::ServiceAccountToken(token.trim().to_owned())
    };
    let shown = token("web-0");
    let mut pod = Sidecar::new(&one);
    pod.sign(shown.clone()).await.unwrap();
    let mut stream = pod.discover().await;
    let elsewhere = two.enrol("shop/caller", &[]).await;
    let mut watching = elsewhere.discover().await;
    watching.ask(Kind::TrustBundle, &["*"], &[]).await;
    watching.until("+weft.local(0)").await;
    let deleted = [
        "delete",
        "pod",
        "web-0",
        "-n",
        "shop",
        "--force",
        "--grace-period=0",
    ];
    site.run(&deleted, "");
    let began = Instant::now();
    let ended = tokio::time::timeout(DEADLINE, stream.standing())
        .await
        .unwrap();
    let ended = ended.unwrap_err();
    assert!(ended.message().contains("revoked"), "{ended}");
    // Told at the control plane that did not sign for it, too.
    watching.until("+weft.local(1)").await;
    let elapsed = began.elapsed();
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    for control_plane in [&one, &two] {
        let mut again = Sidecar::new(control_plane);
        again.sign(shown.clone()).await.unwrap_err();
    }
    // One of the same name is another pod.
    site.apply(POD);
    let mut pod = Sidecar::new(&two);
    wait_until("the new pod gets a certificate", async || {
        pod.sign(token("web-0")).await.is_ok()
    })
    .await;
}
