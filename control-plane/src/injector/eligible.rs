//! Whether a pod is to be injected.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::containers::{OWN_PORTS, VOLUMES};
use super::{Namespace, Settings, injected};
use crate::kubernetes::has_sidecar;
use crate::kubernetes::names::{
    DISABLED, ENABLED, INJECT, INJECTED, INTERCEPT_CONTAINER, PROXY_CONTAINER, PROXY_UID,
};

/// Namespaces of Kubernetes itself: what runs there must not wait for a mesh.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// The annotation of the API server's image of a static pod, which the kubelet runs from a file.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Why a pod is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkipReason {
    /// Neither the namespace nor the pod asks for a sidecar.
    NotAsked,
    /// The pod, or the namespace, forbids it.
    Disabled,
    /// It has been injected.
    AlreadyInjected,
    /// It uses the node's network, whose rules are not a pod's to change.
    HostNetwork,
    /// A kubelet runs it from a file; what the API server has is an image of it.
    StaticPod,
    /// The namespace is Kubernetes' own, the control plane's, or exempt.
    SystemNamespace,
}

impl SkipReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::NotAsked,
        Self::Disabled,
        Self::AlreadyInjected,
        Self::HostNetwork,
        Self::StaticPod,
        Self::SystemNamespace,
    ];

    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAsked => "not-asked",
            Self::Disabled => "disabled",
            Self::AlreadyInjected => "already-injected",
            Self::HostNetwork => "host-network",
            Self::StaticPod => "static-pod",
            Self::SystemNamespace => "system-namespace",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAsked => {
                "neither its namespace nor it has the label weft-mesh.io/inject: enabled"
            }
            Self::Disabled => "the label weft-mesh.io/inject: disabled",
            Self::AlreadyInjected => "it has the sidecar already",
            Self::HostNetwork => "it uses the host's network",
            Self::StaticPod => "it is a static pod",
            Self::SystemNamespace => {
                "its namespace is the system's or the control plane's, or exempt"
            }
        })
    }
}

/// What is to be done with a pod.
pub(super) enum Eligible {
    Inject,
    Skip(SkipReason),
    Refuse(Vec<String>),
}

/// What a label says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InjectLabel {
    Enabled,
    Disabled,
}

/// Whether pods of a namespace are left alone, whatever its labels say.
pub fn is_exempt(namespace: &str, settings: &Settings) -> bool {
    namespace == settings.own_namespace
        || SYSTEM_NAMESPACES.contains(&namespace)
        || settings.exempt_namespaces.contains(namespace)
}

pub(super) fn decide(
    pod: &Pod,
    spec: &PodSpec,
    namespace: Namespace<'_>,
    settings: &Settings,
) -> Eligible {
    let place = namespace.name.or(pod.metadata.namespace.as_deref());
    let place = place.unwrap_or("default");
    if is_exempt(place, settings) {
        return Eligible::Skip(SkipReason::SystemNamespace);
    }
    if is_static(pod) {
        return Eligible::Skip(SkipReason::StaticPod);
    }
    let own = match wish("the pod", pod.metadata.labels.as_ref()) {
        Ok(own) => own,
        Err(problem) => return Eligible::Refuse(vec![problem]),
    };
    let asked = match (own, namespace.labels) {
        (Some(own), _) => Some(own),
        (None, None) => Some(InjectLabel::Enabled),
        (None, labels @ Some(_)) => match wish(&format!("namespace {place}"), labels) {
            Ok(asked) => asked,
            Err(problem) => return Eligible::Refuse(vec![problem]),
        },
    };
    match asked {
        Some(InjectLabel::Enabled) => {}
        Some(InjectLabel::Disabled) => return Eligible::Skip(SkipReason::Disabled),
        None => return Eligible::Skip(SkipReason::NotAsked),
    }
    if has_sidecar(spec) && says_it_is_injected(pod, spec, settings) {
        let mut problems = injected::differences(spec);
        let others = containers(spec).filter(|container| !is_own(container));
        problems.extend(others.flat_map(|container| obstacles_of(spec, container)));
        return match problems.is_empty() {
            true => Eligible::Skip(SkipReason::AlreadyInjected),
            false => Eligible::Refuse(problems),
        };
    }
    if spec.host_network == Some(true) {
        if own == Some(InjectLabel::Enabled) {
            let problem = format!(
                "hostNetwork: true and the label {INJECT}: {ENABLED} exclude each other, because the \
                 node's own traffic would be redirected; allowed: one of them"
            );
            return Eligible::Refuse(vec![problem]);
        }
        return Eligible::Skip(SkipReason::HostNetwork);
    }
    let problems = obstacles(spec, settings);
    if problems.is_empty() {
        Eligible::Inject
    } else {
        Eligible::Refuse(problems)
    }
}

