//! What the user may not do of what installing takes, asked one right at a time.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::Value;

use super::collect::Asked;
use crate::kubernetes::told;

const RBAC: &str = "rbac.authorization.k8s.io";
/// Reading is before every write, and helm compares with what is there.
const VERBS: [&str; 3] = ["get", "create", "patch"];
/// What helm does with the objects of a hook: they are deleted before and after.
const HOOK_VERBS: [&str; 3] = ["get", "create", "delete"];
/// Said of rights that helm takes and `weft install --apply` does not.
const HOOK: &str = "helm's check before an upgrade";
/// What is taken beside objects: group, resource, verbs, what for. Definitions are the cluster's, the rest
/// is in the release's namespace.
const BESIDE: [(&str, &str, &[&str], &str); 3] = [
    (
        "",
        "secrets",
        &["get", "list", "create", "update", "delete"],
        "helm's records of releases",
    ),
    ("batch", "jobs", &["list", "watch"], HOOK),
    (
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        &["list"],
        "the documents that there are",
    ),
];
/// Rights that are named of those that a role gives and the user lacks.
const LACKING_MAX: usize = 3;

/// One right, as a review asks about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    group: String,
    /// `pods`, or `pods/eviction`.
    resource: String,
    /// One object; nothing is all.
    name: Option<String>,
    /// Nothing is the whole cluster.
    namespace: Option<String>,
}

impl Right {
    fn attributes(&self) -> ResourceAttributes {
        let (resource, subresource) = match self.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (self.resource.as_str(), None),
        };
        ResourceAttributes {
            group: Some(self.group.clone()),
            resource: Some(resource.to_owned()),
            subresource,
            verb: Some(self.verb.clone()),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            ..ResourceAttributes::default()
        }
    }
}

/// What the user may not do of what installing these objects takes, and of what helm takes to make and
/// delete `hooks`.
pub(super) async fn denied(
    client: &Client,
    namespace: &str,
    objects: &[Value],
    hooks: &[Value],
) -> Asked<Vec<String>> {
    let mut reviews = Reviews {
        api: Api::all(client.clone()),
        known: BTreeMap::new(),
    };
    let mut denied = Vec::new();
    let rights = object_rights(namespace, objects, &VERBS);
    for (kind, right) in &rights {
        if !reviews.allow(right).await? {
            denied.push(format!("{} {kind}", right.verb));
        }
    }
    let of_hooks = object_rights(namespace, hooks, &HOOK_VERBS);
    for (kind, right) in of_hooks.difference(&rights) {
        if !reviews.allow(right).await? {
            denied.push(format!("{} {kind} ({HOOK})", right.verb));
        }
    }
    for (group, resource, verbs, purpose) in BESIDE {
        for verb in verbs {
            let right = Right {
                verb: (*verb).to_owned(),
                group: group.to_owned(),
                resource: resource.to_owned(),
                namespace: (group != "apiextensions.k8s.io").then(|| namespace.to_owned()),
                name: None,
            };
            if !reviews.allow(&right).await? {
                denied.push(format!("{verb} {resource} ({purpose})"));
            }
        }
    }
    for (roles, purpose) in [(objects, String::new()), (hooks, format!(" ({HOOK})"))] {
        for role in roles {
            let kind = text(&role["kind"]);
            if kind == "Role" || kind == "ClusterRole" {
                let missing = reviews.privileges(&kind, role).await?;
                denied.extend(missing.map(|missing| missing + &purpose));
            }
        }
    }
    Ok(denied)
}

/// What was asked already is not asked again.
struct Reviews {
    api: Api<SelfSubjectAccessReview>,
    known: BTreeMap<Right, bool>,
}

impl Reviews {
    async fn allow(&mut self, right: &Right) -> Asked<bool> {
        if let Some(known) = self.known.get(right) {
            return Ok(*known);
        }
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(right.attributes()),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = self.api.create(&PostParams::default(), &review).await;
        let answer =
            answer.map_err(|error| format!("SelfSubjectAccessReview: {}", told(&error)))?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        self.known.insert(right.clone(), allowed);
        Ok(allowed)
    }

