//! The certificate authority: a root made on first start, an intermediate, leaves from CSRs.
//!
//! From a request only the public key is taken; every name in a certificate is written here.

mod contents;
mod files;
mod remains;
mod request;
mod secret;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_core::name::{
    CONTROL_PLANE_ACCOUNT, CONTROL_PLANE_USAGE, RESERVED_NAMESPACE, SpiffeId, TrustDomain,
};

use contents::{ca_params, leaf_params};
use files::{check_root, end_of, file, from_pem, make_dir, pair, refuse_key_alone};
use request::read_request;

pub use remains::Remains;
pub use request::public_key_hash;
pub use secret::{AuthorityError, open_in_cluster};

use super::operator;
use crate::sha256_hex;

const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// The intermediate's files are called this.
const INTERMEDIATE: &str = "intermediate";
/// The DNS name in the control plane's own certificate, whatever it is reached at.
pub const OWN_DNS_NAME: &str = weft_api::SERVER_NAME;
/// Shortest and longest life of a leaf.
pub const LEAF_TTL_MIN: Duration = Duration::from_secs(10);
/// See [`LEAF_TTL_MIN`].
pub const LEAF_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The authority's files cannot be read or written.
    #[error("certificate authority: {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A file of the authority is not what it should be.
    #[error("certificate authority: {}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory belongs to another mesh, or its root has ended.
    #[error(
        "certificate authority: the root in {} is {found}; expected {expected} (choose another --data-dir, or the --trust-domain that it was made for)",
        path.display()
    )]
    Root {
        /// The file.
        path: PathBuf,
        /// Whose it is, or since when it is over.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The request is not one that is signed.
    #[error("certificate request: {0}")]
    Request(String),
    /// Signing failed.
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Root and intermediate.
pub struct Authority {
    dir: PathBuf,
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    root_issuer: Issuer<'static, KeyPair>,
    root_ends: SystemTime,
    intermediate: ArcSwap<Intermediate>,
}

/// What leaves are signed with; replaced when half of its life is over.
struct Intermediate {
    der: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// A signed certificate.
#[derive(Debug)]
pub struct SignedLeaf {
    /// DER: leaf and intermediate.
    pub chain: Vec<Vec<u8>>,
    /// Time of issue, seconds since the Unix epoch.
    pub issued: i64,
    /// End of validity.
    pub not_after: i64,
}

impl Authority {
    /// Opens the authority in a directory; on first start makes its root (0600).
    pub fn open(dir: &Path, trust_domain: TrustDomain) -> Result<Self, CaError> {
        make_dir(dir)?;
        let now = SystemTime::now();
        refuse_key_alone(dir, "root")?;
        let (root_pem, root_key) = pair(dir, "root", || {
            let key = KeyPair::generate()?;
            let params = ca_params(&trust_domain, "root", now, now + ROOT_LIFE);
            Ok((params.self_signed(&key)?.pem(), key))
        })?;
        let root_issuer = Issuer::from_ca_cert_pem(&root_pem, root_key)?;
        let root = from_pem(dir, "root", &root_pem)?;
        check_root(dir, &root, &trust_domain)?;
        let root_ends = end_of(&dir.join("root.pem"), &root)?;
        let issuer = (&root_issuer, root_ends);
        let intermediate = Intermediate::open(dir, &trust_domain, issuer, now)?;
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain,
            root,
            root_issuer,
            root_ends,
            intermediate: ArcSwap::from_pointee(intermediate),
        })
    }

    /// Replaces the intermediate if half of its life is over, by what it says itself.
    pub fn renew(&self, now: SystemTime) -> Result<(), CaError> {
        if self.intermediate.load().is_due(now) {
            let fresh = Intermediate::open(
                &self.dir,
                &self.trust_domain,
                (&self.root_issuer, self.root_ends),
                now,
            )?;
            self.intermediate.store(Arc::new(fresh));
        }
        Ok(())
    }

    /// Trust domain of the mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root, DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// SHA-256 of the root, hexadecimal: what a join token carries.
    pub fn root_digest(&self) -> String {
        sha256_hex(&self.root)
    }

    /// Signs a certificate for the public key of a request (PKCS #10, DER), which says who it is
    /// for. `now` is the time of issue.
    pub fn sign(
        &self,
        csr: &[u8],
        identity: &SpiffeId,
        instance: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError> {
        if identity.namespace() == RESERVED_NAMESPACE {
            let reason = format!(
                "{identity} is in the namespace {RESERVED_NAMESPACE}, which is the mesh's own"
            );
            return Err(CaError::Request(reason));
        }
        let intermediate = self.intermediate.load();
        let ends = intermediate.end_of_leaf(now, ttl);
        let params = leaf_params(identity.as_str(), instance, (now, ends), &[])?;
        sign_with(&intermediate, csr, params, (now, ends))
    }

    /// Signs a certificate for an operator (see [`crate::identity::operator`]): good for calling only.
    pub fn sign_operator(
        &self,
        csr: &[u8],
        name: &str,
        id: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedLeaf, CaError> {
        let identity = operator::identity(&self.trust_domain, name);
        let identity = identity.map_err(|error| CaError::Request(error.to_string()))?;
        let intermediate = self.intermediate.load();
        let ends = intermediate.end_of_leaf(now, ttl);
        let mut params = leaf_params(&identity, id, (now, ends), &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        sign_with(&intermediate, csr, params, (now, ends))
    }

    /// The control plane's own certificate: leaf, intermediate and root, so that first contact can
    /// compare the root with its token.
    pub fn own(
        &self,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        // It never calls, and nobody else's certificate says this.
        let usage = ExtendedKeyUsagePurpose::Other(CONTROL_PLANE_USAGE.to_vec());
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, usage];
        self.of_our_own(CONTROL_PLANE_ACCOUNT, &[OWN_DNS_NAME], usages, ttl, now)
    }

    /// The certificate that the control plane shows to another one of the mesh, which tells this process
    /// from others by `replica`. It is good for calling only.
    pub fn own_client(
        &self,
        replica: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let usage = ExtendedKeyUsagePurpose::Other(CONTROL_PLANE_USAGE.to_vec());
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth, usage];
        self.of_our_own(replica, &[], usages, ttl, now)
    }

    /// The certificate of the webhook, which the API server reaches at DNS names. It does not say that
    /// it is the control plane's: the API server could not read that (Go refuses identifiers whose
    /// parts have more than 31 bits), and sidecars do not talk to the webhook.
    pub fn own_webhook(
        &self,
        names: &[&str],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.of_our_own(CONTROL_PLANE_ACCOUNT, names, usages, ttl, now)
    }

    fn of_our_own(
        &self,
        instance: &str,
        names: &[&str],
        usages: Vec<ExtendedKeyUsagePurpose>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let identity = SpiffeId::new(
            &self.trust_domain,
            RESERVED_NAMESPACE,
            CONTROL_PLANE_ACCOUNT,
        );
        let identity = identity.map_err(|error| CaError::Request(error.to_string()))?;
        let key = KeyPair::generate()?;
        let intermediate = self.intermediate.load();
        let ends = intermediate.end_of_leaf(now, ttl);
        let mut params = leaf_params(identity.as_str(), instance, (now, ends), names)?;
        params.extended_key_usages = usages;
        let leaf = params.signed_by(&key, &intermediate.issuer)?;
        let chain = vec![
            leaf.der().clone(),
            intermediate.der.clone(),
            self.root.clone(),
        ];
        let key = PrivateKeyDer::try_from(key.serialize_der());
        let key = key.map_err(|error| CaError::Request(error.to_owned()))?;
        Ok((chain, key))
    }
}

impl Intermediate {
    fn open(
        dir: &Path,
        trust_domain: &TrustDomain,
        (root, root_ends): (&Issuer<'static, KeyPair>, SystemTime),
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let path = dir.join(format!("{INTERMEDIATE}.pem"));
        let read = || {
            let (pem, key) = pair(dir, INTERMEDIATE, || {
                let key = KeyPair::generate()?;
                let ends = root_ends.min(now + INTERMEDIATE_LIFE);
                let params = ca_params(trust_domain, INTERMEDIATE, now, ends);
                Ok((params.signed_by(&key, root)?.pem(), key))
            })?;
            let der = from_pem(dir, INTERMEDIATE, &pem)?;
            Ok::<_, CaError>(Self {
                not_after: end_of(&path, &der)?,
                der,
                issuer: Issuer::from_ca_cert_pem(&pem, key)?,
            })
        };
        let found = read()?;
        // One that ends with the root cannot be had any longer.
        if !found.is_due(now) || found.not_after >= root_ends {
            return Ok(found);
        }
        // First, so that there never is a certificate with another one's key.
        fs::remove_file(&path).map_err(|source| file("removing", &path, source))?;
        read()
    }

    /// Whether half of its life is over.
    fn is_due(&self, now: SystemTime) -> bool {
        self.not_after < now + INTERMEDIATE_LIFE / 2
    }

    /// The end of a leaf that is issued now: none outlives its issuer.
    fn end_of_leaf(&self, now: SystemTime, ttl: Duration) -> SystemTime {
        self.not_after.min(now + ttl)
    }
}

fn sign_with(
    intermediate: &Intermediate,
    csr: &[u8],
    params: CertificateParams,
    (issued, ends): (SystemTime, SystemTime),
) -> Result<SignedLeaf, CaError> {
    let mut request = read_request(csr)?;
    request.params = params;
    let certificate = request.signed_by(&intermediate.issuer)?;
    Ok(SignedLeaf {
        chain: vec![certificate.der().to_vec(), intermediate.der.to_vec()],
        issued: seconds(issued),
        not_after: seconds(ends),
    })
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