fn wish(
    of: &str,
    labels: Option<&BTreeMap<String, String>>,
) -> Result<Option<InjectLabel>, String> {
    match labels
        .and_then(|labels| labels.get(INJECT))
        .map(|value| &**value)
    {
        None => Ok(None),
        Some(ENABLED) => Ok(Some(InjectLabel::Enabled)),
        Some(DISABLED) => Ok(Some(InjectLabel::Disabled)),
        Some(found) => Err(format!(
            "label {INJECT} of {of}: found {found:?}; allowed: {ENABLED}, {DISABLED}"
        )),
    }
}

/// Whether the pod only shows one that a kubelet runs from a file: kubelets alone may make those
/// (NodeRestriction). `kubernetes.io/config.source` says nothing here: anybody may write it.
fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(MIRROR))
}

/// All containers, in the order in which they start.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

fn has_container(spec: &PodSpec, name: &str) -> bool {
    containers(spec).any(|container| container.name == name)
}

/// Whether a container has a name of the mesh's.
fn is_own(container: &Container) -> bool {
    [PROXY_CONTAINER, INTERCEPT_CONTAINER].contains(&container.name.as_str())
}

/// Whether the container that has the sidecar's name is to be the sidecar, possibly of another version.
fn says_it_is_injected(pod: &Pod, spec: &PodSpec, settings: &Settings) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let says_so = annotations.is_some_and(|annotations| annotations.contains_key(INJECTED));
    let has_image = containers(spec).any(|container| {
        let image = container.image.as_deref().unwrap_or_default();
        container.name == PROXY_CONTAINER && repository(image) == repository(&settings.image)
    });
    says_so || has_image
}

/// An image without tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        // The colon of a registry's port is followed by a path.
        Some((repository, tag)) if !tag.contains('/') => repository,
        Some(_) | None => image,
    }
}

/// What stands in the way of a sidecar.
fn obstacles(spec: &PodSpec, settings: &Settings) -> Vec<String> {
    if is_windows(spec) {
        return vec![format!(
            "it is for Windows, whose traffic the sidecar cannot redirect; allowed: Linux, or the label \
             {INJECT}: {DISABLED}"
        )];
    }
    let mut problems = Vec::new();
    for name in [PROXY_CONTAINER, INTERCEPT_CONTAINER] {
        if has_container(spec, name) {
            problems.push(format!(
                "container {name}: the name is the mesh's own; allowed: any other name"
            ));
        }
    }
    let volumes = spec.volumes.iter().flatten();
    problems.extend(
        volumes
            .filter(|volume| VOLUMES.contains(&&*volume.name))
            .map(|volume| {
                let name = &volume.name;
                format!("volume {name}: the name is the mesh's own; allowed: any other name")
            }),
    );
    for container in containers(spec) {
        problems.extend(obstacles_of(spec, container));
    }
    let ends = spec.restart_policy.as_deref().unwrap_or("Always") != "Always";
    if ends && !settings.cluster.has_native_sidecars() {
        problems.push(format!(
            "restartPolicy: the cluster is {}, where a sidecar keeps a pod that is to end (a Job) from \
             ending; allowed: Kubernetes 1.29, or the label {INJECT}: {DISABLED}",
            settings.cluster
        ));
    }
    problems
}

fn obstacles_of(spec: &PodSpec, container: &Container) -> Vec<String> {
    let name = &container.name;
    let mut problems = Vec::new();
    let own = container.security_context.as_ref();
    let of_pod = spec.security_context.as_ref();
    let user = own.and_then(|context| context.run_as_user);
    let user = user.or_else(|| of_pod.and_then(|context| context.run_as_user));
    if user == Some(PROXY_UID) {
        problems.push(format!(
            "container {name}: runAsUser {PROXY_UID} is the sidecar's, whose connections are not \
             redirected; allowed: any other user"
        ));
    }
    let ports = container.ports.iter().flatten();
    problems.extend(
        ports
            .filter(|port| OWN_PORTS.contains(&port.container_port))
            .map(|port| {
                let port = port.container_port;
                format!("container {name}: port {port} is the sidecar's; allowed: any other port")
            }),
    );
    problems
}

fn is_windows(spec: &PodSpec) -> bool {
    let named = spec.os.as_ref().is_some_and(|os| os.name == "windows");
    let selected = spec.node_selector.as_ref().is_some_and(|selector| {
        let of = |label: &str| selector.get(label).is_some_and(|os| os == "windows");
        of("kubernetes.io/os") || of("beta.kubernetes.io/os")
    });
    named || selected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_compared_without_tag_and_digest() {
        for (image, expected) in [
            ("weft-proxy", "weft-proxy"),
            ("weft-proxy:0.1.0", "weft-proxy"),
            ("registry:5000/weft-proxy", "registry:5000/weft-proxy"),
            ("registry:5000/weft-proxy:1", "registry:5000/weft-proxy"),
            ("a.example/weft-proxy:1@sha256:00", "a.example/weft-proxy"),
        ] {
            assert_eq!(repository(image), expected);
        }
    }
}
