//! Arguments of the command line, and what is allowed in them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use weft_core::model::Cidr;
use weft_core::name::{NameError, TrustDomain, check_label, check_subdomain};

use crate::cluster::ClusterSettings;
use crate::identity::ca::{LEAF_TTL_MAX, LEAF_TTL_MIN};
use crate::injector::{
    self, ENDPOINT_ALLOWED, SAMPLE_RATIO, SAMPLE_RATIO_ALLOWED, Tracing, otlp_endpoint,
    sample_ratio,
};
use crate::kubernetes::names;
use crate::missing_sidecar::{EVICTIONS_PER_MINUTE, EVICTIONS_PER_MINUTE_MAX, Eviction};
use crate::model::parse_duration;
use crate::pipeline::virtual_ranges;

/// Starts the control plane.
///
/// Examples:
///   weft control-plane
///   weft control-plane --data-dir /var/lib/weft --listen 0.0.0.0:15010 --advertise mesh.example:15010
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct ControlPlaneArgs {
    /// Where everything is kept [default: /var/lib/weft as root, else ~/.local/state/weft].
    #[arg(long, env = "WEFT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where sidecars connect (discovery, identity, registry); port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:15010")]
    pub listen: SocketAddr,
    /// What sidecars are told to connect to, HOST:PORT [default: what is listened on].
    #[arg(long)]
    pub advertise: Option<String>,
    /// Where Prometheus reads; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:15014")]
    pub metrics_listen: SocketAddr,
    /// Where operators with certificates reach the admin API from elsewhere, 0.0.0.0:15080 for
    /// instance [default: nowhere; the socket in the data directory is always there].
    #[arg(long)]
    pub admin_listen: Option<SocketAddr>,
    /// The trust domain of this mesh; it can't be changed later.
    #[arg(long, default_value = "weft.local")]
    pub trust_domain: String,
    /// Life of a workload's certificate: 10s to 168h (7 days).
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub leaf_ttl: Duration,
    /// How long a workload is kept whose sidecar has lost its stream: at least 6s, twice the time in
    /// which sidecars reconnect.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub grace: Duration,
    /// How long after its start the control plane keeps workloads that were on record and have not come
    /// back, --grace at least: nobody has seen them go [default: 90s, or --grace if that is longer].
    #[arg(long, value_parser = parse_duration)]
    pub restart_grace: Option<Duration>,
    /// Ranges of workloads' own addresses (pods); dialled directly they are mesh traffic [default:
    /// none; in a cluster all private ranges].
    #[arg(long, value_delimiter = ',')]
    pub workload_range: Vec<String>,
    /// Starts without a row of the store that cannot be read, named as the error names it. What it
    /// held is lost to the mesh: of a token, an instance or an operator also that it was revoked.
    #[arg(long, value_name = "TABLE/KEY@DIGEST")]
    pub discard_unreadable: Vec<String>,
    /// What is logged.
    #[arg(long, default_value = "info", env = "WEFT_LOG")]
    pub log_level: String,
    /// The cluster, if it runs in one.
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
}

