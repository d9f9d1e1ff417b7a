//! What the control plane may do in a cluster: all of it is enough, and no resource of it, and no verb that
//! a start takes, is too much.

use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use gateway_api::experimental::grpcroutes::GrpcRoute;
use gateway_api::experimental::httproutes::HttpRoute;
use gateway_api::experimental::referencegrants::ReferenceGrant;
use gateway_api::experimental::tcproutes::TcpRoute;
use gateway_api::experimental::tlsroutes::TlsRoute;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};
use weft_control_plane::install;
use weft_proto::identity::sign_request::Credential;

use crate::support::{Sidecar, program};
use crate::testing::ApiServer;

/// How long it may take until something is refused.
const LIMIT: Duration = Duration::from_secs(40);
/// How long an answer to a sidecar is waited for, before the log is looked at again.
const ANSWER: Duration = Duration::from_secs(3);
/// How long nothing may be refused where nothing is missing.
const CONTROL: Duration = Duration::from_secs(12);

/// What there is before: a namespace with sidecars, a pod with one, and a pod that should have one.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft-mesh.io/inject: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: in, namespace: shop, labels: {weft-mesh.io/inject: disabled}}
spec:
  initContainers: [{name: weft-proxy, image: a, restartPolicy: Always}]
  containers: [{name: a, image: a}]
---
apiVersion: v1
kind: Pod
metadata: {name: out, namespace: shop}
spec:
  nodeName: nowhere
  containers: [{name: a, image: a}]
---
apiVersion: v1
kind: Namespace
metadata: {name: changed, labels: {weft-mesh.io/inject: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: frozen, labels: {weft-mesh.io/inject: enabled}}
"#;

/// Roots of somebody else's: one to be written over, and one to be deleted, since nobody can.
const BUNDLES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: weft-trust-bundle, namespace: changed}
data: {roots.pem: none}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: weft-trust-bundle, namespace: frozen}
immutable: true
data: {roots.pem: none}
"#;

/// Verbs of rules that nothing here needs: writes of operators, what conflicts read again, and records that
/// change or end.
const NOT_TRIED: [(&str, &[&str]); 3] = [
    ("trafficpolicies", &["get", "create", "update", "delete"]),
    ("httproutes", &["get", "create", "update", "delete"]),
    ("secrets", &["update", "delete"]),
];

/// What is made anew for each run, so that there is a status to write.
const DOCUMENTS: &str = r#"
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec: {targetRef: {kind: Service, name: web}, retry: {attempts: 1}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web, namespace: shop}
spec: {targetRef: {kind: Service, name: web}, rules: [{requests: 1, per: 1s}]}
---
apiVersion: weft-mesh.io/v1alpha1
kind: FaultInjection
metadata: {name: web, namespace: shop}
spec: {delay: {time: 1s}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: ExternalService
metadata: {name: out, namespace: shop}
spec: {hosts: [out.example.com], ports: [{port: 80, protocol: http}]}
---
apiVersion: weft-mesh.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh, namespace: weft-system}
spec: {}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: web, namespace: shop}
spec:
  hostnames: [a.example.com]
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
"#;

struct Site {
    server: ApiServer,
    /// The role and the cluster role, as the chart has them.
    roles: Vec<Value>,
}

