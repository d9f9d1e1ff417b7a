//! Labels and annotations of documents, within the limits of Kubernetes.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use weft_core::label::{KEY, VALUE, is_key, is_value};

use super::check::Check;

/// All annotations of a document with their keys, bytes (Kubernetes, "Annotations").
const ANNOTATIONS_MAX: usize = 256 * 1024;
/// Of what is refused, so many characters are shown.
const FOUND_MAX: usize = 80;

/// What users attach to a document beside its spec. It changes nothing that sidecars are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// What documents are selected by.
    pub labels: BTreeMap<String, String>,
    /// Free text for people and programs.
    pub annotations: BTreeMap<String, String>,
}

impl Labels {
    /// Adds everything that is wrong with them to `check`.
    pub(super) fn check(&self, check: &mut Check<'_>) {
        for (key, value) in &self.labels {
            if !is_key(key) {
                check.add("metadata.labels", shown(key), KEY);
            }
            if !is_value(value) {
                let path = format!("metadata.labels[{:?}]", cut(key));
                check.add(path, shown(value), VALUE);
            }
        }
        for key in self.annotations.keys() {
            // Kubernetes compares them in lower case, which admits prefixes with capital letters.
            if !is_key(&key.to_ascii_lowercase()) {
                check.add("metadata.annotations", shown(key), KEY);
            }
        }
        let pairs = self.annotations.iter();
        let bytes: usize = pairs.map(|(key, value)| key.len() + value.len()).sum();
        if bytes > ANNOTATIONS_MAX {
            let allowed = "262144 bytes at most, keys and values together";
            check.add("metadata.annotations", format!("{bytes} bytes"), allowed);
        }
    }

    /// Writes them into a document's `metadata`; what is empty is left out.
    pub(super) fn write(&self, metadata: &mut Map<String, Value>) {
        for (field, pairs) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if !pairs.is_empty() {
                let pairs = pairs.iter();
                let pairs = pairs.map(|(key, value)| (key.clone(), Value::from(value.as_str())));
                metadata.insert(field.to_owned(), Value::Object(pairs.collect()));
            }
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(FOUND_MAX).collect()
}

fn shown(text: &str) -> String {
    format!("{:?}", cut(text))
}

#[cfg(test)]
mod tests {
    use crate::model::{Document, Problem, read};

    const SERVICE: &str = "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\n\
                           spec: {ports: [{port: 80}]}\n";

    fn service(metadata: &str) -> String {
        format!("{SERVICE}metadata: {{name: web, namespace: shop, {metadata}}}\n")
    }

    #[track_caller]
    fn problems(metadata: &str) -> Vec<Problem> {
        read("-", &service(metadata)).unwrap_err()
    }

    #[test]
    fn labels_and_annotations_are_kept() {
        let text = service(
            "labels: {app.kubernetes.io/name: web, version: v1.10_b, empty: ''}, \
             annotations: {Example.com/note: 'any text: ☃'}",
        );
        let placed = read("-", &text).unwrap().remove(0);
        assert_eq!(placed.labels.labels["app.kubernetes.io/name"], "web");
        let value = placed.to_value();
        let metadata = serde_json::json!({
            "name": "web",
            "namespace": "shop",
            "labels": {"app.kubernetes.io/name": "web", "version": "v1.10_b", "empty": ""},
            "annotations": {"Example.com/note": "any text: ☃"},
        });
        assert_eq!(value["metadata"], metadata);
        // What sidecars are told comes from the document, which has none of it.
        let plain = read("-", &service("")).unwrap().remove(0);
        assert_eq!(Document::from_value(value).unwrap(), plain.value);
        assert_eq!(plain.to_value(), plain.value.to_value());
    }

    #[test]
    fn what_kubernetes_refuses_is_refused() {
        let long = "a".repeat(64);
        let prefix = "a".repeat(254);
        let keys = [
            "''",
            "-a",
            "a-",
            "a b",
            "a/b/c",
            "/a",
            "a/",
            "A.com/b",
            long.as_str(),
            &format!("{prefix}/a"),
        ];
        for key in keys {
            let found = problems(&format!("labels: {{{key}: x}}"));
            assert_eq!(found.len(), 1, "{key}: {found:?}");
            assert_eq!(found[0].path, "metadata.labels", "{key}");
        }
        for value in ["-a", "a b", "a/b", "ä", long.as_str()] {
            let found = problems(&format!("labels: {{k: {value}}}"));
            assert_eq!(found[0].path, "metadata.labels[\"k\"]", "{value}");
        }
        let found = problems("annotations: {'a b': x}");
        assert_eq!(found[0].path, "metadata.annotations");
        let most = 256 * 1024 - 1;
        assert!(
            read(
                "-",
                &service(&format!("annotations: {{k: {}}}", "x".repeat(most)))
            )
            .is_ok()
        );
        let found = problems(&format!("annotations: {{k: {}}}", "x".repeat(most + 1)));
        assert_eq!(found[0].found, "262145 bytes");
        // A number is no text.
        let found = problems("labels: {version: 1.10}");
        assert_eq!(found[0].path, "metadata.labels.version");
    }
}