/// How a control plane runs in a Kubernetes cluster.
#[derive(Debug, Clone, Args)]
pub struct KubernetesArgs {
    /// Runs in a Kubernetes cluster: services, pods and documents are those of its API. Which cluster
    /// is said by the pod's service account, or by KUBECONFIG.
    #[arg(long = "kubernetes", env = "WEFT_KUBERNETES")]
    pub enabled: bool,
    /// The namespace that the control plane is installed in.
    #[arg(
        long = "kubernetes-namespace",
        value_name = "NAMESPACE",
        env = "WEFT_KUBERNETES_NAMESPACE",
        default_value = names::NAMESPACE
    )]
    pub namespace: String,
    /// Ranges of the addresses of the cluster's Services, as 10.96.0.0/12 [default: what the API
    /// server says; Kubernetes 1.33 and newer serve ServiceCIDRs].
    #[arg(long = "service-range", value_delimiter = ',')]
    pub service_ranges: Vec<String>,
    /// The domain of the cluster's DNS names, as in web.shop.svc.cluster.local.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Where the API server asks about new pods, over TLS; port 0 takes a free one.
    #[arg(long, default_value = "0.0.0.0:15017")]
    pub webhook_listen: SocketAddr,
    /// The image of the sidecars that pods get.
    #[arg(long, value_name = "IMAGE", env = "WEFT_PROXY_IMAGE", default_value = PROXY_IMAGE)]
    pub proxy_image: String,
    /// A namespace whose pods the API server does not ask about, whatever their labels say, beside those of
    /// Kubernetes itself and the control plane's own: as in the selectors of the webhook's configuration.
    #[arg(
        long = "exempt-namespace",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    pub exempt_namespaces: Vec<String>,
    /// A CNI plugin (the chart's DaemonSet weft-cni) redirects the traffic of pods, so that no container of
    /// them needs NET_ADMIN.
    #[arg(long)]
    pub cni: bool,
    /// Evicts pods that want a sidecar and have none, so that their controllers make them anew;
    /// PodDisruptionBudgets hold. Without it they are told of in Events.
    #[arg(long)]
    pub evict_pods_without_sidecar: bool,
    /// How long a pod has wanted a sidecar before it is evicted.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub evict_after: Duration,
    /// Pods that are evicted in a minute, at most: 1 to 600. Of one namespace a third.
    #[arg(long, value_name = "PODS", default_value_t = EVICTIONS_PER_MINUTE,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(EVICTIONS_PER_MINUTE_MAX)))]
    pub evictions_per_minute: u32,
    /// Where the sidecars of pods send their spans, http://HOST:PORT of an OTLP/gRPC collector, unless
    /// a pod's annotation says otherwise [default: nothing is traced].
    #[arg(long, value_name = "URL", value_parser = parse_otlp_endpoint)]
    pub otlp_endpoint: Option<String>,
    /// The share of the traces begun at a pod that are recorded, 0 to 1, unless its annotation says
    /// otherwise.
    #[arg(long, value_name = "SHARE", value_parser = parse_sample_ratio, default_value_t = SAMPLE_RATIO)]
    pub trace_sample_ratio: f64,
}

/// Reads `--otlp-endpoint`, of the control plane and of `weft inject`.
pub fn parse_otlp_endpoint(text: &str) -> Result<String, String> {
    otlp_endpoint(text).ok_or_else(|| format!("allowed: {ENDPOINT_ALLOWED}"))
}

/// Reads `--trace-sample-ratio`.
pub fn parse_sample_ratio(text: &str) -> Result<f64, String> {
    sample_ratio(text).ok_or_else(|| format!("allowed: {SAMPLE_RATIO_ALLOWED}"))
}

/// The sidecar's image of this release.
pub const PROXY_IMAGE: &str = concat!("localhost/weft-proxy:", env!("CARGO_PKG_VERSION"));

/// The least `--grace`: twice the 3 s in which sidecars reconnect.
const GRACE_MIN: Duration = Duration::from_secs(6);

/// The default of `--restart-grace`. What a sidecar remembers of the way to the control plane's address
/// (a neighbour's hardware address) may be wrong after a restart, for 53 s by Linux's defaults; then
/// come 8 s at most of an attempt to connect and the pause before the next.
const RESTART_GRACE: Duration = Duration::from_secs(90);

