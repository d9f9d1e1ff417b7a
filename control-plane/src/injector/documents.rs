//! Files: every pod, and every template of pods, in a stream of YAML documents.
//!
//! Documents keep their order, and those of other kinds what they say; comments are lost.

use serde_json::Value;

use super::{Namespace, Outcome, Refusal, Settings, SkipReason, inject};

/// Largest input, bytes.
pub const INPUT_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Lists within lists.
const DEPTH_MAX: usize = 4;
/// A line is not wrapped before, characters: it would have to be read again as it was.
const WRAP: usize = 1 << 20;

/// Where the template of a workload's pods is.
const TEMPLATE: &[&str] = &["spec", "template"];
/// Where a CronJob has it.
const CRON_JOB_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template"];

/// What became of one object.
#[derive(Debug, Clone, PartialEq)]
pub enum ObjectResult {
    /// It has a sidecar now.
    Injected,
    /// It is as it was.
    Skipped(SkipReason),
    /// It cannot have a sidecar.
    Refused(Refusal),
    /// Nothing in it makes pods.
    Other,
}

/// One object of an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// As in `Deployment shop/web`.
    pub name: String,
    /// What became of it.
    pub result: ObjectResult,
}

/// Documents after injection.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// In the order of the input.
    pub documents: Vec<Value>,
    /// Their objects, those of lists one by one.
    pub objects: Vec<Object>,
}

/// Why an input cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// Too large.
    #[error("found {0} bytes; allowed: 16 MiB")]
    TooLarge(usize),
    /// Neither YAML nor JSON.
    #[error("{0}; allowed: well-formed YAML or JSON")]
    Syntax(String),
}

/// Reads YAML documents, or one of JSON, as `kubectl` would, and injects what makes pods. `namespace`
/// is where objects go that name none.
pub fn inject_documents(
    text: &str,
    namespace: Option<&str>,
    settings: &Settings,
) -> Result<Injected, InputError> {
    if text.len() > INPUT_MAX_BYTES {
        return Err(InputError::TooLarge(text.len()));
    }
    // Kubernetes reads YAML 1.1, where 0444 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents = serde_saphyr::from_multiple_with_options(text, options);
    let mut documents: Vec<Value> = documents.map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        InputError::Syntax(first.strip_prefix("error: ").unwrap_or(first).to_owned())
    })?;
    documents.retain(|document| !document.is_null());
    let mut objects = Vec::new();
    for document in &mut documents {
        inject_object(document, namespace, settings, DEPTH_MAX, &mut objects);
    }
    Ok(Injected { documents, objects })
}

/// Documents as YAML that reads the same in versions 1.1 and 1.2.
pub fn to_yaml(documents: &[Value]) -> Result<String, serde_saphyr::SerializeError> {
    let mut text = String::new();
    for (index, document) in documents.iter().enumerate() {
        if index > 0 {
            text.push_str("---\n");
        }
        let options = serde_saphyr::ser_options! { folded_wrap_chars: WRAP };
        let one = serde_saphyr::to_string_with_options(document, options)?;
        text.push_str(one.trim_end());
        text.push('\n');
    }
    Ok(text)
}

fn inject_object(
    object: &mut Value,
    namespace: Option<&str>,
    settings: &Settings,
    depth: usize,
    objects: &mut Vec<Object>,
) {
    if let Some(items) = items(object)
        && depth > 0
    {
        for item in items {
            inject_object(item, namespace, settings, depth - 1, objects);
        }
        return;
    }
    let (name, place) = name_of(object, namespace);
    let result = match pods_of(object) {
        None => ObjectResult::Other,
        Some(pod) => inject_pod(pod, &name, place.as_deref(), settings),
    };
    objects.push(Object { name, result });
}

/// The items of a list.
fn items(object: &mut Value) -> Option<&mut Vec<Value>> {
    let is_list = object["kind"].as_str()?.ends_with("List");
    if !is_list {
        return None;
    }
    object.get_mut("items")?.as_array_mut()
}

/// An object's name in messages, and its namespace.
fn name_of(object: &Value, namespace: Option<&str>) -> (String, Option<String>) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let metadata = &object["metadata"];
    let kind = text(&object["kind"]).unwrap_or_else(|| "(no kind)".to_owned());
    let place = text(&metadata["namespace"]).or_else(|| namespace.map(str::to_owned));
    let generated = text(&metadata["generateName"]).map(|prefix| format!("{prefix}*"));
    let name = text(&metadata["name"]).or(generated);
    let name = name.unwrap_or_else(|| "(no name)".to_owned());
    let full = match &place {
        Some(place) => format!("{kind} {place}/{name}"),
        None => format!("{kind} {name}"),
    };
    (full, place)
}

/// The pod that an object is, or the template of those that it makes.
fn pods_of(object: &mut Value) -> Option<&mut Value> {
    let group = object["apiVersion"].as_str()?.split('/').next()?.to_owned();
    let path = match (&*group, object["kind"].as_str()?) {
        ("v1", "Pod") => return Some(object),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("v1", "ReplicationController")
        | ("batch", "Job") => TEMPLATE,
        ("batch", "CronJob") => CRON_JOB_TEMPLATE,
        _ => return None,
    };
    let mut place = object;
    for field in path {
        place = place.get_mut(field)?;
    }
    Some(place)
}

fn inject_pod(
    pod: &mut Value,
    name: &str,
    place: Option<&str>,
    settings: &Settings,
) -> ObjectResult {
    let named = Namespace {
        name: place,
        labels: None,
    };
    let refused = |problems: Vec<String>| {
        ObjectResult::Refused(Refusal {
            pod: name.to_owned(),
            problems,
        })
    };
    match inject(pod, named, settings) {
        Outcome::Skip(reason) => ObjectResult::Skipped(reason),
        Outcome::Refuse(refusal) => refused(refusal.problems),
        Outcome::Patch(patch) => match json_patch::patch(pod, &patch) {
            Ok(()) => ObjectResult::Injected,
            Err(error) => refused(vec![format!("it cannot be edited: {error}")]),
        },
    }
}
