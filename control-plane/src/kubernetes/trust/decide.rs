//! What has to be written, from what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, TestOperation};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use serde_json::json;

use crate::kubernetes::names::{
    ENABLED, INJECT, TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY, WEBHOOK,
};

/// What of a namespace matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NamespaceFacts {
    /// It has the label that asks for sidecars.
    pub asks: bool,
    /// It is being deleted, and nothing new can be made in it.
    pub ends: bool,
}

impl From<&Namespace> for NamespaceFacts {
    fn from(namespace: &Namespace) -> Self {
        let labels = namespace.metadata.labels.as_ref();
        let label = labels.and_then(|labels| labels.get(INJECT));
        Self {
            asks: label.is_some_and(|value| value == ENABLED),
            ends: namespace.metadata.deletion_timestamp.is_some(),
        }
    }
}

/// What the cluster looked like last.
#[derive(Debug, Default)]
pub struct Observed {
    /// Every namespace.
    pub namespaces: BTreeMap<String, NamespaceFacts>,
    /// Pods with a sidecar, by namespace.
    pub injected: BTreeMap<String, BTreeSet<String>>,
    /// The ConfigMaps with the roots, by namespace.
    pub maps: BTreeMap<String, ConfigMap>,
    /// The webhook's configuration, where the injector is installed.
    pub webhook: Option<MutatingWebhookConfiguration>,
}

/// A write.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Makes the ConfigMap in a namespace.
    Create(String),
    /// Replaces it, unless it is another than this resource version.
    Replace(String, String),
    /// Removes it, unless it is another than this resource version: it says that it cannot be changed.
    Remove(String, String),
    /// Changes the webhook's configuration, unless it was changed meanwhile.
    PatchWebhook(Patch),
}

/// What a step writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Written {
    /// The ConfigMap of a namespace.
    Map(String),
    /// The webhook's configuration.
    Webhook,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(namespace) => write!(f, "config map {namespace}/{TRUST_BUNDLE_CONFIG_MAP}"),
            Self::Webhook => write!(f, "webhook {WEBHOOK}"),
        }
    }
}

impl Step {
    /// What it writes.
    pub fn writes(&self) -> Written {
        match self {
            Self::Create(namespace) | Self::Replace(namespace, _) | Self::Remove(namespace, _) => {
                Written::Map(namespace.clone())
            }
            Self::PatchWebhook(_) => Written::Webhook,
        }
    }
}

/// What brings the cluster to where it should be: `roots` (PEM) everywhere.
pub fn decide(observed: &Observed, roots: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = observed
        .namespaces
        .iter()
        .filter(|(name, facts)| is_wanted(observed, name, **facts))
        .filter_map(|(name, _)| step(name, observed.maps.get(name), roots))
        .collect();
    let webhook = observed.webhook.as_ref();
    steps.extend(webhook.and_then(|webhook| webhook_step(webhook, roots)));
    steps
}

/// A map that is there is kept: pods may hang on it.
fn is_wanted(observed: &Observed, name: &str, facts: NamespaceFacts) -> bool {
    let has_pods = observed.injected.contains_key(name);
    let has_map = observed.maps.contains_key(name);
    !facts.ends && (facts.asks || has_pods || has_map)
}

fn step(name: &str, map: Option<&ConfigMap>, roots: &str) -> Option<Step> {
    let name = name.to_owned();
    let Some(map) = map else {
        return Some(Step::Create(name));
    };
    let found = map
        .data
        .as_ref()
        .and_then(|data| data.get(TRUST_BUNDLE_KEY));
    if found.is_some_and(|found| found == roots) {
        return None;
    }
    let version = map.metadata.resource_version.clone().unwrap_or_default();
    match (map.immutable, &map.metadata.deletion_timestamp) {
        // It goes already, when whoever holds its finalizers lets it.
        (Some(true), Some(_)) => None,
        (Some(true), None) => Some(Step::Remove(name, version)),
        (Some(false) | None, _) => Some(Step::Replace(name, version)),
    }
}

/// Only `caBundle` is ours; whose the webhooks are, where they lead and what they select is the chart's.
fn webhook_step(webhook: &MutatingWebhookConfiguration, roots: &str) -> Option<Step> {
    let bundle = ByteString(roots.as_bytes().to_vec());
    let stale: Vec<usize> = webhook
        .webhooks
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, webhook)| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
        .map(|(index, _)| index)
        .collect();
    if stale.is_empty() {
        return None;
    }
    // The places are those of the version that was seen.
    let unchanged = PatchOperation::Test(TestOperation {
        path: PointerBuf::from_tokens(["metadata", "resourceVersion"]),
        value: json!(webhook.metadata.resource_version),
    });
    let mut operations = vec![unchanged];
    operations.extend(stale.into_iter().map(|index| {
        let index = index.to_string();
        PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "clientConfig", "caBundle"]),
            value: json!(bundle),
        })
    }));
    Some(Step::PatchWebhook(Patch(operations)))
}
