//! What signs certificates.

use std::fmt;
use std::time::{Duration, SystemTime};

use weft_core::name::{SpiffeId, TrustDomain};

use super::ca::{Authority, CaError, SignedLeaf};

/// Signs certificates for public keys. Of a request (PKCS #10, DER) only the public key is used;
/// the names in the certificate are the arguments.
pub trait Signer: fmt::Debug + Send + Sync {
    /// The trust domain of every certificate that it signs.
    fn trust_domain(&self) -> &TrustDomain;

    /// The root that its certificates lead to, DER.
    fn root(&self) -> &[u8];

    /// Signs the certificate of a workload's instance. `now` is the time of issue.
    fn sign(
        &self,
        csr: &[u8],
        identity: &SpiffeId,
        instance: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError>;

    /// Signs the certificate of an operator.
    fn sign_operator(
        &self,
        csr: &[u8],
        name: &str,
        id: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError>;
}

impl Signer for Authority {
    fn trust_domain(&self) -> &TrustDomain {
        self.trust_domain()
    }

    fn root(&self) -> &[u8] {
        self.root()
    }

    fn sign(
        &self,
        csr: &[u8],
        identity: &SpiffeId,
        instance: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError> {
        self.sign(csr, identity, instance, ttl, now)
    }

    fn sign_operator(
        &self,
        csr: &[u8],
        name: &str,
        id: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError> {
        self.sign_operator(csr, name, id, ttl, now)
    }
}
