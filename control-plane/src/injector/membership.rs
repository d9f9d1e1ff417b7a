//! Whether a pod that exists is in the mesh, and whether it wants to be: what the injector would do if
//! the pod were made now.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::eligible::{self, Eligible};
use super::{Namespace, Outcome, Settings, SkipReason, inject};
use crate::kubernetes::has_sidecar;
use crate::kubernetes::names::{ENABLED, INJECT};

/// How a pod stands to the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// It has a sidecar.
    Member,
    /// It wants a sidecar and has none.
    Missing,
    /// It wants a sidecar, and made anew it would be refused, for these reasons.
    Refused(Vec<String>),
    /// It wants none.
    NotWanted(SkipReason),
}

/// How a pod stands to the mesh. The namespace's labels have to be known.
pub fn membership(pod: &Pod, namespace: Namespace<'_>, settings: &Settings) -> Membership {
    let Some(spec) = &pod.spec else {
        return Membership::NotWanted(SkipReason::NotAsked);
    };
    if has_sidecar(spec) {
        return Membership::Member;
    }
    match eligible::decide(pod, spec, namespace, settings) {
        Eligible::Skip(reason) => return Membership::NotWanted(reason),
        Eligible::Refuse(problems) => return Membership::Refused(problems),
        Eligible::Inject => {}
    }
    let value = match serde_json::to_value(pod) {
        Ok(value) => value,
        Err(error) => return Membership::Refused(vec![error.to_string()]),
    };
    match inject(&value, namespace, settings) {
        Outcome::Patch(_) => Membership::Missing,
        Outcome::Refuse(refusal) => Membership::Refused(refusal.problems),
        Outcome::Skip(reason) => Membership::NotWanted(reason),
    }
}

/// Whether a namespace with these labels asks for sidecars.
pub fn asks(labels: &BTreeMap<String, String>) -> bool {
    labels.get(INJECT).is_some_and(|value| value == ENABLED)
}

/// Whether a pod without a sidecar wants one, as far as the pod itself says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidecarWish {
    /// Whatever its namespace says.
    pub always: bool,
    /// If its namespace has the label that asks for sidecars.
    pub where_asked: bool,
}

/// What a pod wants; nothing of a pod with a sidecar, and of one that has ended or is to end. Cheap:
/// what [`membership`] says of the pod decides.
pub fn wish(pod: &Pod, settings: &Settings) -> Option<SidecarWish> {
    let spec = pod.spec.as_ref()?;
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let ends = matches!(phase, Some("Succeeded" | "Failed"));
    if ends || pod.metadata.deletion_timestamp.is_some() || has_sidecar(spec) {
        return None;
    }
    let wants = |labels: &BTreeMap<String, String>| {
        let namespace = Namespace {
            name: None,
            labels: Some(labels),
        };
        let decided = eligible::decide(pod, spec, namespace, settings);
        !matches!(decided, Eligible::Skip(_))
    };
    let asking = BTreeMap::from([(INJECT.to_owned(), ENABLED.to_owned())]);
    let wish = SidecarWish {
        always: wants(&BTreeMap::new()),
        where_asked: wants(&asking),
    };
    (wish.always || wish.where_asked).then_some(wish)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(changes: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"containers": [{"name": "web", "image": "web"}]},
        });
        json_patch::merge(&mut pod, &changes);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_wish_and_the_membership_agree() {
        let label = |value: &str| json!({"metadata": {"labels": {INJECT: value}}});
        let sidecar = json!({"spec": {"initContainers": [{"name": "weft-proxy"}]}});
        let user = json!({"spec": {"securityContext": {"runAsUser": 1337}}});
        let annotation = json!({"metadata": {"annotations": {"weft-mesh.io/mtls": "x"}}});
        let host = json!({"spec": {"hostNetwork": true}});
        let system = json!({"metadata": {"namespace": "kube-system"}});
        let labels = json!({INJECT: "enabled"});
        let exempt = json!({"metadata": {"namespace": "monitoring", "labels": labels}});
        // What is changed, what it is where the namespace asks, and where it does not.
        for (changes, asked, unasked) in [
            (json!({}), "missing", "not-asked"),
            (label("enabled"), "missing", "missing"),
            (label("disabled"), "disabled", "disabled"),
            (label("yes"), "refused", "refused"),
            (sidecar, "member", "member"),
            (user, "refused", "not-asked"),
            (annotation, "refused", "not-asked"),
            (host, "host-network", "not-asked"),
            (system, "system-namespace", "system-namespace"),
            (exempt, "system-namespace", "system-namespace"),
        ] {
            let pod = pod(changes.clone());
            let mut settings = Settings::default();
            settings.exempt_namespaces.insert("monitoring".to_owned());
            let asking = BTreeMap::from([(INJECT.to_owned(), ENABLED.to_owned())]);
            let of = |labels| {
                let namespace = Namespace {
                    name: pod.metadata.namespace.as_deref(),
                    labels: Some(labels),
                };
                match membership(&pod, namespace, &settings) {
                    Membership::Member => "member",
                    Membership::Missing => "missing",
                    Membership::Refused(_) => "refused",
                    Membership::NotWanted(reason) => reason.as_str(),
                }
            };
            assert_eq!(
                (of(&asking), of(&BTreeMap::new())),
                (asked, unasked),
                "{changes}"
            );
            let wanted = |word: &str| matches!(word, "missing" | "refused");
            let expected = SidecarWish {
                always: wanted(unasked),
                where_asked: wanted(asked),
            };
            let expected = (expected.where_asked || expected.always).then_some(expected);
            assert_eq!(wish(&pod, &settings), expected, "{changes}");
        }
    }
}
