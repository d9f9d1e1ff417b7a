//! Between documents and objects of the API.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::core::{ApiResource, DynamicObject, TypeMeta};
use serde_json::{Value, json};

use crate::kubernetes::watched::Entry;
use crate::model::ResourceKey;

/// An annotation of another program's that is not part of a document.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotations that are part of a document, bytes of names and values; all of those that have more
/// together are not (the API server allows 256 KiB).
const ANNOTATIONS_MAX_BYTES: usize = 4096;
/// The label of a record that names its table.
pub(super) const TABLE: &str = "weft-mesh.io/table";
/// The type of Secrets that are records.
const RECORD_TYPE: &str = "weft-mesh.io/record";
/// Name of a field manager, bytes (Kubernetes' own limit).
const MANAGER_MAX: usize = 128;

/// A document, and what else an object has to keep when it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Object {
    pub(super) document: Value,
    /// Of its JSON text, finalizers and owners included. Its status is not: one that is written would
    /// decide whether it is in force.
    pub(super) bytes: usize,
    /// Whether the object has annotations that are not part of the document. They are not kept here: a
    /// write reads them again, so that they stay.
    pub(super) has_hidden: bool,
    pub(super) generation: u64,
    /// Milliseconds since the Unix epoch.
    pub(super) created: i64,
    pub(super) changed: i64,
    pub(super) author: String,
    /// Finalizers and owners.
    pub(super) kept: ObjectMeta,
    /// Its status, of whichever form.
    pub(super) status: Value,
}

/// A document out of an object; `None` when it has no name, or is being deleted.
pub(super) fn read(kind: &str, object: DynamicObject) -> Option<(ResourceKey, Entry<Object>)> {
    let DynamicObject {
        types,
        metadata,
        mut data,
    } = object;
    if metadata.deletion_timestamp.is_some() {
        return None;
    }
    let key = ResourceKey {
        kind: kind.to_owned(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone()?,
    };
    let (annotations, hidden) = told_and_hidden(metadata.annotations.unwrap_or_default());
    let mut described = json!({"name": key.name, "namespace": key.namespace});
    for (field, pairs) in [
        ("labels", metadata.labels.unwrap_or_default()),
        ("annotations", annotations),
    ] {
        if !pairs.is_empty() {
            described[field] = json!(pairs);
        }
    }
    let mut document = match data.as_object_mut() {
        Some(fields) => Value::Object(std::mem::take(fields)),
        None => json!({}),
    };
    let status = document.as_object_mut();
    let status = status.and_then(|fields| fields.remove("status"));
    let status = status.unwrap_or_default();
    document["apiVersion"] = json!(types.map(|types| types.api_version));
    document["kind"] = json!(kind);
    document["metadata"] = described;
    let created = metadata.creation_timestamp.map_or(0, |time| millis(time.0));
    let last = last_change(metadata.managed_fields.unwrap_or_default());
    let (changed, author) = last.unwrap_or((created, String::new()));
    let kept = ObjectMeta {
        finalizers: metadata.finalizers,
        owner_references: metadata.owner_references,
        ..ObjectMeta::default()
    };
    let value = Object {
        bytes: bytes_of(&document) + bytes_of(&kept),
        has_hidden: !hidden.is_empty(),
        document,
        generation: metadata
            .generation
            .and_then(|n| n.try_into().ok())
            .unwrap_or(1),
        created,
        changed: changed.max(created),
        author,
        kept,
        status,
    };
    let entry = Entry {
        uid: metadata.uid.unwrap_or_default(),
        version: metadata.resource_version.unwrap_or_default(),
        value,
    };
    Some((key, entry))
}

/// Annotations that are part of the document, and those that are not.
fn told_and_hidden(
    mut annotations: BTreeMap<String, String>,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let last_applied = annotations.remove_entry(LAST_APPLIED);
    let all = annotations.iter();
    let bytes: usize = all.map(|(name, value)| name.len() + value.len()).sum();
    let (told, mut hidden) = match bytes > ANNOTATIONS_MAX_BYTES {
        true => (BTreeMap::new(), annotations),
        false => (annotations, BTreeMap::new()),
    };
    hidden.extend(last_applied);
    (told, hidden)
}

/// Annotations of an object that are not part of its document.
pub(super) fn hidden(object: DynamicObject) -> BTreeMap<String, String> {
    told_and_hidden(object.metadata.annotations.unwrap_or_default()).1
}

/// Bytes of the JSON text of something.
fn bytes_of(value: &impl serde::Serialize) -> usize {
    struct Counted(usize);
    impl std::io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    // Nothing here fails to be written as JSON; what did would count as far as it was.
    let _written = serde_json::to_writer(&mut counted, value);
    counted.0
}

/// When and by whom an object was changed last, its status aside.
fn last_change(managed: Vec<ManagedFieldsEntry>) -> Option<(i64, String)> {
    let spec = managed
        .into_iter()
        .filter(|entry| entry.subresource.as_ref().is_none_or(String::is_empty));
    let changes = spec.filter_map(|entry| Some((millis(entry.time?.0), entry.manager?)));
    changes.max_by_key(|(time, _)| *time)
}

fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// The object that makes a document what it is to be. `hidden` are the annotations that it has beside it.
pub(super) fn write(
    resource: &ApiResource,
    key: &ResourceKey,
    document: &Value,
    found: Option<&Entry<Object>>,
    hidden: BTreeMap<String, String>,
) -> DynamicObject {
    let pairs = |field: &str| -> BTreeMap<String, String> {
        let pairs = document["metadata"][field]
            .as_object()
            .into_iter()
            .flatten();
        let pairs =
            pairs.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        pairs.collect()
    };
    let kept = found
        .map(|found| found.value.kept.clone())
        .unwrap_or_default();
    let mut annotations = pairs("annotations");
    annotations.extend(hidden);
    let metadata = ObjectMeta {
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()),
        labels: Some(pairs("labels")),
        annotations: Some(annotations),
        finalizers: kept.finalizers,
        owner_references: kept.owner_references,
        uid: found.map(|found| found.uid.clone()),
        resource_version: found.map(|found| found.version.clone()),
        ..ObjectMeta::default()
    };
    let mut data = document.clone();
    if let Some(fields) = data.as_object_mut() {
        for field in ["apiVersion", "kind", "metadata", "status"] {
            fields.remove(field);
        }
    }
    DynamicObject {
        types: Some(TypeMeta {
            api_version: resource.api_version.clone(),
            kind: resource.kind.clone(),
        }),
        metadata,
        data,
    }
}

