//! The sidecar's bootstrap configuration.
//!
//! What it needs before it can ask anyone: who it is, where the control plane is, which sockets to
//! open, and its limits. One YAML file, overridden by environment (`WEFT_*`), overridden by flags;
//! everything has a default but the workload's name and the control plane's address. How the mesh
//! treats traffic is not here: that comes from the control plane.
//!
//! `deploy/guide/proxy-configuration.md` documents every field; a test holds the two together.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_core::model::AppProtocol;
use weft_core::name::{NameError, WorkloadName};

mod args;
mod bounds;
mod load;
mod pod;
mod units;
mod validate;
mod workers;

pub use args::ProxyArgs;
pub use bounds::{LimitConfig, TimeoutConfig};
pub use load::{ConfigError, load, load_text, load_with};
pub use pod::{
    GrpcProbe, HttpProbe, KubernetesConfig, MetricsTarget, Probe, ProbeAction, ProbeHeader,
    ProbeScheme, TcpProbe,
};
pub use units::{AccessLog, ByteSize, Secret, ServiceRef};
pub use validate::Problem;
pub use workers::default_workers;

/// Everything a sidecar is told when it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// The workload beside which this sidecar stands.
    pub workload: WorkloadConfig,
    /// Where configuration and identity come from.
    pub control_plane: ControlPlaneConfig,
    /// Where the last snapshot, the certificate and its key are kept (directory 0700, files 0600).
    pub state_dir: PathBuf,
    /// Worker threads; 0 means the CPU limit of the cgroup, rounded up ([`default_workers`]).
    pub workers: usize,
    /// Sockets that the sidecar opens.
    pub listeners: ListenerConfig,
    /// The workload's own address, dialled for inbound connections. By default that is the address
    /// the connection was meant for before it was redirected.
    pub application_address: Option<IpAddr>,
    /// What inbound accepts.
    pub mtls: MtlsMode,
    /// What is particular to a pod.
    pub kubernetes: KubernetesConfig,
    /// Local listeners for programs whose traffic is not captured.
    pub upstreams: Vec<UpstreamConfig>,
    /// How long things may take.
    pub timeouts: TimeoutConfig,
    /// How much of everything there may be.
    pub limits: LimitConfig,
    /// Where spans go.
    pub tracing: TracingConfig,
    /// Where one line per request goes: `off`, `stdout` or the path of a file.
    pub access_log: AccessLog,
    /// The sidecar's own log.
    pub log: LogConfig,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            workload: WorkloadConfig::default(),
            control_plane: ControlPlaneConfig::default(),
            state_dir: PathBuf::from("/var/lib/weft/proxy"),
            workers: 0,
            listeners: ListenerConfig::default(),
            application_address: None,
            mtls: MtlsMode::default(),
            kubernetes: KubernetesConfig::default(),
            upstreams: Vec::new(),
            timeouts: TimeoutConfig::default(),
            limits: LimitConfig::default(),
            tracing: TracingConfig::default(),
            access_log: AccessLog::Off,
            log: LogConfig::default(),
        }
    }
}

impl ProxyConfig {
    /// How many workers to start: what is configured, else [`default_workers`]. At least 1.
    pub fn worker_count(&self) -> usize {
        if self.workers == 0 {
            default_workers()
        } else {
            self.workers
        }
    }

    /// Whether this sidecar is in a pod: then what the workload serves comes from the control plane.
    pub fn is_in_pod(&self) -> bool {
        self.control_plane.service_account_token_file.is_some()
    }

    /// Whether interception is proved again and again.
    pub fn proves_interception(&self) -> bool {
        let chosen = self.kubernetes.prove_interception;
        chosen.unwrap_or_else(|| self.is_in_pod())
    }

    /// The workload's full name. It has been checked when this was loaded.
    pub fn workload_name(&self) -> Result<WorkloadName, NameError> {
        WorkloadName::new(&self.workload.namespace, &self.workload.name)
    }
}

/// Who the workload is, and what it offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkloadConfig {
    /// Its name within the namespace, a DNS label. Required.
    pub name: String,
    /// Its namespace, a DNS label.
    pub namespace: String,
    /// The service account in its identity; by default the workload's name.
    pub service_account: Option<String>,
    /// The services it serves: `NAME` in its own namespace, or `NAMESPACE/NAME`.
    pub services: Vec<ServiceRef>,
    /// The ports it accepts connections on.
    pub ports: Vec<PortConfig>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Where it runs, for zone-aware balancing; empty when unknown.
    pub zone: String,
    /// Its share in balancing, 1 to 1000; 100 is ordinary.
    pub weight: u32,
}

