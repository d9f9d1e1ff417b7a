//! Names that several parts agree on: the injector, the sidecars' configuration, the control plane,
//! the chart and the CLI.

/// The label on a namespace or a pod that asks for a sidecar ([`ENABLED`]) or forbids one
/// ([`DISABLED`]).
pub const INJECT: &str = "weft-mesh.io/inject";
/// [`INJECT`] asks for a sidecar.
pub const ENABLED: &str = "enabled";
/// [`INJECT`] forbids a sidecar.
pub const DISABLED: &str = "disabled";
/// The annotation that the injector leaves: the version that injected, and what it added.
pub const INJECTED: &str = "weft-mesh.io/injected";

/// The annotation for the CNI plugin: the arguments of `weft-proxy intercept`, a JSON array
/// (`proxy/src/cni/`).
pub const INTERCEPTION: &str = "weft-mesh.io/interception";
/// The variable with the same, for the program that keeps the plugin on a node.
pub const INTERCEPTION_VARIABLE: &str = "WEFT_CNI_INTERCEPTION";

/// The sidecar's container. A pod is in the mesh exactly if one of its containers or init containers
/// has this name: the list of containers of a pod cannot be changed once it is made.
pub const PROXY_CONTAINER: &str = "weft-proxy";
/// The init container that redirects the pod's traffic.
pub const INTERCEPT_CONTAINER: &str = "weft-intercept";

/// The ConfigMap in every namespace with injection that holds the roots of the mesh.
pub const TRUST_BUNDLE_CONFIG_MAP: &str = "weft-trust-bundle";
/// The key in [`TRUST_BUNDLE_CONFIG_MAP`]: PEM.
pub const TRUST_BUNDLE_KEY: &str = "roots.pem";
/// Where [`TRUST_BUNDLE_CONFIG_MAP`] is mounted.
pub const TRUST_BUNDLE_DIR: &str = "/var/run/weft/trust";
/// Where the service account's token for the mesh is mounted.
pub const TOKEN_DIR: &str = "/var/run/secrets/weft-mesh.io";
/// The file in [`TOKEN_DIR`].
pub const TOKEN_FILE: &str = "token";
/// The audience of that token.
pub const TOKEN_AUDIENCE: &str = "weft";
/// Where the sidecar keeps its state: an `emptyDir` in memory.
pub const STATE_DIR: &str = "/var/lib/weft/proxy";

/// The namespace that the control plane is installed in, unless another is chosen.
pub const NAMESPACE: &str = "weft-system";
/// The control plane's Deployment, Service, ServiceAccount and Lease.
pub const CONTROL_PLANE: &str = "weft-control-plane";
/// The name of the port of [`CONTROL_PLANE`]'s Service that sidecars and other control planes call.
pub const SIDECARS_PORT: &str = "grpc-xds";
/// The DaemonSet of the CNI plugin.
pub const CNI: &str = "weft-cni";
/// The control plane's MutatingWebhookConfiguration.
pub const WEBHOOK: &str = "weft-injector";
/// The path that the API server posts an `AdmissionReview` to.
pub const WEBHOOK_PATH: &str = "/inject";
/// The Secret that holds the root certificate and its key.
pub const AUTHORITY_SECRET: &str = "weft-authority";
/// The field manager of what the control plane applies.
pub const FIELD_MANAGER: &str = "weft-control-plane";
/// The label that names who made an object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The user that the sidecar runs as, whose connections are not redirected.
pub const PROXY_UID: i64 = 1337;
/// The port of the sidecar's metrics, health and rewritten probes.
pub const STATUS_PORT: u16 = 15020;
/// The path at which the sidecar tells its metrics and the application's.
pub const MERGED_METRICS_PATH: &str = "/metrics/merged";
/// The path under which the sidecar answers the kubelet's probes of a container:
/// `/app-health/CONTAINER/{livez,readyz,startupz}`.
pub const PROBES_PATH: &str = "/app-health";
