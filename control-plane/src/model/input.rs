//! Inputs: every document of a file, or everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;
use weft_core::name::check_label;

use super::check::{Check, Problem};
use super::key::ObjectName;
use super::kind::{Kind, LABEL};
use super::kinds::{Document, kind_names};
use super::metadata::Labels;

/// Largest input, bytes.
pub const INPUT_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Documents in one input.
const DOCUMENTS_MAX: usize = 1000;
/// Of a name that is refused, so many characters are shown.
const FOUND_MAX: usize = 80;

/// A document with where it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// The file, or `-`.
    pub source_name: String,
    /// Which document in it, from 1.
    pub document: usize,
    /// Its labels and annotations.
    pub labels: Labels,
    /// The document.
    pub value: Document,
    /// Its `metadata.resourceVersion`: the revision that it was read at.
    pub read_at: Option<u64>,
}

impl Placed {
    /// The document with its labels and annotations, as it is stored and shown.
    pub fn to_value(&self) -> Value {
        let mut value = self.value.to_value();
        if let Some(metadata) = value["metadata"].as_object_mut() {
            self.labels.write(metadata);
        }
        value
    }
}

/// Reads every document of an input: all are good, or everything that is wrong is said.
pub fn read(source: &str, text: &str) -> Result<Vec<Placed>, Vec<Problem>> {
    let whole = |found: String, allowed: &str| {
        vec![Problem {
            source_name: source.to_owned(),
            document: 1,
            path: "(input)".to_owned(),
            found,
            allowed: allowed.to_owned(),
        }]
    };
    if text.len() > INPUT_MAX_BYTES {
        return Err(whole(format!("{} bytes", text.len()), "4 MiB at most"));
    }
    let values: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let first = first.strip_prefix("error: ").unwrap_or(first);
        match first.split_once(", set DuplicateKeyPolicy") {
            Some((first, _advice_to_programmers)) => whole(first.to_owned(), "each field once"),
            None => whole(first.to_owned(), "well-formed YAML or JSON"),
        }
    })?;
    let values: Vec<Value> = values.into_iter().filter(|v| !v.is_null()).collect();
    if values.is_empty() || values.len() > DOCUMENTS_MAX {
        return Err(whole(format!("{} documents", values.len()), "1 to 1000"));
    }
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    let mut keys = BTreeSet::new();
    for (index, value) in values.into_iter().enumerate() {
        match read_one(source, index + 1, &value) {
            Ok(read) => {
                let Read {
                    document,
                    labels,
                    read_at,
                } = read;
                let key = document.key();
                if keys.insert(key.clone()) {
                    documents.push(Placed {
                        source_name: source.to_owned(),
                        document: index + 1,
                        labels,
                        value: document,
                        read_at,
                    });
                } else {
                    problems.push(Problem {
                        source_name: source.to_owned(),
                        document: index + 1,
                        path: "metadata.name".to_owned(),
                        found: format!("{key} a second time"),
                        allowed: "each resource once".to_owned(),
                    });
                }
            }
            Err(more) => problems.extend(more),
        }
    }
    if problems.is_empty() {
        Ok(documents)
    } else {
        Err(problems)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Value,
    #[serde(default, rename = "status")]
    _status: Value,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default = "default_namespace")]
    namespace: String,
    #[serde(default, rename = "resourceVersion")]
    resource_version: Value,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

fn read_one(source: &str, document: usize, value: &Value) -> Result<Read, Vec<Problem>> {
    checked(Check::new(source, document), value)
}

/// A document with what its metadata says beside its name.
pub(super) struct Read {
    pub(super) document: Document,
    labels: Labels,
    /// The revision that it was read at.
    read_at: Option<u64>,
}

/// Reads one document.
pub(super) fn checked(mut check: Check<'_>, value: &Value) -> Result<Read, Vec<Problem>> {
    let read = parse(&mut check, value);
    match read {
        Some(read) if check.problems.is_empty() => Ok(read),
        Some(_) | None => Err(check.problems),
    }
}

fn parse(check: &mut Check<'_>, value: &Value) -> Option<Read> {
    let envelope: Envelope = check.typed("", value)?;
    let Some(kind) = Kind::find(&envelope.kind) else {
        check.add("kind", format!("{:?}", envelope.kind), kind_names());
        return None;
    };
    if !kind
        .versions()
        .any(|version| version == envelope.api_version)
    {
        let versions: Vec<&str> = kind.versions().collect();
        check.add("apiVersion", &envelope.api_version, versions.join(", "));
    }
    let metadata = envelope.metadata;
    if check_label(&metadata.namespace).is_err() {
        let found: String = metadata.namespace.chars().take(FOUND_MAX).collect();
        check.add("metadata.namespace", format!("{found:?}"), LABEL);
    }
    if !kind.names.admits(&metadata.name) {
        let found: String = metadata.name.chars().take(FOUND_MAX).collect();
        check.add("metadata.name", format!("{found:?}"), kind.names.allowed());
    }
    let labels = Labels {
        labels: metadata.labels,
        annotations: metadata.annotations,
    };
    labels.check(check);
    let read_at = revision(check, &metadata.resource_version);
    let own = ObjectName {
        namespace: metadata.namespace,
        name: metadata.name,
    };
    let document = kind.read(check, own, &envelope.spec)?;
    Some(Read {
        document,
        labels,
        read_at,
    })
}

/// Kubernetes writes it as text; people write numbers.
fn revision(check: &mut Check<'_>, found: &Value) -> Option<u64> {
    let revision = match found.as_str() {
        Some(text) => text.parse().ok(),
        None => found.as_u64(),
    };
    if revision.is_none() && !found.is_null() {
        let found: String = found.to_string().chars().take(FOUND_MAX).collect();
        let allowed = "the revision that `weft get` shows, as in \"17\"";
        check.add("metadata.resourceVersion", found, allowed);
    }
    revision
}
