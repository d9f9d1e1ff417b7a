//! Applications for pods: nginx, and a container to run commands in.

/// A ConfigMap with nginx's configuration, a Deployment of nginx and its Service `NAME:80` with the
/// target port 8080. It answers with `NAME`.
pub(crate) fn web(name: &str, replicas: u32, more: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}-conf}}
data:
  nginx.conf: |
    worker_processes 1;
    events {{}}
    http {{
      access_log off;
      server {{
        listen 8080; listen [::]:8080;
        location / {{ return 200 "{name}\n"; }}
        location = /headers {{ return 200 "$http_x_test\n"; }}
        location = /broken {{ return 500 "broken\n"; }}
      }}
    }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata:
      labels: {{app: {name}}}
{more}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
      - name: nginx
        image: localhost/tools:test
        command: [nginx, -g, "daemon off; error_log stderr;", -c, /conf/nginx.conf]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
        livenessProbe: {{tcpSocket: {{port: http}}, periodSeconds: 1}}
        startupProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1, failureThreshold: 30}}
        volumeMounts: [{{name: conf, mountPath: /conf}}]
      volumes: [{{name: conf, configMap: {{name: {name}-conf}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: http, appProtocol: http}}]
---
"#
    )
}

/// A Deployment in whose container `client` commands can be run.
pub(crate) fn client(name: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: client, image: "localhost/tools:test", command: [sleep, infinity]}}]
---
"#
    )
}

/// A Deployment of the conformance suite's application, strict and with probes in gRPC, and its Service:
/// HTTP on 80, TLS on 443. `NAME-front` is a Service without pods, for routes to lead elsewhere.
pub(crate) fn echo(name: &str, image: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata:
      labels: {{app: {name}}}
      annotations: {{weft-mesh.io/mtls: strict}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: {image}
        imagePullPolicy: Never
        args: ["--port=8080", "--port=8443", "--tls=8443", "--grpc=7070", "--tcp=9090", "--crt=/cert.crt", "--key=/cert.key"]
        env: [{{name: NAMESPACE, valueFrom: {{fieldRef: {{fieldPath: metadata.namespace}}}}}}]
        startupProbe: {{grpc: {{port: 7070}}, periodSeconds: 1, failureThreshold: 30}}
        readinessProbe: {{grpc: {{port: 7070}}, periodSeconds: 1}}
        livenessProbe: {{grpc: {{port: 7070}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports:
  - {{name: http, port: 80, targetPort: 8080, appProtocol: http}}
  - {{name: tls, port: 443, targetPort: 8443, appProtocol: tls}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}-front}}
spec:
  ports:
  - {{name: tcp, port: 80, appProtocol: tcp}}
  - {{name: tls, port: 443, appProtocol: tls}}
---
"#
    )
}

/// A StatefulSet of two pods with its headless Service, both called NAME; each answers on 8080 with its
/// own name.
pub(crate) fn stateful(name: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}}}
spec:
  serviceName: {name}
  replicas: 2
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
{}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: None
  selector: {{app: {name}}}
  ports: [{{name: http, port: 8080, appProtocol: http}}]
---
"#,
        says_its_name("      ")
    )
}

/// A pod without a controller, and its Service `NAME:8080`; it answers with its own name.
pub(crate) fn bare(name: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
{}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 8080, appProtocol: http}}]
---
"#,
        says_its_name("  ")
    )
}

/// What is in the spec of a pod in which nginx answers on 8080 with the pod's name.
fn says_its_name(indent: &str) -> String {
    let script = r#"printf 'daemon off; error_log stderr; pid /tmp/nginx.pid; events {} http { access_log off; server { listen 8080; listen [::]:8080; location / { return 200 "%s\n"; } } }' "$POD" >/tmp/nginx.conf; exec nginx -c /tmp/nginx.conf"#;
    let lines = [
        "terminationGracePeriodSeconds: 1".to_owned(),
        "containers:".to_owned(),
        "- name: nginx".to_owned(),
        "  image: localhost/tools:test".to_owned(),
        format!("  command: [sh, -c, {}]", serde_json::Value::from(script)),
        "  env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]".to_owned(),
        "  readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}".to_owned(),
    ];
    lines.map(|line| format!("{indent}{line}")).join("\n")
}

/// nginx behind the Service `NAME:9000` that speaks HTTP/2 only, as a gRPC server does, and answers
/// every call with NAME.
pub(crate) fn grpc(name: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: nginx
    image: localhost/tools:test
    command: [nginx, -g, "daemon off; error_log stderr;", -c, /conf/nginx.conf]
    readinessProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}
    volumeMounts: [{{name: conf, mountPath: /conf}}]
  volumes: [{{name: conf, configMap: {{name: {name}-conf}}}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}-conf}}
data:
  nginx.conf: |
    events {{}}
    http {{
      access_log off;
      default_type application/grpc;
      server {{ listen 9000 http2; listen [::]:9000 http2; location / {{ return 200 "{name}\n"; }} }}
    }}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: grpc, port: 9000, appProtocol: grpc}}]
---
"#
    )
}
