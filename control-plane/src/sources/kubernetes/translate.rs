//! From objects of the cluster's API to facts: pure. `None` is an object that is none for the mesh.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::PartialObjectMeta;
use weft_core::external::{EndpointHost, External, ExternalEndpoint, check_host};
use weft_core::locality::Distribution;
use weft_core::model::AppProtocol;
use weft_core::name::{ServiceName, SpiffeId, TrustDomain, WorkloadName};

use crate::kubernetes::has_sidecar;
use crate::kubernetes::protocols;
use crate::model::ObjectName;
use crate::world::cluster::{
    ClusterPort, ClusterService, ClusterSlice, Pod, Serving, SliceEndpoint,
};

/// The label by which a slice says of which service it is.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The label by which a node says in which zone it is.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Hints of one endpoint that are taken, as many as the API server allows.
const ZONE_HINTS_MAX: usize = 8;
/// The account of pods that name none.
const DEFAULT_ACCOUNT: &str = "default";
/// Endpoints of one slice that are taken, as many as the API server allows.
const SLICE_ENDPOINTS_MAX: usize = 1000;
/// Ports of one slice that are taken, the first by name. The API server allows 20,000, which times the
/// endpoints would be more than any control plane holds; a Service has a handful.
const SLICE_PORTS_MAX: usize = 100;

/// A Service that has addresses, or pods behind it, or is a name for something outside the mesh.
pub(super) fn service(service: &core::Service, cluster_domain: &str) -> Option<ClusterService> {
    let metadata = &service.metadata;
    let name = ServiceName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?).ok()?;
    let spec = service.spec.as_ref()?;
    let one = spec.cluster_ip.iter();
    let all = spec.cluster_ips.as_ref();
    let addresses = all.map_or_else(|| one.collect::<Vec<_>>(), |all| all.iter().collect());
    // "None" is what a headless one has.
    let addresses = addresses.into_iter().filter_map(|text| text.parse().ok());
    let ports = spec.ports.iter().flatten().filter_map(port);
    let mut ports: Vec<ClusterPort> = ports.collect();
    ports.sort_by_key(|port| port.port);
    ports.dedup_by_key(|port| port.port);
    let mut external = None;
    if spec.type_.as_deref() == Some("ExternalName") {
        external = Some(Arc::new(external_name(spec, &ports, cluster_domain)?));
    }
    Some(ClusterService {
        name,
        addresses: addresses.collect(),
        ports,
        distribution: distribution(spec),
        external,
    })
}

/// Where a Service of type ExternalName leads: to the servers of that name outside the mesh, on the
/// ports that it declares. `None` where it is no more than another name in the cluster's DNS: it
/// declares no ports, or is a name for a service of the cluster, whose own name and addresses count.
fn external_name(
    spec: &core::ServiceSpec,
    ports: &[ClusterPort],
    cluster_domain: &str,
) -> Option<External> {
    let host = spec.external_name.as_deref()?;
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let of_cluster = host.strip_suffix(cluster_domain);
    let of_cluster = of_cluster.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if ports.is_empty() || of_cluster || !check_host(&host) {
        return None;
    }
    let host: Arc<str> = host.into();
    let ports = ports.iter();
    let ports = ports.map(|port| (port.port, port.target.unwrap_or(port.port)));
    Some(External {
        hosts: vec![Arc::clone(&host)],
        tls: Vec::new(),
        endpoints: vec![ExternalEndpoint {
            host: EndpointHost::Name(host),
            zone: String::new(),
            weight: 100,
            ports: ports.collect(),
        }],
    })
}

/// `internalTrafficPolicy: Local` is a must, `trafficDistribution` a preference beside it.
fn distribution(spec: &core::ServiceSpec) -> Distribution {
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        return Distribution::NodeOnly;
    }
    match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => Distribution::PreferZone,
        Some("PreferSameNode") => Distribution::PreferNode,
        Some(_) | None => Distribution::Anywhere,
    }
}

fn port(port: &core::ServicePort) -> Option<ClusterPort> {
    if !is_tcp(port.protocol.as_deref()) {
        return None;
    }
    let number = u16::try_from(port.port).ok().filter(|port| *port > 0)?;
    let name = port.name.as_deref().unwrap_or_default();
    let target = match &port.target_port {
        Some(IntOrString::Int(0)) | None => Some(number),
        Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
        Some(IntOrString::String(_)) => None,
    };
    Some(ClusterPort {
        port: number,
        name: name.into(),
        protocol: protocol(port.app_protocol.as_deref(), name),
        target,
    })
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// What is spoken on a port: by its `appProtocol`, where an unknown one is opaque, else by its name
/// as Istio reads it (`http`, `http-metrics`, `grpc`…), else whatever the first bytes say.
pub(super) fn protocol(app_protocol: Option<&str>, name: &str) -> AppProtocol {
    if let Some(declared) = app_protocol {
        return match declared.to_ascii_lowercase().as_str() {
            "kubernetes.io/wss" => AppProtocol::Tls,
            "grpc-web" => AppProtocol::Http,
            other => AppProtocol::parse(other).unwrap_or(AppProtocol::Tcp),
        };
    }
    let name = name.to_ascii_lowercase();
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        return AppProtocol::Http;
    }
    let first = name.split('-').next().unwrap_or_default();
    match first {
        "mongo" | "mysql" | "redis" | "postgres" | "postgresql" => AppProtocol::Tcp,
        other => AppProtocol::parse(other).unwrap_or_default(),
    }
}

