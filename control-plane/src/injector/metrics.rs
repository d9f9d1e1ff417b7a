//! The annotations by which Prometheus finds a pod's metrics: they come to lead to the sidecar, which
//! tells the application's beside its own.

use std::collections::BTreeMap;

use http::uri::PathAndQuery;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::{Value, json};

use super::containers::OWN_PORTS;
use crate::kubernetes::names::{MERGED_METRICS_PATH, STATUS_PORT};

const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const SCHEME: &str = "prometheus.io/scheme";

/// Where Prometheus looks without an annotation, at the application as at the sidecar.
const DEFAULT_PATH: &str = "/metrics";
/// Longest path, bytes, as in the sidecar's configuration.
const PATH_MAX_BYTES: usize = 1024;

/// What is told to Prometheus of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scraped {
    /// What the pod says; the sidecar's metrics are not announced.
    AsItWas,
    /// The sidecar's metrics.
    Sidecar,
    /// The sidecar's and those of the application's target.
    Merged(Target),
}

/// Where an application tells its metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    port: u16,
    path: String,
    https: bool,
}

impl Target {
    /// As the sidecar is given it.
    pub(super) fn as_json(&self) -> String {
        let scheme = if self.https { "HTTPS" } else { "HTTP" };
        let Self { port, path, .. } = self;
        json!({"port": port, "path": path, "scheme": scheme}).to_string()
    }
}

impl Scraped {
    /// Reads what a pod says. Values that Prometheus could make nothing of are left to it.
    pub(super) fn read(
        annotations: &BTreeMap<String, String>,
        spec: &PodSpec,
        merging: bool,
    ) -> Self {
        let value = |name: &str| annotations.get(name).map(|value| value.trim());
        match value(SCRAPE) {
            None if value(PORT).is_none() => return Self::Sidecar,
            None | Some("true") if merging => {}
            None | Some(_) => return Self::AsItWas,
        }
        let port = match value(PORT) {
            Some(port) => port.parse().ok(),
            None => only_port(spec),
        };
        let is_own = |port: &u16| OWN_PORTS.contains(&i32::from(*port));
        let port = port.filter(|port| *port > 0 && !is_own(port));
        let path = value(PATH).unwrap_or(DEFAULT_PATH);
        let is_path = path.starts_with('/')
            && path.len() <= PATH_MAX_BYTES
            && path.parse::<PathAndQuery>().is_ok();
        let https = match value(SCHEME) {
            None | Some("http") => Some(false),
            Some("https") => Some(true),
            Some(_) => None,
        };
        match (port, https) {
            (Some(port), Some(https)) if is_path => Self::Merged(Target {
                port,
                path: path.to_owned(),
                https,
            }),
            (_, _) => Self::AsItWas,
        }
    }

    /// Whom the sidecar asks.
    pub(super) fn target(&self) -> Option<&Target> {
        match self {
            Self::Merged(target) => Some(target),
            Self::AsItWas | Self::Sidecar => None,
        }
    }

    /// The annotations that it takes.
    pub(super) fn annotations(&self) -> Vec<(String, String)> {
        let path = match self {
            Self::AsItWas => return Vec::new(),
            Self::Sidecar => DEFAULT_PATH,
            Self::Merged(_) => MERGED_METRICS_PATH,
        };
        let port = STATUS_PORT.to_string();
        let all = [
            (SCRAPE, "true"),
            (PORT, &port),
            (PATH, path),
            (SCHEME, "http"),
        ];
        all.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    /// The word in the annotation `weft-mesh.io/injected`.
    pub(super) fn as_json(&self) -> Value {
        json!(match self {
            Self::AsItWas => "as-it-was",
            Self::Sidecar => "sidecar",
            Self::Merged(_) => "merged",
        })
    }
}

/// The TCP port that a pod's containers declare, where they declare one.
fn only_port(spec: &PodSpec) -> Option<u16> {
    let ports = |container: &Container| container.ports.clone().unwrap_or_default();
    let mut ports = spec.containers.iter().flat_map(ports).filter(|port| {
        let protocol = port.protocol.as_deref();
        protocol.is_none_or(|protocol| protocol == "TCP")
    });
    let only = ports.next().filter(|_| ports.next().is_none())?;
    u16::try_from(only.container_port).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_of_prometheus() {
        let merged = |port, path: &str, https| {
            let path = path.to_owned();
            Scraped::Merged(Target { port, path, https })
        };
        let as_it_was = || Scraped::AsItWas;
        let own = STATUS_PORT.to_string();
        let long = format!("/{}", "x".repeat(PATH_MAX_BYTES));
        for (annotations, declared, expected) in [
            (vec![], &[8080][..], Scraped::Sidecar),
            (vec![(PATH, "/x")], &[], Scraped::Sidecar),
            (
                vec![(SCRAPE, "true"), (PORT, "9090")],
                &[],
                merged(9090, "/metrics", false),
            ),
            (
                vec![(PORT, " 9090 ")],
                &[80],
                merged(9090, "/metrics", false),
            ),
            (
                vec![
                    (SCRAPE, "true"),
                    (PORT, "1"),
                    (PATH, "/a?b=c"),
                    (SCHEME, "https"),
                ],
                &[],
                merged(1, "/a?b=c", true),
            ),
            (
                vec![(SCRAPE, "true")],
                &[8080],
                merged(8080, "/metrics", false),
            ),
            // Prometheus asks all of them.
            (vec![(SCRAPE, "true")], &[8080, 9090], as_it_was()),
            (vec![(SCRAPE, "true")], &[], as_it_was()),
            (vec![(SCRAPE, "false"), (PORT, "9090")], &[], as_it_was()),
            (vec![(SCRAPE, "yes"), (PORT, "9090")], &[], as_it_was()),
            (vec![(SCRAPE, "true"), (PORT, "http")], &[], as_it_was()),
            (vec![(SCRAPE, "true"), (PORT, "0")], &[], as_it_was()),
            (vec![(SCRAPE, "true"), (PORT, "65536")], &[], as_it_was()),
            (vec![(SCRAPE, "true"), (PORT, &own)], &[], as_it_was()),
            (vec![(SCRAPE, "true"), (PORT, "15000")], &[], as_it_was()),
            (vec![(PORT, "9090"), (PATH, "metrics")], &[], as_it_was()),
            (vec![(PORT, "9090"), (PATH, "/a b")], &[], as_it_was()),
            (vec![(PORT, "9090"), (PATH, &long)], &[], as_it_was()),
            (vec![(PORT, "9090"), (SCHEME, "ftp")], &[], as_it_was()),
        ] {
            let ports: Vec<Value> = declared
                .iter()
                .map(|p| json!({"containerPort": p}))
                .collect();
            let spec = json!({"containers": [{"name": "a", "ports": ports}]});
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let found = annotations.iter();
            let found = found.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let found: BTreeMap<String, String> = found.collect();
            assert_eq!(
                Scraped::read(&found, &spec, true),
                expected,
                "{annotations:?}"
            );
            let unmerged = Scraped::read(&found, &spec, false);
            let expected = match expected {
                Scraped::Merged(_) => Scraped::AsItWas,
                same @ (Scraped::AsItWas | Scraped::Sidecar) => same,
            };
            assert_eq!(unmerged, expected, "{annotations:?}");
        }
    }
}
