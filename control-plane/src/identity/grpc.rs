//! Signs certificates for whoever proves to be somebody.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};
use weft_proto::identity::identity_server::Identity;
use weft_proto::identity::sign_request::Credential as Wire;
use weft_proto::identity::{SignRequest, SignResponse};

use crate::plane::{Credential, Plane, PlaneError};
use crate::tls::PeerIdentity;

/// The service.
#[derive(Debug, Clone)]
pub struct IdentityService {
    /// What it asks.
    pub plane: Arc<Plane>,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = PeerIdentity::of(&request);
        let request = request.into_inner();
        let credential = match request.credential {
            Some(Wire::JoinToken(text)) => Credential::JoinToken(text),
            Some(Wire::InstanceKey(text)) => Credential::InstanceKey(text),
            Some(Wire::CurrentCertificate(_)) => Credential::Certificate(peer?),
            None => return Err(Status::invalid_argument("no credential")),
        };
        let signed = self.plane.sign(credential, &request.csr).await;
        let signed = signed.map_err(|error| {
            let counters = &self.plane.counters;
            counters.sign_refused.fetch_add(1, Ordering::Relaxed);
            status(&error)
        })?;
        let authority = self.plane.authority();
        Ok(Response::new(SignResponse {
            chain: signed.leaf.chain,
            roots: vec![authority.root().to_vec()],
            trust_domain: authority.trust_domain().to_string(),
            identity: signed.identity.to_string(),
            instance: signed.instance,
            workload: signed.binding.workload.to_string(),
            instance_key: signed.instance_key.unwrap_or_default(),
            issued: signed.leaf.issued,
            not_after: signed.leaf.not_after,
            services: signed
                .binding
                .services
                .iter()
                .map(ToString::to_string)
                .collect(),
            ports: signed
                .binding
                .ports
                .iter()
                .copied()
                .map(Into::into)
                .collect(),
        }))
    }
}

fn status(error: &PlaneError) -> Status {
    let text = error.to_string();
    match error {
        PlaneError::Token(_) => Status::unauthenticated(text),
        PlaneError::Refused(_) => Status::permission_denied(text),
        PlaneError::Ca(_) | PlaneError::Invalid(_) => Status::invalid_argument(text),
        PlaneError::Store(_) => Status::unavailable(text),
        PlaneError::RateLimited => Status::resource_exhausted(text),
    }
}
