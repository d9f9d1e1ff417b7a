//! The containers and volumes that are added to a pod.

use serde_json::{Value, json};
use weft_core::name::CLUSTER_DOMAIN;

use super::Settings;
use super::annotations::Overrides;
use crate::kubernetes::names::{
    INTERCEPT_CONTAINER, INTERCEPTION_VARIABLE, PROXY_CONTAINER, PROXY_UID, STATE_DIR, STATUS_PORT,
    TOKEN_AUDIENCE, TOKEN_DIR, TOKEN_FILE, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_DIR,
    TRUST_BUNDLE_KEY,
};

/// Ports that the sidecar listens on in a pod (`proxy/src/config`).
pub(super) const OWN_PORTS: [i32; 5] = [15000, 15001, 15006, STATUS_PORT as i32, 15053];

const TOKEN_VOLUME: &str = "weft-token";
const TRUST_VOLUME: &str = "weft-trust";
const STATE_VOLUME: &str = "weft-state";
/// Names of the added volumes.
pub(super) const VOLUMES: [&str; 3] = [TOKEN_VOLUME, TRUST_VOLUME, STATE_VOLUME];

/// The program in the sidecar's image, which has nothing else in it.
const PROGRAM: &str = "/weft-proxy";
/// Life of the service account's token; the kubelet renews it at 80 %.
const TOKEN_SECONDS: u32 = 3600;
/// What the sidecar may keep: its last configuration, certificate and key.
const STATE_SIZE: &str = "64Mi";
/// Seconds until a sidecar that does not become ready is started anew. Without its control plane it
/// does not, and starting it again would not help.
const STARTUP_SECONDS: u32 = 600;
/// Seconds for which the application is held in clusters without native sidecars; then the kubelet
/// starts the sidecar anew.
const HOLD_SECONDS: &str = "60";

/// The arguments of `weft-proxy intercept` for the pod.
pub(super) fn intercept_arguments(overrides: &Overrides) -> Vec<String> {
    let joined = |ports: &[u16]| {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        ports.join(",")
    };
    let mut inbound = vec![STATUS_PORT];
    inbound.extend(&overrides.exclude_inbound_ports);
    let mut args = vec!["--exclude-inbound-ports".to_owned(), joined(&inbound)];
    if !overrides.exclude_outbound_ports.is_empty() {
        args.push("--exclude-outbound-ports".to_owned());
        args.push(joined(&overrides.exclude_outbound_ports));
    }
    if !overrides.exclude_outbound_ranges.is_empty() {
        args.push("--exclude-outbound-ranges".to_owned());
        args.push(overrides.exclude_outbound_ranges.join(","));
    }
    if !overrides.dns_capture {
        args.push("--no-dns".to_owned());
    }
    args
}

/// The variable that says to the node's program how the pod is redirected.
fn interception_variable(overrides: &Overrides) -> Value {
    let arguments = json!(intercept_arguments(overrides)).to_string();
    json!({"name": INTERCEPTION_VARIABLE, "value": verbatim(&arguments)})
}

/// The init container that redirects the pod's traffic; where a CNI plugin does that, it waits until that
/// is done, and needs no rights.
pub(super) fn intercept(settings: &Settings, overrides: &Overrides) -> Value {
    if settings.cni {
        return json!({
            "name": INTERCEPT_CONTAINER,
            "image": settings.image,
            "command": [PROGRAM],
            "args": ["verify"],
            "env": [interception_variable(overrides)],
            "resources": resources(overrides),
            "securityContext": unprivileged(),
        });
    }
    let mut args = vec!["intercept".to_owned()];
    args.extend(intercept_arguments(overrides));
    json!({
        "name": INTERCEPT_CONTAINER,
        "image": settings.image,
        "command": [PROGRAM],
        "args": args,
        "resources": resources(overrides),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            // A capability of another user would not outlive the start of the program.
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

/// What the sidecar is told of the pod, as it is given it.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The kubelet's probes, which it answers in the application's place.
    pub(super) probes: Option<String>,
    /// Where the application tells its metrics.
    pub(super) metrics: Option<String>,
    /// How long an ordinary container goes on when the pod is told to stop, seconds.
    pub(super) pause: u32,
    /// What traces call the service.
    pub(super) service: Option<String>,
}

/// The sidecar.
pub(super) fn proxy(settings: &Settings, overrides: &Overrides, told: &Told) -> Value {
    let ready = |more: Value| {
        let mut probe = json!({
            "httpGet": {"path": "/readyz", "port": STATUS_PORT},
            "timeoutSeconds": 2,
        });
        merge(&mut probe, more);
        probe
    };
    let mut container = json!({
        "name": PROXY_CONTAINER,
        "image": settings.image,
        "command": [PROGRAM],
        "env": environment(settings, overrides, told),
        "ports": [{"name": "weft-status", "containerPort": STATUS_PORT, "protocol": "TCP"}],
        "startupProbe": ready(json!({"periodSeconds": 1, "failureThreshold": STARTUP_SECONDS})),
        "readinessProbe": ready(json!({"periodSeconds": 2, "failureThreshold": 3})),
        "resources": resources(overrides),
        "securityContext": unprivileged(),
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": TOKEN_DIR, "readOnly": true},
            {"name": TRUST_VOLUME, "mountPath": TRUST_BUNDLE_DIR, "readOnly": true},
            // The sidecar makes its directory below by itself, for nobody else to read.
            {"name": STATE_VOLUME, "mountPath": state_mount()},
        ],
    });
    if settings.cluster.has_native_sidecars() {
        merge(&mut container, json!({"restartPolicy": "Always"}));
    } else {
        // The kubelet starts the next container when this one's hook has ended.
        let command = [PROGRAM, "wait", "--ready", "--timeout", HOLD_SECONDS];
        let mut lifecycle = json!({"postStart": {"exec": {"command": command}}});
        if told.pause > 0 {
            // The application, which is told at the same time, ends its calls meanwhile.
            let command = [PROGRAM, "wait", "--pause", &told.pause.to_string()];
            lifecycle["preStop"] = json!({"exec": {"command": command}});
        }
        merge(&mut container, json!({"lifecycle": lifecycle}));
    }
    container
}

/// What the sidecar's user may do: nothing that others may not.
fn unprivileged() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": PROXY_UID,
        "runAsNonRoot": true,
        "runAsUser": PROXY_UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// The volumes of [`proxy`].
pub(super) fn volumes() -> [Value; 3] {
    let token = json!({"serviceAccountToken": {
        "audience": TOKEN_AUDIENCE,
        "expirationSeconds": TOKEN_SECONDS,
        "path": TOKEN_FILE,
    }});
    [
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [token]}}),
        json!({"name": TRUST_VOLUME, "configMap": {"name": TRUST_BUNDLE_CONFIG_MAP}}),
        json!({"name": STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": STATE_SIZE}}),
    ]
}

