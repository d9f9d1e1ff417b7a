//! What is installed in a cluster, and how `weft install` brings it there.
//!
//! The chart `deploy/helm/weft` is the only source: it is part of the program, and rendered here
//! without helm, whose template language is understood as far as the chart uses it. So there is no
//! second description of the same objects that could differ for values nobody has compared. A test
//! compares what helm makes of the chart.

mod apply;
mod schema;
mod template;
mod unenforced;
mod values;

use crate::injector::ClusterVersion;
use crate::kubernetes::told;
use std::collections::BTreeMap;

use serde_json::{Value, json};

pub use apply::{Applied, ApplyOptions, apply, uninstall};
pub use template::TemplateError;
pub use unenforced::unenforced;
pub use values::SetAs;

use template::Templates;

/// Why something cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file of values is not YAML.
    #[error("{file}: {message}")]
    File {
        /// The file.
        file: String,
        /// Where and what.
        message: String,
    },
    /// Values that the chart's schema does not allow.
    #[error("values: {}", .0.join("\nvalues: "))]
    Values(Vec<String>),
    /// The namespace's name is none.
    #[error("--namespace: found {0:?}; allowed: lower-case letters, digits and -, 63 at most")]
    Namespace(String),
    /// The chart itself.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A template's outcome is no object of the cluster.
    #[error("chart: {0}")]
    Object(String),
    /// The cluster's API.
    #[error("{what}: {}{}", told(.source), hint(.source))]
    Cluster {
        /// What was done.
        what: String,
        /// What the API said.
        source: Box<kube::Error>,
    },
    /// Something that is to be changed is not ours.
    #[error("{0}")]
    Foreign(String),
    /// The cluster has documents that this version would not enforce as they are.
    #[error("this version would not enforce, and what they protect would be unprotected: {}; use a \
             version that knows them, or change or delete these documents yourself; --accept-unenforced \
             goes on without them", .0.join(", "))]
    Unenforced(Vec<String>),
    /// It was applied, and is not well.
    #[error("{0}")]
    NotReady(String),
}

/// What to do about an answer of the API.
fn hint(error: &kube::Error) -> &'static str {
    let kube::Error::Api(status) = error else {
        return "";
    };
    match status.code {
        409 => "; --force-conflicts takes these fields over",
        403 => "; installing needs the rights of cluster-admin",
        _ => "",
    }
}

macro_rules! chart {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../../../deploy/helm/weft/", $name)),
        )
    };
}

/// The templates in the order in which their objects are applied.
const TEMPLATES: [(&str, &str); 11] = [
    chart!("templates/_helpers.tpl"),
    chart!("templates/crds.yaml"),
    chart!("templates/serviceaccount.yaml"),
    chart!("templates/rbac.yaml"),
    chart!("templates/networkpolicy.yaml"),
    chart!("templates/poddisruptionbudget.yaml"),
    chart!("templates/service.yaml"),
    chart!("templates/cni.yaml"),
    chart!("templates/deployment.yaml"),
    chart!("templates/servicemonitor.yaml"),
    chart!("templates/webhook.yaml"),
];
/// In the chart it is a link, which helm follows.
const FILES: [(&str, &str); 1] = [(
    "files/crds.yaml",
    include_str!("../../../deploy/kubernetes/crds.yaml"),
)];
/// What helm makes before an upgrade and deletes after it, and nobody else.
const HOOKS: [(&str, &str); 2] = [
    chart!("templates/_helpers.tpl"),
    chart!("templates/upgrade-check.yaml"),
];
const CHART: &str = include_str!("../../../deploy/helm/weft/Chart.yaml");
const VALUES: &str = include_str!("../../../deploy/helm/weft/values.yaml");
const SCHEMA: &str = include_str!("../../../deploy/helm/weft/values.schema.json");

/// The name that `helm install` gets in the guide, and the only one of ours.
const RELEASE: &str = "weft";
/// The label `app.kubernetes.io/managed-by` of what `weft install` made.
pub const MANAGED_BY: &str = "weft";

