//! The facts, asked of the cluster's API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionSpec,
};
use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::facts::{
    Crd, Deployment, Facts, Installed, NamespaceFact, PodFact, ServerFact, Sidecar, Webhook,
};
use super::rules::gateway::short_versions;
use super::{following, interception, permissions, trying};
use crate::injector::{self, Membership, Settings};
use crate::install;
use crate::kubernetes::{has_sidecar, names, told};
use crate::model::{
    BUNDLE_VERSION, CHANNEL, GATEWAY_GROUP, gateway_kinds, lacking, parse_duration,
};

/// The life of a sidecar's certificate where the control plane is not told another.
const LEAF_TTL_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Objects in one answer of the API.
const PAGE: u32 = 500;

pub(super) type Asked<T> = Result<T, String>;

/// Asks for everything that the checks look at.
pub async fn collect(client: &Client, namespace: &str) -> Facts {
    let namespaces = namespaces(client).await;
    let deployment = deployment(client, namespace).await;
    // The image does not change whether a pod is injected.
    let mut settings = Settings::new("weft-proxy", namespace);
    settings.exempt_namespaces = exempt_namespaces(&deployment);
    let pods = match &namespaces {
        Ok(namespaces) => pods(client, &settings, namespaces).await,
        Err(error) => Err(error.clone()),
    };
    let wanted = wanted(namespace);
    let (wanted, hooks) = match wanted {
        Ok((wanted, hooks)) => (Ok(wanted), hooks),
        Err(error) => (Err(error), Vec::new()),
    };
    let wanted_crds = wanted.as_ref().map(|wanted| {
        let crds = wanted.iter();
        let crds = crds.filter(|object| object["kind"] == "CustomResourceDefinition");
        let crds = crds.filter_map(|object| object["metadata"]["name"].as_str());
        crds.map(str::to_owned).collect()
    });
    let installed = Installed {
        deployment,
        webhooks: webhooks(client).await,
        endpoints: endpoints(client, namespace).await,
        cni: cni(client, namespace).await,
    };
    let trial = match (&installed.webhooks, &namespaces) {
        (Err(error), _) | (_, Err(error)) => Err(error.clone()),
        (Ok(None), Ok(_)) => Ok(None),
        (Ok(Some(_)), Ok(namespaces)) => {
            let places = trying::places(namespaces, &settings);
            trying::trial(client, &places).await.map(Some)
        }
    };
    let certificates = match &pods {
        Ok(pods) => trying::certificates(client, pods).await,
        Err(error) => Err(error.clone()),
    };
    let lapsed = match &pods {
        Ok(pods) => interception::lapsed(client, pods).await,
        Err(error) => Err(error.clone()),
    };
    Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        namespace: namespace.to_owned(),
        now: crate::unix_seconds(),
        server: server(client).await,
        denied: match &wanted {
            Ok(wanted) => permissions::denied(client, namespace, wanted, &hooks).await,
            Err(error) => Err(error.clone()),
        },
        wanted_crds: wanted_crds.map_err(Clone::clone),
        crds: custom_resources(client).await,
        leaf_seconds: leaf_seconds(&installed),
        installed,
        namespaces,
        pods,
        trial,
        unenforced: unenforced(client).await,
        node_clocks: trying::node_clocks(client).await,
        certificates,
        lapsed,
        replicas: following::replicas(client, namespace).await,
    }
}

/// The arguments of the control plane, as far as they are known.
fn args_of(deployment: &Asked<Option<Deployment>>) -> &[String] {
    let deployment = deployment.as_ref().ok().and_then(Option::as_ref);
    deployment
        .map(|one| one.args.as_slice())
        .unwrap_or_default()
}

/// Namespaces that the injector leaves alone, as the control plane is told.
fn exempt_namespaces(deployment: &Asked<Option<Deployment>>) -> BTreeSet<String> {
    let said = values_of(args_of(deployment), "--exempt-namespace");
    let said = said.iter().flat_map(|value| value.split(','));
    said.map(str::to_owned).collect()
}

