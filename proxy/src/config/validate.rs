//! What types cannot say: required fields, ranges, and fields that exclude each other.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use weft_core::name::{check_label, check_subdomain};
use weft_core::registration::{
    Exceeded, PORTS_MAX, SERVICES_MAX, ZONE_MAX_BYTES, check_count, check_labels, check_text,
};

use super::{MetricsTarget, ProxyConfig};

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The path of the field.
    pub field: String,
    /// What was found and what is allowed.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Most workers; beyond that it is a typing error.
const WORKERS_MAX: usize = 256;

/// Most probes of one pod.
const PROBES_MAX: usize = 256;

/// Longest path of the application's metrics, with its query, bytes.
const METRICS_PATH_MAX: usize = 1024;

/// The paths at which the kubelet asks the sidecar for the application's probes.
const PROBES_PATH: &str = "/app-health/";

/// Smallest head that every HTTP client may send (RFC 9110 section 4.1 asks for 8000 bytes of
/// URI).
const HEADER_BYTES_MIN: usize = 8 * 1024;

/// A post-quantum ClientHello has 1.8 KiB and must fit.
const DETECT_BYTES_MIN: usize = 4 * 1024;

/// HTTP/2's own default window, which a peer may use before it has read our settings (RFC 9113
/// section 6.9.2).
const WINDOW_MIN: usize = 64 * 1024 - 1;

/// RFC 9113 section 6.9.1.
const WINDOW_MAX: usize = (1 << 31) - 1;

/// Range of a workload's weight.
const WEIGHT_MAX: u32 = 1000;

/// Collected while looking.
struct Problems(Vec<Problem>);

impl Problems {
    fn check(&mut self, ok: bool, field: impl Into<String>, reason: impl FnOnce() -> String) {
        if !ok {
            self.0.push(Problem {
                field: field.into(),
                reason: reason(),
            });
        }
    }

    fn label(&mut self, field: &str, text: &str) {
        if let Err(error) = check_label(text) {
            self.check(false, field, || error.to_string());
        }
    }

    fn subdomain(&mut self, field: &str, text: &str) {
        if let Err(error) = check_subdomain(text) {
            self.check(false, field, || error.to_string());
        }
    }

    fn within(&mut self, checked: Result<(), Exceeded>) {
        if let Err(exceeded) = checked {
            let (found, allowed) = (exceeded.found, exceeded.allowed);
            self.check(false, exceeded.field, || {
                format!("found {found}; allowed: {allowed}")
            });
        }
    }

    fn range<T: PartialOrd + fmt::Display>(&mut self, field: &str, found: T, low: T, high: T) {
        self.check(found >= low && found <= high, field, || {
            format!("{found} is out of range: allowed is {low} to {high}")
        });
    }
}

