//! What the cluster's own definitions of the Gateway API's kinds lack of what is read here: asked of the
//! API server's OpenAPI documents, which everybody may read who may read the API at all.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kube::core::ApiResource;
use serde_json::Value;
use tokio::time::sleep;

use super::Shared;
use super::watching::asked;
use crate::model::{GATEWAY_GROUP, gateway_kinds, lacking, lacking_in_words};

/// How often it is looked whether definitions are others.
const COMPARED_EVERY: Duration = Duration::from_secs(30);

/// Fields that definitions lack, by kind and version as in `gateway.networking.k8s.io/v1`; none for what
/// was not compared yet.
pub(super) type Lacking = BTreeMap<(&'static str, &'static str), Vec<String>>;

/// What is to be said of a route because of the cluster's definitions of the Gateway API's kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefinitionNotes {
    /// Fields that the API server drops, in words.
    pub lacking: Option<String>,
    /// The cluster does not serve ReferenceGrant: nothing of another namespace can be permitted.
    pub has_no_grants: bool,
}

impl Shared {
    /// Definitions lack these fields.
    fn lack(&self, found: &Lacking) {
        let mut lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        lacking.extend(found.clone());
    }

    /// What is to be said of documents of a kind because of the cluster's definitions.
    pub(super) fn notes(&self, kind: &str, resource: &ApiResource) -> DefinitionNotes {
        let lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        let version = resource.api_version.as_str();
        let mut of_kind = lacking.iter();
        let fields = of_kind.find(|((name, of), _)| (*name, *of) == (kind, version));
        DefinitionNotes {
            lacking: fields.and_then(|(_, fields)| lacking_in_words(kind, fields)),
            has_no_grants: self.resource("ReferenceGrant").is_none(),
        }
    }
}

/// Compares definitions with what is read, again and again.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut compared = BTreeMap::new();
    loop {
        if let Err(error) = compare(&shared, &mut compared).await {
            // Nothing depends on it but what is said of routes.
            tracing::debug!(error, "definitions of the Gateway API are not compared");
        }
        sleep(COMPARED_EVERY).await;
    }
}

/// Compares those that are others than before: their addresses have a hash of what is there.
async fn compare(shared: &Shared, compared: &mut BTreeMap<String, String>) -> Result<(), String> {
    let index = get(shared, "/openapi/v3").await?;
    for version in ["v1", "v1beta1", "v1alpha2"] {
        let version = format!("{GATEWAY_GROUP}/{version}");
        let path = &index["paths"][format!("apis/{version}")]["serverRelativeURL"];
        let Some(path) = path.as_str() else { continue };
        if compared.get(&version).is_some_and(|before| before == path) {
            continue;
        }
        let document = get(shared, path).await?;
        shared.lack(&lacking_in(&document, &version));
        compared.insert(version, path.to_owned());
    }
    Ok(())
}

async fn get(shared: &Shared, path: &str) -> Result<Value, String> {
    let request = http::Request::get(path).body(Vec::new());
    let request = request.map_err(|error| error.to_string())?;
    asked(shared.client.request(request)).await
}

/// What the kinds of a document of a version lack.
fn lacking_in(document: &Value, version: &str) -> Lacking {
    let mut found = Lacking::new();
    let schemas = &document["components"]["schemas"];
    for schema in schemas
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, one)| one)
    {
        let names = &schema["x-kubernetes-group-version-kind"];
        for kind in gateway_kinds() {
            let Some(version) = kind.versions().find(|one| *one == version) else {
                continue;
            };
            let mut names = names.as_array().into_iter().flatten();
            let is_it = names.any(|name| {
                let text = |field: &str| name[field].as_str().unwrap_or_default();
                format!("{}/{}", text("group"), text("version")) == version
                    && text("kind") == kind.name
            });
            if is_it {
                found.insert((kind.name, version), lacking(kind.name, schema));
            }
        }
    }
    found
}
