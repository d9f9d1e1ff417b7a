//! The application's probes: the kubelet asks the sidecar, which asks the application.
//!
//! Under strict mutual TLS a kubelet, which has no certificate of the mesh, does not get through to
//! the application.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::{Value, json};

use crate::kubernetes::names::{PROBES_PATH, STATUS_PORT};

/// All probes of a pod as the sidecar is given them, bytes: the kernel takes no variable of 128 KiB.
const PROBES_MAX_BYTES: usize = 64 * 1024;

/// Most probes of a pod, as in the sidecar's configuration.
const PROBES_MAX: usize = 256;

/// Fields of containers with an action that the kubelet carries out, and the last part of its path
/// at the sidecar.
const PROBES: [(&str, &str); 3] = [
    ("livenessProbe", "livez"),
    ("readinessProbe", "readyz"),
    ("startupProbe", "startupz"),
];
/// Actions that go over the network.
const ACTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
/// Kubernetes' default.
const TIMEOUT_SECONDS: i64 = 1;

/// What is to be written where, and what was there.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    /// Places in the pod, and their new values.
    pub(super) places: Vec<(Vec<String>, Value)>,
    /// The original actions, by the path under which the sidecar carries them out.
    by_path: BTreeMap<String, Value>,
}

impl Rewritten {
    /// The original actions as the sidecar is given them; none where nothing was rewritten.
    pub(super) fn originals(&self) -> Option<String> {
        (!self.by_path.is_empty()).then(|| json!(self.by_path).to_string())
    }

    /// The paths at the sidecar.
    pub(super) fn paths(&self) -> Vec<&str> {
        self.by_path.keys().map(String::as_str).collect()
    }
}

/// Rewrites the actions of a pod's containers. Ports that nobody redirects keep theirs.
pub(super) fn rewrite(
    spec: &PodSpec,
    pod: &Value,
    excluded: &[u16],
) -> Result<Rewritten, Vec<String>> {
    let mut rewritten = Rewritten::default();
    let mut problems = Vec::new();
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for (list, containers) in [("initContainers", init), ("containers", &spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            // Others end before anybody probes them.
            if list == "initContainers" && container.restart_policy.as_deref() != Some("Always") {
                continue;
            }
            let index = index.to_string();
            let found = &pod["spec"][list][index.parse::<usize>().unwrap_or_default()];
            let place = ["spec", list, &index].map(str::to_owned);
            let rewriter = Rewriter {
                container,
                excluded,
            };
            for (field, last) in PROBES {
                let mut place = place.to_vec();
                place.push(field.to_owned());
                let done = rewriter.field(&found[field], field, last, place, &mut rewritten);
                problems.extend(done.err());
            }
        }
    }
    let many = rewritten.by_path.len();
    if many > PROBES_MAX {
        problems.push(format!(
            "probes: found {many} that go over the network; allowed: {PROBES_MAX}"
        ));
    }
    let bytes = rewritten.originals().map_or(0, |text| text.len());
    if bytes > PROBES_MAX_BYTES {
        problems.push(format!(
            "probes: found {bytes} bytes in all; allowed: {PROBES_MAX_BYTES}"
        ));
    }
    if problems.is_empty() {
        Ok(rewritten)
    } else {
        Err(problems)
    }
}

struct Rewriter<'a> {
    container: &'a Container,
    excluded: &'a [u16],
}

impl Rewriter<'_> {
    fn field(
        &self,
        found: &Value,
        field: &str,
        last: &str,
        place: Vec<String>,
        to: &mut Rewritten,
    ) -> Result<(), String> {
        let action = ACTIONS.iter().find(|action| found[**action].is_object());
        let Some(action) = action else {
            return Ok(());
        };
        let mut original = found[*action].clone();
        let host = original["host"].as_str().unwrap_or_default();
        // It asks somebody else than the pod.
        if !host.is_empty() {
            return Ok(());
        }
        let port = self.port(&original["port"]).map_err(|(found, allowed)| {
            let name = &self.container.name;
            format!("container {name}: {field}.{action}.port: found {found}; allowed: {allowed}")
        })?;
        if self.excluded.contains(&port) {
            return Ok(());
        }
        original["port"] = json!(port);
        let timeout = found["timeoutSeconds"].as_i64().unwrap_or(TIMEOUT_SECONDS);
        let path = format!("{PROBES_PATH}/{}/{last}", self.container.name);
        let mut replaced = found.clone();
        if let Some(fields) = replaced.as_object_mut() {
            fields.retain(|name, _| !ACTIONS.contains(&name.as_str()));
        }
        replaced["httpGet"] = json!({"path": path, "port": STATUS_PORT});
        to.places.push((place, replaced));
        let kept = json!({*action: original, "timeoutSeconds": timeout});
        to.by_path.insert(path, kept);
        Ok(())
    }

    /// A port by its number, or by its name among those of the container; else what was found and what
    /// is allowed.
    fn port(&self, port: &Value) -> Result<u16, (String, String)> {
        let ports = self.container.ports.as_deref().unwrap_or_default();
        let named = |name: &str| {
            let port = ports.iter().find(|port| port.name.as_deref() == Some(name));
            port.map(|port| i64::from(port.container_port))
        };
        let number = match port.as_str() {
            Some(name) => named(name).or_else(|| name.parse().ok()),
            None => port.as_i64(),
        };
        let number = number.and_then(|number| u16::try_from(number).ok());
        number.filter(|number| *number > 0).ok_or_else(|| {
            let names = ports.iter().filter_map(|port| port.name.as_deref());
            let names: Vec<&str> = names.collect();
            let or_names = match names.is_empty() {
                true => " (the container's ports have no names)".to_owned(),
                false => format!(", {}", names.join(", ")),
            };
            (port.to_string(), format!("1 to 65535{or_names}"))
        })
    }
}
