//! The injector: what is added to a pod so that it is in the mesh.
//!
//! [`inject`] is pure: a pod and the settings in, a JSON patch (RFC 6902), a reason to leave the pod
//! alone, or a refusal out. The webhook ([`serve`]) and `weft inject` ([`documents`]) both call it. It
//! is idempotent: a pod that has been injected is left alone.
//!
//! Whoever may create a pod writes every field that is read here, so nothing in a pod is believed
//! beyond that pod.

mod annotations;
mod containers;
pub mod documents;
mod edits;
mod eligible;
mod injected;
mod membership;
mod metrics;
mod probes;
mod quantity;
pub mod serve;
mod tracing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use json_patch::Patch;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde::Deserialize as _;
use serde_json::{Value, json};
use weft_core::name::CLUSTER_DOMAIN;

use crate::kubernetes::names::{
    CONTROL_PLANE, INJECTED, INTERCEPT_CONTAINER, INTERCEPTION, NAMESPACE, PROXY_CONTAINER,
};

pub use self::tracing::{
    ENDPOINT_ALLOWED, SAMPLE_RATIO, SAMPLE_RATIO_ALLOWED, Tracing, endpoint as otlp_endpoint,
    sample_ratio,
};
pub use annotations::{ANNOTATIONS, Annotation};
pub use eligible::{SkipReason, is_exempt};
pub use membership::{Membership, SidecarWish, asks, membership, wish};

use annotations::Overrides;
use edits::{EditError, Edits};
use eligible::Eligible;
use metrics::Scraped;
use probes::Rewritten;

/// The annotation of Kubernetes that names the container which `kubectl logs` and `exec` mean.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// How long an application without a `preStop` of its own goes on accepting connections after its
/// pod was told to stop, seconds: callers learn in this time that it leaves.
const PRE_STOP_SLEEP_SECONDS: u32 = 5;
/// The grace period of a pod that names none, seconds (Kubernetes' default).
const GRACE_SECONDS: i64 = 30;

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is put into the mesh.
    Patch(Patch),
    /// It is left as it is.
    Skip(SkipReason),
    /// It must not be created.
    Refuse(Refusal),
}

/// Longest message about a pod, bytes: it goes to whoever creates the pod, and to the log.
const MESSAGE_MAX_BYTES: usize = 4096;

/// A text about a pod for people: bounded, and without characters that control a terminal or the
/// direction of what follows.
fn shown(text: &str) -> String {
    let end = text.floor_char_boundary(MESSAGE_MAX_BYTES);
    let harmless = |c: char| match c {
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    let mut shown: String = text[..end].chars().map(harmless).collect();
    if end < text.len() {
        shown.push_str(&format!("… ({} more bytes)", text.len() - end));
    }
    shown
}

/// Why a pod is refused: every problem, each with its place, what was found and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(&format!("weft: {pod} cannot be put into the mesh: {}", problems.join("; "))))]
pub struct Refusal {
    /// The pod, as NAMESPACE/NAME.
    pub pod: String,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// The version of the cluster's API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterVersion {
    /// Always 1 today.
    pub major: u32,
    /// 35 in 1.35.
    pub minor: u32,
}

impl ClusterVersion {
    /// The newest that this release was tried with.
    pub const NEWEST: Self = Self::new(1, 35);
    /// The first whose API server takes native sidecars without a feature gate (KEP-753).
    const NATIVE_SIDECARS: Self = Self::new(1, 29);
    /// The first whose kubelets know `preStop: sleep` without a feature gate (KEP-3960).
    const SLEEP: Self = Self::new(1, 30);

    /// MAJOR.MINOR.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Reads MAJOR and MINOR as an API server says them: the latter may end in `+`.
    pub fn parse(major: &str, minor: &str) -> Option<Self> {
        let minor = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
        Some(Self::new(major.parse().ok()?, minor.parse().ok()?))
    }

    /// Whether the sidecar can be an init container that goes on running.
    pub fn has_native_sidecars(self) -> bool {
        self >= Self::NATIVE_SIDECARS
    }
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What the sidecar's container gets, unless the pod's annotations say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Processors that are reserved.
    pub cpu_request: String,
    /// Memory that is reserved.
    pub memory_request: String,
    /// Processors at most; unlimited without.
    pub cpu_limit: Option<String>,
    /// Memory at most; unlimited without.
    pub memory_limit: Option<String>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_request: "20m".to_owned(),
            memory_request: "32Mi".to_owned(),
            cpu_limit: None,
            memory_limit: None,
        }
    }
}

