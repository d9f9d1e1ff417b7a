//! `MeshConfig`: settings of the mesh as a whole.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_core::model::{Cidr, UnknownDestinations};
use weft_core::name::check_label;

use super::check::Check;
use super::key::ObjectName;
use super::kind::{API_VERSION, DocumentKind, LABEL};
use super::kinds::Document;

/// The namespace of the only one.
const NAMESPACE: &str = "weft-system";
/// The name of the only one.
const NAME: &str = "mesh";
/// Ranges of workloads' own addresses.
const RANGES_MAX: usize = 256;

/// `spec` of MeshConfig.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// What happens to destinations outside the mesh.
    #[serde(default)]
    #[schemars(with = "String")]
    pub unknown_destinations: UnknownDestinations,
    /// Ranges of workloads' own addresses, beside those the control plane was started with.
    #[serde(default)]
    pub workload_ranges: Vec<String>,
    /// What is different in single namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, NamespaceSpec>,
}

/// What is different in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSpec {
    /// What happens to destinations outside the mesh that its workloads call.
    #[schemars(with = "String")]
    pub unknown_destinations: UnknownDestinations,
}

impl MeshConfigSpec {
    /// What the only document of this kind goes by.
    pub(super) fn object_name() -> ObjectName {
        ObjectName {
            namespace: NAMESPACE.to_owned(),
            name: NAME.to_owned(),
        }
    }
}

impl DocumentKind for MeshConfigSpec {
    const NAME: &'static str = "MeshConfig";
    const PLURAL: &'static str = "meshconfigs";
    const VERSION: &'static str = API_VERSION;

    fn validate(&self, check: &mut Check<'_>, own: &ObjectName) {
        check_config(check, own, self);
    }

    fn into_document(self, _own: ObjectName) -> Option<Document> {
        Some(Document::MeshConfig(self))
    }
}

fn check_config(check: &mut Check<'_>, own: &ObjectName, spec: &MeshConfigSpec) {
    if (&*own.namespace, &*own.name) != (NAMESPACE, NAME) {
        let found = format!("{}/{}", own.namespace, own.name);
        let allowed = "weft-system/mesh: there is one MeshConfig";
        check.add("metadata", found, allowed);
    }
    for namespace in spec.namespaces.keys() {
        if check_label(namespace).is_err() {
            check.add("spec.namespaces", format!("{namespace:?}"), LABEL);
        }
    }
    let ranges = &spec.workload_ranges;
    if ranges.len() > RANGES_MAX {
        let found = format!("{} of them", ranges.len());
        check.add("spec.workloadRanges", found, "256 at most");
    }
    for (index, range) in ranges.iter().enumerate().take(RANGES_MAX) {
        let path = format!("spec.workloadRanges[{index}]");
        if Cidr::parse(range).is_none() {
            let allowed = "a range ADDRESS/PREFIX, as in 10.0.0.0/8";
            check.add(path, format!("{range:?}"), allowed);
        } else if ranges[..index].contains(range) {
            check.add(path, format!("{range} again"), "each range once");
        }
    }
}