impl Default for WorkloadConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            namespace: "default".to_owned(),
            service_account: None,
            services: Vec::new(),
            ports: Vec::new(),
            labels: BTreeMap::new(),
            zone: String::new(),
            weight: 100,
        }
    }
}

/// One port of the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// The port that the application listens on, 1 to 65535.
    pub port: u16,
    /// What is spoken there: `http`, `http2`, `grpc`, `tcp`, `tls`, or `detect`.
    #[serde(default, with = "units::protocol")]
    pub protocol: AppProtocol,
    /// What other sidecars are told to dial. By default the workload's address and `port`, or the
    /// address of `listen` where that is set.
    #[serde(default)]
    pub advertise: Option<SocketAddr>,
    /// An mTLS listener of its own for this port, where nothing redirects inbound connections;
    /// port 0 takes a free one.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Whether the application listens on loopback only and is to be dialled there. The mesh then
    /// comes from 127.0.0.1 or ::1, which some programs trust without asking.
    #[serde(default)]
    pub loopback: bool,
}

/// Where configuration and identity come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlPlaneConfig {
    /// `HOST:PORT` of discovery and identity. Required.
    pub address: String,
    /// The join token, for the first start. Never printed.
    pub token: Option<Secret>,
    /// A file that holds the token; read again at each attestation, so it may be replaced.
    pub token_file: Option<PathBuf>,
    /// The file with the service account's token, in a pod; read again for each certificate, since
    /// the kubelet replaces it.
    pub service_account_token_file: Option<PathBuf>,
    /// The file with the roots of the mesh, PEM, in a pod; read again for each certificate.
    pub roots_file: Option<PathBuf>,
    /// The name in the control plane's certificate.
    pub server_name: String,
}

impl Default for ControlPlaneConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            token: None,
            token_file: None,
            service_account_token_file: None,
            roots_file: None,
            server_name: "control-plane.weft".to_owned(),
        }
    }
}

/// Sockets that the sidecar opens. Each may be `null`, which leaves it out, and each port may be 0,
/// which takes a free one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerConfig {
    /// Where the application's redirected outgoing connections arrive.
    pub outbound: Option<SocketAddr>,
    /// Where redirected connections to the application arrive.
    pub inbound: Option<SocketAddr>,
    /// Where captured DNS queries arrive, UDP and TCP.
    pub dns: Option<SocketAddr>,
    /// Administration: no authentication, hence loopback.
    pub admin: Option<SocketAddr>,
    /// Metrics and health.
    pub metrics: Option<SocketAddr>,
    /// Administration, metrics and health on a Unix socket (0600).
    pub admin_socket: Option<PathBuf>,
}

impl ListenerConfig {
    /// Whether one of them has this port.
    pub fn has_port(&self, port: u16) -> bool {
        let all = [
            self.outbound,
            self.inbound,
            self.dns,
            self.admin,
            self.metrics,
        ];
        all.into_iter()
            .flatten()
            .any(|address| address.port() == port)
    }
}

impl Default for ListenerConfig {
    fn default() -> Self {
        let any = |port| Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
        let local = |port| Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        Self {
            outbound: any(15001),
            inbound: any(15006),
            dns: local(15053),
            admin: local(15000),
            metrics: any(15020),
            admin_socket: None,
        }
    }
}

/// What inbound accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MtlsMode {
    /// Mesh connections and plaintext.
    #[default]
    Permissive,
    /// Mesh connections only.
    Strict,
}

/// A local listener that leads to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `NAME` in the workload's namespace, or `NAMESPACE/NAME`.
    pub service: ServiceRef,
    /// The service's port; by default its only one.
    #[serde(default)]
    pub port: Option<u16>,
    /// Where to listen.
    pub listen: SocketAddr,
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingConfig {
    /// `http://HOST:PORT` of an OTLP/gRPC collector; nothing is traced without one.
    pub otlp_endpoint: Option<String>,
    /// The share of traces begun here that are recorded, 0 to 1. Traces begun elsewhere keep their
    /// decision.
    pub sample_ratio: f64,
    /// `service.name` of the spans; by default the workload's first service, else its name.
    pub service_name: Option<String>,
    /// Ended spans that wait for export; more are dropped and counted.
    pub max_queued_spans: usize,
    /// How often a batch is sent at the latest.
    #[serde(with = "units::duration")]
    pub export_interval: Duration,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            sample_ratio: 0.01,
            service_name: None,
            max_queued_spans: 4_096,
            export_interval: Duration::from_secs(1),
        }
    }
}

/// The sidecar's own log, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as
    /// `info,weft_proxy::tls=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Auto,
        }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[cfg(test)]
mod tests;