impl Site {
    async fn start() -> Option<Self> {
        let server = ApiServer::start().await?;
        let values = install::values(&[], &[]).unwrap();
        let mut objects = install::objects(&values, "weft-system", "weft").unwrap();
        // It runs here, as the account that the Deployment names.
        objects.retain(|object| object["kind"] != "Deployment");
        let roles = objects.iter().filter(|object| {
            let kind = object["kind"].as_str().unwrap_or_default();
            kind == "Role" || kind == "ClusterRole"
        });
        let roles: Vec<Value> = roles.cloned().collect();
        let site = Self { server, roles };
        let routes = [
            HttpRoute::crd(),
            GrpcRoute::crd(),
            TlsRoute::crd(),
            TcpRoute::crd(),
            ReferenceGrant::crd(),
        ];
        for mut crd in routes {
            let annotations = crd.metadata.annotations.get_or_insert_default();
            let approval = "api-approved.kubernetes.io".to_owned();
            annotations.insert(approval, "unapproved, a test".to_owned());
            objects.push(json!(crd));
        }
        // Before there is a webhook, which nobody would answer.
        site.run(&["apply", "-f", "-"], CLUSTER);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        // kubectl's own validation stumbles over an enumeration with null, which the API server takes.
        let apply = ["apply", "--server-side", "--validate=false", "-f", "-"];
        site.run(&apply, &list.to_string());
        let established = ["wait", "--for=condition=Established", "crd", "--all"];
        site.run(&established, "");
        Some(site)
    }

    fn run(&self, args: &[&str], input: &str) -> String {
        let (done, said) = self.server.kubectl(args, input);
        assert!(done, "{args:?}: {said}");
        said
    }