    /// RBAC lets nobody make a role that gives more than he has without `escalate`, or bind one
    /// without `bind` ("Privilege escalation prevention and bootstrapping").
    async fn privileges(&mut self, kind: &str, role: &Value) -> Asked<Option<String>> {
        let name = text(&role["metadata"]["name"]);
        let mut missing = Vec::new();
        for verb in ["escalate", "bind"] {
            let right = Right {
                verb: verb.to_owned(),
                group: RBAC.to_owned(),
                resource: plural(kind),
                name: Some(name.clone()),
                namespace: role["metadata"]["namespace"].as_str().map(str::to_owned),
            };
            if !self.allow(&right).await? {
                missing.push(verb);
            }
        }
        if missing.is_empty() {
            return Ok(None);
        }
        let mut lacking = Vec::new();
        for right in rights_of(role) {
            if !self.allow(&right).await? {
                lacking.push(format!("{} {}", right.verb, right.resource));
            }
            if lacking.len() == LACKING_MAX {
                break;
            }
        }
        if lacking.is_empty() {
            return Ok(None);
        }
        let verbs = missing.join(" and ");
        let lacking = lacking.join(", ");
        Ok(Some(format!(
            "{verbs} {kind} {name}, which gives what you have not yourself ({lacking}, …)"
        )))
    }
}

/// The rights to do this with the objects, each with the kind that it is about.
fn object_rights(namespace: &str, objects: &[Value], verbs: &[&str]) -> BTreeSet<(String, Right)> {
    let mut rights = BTreeSet::new();
    for object in objects {
        let (kind, version) = (text(&object["kind"]), text(&object["apiVersion"]));
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let is_namespaced = object["metadata"].get("namespace").is_some();
        for verb in verbs {
            let right = Right {
                verb: (*verb).to_owned(),
                group: group.to_owned(),
                resource: plural(&kind),
                name: None,
                namespace: is_namespaced.then(|| namespace.to_owned()),
            };
            rights.insert((kind.clone(), right));
        }
    }
    rights
}

