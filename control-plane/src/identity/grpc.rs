//! Signs certificates for attested peers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};
use weft_proto::identity::identity_server::Identity;
use weft_proto::identity::sign_request::Credential as Wire;
use weft_proto::identity::{SignRequest, SignResponse};

use super::{Credential, Identities, IdentityError};
use crate::peer::{PeerIdentity, PeerInfo};

/// The service.
#[derive(Debug, Clone)]
pub struct IdentityService {
    /// What it asks.
    pub identities: Arc<Identities>,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = PeerIdentity::of(&request);
        let source = PeerInfo::of(&request)?.address.ip();
        let request = request.into_inner();
        let credential = match request.credential {
            Some(Wire::JoinToken(text)) => Credential::JoinToken(text),
            Some(Wire::InstanceKey(text)) => Credential::InstanceKey(text),
            Some(Wire::CurrentCertificate(_)) => Credential::Certificate(peer?),
            Some(Wire::ServiceAccountToken(text)) => Credential::ServiceAccountToken(text),
            None => return Err(Status::invalid_argument("no credential")),
        };
        let signed = self.identities.sign(credential, &request.csr, source).await;
        let signed = signed.map_err(|error| {
            let counters = &self.identities.counters;
            counters.refused.fetch_add(1, Ordering::Relaxed);
            status(&error)
        })?;
        let signer = self.identities.signer();
        Ok(Response::new(SignResponse {
            chain: signed.leaf.chain,
            roots: vec![signer.root().to_vec()],
            trust_domain: signer.trust_domain().to_string(),
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

fn status(error: &IdentityError) -> Status {
    let text = error.to_string();
    match error {
        IdentityError::Token(_) => Status::unauthenticated(text),
        IdentityError::Ca(_) | IdentityError::Reserved(_) | IdentityError::Invalid(_) => {
            Status::invalid_argument(text)
        }
        IdentityError::NoCluster => Status::unauthenticated(text),
        IdentityError::Store(_) | IdentityError::Unproved(_) => Status::unavailable(text),
        IdentityError::Exceeded(_) | IdentityError::Full { .. } => Status::resource_exhausted(text),
    }
}
