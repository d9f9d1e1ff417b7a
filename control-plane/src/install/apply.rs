//! Objects brought to the cluster's API and taken away again.

use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope, pinned_kind};
use serde_json::Value;

use super::{InstallError, MANAGED_BY, by_name, described, everything, objects};
use crate::kubernetes::names::{self, MANAGED_BY_LABEL};

/// The field manager of what `weft install` applies.
const FIELD_MANAGER: &str = "weft-install";
pub(super) const PART_OF_LABEL: &str = "app.kubernetes.io/part-of";
/// How long the API server may take until it serves a new kind.
const ESTABLISHED_MAX: Duration = Duration::from_secs(30);
/// How often the cluster is asked while something is waited for.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// How objects are applied.
#[derive(Debug, Clone, Copy)]
pub struct ApplyOptions {
    /// Takes over fields that others have written.
    pub force_conflicts: bool,
    /// Goes on where documents would not be enforced any more.
    pub accept_unenforced: bool,
    /// For how long is waited until the control plane is available.
    pub wait: Duration,
}

/// Something that was done, for people.
#[derive(Debug, Clone)]
pub struct Applied {
    /// `Deployment/weft-control-plane`; of what is not enforced any more, which document and why, as
    /// `TrafficPolicy shop/web: spec.retry.turns: this version does not know the field`.
    pub object: String,
    /// `applied`, `deleted`, `not there`, `kept`, or that something is not enforced any more.
    pub done: &'static str,
}

/// Applies `wanted`, deletes what an earlier `weft install` made and these values don't want any
/// more, and waits until the control plane is available. `told` hears of every step. Nothing is changed
/// where documents would not be enforced any more, unless that is accepted: then `told` hears of them first.
pub async fn apply(
    client: &Client,
    namespace: &str,
    wanted: Vec<Value>,
    options: ApplyOptions,
    mut told: impl FnMut(Applied),
) -> Result<(), InstallError> {
    refuse_helms(client, namespace).await?;
    let unenforced = super::unenforced(client).await?;
    if !unenforced.is_empty() && !options.accept_unenforced {
        return Err(InstallError::Unenforced(unenforced));
    }
    for object in unenforced {
        let done = "(accepted: it is not enforced from now on)";
        told(Applied { object, done });
    }
    let mut params = PatchParams::apply(FIELD_MANAGER);
    params.force = options.force_conflicts;
    let until = Instant::now() + options.wait;
    for object in &wanted {
        let (api, name) = api_of(client, namespace, object).await?;
        let patched = api.patch(&name, &params, &Patch::Apply(object)).await;
        patched.map_err(|error| failed("applying", object, error))?;
        if object["kind"] == "CustomResourceDefinition" {
            let until = Instant::now() + ESTABLISHED_MAX;
            wait_for(&api, object, until, is_established).await?;
        }
        told(said(object, "applied"));
    }
    let wanted = by_name(wanted);
    for object in objects(&everything()?, namespace, MANAGED_BY)? {
        let kept = object["kind"] == "CustomResourceDefinition";
        if !kept && !wanted.contains_key(&described(&object)) {
            let done = delete(client, namespace, &object, true).await?;
            if done == "deleted" {
                told(said(&object, done));
            }
        }
    }
    let deployment = wanted.get(&format!("Deployment/{}", names::CONTROL_PLANE));
    if let Some(deployment) = deployment {
        let (api, _) = api_of(client, namespace, deployment).await?;
        wait_for(&api, deployment, until, is_rolled_out).await?;
        told(said(deployment, "available"));
    }
    Ok(())
}

/// Deletes everything that the chart can have made, the webhook first, so that pods start without
/// it. Custom resource definitions, with every document, are kept unless `purge`, which also deletes
/// the namespace with the mesh's root key.
pub async fn uninstall(
    client: &Client,
    namespace: &str,
    purge: bool,
    mut told: impl FnMut(Applied),
) -> Result<(), InstallError> {
    refuse_helms(client, namespace).await?;
    let mut all = objects(&everything()?, namespace, MANAGED_BY)?;
    if purge {
        all.insert(0, super::namespace(namespace));
    }
    for object in all.iter().rev() {
        let done = match object["kind"] == "CustomResourceDefinition" && !purge {
            true => "kept",
            false => delete(client, namespace, object, false).await?,
        };
        told(said(object, done));
    }
    if purge {
        delete_bundles(client, &mut told).await?;
    }
    Ok(())
}

/// The roots that the control plane has written to every namespace with sidecars.
async fn delete_bundles(
    client: &Client,
    told: &mut impl FnMut(Applied),
) -> Result<(), InstallError> {
    use k8s_openapi::api::core::v1::ConfigMap;
    let cluster = |what: &str, error| InstallError::Cluster {
        what: what.to_owned(),
        source: Box::new(error),
    };
    let name = names::TRUST_BUNDLE_CONFIG_MAP;
    let params = kube::api::ListParams::default().fields(&format!("metadata.name={name}"));
    let all = Api::<ConfigMap>::all(client.clone()).list(&params).await;
    for bundle in all.map_err(|error| cluster("listing ConfigMaps", error))? {
        let namespace = bundle.metadata.namespace.unwrap_or_default();
        let api = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
        match api.delete(name, &DeleteParams::default()).await {
            Err(error) if !is_absent(&error) => {
                return Err(cluster(
                    &format!("deleting ConfigMap {namespace}/{name}"),
                    error,
                ));
            }
            Ok(_) | Err(_) => told(Applied {
                object: format!("ConfigMap/{name} in {namespace}"),
                done: "deleted",
            }),
        }
    }
    Ok(())
}