    /// What a control plane with the rights of now is refused first, within a time.
    async fn refused(&self, limit: Duration) -> String {
        let own = ["-n", "weft-system", "delete", "lease,secret", "--all"];
        self.run(&own, "");
        for namespace in ["shop", "changed", "frozen"] {
            let kinds = ["-n", namespace, "delete", "configmaps,events", "--all"];
            self.run(&kinds, "");
        }
        self.run(&["apply", "-f", "-"], BUNDLES);
        // Nor is there any root left that the API server believes: it begins a new mesh.
        for index in 0..2 {
            let path = format!("/webhooks/{index}/clientConfig/caBundle");
            let patch = json!([{"op": "remove", "path": path}]).to_string();
            let webhook = ["patch", "mutatingwebhookconfiguration", "weft-injector"];
            let args = [&webhook[..], &["--type=json", "-p", &patch]].concat();
            let (_there_or_not, _said) = self.server.kubectl(&args, "");
        }
        let (_there_or_not, _said) = self.server.kubectl(&["delete", "-f", "-"], DOCUMENTS);
        self.run(&["apply", "-f", "-"], DOCUMENTS);
        let token = self.run(
            &["-n", "weft-system", "create", "token", "weft-control-plane"],
            "",
        );
        let kubeconfig = self.server.kubeconfig_of(token.trim());
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let data = dir.path().join("data");
        let mut command = program(&data);
        command
            .env("KUBECONFIG", kubeconfig)
            .args(["--kubernetes", "--listen", "127.0.0.1:0"])
            .args(["--webhook-listen", "127.0.0.1:0"])
            // Why a replica does not lead is said there alone.
            .args([
                "--log-level",
                "info,weft_control_plane::kubernetes::leader=debug",
            ])
            .stderr(File::create(&log).unwrap());
        let mut child = Ended(command.spawn().unwrap());
        let mut asked = false;
        let began = Instant::now();
        while began.elapsed() < limit {
            let has_ended = child.0.try_wait().unwrap().is_some();
            // Logs are JSON: quotes in them are escaped.
            let text = std::fs::read_to_string(&log).unwrap().replace('\\', "");
            let refused = text.lines().find(|line| line.contains("is forbidden:"));
            if let Some(line) = refused {
                return line.to_owned();
            }
            assert!(!has_ended, "it ended: {text}");
            if !asked && let Some(address) = address(&data) {
                // It answers nobody before it has read what the mesh consists of.
                let answer = tokio::time::timeout(ANSWER, self.show_token(&data, &address)).await;
                asked = answer.is_ok();
                if let Ok(answer) = answer
                    && answer.contains("is forbidden:")
                {
                    return answer;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        String::new()
    }

    /// Asks for a certificate as the sidecar of the pod does; what is said where there is none.
    async fn show_token(&self, data: &Path, address: &str) -> String {
        let token = "-n shop create token default --audience weft --bound-object-kind Pod --bound-object-name in";
        let token: Vec<&str> = token.split(' ').collect();
        let token = self.run(&token, "").trim().to_owned();
        let mut sidecar = Sidecar::at(data, address.parse().unwrap());
        let signed = sidecar.sign(Credential::ServiceAccountToken(token)).await;
        signed.map_or_else(
            |status| status.message().to_owned(),
            |_signed| String::new(),
        )
    }
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ended_before = self.0.kill();
        let _reaped_before = self.0.wait();
    }
}

/// Where a control plane listens for sidecars, once it does.
fn address(data: &Path) -> Option<String> {
    let said = std::fs::read(data.join("addresses.json")).ok()?;
    let said: Value = serde_json::from_slice(&said).ok()?;
    Some(said["address"].as_str()?.to_owned())
}

/// Each role without one resource of one rule, and the name of that. A rule of one resource whose verbs are
/// taken away one by one needs it.
fn weakened(role: &Value) -> Vec<(String, Value)> {
    let rules = role["rules"].as_array().unwrap();
    let mut all = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        let resources = rule["resources"].as_array().unwrap();
        if resources.len() == 1 && rule["verbs"].as_array().unwrap().len() > 1 {
            continue;
        }
        for (place, resource) in resources.iter().enumerate() {
            let mut weaker = role.clone();
            let rules = weaker["rules"].as_array_mut().unwrap();
            let resources = rules[number]["resources"].as_array_mut().unwrap();
            resources.remove(place);
            if resources.is_empty() {
                rules.remove(number);
            }
            all.push((resource.as_str().unwrap().to_owned(), weaker));
        }
    }
    all
}

/// Each role without one verb of one rule, with a resource of that rule and the verb: of rules that have
/// several, and of verbs that are tried.
fn without_a_verb(role: &Value) -> Vec<(String, String, Value)> {
    let rules = role["rules"].as_array().unwrap();
    let mut all = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        let verbs = rule["verbs"].as_array().unwrap();
        let resource = rule["resources"][0].as_str().unwrap();
        let not_tried = NOT_TRIED.iter().find(|(of, _)| *of == resource);
        let not_tried = not_tried.map_or(&[][..], |(_, verbs)| verbs);
        for (place, verb) in verbs.iter().enumerate() {
            let verb = verb.as_str().unwrap();
            if verbs.len() > 1 && !not_tried.contains(&verb) {
                let mut weaker = role.clone();
                let verbs = weaker["rules"][number]["verbs"].as_array_mut().unwrap();
                verbs.remove(place);
                all.push((resource.to_owned(), verb.to_owned(), weaker));
            }
        }
    }
    all
}

/// Without any resource of any rule, or any verb that a start takes, something is refused that concerns
/// it, and with all of them nothing.
#[tokio::test]
async fn the_control_plane_has_the_rights_that_it_uses() {
    let Some(site) = Site::start().await else {
        return;
    };
    assert_eq!(site.refused(CONTROL).await, "", "with all rules");
    let mut unused = Vec::new();
    for role in &site.roles {
        let mut all = Vec::new();
        for (resource, weaker) in weakened(role) {
            all.push((resource.clone(), resource, weaker));
        }
        for (resource, verb, weaker) in without_a_verb(role) {
            all.push((
                format!("{verb} {resource}"),
                format!("cannot {verb} "),
                weaker,
            ));
        }
        for (what, expected, weaker) in all {
            let replace = ["replace", "-f", "-"];
            site.run(&replace, &weaker.to_string());
            let began = Instant::now();
            let refused = site.refused(LIMIT).await;
            println!("{what}: {:?}: {refused}", began.elapsed());
            if !refused.contains(&expected) {
                unused.push(format!("{what}: {refused}"));
            }
            site.run(&replace, &role.to_string());
        }
    }
    assert!(unused.is_empty(), "{unused:#?}");
}