/// An argument that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// The life of a workload's certificate is out of range.
    #[error("--leaf-ttl: found {0:?}; allowed: 10s to 168h")]
    LeafTtl(Duration),
    /// Workloads would be removed while their sidecars reconnect.
    #[error(
        "--grace: found {0:?}; allowed: 6s and more, twice the time in which sidecars reconnect"
    )]
    Grace(Duration),
    /// Workloads would be removed sooner after a restart than otherwise.
    #[error("--restart-grace: found {found:?}; allowed: {least:?}, which is --grace, and more")]
    RestartGrace {
        /// What was given.
        found: Duration,
        /// `--grace`.
        least: Duration,
    },
    /// A range of workloads' addresses is none.
    #[error("--workload-range: found {0:?}; allowed: ADDRESS or ADDRESS/PREFIX")]
    WorkloadRange(String),
    /// A range of Services' addresses is none.
    #[error("--service-range: found {0:?}; allowed: ADDRESS or ADDRESS/PREFIX")]
    ServiceRange(String),
    /// The trust domain is not one.
    #[error("--trust-domain: {0}")]
    TrustDomain(#[source] NameError),
    /// The namespace in the cluster is none.
    #[error(
        "--kubernetes-namespace: found {0:?}; allowed: 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
    )]
    Namespace(String),
    /// The domain of the cluster is none.
    #[error(
        "--cluster-domain: found {0:?}; allowed: a DNS name in lower case, as in cluster.local"
    )]
    ClusterDomain(String),
    /// What is to be logged is not understood.
    #[error("--log-level: {0}")]
    LogLevel(#[source] tracing_subscriber::filter::ParseError),
}

/// How workloads and the mesh are looked after.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Life of a workload's certificate.
    pub leaf_ttl: Duration,
    /// How long a workload is kept after its stream has ended.
    pub grace: Duration,
    /// How long after the start a workload is kept that is on record and has not come back.
    pub restart_grace: Duration,
    /// Ranges of workloads' own addresses.
    pub workload_ranges: Vec<Cidr>,
    /// Ranges of services' addresses.
    pub virtual_ranges: Vec<Cidr>,
}

impl ControlPlaneArgs {
    /// The arguments that say how workloads and the mesh are looked after, checked.
    pub fn settings(&self) -> Result<Settings, ArgumentError> {
        if !(LEAF_TTL_MIN..=LEAF_TTL_MAX).contains(&self.leaf_ttl) {
            return Err(ArgumentError::LeafTtl(self.leaf_ttl));
        }
        if self.grace < GRACE_MIN {
            return Err(ArgumentError::Grace(self.grace));
        }
        let restart_grace = self.restart_grace;
        let restart_grace = restart_grace.unwrap_or_else(|| RESTART_GRACE.max(self.grace));
        if restart_grace < self.grace {
            return Err(ArgumentError::RestartGrace {
                found: restart_grace,
                least: self.grace,
            });
        }
        let ranges = self.workload_range.iter().map(|text| {
            Cidr::parse(text).ok_or_else(|| ArgumentError::WorkloadRange(text.clone()))
        });
        Ok(Settings {
            leaf_ttl: self.leaf_ttl,
            grace: self.grace,
            restart_grace,
            workload_ranges: ranges.collect::<Result<_, _>>()?,
            virtual_ranges: virtual_ranges(),
        })
    }

    /// The trust domain, checked.
    pub fn trust_domain(&self) -> Result<TrustDomain, ArgumentError> {
        self.trust_domain
            .parse()
            .map_err(ArgumentError::TrustDomain)
    }
}

impl KubernetesArgs {
    /// What is asked for of the cluster, checked; nothing without `--kubernetes`.
    pub fn settings(&self) -> Result<Option<ClusterSettings>, ArgumentError> {
        if !self.enabled {
            return Ok(None);
        }
        let (namespace, domain) = (self.namespace.clone(), self.cluster_domain.clone());
        if check_label(&namespace).is_err() {
            return Err(ArgumentError::Namespace(namespace));
        }
        if check_subdomain(&domain).is_err() {
            return Err(ArgumentError::ClusterDomain(domain));
        }
        let mut injector = injector::Settings::new(&self.proxy_image, &namespace);
        injector.cluster_domain.clone_from(&domain);
        injector.exempt_namespaces = self.exempt_namespaces.iter().cloned().collect();
        injector.tracing = Tracing {
            otlp_endpoint: self.otlp_endpoint.clone(),
            sample_ratio: self.trace_sample_ratio,
        };
        injector.cni = self.cni;
        let ranges = self
            .service_ranges
            .iter()
            .map(|text| Cidr::parse(text).ok_or_else(|| ArgumentError::ServiceRange(text.clone())));
        Ok(Some(ClusterSettings {
            namespace,
            domain,
            service_ranges: ranges.collect::<Result<_, _>>()?,
            injector,
        }))
    }

