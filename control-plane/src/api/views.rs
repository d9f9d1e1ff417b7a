//! Routes that show what is: services, workloads, sidecars, tokens, certificates.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use weft_core::model::{ObservedBreaker, Service};
use weft_core::name::{ServiceName, WorkloadName};
use weft_proto::resource::Kind;

use super::Admin;
use super::backend::{Backend, Workloads};
use super::refusal::Answer;
use super::resource_status::{metadata_of, status_of};
use super::types::{
    BreakerInfo, CertInfo, EndpointInfo, Items, Metadata, OperatorInfo, ProxyInfo, ProxyList,
    ServiceInfo, ServiceStatus, StatusInfo, Target, TokenInfo, WorkloadInfo,
};
use crate::model::API_VERSION;
use crate::peer::PeerIdentity;
use crate::registry::Entry;
use crate::store::StoredResource;

/// Services of the mesh that exist, and those whose document is so new that sidecars are not told yet.
pub(super) async fn services(State(admin): State<Admin>) -> Answer<Items<ServiceInfo>> {
    let snapshot = admin.backend.snapshots.snapshot();
    let compiled = &snapshot.compiled;
    let mut all: BTreeMap<ServiceName, (Option<Service>, Option<StoredResource>)> = BTreeMap::new();
    for service in compiled.services().filter(|s| s.external.is_none()) {
        let slot = all.entry(service.name.clone()).or_default();
        slot.0 = compiled.service(&service.name.to_string());
    }
    for resource in admin.backend.store.list()?.resources {
        let key = &resource.key;
        if key.kind != "Service" {
            continue;
        }
        if let Ok(name) = ServiceName::new(&key.namespace, &key.name) {
            all.entry(name).or_default().1 = Some(resource);
        }
    }
    let items = all
        .into_iter()
        .map(|(name, (service, document))| service_info(&name, service, document));
    Ok(Json(Items {
        items: items.collect(),
    }))
}

fn service_info(
    name: &ServiceName,
    service: Option<Service>,
    document: Option<StoredResource>,
) -> ServiceInfo {
    let metadata = document.as_ref().map(metadata_of);
    let metadata = metadata.unwrap_or_else(|| Metadata {
        resource_version: None,
        name: name.name().to_owned(),
        namespace: name.namespace().to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    });
    let service = service.unwrap_or_else(|| Service {
        name: name.clone(),
        addresses: Vec::new(),
        ports: Vec::new(),
        endpoints: Vec::new(),
        endpoint_slices: 0,
        distribution: Default::default(),
        policies: BTreeMap::new(),
        routes: Vec::new(),
        external: None,
    });
    let endpoints = service.endpoints.into_iter().map(|endpoint| EndpointInfo {
        instance: endpoint.instance.to_string(),
        workload: endpoint.workload,
        identity: endpoint
            .identity
            .map(|identity| identity.to_string())
            .unwrap_or_default(),
        zone: endpoint.zone,
        weight: endpoint.weight,
        addresses: endpoint.ports.iter().map(|port| port.address).collect(),
    });
    let status = document.as_ref().map(status_of);
    let spec = match document {
        Some(mut resource) => resource.document["spec"].take(),
        None => serde_json::json!({ "ports": service.ports }),
    };
    ServiceInfo {
        api_version: API_VERSION.to_owned(),
        kind: "Service".to_owned(),
        metadata,
        spec,
        status: ServiceStatus {
            hostname: name.hostname(),
            addresses: service.addresses,
            ports: service.ports,
            endpoints: endpoints.collect(),
            document: status,
        },
    }
}

pub(super) async fn workloads(State(admin): State<Admin>) -> Answer<Items<WorkloadInfo>> {
    let entries = admin.backend.workloads.entries().into_iter();
    let items = entries.map(|entry| {
        let registration = entry.registration;
        WorkloadInfo {
            name: registration.workload,
            instance: entry.instance.to_string(),
            identity: entry.identity.to_string(),
            connected: entry.stream.is_some(),
            services: registration.services,
            addresses: registration.addresses,
            ports: registration.ports,
            labels: registration.labels,
            zone: registration.zone,
            version: registration.version,
            metrics_target: registration.metrics_target,
        }
    });
    Ok(Json(Items {
        items: items.collect(),
    }))
}