fn said(object: &Value, done: &'static str) -> Applied {
    Applied {
        object: described(object),
        done,
    }
}

fn failed(what: &str, object: &Value, error: kube::Error) -> InstallError {
    InstallError::Cluster {
        what: format!("{what} {}", described(object)),
        source: Box::new(error),
    }
}

/// There is no such object, or the cluster has no such kind.
fn is_absent(error: &kube::Error) -> bool {
    if let kube::Error::Api(status) = error {
        return status.code == 404;
    }
    matches!(error, kube::Error::Discovery(_))
}

/// The API that an object is written with.
async fn api_of(
    client: &Client,
    namespace: &str,
    object: &Value,
) -> Result<(Api<DynamicObject>, String), InstallError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
    let found = pinned_kind(client, &kind).await;
    let (resource, capabilities): (ApiResource, ApiCapabilities) =
        found.map_err(|error| failed("finding the kind of", object, error))?;
    let api = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    Ok((api, text(&object["metadata"]["name"])))
}

/// What helm installed is helm's: its record of the release would be wrong afterwards.
async fn refuse_helms(client: &Client, namespace: &str) -> Result<(), InstallError> {
    use k8s_openapi::api::apps::v1::Deployment;
    let api = Api::<Deployment>::namespaced(client.clone(), namespace);
    let found = api.get_opt(names::CONTROL_PLANE).await;
    let found = found.map_err(|error| InstallError::Cluster {
        what: format!("reading Deployment/{}", names::CONTROL_PLANE),
        source: Box::new(error),
    })?;
    let labels = found.and_then(|found| found.metadata.labels);
    let by = labels.and_then(|mut labels| labels.remove(MANAGED_BY_LABEL));
    match by.as_deref() {
        None | Some(MANAGED_BY) => Ok(()),
        Some(other) => Err(InstallError::Foreign(format!(
            "Deployment/{} in namespace {namespace} is managed by {other}; \
             use helm upgrade or helm uninstall",
            names::CONTROL_PLANE
        ))),
    }
}

/// Deletes an object that is part of Weft; `only_ours`: only what `weft install` made.
async fn delete(
    client: &Client,
    namespace: &str,
    object: &Value,
    only_ours: bool,
) -> Result<&'static str, InstallError> {
    let (api, name) = match api_of(client, namespace, object).await {
        Ok(found) => found,
        Err(InstallError::Cluster { source, .. }) if is_absent(&source) => return Ok("not there"),
        Err(error) => return Err(error),
    };
    let found = api.get_opt(&name).await;
    let Some(found) = found.map_err(|error| failed("reading", object, error))? else {
        return Ok("not there");
    };
    let label = |label: &str| {
        found
            .metadata
            .labels
            .as_ref()
            .and_then(|all| all.get(label))
    };
    let ours = label(MANAGED_BY_LABEL).is_some_and(|by| by == MANAGED_BY);
    let weft = label(PART_OF_LABEL).is_some_and(|part| part == "weft");
    let is_namespace = object["kind"] == "Namespace";
    if (only_ours && !ours) || !(ours || weft || is_namespace) {
        return Ok("kept: not ours");
    }
    // Not another one that has taken its name since.
    let mut params = DeleteParams::background();
    params.preconditions = Some(kube::api::Preconditions {
        uid: found.metadata.uid.clone(),
        resource_version: None,
    });
    match api.delete(&name, &params).await {
        Err(error) if is_absent(&error) => Ok("not there"),
        Err(error) => Err(failed("deleting", object, error)),
        Ok(_) => Ok("deleted"),
    }
}

/// Asks until `done` says nothing more, or the time is over.
async fn wait_for(
    api: &Api<DynamicObject>,
    object: &Value,
    until: Instant,
    done: fn(&DynamicObject) -> Result<(), String>,
) -> Result<(), InstallError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    loop {
        let found = api.get(name).await;
        let found = found.map_err(|error| failed("reading", object, error))?;
        let Err(missing) = done(&found) else {
            return Ok(());
        };
        if Instant::now() >= until {
            return Err(InstallError::NotReady(format!(
                "{} is applied and not ready: {missing}; `weft check --kubernetes` says more",
                described(object)
            )));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn is_established(found: &DynamicObject) -> Result<(), String> {
    let conditions = found.data["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    match conditions.any(|one| one["type"] == "Established" && one["status"] == "True") {
        true => Ok(()),
        false => Err("the API does not serve it yet".to_owned()),
    }
}

/// As `kubectl rollout status` decides it.
fn is_rolled_out(found: &DynamicObject) -> Result<(), String> {
    let status = &found.data["status"];
    if status["observedGeneration"].as_i64() < found.metadata.generation {
        return Err("the cluster's controller has not seen it yet".to_owned());
    }
    let wanted = found.data["spec"]["replicas"].as_u64().unwrap_or(1);
    for (name, what) in [
        ("updatedReplicas", "new replicas"),
        ("replicas", "replicas, old ones included,"),
        ("availableReplicas", "available replicas"),
    ] {
        let count = status[name].as_u64().unwrap_or(0);
        if count != wanted {
            return Err(format!("{count} {what} of {wanted}"));
        }
    }
    Ok(())
}