/// The directory above the sidecar's state.
fn state_mount() -> &'static str {
    STATE_DIR
        .rsplit_once('/')
        .map_or(STATE_DIR, |(parent, _)| parent)
}

fn resources(overrides: &Overrides) -> Value {
    let mut resources = json!({"requests": {
        "cpu": overrides.cpu_request,
        "memory": overrides.memory_request,
    }});
    let limits = [
        ("cpu", &overrides.cpu_limit),
        ("memory", &overrides.memory_limit),
    ];
    for (name, limit) in limits {
        if let Some(limit) = limit {
            resources["limits"][name] = json!(limit);
        }
    }
    resources
}

fn environment(settings: &Settings, overrides: &Overrides, told: &Told) -> Vec<Value> {
    let value = |name: &str, value: &str| json!({"name": name, "value": verbatim(value)});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let token = format!("{TOKEN_DIR}/{TOKEN_FILE}");
    let roots = format!("{TRUST_BUNDLE_DIR}/{TRUST_BUNDLE_KEY}");
    let mut environment = vec![
        field("WEFT_WORKLOAD_NAME", "metadata.name"),
        field("WEFT_WORKLOAD_NAMESPACE", "metadata.namespace"),
        field("WEFT_WORKLOAD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        value("WEFT_CONTROL_PLANE_ADDRESS", &settings.control_plane),
        value("WEFT_CONTROL_PLANE_SERVICE_ACCOUNT_TOKEN_FILE", &token),
        value("WEFT_CONTROL_PLANE_ROOTS_FILE", &roots),
        value("WEFT_STATE_DIR", STATE_DIR),
        value("WEFT_LISTENERS_METRICS", &format!("[::]:{STATUS_PORT}")),
        value("WEFT_WORKERS", &overrides.workers(settings).to_string()),
    ];
    if let Some(endpoint) = &overrides.tracing.otlp_endpoint {
        let ratio = overrides.tracing.sample_ratio.to_string();
        environment.push(value("WEFT_TRACING_OTLP_ENDPOINT", endpoint));
        environment.push(value("WEFT_TRACING_SAMPLE_RATIO", &ratio));
        if let Some(service) = &told.service {
            environment.push(value("WEFT_TRACING_SERVICE_NAME", service));
        }
    }
    if settings.cni {
        environment.push(interception_variable(overrides));
    }
    if !overrides.dns_capture {
        environment.push(value("WEFT_LISTENERS_DNS", "null"));
    }
    let domain = settings.cluster_domain.as_str();
    let domain = (domain != CLUSTER_DOMAIN).then_some(domain);
    let optional = [
        ("WEFT_LOG_LEVEL", overrides.log_level.as_deref()),
        ("WEFT_MTLS", overrides.mtls.as_deref()),
        ("WEFT_KUBERNETES_CLUSTER_DOMAIN", domain),
        ("WEFT_KUBERNETES_PROBES", told.probes.as_deref()),
        ("WEFT_KUBERNETES_METRICS", told.metrics.as_deref()),
    ];
    for (name, found) in optional {
        if let Some(found) = found {
            environment.push(value(name, found));
        }
    }
    environment
}

/// The value as the kubelet leaves it: it replaces `$(NAME)` in values of variables, and `$$` by `$`.
fn verbatim(text: &str) -> String {
    text.replace('$', "$$")
}

/// Adds the fields of one object to another.
fn merge(to: &mut Value, more: Value) {
    if let (Value::Object(to), Value::Object(more)) = (to, more) {
        to.extend(more);
    }
}