/// Every right that a role gives.
fn rights_of(role: &Value) -> Vec<Right> {
    let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let list = |field: &str| -> Vec<String> {
            let all = rule[field].as_array().into_iter().flatten();
            all.map(text).collect()
        };
        let names = list("resourceNames").into_iter().map(Some);
        let mut names: Vec<_> = names.collect();
        if names.is_empty() {
            names.push(None);
        }
        for group in list("apiGroups") {
            for resource in list("resources") {
                for name in &names {
                    rights.extend(list("verbs").into_iter().map(|verb| Right {
                        verb,
                        group: group.clone(),
                        resource: resource.clone(),
                        name: name.clone(),
                        namespace: namespace.clone(),
                    }));
                }
            }
        }
    }
    rights
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The resource of one of the chart's kinds.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::install;
    use crate::kubernetes::names::NAMESPACE;
    use crate::kubernetes::testing::ApiServer;

    #[test]
    fn every_right_of_a_role_is_asked_about() {
        let role = json!({"metadata": {"namespace": "n"}, "rules": [
            {"apiGroups": [""], "resources": ["pods", "pods/eviction"], "verbs": ["get", "list"]},
            {"apiGroups": ["g"], "resources": ["a"], "resourceNames": ["x", "y"], "verbs": ["patch"]},
        ]});
        let rights = rights_of(&role).into_iter().map(|one| {
            assert_eq!(one.namespace.as_deref(), Some("n"));
            let name = one.name.unwrap_or_default();
            format!("{} {}/{} {name}", one.verb, one.group, one.resource)
        });
        assert_eq!(
            rights.collect::<Vec<_>>(),
            [
                "get /pods ",
                "list /pods ",
                "get /pods/eviction ",
                "list /pods/eviction ",
                "patch g/a x",
                "patch g/a y",
            ]
        );
        let eviction = Right {
            resource: "pods/eviction".to_owned(),
            ..Right::default()
        };
        let asked = eviction.attributes();
        assert_eq!(asked.resource.as_deref(), Some("pods"));
        assert_eq!(asked.subresource.as_deref(), Some("eviction"));
    }

    /// What the user of the test may do: this with what the chart has, and more.
    fn role(verbs: &str, more: &str) -> String {
        format!(
            "{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {{name: some}}, rules: [\
             {{apiGroups: ['', apps, policy, networking.k8s.io, rbac.authorization.k8s.io, batch, \
             apiextensions.k8s.io, admissionregistration.k8s.io], \
             resources: [serviceaccounts, services, deployments, networkpolicies, clusterroles, roles, \
             clusterrolebindings, rolebindings, customresourcedefinitions, jobs, \
             mutatingwebhookconfigurations], verbs: [get, list, watch, create, patch{verbs}]}}{more}]}}"
        )
    }

    /// Who may make roles, and has not himself what they give, cannot install; nor who may keep no
    /// Secrets, with helm.
    #[tokio::test]
    async fn making_roles_takes_more_than_creating_them() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let rules = |more: &str| role(", delete", more);
        let apply = |text: &str| {
            let (done, said) = server.kubectl(&["apply", "-f", "-"], text);
            assert!(done, "{said}");
        };
        apply(&rules(""));
        let bind = "create clusterrolebinding some --clusterrole=some --user=some";
        assert!(server.kubectl(&bind.split(' ').collect::<Vec<_>>(), "").0);
        let client = server.client_of("some").await;
        let values = install::values(&[], &[]).unwrap();
        let objects = install::objects(&values, NAMESPACE, "weft").unwrap();
        let hooks = install::hook_objects(&values, NAMESPACE).unwrap();
        let asked = || async { denied(&client, NAMESPACE, &objects, &hooks).await.unwrap() };
        // The authorizer learns of a role a moment after it was made.
        let until = |missing: &'static [&'static str]| {
            let asked = &asked;
            async move {
                let began = std::time::Instant::now();
                loop {
                    let denied = asked().await;
                    let said = denied.join("\n");
                    let is_so = denied.len() == missing.len()
                        && missing.iter().all(|one| said.contains(one));
                    if is_so {
                        return;
                    }
                    assert!(began.elapsed().as_secs() < 30, "{said}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        };
        until(&[
            "get secrets (helm's records of releases)",
            "list secrets",
            "create secrets",
            "update secrets",
            "delete secrets",
            "escalate and bind ClusterRole weft-control-plane, which gives",
            "escalate and bind Role weft-control-plane, which gives",
            "escalate and bind ClusterRole weft-upgrade-check, which gives",
        ])
        .await;
        let secrets =
            ", {apiGroups: [''], resources: [secrets], verbs: [get, list, create, update, delete]}";
        let roles = ", {apiGroups: [rbac.authorization.k8s.io], resources: [clusterroles, roles], verbs: [escalate]}";
        apply(&rules(&format!("{secrets}{roles}")));
        until(&[
            "bind ClusterRole weft-control-plane, which gives",
            "bind Role weft-control-plane, which gives",
            "bind ClusterRole weft-upgrade-check, which gives",
        ])
        .await;
        let roles = roles.replace("[escalate]", "[escalate, bind]");
        // Installing is all that such a user may do: the next upgrade deletes what the check left.
        apply(&role("", &format!("{secrets}{roles}")));
        until(&[
            "delete ServiceAccount (helm's check before an upgrade)",
            "delete ClusterRole (helm's check before an upgrade)",
            "delete ClusterRoleBinding (helm's check before an upgrade)",
            "delete Job (helm's check before an upgrade)",
        ])
        .await;
        apply(&rules(&format!("{secrets}{roles}")));
        until(&[]).await;
    }
}