/// What is the same for all pods of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The sidecar's image.
    pub image: String,
    /// `HOST:PORT` of discovery and identity.
    pub control_plane: String,
    /// The namespace of the control plane, whose pods are never injected.
    pub own_namespace: String,
    /// Other namespaces whose pods are never injected, beside those of Kubernetes itself: the API server does
    /// not ask about them.
    pub exempt_namespaces: BTreeSet<String>,
    /// The cluster's version.
    pub cluster: ClusterVersion,
    /// The domain of the cluster's DNS names.
    pub cluster_domain: String,
    /// What the sidecar's container gets.
    pub resources: Resources,
    /// Where spans go, and how many.
    pub tracing: Tracing,
    /// A CNI plugin redirects the pods' traffic, and no container of them.
    pub cni: bool,
    /// Worker threads of a sidecar without a CPU limit.
    pub workers: u16,
    /// What is told in the annotation `weft-mesh.io/injected`.
    pub version: String,
}

impl Settings {
    /// Those of a control plane that is installed as the chart does it.
    pub fn new(image: &str, own_namespace: &str) -> Self {
        Self {
            image: image.to_owned(),
            control_plane: format!("{CONTROL_PLANE}.{own_namespace}.svc:15010"),
            own_namespace: own_namespace.to_owned(),
            exempt_namespaces: BTreeSet::new(),
            cluster: ClusterVersion::NEWEST,
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            resources: Resources::default(),
            tracing: Tracing::default(),
            cni: false,
            workers: 2,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new("weft-proxy", NAMESPACE)
    }
}

/// The namespace that a pod is created in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Namespace<'a> {
    /// Its name; the pod's own, else `default`, without.
    pub name: Option<&'a str>,
    /// Its labels. Without them whoever asks has decided that pods of it are injected.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

/// Decides what becomes of a pod (the JSON of a `v1.Pod`, or of a pod template). The patch keeps
/// fields that this version does not know.
pub fn inject(pod: &Value, namespace: Namespace<'_>, settings: &Settings) -> Outcome {
    let refuse = |name: String, problems: Vec<String>| {
        Outcome::Refuse(Refusal {
            pod: name,
            problems,
        })
    };
    let typed = match Pod::deserialize(pod) {
        Ok(typed) => typed,
        Err(error) => {
            let problem = format!("it is not a pod as Kubernetes knows it: {error}");
            return refuse(display_name(&Pod::default(), namespace), vec![problem]);
        }
    };
    let name = display_name(&typed, namespace);
    let spec = typed.spec.clone().unwrap_or_default();
    match eligible::decide(&typed, &spec, namespace, settings) {
        Eligible::Skip(reason) => return Outcome::Skip(reason),
        Eligible::Refuse(problems) => return refuse(name, problems),
        Eligible::Inject => {}
    }
    let empty = BTreeMap::new();
    let found = typed.metadata.annotations.as_ref().unwrap_or(&empty);
    let overrides = match Overrides::read(found, settings) {
        Ok(overrides) => overrides,
        Err(problems) => return refuse(name, problems),
    };
    let injection = Injection {
        annotations: found,
        service: tracing::service_name(&typed, &spec),
        spec: &spec,
        settings,
        overrides,
    };
    match injection.patch(pod) {
        Ok(patch) => Outcome::Patch(patch),
        Err(problems) => refuse(name, problems),
    }
}

/// A pod in messages: one that is named by the API server only later shows what its name begins with.
fn display_name(pod: &Pod, namespace: Namespace<'_>) -> String {
    let metadata = &pod.metadata;
    let place = namespace.name.or(metadata.namespace.as_deref());
    let name = match (&metadata.name, &metadata.generate_name) {
        (Some(name), _) => name.clone(),
        (None, Some(prefix)) => format!("{prefix}*"),
        (None, None) => "(no name)".to_owned(),
    };
    format!("pod {}/{name}", place.unwrap_or("default"))
}

/// A pod that is to be injected.
struct Injection<'a> {
    annotations: &'a BTreeMap<String, String>,
    /// What traces call it.
    service: Option<String>,
    spec: &'a PodSpec,
    settings: &'a Settings,
    overrides: Overrides,
}

