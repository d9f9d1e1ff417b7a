//! A resource as discovery moves it: encoded once, decoded and checked once.

use prost::Message;
pub use prost_types::Any;
use weft_core::model::{EndpointSlice, MeshConfig, Namespace, Service, TrustBundle, Workload};
use weft_core::server::ServerPolicy;

use crate::convert::Rejection;
use crate::mesh;

/// The kinds of resources that the control plane streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// [`EndpointSlice`]: those of a service come to every sidecar that has asked for the service.
    EndpointSlice,
    /// [`Service`], on demand.
    Service,
    /// [`Workload`], on demand.
    Workload,
    /// [`TrustBundle`], always.
    TrustBundle,
    /// [`MeshConfig`], always.
    MeshConfig,
    /// [`Namespace`]: every sidecar asks for its own.
    Namespace,
    /// [`ServerPolicy`]: sidecars ask for those of the services that their workload serves.
    ServerPolicy,
}

impl Kind {
    /// Every kind, in the order in which they are told: what a service needs stands before it.
    pub const ALL: [Self; 7] = [
        Self::MeshConfig,
        Self::TrustBundle,
        Self::Namespace,
        Self::ServerPolicy,
        Self::EndpointSlice,
        Self::Service,
        Self::Workload,
    ];

    /// The type URL on the wire.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::EndpointSlice => "type.googleapis.com/weft.mesh.v1.EndpointSlice",
            Self::Service => "type.googleapis.com/weft.mesh.v1.Service",
            Self::Workload => "type.googleapis.com/weft.mesh.v1.Workload",
            Self::TrustBundle => "type.googleapis.com/weft.mesh.v1.TrustBundle",
            Self::MeshConfig => "type.googleapis.com/weft.mesh.v1.MeshConfig",
            Self::Namespace => "type.googleapis.com/weft.mesh.v1.Namespace",
            Self::ServerPolicy => "type.googleapis.com/weft.mesh.v1.ServerPolicy",
        }
    }

    /// The kind of a type URL, if it is one of ours.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a sidecar gets resources of this kind because it asked for them, or for what they
    /// belong to; the others come to everyone.
    pub const fn on_demand(self) -> bool {
        match self {
            Self::EndpointSlice
            | Self::Service
            | Self::Workload
            | Self::Namespace
            | Self::ServerPolicy => true,
            Self::TrustBundle | Self::MeshConfig => false,
        }
    }

    /// A short name for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointSlice => "EndpointSlice",
            Self::Service => "Service",
            Self::Workload => "Workload",
            Self::TrustBundle => "TrustBundle",
            Self::MeshConfig => "MeshConfig",
            Self::Namespace => "Namespace",
            Self::ServerPolicy => "ServerPolicy",
        }
    }
}

/// The name of the only [`MeshConfig`].
pub const MESH_CONFIG_NAME: &str = "mesh";

/// One resource in its domain form.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// A part of a service's endpoints.
    EndpointSlice(EndpointSlice),
    /// A service, without its endpoints.
    Service(Service),
    /// A workload reached by its own address.
    Workload(Workload),
    /// Whom to believe.
    TrustBundle(TrustBundle),
    /// Mesh-wide settings.
    MeshConfig(MeshConfig),
    /// What holds for the callers of one namespace.
    Namespace(Namespace),
    /// What the sidecars of a service's own workloads enforce.
    ServerPolicy(ServerPolicy),
}

impl Resource {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Service(_) => Kind::Service,
            Self::Workload(_) => Kind::Workload,
            Self::TrustBundle(_) => Kind::TrustBundle,
            Self::MeshConfig(_) => Kind::MeshConfig,
            Self::Namespace(_) => Kind::Namespace,
            Self::ServerPolicy(_) => Kind::ServerPolicy,
        }
    }

    /// Its name, unique within its kind.
    pub fn name(&self) -> String {
        match self {
            Self::EndpointSlice(slice) => slice.resource_name(),
            Self::Service(service) => service.name.to_string(),
            Self::Workload(workload) => workload.name.to_string(),
            Self::TrustBundle(bundle) => bundle.trust_domain.to_string(),
            Self::MeshConfig(_) => MESH_CONFIG_NAME.to_owned(),
            Self::Namespace(namespace) => namespace.name.clone(),
            Self::ServerPolicy(policy) => policy.service.to_string(),
        }
    }

    /// Other names under which a sidecar may ask for it: hostname and addresses.
    pub fn aliases(&self) -> Vec<String> {
        match self {
            Self::Service(service) => std::iter::once(service.name.hostname())
                .chain(service.addresses.iter().map(ToString::to_string))
                .chain(service.external.iter().flat_map(|external| {
                    let hosts = external.hosts.iter().map(ToString::to_string);
                    hosts.chain(external.own_addresses().map(|(own, _)| own.to_string()))
                }))
                .collect(),
            Self::Workload(workload) => {
                workload.addresses.iter().map(ToString::to_string).collect()
            }
            Self::EndpointSlice(_)
            | Self::TrustBundle(_)
            | Self::MeshConfig(_)
            | Self::Namespace(_)
            | Self::ServerPolicy(_) => Vec::new(),
        }
    }

    /// Its wire form. Equal resources have equal bytes. A service's endpoints are not in it.
    pub fn encode(&self) -> Any {
        let value = match self {
            Self::EndpointSlice(slice) => mesh::EndpointSlice::from(slice).encode_to_vec(),
            Self::Service(service) => mesh::Service::from(service).encode_to_vec(),
            Self::Workload(workload) => mesh::Workload::from(workload).encode_to_vec(),
            Self::TrustBundle(bundle) => mesh::TrustBundle::from(bundle).encode_to_vec(),
            Self::MeshConfig(config) => mesh::MeshConfig::from(config).encode_to_vec(),
            Self::Namespace(namespace) => mesh::Namespace::from(namespace).encode_to_vec(),
            Self::ServerPolicy(policy) => mesh::ServerPolicy::from(policy).encode_to_vec(),
        };
        Any {
            type_url: self.kind().type_url().to_owned(),
            value,
        }
    }

    /// Reads and checks a resource; `Err` says what is wrong with it.
    pub fn decode(any: &Any) -> Result<Self, Rejection> {
        let kind = Kind::from_type_url(&any.type_url).ok_or_else(|| Rejection::UnknownType {
            type_url: any.type_url.clone(),
        })?;
        let bytes = any.value.as_slice();
        Ok(match kind {
            Kind::EndpointSlice => {
                Self::EndpointSlice(mesh::EndpointSlice::decode(bytes)?.try_into()?)
            }
            Kind::Service => Self::Service(mesh::Service::decode(bytes)?.try_into()?),
            Kind::Workload => Self::Workload(mesh::Workload::decode(bytes)?.try_into()?),
            Kind::TrustBundle => Self::TrustBundle(mesh::TrustBundle::decode(bytes)?.try_into()?),
            Kind::MeshConfig => Self::MeshConfig(mesh::MeshConfig::decode(bytes)?.try_into()?),
            Kind::Namespace => Self::Namespace(mesh::Namespace::decode(bytes)?.try_into()?),
            Kind::ServerPolicy => {
                Self::ServerPolicy(mesh::ServerPolicy::decode(bytes)?.try_into()?)
            }
        })
    }
}
