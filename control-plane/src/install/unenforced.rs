//! What installing this version would turn off: documents in the cluster, or fields of them, that it
//! does not enforce as they are there. Nobody enforces a document of a kind that this version does not
//! have; the API server drops a field that its definitions do not have without a word; and a document
//! that its model refuses counts as absent as soon as the control plane has started anew.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use super::InstallError;
use crate::model::{API_GROUP, GATEWAY_GROUP};
use crate::status::{CONTROLLER, one_line};
use crate::store::{INVALID, KindApi, refusal};

/// Objects in one answer of the API: each may have more than 1 MiB.
const PAGE: u32 = 50;
/// Places that are named.
const NAMED_MAX: usize = 100;

/// What of the cluster's documents this version would not enforce, as
/// `TrafficPolicy shop/web: spec.retry.turns: this version does not know the field`; 100 at most.
pub async fn unenforced(client: &Client) -> Result<Vec<String>, InstallError> {
    unenforced_by(client, &crate::model::crds()).await
}

/// The same for a version that has these definitions.
async fn unenforced_by(client: &Client, known: &[Value]) -> Result<Vec<String>, InstallError> {
    let mut found = Vec::new();
    for crd in definitions(client).await? {
        let ours = known
            .iter()
            .find(|ours| ours["metadata"]["name"].as_str() == crd.metadata.name.as_deref());
        of_definition(client, ours, &crd, &mut found).await?;
    }
    let group = format!("{GATEWAY_GROUP}/");
    for kind in KindApi::all() {
        if kind.kind.ends_with("Route") && kind.versions.iter().all(|one| one.starts_with(&group)) {
            of_routes(client, &kind, &mut found).await?;
        }
    }
    Ok(found)
}

/// Every custom resource definition of our group, of whichever version of ours.
async fn definitions(client: &Client) -> Result<Vec<CustomResourceDefinition>, InstallError> {
    let failed = |error| InstallError::Cluster {
        what: "listing CustomResourceDefinitions".to_owned(),
        source: Box::new(error),
    };
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let group = format!(".{API_GROUP}");
    // Those of others may be many and large: of them only the names are asked for.
    let mut params = ListParams::default().limit(PAGE);
    let mut names = Vec::new();
    loop {
        let page = api.list_metadata(&params).await.map_err(failed)?;
        let all = page.items.into_iter().filter_map(|one| one.metadata.name);
        names.extend(all.filter(|name| name.ends_with(&group)));
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            Some(_) | None => break,
        }
    }
    let mut definitions = Vec::new();
    for name in names {
        definitions.extend(api.get_opt(&name).await.map_err(failed)?);
    }
    Ok(definitions)
}

/// Looks at the documents of a kind of ours; `ours` is this version's definition of it.
async fn of_definition(
    client: &Client,
    ours: Option<&Value>,
    crd: &CustomResourceDefinition,
    found: &mut Vec<String>,
) -> Result<(), InstallError> {
    let spec = &crd.spec;
    let served = spec.versions.iter().filter(|version| version.served);
    let kept = crd
        .status
        .as_ref()
        .and_then(|one| one.stored_versions.as_ref());
    let is_kept = |name: &String| kept.is_some_and(|kept| kept.contains(name));
    let versions = ours.map(|ours| &ours["spec"]["versions"]);
    let versions = versions.and_then(Value::as_array).map(Vec::as_slice);
    let versions = versions.unwrap_or_default();
    for version in served {
        let name = &version.name;
        let kind = GroupVersionKind::gvk(&spec.group, name, &spec.names.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &spec.names.plural);
        let known = versions.iter().find(|known| known["name"] == *name);
        let schema = known.or_else(|| versions.first());
        let schema = schema.map(|one| &one["schema"]["openAPIV3Schema"]["properties"]["spec"]);
        each(client, &resource, found, |object| match schema {
            None => vec!["this version does not know the kind".to_owned()],
            Some(_) if known.is_none() && (version.storage || is_kept(name)) => {
                let version = &resource.api_version;
                vec![format!(
                    "kept as {version}, which this version does not know"
                )]
            }
            Some(schema) => {
                let mut fields = Vec::new();
                unknown("spec", schema, &object.data["spec"], &mut fields);
                let fields = fields.into_iter();
                let fields =
                    fields.map(|one| format!("{one}: this version does not know the field"));
                // One in a version that is not known is looked at in one that is.
                let refused = known.and_then(|_| refusal(&spec.names.kind, object));
                fields.chain(refused).collect()
            }
        })
        .await?;
        if schema.is_none() {
            // In every other version they are the same documents.
            break;
        }
    }
    Ok(())
}

