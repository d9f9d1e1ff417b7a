//! What is particular to a sidecar in a pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a sidecar in a pod is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// The application's probes, by the path at which the kubelet asks the sidecar for them:
    /// `/app-health/CONTAINER/readyz`.
    pub probes: BTreeMap<String, Probe>,
    /// Where the application tells its metrics, which the sidecar then tells beside its own.
    pub metrics: Option<MetricsTarget>,
    /// Whether it is proved every second that the application's connections are redirected; by
    /// default in a pod only.
    pub prove_interception: Option<bool>,
    /// The domain of the cluster's DNS names; by default `cluster.local`.
    pub cluster_domain: Option<String>,
}

/// Where the application tells its metrics, as the pod's annotations `prometheus.io/…` had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsTarget {
    /// The application's port.
    pub port: u16,
    /// Path and query.
    #[serde(default = "metrics_path")]
    pub path: String,
    /// `HTTP` or `HTTPS`, whose certificate is not looked at.
    #[serde(default)]
    pub scheme: ProbeScheme,
}

fn metrics_path() -> String {
    "/metrics".to_owned()
}

/// A probe as it was before it was rewritten. Fields of a Kubernetes `Probe` that are not here are
/// the kubelet's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// A request in HTTP/1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpProbe>,
    /// A connection, which is closed at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpProbe>,
    /// `grpc.health.v1.Health/Check`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcProbe>,
    /// How long the application may take; 0 is 1, as in Kubernetes.
    #[serde(default = "one_second")]
    pub timeout_seconds: u32,
}

const fn one_second() -> u32 {
    1
}

/// A request in HTTP/1.1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpProbe {
    /// Path and query; `/` when empty.
    #[serde(default)]
    pub path: String,
    /// The application's port.
    pub port: u16,
    /// `HTTP` or `HTTPS`, whose certificate is not looked at.
    #[serde(default)]
    pub scheme: ProbeScheme,
    /// Fields of the request.
    #[serde(default)]
    pub http_headers: Vec<ProbeHeader>,
}

/// How an HTTP probe is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ProbeScheme {
    /// In plain.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

/// A field of a probe's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpProbe {
    /// The application's port.
    pub port: u16,
}

/// A call of the gRPC health checking protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrpcProbe {
    /// The application's port.
    pub port: u16,
    /// The service that is asked for; empty for the server as a whole.
    #[serde(default)]
    pub service: Option<String>,
}

/// What a probe does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeAction<'a> {
    /// A request in HTTP/1.1.
    Http(&'a HttpProbe),
    /// A connection to a port.
    Tcp(u16),
    /// A call to a port, for a service.
    Grpc(u16, &'a str),
}

impl Probe {
    /// What it does; `None` where that is nothing, or not one thing.
    pub fn action(&self) -> Option<ProbeAction<'_>> {
        match (&self.http_get, &self.tcp_socket, &self.grpc) {
            (Some(http), None, None) => Some(ProbeAction::Http(http)),
            (None, Some(tcp), None) => Some(ProbeAction::Tcp(tcp.port)),
            (None, None, Some(grpc)) => {
                let service = grpc.service.as_deref().unwrap_or_default();
                Some(ProbeAction::Grpc(grpc.port, service))
            }
            (_, _, _) => None,
        }
    }
}
