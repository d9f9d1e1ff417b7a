//! Applications for pods: nginx, and a container to run commands in.

/// A ConfigMap with nginx's configuration, a Deployment of nginx and its Service `NAME:80` with the
/// target port 8080. It answers with `NAME` and what the request's X-Forwarded-Client-Cert says.
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
