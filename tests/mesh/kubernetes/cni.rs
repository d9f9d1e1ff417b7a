//! Pods in the mesh without a capability anywhere: the CNI plugin redirects them.

use std::fs;
use std::path::Path;

use super::cluster::{LIMIT, Space};
use super::{Cluster, apps};
use crate::support::{Machine, Program, need, wait_for};

/// nginx as a user without rights, and a client, both as Pod Security `restricted` wants pods.
const PODS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data:
  nginx.conf: |
    worker_processes 1;
    pid /tmp/nginx.pid;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
      uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
      server { listen 8080; listen [::]:8080; location / { return 200 "web\n"; } }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {weft-mesh.io/mtls: strict}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: nginx
        image: localhost/tools:test
        command: [nginx, -g, "daemon off; error_log stderr;", -c, /conf/nginx.conf]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        volumeMounts: [{name: conf, mountPath: /conf}, {name: tmp, mountPath: /tmp}]
      volumes: [{name: conf, configMap: {name: conf}}, {name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http, appProtocol: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: client
        image: localhost/tools:test
        command: [sleep, infinity]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
"#;

/// The metadata of a pod of the mesh that may be made although nobody has redirected it.
const EARLY: &str = "{name: early}";

/// That of a pod outside of the mesh.
const LATER: &str = "{name: later, labels: {weft-mesh.io/inject: disabled}}";

/// A client as Pod Security `restricted` wants pods.
fn restricted(metadata: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {metadata}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsNonRoot: true, runAsUser: 1000, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: client
    image: localhost/tools:test
    command: [sleep, infinity]
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
"#
    )
}

/// A container that makes a network namespace of its own and runs a program of the sidecar's name in it,
/// which asks for rules.
const LIAR: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: liar, labels: {app: liar}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: liar
    image: localhost/tools:test
    command: [unshare, -Urn, bash, -c, "printf weft-proxy > /proc/self/comm; while :; do sleep 60; done"]
    env: [{name: WEFT_CNI_INTERCEPTION, value: "[]"}]
    securityContext: {runAsUser: 1000, seccompProfile: {type: Unconfined}}
"#;

/// In a namespace that enforces `restricted` pods speak strict mutual TLS; rules that are taken away come
/// back; and the plugin is taken away from the node when it is not wanted any more.
#[test]
fn pods_without_any_capability_are_in_the_mesh() {
    need!("root", "kubernetes", "buildah", "nginx", "curl", "nft");
    let _machine = Machine::alone();
    let cluster = Cluster::meshed();
    let dir = cluster.dir().display();
    let places = [
        format!("cni.binDir={dir}/cni-bin"),
        format!("cni.confDir={dir}/cni"),
        format!("cni.stateDir={dir}/cni-state"),
    ];
    let [bin, conf, state] = places.each_ref().map(String::as_str);
    let back = cluster.upgraded(&["cni.enabled=true", bin, conf, state]);
    let ready = "-n weft-system rollout status daemonset/weft-cni --timeout=60s";
    cluster.kubectl(ready);
    let conflist = cluster.dir().join("cni/1.conflist");
    let has_plugin = || fs::read_to_string(&conflist).is_ok_and(|text| text.contains("weft-cni"));
    assert!(has_plugin(), "it is ready, and the plugin is not there");

    let space = cluster.space(true);
    cluster.kubectl(&format!(
        "label namespace {} pod-security.kubernetes.io/enforce=restricted",
        space.name()
    ));
    space.apply(PODS);
    space.wait_rolled_out("web");
    space.wait_rolled_out("client");
    let added = "get pods -o jsonpath={.items[*].spec['initContainers','containers'][*].securityContext.capabilities.add}";
    assert_eq!(space.kubectl(added), "");
    let curl = "curl -sS --fail -m 5 http://web/";
    let finished = space.shell("deploy/client", "client", curl).success();
    assert_eq!(finished.stdout, "web\n");

    let recorded = fs::read_dir(cluster.dir().join("cni-state")).expect("records");
    let recorded = recorded.flatten().map(|entry| entry.file_name());
    let recorded = recorded.filter(|name| name.len() == 64).count();
    assert_eq!(recorded, 2, "a web and a client");
    let permitted = cluster.space(false);
    permitted.apply(LIAR);
    permitted.kubectl("wait --for=condition=Ready pod/liar --timeout=60s");

    // Without its rules the client would not be answered: the service is strict.
    cluster
        .run(space.enter("client").args(["nft", "flush", "ruleset"]))
        .success();
    wait_for("the rules again", LIMIT, || {
        let rules = space.enter("client").args(["nft", "list", "ruleset"]);
        let rules = cluster.run(rules).success().stdout;
        rules.contains("weft").then_some(())
    });
    space.shell("deploy/client", "client", curl).success();
    // In that time what the other program says was looked at, too.
    let of_liar = permitted.enter("liar").args(["nft", "list", "ruleset"]);
    assert_eq!(cluster.run(of_liar).success().stdout, "");

    // The network's own program writes its configuration anew.
    let text = fs::read_to_string(&conflist).expect("the configuration");
    let before = text.replace("weft-cni", "tuning");
    fs::write(&conflist, before).expect("write the configuration");
    wait_for("the entry again", LIMIT, || has_plugin().then_some(()));
    fs::write(&conflist, &text).expect("write the configuration");

    a_pod_that_was_made_before_the_plugin_is_redirected(cluster, &space, &conflist);

    cluster.upgrade(&["cni.enabled=true", bin, conf, state, "cni.remove=true"]);
    cluster.kubectl(ready);
    let program = cluster.dir().join("cni-bin/weft-cni");
    assert!(
        !has_plugin() && !program.exists(),
        "it is ready, and the plugin is there"
    );
    drop(back);
    // Pods start on the node as before, where an init container may redirect them.
    let permitted = cluster.space(true);
    permitted.apply(&apps::client("client"));
    permitted.wait_rolled_out("client");
}

/// A node that has no plugin yet starts a pod of the mesh: it waits, and is redirected when the plugin's
/// program is there.
fn a_pod_that_was_made_before_the_plugin_is_redirected(
    cluster: &Cluster,
    space: &Space,
    conflist: &Path,
) {
    let place = |node: &str| {
        cluster.kubectl(&format!(
            "-n weft-system patch daemonset weft-cni --type merge -p \
             {{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{{\"of-nobody\":{node}}}}}}}}}}}"
        ));
    };
    place("\"x\"");
    let pods = "-n weft-system get pods -l app.kubernetes.io/component=cni -o name";
    wait_for("the program to end", LIMIT, || {
        cluster.kubectl(pods).stdout.is_empty().then_some(())
    });
    let text = fs::read_to_string(conflist).expect("the configuration");
    let mut without: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let plugins = without["plugins"].as_array_mut().expect("plugins");
    plugins.retain(|plugin| plugin["type"] != "weft-cni");
    fs::write(conflist, without.to_string()).expect("write the configuration");
    // Until the container runtime has noticed it finds no program, and the kubelet tries again.
    fs::remove_file(cluster.dir().join("cni-bin/weft-cni")).expect("remove the program");

    space.apply(&restricted(EARLY));
    let waits = "get pod early -o jsonpath={.status.initContainerStatuses[?(@.name==\"weft-intercept\")].state.running}";
    wait_for("weft-intercept to wait", LIMIT, || {
        (!space.kubectl(waits).is_empty()).then_some(())
    });
    // A pod that comes after it is ready before it.
    space.apply(&restricted(LATER));
    space.kubectl("wait --for=condition=Ready pod/later --timeout=60s");
    // It may be between two tries.
    let initialized =
        "get pod early -o jsonpath={.status.conditions[?(@.type==\"Initialized\")].status}";
    assert_eq!(space.kubectl(initialized), "False");
    let uid = space.kubectl("get pod early -o jsonpath={.metadata.uid}");
    let rules = in_sandbox(&uid).args(["nft", "list", "ruleset"]);
    assert_eq!(
        cluster.run(rules).success().stdout,
        "",
        "nobody has redirected it"
    );

    place("null");
    space.kubectl("wait --for=condition=Ready pod/early --timeout=60s");
    let curl = "curl -sS --fail -m 5 http://web/";
    space.shell("early", "client", curl).success();
}

/// `nsenter` into the network namespace of the pod with this uid, whatever of its containers runs.
fn in_sandbox(uid: &str) -> Program {
    let names = [uid.to_owned(), uid.replace('-', "_")];
    let process = fs::read_dir("/proc")
        .expect("read /proc")
        .flatten()
        .map(|entry| entry.path())
        .find(|dir| {
            fs::read_to_string(dir.join("cgroup"))
                .is_ok_and(|cgroups| names.iter().any(|name| cgroups.contains(name)))
        });
    let process = process.unwrap_or_else(|| panic!("no process of the pod {uid}"));
    Program::new("nsenter")
        .arg(format!("--net={}", process.join("ns/net").display()))
        .arg("--")
}