/// A slice of a service's endpoints. One of names (`addressType: FQDN`) has no addresses.
pub(super) fn slice(slice: &discovery::EndpointSlice) -> Option<ClusterSlice> {
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        return None;
    }
    let metadata = &slice.metadata;
    let namespace = metadata.namespace.as_deref()?;
    let service = metadata.labels.as_ref()?.get(SERVICE_LABEL)?;
    let service = ServiceName::new(namespace, service).ok()?;
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        if !is_tcp(port.protocol.as_deref()) {
            return None;
        }
        let number = u16::try_from(port.port?).ok().filter(|port| *port > 0)?;
        Some((port.name.as_deref().unwrap_or_default().into(), number))
    });
    let mut ports: Vec<(Arc<str>, u16)> = ports.collect();
    ports.sort();
    ports.dedup();
    ports.truncate(SLICE_PORTS_MAX);
    let endpoints = slice.endpoints.iter().take(SLICE_ENDPOINTS_MAX);
    Some(ClusterSlice {
        name: ObjectName {
            namespace: namespace.to_owned(),
            name: metadata.name.clone()?,
        },
        ports,
        endpoints: endpoints
            .filter_map(|one| endpoint(namespace, one))
            .collect(),
        service,
    })
}

/// Further addresses of an endpoint have no meaning (`EndpointSlice.endpoints.addresses`).
fn endpoint(namespace: &str, endpoint: &discovery::Endpoint) -> Option<SliceEndpoint> {
    let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let pod = endpoint.target_ref.as_ref().and_then(|target| {
        let own = target.namespace.as_deref().unwrap_or(namespace) == namespace;
        if target.kind.as_deref() != Some("Pod") || !own {
            return None;
        }
        let uid = target.uid.as_deref().unwrap_or_default();
        Some((target.name.as_deref()?.into(), uid.into()))
    });
    let conditions = endpoint.conditions.as_ref();
    let of = |read: fn(&discovery::EndpointConditions) -> Option<bool>| conditions.and_then(read);
    // What is not said is to be taken for ready (`EndpointConditions.ready`).
    let ready = of(|conditions| conditions.ready).unwrap_or(true);
    let serving = of(|conditions| conditions.serving).unwrap_or(ready);
    let terminating = of(|conditions| conditions.terminating).unwrap_or(false);
    Some(SliceEndpoint {
        address: address.to_canonical(),
        pod,
        zone: endpoint.zone.as_deref().unwrap_or_default().into(),
        node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        zone_hints: zone_hints(endpoint),
        serving: match (ready, serving && terminating) {
            (true, _) => Serving::Ready,
            (false, true) => Serving::Terminating,
            (false, false) => Serving::No,
        },
    })
}

/// Zones whose callers are to go to an endpoint. The API server takes 8 of them.
fn zone_hints(endpoint: &discovery::Endpoint) -> Arc<[Arc<str>]> {
    let hints = endpoint.hints.iter();
    let zones = hints.flat_map(|hints| hints.for_zones.iter().flatten());
    let zones = zones.take(ZONE_HINTS_MAX);
    let mut zones: Vec<Arc<str>> = zones.map(|zone| zone.name.as_str().into()).collect();
    zones.sort();
    zones.dedup();
    zones.into()
}

/// The name of a node, and its zone, of which only labels are read.
pub(super) fn node(node: &PartialObjectMeta<core::Node>) -> Option<(Arc<str>, Arc<str>)> {
    let labels = node.metadata.labels.as_ref();
    let zone = labels.and_then(|labels| labels.get(ZONE_LABEL));
    let zone = zone.map(String::as_str).unwrap_or_default();
    Some((node.metadata.name.as_deref()?.into(), zone.into()))
}

/// A pod that has not ended.
pub(super) fn pod(pod: &core::Pod, trust_domain: &TrustDomain) -> Option<Pod> {
    let metadata = &pod.metadata;
    let namespace = metadata.namespace.as_deref()?;
    let name = WorkloadName::new(namespace, metadata.name.as_deref()?).ok()?;
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let of_node = spec.host_network == Some(true);
    let addresses = status.filter(|_| !of_node).into_iter();
    let addresses = addresses.flat_map(|status| status.pod_ips.iter().flatten());
    let addresses = addresses.filter_map(|address| address.ip.parse::<IpAddr>().ok());
    let account = spec.service_account_name.as_deref();
    let account = account.unwrap_or(DEFAULT_ACCOUNT);
    let identity = match has_sidecar(spec) {
        // Nothing that is there would be taken for the certificate of such a name.
        true => Some(SpiffeId::new(trust_domain, namespace, account).ok()?),
        false => None,
    };
    Some(Pod {
        name,
        uid: metadata.uid.as_deref()?.into(),
        addresses: addresses.collect(),
        identity,
        protocols: protocols_of(pod),
        node: spec.node_name.as_deref().unwrap_or_default().into(),
    })
}

/// What a pod says is spoken on its ports. One that is no list of them says nothing: it was changed
/// after the pod was made.
fn protocols_of(pod: &core::Pod) -> Arc<[(u16, AppProtocol)]> {
    let annotations = pod.metadata.annotations.as_ref();
    let said = annotations.and_then(|all| protocols::parse(all.get(protocols::PROTOCOLS)?));
    said.unwrap_or_default().into()
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