impl ProxyConfig {
    /// Everything that keeps this from being used; empty when it is valid.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems(Vec::new());
        self.check_workload(&mut problems);
        self.check_control_plane(&mut problems);
        self.check_pod(&mut problems);
        self.check_metrics_target(&mut problems);
        self.check_sockets(&mut problems);
        self.check_timeouts(&mut problems);
        self.check_counts(&mut problems);
        self.check_limits(&mut problems);
        self.check_application(&mut problems);
        self.check_telemetry(&mut problems);
        problems.0
    }

    fn check_workload(&self, problems: &mut Problems) {
        let workload = &self.workload;
        if workload.name.is_empty() {
            problems.check(false, "workload.name", || {
                "missing: set it in the file, as WEFT_WORKLOAD_NAME or with --name".to_owned()
            });
        } else {
            problems.subdomain("workload.name", &workload.name);
        }
        problems.label("workload.namespace", &workload.namespace);
        if let Some(account) = &workload.service_account {
            problems.subdomain("workload.service_account", account);
        }
        problems.range("workload.weight", workload.weight, 1, WEIGHT_MAX);
        let (services, ports) = (workload.services.len(), workload.ports.len());
        problems.within(check_count("workload.services", services, SERVICES_MAX));
        problems.within(check_count("workload.ports", ports, PORTS_MAX));
        problems.within(check_labels("workload.labels", workload.labels.iter()));
        problems.within(check_text("workload.zone", &workload.zone, ZONE_MAX_BYTES));
        let mut seen = BTreeSet::new();
        for (i, port) in workload.ports.iter().enumerate() {
            let field = format!("workload.ports[{i}]");
            problems.check(port.port != 0, format!("{field}.port"), || {
                "0 is not a port of an application: allowed is 1 to 65535".to_owned()
            });
            problems.check(seen.insert(port.port), format!("{field}.port"), || {
                format!("{} is listed twice: each port once", port.port)
            });
            let advertised = port.advertise.is_none_or(|a| a.port() != 0);
            problems.check(advertised, format!("{field}.advertise"), || {
                "port 0 cannot be dialled: leave `advertise` out to announce what `listen` got"
                    .to_owned()
            });
        }
        problems.range("workers", self.workers, 0, WORKERS_MAX);
    }

    fn check_control_plane(&self, problems: &mut Problems) {
        let control_plane = &self.control_plane;
        let address = &control_plane.address;
        let good = address.rsplit_once(':').is_some_and(|(host, port)| {
            let host_ok = !host.is_empty()
                && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
            host_ok && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        problems.check(good, "control_plane.address", || {
            if address.is_empty() {
                "missing: set it in the file, as WEFT_CONTROL_PLANE_ADDRESS or with --control-plane"
                    .to_owned()
            } else {
                format!("{address:?} is not of the form HOST:PORT, as in control-plane:15010 or [::1]:15010")
            }
        });
        let both = control_plane.token.is_some() && control_plane.token_file.is_some();
        problems.check(!both, "control_plane.token", || {
            "set together with control_plane.token_file: one of them is allowed".to_owned()
        });
        problems.check(
            !control_plane.server_name.is_empty(),
            "control_plane.server_name",
            || "is empty: a DNS name is expected".to_owned(),
        );
        let state = &self.state_dir;
        problems.check(state.is_absolute(), "state_dir", || {
            format!("{:?} is relative: an absolute path is expected", state)
        });
    }

    /// What a sidecar in a pod is told has to come from the cluster, not from its configuration.
    fn check_pod(&self, problems: &mut Problems) {
        let control_plane = &self.control_plane;
        let roots = control_plane.roots_file.is_some();
        if self.is_in_pod() {
            let tokens = control_plane.token.is_some() || control_plane.token_file.is_some();
            let field = "control_plane.service_account_token_file";
            problems.check(!tokens, field, || {
                "set together with a join token: one of them is allowed".to_owned()
            });
            problems.check(roots, "control_plane.roots_file", || {
                format!("missing: {field} needs it, to know the control plane by")
            });
            let workload = &self.workload;
            problems.check(workload.services.is_empty(), "workload.services", || {
                "not allowed in a pod: the cluster's Services say what it serves".to_owned()
            });
            problems.check(workload.ports.is_empty(), "workload.ports", || {
                "not allowed in a pod: the cluster's Services say which ports it has".to_owned()
            });
        } else {
            problems.check(!roots, "control_plane.roots_file", || {
                "only allowed with control_plane.service_account_token_file: a join token says \
                 which root to trust"
                    .to_owned()
            });
        }
        let probes = &self.kubernetes.probes;
        let found = probes.len();
        problems.check(found <= PROBES_MAX, "kubernetes.probes", || {
            format!("found {found}; allowed: at most {PROBES_MAX}")
        });
        for (path, probe) in probes {
            let field = format!("kubernetes.probes.{path}");
            problems.check(path.starts_with(PROBES_PATH), field.as_str(), || {
                format!("is no path under {PROBES_PATH}")
            });
            problems.check(probe.action().is_some(), field, || {
                "one of httpGet, tcpSocket and grpc is expected".to_owned()
            });
        }
    }

    fn check_metrics_target(&self, problems: &mut Problems) {
        let Some(MetricsTarget { port, path, .. }) = &self.kubernetes.metrics else {
            return;
        };
        problems.check(*port != 0, "kubernetes.metrics.port", || {
            "found 0; allowed: 1 to 65535".to_owned()
        });
        let parsed = path.parse::<http::uri::PathAndQuery>();
        let is_path = path.starts_with('/') && path.len() <= METRICS_PATH_MAX && parsed.is_ok();
        problems.check(is_path, "kubernetes.metrics.path", || {
            let found: String = path.chars().take(80).collect();
            format!("found {found:?}; allowed: a path with at most {METRICS_PATH_MAX} bytes")
        });
    }

    fn check_sockets(&self, problems: &mut Problems) {
        let listeners = &self.listeners;
        let fixed = [
            ("listeners.outbound", listeners.outbound),
            ("listeners.inbound", listeners.inbound),
            ("listeners.dns", listeners.dns),
            ("listeners.admin", listeners.admin),
            ("listeners.metrics", listeners.metrics),
        ];
        let upstreams = self.upstreams.iter().enumerate();
        let upstreams = upstreams.map(|(i, u)| (format!("upstreams[{i}].listen"), Some(u.listen)));
        let ports = self.workload.ports.iter().enumerate();
        let ports = ports.map(|(i, p)| (format!("workload.ports[{i}].listen"), p.listen));
        let mut seen: Vec<(String, SocketAddr)> = Vec::new();
        let fixed = fixed.into_iter().map(|(name, a)| (name.to_owned(), a));
        for (field, address) in fixed.chain(upstreams).chain(ports) {
            let Some(address) = address.filter(|a| a.port() != 0) else {
                continue;
            };
            let clash = seen.iter().find(|(_, other)| overlap(*other, address));
            if let Some((other, _)) = clash {
                problems.check(false, field, || {
                    format!(
                        "{address} is taken by {other}: each socket needs an address of its own"
                    )
                });
            } else {
                seen.push((field, address));
            }
        }
        for (i, upstream) in self.upstreams.iter().enumerate() {
            problems.check(
                upstream.port != Some(0),
                format!("upstreams[{i}].port"),
                || "0 is not a port of a service: allowed is 1 to 65535".to_owned(),
            );
        }
    }

    fn check_timeouts(&self, problems: &mut Problems) {
        let timeouts = &self.timeouts;
        let needed = [
            ("timeouts.connect", timeouts.connect),
            ("timeouts.handshake", timeouts.handshake),
            ("timeouts.detect", timeouts.detect),
            ("timeouts.discovery_wait", timeouts.discovery_wait),
            ("timeouts.application_idle", timeouts.application_idle),
            ("timeouts.application_pending", timeouts.application_pending),
            ("timeouts.peer_idle", timeouts.peer_idle),
            ("tracing.export_interval", self.tracing.export_interval),
        ];
        for (field, found) in needed {
            problems.check(found > Duration::ZERO, field, || {
                "0s is not allowed here: it would fail everything at once".to_owned()
            });
        }
    }

    fn check_application(&self, problems: &mut Problems) {
        let limits = &self.limits;
        for (field, found) in [
            (
                "limits.max_application_connections",
                limits.max_application_connections,
            ),
            (
                "limits.max_application_pending",
                limits.max_application_pending,
            ),
        ] {
            problems.range(field, found, 1, 10_000_000);
        }
    }

    fn check_counts(&self, problems: &mut Problems) {
        let limits = &self.limits;
        let counts = [
            ("limits.max_connections", limits.max_connections),
            (
                "limits.max_unidentified_connections",
                limits.max_unidentified_connections,
            ),
            (
                "limits.max_plaintext_connections",
                limits.max_plaintext_connections,
            ),
            (
                "limits.max_plaintext_connections_per_client",
                limits.max_plaintext_connections_per_client,
            ),
            (
                "limits.max_connections_per_peer",
                limits.max_connections_per_peer,
            ),
            (
                "limits.max_unknown_destinations",
                limits.max_unknown_destinations,
            ),
            ("limits.log_queue", limits.log_queue),
            ("limits.listen_backlog", limits.listen_backlog as usize),
            (
                "limits.max_concurrent_streams",
                limits.max_concurrent_streams as usize,
            ),
            ("limits.max_headers", limits.max_headers),
            ("limits.max_destinations", limits.max_destinations),
            ("limits.max_metric_series", limits.max_metric_series),
            ("limits.access_log_queue", limits.access_log_queue),
            ("tracing.max_queued_spans", self.tracing.max_queued_spans),
        ];
        for (field, found) in counts {
            problems.range(field, found, 1, 10_000_000);
        }
    }

    fn check_limits(&self, problems: &mut Problems) {
        let limits = &self.limits;
        let sizes = [
            (
                "limits.max_header_bytes",
                limits.max_header_bytes,
                HEADER_BYTES_MIN,
                16 << 20,
            ),
            (
                "limits.detect_bytes",
                limits.detect_bytes,
                DETECT_BYTES_MIN,
                1 << 20,
            ),
            (
                "limits.relay_buffer",
                limits.relay_buffer,
                4 * 1024,
                16 << 20,
            ),
            (
                "limits.stream_window",
                limits.stream_window,
                WINDOW_MIN,
                WINDOW_MAX,
            ),
            (
                "limits.connection_window",
                limits.connection_window,
                WINDOW_MIN,
                WINDOW_MAX,
            ),
        ];
        for (field, found, low, high) in sizes {
            problems.check(found.bytes() >= low && found.bytes() <= high, field, || {
                format!("{found} is out of range: allowed is {low}B to {high}B")
            });
        }
        let stream = limits.stream_window;
        problems.check(
            stream <= limits.connection_window,
            "limits.stream_window",
            || {
                format!(
                    "{stream} is larger than limits.connection_window ({}): one stream would stall the others",
                    limits.connection_window
                )
            },
        );
    }

    fn check_telemetry(&self, problems: &mut Problems) {
        let ratio = self.tracing.sample_ratio;
        problems.range("tracing.sample_ratio", ratio, 0.0, 1.0);
        if let Some(endpoint) = &self.tracing.otlp_endpoint {
            let uri = endpoint.parse::<http::Uri>().ok();
            let good = uri.is_some_and(|uri| {
                uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty())
            });
            problems.check(good, "tracing.otlp_endpoint", || {
                format!("{endpoint:?} is not of the form http://HOST:PORT")
            });
        }
        let level = &self.log.level;
        if let Err(error) = level.parse::<tracing_subscriber::filter::Targets>() {
            problems.check(false, "log.level", || {
                format!(
                    "{level:?}: {error}; expected error, warn, info, debug, trace, or MODULE=LEVEL separated by commas"
                )
            });
        }
    }
}

/// Whether two sockets cannot both be opened.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_address = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && same_address
}
