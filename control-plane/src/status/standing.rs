//! How a document of the cluster stands: accepted, its references, and whether proxies have it.

use serde_json::{Value, json};

use super::concerned::concerned;
use super::programmed::programmed;
use super::{Condition, DocumentStatus, PROGRAMMED};
use crate::compile::{Dangling, Snapshot};
use crate::model::{API_GROUP, Document, GATEWAY_GROUP, ResourceKey, RouteKind};
use crate::publish::{Progress, RefusedBy};
use crate::store::Subject;

/// Why a reference to another namespace cannot be permitted.
const NO_GRANTS: &str =
    "the cluster does not serve ReferenceGrant: install the Gateway API's definitions";

/// How a document stands. `progress` is that of the revision in which it was seen to change, `elsewhere` is
/// another control plane that refuses it.
pub(super) fn standing(
    snapshot: &Snapshot,
    subject: &Subject,
    progress: &Progress,
    elsewhere: Option<&RefusedBy>,
) -> DocumentStatus {
    if let Some((word, reason)) = &subject.refused {
        let refused = |kind| condition(kind, word, Err(reason.clone()));
        let refused = vec![refused("Accepted"), refused(PROGRAMMED)];
        return shaped(subject, |_parent| refused.clone());
    }
    let rejects_none = progress.rejected.is_empty();
    let progress = concerned(subject, progress);
    let is_otherwise = rejects_none && !progress.rejected.is_empty();
    let key = &subject.key;
    let mut programmed = programmed(&key.namespace, subject.revision, &progress, elsewhere);
    // What was in force before something else of the same resource was rejected still is.
    programmed.stays_true |= is_otherwise && elsewhere.is_none();
    if RouteKind::parse(&key.kind).is_some() {
        return route(snapshot, subject, &programmed);
    }
    let document = Document::from_value(subject.document.clone()).ok();
    let dangling = document.map(|document| snapshot.dangling(&document));
    let dangling = dangling.unwrap_or_default();
    let mut conditions = vec![of("Accepted", "Accepted", dangling.iter())];
    conditions.push(programmed);
    shaped(subject, |_parent| conditions.clone())
}

fn route(snapshot: &Snapshot, subject: &Subject, programmed: &Condition) -> DocumentStatus {
    let status = snapshot.route_status(&subject.key).unwrap_or_default();
    let mut resolved = of("ResolvedRefs", "ResolvedRefs", status.unresolved.iter());
    let forbidden = |one: &Dangling| one.reason == "RefNotPermitted";
    if subject.definitions.has_no_grants && status.unresolved.iter().any(forbidden) {
        add(&mut resolved.message, NO_GRANTS);
    }
    shaped(subject, |parent| {
        let found = status.parents.iter().find(|one| {
            let service = &one.parent.service;
            service.name() == parent["name"]
                && service.namespace() == namespace(&subject.key, parent)
                && one.parent.port.map(u64::from) == parent["port"].as_u64()
        });
        let refused = found.and_then(|found| found.refused.as_ref());
        let mut accepted = of("Accepted", "Accepted", refused.into_iter());
        if let Some(lacking) = &subject.definitions.lacking {
            add(&mut accepted.message, lacking);
        }
        vec![accepted, resolved.clone(), programmed.clone()]
    })
}

/// Adds a sentence to a message.
fn add(message: &mut String, text: &str) {
    if !message.is_empty() {
        message.push_str("; ");
    }
    message.push_str(text);
}

pub(super) fn namespace<'a>(key: &'a ResourceKey, parent: &'a Value) -> &'a str {
    parent["namespace"].as_str().unwrap_or(&key.namespace)
}

/// Conditions where the status of a kind has them.
fn shaped(subject: &Subject, conditions: impl Fn(&Value) -> Vec<Condition>) -> DocumentStatus {
    let spec = &subject.document["spec"];
    if RouteKind::parse(&subject.key.kind).is_some() {
        let parents = spec["parentRefs"].as_array().into_iter().flatten();
        let ours = parents.filter(|parent| is_ours(parent));
        let entries = ours.map(|parent| (parent.clone(), conditions(parent)));
        return DocumentStatus::Route(entries.collect());
    }
    let target = &spec["targetRef"];
    if target.is_object() {
        let group = match target["kind"].as_str() {
            Some("ExternalService") => API_GROUP,
            Some(_) | None => "",
        };
        let mut ancestor = json!({
            "group": group,
            "kind": target["kind"],
            "name": target["name"],
            "namespace": subject.key.namespace,
        });
        if let Some(port) = target["port"].as_u64() {
            ancestor["port"] = json!(port);
        }
        return DocumentStatus::Policy(ancestor, conditions(target));
    }
    DocumentStatus::Own(conditions(&Value::Null))
}

/// Whether a parent is one that this control plane looks after: not a Gateway.
pub(super) fn is_ours(parent: &Value) -> bool {
    let group = parent["group"].as_str().unwrap_or(GATEWAY_GROUP);
    matches!(
        (group, parent["kind"].as_str().unwrap_or("Gateway")),
        ("", "Service") | (API_GROUP, "Service" | "ExternalService")
    )
}

fn of<'a>(kind: &'static str, good: &str, wrong: impl Iterator<Item = &'a Dangling>) -> Condition {
    let wrong: Vec<&Dangling> = wrong.collect();
    match wrong.first() {
        None => condition(kind, good, Ok(())),
        Some(first) => {
            let texts: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            condition(kind, first.reason, Err(texts.join("; ")))
        }
    }
}

pub(super) fn condition(kind: &'static str, reason: &str, holds: Result<(), String>) -> Condition {
    Condition {
        kind,
        holds: holds.is_ok(),
        reason: reason.to_owned(),
        message: holds.err().unwrap_or_default(),
        stays_true: false,
    }
}