/// Looks at routes of the Gateway API of which something may be in force in the mesh; routes of others
/// change nothing by being refused.
async fn of_routes(
    client: &Client,
    kind: &KindApi,
    found: &mut Vec<String>,
) -> Result<(), InstallError> {
    for version in &kind.versions {
        let resource = kind.resource(version);
        each(client, &resource, found, |object| {
            let refused = may_be_in_force(&object).then(|| refusal(&kind.kind, object));
            refused.flatten().into_iter().collect()
        })
        .await?;
    }
    Ok(())
}

/// Whether a route, or an older version of it, may be in force by what the control plane has said of it:
/// what was accepted and then edited into something that is refused stays in force as it was until the
/// control plane starts anew. What its namespace has no room for is not (`QuotaExceeded`).
fn may_be_in_force(route: &DynamicObject) -> bool {
    let parents = route.data["status"]["parents"].as_array();
    let ours = parents.into_iter().flatten();
    let mut ours = ours.filter(|parent| parent["controllerName"] == CONTROLLER);
    ours.any(|parent| {
        let conditions = parent["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|one| {
            one["type"] == "Accepted" && (one["status"] == "True" || one["reason"] == INVALID)
        })
    })
}

/// Adds what `look` says of each object, until enough is said; nothing where the cluster does not have
/// the kind.
async fn each(
    client: &Client,
    resource: &ApiResource,
    found: &mut Vec<String>,
    look: impl Fn(DynamicObject) -> Vec<String>,
) -> Result<(), InstallError> {
    let api = Api::<DynamicObject>::all_with(client.clone(), resource);
    let mut params = ListParams::default().limit(PAGE);
    while found.len() < NAMED_MAX {
        let page = match api.list(&params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            page => page.map_err(|error| InstallError::Cluster {
                what: format!("listing {}", resource.plural),
                source: Box::new(error),
            })?,
        };
        // What is being deleted is not in force now either.
        let items = page.items.into_iter();
        for object in items.filter(|one| one.metadata.deletion_timestamp.is_none()) {
            let (namespace, name) = (&object.metadata.namespace, &object.metadata.name);
            let namespace = namespace.iter().map(|one| format!("{one}/"));
            let name: String = namespace.chain(name.clone()).collect();
            let kind = &resource.kind;
            for said in look(object) {
                let said = format!("{kind} {name}: {}", one_line(&said));
                // In several versions of a kind the same documents are found.
                if found.len() < NAMED_MAX && !found.contains(&said) {
                    found.push(said);
                }
            }
        }
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            Some(_) | None => return Ok(()),
        }
    }
    Ok(())
}