    /// What may be evicted; nothing unless that was asked for.
    pub fn eviction(&self) -> Option<Eviction> {
        self.evict_pods_without_sidecar.then_some(Eviction {
            after: self.evict_after,
            per_minute: self.evictions_per_minute,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ControlPlaneArgs,
    }

    fn args(line: &[&str]) -> ControlPlaneArgs {
        let line = ["weft-control-plane"].iter().chain(line);
        Line::try_parse_from(line).unwrap().args
    }

    #[test]
    fn what_cannot_be_used_is_told_with_what_is_allowed() {
        let cases = [
            (
                ["--leaf-ttl", "9s"],
                "--leaf-ttl: found 9s; allowed: 10s to 168h",
            ),
            (
                ["--leaf-ttl", "169h"],
                "--leaf-ttl: found 608400s; allowed: 10s to 168h",
            ),
            (
                ["--grace", "5s"],
                "--grace: found 5s; allowed: 6s and more, twice the time in which sidecars reconnect",
            ),
            (
                ["--restart-grace", "9s"],
                "--restart-grace: found 9s; allowed: 10s, which is --grace, and more",
            ),
            (
                ["--workload-range", "10.0.0.0/8,10.1"],
                "--workload-range: found \"10.1\"; allowed: ADDRESS or ADDRESS/PREFIX",
            ),
        ];
        for (line, expected) in cases {
            let error = args(&line).settings().unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let error = args(&["--trust-domain", "Not One"]).trust_domain();
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("--trust-domain: "), "{error}");
    }

    #[test]
    fn after_a_restart_the_grace_is_never_shorter() {
        let check = |line: &[&str], expected: u64| {
            let settings = args(line).settings().unwrap();
            assert_eq!(settings.restart_grace, Duration::from_secs(expected));
        };
        check(&[], 90);
        check(&["--grace", "2m"], 120);
        check(&["--grace", "7s", "--restart-grace", "7s"], 7);
    }

    #[test]
    fn a_cluster_is_asked_for_and_named() {
        assert_eq!(args(&[]).kubernetes.settings().unwrap(), None);
        let settings = args(&["--kubernetes"]).kubernetes.settings().unwrap();
        let expected = ClusterSettings {
            namespace: "weft-system".to_owned(),
            domain: "cluster.local".to_owned(),
            service_ranges: Vec::new(),
            injector: injector::Settings::new(PROXY_IMAGE, "weft-system"),
        };
        assert_eq!(settings, Some(expected));
        let line = ["--kubernetes", "--exempt-namespace=a,b", "--cni"];
        let settings = args(&line).kubernetes.settings().unwrap().unwrap();
        let exempt: Vec<_> = settings.injector.exempt_namespaces.into_iter().collect();
        assert_eq!(
            (exempt, settings.injector.cni),
            (vec!["a".to_owned(), "b".to_owned()], true)
        );
        for wrong in [
            ["--kubernetes-namespace", "Weft.System"],
            ["--cluster-domain", "cluster local"],
            ["--cluster-domain", "Cluster.Local"],
        ] {
            let error = args(&[&["--kubernetes"], &wrong[..]].concat());
            let error = error.kubernetes.settings().unwrap_err().to_string();
            assert!(error.starts_with(wrong[0]), "{error}");
        }
    }

    #[test]
    fn what_is_left_out_can_be_used() {
        let args = args(&[]);
        let settings = args.settings().unwrap();
        assert_eq!(settings.leaf_ttl, Duration::from_secs(24 * 3600));
        assert_eq!(args.trust_domain().unwrap().to_string(), "weft.local");
    }
}