/// The values of a flag, in the order in which they are given: `FLAG=VALUE` or `FLAG VALUE`.
fn values_of<'a>(args: &'a [String], flag: &str) -> Vec<&'a str> {
    let mut args = args.iter();
    let mut values = Vec::new();
    while let Some(arg) = args.next() {
        match arg.strip_prefix(flag) {
            Some("") => values.extend(args.next().map(String::as_str)),
            Some(rest) => values.extend(rest.strip_prefix('=')),
            None => {}
        }
    }
    values
}

/// How long a sidecar's certificate is valid, as the control plane is told.
fn leaf_seconds(installed: &Installed) -> i64 {
    let args = args_of(&installed.deployment);
    let said = values_of(args, "--leaf-ttl").first().copied();
    let said = said.and_then(|said| parse_duration(said).ok());
    i64::try_from(said.unwrap_or(LEAF_TTL_DEFAULT).as_secs()).unwrap_or(i64::MAX)
}

/// What `weft install` would apply, and what helm makes beside for an upgrade.
fn wanted(namespace: &str) -> Asked<(Vec<Value>, Vec<Value>)> {
    let objects = install::values(&[], &[]).and_then(|values| {
        let wanted = install::objects(&values, namespace, "weft")?;
        Ok((wanted, install::hook_objects(&values, namespace)?))
    });
    objects.map_err(|error| error.to_string())
}

/// What of the documents this version would not enforce.
pub(super) async fn unenforced(client: &Client) -> Asked<Vec<String>> {
    let unenforced = install::unenforced(client).await;
    unenforced.map_err(|error| error.to_string())
}

