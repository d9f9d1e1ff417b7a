//! The identity on disk: one file, so that key and certificate always belong together.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use weft_core::model::TrustBundle;
use weft_core::name::{ServiceName, SpiffeId, TrustDomain, WorkloadName};

use super::{Identity, IdentityError};
use crate::state::StateDir;
use crate::tls::Credentials;

/// The file's name in the state directory.
const FILE: &str = "identity.json";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    identity: SpiffeId,
    instance: String,
    workload: WorkloadName,
    services: Vec<ServiceName>,
    issued: i64,
    not_after: i64,
    /// DER in base64.
    chain: Vec<String>,
    /// PKCS #8 in base64.
    key: String,
    trust_domain: TrustDomain,
    roots: Vec<String>,
    revoked_instances: Vec<String>,
    instance_key: String,
}

impl Saved {
    pub(super) fn read(state: &StateDir) -> Result<Option<Self>, IdentityError> {
        let Some(content) = state.read(FILE)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&content) {
            Ok(saved) => Ok(Some(saved)),
            Err(error) => Err(IdentityError::Answer(format!(
                "{FILE} in the state directory: {error}; remove it to enrol anew with a token"
            ))),
        }
    }

    /// Writes it; durable when this is over.
    pub(super) async fn write(&self, state: &StateDir) -> Result<(), IdentityError> {
        Ok(state.write(FILE, self.content()?).await?)
    }

    /// Writes it soon.
    pub(super) fn write_soon(&self, state: &StateDir) -> Result<(), IdentityError> {
        state.write_soon(FILE, self.content()?);
        Ok(())
    }

    fn content(&self) -> Result<Vec<u8>, IdentityError> {
        serde_json::to_vec(self).map_err(|error| IdentityError::Answer(format!("{FILE}: {error}")))
    }

    pub(super) fn into_identity(self) -> Result<Identity, IdentityError> {
        let decode = |text: &String| {
            STANDARD.decode(text).map_err(|error| {
                IdentityError::Answer(format!("{FILE} in the state directory: {error}"))
            })
        };
        let chain: Vec<Vec<u8>> = self.chain.iter().map(decode).collect::<Result<_, _>>()?;
        let roots = self.roots.iter().map(decode).collect::<Result<_, _>>()?;
        let key = decode(&self.key)?;
        Ok(Identity {
            credentials: Arc::new(Credentials {
                chain: chain.into_iter().map(CertificateDer::from).collect(),
                key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
                identity: self.identity,
                instance: self.instance.into(),
                not_after: self.not_after,
            }),
            workload: self.workload,
            services: self.services,
            issued: self.issued,
            bundle: TrustBundle {
                trust_domain: self.trust_domain,
                roots,
                revoked_instances: self.revoked_instances.into_iter().collect(),
            },
            instance_key: self.instance_key,
        })
    }
}

impl From<&Identity> for Saved {
    fn from(identity: &Identity) -> Self {
        let credentials = &identity.credentials;
        let encode = |bytes: &[u8]| STANDARD.encode(bytes);
        Self {
            identity: credentials.identity.clone(),
            instance: credentials.instance.to_string(),
            workload: identity.workload.clone(),
            services: identity.services.clone(),
            issued: identity.issued,
            not_after: credentials.not_after,
            chain: credentials.chain.iter().map(|der| encode(der)).collect(),
            key: encode(credentials.key.secret_der()),
            trust_domain: identity.bundle.trust_domain.clone(),
            roots: identity
                .bundle
                .roots
                .iter()
                .map(|der| encode(der))
                .collect(),
            revoked_instances: identity.bundle.revoked_instances.iter().cloned().collect(),
            instance_key: identity.instance_key.clone(),
        }
    }
}