impl Injection<'_> {
    fn patch(&self, pod: &Value) -> Result<Patch, Vec<String>> {
        let sleep = self.pre_stop_sleep().map_err(|problem| vec![problem])?;
        let excluded = &self.overrides.exclude_inbound_ports;
        let rewritten = probes::rewrite(self.spec, pod, excluded)?;
        self.edit(pod, &rewritten, sleep)
            .map_err(|error| vec![error.to_string()])
    }

    fn edit(
        &self,
        pod: &Value,
        rewritten: &Rewritten,
        sleep: Option<u32>,
    ) -> Result<Patch, EditError> {
        let mut edits = Edits::new(pod);
        // By the places that containers have in the pod as it came.
        for (place, value) in &rewritten.places {
            edits.set(place, value.clone())?;
        }
        if let Some(seconds) = sleep {
            self.hold_while_callers_learn(&mut edits, seconds)?;
        }
        let merging = self.overrides.metrics_merging;
        let scraped = Scraped::read(self.annotations, self.spec, merging);
        let told = containers::Told {
            probes: rewritten.originals(),
            metrics: scraped.target().map(metrics::Target::as_json),
            pause: PRE_STOP_SLEEP_SECONDS.min(self.grace_seconds() / 2),
            service: self.service.clone(),
        };
        let proxy = containers::proxy(self.settings, &self.overrides, &told);
        let intercept = containers::intercept(self.settings, &self.overrides);
        edits.ensure_array(&["spec", "initContainers"])?;
        if self.settings.cluster.has_native_sidecars() {
            edits.insert(&["spec", "initContainers", "0"], intercept)?;
            edits.insert(&["spec", "initContainers", "1"], proxy)?;
        } else {
            // Init containers run before the sidecar does: their traffic is redirected by nobody.
            edits.insert(&["spec", "initContainers", "-"], intercept)?;
            edits.insert(&["spec", "containers", "0"], proxy)?;
        }
        edits.ensure_array(&["spec", "volumes"])?;
        for volume in containers::volumes() {
            edits.insert(&["spec", "volumes", "-"], volume)?;
        }
        edits.ensure_object(&["metadata"])?;
        edits.ensure_object(&["metadata", "annotations"])?;
        for (name, value) in self.new_annotations(rewritten, &scraped, sleep) {
            edits.set(
                &["metadata", "annotations", &name].map(str::to_owned),
                json!(value),
            )?;
        }
        Ok(edits.into_patch())
    }

    /// Containers without a `preStop` of their own sleep, so that they accept connections until
    /// callers have heard that the pod leaves.
    fn hold_while_callers_learn(&self, edits: &mut Edits, seconds: u32) -> Result<(), EditError> {
        for (index, container) in self.spec.containers.iter().enumerate() {
            if !is_without_pre_stop(container) {
                continue;
            }
            let index = index.to_string();
            edits.ensure_object(&["spec", "containers", &index, "lifecycle"])?;
            let place = ["spec", "containers", &index, "lifecycle", "preStop"].map(str::to_owned);
            edits.set(&place, json!({"sleep": {"seconds": seconds}}))?;
        }
        Ok(())
    }

    /// How long the pod has to stop.
    fn grace_seconds(&self) -> u32 {
        let grace = self.spec.termination_grace_period_seconds;
        u32::try_from(grace.unwrap_or(GRACE_SECONDS)).unwrap_or(0)
    }

    /// How long that sleep is; none where the cluster has no such thing or the grace period is too
    /// short for it.
    fn pre_stop_sleep(&self) -> Result<Option<u32>, String> {
        let grace = self.grace_seconds();
        let can = self.settings.cluster >= ClusterVersion::SLEEP;
        match self.overrides.pre_stop_sleep {
            Some(0) => Ok(None),
            Some(_) if !can => Err(format!(
                "annotation weft-mesh.io/pre-stop-sleep: the cluster is {}; `preStop: sleep` needs {}: \
                 allowed: 0",
                self.settings.cluster,
                ClusterVersion::SLEEP
            )),
            Some(seconds) if seconds > grace => Err(format!(
                "annotation weft-mesh.io/pre-stop-sleep: found {seconds}s; allowed: at most the pod's \
                 terminationGracePeriodSeconds, {grace}"
            )),
            Some(seconds) => Ok(Some(seconds)),
            None if !can => Ok(None),
            // The application needs the rest of the time to end.
            None => Ok(Some(PRE_STOP_SLEEP_SECONDS.min(grace / 2)).filter(|seconds| *seconds > 0)),
        }
    }

    fn new_annotations(
        &self,
        rewritten: &Rewritten,
        scraped: &Scraped,
        sleep: Option<u32>,
    ) -> BTreeMap<String, String> {
        let native = self.settings.cluster.has_native_sidecars();
        let summary = json!({
            "version": self.settings.version,
            "sidecar": if native { "native" } else { "container" },
            "containers": [INTERCEPT_CONTAINER, PROXY_CONTAINER],
            "metrics": scraped.as_json(),
            "probes": rewritten.paths(),
            "preStopSleepSeconds": sleep.unwrap_or(0),
        });
        let mut annotations = BTreeMap::from([(INJECTED.to_owned(), summary.to_string())]);
        annotations.extend(scraped.annotations());
        if self.settings.cni {
            let arguments = json!(containers::intercept_arguments(&self.overrides));
            annotations.insert(INTERCEPTION.to_owned(), arguments.to_string());
        }
        let first = self.spec.containers.first();
        if let (false, Some(first)) = (native, first)
            && !self.annotations.contains_key(DEFAULT_CONTAINER)
        {
            annotations.insert(DEFAULT_CONTAINER.to_owned(), first.name.clone());
        }
        annotations
    }
}

fn is_without_pre_stop(container: &Container) -> bool {
    let lifecycle = container.lifecycle.as_ref();
    lifecycle.is_none_or(|lifecycle| lifecycle.pre_stop.is_none())
}

#[cfg(test)]
mod tests;
