//! What installing this version would take away: fields of documents in the cluster that its custom
//! resource definitions do not have. The API server drops them without a word, and a protection that
//! one of them was would be off.

use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use super::InstallError;

/// Objects in one answer of the API.
const PAGE: u32 = 500;
/// Fields that are named.
const NAMED_MAX: usize = 100;

/// Fields of the cluster's documents that the custom resource definitions among `wanted` do not have, as
/// `TrafficPolicy shop/web: spec.retry.turns`; 100 at most.
pub async fn pruned(client: &Client, wanted: &[Value]) -> Result<Vec<String>, InstallError> {
    let mut all = Vec::new();
    for crd in wanted {
        if crd["kind"] != "CustomResourceDefinition" {
            continue;
        }
        for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
            let schema = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
            for object in documents(client, crd, &version["name"]).await? {
                let metadata = &object.metadata;
                let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default();
                let mut fields = Vec::new();
                unknown("spec", schema, &object.data["spec"], &mut fields);
                let namespace = metadata.namespace.iter().map(|one| format!("{one}/"));
                let name: String = namespace.chain(metadata.name.clone()).collect();
                all.extend(fields.iter().map(|field| format!("{kind} {name}: {field}")));
                if all.len() >= NAMED_MAX {
                    all.truncate(NAMED_MAX);
                    return Ok(all);
                }
            }
        }
    }
    Ok(all)
}

/// The documents of a kind that are in the cluster; none where it does not have the kind.
async fn documents(
    client: &Client,
    crd: &Value,
    version: &Value,
) -> Result<Vec<DynamicObject>, InstallError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let spec = &crd["spec"];
    let kind = text(&spec["names"]["kind"]);
    let kind = GroupVersionKind::gvk(&text(&spec["group"]), &text(version), &kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &text(&spec["names"]["plural"]));
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    let mut params = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = match api.list(&params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(found),
            page => page.map_err(|error| InstallError::Cluster {
                what: format!("listing {}", resource.plural),
                source: Box::new(error),
            })?,
        };
        found.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            Some(_) | None => return Ok(found),
        }
    }
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

    /// A field of a version that is newer, or that this one has no more, stops the installation, and
    /// nothing was changed then.
    #[tokio::test]
    async fn an_installation_that_would_drop_fields_is_refused() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let client = server.client().await;
        let values = crate::install::values(&[], &[]).unwrap();
        let mut wanted = crate::install::objects(&values, "weft-system", "weft").unwrap();
        wanted.retain(|object| object["kind"] == "CustomResourceDefinition");
        assert_eq!(
            pruned(&client, &wanted).await.unwrap(),
            Vec::<String>::new()
        );
        let mut other = wanted.clone();
        for crd in &mut other {
            if crd["spec"]["names"]["kind"] == "TrafficPolicy" {
                let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
                let spec = &mut schema["properties"]["spec"]["properties"];
                spec["guard"] = json!({"type": "boolean"});
            }
        }
        let apply = |text: &str| {
            let (done, said) = server.kubectl(&["apply", "--server-side", "-f", "-"], text);
            assert!(done, "{said}");
        };
        apply(&json!({"apiVersion": "v1", "kind": "List", "items": other}).to_string());
        let wait = ["wait", "--for=condition=Established", "crd", "--all"];
        let (done, said) = server.kubectl(&wait, "");
        assert!(done, "{said}");
        apply(
            "{apiVersion: weft-mesh.io/v1alpha1, kind: TrafficPolicy, \
              metadata: {name: web, namespace: default}, \
              spec: {targetRef: {kind: Service, name: web}, guard: true}}",
        );
        let expected = "TrafficPolicy default/web: spec.guard";
        assert_eq!(pruned(&client, &wanted).await.unwrap(), [expected]);
        // Who installs no definitions takes no fields away.
        assert_eq!(pruned(&client, &[]).await.unwrap(), Vec::<String>::new());
        let options = crate::install::ApplyOptions {
            force_conflicts: true,
            wait: std::time::Duration::from_secs(1),
        };
        let refused = crate::install::apply(&client, "weft-system", wanted, options, |_| {}).await;
        let said = refused.unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
        let (_, said) = server.kubectl(&["get", "tp", "web", "-o", "yaml"], "");
        assert!(said.contains("guard: true"), "{said}");
    }
}