/// The chart's default values with files and `--set` over them, checked against its schema.
pub fn values(files: &[(String, String)], sets: &[(String, SetAs)]) -> Result<Value, InstallError> {
    let mut all = read("values.yaml", VALUES)?;
    for (name, text) in files {
        let over = read(name, text)?;
        // An empty file says nothing.
        if !over.is_null() {
            values::merge(&mut all, over);
        }
    }
    for (text, kind) in sets {
        values::merge(&mut all, values::set(text, *kind)?);
    }
    let schema = serde_json::from_str(SCHEMA)
        .map_err(|error| InstallError::Object(format!("values.schema.json: {error}")))?;
    let problems = schema::problems(&schema, &all);
    if !problems.is_empty() {
        return Err(InstallError::Values(problems));
    }
    Ok(all)
}

/// The values with which the chart makes every object that it can make.
fn everything() -> Result<Value, InstallError> {
    let on = [
        "podDisruptionBudget",
        "networkPolicy",
        "serviceMonitor",
        "injector",
        "cni",
    ];
    let sets: Vec<_> = on
        .iter()
        .map(|name| (format!("{name}.enabled=true"), SetAs::Guessed))
        .collect();
    values(&[], &sets)
}

/// What [`uninstall`] looks for and deletes where it does not purge, in that order.
pub fn deleted(namespace: &str) -> Result<Vec<Value>, InstallError> {
    let mut all = objects(&everything()?, namespace, MANAGED_BY)?;
    all.retain(|object| object["kind"] != "CustomResourceDefinition");
    all.reverse();
    Ok(all)
}

/// The chart's objects for these values, in the order in which they are applied, for a cluster of the
/// newest version that this release knows.
pub fn objects(
    values: &Value,
    namespace: &str,
    managed_by: &str,
) -> Result<Vec<Value>, InstallError> {
    objects_for(ClusterVersion::NEWEST, values, namespace, managed_by)
}

/// The same for a cluster of another version.
pub fn objects_for(
    cluster: ClusterVersion,
    values: &Value,
    namespace: &str,
    managed_by: &str,
) -> Result<Vec<Value>, InstallError> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: char| c == '-';
    if !(1..=63).contains(&namespace.len())
        || !namespace.chars().all(good)
        || namespace.starts_with(edge)
        || namespace.ends_with(edge)
    {
        return Err(InstallError::Namespace(namespace.to_owned()));
    }
    rendered(&TEMPLATES, cluster, values, namespace, managed_by)
}

/// The objects of helm's hook before an upgrade, which `weft install` neither makes nor needs.
pub(crate) fn hook_objects(values: &Value, namespace: &str) -> Result<Vec<Value>, InstallError> {
    rendered(&HOOKS, ClusterVersion::NEWEST, values, namespace, "Helm")
}

fn rendered(
    templates: &[(&str, &str)],
    cluster: ClusterVersion,
    values: &Value,
    namespace: &str,
    managed_by: &str,
) -> Result<Vec<Value>, InstallError> {
    let chart = read("Chart.yaml", CHART)?;
    let context = json!({
        "Values": values,
        "Capabilities": {"KubeVersion": {"Version": format!("v{cluster}.0")}},
        "Release": {"Name": RELEASE, "Namespace": namespace, "Service": managed_by},
        "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
    });
    let templates = Templates::parse(templates, &FILES)?;
    let mut objects = Vec::new();
    for (file, text) in templates.render(&context)? {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
            .map_err(|error| InstallError::Object(format!("{file}: {error}")))?;
        objects.extend(documents.into_iter().filter(|document| !document.is_null()));
    }
    Ok(objects)
}

/// The namespace, which helm makes by `--create-namespace`.
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// Objects as a stream of YAML documents, for `kubectl apply -f -`.
pub fn to_yaml(objects: &[Value]) -> Result<String, InstallError> {
    let mut text = String::new();
    for object in objects {
        let document = serde_saphyr::to_string(object)
            .map_err(|error| InstallError::Object(error.to_string()))?;
        text.push_str("---\n");
        text.push_str(document.trim_end());
        text.push('\n');
    }
    Ok(text)
}

fn read(file: &str, text: &str) -> Result<Value, InstallError> {
    serde_saphyr::from_str(text).map_err(|error| InstallError::File {
        file: file.to_owned(),
        message: error.to_string(),
    })
}

/// What an object is called in messages: `Deployment/weft-control-plane`.
fn described(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{}/{}",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}

/// Objects by what they are called, to compare sets of them.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    objects
        .into_iter()
        .map(|object| (described(&object), object))
        .collect()
}

#[cfg(test)]
mod tests;