/// An author as the API server keeps it: the field manager of a write.
pub(super) fn manager(author: &str) -> String {
    let mut manager: String = author.chars().filter(|c| !c.is_control()).collect();
    while manager.len() > MANAGER_MAX {
        manager.pop();
    }
    match manager.is_empty() {
        true => crate::kubernetes::names::FIELD_MANAGER.to_owned(),
        false => manager,
    }
}

/// The name of a record's Secret: keys may have any characters.
pub(super) fn record_name(table: &str, key: &str) -> String {
    let mut digest = crate::sha256_hex(format!("{table}/{key}").as_bytes());
    digest.truncate(40);
    format!("weft-record-{digest}")
}

/// The Secret of a record.
pub(super) fn record(table: &str, key: &str, value: &[u8], version: Option<String>) -> Secret {
    let data = [("key", key.as_bytes()), ("value", value)];
    let data = data.map(|(name, bytes)| (name.to_owned(), ByteString(bytes.to_vec())));
    let labels = BTreeMap::from([(TABLE.to_owned(), table.to_owned())]);
    Secret {
        metadata: ObjectMeta {
            name: Some(record_name(table, key)),
            labels: Some(labels),
            resource_version: version,
            ..ObjectMeta::default()
        },
        type_: Some(RECORD_TYPE.to_owned()),
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    }
}

/// Table and key of a record, and its content.
pub(super) type Record = ((String, String), Entry<Vec<u8>>);

/// The record of a Secret. One without a key is named after the Secret, so that it is an unreadable
/// record and not none.
pub(super) fn read_record(secret: Secret) -> Option<Record> {
    let metadata = secret.metadata;
    let table = metadata.labels.unwrap_or_default().remove(TABLE)?;
    let mut data = secret.data.unwrap_or_default();
    let key = data.remove("key").map(|key| key.0);
    let key = key.and_then(|key| String::from_utf8(key).ok());
    let key = key.or(metadata.name)?;
    let value = data
        .remove("value")
        .map(|value| value.0)
        .unwrap_or_default();
    let entry = Entry {
        uid: metadata.uid.unwrap_or_default(),
        version: metadata.resource_version.unwrap_or_default(),
        value,
    };
    Some(((table, key), entry))
}
