//! The node itself: what the other tests stand on.

use super::Cluster;
use crate::support::{Machine, need};

/// nginx behind a Service, and a client.
const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: nginx
    image: localhost/tools:test
    command: [nginx, -g, "daemon off; error_log stderr;", -c, /conf/nginx.conf]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: conf, mountPath: /conf}]
  volumes: [{name: conf, configMap: {name: conf}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: "localhost/tools:test", command: [sleep, infinity]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data:
  nginx.conf: |
    events {}
    http { server { listen 8080; listen [::]:8080; location / { return 200 "hello\n"; } } }
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#;

/// Pods, probes, names and services work without a mesh: the control of everything else.
#[test]
fn pods_reach_each_other_without_a_mesh() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let space = Cluster::shared().space(false);
    space.apply(WEB);
    space.kubectl("wait --for=condition=Ready pod --all --timeout=60s");
    let name = space.name();
    for host in ["web".to_owned(), format!("web.{name}.svc.cluster.local")] {
        let curl =
            format!("curl -sS --fail --retry 10 --retry-all-errors --retry-delay 1 http://{host}/");
        let finished = space.shell("client", "client", &curl).success();
        assert_eq!(finished.stdout, "hello\n", "by {host}");
    }
}