async fn server(client: &Client) -> Asked<ServerFact> {
    let failed = |error: kube::Error| format!("the API server: {}", told(&error));
    let version = client.apiserver_version().await.map_err(failed)?;
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    let request = http::Request::get("/version").body(kube::client::Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(failed)?;
    let date = response.headers().get(http::header::DATE);
    let date = date.and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    Ok(ServerFact {
        version: (number(&version.major), number(&version.minor)),
        skew: date.map(|date| date.timestamp().as_second() - crate::unix_seconds()),
    })
}

async fn custom_resources(client: &Client) -> Asked<Vec<Crd>> {
    let all: Vec<CustomResourceDefinition> = list(&Api::all(client.clone()), "").await?;
    let ours = all.into_iter().filter_map(|crd| {
        let group = &crd.spec.group;
        if group != "weft-mesh.io" && group != "gateway.networking.k8s.io" {
            return None;
        }
        let conditions = crd.status.and_then(|status| status.conditions);
        let mut conditions = conditions.unwrap_or_default().into_iter();
        let lacks = lacks(&crd.spec);
        let served = crd.spec.versions.into_iter().filter(|one| one.served);
        let mut annotations = crd.metadata.annotations.unwrap_or_default();
        Some(Crd {
            bundle: annotations.remove(BUNDLE_VERSION),
            channel: annotations.remove(CHANNEL),
            lacks,
            name: crd.metadata.name?,
            served: served.map(|one| one.name).collect(),
            established: conditions.any(|one| one.type_ == "Established" && one.status == "True"),
        })
    });
    Ok(ours.collect())
}

/// Fields that are read of a kind of the Gateway API and that its definition does not have, in the
/// version that is read.
fn lacks(definition: &CustomResourceDefinitionSpec) -> Vec<String> {
    let names = &definition.names;
    let kind = gateway_kinds().find(|kind| kind.name == names.kind);
    let Some(kind) = kind.filter(|_| definition.group == GATEWAY_GROUP) else {
        return Vec::new();
    };
    let read = short_versions(kind).find_map(|version| {
        let mut served = definition.versions.iter().filter(|one| one.served);
        served.find(|one| one.name == version)
    });
    let schema = read.and_then(|version| version.schema.as_ref());
    let schema = schema.and_then(|schema| schema.open_api_v3_schema.as_ref());
    let schema = schema.and_then(|schema| serde_json::to_value(schema).ok());
    schema.map_or_else(Vec::new, |schema| lacking(kind.name, &schema))
}

async fn deployment(client: &Client, namespace: &str) -> Asked<Option<Deployment>> {
    let api = Api::<v1::Deployment>::namespaced(client.clone(), namespace);
    let found = api.get_opt(names::CONTROL_PLANE).await;
    let found = found.map_err(|error| format!("the Deployment: {}", told(&error)))?;
    Ok(found.map(|found| {
        let status = found.status.unwrap_or_default();
        let labels = found.metadata.labels.unwrap_or_default();
        let spec = found.spec.unwrap_or_default();
        let pod = spec.template.spec.unwrap_or_default();
        let args = pod.containers.into_iter().filter_map(|one| one.args);
        Deployment {
            args: args.flatten().collect(),
            wanted: spec.replicas.unwrap_or(1),
            available: status.available_replicas.unwrap_or(0),
            version: labels.get("app.kubernetes.io/version").cloned(),
        }
    }))
}

/// How many nodes the network plugin is for, and on how many it is ready.
async fn cni(client: &Client, namespace: &str) -> Asked<Option<(i32, i32)>> {
    let api = Api::<v1::DaemonSet>::namespaced(client.clone(), namespace);
    let found = api.get_opt(names::CNI).await;
    let found = found.map_err(|error| format!("the DaemonSet: {}", told(&error)))?;
    Ok(found.map(|found| {
        let status = found.status.unwrap_or_default();
        (status.desired_number_scheduled, status.number_ready)
    }))
}

async fn webhooks(client: &Client) -> Asked<Option<Vec<Webhook>>> {
    let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let found = api.get_opt(names::WEBHOOK).await;
    let found = found.map_err(|error| format!("the webhook: {}", told(&error)))?;
    Ok(found.map(|found| {
        let webhooks = found.webhooks.unwrap_or_default().into_iter();
        let webhooks = webhooks.map(|one| {
            let authority = one.client_config.ca_bundle.map(|bundle| bundle.0);
            let service = one.client_config.service;
            Webhook {
                name: one.name,
                authority: String::from_utf8(authority.unwrap_or_default()).unwrap_or_default(),
                service: service.map_or_else(String::new, |service| {
                    format!("{}/{}", service.namespace, service.name)
                }),
            }
        });
        webhooks.collect()
    }))
}

async fn endpoints(client: &Client, namespace: &str) -> Asked<usize> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    let label = format!("kubernetes.io/service-name={}", names::CONTROL_PLANE);
    let params = ListParams::default().labels(&label);
    let slices = api.list(&params).await;
    let slices = slices.map_err(|error| format!("EndpointSlices: {}", told(&error)))?;
    // A dual-stack Service has each replica once a family: the larger family counts.
    let mut ready = BTreeMap::<String, usize>::new();
    for slice in slices {
        let count = slice.endpoints.iter().filter(|one| {
            let conditions = one.conditions.as_ref();
            conditions.is_none_or(|one| one.ready != Some(false))
        });
        *ready.entry(slice.address_type).or_default() += count.count();
    }
    Ok(ready.into_values().max().unwrap_or(0))
}

async fn namespaces(client: &Client) -> Asked<Vec<NamespaceFact>> {
    let all: Vec<Namespace> = list(&Api::all(client.clone()), "").await?;
    let field = format!("metadata.name={}", names::TRUST_BUNDLE_CONFIG_MAP);
    let bundles: Vec<ConfigMap> = list(&Api::all(client.clone()), &field).await?;
    let bundles = bundles.into_iter().filter_map(|bundle| {
        let roots = bundle.data?.remove(names::TRUST_BUNDLE_KEY)?;
        Some((bundle.metadata.namespace?, roots))
    });
    let mut bundles: BTreeMap<String, String> = bundles.collect();
    // Nothing can be made any more in one that ends.
    let lasts = |one: &Namespace| one.metadata.deletion_timestamp.is_none();
    let all = all.into_iter().filter(lasts).filter_map(|namespace| {
        let name = namespace.metadata.name?;
        Some(NamespaceFact {
            labels: namespace.metadata.labels.unwrap_or_default(),
            roots: bundles.remove(&name),
            name,
        })
    });
    Ok(all.collect())
}

