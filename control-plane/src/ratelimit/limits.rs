//! Which limits are shared, and whose they are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use weft_core::name::ServiceName;
use weft_core::rate::{RateScope, RuleName};
use weft_proto::resource::{Kind, Resource};

use crate::compile::Compiled;
use crate::identity::Identities;
use crate::identity::service_account::is_pod;
use crate::peer::PeerIdentity;
use crate::pipeline::Pipeline;

/// The limits of one service that are shared, and whether each has keys.
pub type Shared = BTreeMap<RuleName, bool>;

/// What this process knows of shared limits, by its policies.
pub trait KnownLimits: fmt::Debug + Send + Sync {
    /// Those of a service.
    fn of_service(&self, service: &ServiceName) -> Shared;

    /// Those that a sidecar may tell of, each with its service: of services that it may serve.
    fn of_sidecar(&self, peer: &PeerIdentity) -> BTreeMap<RuleName, ServiceName>;
}

/// The limits of the mesh.
#[derive(Debug)]
pub struct MeshLimits {
    pipeline: Arc<Pipeline>,
    identities: Arc<Identities>,
}

impl MeshLimits {
    /// What policies say, and who may serve what.
    pub fn new(pipeline: &Arc<Pipeline>, identities: &Arc<Identities>) -> Self {
        Self {
            pipeline: Arc::clone(pipeline),
            identities: Arc::clone(identities),
        }
    }
}

impl KnownLimits for MeshLimits {
    fn of_service(&self, service: &ServiceName) -> Shared {
        of_service(&self.pipeline.snapshot().compiled, service)
    }

    fn of_sidecar(&self, peer: &PeerIdentity) -> BTreeMap<RuleName, ServiceName> {
        let snapshot = self.pipeline.snapshot();
        let instance = &peer.instance;
        let services: Vec<ServiceName> = match is_pod(instance) {
            // What a pod serves is in the cluster's facts, also when this process has just begun.
            true => {
                let pod = snapshot.world.pod_of(peer).into_iter();
                let served = pod.flat_map(|pod| snapshot.world.services_of(pod));
                served.map(|served| served.service.name.clone()).collect()
            }
            false => self.identities.services_of(instance).into_iter().collect(),
        };
        let own = services.iter().flat_map(|service| {
            let shared = of_service(&snapshot.compiled, service).into_keys();
            shared.map(|rule| (rule, service.clone()))
        });
        own.collect()
    }
}

fn of_service(compiled: &Compiled, service: &ServiceName) -> Shared {
    let found = compiled.find(Kind::ServerPolicy, &service.to_string());
    match found.map(|found| &found.resource) {
        Some(Resource::ServerPolicy(policy)) => {
            let limits = policy.ports.values().flat_map(|port| &port.rate_limits);
            let shared = limits.filter(|limit| limit.scope == RateScope::Global);
            let shared = shared.map(|limit| (limit.name.clone(), !limit.key.is_empty()));
            shared.collect()
        }
        Some(
            Resource::EndpointSlice(_)
            | Resource::Service(_)
            | Resource::Workload(_)
            | Resource::TrustBundle(_)
            | Resource::MeshConfig(_)
            | Resource::Namespace(_),
        )
        | None => Shared::new(),
    }
}
