//! Which rejections of sidecars a document's status has to tell of.

use std::borrow::Cow;

use weft_proto::resource::Kind;

use super::standing::{is_ours, namespace};
use crate::publish::{Progress, RejectedBy};
use crate::store::Subject;

/// The progress of a document's revision, with the rejections of everything that the document is a part
/// of: what is rejected is not in force, whichever revision has changed it last.
pub(super) fn concerned<'a>(subject: &Subject, progress: &'a Progress) -> Cow<'a, Progress> {
    let otherwise = progress.rejected_otherwise.of(&subject.key.namespace);
    let otherwise = otherwise.filter(|(resource, _)| concerns(subject, resource));
    let otherwise: Vec<&RejectedBy> = otherwise.flat_map(|(_, by)| by).collect();
    if otherwise.is_empty() {
        return Cow::Borrowed(progress);
    }
    // Nothing else is told of what is rejected.
    Cow::Owned(Progress {
        published: progress.published,
        is_known: progress.is_known,
        rejected: progress.rejected.iter().chain(otherwise).cloned().collect(),
        ..Progress::default()
    })
}

/// Whether a resource, KIND/NAME, may hold what a document says: a sidecar that rejects the resource
/// does not have the document in force, whenever that was changed last.
fn concerns(subject: &Subject, resource: &str) -> bool {
    let Some((kind, name)) = resource.split_once('/') else {
        return false;
    };
    let key = &subject.key;
    let has_target = subject.document["spec"]["targetRef"].is_object();
    match Kind::ALL.into_iter().find(|known| known.as_str() == kind) {
        Some(Kind::Service | Kind::ServerPolicy) => {
            services(subject).any(|service| service == name)
        }
        Some(Kind::Namespace) => !has_target && name == key.namespace,
        Some(Kind::MeshConfig) => matches!(&*key.kind, "MeshConfig" | "ExternalService"),
        Some(Kind::EndpointSlice | Kind::Workload | Kind::TrustBundle) | None => false,
    }
}

/// The services that a document is about, NAMESPACE/NAME.
fn services(subject: &Subject) -> impl Iterator<Item = String> {
    let (key, spec) = (&subject.key, &subject.document["spec"]);
    let target = &spec["targetRef"];
    let target = target["name"].as_str().map(|name| (&*key.namespace, name));
    let own = (&*key.kind == "ExternalService").then_some((&*key.namespace, &*key.name));
    let parents = spec["parentRefs"].as_array().into_iter().flatten();
    let parents = parents.filter(|parent| is_ours(parent));
    let parents =
        parents.filter_map(|parent| Some((namespace(key, parent), parent["name"].as_str()?)));
    let all = target.into_iter().chain(own).chain(parents);
    all.map(|(namespace, name)| format!("{namespace}/{name}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{API_GROUP, ResourceKey};
    use crate::peer::PeerIdentity;

    fn subject(kind: &str, name: &str, spec: Value) -> Subject {
        Subject {
            definitions: crate::store::DefinitionNotes::default(),
            key: ResourceKey {
                kind: kind.into(),
                namespace: "shop".into(),
                name: name.into(),
            },
            resource: kube::core::ApiResource {
                group: API_GROUP.to_owned(),
                version: "v1alpha1".to_owned(),
                api_version: format!("{API_GROUP}/v1alpha1"),
                kind: kind.to_owned(),
                plural: kind.to_lowercase(),
            },
            version: "1".to_owned(),
            generation: 1,
            revision: 7,
            refused: None,
            document: json!({"spec": spec}),
            status: Value::Null,
        }
    }

    /// A document is not in force where what it is a part of is rejected, also when that was changed by
    /// another revision, or by one that is forgotten since the control plane has started.
    #[test]
    fn what_is_rejected_is_not_in_force_whenever_it_was_changed() {
        let policy = || {
            let target = json!({"targetRef": {"kind": "Service", "name": "web"}});
            subject("TrafficPolicy", "web", target)
        };
        let parent = json!({"group": "", "kind": "Service", "name": "web"});
        let elsewhere = json!({"group": "", "kind": "Service", "name": "web", "namespace": "lab"});
        let route = |parent: &Value| subject("HTTPRoute", "r", json!({"parentRefs": [parent]}));
        let external = || subject("ExternalService", "api", json!({"hosts": ["a.example"]}));
        for (subject, resource, expected) in [
            (policy(), "ServerPolicy/shop/web", true),
            (policy(), "Service/shop/web", true),
            (policy(), "Service/lab/web", false),
            (policy(), "ServerPolicy/shop/web2", false),
            (policy(), "Namespace/shop", false),
            (policy(), "Workload/shop/web", false),
            (policy(), "nonsense", false),
            (route(&parent), "Service/shop/web", true),
            (route(&parent), "Namespace/shop", true),
            (route(&elsewhere), "Service/lab/web", true),
            (route(&elsewhere), "Service/shop/web", false),
            (external(), "Service/shop/api", true),
            (external(), "MeshConfig/mesh", true),
            (external(), "Service/shop/web", false),
        ] {
            let peer = PeerIdentity {
                instance: "pod-1".into(),
                identity: "spiffe://weft.local/ns/shop/sa/web".parse().unwrap(),
                not_after: 0,
            };
            let mut progress = Progress {
                published: 9,
                ..Progress::default()
            };
            progress.rejected_otherwise.add(&peer, resource, &"odd");
            let found = !concerned(&subject, &progress).rejected.is_empty();
            assert_eq!(found, expected, "{} {resource}", subject.key.kind);
        }
    }
}