/// Pods that have a sidecar, or that the injector would give one if they were created now.
async fn pods(
    client: &Client,
    settings: &Settings,
    namespaces: &[NamespaceFact],
) -> Asked<Vec<PodFact>> {
    let all: Vec<Pod> = list(&Api::all(client.clone()), "").await?;
    let mut pods = Vec::new();
    for pod in all {
        let place = pod.metadata.namespace.clone().unwrap_or_default();
        let namespace = namespaces.iter().find(|one| one.name == place);
        let labels = namespace.map(|one| &one.labels);
        if let Some(sidecar) = sidecar(&pod, &place, labels, settings) {
            let name = pod.metadata.name.unwrap_or_default();
            let name = format!("{place}/{name}");
            let uid = pod.metadata.uid.unwrap_or_default();
            pods.push(PodFact { name, uid, sidecar });
        }
    }
    Ok(pods)
}

fn sidecar(
    pod: &Pod,
    namespace: &str,
    labels: Option<&BTreeMap<String, String>>,
    settings: &Settings,
) -> Option<Sidecar> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    // What has ended, or is ending, is made anew by itself or not at all.
    if matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if has_sidecar(spec) {
        let annotations = pod.metadata.annotations.as_ref();
        let said = annotations.and_then(|all| all.get(names::INJECTED));
        let said = said.and_then(|said| serde_json::from_str::<Value>(said).ok());
        let version = said.and_then(|said| said["version"].as_str().map(str::to_owned));
        let statuses = status.into_iter().flat_map(|status| {
            let inits = status.init_container_statuses.iter().flatten();
            inits.chain(status.container_statuses.iter().flatten())
        });
        let mut statuses = statuses.filter(|one| one.name == names::PROXY_CONTAINER);
        let ready = statuses.any(|one| one.ready);
        return Some(Sidecar::Injected { version, ready });
    }
    let place = injector::Namespace {
        name: Some(namespace),
        // A namespace that is not known any more asks for nothing.
        labels: Some(labels.unwrap_or(const { &BTreeMap::new() })),
    };
    match injector::membership(pod, place, settings) {
        Membership::Missing => Some(Sidecar::Missing),
        Membership::Refused(problems) => Some(Sidecar::Refused(problems.join("; "))),
        Membership::Member | Membership::NotWanted(_) => None,
    }
}

/// Everything of a kind, page by page.
pub(super) async fn list<K>(api: &Api<K>, field: &str) -> Asked<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(PAGE).fields(field);
    loop {
        let page = api.list(&params).await;
        let page = page.map_err(|error| format!("list of {}: {}", K::kind(&()), told(&error)))?;
        all.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            Some(_) | None => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_flags_are_read_as_the_control_plane_reads_them() {
        let args = [
            "control-plane",
            "--exempt-namespace=a,b",
            "--exempt-namespaces=x",
            "--exempt-namespace",
            "c",
            "--leaf-ttl=1h",
            "--exempt-namespace",
        ];
        let args = args.map(str::to_owned);
        assert_eq!(values_of(&args, "--exempt-namespace"), ["a,b", "c"]);
        assert_eq!(values_of(&args, "--leaf-ttl"), ["1h"]);
        let deployment = Deployment {
            wanted: 1,
            available: 1,
            version: None,
            args: args.to_vec(),
        };
        let exempt = exempt_namespaces(&Ok(Some(deployment)));
        assert_eq!(exempt.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