/// The name of a sidecar: the workload that it was attested as, or its identity where its record was
/// cleared away.
pub(super) fn name_of(backend: &Backend, peer: &PeerIdentity) -> String {
    let workload = workload_of(backend, peer);
    workload.map_or_else(|| peer.identity.to_string(), |name| name.to_string())
}

/// The workload that a peer was attested as; of a pod that was attested before this process began,
/// the one that the cluster says it is.
fn workload_of(backend: &Backend, peer: &PeerIdentity) -> Option<WorkloadName> {
    let attested = backend.credentials.workload_of(&peer.instance);
    attested.or_else(|| {
        let snapshot = backend.snapshots.snapshot();
        snapshot.world.pod_of(peer).cloned()
    })
}

/// Breakers that have opened at least once, by sidecar.
pub(super) async fn breakers(State(admin): State<Admin>) -> Answer<Items<BreakerInfo>> {
    Ok(Json(Items {
        items: observed_breakers(&admin.backend),
    }))
}

/// Breakers that the sidecars of a workload have told of, as of now; and whether there is such a
/// sidecar.
pub(super) fn observed_by(
    backend: &Backend,
    workload: &WorkloadName,
) -> (Vec<ObservedBreaker>, bool) {
    let is_meant = |peer: &PeerIdentity| {
        let identity = &peer.identity;
        match workload_of(backend, peer) {
            Some(name) => name == *workload,
            None => {
                (identity.namespace(), identity.service_account())
                    == (workload.namespace(), workload.name())
            }
        }
    };
    let connected = backend
        .proxies
        .connected()
        .iter()
        .any(|view| is_meant(&view.peer));
    let now = crate::unix_millis();
    let mut all = Vec::new();
    for observed in backend.proxies.observed() {
        if !is_meant(&observed.peer) {
            continue;
        }
        // Times count from when they were told.
        let gone = u64::try_from(now - observed.told).unwrap_or_default();
        let gone = Duration::from_millis(gone);
        all.extend(
            observed
                .breakers
                .into_iter()
                .map(|breaker| ObservedBreaker {
                    since: breaker.since.saturating_add(gone),
                    next_probe: breaker.next_probe.map(|wait| wait.saturating_sub(gone)),
                    ..breaker
                }),
        );
    }
    (all, connected)
}

/// Breakers that have opened at least once, by sidecar.
fn observed_breakers(backend: &Backend) -> Vec<BreakerInfo> {
    let mut all = Vec::new();
    for observed in backend.proxies.observed() {
        let caller = name_of(backend, &observed.peer);
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        all.extend(observed.breakers.into_iter().map(|breaker| {
            let (workload, address) = match &breaker.endpoint {
                Some((workload, address)) => (workload.to_string(), address.to_string()),
                None => (String::new(), String::new()),
            };
            BreakerInfo {
                caller: caller.clone(),
                instance: observed.peer.instance.to_string(),
                service: breaker.service.to_string(),
                port: breaker.port,
                workload,
                address,
                route: breaker.route.unwrap_or_default(),
                state: breaker.state.as_str().to_owned(),
                since: observed.told.saturating_sub(millis(breaker.since)),
                cause: breaker.cause,
                next_probe: breaker
                    .next_probe
                    .map(|wait| observed.told.saturating_add(millis(wait))),
            }
        }));
    }
    all
}