/// Adds the paths of fields that a structural schema does not have.
fn unknown(path: &str, schema: &Value, value: &Value, found: &mut Vec<String>) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                let of_any = &schema["additionalProperties"];
                match schema["properties"].get(name) {
                    Some(schema) => unknown(&path, schema, value, found),
                    None if of_any.is_object() => unknown(&path, of_any, value, found),
                    None if *of_any == true => {}
                    None => found.push(path),
                }
            }
        }
        Value::Array(items) => {
            for (number, value) in items.iter().enumerate() {
                unknown(&format!("{path}[{number}]"), &schema["items"], value, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::testing::ApiServer;

    #[test]
    fn fields_that_a_schema_does_not_have_are_named() {
        let leaf = json!({"type": "string"});
        let schema = json!({"properties": {
            "a": leaf,
            "list": {"items": {"properties": {"b": leaf}}},
            "map": {"additionalProperties": {"properties": {"c": leaf}}},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
            "open": {"additionalProperties": true},
        }});
        let value = json!({
            "a": "x", "z": 1,
            "list": [{"b": "x"}, {"b": "x", "y": {"q": 1}}],
            "map": {"k": {"c": "x", "w": null}},
            "any": {"v": {"u": 1}},
            "open": {"t": 1},
        });
        let mut found = Vec::new();
        unknown("spec", &schema, &value, &mut found);
        found.sort();
        assert_eq!(found, ["spec.list[1].y", "spec.map.k.w", "spec.z"]);
    }

    /// The cluster's definitions and a document of each kind that there is something to say of.
    fn cluster_of_another_version() -> (Value, String) {
        let mut definitions = crate::model::crds();
        for crd in &mut definitions {
            let kind = crd["spec"]["names"]["kind"].clone();
            let versions = crd["spec"]["versions"].as_array_mut().unwrap();
            let schema = &mut versions[0]["schema"]["openAPIV3Schema"];
            let spec = &mut schema["properties"]["spec"];
            match kind.as_str().unwrap() {
                "TrafficPolicy" => spec["properties"]["guard"] = json!({"type": "boolean"}),
                // It takes what this version's model refuses.
                "RateLimitPolicy" => {
                    *spec = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
                }
                // Kept in a version that comes after this one's.
                "FaultInjection" => {
                    let mut next = versions[0].clone();
                    next["name"] = json!("v1beta1");
                    versions[0]["storage"] = json!(false);
                    versions.push(next);
                }
                _ => {}
            }
        }
        definitions.push(json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "guards.weft-mesh.io"},
            "spec": {
                "group": "weft-mesh.io", "scope": "Namespaced",
                "names": {"kind": "Guard", "plural": "guards", "singular": "guard", "listKind": "GuardList"},
                "versions": [{
                    "name": "v1alpha1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {
                        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    }},
                }],
            },
        }));
        let documents = r#"
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: default}
spec: {targetRef: {kind: Service, name: web}, guard: true}
---
apiVersion: weft-mesh.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web, namespace: default}
spec: {targetRef: {kind: Service, name: web}, rules: none}
---
apiVersion: weft-mesh.io/v1alpha1
kind: FaultInjection
metadata: {name: slow, namespace: default}
spec: {delay: {percentage: 1, time: 1s}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: Guard
metadata: {name: all, namespace: default}
"#;
        (json!(definitions), documents.to_owned())
    }

    /// A kind, a version of a kind, a field, or a value of another version's stops the installation, and
    /// nothing was changed then.
    #[tokio::test]
    async fn an_installation_that_would_turn_something_off_is_refused() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let client = server.client().await;
        assert!(unenforced(&client).await.unwrap().is_empty());
        let apply = |text: &str| {
            let (done, said) = server.kubectl(&["apply", "--server-side", "-f", "-"], text);
            assert!(done, "{said}");
        };
        let (definitions, documents) = cluster_of_another_version();
        apply(&json!({"apiVersion": "v1", "kind": "List", "items": definitions}).to_string());
        let wait = ["wait", "--for=condition=Established", "crd", "--all"];
        let (done, said) = server.kubectl(&wait, "");
        assert!(done, "{said}");
        assert!(unenforced(&client).await.unwrap().is_empty());
        apply(&documents);
        let mut found = unenforced(&client).await.unwrap();
        found.sort();
        assert_eq!(
            found,
            [
                "FaultInjection default/slow: kept as weft-mesh.io/v1beta1, which this version does not know",
                "Guard default/all: this version does not know the kind",
                "RateLimitPolicy default/web: spec.rules: found string \"none\"; allowed: a list, as in [a, b] or with - before each item",
                "TrafficPolicy default/web: spec.guard: this version does not know the field",
            ]
        );
        let values = crate::install::values(&[], &[]).unwrap();
        let wanted = crate::install::objects(&values, "weft-system", "weft").unwrap();
        let options = crate::install::ApplyOptions {
            force_conflicts: true,
            accept_unenforced: false,
            wait: std::time::Duration::from_secs(1),
        };
        let refused = crate::install::apply(&client, "weft-system", wanted, options, |_| {}).await;
        let said = refused.unwrap_err().to_string();
        for one in &found {
            assert!(said.contains(one), "{said}");
        }
        assert!(said.contains("--accept-unenforced"), "{said}");
        let (_, said) = server.kubectl(&["get", "tp", "web", "-o", "yaml"], "");
        assert!(said.contains("guard: true"), "{said}");
        // Whoever manages the definitions elsewhere is told as well.
        let refused = crate::install::apply(&client, "weft-system", vec![], options, |_| {}).await;
        assert!(matches!(refused, Err(InstallError::Unenforced(_))));
        is_named_where_it_is_accepted(&client, options, &found).await;
    }

    /// Who accepts it hears of all of it, before anything else, and goes on.
    async fn is_named_where_it_is_accepted(
        client: &Client,
        mut options: crate::install::ApplyOptions,
        found: &[String],
    ) {
        options.accept_unenforced = true;
        let mut told = Vec::new();
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "made"}});
        let tell = |one: crate::install::Applied| told.push((one.object, one.done));
        let applied =
            crate::install::apply(client, "weft-system", vec![namespace], options, tell).await;
        applied.unwrap();
        let last = told.pop().unwrap();
        assert_eq!(last, ("Namespace/made".to_owned(), "applied"));
        assert!(told.iter().all(|(_, done)| done.contains("not enforced")));
        let mut named: Vec<String> = told.into_iter().map(|(object, _)| object).collect();
        named.sort();
        assert_eq!(named, found);
    }

    /// However many there are, so many are named.
    #[tokio::test]
    async fn what_is_named_is_bounded() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let client = server.client().await;
        let items = json!({"apiVersion": "v1", "kind": "List", "items": crate::model::crds()});
        let apply = |text: &str| {
            let (done, said) = server.kubectl(&["apply", "--server-side", "-f", "-"], text);
            assert!(done, "{said}");
        };
        apply(&items.to_string());
        let wait = ["wait", "--for=condition=Established", "crd", "--all"];
        let (done, said) = server.kubectl(&wait, "");
        assert!(done, "{said}");
        let documents = (0..NAMED_MAX + 20).map(|number| {
            json!({
                "apiVersion": "weft-mesh.io/v1alpha1", "kind": "FaultInjection",
                "metadata": {"name": format!("f{number}"), "namespace": "default"},
                "spec": {"delay": {"percentage": 1, "time": "1s"}},
            })
        });
        let documents: Vec<Value> = documents.collect();
        apply(&json!({"apiVersion": "v1", "kind": "List", "items": documents}).to_string());
        assert_eq!(unenforced(&client).await.unwrap(), Vec::<String>::new());
        let found = unenforced_by(&client, &[]).await.unwrap();
        assert_eq!(found.len(), NAMED_MAX);
    }

    #[test]
    fn of_routes_those_count_of_which_something_may_be_in_force() {
        let route = |controller: &str, status: &str, reason: &str| -> DynamicObject {
            let route = json!({
                "metadata": {"name": "web"},
                "status": {"parents": [{
                    "controllerName": controller,
                    "conditions": [{"type": "Accepted", "status": status, "reason": reason}],
                }]},
            });
            serde_json::from_value(route).unwrap()
        };
        for (controller, status, reason, expected) in [
            (CONTROLLER, "True", "Accepted", true),
            // An older version may be.
            (CONTROLLER, "False", INVALID, true),
            (CONTROLLER, "False", "QuotaExceeded", false),
            (CONTROLLER, "False", "NoMatchingParent", false),
            ("example.com/gateway", "True", "Accepted", false),
            ("example.com/gateway", "False", "Invalid", false),
        ] {
            let found = may_be_in_force(&route(controller, status, reason));
            assert_eq!(found, expected, "{controller} {status} {reason}");
        }
    }
}
