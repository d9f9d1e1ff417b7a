//! Where the sidecars of pods send their spans.

use std::collections::BTreeMap;

use http::Uri;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// What the sidecar is told of tracing.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// `http://HOST:PORT` of an OTLP/gRPC collector; nothing is traced without one.
    pub otlp_endpoint: Option<String>,
    /// The share of the traces begun at a pod that are recorded, 0 to 1.
    pub sample_ratio: f64,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            sample_ratio: SAMPLE_RATIO,
        }
    }
}

/// The share of traces that are recorded by default, that of the sidecar's configuration.
pub const SAMPLE_RATIO: f64 = 0.01;
/// What [`endpoint`] takes.
pub const ENDPOINT_ALLOWED: &str = "http://HOST:PORT of an OTLP/gRPC collector";
/// What [`sample_ratio`] takes.
pub const SAMPLE_RATIO_ALLOWED: &str = "0 to 1, as in 0.05";

/// Longest endpoint, bytes.
const ENDPOINT_MAX_BYTES: usize = 300;
/// Who says how OpenTelemetry names a pod's service, the strongest first: the annotation, and labels
/// (semantic conventions, "Service attributes" of Kubernetes).
const NAME_ANNOTATION: &str = "resource.opentelemetry.io/service.name";
const NAME_LABELS: [&str; 2] = ["app.kubernetes.io/name", "app"];
/// Longest name of a service, bytes.
const NAME_MAX_BYTES: usize = 255;

/// Reads the endpoint of a collector.
pub fn endpoint(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority()?;
    let is_endpoint = uri.scheme_str() == Some("http")
        && !authority.host().is_empty()
        && authority.port_u16().is_some_and(|port| port > 0)
        && !authority.as_str().contains('@')
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
        && text.len() <= ENDPOINT_MAX_BYTES;
    is_endpoint.then(|| text.trim_end_matches('/').to_owned())
}

/// Reads a share.
pub fn sample_ratio(text: &str) -> Option<f64> {
    let ratio: f64 = text.parse().ok()?;
    (0.0..=1.0).contains(&ratio).then_some(ratio)
}

/// What traces call the service that a pod is of: its own name has a suffix by which every pod would
/// be a service.
pub(super) fn service_name(pod: &Pod, spec: &PodSpec) -> Option<String> {
    let of = |map: Option<&BTreeMap<String, String>>, name: &str| map?.get(name).cloned();
    let annotated = of(pod.metadata.annotations.as_ref(), NAME_ANNOTATION);
    let labels = pod.metadata.labels.as_ref();
    let mut names = annotated
        .into_iter()
        .chain(NAME_LABELS.into_iter().filter_map(|name| of(labels, name)))
        .chain(
            spec.containers
                .iter()
                .map(|container| container.name.clone()),
        );
    names.find(|name| !name.is_empty() && name.len() <= NAME_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_of_collectors() {
        for (text, expected) in [
            (
                "http://jaeger.tracing:4317",
                Some("http://jaeger.tracing:4317"),
            ),
            ("http://10.0.0.1:4317/", Some("http://10.0.0.1:4317")),
            ("http://[fd00::1]:4317", Some("http://[fd00::1]:4317")),
            ("jaeger:4317", None),
            ("http://jaeger", None),
            ("https://jaeger:4317", None),
            ("grpc://jaeger:4317", None),
            ("http://:4317", None),
            ("http://jaeger:0", None),
            ("http://user@jaeger:4317", None),
            ("http://jaeger:4317/v1/traces", None),
            ("http://jaeger:4317?x", None),
            ("http://jaeger:4317 --x", None),
            ("", None),
        ] {
            assert_eq!(endpoint(text).as_deref(), expected, "{text}");
        }
        assert_eq!(endpoint(&format!("http://{}:1", "x".repeat(300))), None);
    }

    #[test]
    fn shares_of_traces() {
        for (text, expected) in [
            ("0", Some(0.0)),
            ("1", Some(1.0)),
            ("0.05", Some(0.05)),
            ("1.1", None),
            ("-0.1", None),
            ("NaN", None),
            ("5%", None),
            ("", None),
        ] {
            assert_eq!(sample_ratio(text), expected, "{text}");
        }
    }

    #[test]
    fn names_of_services_in_traces() {
        let long = "x".repeat(300);
        for (annotation, labels, expected) in [
            (None, json!({}), "first"),
            (None, json!({"app": "shop"}), "shop"),
            (
                None,
                json!({"app": "shop", "app.kubernetes.io/name": "web"}),
                "web",
            ),
            (Some("told"), json!({"app": "shop"}), "told"),
            (Some(""), json!({"app": "shop"}), "shop"),
            (Some(&*long), json!({}), "first"),
        ] {
            let annotations = annotation.map(|value| json!({NAME_ANNOTATION: value}));
            let pod = json!({
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {"containers": [{"name": "first"}, {"name": "second"}]},
            });
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let spec = pod.spec.clone().unwrap();
            assert_eq!(service_name(&pod, &spec).as_deref(), Some(expected));
        }
    }
}