pub(super) async fn proxies(State(admin): State<Admin>) -> Answer<ProxyList> {
    let newest = admin.backend.snapshots.snapshot().compiled.generation;
    let connected = admin.backend.proxies.connected().into_iter();
    let observed = admin.backend.proxies.observed().into_iter();
    let interception = observed
        .filter_map(|observed| Some((observed.peer.instance, observed.interception?.as_str())));
    let interception: BTreeMap<_, _> = interception.collect();
    let items = connected.map(|view| ProxyInfo {
        interception: { interception.get(&view.peer.instance) }.map(|word| (*word).to_owned()),
        workload: name_of(&admin.backend, &view.peer),
        instance: view.peer.instance.to_string(),
        identity: view.peer.identity.to_string(),
        version: view.version,
        since: view.since,
        holds: view.holds,
        applied_revision: view.applied.revision,
        current: view.applied.generation >= newest,
        rejected: { view.rejected.into_iter() }
            .map(|(resource, reason)| (resource, reason.to_string()))
            .collect(),
        control_plane: view.replica.as_deref().unwrap_or_default().to_owned(),
    });
    Ok(Json(ProxyList {
        items: items.collect(),
        unknown: admin.backend.proxies.unknown(),
    }))
}

pub(super) async fn tokens(State(admin): State<Admin>) -> Answer<Items<TokenInfo>> {
    let mut records = admin.backend.credentials.tokens();
    records.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
    let items = records.into_iter().map(|record| TokenInfo {
        id: record.id,
        workload: record.binding.workload,
        service_account: record.binding.service_account,
        services: record.binding.services,
        ports: record.binding.ports,
        addresses: record.binding.addresses,
        created: record.created,
        expires: record.expires,
        redeemed_by: record.redeemed.map(|redeemed| redeemed.instance),
    });
    Ok(Json(Items {
        items: items.collect(),
    }))
}

pub(super) async fn certs(State(admin): State<Admin>) -> Answer<Items<CertInfo>> {
    let mut records = admin.backend.credentials.instances();
    records.sort_by(|a, b| {
        let key =
            |i: &crate::identity::token::InstanceRecord| (i.binding.workload.clone(), i.created);
        key(a).cmp(&key(b))
    });
    let items = records.into_iter().map(|record| CertInfo {
        instance: record.instance,
        workload: record.binding.workload,
        service_account: record.binding.service_account,
        created: record.created,
        last_used: record.last_used,
        last_not_after: record.last_not_after,
        revoked: record.revoked,
    });
    Ok(Json(Items {
        items: items.collect(),
    }))
}

pub(super) async fn operators(State(admin): State<Admin>) -> Answer<Items<OperatorInfo>> {
    let mut records = admin.backend.operators.list();
    records.sort_by(|a, b| (&a.name, a.created).cmp(&(&b.name, b.created)));
    let items = records.into_iter().map(Into::into);
    Ok(Json(Items {
        items: items.collect(),
    }))
}

pub(super) async fn status(State(admin): State<Admin>) -> Answer<StatusInfo> {
    let snapshot = admin.backend.snapshots.snapshot();
    let compiled = &snapshot.compiled;
    let store = &admin.backend.store;
    Ok(Json(StatusInfo {
        status: (*admin.status).clone(),
        started: admin.started,
        revision: *store.watch().borrow(),
        compiled_revision: compiled.revision,
        resources: store.count()?,
        services: compiled.of_kind(Kind::Service).count(),
        workloads: admin.backend.workloads.count(),
        proxies: admin.backend.proxies.count(),
    }))
}

/// For Prometheus' `http_sd_configs`: every sidecar that says where it serves metrics.
pub(crate) fn scrape_targets(workloads: &dyn Workloads) -> Vec<Target> {
    workloads.entries().iter().filter_map(target).collect()
}

fn target(entry: &Entry) -> Option<Target> {
    let uri: Uri = entry.registration.metrics_target.parse().ok()?;
    if uri.scheme_str() != Some("http") {
        return None;
    }
    let workload = &entry.registration.workload;
    let labels = [
        ("__metrics_path__", uri.path()),
        ("namespace", workload.namespace()),
        ("workload", workload.name()),
        ("instance_id", &entry.instance),
        ("zone", &entry.registration.zone),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Some(Target {
        targets: vec![uri.authority()?.to_string()],
        labels: labels.into_iter().collect(),
    })
}
